"""A log on Kafka's brokers, by kafka-python, which knows no asyncio: every call of it is made on a thread of this file.

One thread appends, one answers questions about offsets, and each subscription has one. The event loop is touched by
`call_soon_threadsafe` alone, and waits for nothing but futures.

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
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from ingest.log import Entry, LogCorrupt, LogUnavailable, Partition, Position, Record
from ingest.log.brokers import connected, refused
from ingest.log.kafka_client import INSTALL
from ingest.log.partitioner import partition
from ingest.settings import KafkaSettings

try:
    from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.coordinator.assignors.range import RangePartitionAssignor
    from kafka.errors import CorruptRecordError, KafkaError, LogTruncationError, OffsetOutOfRangeError
except ImportError as error:
    raise ImportError(INSTALL) from error

_OVERHEAD_BYTES: Final = 1024  # of a batch around one record, generously; and of a request around its batches
_REQUEST_BYTES_MAX: Final = 8 * 2**20  # several partitions' batches together
_CHUNK_SECONDS: Final = 0.2  # of a blocking read, after which its thread looks whether something else is wanted
_GROUP_CHUNK_SECONDS: Final = 1.0  # longer, since a join that ends between two calls is begun again
_ROUND_SECONDS: Final = 0.05  # a poll() that may not wait still lets a broker answer once
_AHEAD_SECONDS: Final = 0.1  # between two looks whether a partition has grown up to where it is to be read from
_IDLE_SECONDS: Final = 1.0  # between two looks at the ends while nobody asks
_BEGINNINGS_SECONDS: Final = 10.0  # between two looks at the beginnings, which retention moves
_RETRIED_SECONDS: Final = 0.25  # between two attempts to connect
_OVERDUE_SECONDS: Final = 0.05  # between two reads of a member whose heartbeat is not answered
_REPEATED_SECONDS: Final = 60.0  # a trouble that lasts is not written again within this time
_ABANDON_SECONDS: Final = 2.0  # for kafka-python's own thread to end

_log = logging.getLogger(__name__)


class KafkaLog:
    """Many processes may append to a topic. A topic is one of `settings.partitions`; `pgwarden topics apply` creates it."""

    def __init__(self, settings: KafkaSettings, questions: _Questions) -> None:
        """Use open()."""
        self._settings = settings
        self._questions = questions
        self._producing = _Producing(settings)
        self._subscriptions: set[KafkaSubscription] = set()
        self._waiting: set[_Append] = set()
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
        questions = await asyncio.to_thread(_Questions, settings)
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

    def _append(self, entries: Sequence[Entry]) -> _Append:
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
        job = _Append(loop, entries, places, size, time.monotonic() + self._settings.append_seconds_max)
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

    def _expire(self, job: _Append) -> None:
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


_Closable: TypeAlias = "_Producing | _Questions | KafkaSubscription"


def _close_all(threads: Sequence[_Closable], until: float) -> bool:
    for one in threads:
        one.end()
    return min([one.join(max(_ABANDON_SECONDS, until - time.monotonic())) for one in threads])


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(call)


# -- appending -------------------------------------------------------------------------------------------------------------------


class _Append:
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
            _tell(self._loop, lambda: self.settle(result))

    # On the loop:

    def settle(self, result: list[Position] | LogUnavailable) -> None:
        self.over = True
        if self.done.done():
            return
        if isinstance(result, LogUnavailable):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class _Producing:
    """The thread that hands appends to a producer, one after the other, and makes a new producer when one has failed."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._jobs: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()  # bounded by waiting_bytes_max
        self._thread: threading.Thread | None = None
        self._producer: KafkaProducer | None = None
        self._sent: set[_Append] = set()  # to this producer, and not answered
        self._failed = ""  # why this producer is to be given up
        self._problem = ""
        self._ending = False

    def submit(self, job: _Append) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log appends", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def give_up(self, job: _Append) -> None:
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

    def _connected(self, job: _Append) -> KafkaProducer | None:
        """A producer, or None when there is none before the job's time is over."""
        while self._producer is None and not job.over and not self._ending:
            try:
                left = min(max(job.deadline - time.monotonic(), 0.1), self._settings.connect_seconds_max)
                self._producer = self._open(left)
            except LogUnavailable as error:
                self._notice(str(error))
                time.sleep(_RETRIED_SECONDS)
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
            max_request_size=max(_REQUEST_BYTES_MAX, settings.record_bytes_max + _OVERHEAD_BYTES),
            max_block_ms=round(settings.append_seconds_max * 1000),
            allow_auto_create_topics=False,
        )

    def _send(self, producer: KafkaProducer, job: _Append) -> None:
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

    def _stored(self, job: _Append, index: int, metadata: object) -> None:
        if job.stored(index, int(getattr(metadata, "offset", -1))):
            self._sent.discard(job)
            self._notice("")

    def _not_stored(self, job: _Append, error: Exception) -> None:
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
        producer._sender.join(_ABANDON_SECONDS)
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


# -- offsets ---------------------------------------------------------------------------------------------------------------------


class _Question:
    def __init__(self, loop: asyncio.AbstractEventLoop, topic: str) -> None:
        self.loop = loop
        self.topic = topic
        self.done: asyncio.Future[dict[Partition, int]] = loop.create_future()
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Questions:
    """The thread that asks the brokers where partitions begin and end, and what it knows of that by now."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Blocks. Raises as KafkaLog.open()."""
        self._settings = settings
        self._consumer: KafkaConsumer | None = self._open(settings.connect_seconds_max)
        self._jobs: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._ending = False
        self._refreshing = False
        self._looked = 0.0
        self._looked_at_beginnings = 0.0
        self._ends: dict[Partition, int] = {}
        self._stored: dict[Partition, int] = {}  # the end as this process's appends know it; the loop's
        self._beginnings: dict[Partition, int] = {}
        self._problem = ""
        self.heard = time.monotonic()
        try:
            self._check()
            self._look()
        except BaseException:
            self._leave()
            raise
        self._thread = threading.Thread(target=self._run, name="log offsets", daemon=True)
        self._thread.start()

    # On the loop:

    async def ask(self, topic: str) -> dict[Partition, int]:
        if self._ending:
            raise LogUnavailable("the log is closed")
        question = _Question(asyncio.get_running_loop(), topic)
        self._jobs.put(question)
        seconds = self._settings.answer_seconds_max
        try:
            async with asyncio.timeout(seconds):
                return await question.done
        except TimeoutError:
            why = f": {self._problem}" if self._problem else ""
            raise LogUnavailable(f"the brokers have not said within {seconds:g} s where {topic} ends{why}") from None

    def ends(self, topic: str) -> dict[Partition, int]:
        age_ms = (time.monotonic() - self._looked) * 1000
        if age_ms > self._settings.end_offsets_age_ms and not self._refreshing:
            self._refreshing = True
            self._jobs.put(None)
        ends = self._ends
        places = [(topic, number) for number in range(self._settings.partitions[topic])]
        return {place: max(ends[place], self._stored.get(place, 0)) for place in places}

    def beginnings(self, topic: str) -> dict[Partition, int]:
        return {(topic, number): self._beginnings[(topic, number)] for number in range(self._settings.partitions[topic])}

    def stored(self, positions: Sequence[Position]) -> None:
        """What this process appended it need not ask for."""
        for position in positions:
            place = (position.topic, position.partition)
            self._stored[place] = max(self._stored.get(place, 0), position.offset + 1)

    def end(self) -> None:
        self._ending = True
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # On the thread:

    def _open(self, connect_seconds: float) -> KafkaConsumer:
        answer_seconds = self._settings.answer_seconds_max
        return connected(KafkaConsumer, self._settings, connect_seconds, answer_seconds, group_id=None, enable_auto_commit=False)

    def _check(self) -> None:
        assert self._consumer is not None
        missing = []
        for topic, count in self._settings.partitions.items():
            there = self._consumer.partitions_for_topic(self._settings.topic_prefix + topic)
            if not there:
                missing.append(self._settings.topic_prefix + topic)
            elif len(there) != count:
                raise ValueError(
                    f"the topic {self._settings.topic_prefix}{topic} has {len(there)} partitions and {count} are configured,"
                    f" which would change the place of keys; set {topic}_partitions = {len(there)} under [kafka]"
                )
        if missing:
            raise LogUnavailable(f"the brokers have no topic {', '.join(missing)}: run pgwarden topics apply")

    def _run(self) -> None:
        while not self._ending:
            questions: list[_Question] = []
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=_IDLE_SECONDS)
                while True:
                    if job is not None:
                        questions.append(job)
                    job = self._jobs.get_nowait()
            if self._ending:
                break
            try:
                self._look()
            except Exception as error:
                self._notice(str(error))
                for question in questions:
                    self._answer(question, LogUnavailable(f"the brokers do not say where {question.topic} ends: {error}"))
                if not isinstance(error, (KafkaError, LogUnavailable)) or refused(error):
                    self._leave()
                time.sleep(_RETRIED_SECONDS)
            else:
                self._notice("")
                for question in questions:
                    places = [(question.topic, number) for number in range(self._settings.partitions[question.topic])]
                    self._answer(question, {place: self._ends[place] for place in places})
            self._refreshing = False
        self._leave()

    def _look(self) -> None:
        if self._consumer is None:
            self._consumer = self._open(self._settings.answer_seconds_max)
        began = time.monotonic()
        answer_ms = round(self._settings.answer_seconds_max * 1000)
        prefix = self._settings.topic_prefix
        places = {
            TopicPartition(prefix + topic, number): (topic, number)
            for topic, count in self._settings.partitions.items()
            for number in range(count)
        }
        if began - self._looked_at_beginnings > _BEGINNINGS_SECONDS:
            found = self._consumer.beginning_offsets(list(places), timeout_ms=answer_ms)
            self._beginnings = {places[place]: offset for place, offset in found.items()}
            self._looked_at_beginnings = began
        ends = self._consumer.end_offsets(list(places), timeout_ms=answer_ms)
        self._ends = {places[place]: offset for place, offset in ends.items()}
        self._looked = self.heard = began

    def _answer(self, question: _Question, result: dict[Partition, int] | LogUnavailable) -> None:
        def settle() -> None:
            if question.done.done():
                return
            if isinstance(result, LogUnavailable):
                question.done.set_exception(result)
            else:
                question.done.set_result(result)

        _tell(question.loop, settle)

    def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=round(_ABANDON_SECONDS * 1000))

    def _notice(self, problem: str) -> None:
        if bool(problem) != bool(self._problem):
            if problem:
                _log.warning("the brokers do not answer: %s", problem)
            else:
                _log.warning("the brokers answer again")
        self._problem = problem


# -- reading ---------------------------------------------------------------------------------------------------------------------


class KafkaSubscription:
    """A thread reads when poll() wants records and has none; what poll() did not return, the next one does."""

    _chunk_seconds = _CHUNK_SECONDS

    def __init__(
        self, settings: KafkaSettings, offsets: Mapping[Partition, int], forget: Callable[[KafkaSubscription], None]
    ) -> None:
        self._settings = settings
        self._forget = forget
        self._next = {self._place(place): offset for place, offset in offsets.items()}  # to read; the thread's
        self._read: set[TopicPartition] = set()  # whose record before `_next` was read here: it was there; the thread's
        self._ahead: dict[TopicPartition, int] = {}  # waited for; the thread's
        # Under the lock:
        self._changed = threading.Condition()  # its lock may be taken again by who has it
        self._ready: deque[Record] = deque()
        self._seeks: dict[TopicPartition, int] = {}
        self._calls: deque[Callable[[KafkaConsumer], None]] = deque()
        self._wanted_until = 0.0
        self._records_max = 1
        self._news: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._problem: LogUnavailable | LogCorrupt | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # On the loop:

    async def poll(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # before anything is taken, so that a cancelled call has taken nothing
        until = time.monotonic() + max(timeout_seconds, _ROUND_SECONDS)
        while True:
            with self._changed:
                found = self._take(records_max)
                if found:
                    return found
                if self._problem is not None:
                    problem = self._problem
                    if isinstance(problem, LogUnavailable) and not self._closed:
                        self._problem = None  # told; the thread tries again
                    raise problem
                left = until - time.monotonic()
                if left <= 0:
                    return []
                news: asyncio.Future[None] = loop.create_future()
                self._news = (loop, news)
                self._wanted_until = until
                self._records_max = records_max
                self._changed.notify()
            await asyncio.wait({news}, timeout=left)

    def seek(self, partition: Partition, offset: int) -> None:
        place = self._place(partition)
        with self._changed:
            self._seeks[place] = offset
            self._ready = deque(record for record in self._ready if (record.topic, record.partition) != partition)
            self._changed.notify()

    def close(self) -> None:
        self.end()

    def end(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._ready.clear()
            self._set_problem(self._problem or LogUnavailable("the subscription is closed"))
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _take(self, records_max: int) -> list[Record]:
        found: list[Record] = []
        bytes_left = self._settings.poll_bytes_max
        while self._ready and len(found) < records_max and (not found or bytes_left >= len(self._ready[0].value)):
            record = self._ready.popleft()
            bytes_left -= len(record.value)
            found.append(record)
        return found

    def _place(self, place: Partition) -> TopicPartition:
        return TopicPartition(self._settings.topic_prefix + place[0], place[1])

    def _name(self, place: TopicPartition) -> Partition:
        return (place.topic[len(self._settings.topic_prefix) :], place.partition)

    # On the thread:

    def _run(self) -> None:
        warned = -_REPEATED_SECONDS
        while not self._closed:
            consumer: KafkaConsumer | None = None
            try:
                consumer = self._open()
                with self._changed:
                    if isinstance(self._problem, LogUnavailable) and not self._closed:
                        self._problem = None  # it is over
                while self._round(consumer):
                    pass
            except LogCorrupt as error:
                with self._changed:
                    self._set_problem(error)
                break
            except Exception as error:  # of whatever kind: this consumer is of no use, and another one may be
                told = error if isinstance(error, LogUnavailable) else LogUnavailable(f"the brokers cannot be read: {error}")
                with self._changed:
                    if not self._closed:
                        if time.monotonic() - warned > _REPEATED_SECONDS:
                            warned = time.monotonic()
                            _log.warning("%s", told)
                        self._set_problem(told)
                        self._changed.wait_for(lambda: self._closed, _RETRIED_SECONDS)
            finally:
                if consumer is not None:
                    with contextlib.suppress(KafkaError):
                        consumer.close(autocommit=False, timeout_ms=round(_ABANDON_SECONDS * 1000))
        with self._changed:
            self._calls.clear()  # their futures have a time limit of their own
        self._forget(self)

    def _set_problem(self, problem: LogUnavailable | LogCorrupt) -> None:
        self._problem = problem
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            loop, news = self._news
            self._news = None
            _tell(loop, lambda: None if news.done() else news.set_result(None))

    def _connected(self, **configuration: object) -> KafkaConsumer:
        settings = self._settings
        return connected(
            KafkaConsumer,
            settings,
            settings.connect_seconds_max,
            max(settings.answer_seconds_max, settings.fetch_wait_ms / 1000 + 1),
            enable_auto_commit=False,
            check_crcs=True,
            isolation_level="read_uncommitted",  # there are no transactions
            fetch_max_wait_ms=settings.fetch_wait_ms,
            fetch_min_bytes=1,
            fetch_max_bytes=settings.poll_bytes_max,
            max_partition_fetch_bytes=max(settings.poll_bytes_max // 4, settings.record_bytes_max + _OVERHEAD_BYTES),
            **configuration,
        )

    def _open(self) -> KafkaConsumer:
        consumer = self._connected(group_id=None, auto_offset_reset="none")
        self._begin(consumer)
        return consumer

    def _begin(self, consumer: KafkaConsumer) -> None:
        if self._next:
            consumer.assign(list(self._next))
        for place, offset in self._next.items():
            consumer.seek(place, offset)
        self._ahead.clear()

    def _round(self, consumer: KafkaConsumer) -> bool:
        """Do what is wanted next; False when the end is."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._closed:
                return False
            seeks, self._seeks = self._seeks, {}
            calls, self._calls = self._calls, deque()
            records_max = self._records_max
            wanted = self._is_wanted()
        self._seek(consumer, seeks)
        for call in calls:
            call(consumer)
        if wanted:
            try:
                found = consumer.poll(timeout_ms=round(self._wait_seconds(consumer) * 1000), max_records=records_max)
            except OffsetOutOfRangeError as error:
                for place in error.args[0]:
                    self._out_of_range(consumer, place)
                return True
            except (LogTruncationError, CorruptRecordError) as error:
                raise LogCorrupt(f"the brokers no longer have what they had: {error}") from error
            self._found(found)
            self._catch_up(consumer)
        return True

    def _wait_seconds(self, consumer: KafkaConsumer) -> float:
        """How long its next poll may wait."""
        return self._chunk_seconds

    def _has_work(self) -> bool:
        return self._closed or bool(self._seeks) or bool(self._calls) or self._is_wanted()

    def _is_wanted(self) -> bool:
        return not self._ready and time.monotonic() < self._wanted_until

    def _seek(self, consumer: KafkaConsumer, seeks: Mapping[TopicPartition, int]) -> None:
        if any(place not in self._next for place in seeks):
            self._next.update(seeks)
            self._begin(consumer)
        for place, offset in seeks.items():
            self._next[place] = offset
            self._read.discard(place)
            self._ahead.pop(place, None)
            consumer.resume(place)
            consumer.seek(place, offset)

    def _found(self, found: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        with self._changed:
            for place, some in found.items():
                if place in self._seeks:
                    continue
                topic, number = self._name(place)
                for one in some:
                    self._ready.append(Record(topic, number, one.offset, one.timestamp * 1000, one.key or b"", one.value or b""))
                if some:
                    self._next[place] = some[-1].offset + 1
                    self._read.add(place)
            if self._ready:
                self._wake()

    # An offset that a partition does not have:

    def _out_of_range(self, consumer: KafkaConsumer, place: TopicPartition) -> None:
        offset = self._next[place]
        first, end = self._range(consumer, place)
        if offset < first:
            _log.warning("%s/%d begins at %d: what stood from %d on is no longer kept", *self._name(place), first, offset)
            self._next[place] = first
            consumer.seek(place, first)
        elif offset <= end:
            consumer.seek(place, offset)
        elif place in self._read:
            raise LogCorrupt(
                f"{place.topic}/{place.partition}: the brokers have lost records; they have {end}, and {offset} were read"
            )
        else:
            self._ahead[place] = offset
            consumer.pause(place)

    def _catch_up(self, consumer: KafkaConsumer) -> None:
        if not self._ahead:
            return
        for place, offset in list(self._ahead.items()):
            if self._range(consumer, place)[1] >= offset:
                del self._ahead[place]
                consumer.seek(place, offset)
                consumer.resume(place)
        if len(self._ahead) == len(self._next):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._seeks), _AHEAD_SECONDS)

    def _range(self, consumer: KafkaConsumer, place: TopicPartition) -> tuple[int, int]:
        answer_ms = round(self._settings.answer_seconds_max * 1000)
        first = consumer.beginning_offsets([place], timeout_ms=answer_ms)[place]
        return first, consumer.end_offsets([place], timeout_ms=answer_ms)[place]


class KafkaGroupSubscription(KafkaSubscription):
    """A member of a group of Kafka's. When members come or go, all partitions are given out anew, and go on where it committed.

    So a record that was read and not committed may be read again, by this member or another; one below what was committed is not.
    commit() takes only what poll() returned since the member got the partition: else a member that was slow could take back what
    another one has committed since.
    """

    _chunk_seconds = _GROUP_CHUNK_SECONDS

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], group: str, forget: Callable[[KafkaSubscription], None]
    ) -> None:
        super().__init__(settings, {}, forget)
        self._topics = [settings.topic_prefix + topic for topic in topics]
        self._group = settings.topic_prefix + group
        self._held: dict[Partition, tuple[int, int]] = {}  # where poll() began in it, and where it is; under the lock
        self._mine: set[TopicPartition] = set()  # under the lock

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        wanted = dict(offsets)

        def commit(consumer: KafkaConsumer) -> None:
            # On the thread that alone can lose partitions: between this look and the commit it does not.
            with self._changed:
                for (topic, number), offset in wanted.items():
                    first, next_offset = self._held.get((topic, number), (0, -1))
                    if not first <= offset <= next_offset:
                        raise LogUnavailable(f"{topic}/{number} up to {offset} is not this member's to commit, or no longer")
            consumer.commit(
                {self._place(place): OffsetAndMetadata(offset, "", -1) for place, offset in wanted.items()},
                timeout_ms=round(self._settings.answer_seconds_max * 1000),
            )

        if wanted:
            await self._call(commit)

    async def committed(self) -> dict[Partition, int]:
        found: dict[Partition, int] = {}

        def committed(consumer: KafkaConsumer) -> None:
            answer_ms = round(self._settings.answer_seconds_max * 1000)
            for topic in self._topics:
                for number in range(self._settings.partitions[topic[len(self._settings.topic_prefix) :]]):
                    place = TopicPartition(topic, number)
                    found[self._name(place)] = consumer.committed(place, timeout_ms=answer_ms) or 0

        await self._call(committed)
        return found

    async def _call(self, work: Callable[[KafkaConsumer], None]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())

        def call(consumer: KafkaConsumer) -> None:
            problem: LogUnavailable | None = None
            try:
                work(consumer)
            except LogUnavailable as error:
                problem = error
            except Exception as error:
                problem = LogUnavailable(f"the group {self._group} does not know: {error}")
                problem.__cause__ = error

            def settle() -> None:
                if done.done():
                    return
                if problem is None:
                    done.set_result(None)
                else:
                    done.set_exception(problem)

            _tell(loop, settle)

        with self._changed:
            if self._closed:
                raise LogUnavailable("the subscription is closed")
            self._calls.append(call)
            self._changed.notify()
        seconds = self._settings.answer_seconds_max + self._chunk_seconds
        try:
            async with asyncio.timeout(seconds):
                await done
        except TimeoutError:
            raise LogUnavailable(f"the brokers have not answered for {seconds:g} s") from None

    def _take(self, records_max: int) -> list[Record]:
        found = super()._take(records_max)
        for record in found:
            place = (record.topic, record.partition)
            first, _ = self._held.get(place, (record.offset, 0))
            self._held[place] = (min(first, record.offset), record.offset + 1)
        return found

    def _open(self) -> KafkaConsumer:
        settings = self._settings
        consumer = self._connected(
            group_id=self._group,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(RangePartitionAssignor,),  # Kafka's eager way: nobody holds what is given out
            session_timeout_ms=round(settings.session_seconds * 1000),
            heartbeat_interval_ms=round(settings.session_seconds * 1000 / 4),
            max_poll_interval_ms=round(settings.work_seconds_max * 1000),
        )
        self._lose()
        consumer.subscribe(self._topics, listener=_Listener(self._gain, self._lose))
        return consumer

    def _seek(self, consumer: KafkaConsumer, seeks: Mapping[TopicPartition, int]) -> None:
        for place, offset in seeks.items():
            if place in consumer.assignment():
                consumer.seek(place, offset)

    def _found(self, found: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        with self._changed:
            super()._found({place: some for place, some in found.items() if place in self._mine})

    def _wait_seconds(self, consumer: KafkaConsumer) -> float:
        coordinator = consumer._coordinator
        if coordinator.stable() and not coordinator.time_to_next_heartbeat():
            # Brokers are late with their answer to the last heartbeat. A poll that waits would spin until it is there.
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _OVERDUE_SECONDS)
            return 0.0
        return self._chunk_seconds

    def _gain(self, places: Iterable[TopicPartition]) -> None:
        with self._changed:
            self._mine = set(places)

    def _lose(self) -> None:
        with self._changed:
            self._mine.clear()
            self._held.clear()
            self._ready.clear()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, gain: Callable[[Iterable[TopicPartition]], None], lose: Callable[[], None]) -> None:
        self._gain = gain
        self._lose = lose

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._lose()

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._lose()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._gain(assigned)
