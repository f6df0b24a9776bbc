"""A log on Kafka's brokers, by kafka-python, which knows no asyncio: every call of it is made on a thread of its own.

One thread appends (`kafka_appends.py`), one answers questions about offsets (`kafka_offsets.py`), and each subscription has one
(`kafka_subscriptions.py`). The event loop is touched by `call_soon_threadsafe` alone, and waits for nothing but futures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

from ingest.log import Entry, LogUnavailable, Partition, Position
from ingest.log.kafka_appends import Append, Producing
from ingest.log.kafka_offsets import Questions
from ingest.log.kafka_subscriptions import KafkaGroupSubscription, KafkaSubscription
from ingest.log.kafka_threads import ABANDON_SECONDS
from ingest.log.partitioner import partition
from ingest.settings import KafkaSettings


class KafkaLog:
    """Many processes may append to a topic. A topic is one of `settings.partitions`; `pgwarden topics apply` creates it."""

    def __init__(self, settings: KafkaSettings, questions: Questions) -> None:
        """Use open()."""
        self._settings = settings
        self._questions = questions
        self._producing = Producing(settings)
        self._subscriptions: set[KafkaSubscription] = set()
        self._waiting: set[Append] = set()
        self._waiting_bytes = 0
        self._lost: Exception | None = None  # of append_nowait(), until flush() tells
        self._closed = False

    @classmethod
    async def open(cls, settings: KafkaSettings) -> KafkaLog:
        """Return once a broker has answered, and every topic is there as the settings say.

        Raises:
            LogUnavailable: No broker answers or lets us in, a topic is missing, or a certificate or the password cannot be read.
            ValueError: A topic has another number of partitions, in which its keys would have other places.
        """
        questions = await asyncio.to_thread(Questions, settings)
        return cls(settings, questions)

    # -- writing ---------------------------------------------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        if not entries:
            return ()
        # Shielded: a caller that goes away changes nothing for the brokers, nor for the bytes that wait.
        return await asyncio.shield(self._append(entries).done)

    def append_nowait(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._append(entries).awaited = False

    async def flush(self) -> None:
        waiting = [job.done for job in self._waiting if not job.awaited]
        if waiting:
            await asyncio.wait(waiting)
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost

    def _append(self, entries: Sequence[Entry]) -> Append:
        size = 0
        places: list[Partition] = []
        for entry in entries:
            length = len(entry.key) + len(entry.value)
            if length > self._settings.record_bytes_max:
                raise ValueError(f"a record of {length} bytes; the log takes {self._settings.record_bytes_max}")
            size += length
            places.append((entry.topic, partition(entry.key, self.partitions(entry.topic))))
        if self._closed:
            raise LogUnavailable("the log is closed")
        # One append may be larger than the bound when nothing waits: its bytes exist already.
        if self._waiting_bytes and self._waiting_bytes + size > self._settings.waiting_bytes_max:
            raise LogUnavailable(f"{self._waiting_bytes} bytes wait for the brokers")
        loop = asyncio.get_running_loop()
        job = Append(loop, entries, places, size, time.monotonic() + self._settings.append_seconds_max)
        self._waiting.add(job)
        self._waiting_bytes += size
        expiry = loop.call_later(self._settings.append_seconds_max, self._expire, job)

        def over(done: asyncio.Future[list[Position]]) -> None:
            expiry.cancel()
            self._waiting.discard(job)
            self._waiting_bytes -= size
            problem = done.exception()  # looked at even when the caller has gone
            if problem is None:
                self._questions.stored(done.result())
            elif not job.awaited and isinstance(problem, Exception):
                self._lost = self._lost or problem

        job.done.add_done_callback(over)
        self._producing.submit(job)
        return job

    def _expire(self, job: Append) -> None:
        seconds = self._settings.append_seconds_max
        job.settle(LogUnavailable(f"the brokers have not acknowledged within {seconds:g} s{self._producing.why()}"))
        self._producing.give_up(job)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def assign(self, offsets: dict[Partition, int]) -> KafkaSubscription:
        """What lies below the first offset that is kept is gone: reading begins at that one, and the records' offsets tell."""
        for topic, _ in offsets:
            self.partitions(topic)
        return self._subscribed(KafkaSubscription(self._settings, dict(offsets), self._forget))

    def subscribe(self, topics: Sequence[str], group: str) -> KafkaGroupSubscription:
        """The group's name on the brokers is the topics' prefix and `group`."""
        for topic in topics:
            self.partitions(topic)
        subscription = KafkaGroupSubscription(self._settings, tuple(topics), group, self._forget)
        self._subscribed(subscription)
        return subscription

    def _subscribed(self, subscription: KafkaSubscription) -> KafkaSubscription:
        if self._closed:
            raise LogUnavailable("the log is closed")
        self._subscriptions.add(subscription)
        subscription.start()
        return subscription

    def _forget(self, subscription: KafkaSubscription) -> None:
        self._subscriptions.discard(subscription)

    # -- places ----------------------------------------------------------------------------------------------------------------

    def partitions(self, topic: str) -> int:
        try:
            return self._settings.partitions[topic]
        except KeyError:
            raise ValueError(f"{topic!r} is no topic of this log") from None

    async def offsets(self, topic: str) -> dict[Partition, int]:
        self.partitions(topic)
        return await self._questions.ask(topic)

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        """As old as `end_offsets_age_ms` while it is asked for that often, and as a second when it is asked for now and then."""
        self.partitions(topic)
        return self._questions.ends(topic)

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        self.partitions(topic)
        return self._questions.beginnings(topic)

    @property
    def heard_seconds(self) -> float:
        """Since a broker last answered; it is asked at least once a second."""
        return time.monotonic() - self._questions.heard

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + self._settings.close_seconds_max
        for subscription in list(self._subscriptions):
            subscription.close()
        if self._waiting:
            await asyncio.wait([job.done for job in self._waiting], timeout=self._settings.close_seconds_max)
        left = [job for job in self._waiting if not job.done.done()]
        threads: list[_Closable] = [self._producing, self._questions, *self._subscriptions]
        ended = await asyncio.to_thread(_close_all, threads, until)
        for job in left:
            job.settle(LogUnavailable("the log was closed before the brokers acknowledged"))
        if left or not ended:
            raise LogUnavailable(f"the brokers have not answered for {self._settings.close_seconds_max:g} s")


_Closable: TypeAlias = "Producing | Questions | KafkaSubscription"


def _close_all(threads: Sequence[_Closable], until: float) -> bool:
    for one in threads:
        one.end()
    return min([one.join(max(ABANDON_SECONDS, until - time.monotonic())) for one in threads])
