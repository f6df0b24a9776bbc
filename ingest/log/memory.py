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

    def __init__(self, partitions: Mapping[str, int] | None = None, *, bytes_max: int = 256 * 2**20) -> None:
        self._partitions = dict(partitions or {})
        self._records: dict[Partition, list[Record]] = {}
        self._bytes_left = bytes_max
        self._news: set[asyncio.Event] = set()
        self._closed = False
        self.fault: Literal["not stored", "stored"] | None = None

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        if self._closed:
            raise LogUnavailable("the log is closed")
        if self.fault == "not stored":
            raise LogUnavailable("the disk is full")
        size = sum(len(entry.key) + len(entry.value) for entry in entries)
        if size > self._bytes_left:
            raise LogUnavailable("the log is full")
        self._bytes_left -= size
        positions = [self._store(entry) for entry in entries]
        for news in self._news:
            news.set()
        await asyncio.sleep(0)
        if self.fault == "stored":
            raise LogUnavailable("the disk does not answer")
        return positions

    def _store(self, entry: Entry) -> Position:
        number = partition(entry.key, self.partitions(entry.topic))
        records = self._records.setdefault((entry.topic, number), [])
        records.append(Record(entry.topic, number, len(records), time.time_ns() // 1000, entry.key, entry.value))
        return Position(entry.topic, number, len(records) - 1)

    def assign(self, offsets: dict[Partition, int]) -> MemorySubscription:
        return MemorySubscription(self._records, self._news, offsets)

    def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 1)

    async def offsets(self, topic: str) -> dict[Partition, int]:
        return self.end_offsets(topic)

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        return {(topic, n): len(self._records.get((topic, n), ())) for n in range(self.partitions(topic))}

    async def close(self) -> None:
        self._closed = True


class MemorySubscription:
    def __init__(
        self, records: dict[Partition, list[Record]], listeners: set[asyncio.Event], offsets: dict[Partition, int]
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
