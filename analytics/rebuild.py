"""The whole log comes in; new tables stand where the old ones stood, the same that following it would have made.

A long log is decoded and staged by workers, in chunks that are merged in the log's order, a million events a transaction. What is
staged and how it is merged is what the runner does too: only the way from the one to the other differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from analytics.projections.projection import Row
from analytics.rebuild_lines import LENGTH, Staged, Task
from analytics.settings import AnalyticsSettings
from analytics.staging import staged
from analytics.store import STAGED_FOLDER, Batch, StagedBatch, Store, Sum, checksum
from ingest.events import TOPICS, Frame
from ingest.follow import Follower, Gap, Seen, Sequences
from ingest.frames import decode
from ingest.log import EventLog, LogCorrupt, Partition, Record, Subscription

_ROOT: Final = str(Path(__file__).resolve().parents[1])
_POLL_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0  # that a worker may take to end when there is no more to do


class WorkerDied(Exception):
    """A process that staged part of the log is gone, and with it what it was about to say."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    checksum: str
    sums: Mapping[str, Sum]
    offsets: Mapping[Partition, int]
    frames: int
    events: int
    seconds: float  # until the tables held the whole log
    checksum_seconds: float  # beyond that


async def rebuild(log: EventLog, settings: AnalyticsSettings) -> Rebuilt:
    """Read the whole log, as far as it reaches now, into new tables, which then take the place of the old ones.

    Raises:
        TablesBusy: A running API holds the tables.
        LogCorrupt, LogUnavailable: The log cannot be read to its end. The old tables stay.
        MemoryError, TablesBroken: As Store.ingest().
        WorkerDied: For want of memory or room, most likely; it has said why on standard error.
    """
    began = time.monotonic()
    folder = settings.directory / STAGED_FOLDER
    store = await asyncio.to_thread(Store.open, settings, fresh=True)
    whole = False
    try:
        ends = {place: end for topic in TOPICS for place, end in (await log.offsets(topic)).items()}
        if sum(ends.values()) < settings.rebuild_alone_records_max:
            frames, events = await _alone(log, store, settings, ends)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # of a rebuild that was killed
            folder.mkdir(mode=0o700)
            frames, events = await _Together(log, store, settings, ends, folder).run()
        seconds = time.monotonic() - began
        sums = await asyncio.to_thread(store.sums)
        offsets = store.offsets()
        whole = True
    finally:
        await asyncio.to_thread(store.close if whole else store.discard)
        shutil.rmtree(folder, ignore_errors=True)
    return Rebuilt(checksum(sums), sums, offsets, frames, events, seconds, time.monotonic() - began - seconds)


async def _alone(log: EventLog, store: Store, settings: AnalyticsSettings, ends: Mapping[Partition, int]) -> tuple[int, int]:
    """Return how many frames and events there were."""
    frames = events = 0
    gaps: list[Gap] = []
    follower = Follower(log, TOPICS, {}, on_gap=gaps.append)
    try:
        while any(follower.offsets[place] < end for place, end in ends.items()):
            batch = await follower.poll(settings.rebuild_chunk_records, _POLL_SECONDS)
            if batch:
                ingested = Batch(batch, dict(follower.offsets), dict(follower.seen), tuple(gaps))
                await asyncio.to_thread(store.ingest, ingested)
                gaps.clear()
            frames += len(batch)
            events += sum(len(frame.events) for _, frame in batch)
    finally:
        follower.close()
    return frames, events


@dataclass(frozen=True, slots=True)
class _Chunk:
    records: Sequence[Record]
    staged: asyncio.Future[Staged]


@dataclass(slots=True)
class _Pending:
    """Staged, and not merged yet."""

    files: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    rows: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    times: dict[Partition, int] = field(default_factory=dict)
    gaps: list[tuple[Gap, int]] = field(default_factory=list)
    events: int = 0


class _Together:
    """This process reads and merges; workers stage."""

    def __init__(
        self, log: EventLog, store: Store, settings: AnalyticsSettings, ends: Mapping[Partition, int], folder: Path
    ) -> None:
        self._log = log
        self._store = store
        self._settings = settings
        self._ends = ends
        self._folder = folder
        self._offsets = dict.fromkeys(ends, 0)
        self._seen: Seen = {}
        self._gaps: list[Gap] = []
        begins = {place: begin for topic in TOPICS for place, begin in log.begin_offsets(topic).items()}
        self._sequences = Sequences(self._seen, (place for place in ends if begins[place] == 0), self._gaps.append)
        self._room = asyncio.Semaphore(settings.rebuild_chunks_ahead)
        self._tasks: asyncio.Queue[tuple[int, _Chunk]] = asyncio.Queue()  # bounded by _room, as is _chunks
        self._chunks: asyncio.Queue[_Chunk | None] = asyncio.Queue()
        self._frames = self._events = 0

    async def run(self) -> tuple[int, int]:
        try:
            async with contextlib.AsyncExitStack() as stack:
                workers = [await stack.enter_async_context(_worker()) for _ in range(self._settings.rebuild_workers)]
                async with asyncio.TaskGroup() as tasks:
                    staging = [tasks.create_task(self._stage(worker)) for worker in workers]
                    tasks.create_task(self._read())
                    await self._merge()
                    for task in staging:
                        task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the first ended the others
        return self._frames, self._events

    async def _read(self) -> None:
        subscription = self._log.assign(dict(self._offsets))
        loop = asyncio.get_running_loop()
        read = dict(self._offsets)
        number = 0
        try:
            while any(read[place] < end for place, end in self._ends.items()):
                await self._room.acquire()
                records = await _some(subscription, self._settings.rebuild_chunk_records)
                for record in records:
                    read[record.topic, record.partition] = record.offset + 1
                chunk = _Chunk(records, loop.create_future())
                self._tasks.put_nowait((number, chunk))
                self._chunks.put_nowait(chunk)
                number += 1
            self._chunks.put_nowait(None)
        finally:
            subscription.close()

    async def _stage(self, worker: Process) -> None:
        """Give one worker one chunk after the other."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        while True:
            number, chunk = await self._tasks.get()
            raws = [(r.topic, r.partition, r.offset, r.at_us, r.value) for r in chunk.records]
            message = msgspec.msgpack.encode(Task(str(self._folder), number, raws))
            try:
                worker.stdin.write(LENGTH.pack(len(message)) + message)
                await worker.stdin.drain()
                (size,) = LENGTH.unpack(await worker.stdout.readexactly(LENGTH.size))
                answer = await worker.stdout.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise WorkerDied(f"a worker ended with status {await worker.wait()}") from error
            chunk.staged.set_result(msgspec.msgpack.decode(answer, type=Staged))

    async def _merge(self) -> None:
        """Take the chunks in the order in which they were read."""
        pending = _Pending()
        while (chunk := await self._chunks.get()) is not None:
            answer = await chunk.staged
            self._add(pending, chunk.records, answer)
            self._room.release()
            if pending.events >= self._settings.rebuild_batch_events:
                await self._commit(pending)
                pending = _Pending()
        await self._commit(pending)

    def _add(self, pending: _Pending, records: Sequence[Record], answer: Staged) -> None:
        """
        Raises:
            LogCorrupt: A record is not a frame.
        """
        new: list[bool] = []
        for record, head in zip(records, answer.heads, strict=False):
            place = (record.topic, record.partition)
            is_new = self._sequences.is_new(*place, record.offset, head.writer, head.boot, head.seq, head.step)
            new.append(is_new)
            self._offsets[place] = record.offset + 1
            if is_new:
                pending.times[place] = record.at_us
                pending.events += head.events
                self._frames += 1
                self._events += head.events
            pending.gaps += [(gap, record.at_us) for gap in self._gaps]
            self._gaps.clear()
        if answer.invalid:
            record = records[len(answer.heads)]
            raise LogCorrupt(f"{record.topic}/{record.partition}, record {record.offset}: {answer.invalid}")
        if all(new):
            for name, file in answer.files.items():
                pending.files[name].append(Path(file))
            return
        # A frame that was appended twice is in this chunk: what the worker staged counts it twice.
        for file in answer.files.values():
            Path(file).unlink()
        frames: list[tuple[Record, Frame]] = [(r, decode(r.value)) for r, is_new in zip(records, new, strict=True) if is_new]
        for name, rows in staged(frames).items():
            pending.rows[name] += rows

    async def _commit(self, pending: _Pending) -> None:
        batch = StagedBatch(pending.files, pending.rows, pending.times, dict(self._offsets), dict(self._seen), pending.gaps)
        # Not ended halfway when this task is: the thread cannot be stopped.
        await asyncio.shield(asyncio.to_thread(self._store.ingest_staged, batch))
        for files in pending.files.values():
            for file in files:
                file.unlink()


async def _some(subscription: Subscription, records_max: int) -> Sequence[Record]:
    while not (records := await subscription.poll(records_max, _POLL_SECONDS)):
        pass
    return records


@contextlib.asynccontextmanager
async def _worker() -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "analytics.rebuild_worker",
        stdin=PIPE,
        stdout=PIPE,
        cwd=_ROOT,
        env={"PYTHONPATH": _ROOT},  # nothing else: the environment may hold passwords
        start_new_session=True,  # Ctrl-C is for this process; the worker ends with its pipe
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
