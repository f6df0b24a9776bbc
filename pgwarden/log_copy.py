"""`pgwarden log copy`: a log of segments goes to Kafka, each key's frames in their order and under their names.

What each partition there must hold follows from the segments alone, record by record. So a copy that was cut short goes on by
counting what is there, and at the end both sides are read once more and compared. It blocks; nothing else may write either side.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.events import TOPICS
from ingest.frames import FrameInvalid
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Record
from ingest.log.segments import SegmentLog
from ingest.log.topics import DAY_MS, KEPT_FOR_EVER
from ingest.placement import Placement
from ingest.settings import KafkaSettings, LogSettings

if TYPE_CHECKING:
    from pgwarden.log_copy_sending import Sending

POLL_RECORDS: Final = 2_000
POLL_SECONDS: Final = 5.0
SILENT_SECONDS_MAX: Final = 60.0  # of brokers that are read from
PROGRESS_SECONDS: Final = 1.0
LOCK: Final = "copy.lock"

Progress = Callable[[str, int, int], None]
"""Topic, records that are there, records in all."""


class CopyRefused(Exception):
    """Nothing was written. Says what is in the way, and what to do."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One record as Kafka will hold it."""

    partition: int
    key: bytes
    value: bytes
    at_ms: int


@dataclass(slots=True)
class Sums:
    """What stands in the partitions of one topic: how many records, and one checksum over all of them in their order."""

    counts: list[int]
    digests: list[hashlib._Hash]

    @classmethod
    def none(cls, partitions: int) -> Sums:
        return cls([0] * partitions, [hashlib.sha256() for _ in range(partitions)])

    def add(self, moved: Moved) -> None:
        self.counts[moved.partition] += 1
        digest = self.digests[moved.partition]
        for part in (moved.key, moved.value, moved.at_ms.to_bytes(8, "big")):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(b"".join(digest.digest() for digest in self.digests)).hexdigest()[:16]

    @property
    def records(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Copied:
    topic: str
    records: int  # in Kafka now
    written: int  # of these, by this run
    checksum: str  # of both sides
    repeated: int  # that stood twice in the segments, and once now
    gaps: int  # that the segments have, and Kafka therefore too


async def copy(folder: Path, settings: KafkaSettings, target: EventLog, progress: Progress) -> list[Copied]:
    """Return once Kafka holds all that the segments in `folder` hold, proven by reading it back.

    Raises:
        CopyRefused: The topics hold something else, or would not keep all of it.
        LogLocked: A gateway or an API still writes the segments, or another copy runs.
        LogUnavailable: Kafka or the disk does not answer. Run it again: it goes on where this one ended.
        LogCorrupt: The segments are damaged, or what was read back is not what was written.
    """
    source = SegmentLog(folder, LogSettings())
    try:
        with _only_copy(folder):
            topics = [topic for topic in TOPICS if (folder / topic).is_dir()]
            await source.claim(topics)  # whoever wrote it must have ended; a torn end is cut off, as a writer's start does
            await _look(source, settings, target, topics)
            written = {topic: await _write(source, settings, target, topic, progress) for topic in topics}
            return [await _compared(source, settings, target, topic, written[topic], progress) for topic in topics]
    finally:
        with contextlib.suppress(LogUnavailable):
            await source.close()


@contextlib.contextmanager
def _only_copy(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        raise CopyRefused(f"{folder} is no folder: name the folder of the segments with --from")
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CopyRefused(f"another copy of {folder} is under way") from error
    finally:
        os.close(descriptor)


async def _look(source: SegmentLog, settings: KafkaSettings, target: EventLog, topics: Sequence[str]) -> None:
    """Before anything is written, whether it can be."""
    oldest_ms = time.time() * 1000 - settings.retention_days * DAY_MS
    for topic in topics:
        name = settings.topic_prefix + topic
        if any(target.begin_offsets(topic).values()):
            raise CopyRefused(f"the beginning of {name} is gone already: take another topic_prefix")
        there = {number: end for (_, number), end in (await target.offsets(topic)).items()}
        last = {number: _as_moved(await _record(target, topic, number, end - 1)) for number, end in there.items() if end}
        seen = [0] * settings.partitions[topic]
        async for moved in _moved(source, topic, Placement(settings.partitions[topic], _whole(source, topic))):
            if not any(seen) and topic not in KEPT_FOR_EVER and moved.at_ms < oldest_ms:
                days = int((time.time() * 1000 - moved.at_ms) / DAY_MS)
                raise CopyRefused(
                    f"the oldest record of {topic} is {days} days old, and the brokers would drop it: write retention_days ="
                    f" {days + 2} below [kafka], run pgwarden topics apply, and lower it again later"
                )
            size = len(moved.key) + len(moved.value)
            if size > settings.record_bytes_max:
                raise CopyRefused(f"{topic} holds a record of {size} bytes, and Kafka is set to take {settings.record_bytes_max}")
            seen[moved.partition] += 1
            if seen[moved.partition] == there[moved.partition] and moved != last[moved.partition]:
                place = f"{name}, partition {moved.partition}, record {seen[moved.partition] - 1}"
                raise CopyRefused(f"{place} is not this log's: take another topic_prefix")
        for number, end in there.items():
            if end > seen[number]:
                raise CopyRefused(
                    f"{name} holds {end} records in partition {number}, and this log has {seen[number]} for it: the log in Kafka is"
                    " another one, or has gone on"
                )


async def _write(source: SegmentLog, settings: KafkaSettings, target: EventLog, topic: str, progress: Progress) -> int:
    """Return how many records were written now."""
    there = {number: end for (_, number), end in (await target.offsets(topic)).items()}
    total = sum((await source.offsets(topic)).values())
    seen = [0] * settings.partitions[topic]
    # Loaded only here, with kafka-python, which takes a third of a second and without which `target` could not be open.
    sending: Sending = importlib.import_module("pgwarden.log_copy_sending").Sending(settings)
    written = done = 0
    told = time.monotonic()
    try:
        async for moved in _moved(source, topic, Placement(settings.partitions[topic], _whole(source, topic))):
            seen[moved.partition] += 1
            done += 1
            if seen[moved.partition] <= there[moved.partition]:
                continue
            sending.send(topic, moved)  # blocks, and nobody else is on this loop
            written += 1
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                progress(topic, done, total)
        sending.all_sent()
    finally:
        sending.close()
    progress(topic, total, total)
    return written


async def _compared(
    source: SegmentLog, settings: KafkaSettings, target: EventLog, topic: str, written: int, progress: Progress
) -> Copied:
    partitions = settings.partitions[topic]
    placement = Placement(partitions, _whole(source, topic))
    expected, found = Sums.none(partitions), Sums.none(partitions)
    async for moved in _moved(source, topic, placement):
        expected.add(moved)
    async for record in _records(target, topic, await target.offsets(topic)):
        found.add(_as_moved(record))
    if found.counts != expected.counts or found.checksum != expected.checksum:
        there = f"{settings.topic_prefix}{topic} holds {found.records} records, checksum {found.checksum}"
        here = f"this log {expected.records}, checksum {expected.checksum}"
        raise LogCorrupt(f"{there}, and {here}: take another topic_prefix, run pgwarden topics apply, and copy anew")
    return Copied(topic, found.records, written, found.checksum, placement.repeated, placement.gaps)


def _whole(source: SegmentLog, topic: str) -> bool:
    return all(begin == 0 for begin in source.begin_offsets(topic).values())


async def _moved(source: SegmentLog, topic: str, placement: Placement) -> AsyncIterator[Moved]:
    async for record in _records(source, topic, await source.offsets(topic)):
        try:
            placed = placement.place(record.key, record.value)
        except FrameInvalid as error:
            raise LogCorrupt(f"{topic}/{record.partition}, record {record.offset}: {error}") from error
        if placed is not None:
            yield Moved(placed.partition, record.key, placed.value, record.at_us // 1000)


async def _records(log: EventLog, topic: str, ends: dict[tuple[str, int], int]) -> AsyncIterator[Record]:
    """All that lie below `ends`, those of a partition in their order."""
    offsets = {place: begin for place, begin in log.begin_offsets(topic).items() if begin < ends[place]}
    subscription = log.assign(dict(offsets))
    heard = time.monotonic()
    try:
        while any(offset < ends[place] for place, offset in offsets.items()):
            records = await subscription.poll(POLL_RECORDS, POLL_SECONDS)
            if records:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENT_SECONDS_MAX:
                raise LogUnavailable(f"{topic} has not been read on for {SILENT_SECONDS_MAX:g} s")
            for record in records:
                place = (record.topic, record.partition)
                if offsets[place] <= record.offset < ends[place]:
                    offsets[place] = record.offset + 1
                    yield record
    finally:
        subscription.close()


async def _record(log: EventLog, topic: str, number: int, offset: int) -> Record:
    subscription = log.assign({(topic, number): offset})
    until = time.monotonic() + SILENT_SECONDS_MAX
    try:
        while time.monotonic() < until:
            for record in await subscription.poll(1, POLL_SECONDS):
                return record
    finally:
        subscription.close()
    raise LogUnavailable(f"record {offset} of {topic}/{number} could not be read")


def _as_moved(record: Record) -> Moved:
    return Moved(record.partition, record.key, record.value, record.at_us // 1000)
