"""Durable appends: many wait, one thread writes what waits and makes it durable, as a gateway's sessions at level `group` want it.

The peers do the same with the same group commit: SQLite (WAL, synchronous=FULL), and a file with nothing but pwrite and fdatasync,
which is what no log can beat.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ingest.log import Entry
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

WAITING: Final = (1, 16, 128, 1024)
ROUNDS: Final = 5
SECONDS: Final = 0.6  # of a run
DATA: Final = os.urandom(400)


class _Log(Protocol):
    async def append(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class _Segments:
    def __init__(self, folder: Path) -> None:
        self._log = SegmentLog(folder, LogSettings())

    async def append(self, data: bytes) -> None:
        await self._log.append([Entry("bench", b"agent", data)])

    async def close(self) -> None:
        await self._log.close()


class _Grouped:
    """A thread that commits all that waits, and wakes the loop once for all of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def append(self, data: bytes) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((data, done))
        await done

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        self._open()
        while (job := self._jobs.get()) is not None:
            group = [job]
            while not self._jobs.empty():
                if (other := self._jobs.get()) is None:
                    self._jobs.put(None)
                    break
                group.append(other)
            self._commit([data for data, _ in group])
            self._loop.call_soon_threadsafe(_settle, [done for _, done in group])
        self._end()

    def _open(self) -> None:
        raise NotImplementedError

    def _commit(self, data: Sequence[bytes]) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


def _settle(waiting: Sequence[asyncio.Future[None]]) -> None:
    for done in waiting:
        done.set_result(None)


class _Sqlite(_Grouped):
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._path = folder / "log.sqlite"
        super().__init__()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, isolation_level=None)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.execute("create table log (id integer primary key, key blob, value blob)")

    def _commit(self, data: Sequence[bytes]) -> None:
        self._database.execute("begin")
        self._database.executemany("insert into log (key, value) values (?, ?)", [(b"agent", some) for some in data])
        self._database.execute("commit")

    def _end(self) -> None:
        self._database.close()


class _Bare(_Grouped):
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._path = folder / "log"
        super().__init__()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT)
        os.pwrite(self._file, bytes(64 * 2**20), 0)  # so that fdatasync has no new size to store, as in segments
        os.fsync(self._file)
        self._place = 0

    def _commit(self, data: Sequence[bytes]) -> None:
        self._place += os.pwrite(self._file, b"".join(data), self._place % (60 * 2**20))
        os.fdatasync(self._file)

    def _end(self) -> None:
        os.close(self._file)


ENGINES: Final[Mapping[str, Callable[[Path], _Log]]] = {"segments": _Segments, "SQLite": _Sqlite, "fdatasync": _Bare}


@dataclass(slots=True)
class _Measured:
    per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of the process, all threads, for each append


async def main(folder: Path) -> None:
    cells = {(engine, waiting): _Measured() for waiting in WAITING for engine in ENGINES}
    for round_ in range(ROUNDS):
        for waiting in WAITING:
            for name, engine in ENGINES.items():
                place = folder / f"{name}-{waiting}-{round_}"
                log = engine(place)
                try:
                    await _run(log, waiting, cells[name, waiting])
                finally:
                    await log.close()
                shutil.rmtree(place, ignore_errors=True)
    print(f"{ROUNDS} rounds of {SECONDS:g} s, {len(DATA)} bytes each; medians")
    print(f"{'waiting':>7}  {'log':10} {'appends/s':>10} {'/ SQLite':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>7} {'/ SQLite':>9}")
    for waiting in WAITING:
        for name in ENGINES:
            cell, peer = cells[name, waiting], cells["SQLite", waiting]
            print(
                f"{waiting:7}  {name:10} {statistics.median(cell.per_second):10.0f} {_ratio(cell.per_second, peer.per_second):>9} "
                f"{statistics.median(cell.p50_ms):8.2f} {statistics.median(cell.p99_ms):8.2f} "
                f"{statistics.median(cell.cpu_us):7.1f} {_ratio(cell.cpu_us, peer.cpu_us):>9}"
            )


async def _run(log: _Log, waiting: int, cell: _Measured) -> None:
    await log.append(DATA)  # whatever is done once
    latencies: list[float] = []
    until = time.perf_counter() + SECONDS

    async def one() -> None:
        while (began := time.perf_counter()) < until:
            await log.append(DATA)
            latencies.append(time.perf_counter() - began)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(waiting)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    latencies.sort()
    cell.per_second.append(len(latencies) / wall)
    cell.p50_ms.append(latencies[len(latencies) // 2] * 1e3)
    cell.p99_ms.append(latencies[int(len(latencies) * 0.99)] * 1e3)
    cell.cpu_us.append(cpu / len(latencies) * 1e6)


def _ratio(values: Sequence[float], peers: Sequence[float]) -> str:
    """The median of the rounds' own ratios: neighbours in time."""
    return f"{statistics.median(a / b for a, b in zip(values, peers, strict=True)):.2f}"
