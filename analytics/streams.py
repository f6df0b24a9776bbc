"""The same steps on Faust: workers of one group share the partitions of `sessions` and `statements`. Nothing else imports faust.

Faust says who has which partition and hands records over, no more. Its tables are not used: see docs/worker.md. enforcer.py keeps
what must be right, and trusts no committed offset. The counts are kept in a compacted topic, by agent; Faust sends them before it
commits the offsets of the frames that are in them, and each value names those frames, so that none counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import faust
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]
from faust.auth import SASLCredentials, SSLCredentials
from faust.exceptions import ConsumerNotStarted
from faust.types import TP, AppT, EventT, Message, StreamT

from analytics import activity
from analytics.activity import Activity, ActivitySettings, Window
from analytics.enforcer import Enforcer, Unreadable
from ingest.events import Frame
from ingest.frames import FrameInvalid, decode
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition
from ingest.log.kafka_client import connection
from ingest.settings import KafkaSettings

GROUP: Final = "worker"  # behind the topics' prefix
FLOORS: Final = "worker-floors"  # by partition of `sessions`, in the same partition
ACTIVITY: Final = "worker-activity"  # by agent, in the partition that the agent has in `statements`
HEARTBEAT_SECONDS: Final = 3.0
POSITION_SECONDS_MAX: Final = 5.0
RECORDS_MAX: Final = 1_000
LOOK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.5  # after the log was not available
KEPT_SECONDS_MAX: Final = 60.0  # to read what was kept, while the brokers answer
REBALANCE_SECONDS_MAX: Final = 60.0  # 2 to 3 s as a rule; a worker that hangs in one ends, and whoever started it starts it again
FLOOR_SECONDS: Final = 1.0  # between two floors of one partition
FLOORS_SECONDS_MAX: Final = 10.0  # to read them; without its floor a partition is read from its beginning

_log: Final = logging.getLogger(__name__)


class StreamsFailed(Exception):
    """Faust ended by itself. Says what it said last."""


@dataclass(frozen=True, slots=True)
class StreamsStatus:
    statements: tuple[int, ...]  # partitions that this worker counts
    statement_records: int  # in the log and not counted
    age_seconds: float  # since all that was in this worker's partitions had been processed; 0 when it has
    agents: int
    frames: int  # counted by this process
    windows_closed: int
    unreadable: int
    rebalancing: bool


Counts: TypeAlias = dict[bytes, Activity]


async def kept(log: EventLog, topic: str, partitions: Iterable[int]) -> dict[int, dict[bytes, bytes]]:
    """The newest value of each key that was sent before this call.

    Raises:
        LogUnavailable
    """
    found: dict[int, dict[bytes, bytes]] = {number: {} for number in partitions}
    ends = await log.offsets(topic)
    left = {number: end for number in found if (end := ends[topic, number])}
    if not left:
        return found
    subscription = log.assign({(topic, number): 0 for number in left})
    try:
        while left:
            for record in await subscription.poll(RECORDS_MAX, 1.0):
                found[record.partition][record.key] = record.value
                if record.offset + 1 >= left.get(record.partition, 0):  # the newest record of a partition is never compacted away
                    left.pop(record.partition, None)
    except LogCorrupt as error:
        raise LogUnavailable(str(error)) from error
    finally:
        subscription.close()
    return found


class Streams:
    """One a process, on the running loop."""

    def __init__(
        self,
        kafka: KafkaSettings,
        log: EventLog,
        enforcer: Enforcer,
        settings: ActivitySettings,
        folder: Path,
        credentials: SASLCredentials | SSLCredentials | None = None,
    ) -> None:
        self._log = log
        self._enforcer = enforcer
        self._settings = settings
        self._sessions = kafka.topic_prefix + "sessions"
        self._statements = kafka.topic_prefix + "statements"
        self._counted: dict[int, int] = {}  # partition of `statements` -> next offset
        self._floored_at: dict[int, float] = {}
        self._counts: dict[int, asyncio.Future[Counts | None]] = {}  # of each partition of `statements` that is this worker's
        self._generation = 0  # of the group
        self._assigned: frozenset[TP] = frozenset()
        self._changed = asyncio.Event()
        self._current_at = time.monotonic()
        self._frames = self._closed = self._unreadable = 0
        self.app = faust.App(
            kafka.topic_prefix + GROUP,
            broker=[f"kafka://{address}" for address in kafka.bootstrap],
            broker_credentials=credentials,
            broker_session_timeout=kafka.session_seconds,
            broker_rebalance_timeout=max(kafka.session_seconds, 10.0),
            broker_heartbeat_interval=min(HEARTBEAT_SECONDS, kafka.session_seconds / 3),
            broker_commit_interval=1.0,
            broker_max_poll_interval=kafka.work_seconds_max,
            broker_check_crcs=True,
            consumer_auto_offset_reset="earliest",
            producer_acks=-1,
            producer_linger=0.0,
            stream_wait_empty=False,
            topic_allow_declare=False,  # `pgwarden topics apply` makes them, with a fixed number of partitions
            topic_disable_leader=True,
            web_enabled=False,  # its router and tables would answer anybody
            store="memory://",
            datadir=folder,
            key_serializer="raw",
            value_serializer="raw",
            processing_guarantee="at_least_once",
            loghandlers=[],
        )
        topic = self.app.topic
        self._floors = topic(kafka.topic_prefix + FLOORS, key_type=bytes, value_type=bytes)
        self._activity = topic(kafka.topic_prefix + ACTIVITY, key_type=bytes, value_type=bytes)
        self.app.agent(topic(self._sessions, key_type=bytes, value_type=bytes), name="enforce")(self._enforce)
        self.app.agent(topic(self._statements, key_type=bytes, value_type=bytes), name="count")(self._count)
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)

    async def run(self) -> None:
        """Until cancelled; stop() after that.

        Raises:
            StreamsFailed
        """
        sharing = asyncio.create_task(self._share_out(), name="share out")
        looking = asyncio.create_task(self._look(), name="look")
        try:
            await self.app.start()
            waiting = asyncio.create_task(self.app.wait_until_stopped(), name="faust")
            try:
                await asyncio.wait({waiting, sharing, looking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            for task in (sharing, looking):
                if task.done():
                    task.result()
            raise StreamsFailed(f"Faust ended by itself: {self.app.crash_reason!r}")
        finally:
            sharing.cancel()
            looking.cancel()

    async def stop(self) -> None:
        """Leave the group. May hang on brokers that do not answer: give it a time limit."""
        await self.app.stop()

    def status(self) -> StreamsStatus:
        ends = self._ends()
        offsets = self._offsets()
        behind = not self._reached(ends)
        statements = ((end, offsets.get(place, end)) for place, end in ends.items() if place[0] == "statements")
        return StreamsStatus(
            statements=tuple(sorted(self._counted)),
            statement_records=sum(max(0, end - offset) for end, offset in statements),
            age_seconds=time.monotonic() - self._current_at if behind else 0.0,
            agents=sum(len(counts) for number in self._counts if (counts := self._counts_now(number)) is not None),
            frames=self._frames,
            windows_closed=self._closed,
            unreadable=self._unreadable,
            rebalancing=self.app.rebalancing,
        )

    async def _look(self) -> None:
        """While work never pauses, the end is never reached: so what is known is as old as an end that was.

        Raises:
            StreamsFailed: Faust stands still in the middle of a rebalance.
        """
        ends, at = self._ends(), time.monotonic()
        rebalancing_since = at
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if self._reached(ends):
                self._current_at = at
                ends, at = self._ends(), now
            if not self.app.rebalancing:
                rebalancing_since = now
            elif now - rebalancing_since > REBALANCE_SECONDS_MAX:
                raise StreamsFailed(f"Faust has not come out of a rebalance in {REBALANCE_SECONDS_MAX:g} s")

    def _ends(self) -> dict[Partition, int]:
        return {
            place: end for topic in ("identity", "sessions", "statements") for place, end in self._log.end_offsets(topic).items()
        }

    def _offsets(self) -> dict[Partition, int]:
        return self._enforcer.offsets() | {("statements", number): offset for number, offset in self._counted.items()}

    def _reached(self, ends: Mapping[Partition, int]) -> bool:
        """Of what is this worker's."""
        return all(offset >= ends.get(place, 0) for place, offset in self._offsets().items())

    # -- agents: what Faust hands over ------------------------------------------------------------------------------------------

    async def _enforce(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            partition = event.message.partition
            with contextlib.suppress(Unreadable, LogUnavailable):  # told by the enforcer's standing; it reads it again by itself
                await self._enforcer.take(partition, event.message.offset, event.value or b"")
            if (floor := self._new_floor(partition)) is not None:
                self._floors.send_soon(key=b"%d" % partition, value=floor, partition=partition)

    async def _count(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            try:
                key, agent, frame = _frame(event)
            except FrameInvalid as error:
                self._pass_over(event.message, error)
                continue
            if (counts := await self._counts_of(event.message.partition)) is not None:
                counts[key], closed = activity.step(counts.get(key) or Activity(), frame, agent, self._settings)
                self._activity.send_soon(key=key, value=activity.encode(counts[key]), partition=event.message.partition)
                self._on_counted(event.message, closed)

    # -- what the agents need ---------------------------------------------------------------------------------------------------

    def _new_floor(self, partition: int) -> bytes | None:
        now = time.monotonic()
        if now < self._floored_at.get(partition, 0.0) + FLOOR_SECONDS:
            return None
        self._floored_at[partition] = now
        return self._enforcer.floor(partition)

    async def _counts_of(self, partition: int) -> Counts | None:
        """None: the partition went while its counts were read; its next owner is handed the same record."""
        counts = self._counts.get(partition)
        return await asyncio.shield(counts) if counts is not None else None

    def _counts_now(self, partition: int) -> Counts | None:
        counts = self._counts[partition]
        return counts.result() if counts.done() else None

    def _pass_over(self, message: Message, error: FrameInvalid) -> None:
        self._unreadable += 1
        self._counted[message.partition] = message.offset + 1
        _log.error("record %d of partition %d of statements is not counted: %s", message.offset, message.partition, error)

    def _on_counted(self, message: Message, closed: tuple[Window, ...]) -> None:
        self._frames += 1
        self._closed += len(closed)
        self._counted[message.partition] = message.offset + 1

    # -- partitions come and go -------------------------------------------------------------------------------------------------

    async def _on_assigned(self, app: AppT, /, *told: set[TP], **_: object) -> None:
        self._assigned = frozenset(told[0])
        generation, self._generation = self._generation, app.consumer_generation_id
        mine = {tp.partition for tp in self._assigned if tp.topic == self._statements}
        # A worker that missed a rebalance may have a partition again that another one has counted in meanwhile.
        stay = mine if self._generation == generation + 1 else set()
        for number in set(self._counts) - stay:
            if not (counts := self._counts.pop(number)).done():
                counts.set_result(None)
        for number in mine - set(self._counts):
            self._counts[number] = asyncio.get_running_loop().create_future()
        self._changed.set()

    async def _share_out(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            mine = {tp.partition for tp in self._assigned if tp.topic == self._sessions}
            floors = await self._kept_floors(mine - set(self._enforcer.status().partitions))
            self._enforcer.give(mine, floors.get)
            await self._read_counts()
            begins = {tp.partition: await self._position(tp) for tp in self._assigned if tp.topic == self._statements}
            # What was counted while we asked is newer than the answer; what another worker counted in between is not.
            self._counted = {number: max(begin, self._counted.get(number, 0)) for number, begin in begins.items()}
            _log.info("this worker has %d partitions of sessions and %d of statements", len(mine), len(begins))

    async def _kept_floors(self, partitions: set[int]) -> dict[int, bytes]:
        try:
            async with asyncio.timeout(FLOORS_SECONDS_MAX):
                found = await kept(self._log, FLOORS, partitions)
        except (LogUnavailable, TimeoutError) as error:
            _log.warning("the floors cannot be read, so sessions are read from their beginning: %s", str(error) or "no answer")
            return {}
        return {number: floor for number, by_key in found.items() if (floor := by_key.get(b"%d" % number)) is not None}

    async def _read_counts(self) -> None:
        while waiting := {number: counts for number, counts in self._counts.items() if not counts.done()}:
            try:
                async with asyncio.timeout(KEPT_SECONDS_MAX):
                    found = await kept(self._log, ACTIVITY, waiting)
            except (LogUnavailable, TimeoutError) as error:
                _log.warning("what was counted cannot be read: %s", str(error) or "no answer")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for number, counts in waiting.items():
                if not counts.done():
                    counts.set_result({key: activity.decode(value) for key, value in found[number].items()})

    async def _position(self, tp: TP) -> int:
        """Where its reading goes on; 0 where another rebalance came in between, after which we are here again."""
        with contextlib.suppress(IllegalStateError, ConsumerNotStarted, TimeoutError):
            async with asyncio.timeout(POSITION_SECONDS_MAX):
                return await self.app.consumer.position(tp) or 0
        return 0


def _frame(event: EventT[bytes]) -> tuple[bytes, str, Frame]:
    """The key, the agent that it names, and the frame. Neither key nor value need be there: anybody may have written the record.

    Raises:
        FrameInvalid
    """
    if not isinstance(event.key, bytes) or not isinstance(event.value, bytes):
        raise FrameInvalid("a record without a key, or without a value")
    try:
        agent = event.key.decode()
    except UnicodeDecodeError as error:
        raise FrameInvalid(f"a key that is no name: {error}") from error
    return event.key, agent, decode(event.value, "statements")


def credentials(settings: KafkaSettings) -> SASLCredentials | SSLCredentials | None:
    """Asks for the password.

    Raises:
        LogUnavailable: A file or the password cannot be read.
    """
    told = connection(settings)
    context = told.get("ssl_context")
    assert context is None or isinstance(context, ssl.SSLContext)
    if settings.sasl:
        password = str(told["sasl_plain_password"])
        return SASLCredentials(username=settings.user, password=password, ssl_context=context, mechanism=settings.sasl)
    return SSLCredentials(context) if context is not None else None
