"""Offsets go in; the records from there on come out, for one reader or for the members of a group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ingest.log import LogCorrupt, LogUnavailable, Partition, Record
from ingest.log.brokers import connected
from ingest.log.kafka_client import INSTALL
from ingest.log.kafka_threads import ABANDON_SECONDS, OVERHEAD_BYTES, RETRIED_SECONDS, tell
from ingest.settings import KafkaSettings

try:
    from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.coordinator.assignors.range import RangePartitionAssignor
    from kafka.errors import CorruptRecordError, KafkaError, LogTruncationError, OffsetOutOfRangeError
except ImportError as error:
    raise ImportError(INSTALL) from error

_CHUNK_SECONDS: Final = 0.5  # of a blocking read, after which its thread looks whether something else is wanted
_GROUP_CHUNK_SECONDS: Final = 1.0  # longer, since a join that ends between two calls is begun again
_ROUND_SECONDS: Final = 0.05  # a poll() that may not wait still lets a broker answer once
_AHEAD_SECONDS: Final = 0.1  # between two looks whether a partition has grown up to where it is to be read from
_OVERDUE_SECONDS: Final = 0.05  # between two reads of a member whose heartbeat is not answered
_REPEATED_SECONDS: Final = 60.0  # a trouble that lasts is not written again within this time

_log = logging.getLogger(__name__)


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
                        self._changed.wait_for(lambda: self._closed, RETRIED_SECONDS)
            finally:
                if consumer is not None:
                    with contextlib.suppress(KafkaError):
                        consumer.close(autocommit=False, timeout_ms=round(ABANDON_SECONDS * 1000))
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
            tell(loop, lambda: None if news.done() else news.set_result(None))

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
            max_partition_fetch_bytes=max(settings.poll_bytes_max // 4, settings.record_bytes_max + OVERHEAD_BYTES),
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

            tell(loop, settle)

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
