"""Follows the log for one receiver and sends it what it wants, each event until it is taken, in the log's order.

Its place in the log is on disk: `webhooks/NAME.place` in the state folder. It moves once an event was taken: after a crash the
last one may be sent again, under the same id, and none is left out. Each receiver has a reader and a place of its own: one
that does not answer holds back nothing but itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec

from analytics import checkpoints
from analytics.checkpoints import Checkpoint
from ingest.events import Frame
from ingest.follow import Follower, Gap, Seen
from ingest.histogram import Histogram
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition, Record
from pgwarden import __version__
from pgwarden.cloud_events import CloudEvent, cloud_event, is_wanted, topics
from pgwarden.config import WebhookConfig
from pgwarden.webhook_attempts import Failed, Outcome, Taken, headers, outcome, pause_seconds, signing_key

VERSION: Final = 1  # of the place's file
FOLDER: Final = "webhooks"

_log: Final = logging.getLogger("pgwarden.webhooks")


@dataclass(frozen=True, slots=True)
class SenderSettings:
    pause_seconds_min: float = 1.0  # after the first failure
    pause_seconds_max: float = 300.0  # a receiver that was away for long is told within five minutes of its return
    place_seconds: float = 5.0  # between two writings of the place where nothing was sent
    answer_bytes_max: int = 4_096  # read of an answer, and thrown away
    log_retry_seconds: float = 0.25
    log_broken_seconds: float = 5.0  # after it was corrupt: a person must act


class _Place(msgspec.Struct, frozen=True):
    """Beside the offsets: which log they are of, and how many events of the record that is next in one partition are done."""

    log: str
    topic: str = ""
    partition: int = 0
    offset: int = -1
    done: int = 0


class Sender:
    """`run` until cancelled. Owned by one loop; does not close the log.

    `log_name` tells this log from others: a place in another one is no place in this.
    """

    def __init__(
        self,
        log: EventLog,
        log_name: str,
        webhook: WebhookConfig,
        state: Path,
        settings: SenderSettings,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._log_name = log_name
        self._webhook = webhook
        self._settings = settings
        self._chance = chance
        self._topics = topics(webhook.events)
        self._path = state / FOLDER / f"{webhook.name}.place"
        self._offsets: dict[Partition, int] = {}
        self._seen: Seen = {}
        self._resumed = _Place(log_name)  # of the record that was sent in part
        self._placed_at = 0.0
        self._trying_since = 0.0  # monotonic; 0.0 = nothing waits
        self._log_error = ""
        self._error = ""  # of the last attempt
        self._delivered = self._failed = self._given_up = 0
        self._durations = Histogram()

    def status(self) -> Mapping[str, object]:
        ends = {place: end for topic in self._topics for place, end in self._log.end_offsets(topic).items()}
        return {
            "delivered": self._delivered,
            "failed": self._failed,
            "given_up": self._given_up,
            "lag_records": sum(max(0, end - self._offsets.get(place, end)) for place, end in ends.items()),
            "waiting_seconds": round(time.monotonic() - self._trying_since, 3) if self._trying_since else 0.0,
            "durations": self._durations.facts(),
            "error": self._log_error or self._error,
        }

    async def run(self) -> None:
        """What the log or the receiver does wrong is tried again, and told by status(); only our own mistakes are raised."""
        async with client(self._webhook) as http:
            while True:
                try:
                    await self._follow(http)
                except LogUnavailable as error:
                    self._log_error = f"the log cannot be read: {error}"
                    await asyncio.sleep(self._settings.log_retry_seconds)
                except LogCorrupt as error:
                    if not self._log_error:
                        _log.critical("webhook %s stands still: %s", self._webhook.name, error)
                    self._log_error = f"the log is damaged: {error}"
                    await asyncio.sleep(self._settings.log_broken_seconds)
                except OSError as error:
                    self._log_error = f"its place in the log cannot be written: {error.strerror or error}"
                    _log.error("webhook %s: %s", self._webhook.name, self._log_error)
                    await asyncio.sleep(self._settings.log_broken_seconds)

    # -- the log ---------------------------------------------------------------------------------------------------------------

    async def _follow(self, http: httpx.AsyncClient) -> None:
        await self._find_place()
        follower = Follower(self._log, self._topics, self._offsets, self._seen, self._missed)
        try:
            while True:
                for record, frame in await follower.poll():
                    await self._send_frame(http, record, frame)
                self._log_error = ""
                self._offsets, self._seen = dict(follower.offsets), dict(follower.seen)
                if time.monotonic() - self._placed_at >= self._settings.place_seconds:
                    await self._keep_place(_Place(self._log_name))
        finally:
            follower.close()

    async def _find_place(self) -> None:
        found = await asyncio.to_thread(checkpoints.read, str(self._path))
        problem = found if isinstance(found, str) else ""
        if isinstance(found, Checkpoint):
            place = _place(found)
            ends = {at: end for topic in self._topics for at, end in (await self._log.offsets(topic)).items()}
            if place is None or place.log != self._log_name:
                problem = "it is of another log or version"
            elif any(offset > ends.get(at, offset) for at, offset in found.offsets.items()):
                problem = "it lies behind the log's end"
            else:
                # A topic that is followed from now on alone has no place yet.
                self._offsets = {at: found.offsets.get(at, end) for at, end in ends.items()}
                self._seen, self._resumed = dict(found.seen), place
                return
        if problem:
            _log.error("webhook %s begins with what comes from now on: its place cannot be used: %s", self._webhook.name, problem)
        # Whoever asks to be told today is not told of all that ever happened.
        self._offsets = {at: end for topic in self._topics for at, end in (await self._log.offsets(topic)).items()}
        self._seen, self._resumed = {}, _Place(self._log_name)
        await self._keep_place(self._resumed)

    async def _keep_place(self, place: _Place) -> None:
        """Raises OSError."""
        kept = Checkpoint(VERSION, dict(self._offsets), dict(self._seen), msgspec.json.encode(place))
        await asyncio.to_thread(checkpoints.write, str(self._path), kept)
        self._placed_at = time.monotonic()

    def _missed(self, gap: Gap) -> None:
        if not gap.writer:  # other gaps are told by the tables' reader, which has read the log from its first record on
            _log.error("webhook %s is not told of records that the log has dropped meanwhile: %s", self._webhook.name, gap)

    async def _send_frame(self, http: httpx.AsyncClient, record: Record, frame: Frame) -> None:
        at = (record.topic, record.partition)
        resumed = self._resumed
        taken = resumed.done if (resumed.topic, resumed.partition, resumed.offset) == (*at, record.offset) else 0
        self._offsets[at] = record.offset
        sent = False
        for index, (_, event) in enumerate(frame.events):
            if index < taken or not is_wanted(event, self._webhook.events, self._webhook.severity):
                continue
            if sent:
                await self._keep_place(_Place(self._log_name, *at, record.offset, index))
            await self._deliver(http, cloud_event(frame, index, self._webhook.source))
            sent = True
        self._offsets[at] = record.offset + 1
        self._seen[(frame.writer, record.topic, record.partition)] = (frame.boot, frame.seq)
        if sent:
            await self._keep_place(_Place(self._log_name))

    # -- the receiver ----------------------------------------------------------------------------------------------------------

    async def _deliver(self, http: httpx.AsyncClient, event: CloudEvent) -> None:
        """Return once it is taken, or given up."""
        self._trying_since = time.monotonic()
        failures = 0
        while True:
            began = time.monotonic()
            came = await attempt(http, self._webhook, event, int(time.time()), self._settings.answer_bytes_max)
            self._durations.observe(time.monotonic() - began)
            if isinstance(came, Taken):
                if failures:
                    _log.warning("webhook %s took %s after %d failures", self._webhook.name, event.id, failures)
                self._delivered += 1
                self._error = ""
                break
            failures += 1
            self._failed += 1
            if failures == 1:
                _log.warning("webhook %s did not take %s: %s", self._webhook.name, event.id, came.reason)
            self._error = f"it does not take {event.type}, {failures} times so far: {came.reason}"
            if self._webhook.attempts and failures >= self._webhook.attempts:
                _log.error("webhook %s is not told of %s: given up after %d attempts", self._webhook.name, event.id, failures)
                self._given_up += 1
                break
            least, most = self._settings.pause_seconds_min, self._settings.pause_seconds_max
            await asyncio.sleep(pause_seconds(failures, self._chance(), least, most, came.wait_seconds))
        self._trying_since = 0.0


def _place(found: Checkpoint) -> _Place | None:
    try:
        return msgspec.json.decode(found.state, type=_Place) if found.version == VERSION else None
    except msgspec.MsgspecError:
        return None


def client(webhook: WebhookConfig) -> httpx.AsyncClient:
    """For one receiver. Raises OSError, ssl.SSLError when the file of certificates cannot be used."""
    tls = ssl.create_default_context(cafile=webhook.ca_file)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    return httpx.AsyncClient(
        verify=tls,
        follow_redirects=False,  # what is signed for one receiver goes to no other
        trust_env=False,  # nor through a proxy that somebody set for something else
        timeout=webhook.timeout_seconds,
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        headers={"user-agent": f"pgwarden/{__version__}", "accept": "*/*"},
    )


async def attempt(
    http: httpx.AsyncClient, webhook: WebhookConfig, event: CloudEvent, at_seconds: int, answer_bytes_max: int
) -> Outcome:
    secrets = [secret.reveal() for secret in (webhook.secret, webhook.secret_previous) if secret is not None]
    keys = [key for secret in secrets if (key := signing_key(secret)) is not None]
    came: Outcome = Failed(f"no answer within {webhook.timeout_seconds:g} s")
    try:
        # Over all: a receiver that sends a byte now and then would hold an attempt for ever.
        async with (
            asyncio.timeout(webhook.timeout_seconds),
            http.stream("POST", webhook.url, content=event.body, headers=headers(event, keys, at_seconds)) as answer,
        ):
            came = outcome(answer.status_code, answer.headers.get("retry-after", ""))
            read = 0
            async for part in answer.aiter_raw():  # so that the connection can be used again
                read += len(part)
                if read > answer_bytes_max:
                    break
    except (TimeoutError, httpx.TimeoutException):
        return came
    except (httpx.HTTPError, OSError) as error:
        return came if isinstance(came, Taken) else Failed(_words(error))
    return came


def _words(error: Exception) -> str:
    """Without what the receiver said, and without its URL, which may hold a secret."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ConnectionRefusedError):
            return "nobody listens there"
        cause = cause.__cause__ or cause.__context__
    return f"it cannot be reached ({type(error).__name__})"
