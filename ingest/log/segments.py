"""A log in files of this machine: `<directory>/<topic>/<partition>/<base offset, 20 digits>.seg`, as in docs/log-format.md.

One thread writes. Whatever waits when it is free becomes one write: batches to each partition, fdatasync of each, and then the mark
that lets readers see them. A failed write, of whichever kind, ends its segment: it is cut back to its durable length, and the next
write begins a new one, for after a failed fdatasync the kernel may hold as clean what never reached the disk.

Where a partition begins stands in `begin` beside its segments, once trim() has taken away what stood before: so segments that were
given up are not taken for segments that were lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import queue
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from ingest.log import Entry, LogCorrupt, LogLocked, LogUnavailable, Partition, Position, Record, batches
from ingest.log.disk import Disk, make_folders, replace, sync_folder
from ingest.log.group_offsets import FOLDER as GROUPS
from ingest.log.group_offsets import GroupOffsets
from ingest.log.partitioner import partition
from ingest.settings import LogSettings

_SUFFIX: Final = ".seg"
_SEGMENT: Final = re.compile(r"\d{20}\.seg")
_TOPIC: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,200}")  # a folder's name, and Kafka's rule in lower case
_ZEROS: Final = bytes(2**20)
_PAGE_BYTES: Final = 4096
_SLICE_SECONDS: Final = 0.005  # of reading, after which the event loop has its turn
_LOOK_SECONDS: Final = 1.0  # between two looks of an idle reader at the directory
_TURN_SECONDS: Final = 0.1  # between two tries of a member of a group to take the place of one that has ended
_BEGIN: Final = "begin"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found when a partition was taken for writing, and what was done about it."""

    topic: str
    partition: int
    file: str  # "" when the partition was empty
    next_offset: int
    dropped_bytes: int  # of a write that a crash cut short, and that nobody was told was durable
    confirmed_batches: int  # whole, but perhaps not durable: written again, and made durable


class SegmentLog:
    """`partitions` says how many a topic has, 1 where it says nothing; writers and readers of a directory must agree on it.

    Many logs of many processes may read a directory; each partition has one that writes, from its first append until close().
    """

    def __init__(
        self, directory: Path, settings: LogSettings, *, partitions: Mapping[str, int] | None = None, disk: Disk | None = None
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._partitions = dict(partitions or {})
        self._disk = disk or Disk()
        self._writer = _Writer(directory, settings, self._disk)
        self._subscriptions: weakref.WeakSet[SegmentSubscription] = weakref.WeakSet()
        self._ends: dict[Partition, _End] = {}
        self._waiting_bytes = 0
        self._unawaited: set[asyncio.Future[list[Position]]] = set()  # of append_nowait()
        self._lost: BaseException | None = None  # of those that are over, until flush() tells
        self._closed = False

    async def claim(self, topics: Iterable[str]) -> Sequence[Recovery]:
        """Take all partitions of these topics for writing now, instead of at the first append, and say in what state they were.

        Raises:
            LogLocked, LogCorrupt, LogUnavailable: As append().
        """
        places = [(topic, number) for topic in topics for number in range(self.partitions(topic))]
        for topic in {topic for topic, _ in places}:
            _check_topic(topic)
        claim = _Claim(asyncio.get_running_loop(), places)
        self._submit(claim)
        return await asyncio.shield(claim.done)

    @property
    def recoveries(self) -> Sequence[Recovery]:
        """One for each partition taken for writing so far."""
        return tuple(self._writer.recoveries)

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        if not entries:
            return ()
        # Shielded: a caller that goes away changes nothing for the write, nor for the bytes that wait.
        return await asyncio.shield(self._append(entries).done)

    def append_nowait(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        done = self._append(entries).done
        self._unawaited.add(done)

        def over(done: asyncio.Future[list[Position]]) -> None:
            self._unawaited.discard(done)
            self._lost = self._lost or done.exception()

        done.add_done_callback(over)

    async def flush(self) -> None:
        if self._unawaited:
            await asyncio.wait(set(self._unawaited))
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost

    def _append(self, entries: Sequence[Entry]) -> _Append:
        size = 0
        places: list[Partition] = []
        for entry in entries:
            length = len(entry.key) + len(entry.value)
            if length > self._settings.record_bytes_max or len(entry.key) > batches.KEY_BYTES_MAX:
                raise ValueError(f"a record of {length} bytes; the log takes {self._settings.record_bytes_max}")
            size += length
            _check_topic(entry.topic)
            places.append((entry.topic, partition(entry.key, self.partitions(entry.topic))))
        # One append may be larger than the bound when nothing waits: its bytes exist already.
        if self._waiting_bytes and self._waiting_bytes + size > self._settings.waiting_bytes_max:
            raise LogUnavailable(f"{self._waiting_bytes} bytes wait to be written")
        job = _Append(asyncio.get_running_loop(), entries, places, size)
        self._submit(job)
        self._waiting_bytes += size

        def written(done: asyncio.Future[list[Position]]) -> None:
            self._waiting_bytes -= size
            done.exception()  # looked at even when the caller has gone

        job.done.add_done_callback(written)
        return job

    def _submit(self, job: _Job) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed")
        self._writer.submit(job)

    def assign(self, offsets: dict[Partition, int]) -> SegmentSubscription:
        subscription = SegmentSubscription(self._directory, self._settings, offsets)
        self._subscriptions.add(subscription)
        return subscription

    def subscribe(self, topics: Sequence[str], group: str) -> SegmentGroupSubscription:
        for name in (*topics, group):
            _check_topic(name)
        places = [(topic, number) for topic in topics for number in range(self.partitions(topic))]
        offsets = GroupOffsets(self._directory, group, self._disk)
        subscription = SegmentGroupSubscription(self._directory, self._settings, places, offsets)
        self._subscriptions.add(subscription)
        return subscription

    def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 1)

    async def offsets(self, topic: str) -> dict[Partition, int]:
        await asyncio.sleep(0)
        try:
            return self.end_offsets(topic)
        except OSError as error:
            raise LogUnavailable(f"{self._directory / topic}: {error.strerror or error}") from error

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        """Cheap but for the first call, which passes over the last segment's headers."""
        ends: dict[Partition, int] = {}
        for number in range(self.partitions(topic)):
            place = (topic, number)
            if place not in self._ends:
                self._ends[place] = _End(_folder(self._directory, place), self._settings.read_bytes)
            ends[place] = self._ends[place].offset()
        return ends

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        places = [(topic, number) for number in range(self.partitions(topic))]
        return {place: _beginning(_folder(self._directory, place)) for place in places}

    def trim(self, topic: str, partition: int, before_offset: int) -> int:
        """Give up the oldest segments that lie below this offset, whole ones, and never the last; return their bytes.

        Any process may, also while another one writes, and from any thread: it blocks. A reader that is still on its way there
        goes on at the first record that is kept, and sees by its offset what it missed.

        Raises:
            LogUnavailable: The disk says no. Some may be gone; those that are not will go with the next call.
            LogCorrupt: The beginning is missing already, and nobody gave it up.
        """
        _check_topic(topic)
        folder = _folder(self._directory, (topic, partition))
        if len(_bases(folder)) < 2:
            return 0
        try:
            return self._trim(folder, before_offset)
        except OSError as error:
            raise LogUnavailable(f"{folder}: {error.strerror or error}") from error

    def _trim(self, folder: Path, before_offset: int) -> int:
        lock = self._disk.open(folder / (_BEGIN + ".lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of those who trim, for as long as it takes
            begin, bases = _beginning(folder), _bases(folder)
            if bases[0] > begin:
                raise _missing(folder, begin, bases[0])
            # Also those that an earlier call gave up and could not remove.
            doomed = [base for base, following in pairwise(bases) if following <= max(before_offset, begin)]
            if not doomed:
                return 0
            if bases[len(doomed)] > begin:
                # On disk before anything is removed: what is missing below it was not lost.
                replace(self._disk, folder / _BEGIN, b"%d\n" % bases[len(doomed)])
            freed = 0
            for base in doomed:
                file = folder / _name(base)
                size = file.stat().st_size
                self._disk.unlink(file)
                freed += size
            sync_folder(self._disk, folder)
            return freed
        finally:
            os.close(lock)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()
        for end in self._ends.values():
            end.close()
        await asyncio.get_running_loop().run_in_executor(None, self._writer.close)


# -- writing ---------------------------------------------------------------------------------------------------------------------


class _Claim:
    def __init__(self, loop: asyncio.AbstractEventLoop, places: list[Partition]) -> None:
        self.loop = loop
        self.places = places
        self.done: asyncio.Future[list[Recovery]] = loop.create_future()
        self.done.add_done_callback(asyncio.Future.exception)  # looked at even when the caller has gone


class _Append:
    def __init__(self, loop: asyncio.AbstractEventLoop, entries: Sequence[Entry], places: list[Partition], size: int) -> None:
        self.loop = loop
        self.entries = entries
        self.places = places
        self.size = size
        self.done: asyncio.Future[list[Position]] = loop.create_future()


_Job: TypeAlias = _Claim | _Append
_SomeJob = TypeVar("_SomeJob", _Claim, _Append)


class _Writer:
    """The thread, and the partitions that it holds. Only the thread touches them."""

    def __init__(self, directory: Path, settings: LogSettings, disk: Disk) -> None:
        self._directory = directory
        self._settings = settings
        self._disk = disk
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: dict[Partition, _HeldPartition] = {}
        self._thread: threading.Thread | None = None
        self._broken: LogUnavailable | None = None
        self.recoveries: list[Recovery] = []

    def submit(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(self._settings.close_seconds_max)
            if self._thread.is_alive():
                raise LogUnavailable(f"{self._directory} has not answered for {self._settings.close_seconds_max:g} s")
        for held in self._held.values():
            held.close()

    def _run(self) -> None:
        last = False
        while not last:
            group: list[_Append] = []
            size = 0
            while True:
                job = self._jobs.get()
                if job is None:
                    last = True
                elif isinstance(job, _Claim):
                    self._do(self._claim, [job])
                else:
                    group.append(job)
                    size += job.size
                if last or self._jobs.empty() or size >= self._settings.group_bytes_max:
                    break
            if group:
                self._do(self._write, group)

    def _do(self, work: Callable[[list[_SomeJob]], None], jobs: list[_SomeJob]) -> None:
        problem: Exception | None = self._broken
        if problem is None:
            try:
                work(jobs)
            except Exception as error:  # a fault of ours: what the partitions hold is unknown, so nothing more may be added
                self._broken = LogUnavailable(f"the log's writer ended: {error!r}")
                problem = error
        if problem is not None:
            _tell([(job, problem) for job in jobs])

    def _claim(self, jobs: list[_Claim]) -> None:
        for job in jobs:
            try:
                recoveries = [self._hold(place).recovery for place in job.places]
            except (LogUnavailable, LogCorrupt) as error:
                _tell([(job, error)])
            else:
                _tell([(job, recoveries)])

    def _hold(self, place: Partition) -> _HeldPartition:
        held = self._held.get(place)
        if held is None:
            try:
                held = _HeldPartition(self._directory, place, self._settings, self._disk)
            except OSError as error:
                raise LogUnavailable(f"{_folder(self._directory, place)}: {error.strerror or error}") from error
            self._held[place] = held
            self.recoveries.append(held.recovery)
        return held

    def _write(self, group: list[_Append]) -> None:
        at_us = time.time_ns() // 1000
        together: dict[Partition, list[tuple[bytes, bytes]]] = {}
        for job in group:
            for place, entry in zip(job.places, job.entries, strict=True):
                together.setdefault(place, []).append((entry.key, entry.value))
        next_offset: dict[Partition, int] = {}
        failed: dict[Partition, LogUnavailable | LogCorrupt] = {}
        for place, records in together.items():
            try:
                next_offset[place] = self._hold(place).write(records, at_us)
            except (LogUnavailable, LogCorrupt) as error:
                failed[place] = error
        for place in next_offset:
            try:
                self._held[place].make_durable()
            except LogUnavailable as error:
                failed[place] = error
        answers: list[tuple[_Job, list[Position] | list[Recovery] | Exception]] = []
        for job in group:
            positions: list[Position] = []
            problem: Exception | None = None
            for place in job.places:
                problem = problem or failed.get(place)
                offset = next_offset.get(place, 0)
                positions.append(Position(*place, offset))
                next_offset[place] = offset + 1
            answers.append((job, problem or positions))
        _tell(answers)


_Answer: TypeAlias = "tuple[_Claim | _Append, list[Position] | list[Recovery] | Exception]"


def _tell(answers: list[_Answer]) -> None:
    """Answer from the thread, with one wake-up a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].loop, []).append(answer)
    for loop, some in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, some)


def _settle(answers: list[_Answer]) -> None:
    for job, result in answers:
        if job.done.done():
            continue
        if isinstance(result, Exception):
            job.done.set_exception(result)
        else:
            job.done.set_result(result)  # type: ignore[arg-type]


class _HeldPartition:
    """The files of one partition, locked. Everything raises OSError until the constructor is through, LogUnavailable after it."""

    def __init__(self, directory: Path, place: Partition, settings: LogSettings, disk: Disk) -> None:
        self._settings = settings
        self._disk = disk
        self._folder = _folder(directory, place)
        self._fd = -1  # of the segment that grows; -1 = none is open
        self._base = 0  # its first offset
        self._length = 0  # its bytes that are durable
        self._size = 0  # with the room behind them
        self._torn = False  # a write failed: what stands behind `_length` must go
        self._written: list[tuple[int, int, int]] = []  # place, bytes and records of each batch that is not durable yet
        self.next_offset = 0
        make_folders(disk, self._folder)
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LogLocked(f"{self._folder} is being written by another process") from error
            self.recovery = self._recover(place)
        except BaseException:
            self.close()
            raise

    def write(self, records: Sequence[tuple[bytes, bytes]], at_us: int) -> int:
        """Return the first record's offset. Nothing is durable before make_durable()."""
        first = self.next_offset
        try:
            if self._torn:
                self._cut()
            elif self._fd >= 0 and self._length >= self._settings.segment_bytes_max:
                self._seal()
            if self._fd < 0:
                self._create()
            data = self._batches(records, at_us)
            self._make_room(self._length + len(data))
            self._pwrite(data, self._length)
        except OSError as error:
            raise self._tear(error) from error
        return first

    def make_durable(self) -> None:
        """What write() wrote, all of it."""
        try:
            self._disk.fdatasync(self._fd)
            for place, size, count in self._written:
                self._mark(place)
                self._length += size
                self.next_offset += count
        except OSError as error:
            raise self._tear(error) from error
        self._written.clear()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        os.close(self._lock)

    @property
    def _file(self) -> Path:
        return self._folder / _name(self._base)

    def _batches(self, records: Sequence[tuple[bytes, bytes]], at_us: int) -> bytes:
        parts: list[bytes] = []
        place, offset, start, size = self._length, self.next_offset, 0, 0
        for end, (key, value) in enumerate(records, 1):
            size += batches.RECORD_HEADER_BYTES + len(key) + len(value)
            more = end < len(records) and size + len(records[end][1]) <= self._settings.batch_bytes_max
            if more and end - start < batches.COUNT_MAX:
                continue
            part = batches.encode(offset, at_us, records[start:end])
            self._written.append((place, len(part), end - start))
            parts.append(part)
            place, offset, start, size = place + len(part), offset + end - start, end, 0
        return b"".join(parts)

    def _create(self) -> None:
        self._base, self._length, self._size = self.next_offset, 0, 0
        self._fd = self._disk.open(self._file, os.O_RDWR | os.O_CREAT)
        self._disk.ftruncate(self._fd, 0)  # one of this name can only hold what failed before it held anything durable
        sync_folder(self._disk, self._folder)

    def _seal(self) -> None:
        self._disk.ftruncate(self._fd, self._length)
        self._disk.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _make_room(self, length: int) -> None:
        if length <= self._size:
            return
        chunk = self._settings.preallocate_bytes
        wanted = max(length, min(-(-length // chunk) * chunk, max(self._settings.segment_bytes_max, length)))
        place = self._size
        while place < wanted:
            place += self._disk.pwrite(self._fd, memoryview(_ZEROS)[: wanted - place], place)
        self._size = wanted

    def _pwrite(self, data: bytes, place: int) -> None:
        view = memoryview(data)
        while view:
            stored = self._disk.pwrite(self._fd, view, place)
            view = view[stored:]
            place += stored

    def _mark(self, place: int) -> None:
        self._pwrite(batches.DURABLE.to_bytes(1, "big"), place)

    def _tear(self, error: OSError) -> LogUnavailable:
        self._torn = True
        self._written.clear()
        if self._fd >= 0:
            os.close(self._fd)  # never synced again: its next fdatasync could say yes to what the failed one lost
            self._fd = -1
        return LogUnavailable(f"{self._file}: {error.strerror or error}")

    def _cut(self) -> None:
        """Take from the torn segment what is not durable. Should even that fail, the next segment still ends this one."""
        if self._length:
            with contextlib.suppress(OSError):
                fd = self._disk.open(self._file, os.O_RDWR)
                try:
                    self._disk.ftruncate(fd, self._length)
                    # The failed write shared this page, which the kernel may now hold as clean while the disk has half of it.
                    page = self._length // _PAGE_BYTES * _PAGE_BYTES
                    self._rewrite(fd, page, self._length - page)
                    self._disk.fdatasync(fd)
                finally:
                    os.close(fd)
        self._torn = False

    def _rewrite(self, fd: int, place: int, size: int) -> None:
        view = memoryview(os.pread(fd, size, place))
        while view:
            stored = self._disk.pwrite(fd, view, place)
            view = view[stored:]
            place += stored

    def _recover(self, place: Partition) -> Recovery:
        bases = _bases(self._folder)
        if not bases:
            if begin := _beginning(self._folder):
                raise LogCorrupt(f"{self._folder}: the records from {begin} on are missing")
            return Recovery(*place, "", 0, 0, 0)
        self._base = self.next_offset = bases[-1]
        self._fd = self._disk.open(self._file, os.O_RDWR)
        self._size = os.fstat(self._fd).st_size
        if not self._size:
            return Recovery(*place, str(self._file), self._base, 0, 0)
        with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as data:
            try:
                found = batches.survey(data, self._base)
            except batches.BatchInvalid as invalid:
                raise LogCorrupt(f"{self._file}: {invalid}") from invalid
        if found.dropped_bytes:
            self._disk.ftruncate(self._fd, found.length)
            self._size = found.length
        for start, size in found.pending:
            # Written again: after a failed fdatasync they may be whole in memory only, and clean in the kernel's eyes.
            self._rewrite(self._fd, start, size)
        if found.pending or found.dropped_bytes:
            self._disk.fdatasync(self._fd)
        for start, _ in found.pending:
            self._mark(start)
        self._length = found.length
        self.next_offset = found.next_offset
        return Recovery(*place, str(self._file), found.next_offset, found.dropped_bytes, len(found.pending))


# -- reading ---------------------------------------------------------------------------------------------------------------------


class _Cursor:
    """A place between two batches of one partition, of which it goes from durable batch to durable batch."""

    def __init__(self, folder: Path, read_bytes: int) -> None:
        self._folder = folder
        self._read_bytes = read_bytes
        self._fd = -1
        self._base = 0
        self._place = 0  # of the buffer's first byte in the segment
        self._buffer = b""
        self._at = 0  # in the buffer
        self._has_room = False  # the segment goes on behind its last durable batch, so it is not sealed
        self._looked = 0.0
        self.offset = 0  # the first of the batch that comes next

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open(self, offset: int) -> bool:
        """Go to the beginning of the segment that holds the offset, or to the first that is kept; False when there is none yet."""
        self.close()
        bases = _bases(self._folder)
        if not bases:
            return False
        held = [base for base in bases if base <= offset]
        if not held and bases[0] > (begin := _beginning(self._folder)):
            raise _missing(self._folder, max(offset, begin), bases[0])
        return self._open(held[-1] if held else bases[0])

    def _open(self, base: int) -> bool:
        try:
            fd = os.open(self._folder / _name(base), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        self.close()
        self._fd, self._base, self._place, self._buffer, self._at, self.offset = fd, base, 0, b"", 0, base
        return True

    def header(self) -> batches.Header | None:
        """Of the next durable batch; None where there is none yet."""
        if self._fd < 0:
            return None
        head = self._header()
        while head is None and self._next_segment():
            head = self._header()
        return head

    def batch(self, head: batches.Header, first_offset: int) -> list[tuple[bytes, bytes]]:
        """Its keys and values, if it reaches `first_offset`; then go behind it."""
        self._fill(batches.HEADER_BYTES + head.length)
        try:
            if head.base_offset + head.record_count <= first_offset:
                batches.check(self._buffer, self._at, head)
                found: list[tuple[bytes, bytes]] = []
            else:
                found = batches.records(self._buffer, self._at, head)
        except batches.BatchInvalid as invalid:
            raise self._corrupt(str(invalid)) from invalid
        self.skip(head)
        return found

    def skip(self, head: batches.Header) -> None:
        self._at += batches.HEADER_BYTES + head.length
        self.offset += head.record_count

    def _header(self) -> batches.Header | None:
        if self._at + batches.HEADER_BYTES > len(self._buffer) or self._buffer[self._at] != batches.DURABLE:
            # Only the header: at the end of the log, where a reader mostly is, there is no more to be had.
            self._read(batches.HEADER_BYTES)
            self._has_room = len(self._buffer) == batches.HEADER_BYTES
            if not self._has_room or self._buffer[0] in (batches.NOTHING, batches.PENDING):
                return None
            self._read(self._read_bytes)
        try:
            head = batches.header(self._buffer, self._at)
        except batches.BatchInvalid as invalid:
            raise self._corrupt(str(invalid)) from invalid
        if head.base_offset != self.offset:
            raise self._corrupt(f"record {head.base_offset} stands where {self.offset} belongs")
        return head

    def _read(self, size: int) -> None:
        self._place += self._at
        self._at = 0
        self._buffer = os.pread(self._fd, size, self._place)

    def _fill(self, size: int) -> None:
        if self._at + size > len(self._buffer):
            self._read(max(size, self._read_bytes))
            if size > len(self._buffer):
                raise self._corrupt("the file ends within a durable batch")

    def _next_segment(self) -> bool:
        # Where there is room, only one that failed and could not be cut back is followed by another: seldom, and seen late.
        if not self._has_room and self.offset != self._base and self._open(self.offset):
            return True
        return self._look_around()

    def _look_around(self) -> bool:
        """Go on behind a hole that is trim()'s; behind any other, records would be waited for in vain."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        later = [base for base in _bases(self._folder) if base >= self.offset and base != self._base]
        if later and later[0] == self.offset:
            return self._open(self.offset)
        if later and self.offset < later[0] <= _beginning(self._folder) and self._header() is None:
            return self._open(later[0])
        if not os.fstat(self._fd).st_nlink:
            raise self._corrupt("the segment was removed")
        # Looked at again after the listing: the writer may have finished this segment and begun the next in between.
        if later and later[0] != self.offset and self._header() is None:
            raise self._corrupt(f"the records from {self.offset} to {later[0] - 1} are missing")
        return False

    def _corrupt(self, problem: str) -> LogCorrupt:
        return LogCorrupt(f"{self._folder / _name(self._base)}: at byte {self._place + self._at}: {problem}")


class _Reader:
    def __init__(self, directory: Path, place: Partition, offset: int, read_bytes: int) -> None:
        self._place = place
        self._first_offset = offset
        self._cursor = _Cursor(_folder(directory, place), read_bytes)
        self._is_open = False
        self._ready: deque[Record] = deque()  # of one batch

    def close(self) -> None:
        self._cursor.close()

    def take(self, records_max: int, bytes_max: int) -> list[Record]:
        """What was read and not yet taken; at least one record of it, however large."""
        taken: list[Record] = []
        while self._ready and len(taken) < records_max and (bytes_max > 0 or not taken):
            record = self._ready.popleft()
            bytes_max -= len(record.value)
            taken.append(record)
        return taken

    def read(self) -> bool:
        """Read one batch; False when there is none yet."""
        if not self._is_open:
            self._is_open = self._cursor.open(self._first_offset)
        head = self._cursor.header()
        if head is None:
            return False
        topic, number = self._place
        for offset, (key, value) in enumerate(self._cursor.batch(head, self._first_offset), head.base_offset):
            if offset >= self._first_offset:
                self._ready.append(Record(topic, number, offset, head.at_us, key, value))
        return True


class SegmentSubscription:
    def __init__(self, directory: Path, settings: LogSettings, offsets: Mapping[Partition, int]) -> None:
        self._directory = directory
        self._settings = settings
        self._readers: dict[Partition, _Reader] = {}
        self._turns: deque[Partition] = deque()  # the one that was served last stands last
        self._pause_seconds = settings.poll_interval_min_ms / 1000
        self._closed = False
        for place, offset in offsets.items():
            self.seek(place, offset)

    async def poll(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        await asyncio.sleep(0)  # before anything is taken, so that a cancelled call has taken nothing
        while True:
            found, more = self._look(records_max, time.monotonic() + _SLICE_SECONDS)
            if found:
                self._pause_seconds = self._settings.poll_interval_min_ms / 1000
                return found
            if more:  # on the way to the first offset, which lies somewhere in its segment: nothing is not known yet
                await asyncio.sleep(0)
                continue
            left = deadline - loop.time()
            if left <= 0:
                return []
            await asyncio.sleep(min(self._pause_seconds, left))
            self._pause_seconds = min(self._pause_seconds * 2, self._settings.poll_interval_max_ms / 1000)

    def _look(self, records_max: int, until: float) -> tuple[list[Record], bool]:
        """Records, and whether there may be more at once. Blocks the loop for one slice, or one read."""
        if self._closed:
            raise LogUnavailable("the subscription is closed")
        found: list[Record] = []
        bytes_left = self._settings.poll_bytes_max
        more = False
        for _ in range(len(self._turns)):
            place = self._turns[0]
            reader = self._readers[place]
            while len(found) < records_max and bytes_left > 0:
                some = reader.take(records_max - len(found), bytes_left)
                found += some
                bytes_left -= sum(len(record.value) for record in some)
                if some:
                    continue
                if time.monotonic() > until:
                    more = True
                    break
                try:
                    if not reader.read():
                        break
                except LogCorrupt:
                    if found:
                        break  # what stands before the damage is whole; the next call comes back to it
                    raise
                except OSError as error:
                    if found:
                        break
                    raise LogUnavailable(f"{_folder(self._directory, place)}: {error.strerror or error}") from error
            else:
                more = True
            if more:
                break
            self._turns.rotate(-1)
        if found:
            self._turns.rotate(-1)
        return found, more

    def seek(self, partition: Partition, offset: int) -> None:
        _check_topic(partition[0])
        if partition in self._readers:
            self._readers[partition].close()
        else:
            self._turns.append(partition)
        self._readers[partition] = _Reader(self._directory, partition, offset, self._settings.read_bytes)

    def close(self) -> None:
        self._closed = True
        for reader in self._readers.values():
            reader.close()


class SegmentGroupSubscription(SegmentSubscription):
    """All partitions are one member's: the first that polls, until it closes or its process ends. Others find nothing meanwhile."""

    def __init__(self, directory: Path, settings: LogSettings, places: Sequence[Partition], offsets: GroupOffsets) -> None:
        super().__init__(directory, settings, {})
        self._places = places
        self._offsets = offsets
        self._joined = False

    async def poll(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not self._joined:
            if self._closed:
                raise LogUnavailable("the subscription is closed")
            if self._offsets.hold():
                committed = self._offsets.read()
                for place in self._places:
                    super().seek(place, committed.get(place, 0))
                self._joined = True
                break
            left = deadline - loop.time()
            if left <= 0:
                return []
            await asyncio.sleep(min(_TURN_SECONDS, left))
        return await super().poll(records_max, max(0.0, deadline - loop.time()))

    def seek(self, partition: Partition, offset: int) -> None:
        """Of a partition that this member has not got, nothing happens: it will be read from where the group committed."""
        if self._joined and partition in self._readers:
            super().seek(partition, offset)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        await asyncio.to_thread(self._offsets.commit, dict(offsets))

    async def committed(self) -> dict[Partition, int]:
        found = await asyncio.to_thread(self._offsets.read)
        return {place: found.get(place, 0) for place in self._places}

    def close(self) -> None:
        super().close()
        self._offsets.close()


class _End:
    """The end of a partition, which the cursor follows without reading the records."""

    def __init__(self, folder: Path, read_bytes: int) -> None:
        self._cursor = _Cursor(folder, read_bytes)
        self._is_open = False

    def offset(self) -> int:
        if not self._is_open:
            self._is_open = self._cursor.open(2**63)  # the last segment
        while (head := self._cursor.header()) is not None:
            self._cursor.skip(head)
        return self._cursor.offset

    def close(self) -> None:
        self._cursor.close()


def _check_topic(topic: str) -> None:
    if not _TOPIC.fullmatch(topic) or topic == GROUPS:  # it becomes a path
        raise ValueError(f"{topic!r} cannot be the name of a topic")


def _folder(directory: Path, place: Partition) -> Path:
    topic, number = place
    return directory / topic / str(number)


def _name(base: int) -> str:
    return f"{base:020}{_SUFFIX}"


def _bases(folder: Path) -> list[int]:
    """The first offsets of the segments there, rising."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:20]) for name in names if _SEGMENT.fullmatch(name))


def _beginning(folder: Path) -> int:
    """The first offset that trim() left, 0 where it never did anything."""
    try:
        text = (folder / _BEGIN).read_bytes()
    except FileNotFoundError:
        return 0
    if not text.strip().isdigit():
        raise LogCorrupt(f"{folder / _BEGIN} is no offset")
    return int(text)


def _missing(folder: Path, first: int, following: int) -> LogCorrupt:
    return LogCorrupt(f"{folder}: the records from {first} to {following - 1} are missing")
