"""Appends go in; positions come out once the brokers have acknowledged, or a sentence once they have not.

What the brokers do not acknowledge in time has an unknown outcome, and so has all that was on its way beside it: the producer is
thrown away with it and a new one made, so that nothing of an append that was told as failed can be sent later on. What the brokers
had received of it by then may still be in the log, and then stands there twice once it was appended again; frames have names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Final

from ingest.log import Entry, LogUnavailable, Partition, Position
from ingest.log.brokers import connected
from ingest.log.kafka_client import INSTALL
from ingest.log.kafka_threads import ABANDON_SECONDS, OVERHEAD_BYTES, RETRIED_SECONDS, tell
from ingest.settings import KafkaSettings

try:
    from kafka import KafkaProducer
    from kafka.errors import KafkaError
except ImportError as error:
    raise ImportError(INSTALL) from error

_REQUEST_BYTES_MAX: Final = 8 * 2**20  # several partitions' batches together

_log = logging.getLogger(__name__)


class Append:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        entries: Sequence[Entry],
        places: list[Partition],
        size: int,
        deadline: float,
    ) -> None:
        self._loop = loop
        self.entries = entries
        self.places = places
        self.size = size
        self.deadline = deadline
        self.awaited = True
        self.over = False
        self.done: asyncio.Future[list[Position]] = loop.create_future()
        self._offsets = [-1] * len(entries)
        self._left = len(entries)

    # On kafka-python's thread, one call at a time:

    def stored(self, index: int, offset: int) -> bool:
        """True with the last one."""
        self._offsets[index] = offset
        self._left -= 1
        if self._left:
            return False
        positions = [Position(*place, offset) for place, offset in zip(self.places, self._offsets, strict=True)]
        # -1: the brokers had it already, and have forgotten where.
        unknown = any(offset < 0 for offset in self._offsets)
        self.tell(LogUnavailable("the brokers do not say where the record is") if unknown else positions)
        return True

    def tell(self, result: list[Position] | LogUnavailable) -> None:
        if not self.over:
            self.over = True
            tell(self._loop, lambda: self.settle(result))

    # On the loop:

    def settle(self, result: list[Position] | LogUnavailable) -> None:
        self.over = True
        if self.done.done():
            return
        if isinstance(result, LogUnavailable):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Producing:
    """The thread that hands appends to a producer, one after the other, and makes a new producer when one has failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._jobs: queue.SimpleQueue[Append | None] = queue.SimpleQueue()  # bounded by waiting_bytes_max
        self._thread: threading.Thread | None = None
        self._producer: KafkaProducer | None = None
        self._sent: set[Append] = set()  # to this producer, and not answered
        self._failed = ""  # why this producer is to be given up
        self._problem = ""
        self._ending = False

    def submit(self, job: Append) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log appends", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def give_up(self, job: Append) -> None:
        """`job` was told as failed: what of it was not sent must not be sent any more."""
        if job in self._sent:
            self._failed = self._failed or "an append was not acknowledged in time"
            self._jobs.put(None)

    def why(self) -> str:
        return f": {self._problem}" if self._problem else ""

    def end(self) -> None:
        self._ending = True
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ending:
            job = self._jobs.get()
            if self._failed:
                self._abandon(self._failed)
            if job is None or job.over:  # its time went by before anything of it was sent
                continue
            producer = self._connected(job)
            if producer is not None:
                self._send(producer, job)
        self._abandon("the log was closed before the brokers acknowledged")

    def _connected(self, job: Append) -> KafkaProducer | None:
        """A producer, or None when there is none before the job's time is over."""
        while self._producer is None and not job.over and not self._ending:
            try:
                left = min(max(job.deadline - time.monotonic(), 0.1), self._settings.connect_seconds_max)
                self._producer = self._open(left)
            except LogUnavailable as error:
                self._notice(str(error))
                time.sleep(RETRIED_SECONDS)
        return self._producer

    def _open(self, connect_seconds: float) -> KafkaProducer:
        settings = self._settings
        return connected(
            KafkaProducer,
            settings,
            connect_seconds,
            # What is not answered in half the time is sent once more, under the number that it had: brokers know it again.
            settings.append_seconds_max / 2,
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=round(settings.append_seconds_max * 1000 + settings.linger_ms + 1),
            linger_ms=settings.linger_ms,
            batch_size=settings.batch_bytes,
            max_request_size=max(_REQUEST_BYTES_MAX, settings.record_bytes_max + OVERHEAD_BYTES),
            max_block_ms=round(settings.append_seconds_max * 1000),
            allow_auto_create_topics=False,
        )

    def _send(self, producer: KafkaProducer, job: Append) -> None:
        self._sent.add(job)
        try:
            for index, (entry, (topic, number)) in enumerate(zip(job.entries, job.places, strict=True)):
                sent = producer.send(self._settings.topic_prefix + topic, value=entry.value, key=entry.key, partition=number)
                sent.add_callback(self._stored, job, index)
                sent.add_errback(self._not_stored, job)
        except Exception as error:  # whatever it is: some of the job may be on its way, and nothing may follow it
            self._failed = self._failed or str(error)
            self._sent.discard(job)
            job.tell(LogUnavailable(f"the brokers do not take records: {error}"))
            self._jobs.put(None)

    def _stored(self, job: Append, index: int, metadata: object) -> None:
        if job.stored(index, int(getattr(metadata, "offset", -1))):
            self._sent.discard(job)
            self._notice("")

    def _not_stored(self, job: Append, error: Exception) -> None:
        if job not in self._sent:  # told before, or of a producer that was given up
            return
        self._sent.discard(job)
        job.tell(LogUnavailable(f"the brokers have not acknowledged: {error}"))
        if not self._failed:
            self._failed = str(error)
            self._notice(self._failed)
            self._jobs.put(None)

    def _abandon(self, reason: str) -> None:
        """End the producer, and all that is on its way."""
        producer, self._producer, self._failed = self._producer, None, ""
        sent, self._sent = self._sent, set()
        for job in list(sent):
            job.tell(LogUnavailable(f"the brokers have not acknowledged: {reason}"))
        if producer is None:
            return
        if not self._ending:
            self._notice(reason)
        # close() alone would first wait for what will not come.
        producer._sender.force_close()
        producer._sender.join(ABANDON_SECONDS)
        with contextlib.suppress(KafkaError):
            producer.close(timeout=0)
        self._failed = ""

    def _notice(self, problem: str) -> None:
        if bool(problem) != bool(self._problem):
            if problem:
                _log.warning("the brokers do not take records: %s", problem)
            else:
                _log.warning("the brokers take records again")
        self._problem = problem
