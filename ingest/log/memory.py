"""A log that keeps its records in this process: for tests. It keeps the contract, except that nothing survives the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from ingest.log import Entry, LogUnavailable, Partition, Position, Record
from ingest.log.partitioner import partition


class MemoryLog:
    """`fault` makes append() fail in one of the two ways in which a write can fail, until it is set back to None."""

    def __init__(
        self,
        partitions: Mapping[str, int] | None = None,
        *,
        bytes_max: int = 256 * 2**20,
        record_bytes_max: int = 32 * 2**20,
        waiting_bytes_max: int = 64 * 2**20,
    ) -> None:
        self._partitions = dict(partitions or {})
        self._records: dict[Partition, list[Record]] = {}
        self._bytes_left = bytes_max
        self._record_bytes_max = record_bytes_max
        self._waiting_bytes_max = waiting_bytes_max
        self._waiting: list[Entry] = []  # taken by append_nowait(), stored with the next append() or flush()
        self._waiting_bytes = 0
        self._lost: LogUnavailable | None = None
        self._news: set[asyncio.Event] = set()
        self._groups: dict[str, _Group] = {}
        self._closed = False
        self.fault: Literal["not stored", "stored"] | None = None

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        self._check(entries)
        self._store_waiting()
        positions = self._store(entries)
        await asyncio.sleep(0)
        if self.fault == "stored":
            raise LogUnavailable("the disk does not answer")
        return positions

    def append_nowait(self, entries: Sequence[Entry]) -> None:
        size = self._check(entries)
        if self._waiting_bytes and self._waiting_bytes + size > self._waiting_bytes_max:
            raise LogUnavailable(f"{self._waiting_bytes} bytes wait to be written")
        self._waiting += entries
        self._waiting_bytes += size

    async def flush(self) -> None:
        self._store_waiting()
        await asyncio.sleep(0)
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost

    def _check(self, entries: Sequence[Entry]) -> int:
        sizes = [len(entry.key) + len(entry.value) for entry in entries]
        if sizes and max(sizes) > self._record_bytes_max:
            raise ValueError(f"a record of {max(sizes)} bytes; the log takes {self._record_bytes_max}")
        if self._closed:
            raise LogUnavailable("the log is closed")
        return sum(sizes)

    def _store_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        try:
            self._store(waiting)
            if waiting and self.fault == "stored":
                raise LogUnavailable("the disk does not answer")
        except LogUnavailable as error:
            self._lost = self._lost or error

    def _store(self, entries: Sequence[Entry]) -> list[Position]:
        if entries and self.fault == "not stored":
            raise LogUnavailable("the disk is full")
        size = sum(len(entry.key) + len(entry.value) for entry in entries)
        if size > self._bytes_left:
            raise LogUnavailable("the log is full")
        self._bytes_left -= size
        positions = []
        for entry in entries:
            number = partition(entry.key, self.partitions(entry.topic))
            records = self._records.setdefault((entry.topic, number), [])
            records.append(Record(entry.topic, number, len(records), time.time_ns() // 1000, entry.key, entry.value))
            positions.append(Position(entry.topic, number, len(records) - 1))
        self._tell_news()
        return positions

    def _tell_news(self) -> None:
        for news in self._news:
            news.set()

    def assign(self, offsets: dict[Partition, int]) -> MemorySubscription:
        return MemorySubscription(self._records, self._news, offsets)

    def subscribe(self, topics: Sequence[str], group: str) -> MemoryGroupSubscription:
        places = [(topic, number) for topic in topics for number in range(self.partitions(topic))]
        member = MemoryGroupSubscription(self._records, self._news, places, self._groups.setdefault(group, _Group()))
        self._tell_news()
        return member

    def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 1)

    async def offsets(self, topic: str) -> dict[Partition, int]:
        return self.end_offsets(topic)

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        return {(topic, n): len(self._records.get((topic, n), ())) for n in range(self.partitions(topic))}

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        return {(topic, n): 0 for n in range(self.partitions(topic))}

    async def close(self) -> None:
        self._store_waiting()
        self._closed = True


class MemorySubscription:
    def __init__(
        self, records: dict[Partition, list[Record]], listeners: set[asyncio.Event], offsets: Mapping[Partition, int]
    ) -> None:
        self._records = records
        self._offsets = dict(offsets)
        self._listeners = listeners
        self._news = asyncio.Event()
        listeners.add(self._news)

    async def poll(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        await asyncio.sleep(0)  # before anything is taken, so that a cancelled call has taken nothing
        found = self._take(records_max)
        if found:
            return found
        self._news.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._ready():
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            return []
        return self._take(records_max)

    def _ready(self) -> bool:
        return any(len(self._records.get(place, ())) > offset for place, offset in self._offsets.items())

    def _take(self, records_max: int) -> list[Record]:
        found: list[Record] = []
        for place, offset in self._offsets.items():
            some = self._records.get(place, [])[offset : offset + records_max - len(found)]
            self._offsets[place] = offset + len(some)
            found += some
        return found

    def seek(self, partition: Partition, offset: int) -> None:
        self._offsets[partition] = offset

    def close(self) -> None:
        self._listeners.discard(self._news)


class _Group:
    def __init__(self) -> None:
        self.members: list[MemoryGroupSubscription] = []  # the first has the partitions
        self.offsets: dict[Partition, int] = {}


class MemoryGroupSubscription(MemorySubscription):
    def __init__(
        self, records: dict[Partition, list[Record]], listeners: set[asyncio.Event], places: Sequence[Partition], group: _Group
    ) -> None:
        super().__init__(records, listeners, {})
        self._places = places
        self._group = group
        group.members.append(self)

    def _has_them(self) -> bool:
        if self._group.members[:1] != [self]:
            return False
        if not self._offsets:
            self._offsets = {place: self._group.offsets.get(place, 0) for place in self._places}
        return True

    def _ready(self) -> bool:
        return self._has_them() and super()._ready()

    def _take(self, records_max: int) -> list[Record]:
        return super()._take(records_max) if self._has_them() else []

    def seek(self, partition: Partition, offset: int) -> None:
        if self._has_them() and partition in self._offsets:
            super().seek(partition, offset)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        if not self._has_them():
            raise LogUnavailable("another member of the group has the partitions")
        self._group.offsets.update(offsets)

    async def committed(self) -> dict[Partition, int]:
        return {place: self._group.offsets.get(place, 0) for place in self._places}

    def close(self) -> None:
        super().close()
        if self in self._group.members:
            self._group.members.remove(self)
        for news in self._listeners:
            news.set()
