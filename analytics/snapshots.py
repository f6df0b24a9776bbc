"""Copies of the tables, each a whole DuckDB file of its own, for whoever wants to ask them in a program of theirs.

DuckDB lets one process have a file that is being written. A copy is made beside its place, made durable, and then put there: what
bears a snapshot's name is whole, whatever dies meanwhile, and who has an older one open keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import duckdb

from analytics.settings import AnalyticsSettings
from analytics.store import Store

FOLDER: Final = "snapshots"
LATEST: Final = "latest.duckdb"  # a link to the newest
LATEST_NAME: Final = "latest"  # and what hand_out() calls it
CHUNK_BYTES: Final = 256 * 2**10  # that are sent at once
RETRY_SECONDS: Final = 60.0  # after there was no room
_DRAFT: Final = ".draft"
_NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{6}Z", re.ASCII)

_log: Final = logging.getLogger(__name__)


class Busy(Exception):
    """As many are being handed out as may be at once."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    path: Path
    size_bytes: int
    taken_at: str  # the tables as of this moment
    seconds: float  # that it took; the projector waited for most of it

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True, slots=True)
class Kept:
    """One that is there."""

    name: str
    size_bytes: int
    taken_at: str


class HandedOut:
    """One that is being read by somebody: whole until it is closed, though it may be removed meanwhile."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name: Final = name
        self.size_bytes: Final = os.fstat(file.fileno()).st_size
        self._file = file
        weakref.finalize(self, file.close)  # also where the answer that would have sent it never began

    def chunks(self) -> Iterator[bytes]:
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


class Snapshots:
    """One is taken at a time; calls may overlap."""

    def __init__(self, store: Store, settings: AnalyticsSettings) -> None:
        self._store = store
        self._settings = settings
        self._folder = settings.directory / FOLDER
        self._one = asyncio.Lock()
        self._commits = -1  # of the store at the newest snapshot
        self._seconds = 0.0
        self._handing_out = threading.Lock()
        # Those that somebody reads. Who forgets to close one must not use up a place for ever.
        self._handed_out: weakref.WeakSet[HandedOut] = weakref.WeakSet()
        self.download_seconds_max: Final = settings.snapshot_download_seconds_max

    def kept(self) -> Sequence[Kept]:
        """Newest first. Reads a folder."""
        found = []
        for path in sorted(self._folder.glob("*.duckdb"), reverse=True):
            if _NAME.fullmatch(path.stem) and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError, ValueError):  # removed since; no time, so none of ours
                    found.append(Kept(path.stem, path.stat().st_size, _taken_at(path.stem)))
        return found

    def hand_out(self, name: str) -> HandedOut | None:
        """Open one, LATEST_NAME being the newest; None: there is none of this name. Reads a folder. The caller closes it.

        Raises:
            Busy: As many as may be are open.
            OSError: It is there, and cannot be read.
        """
        with self._handing_out:
            if sum(not one.closed for one in self._handed_out) >= self._settings.snapshot_downloads_max:
                raise Busy(f"{self._settings.snapshot_downloads_max} snapshots are being read; try again when one has ended")
            if name == LATEST_NAME:
                newest = self.kept()[:1]
                if not newest:
                    return None
                name = newest[0].name
            # A name of another shape never becomes a path.
            if _NAME.fullmatch(name) is None:
                return None
            try:
                descriptor = os.open(self._folder / f"{name}.duckdb", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            out = HandedOut(name, os.fdopen(descriptor, "rb"))
            self._handed_out.add(out)
            return out

    async def take(self) -> Snapshot:
        """
        Raises:
            OSError: There is no room, or no leave. The older ones stay.
        """
        async with self._one:
            # Finished even when the caller goes away: else the thread would go on beside the next one.
            return await asyncio.shield(asyncio.to_thread(self._take))

    async def run(self) -> None:
        """Take one every so often, if anything was committed since. Until cancelled."""
        interval = self._settings.snapshot_interval_seconds
        if interval <= 0:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(max(interval, self._seconds * self._settings.snapshot_rest_factor))
            while self._store.commits != self._commits:
                try:
                    await self.take()
                except OSError as error:
                    _log.warning("no snapshot of the tables was taken: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    break

    def _take(self) -> Snapshot:
        began = time.monotonic()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob(f"*{_DRAFT}*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        self._check_room()
        commits = self._store.commits
        taken_at = datetime.now(UTC)
        path = self._folder / f"{taken_at:%Y%m%dT%H%M%S.%fZ}.duckdb"
        draft = path.with_name(path.name + _DRAFT)
        try:
            self._store.snapshot(draft)
            _fold(draft, self._settings.memory_max_mb)
            _sync(draft)
            size_bytes = draft.stat().st_size
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            draft.with_name(draft.name + ".wal").unlink(missing_ok=True)
            raise
        self._link(path)
        self._forget()
        _sync(self._folder)
        self._commits, self._seconds = commits, time.monotonic() - began
        return Snapshot(path, size_bytes, _taken_at(path.stem), self._seconds)

    def _check_room(self) -> None:
        """The log may lie on the same disk: a copy must not be what stops the record."""
        wanted = self._store.size_bytes()
        free = shutil.disk_usage(self._folder).free
        if free - wanted < self._settings.snapshot_free_bytes_min:
            raise OSError(f"the disk has {free} bytes left, and a copy of the tables takes {wanted} of them")

    def _link(self, path: Path) -> None:
        draft = self._folder / f"{LATEST}{_DRAFT}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(path.name)
        draft.replace(self._folder / LATEST)

    def _forget(self) -> None:
        """Remove all but the newest. Their names are their times."""
        found = sorted(path for path in self._folder.glob("*.duckdb") if not path.is_symlink())
        for old in found[: -self._settings.snapshots_kept]:
            old.unlink(missing_ok=True)


def _taken_at(name: str) -> str:
    """A snapshot's name is its time."""
    at = datetime.strptime(name, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fold(path: Path, memory_max_mb: int) -> None:
    """Take what stands in the copy's write-ahead log into the copy, so that it is one file."""
    wal = path.with_name(path.name + ".wal")
    if wal.exists():
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": "1",
            "memory_limit": f"{memory_max_mb}MB",
            "temp_directory": "",
        }
        try:
            with contextlib.closing(duckdb.connect(str(path), config=config)) as connection:
                connection.execute("checkpoint").fetchall()
        except duckdb.Error as error:
            raise OSError(f"the copy cannot be made one file: {error}") from error
        wal.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
