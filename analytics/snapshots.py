"""Copies of the tables, each a whole DuckDB file of its own, for whoever wants to ask them in a program of theirs.

DuckDB lets one process have a file that is being written. A copy is made beside its place, made durable, and then put there: what
bears a snapshot's name is whole, whatever dies meanwhile, and who has an older one open keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from analytics.settings import AnalyticsSettings
from analytics.store import Store

FOLDER: Final = "snapshots"
LATEST: Final = "latest.duckdb"  # a link to the newest
RETRY_SECONDS: Final = 60.0  # after there was no room
_DRAFT: Final = ".draft"

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    path: Path
    size_bytes: int
    taken_at: str  # the tables as of this moment
    seconds: float  # that it took; the projector waited for most of it


class Snapshots:
    """One at a time; calls may overlap."""

    def __init__(self, store: Store, settings: AnalyticsSettings) -> None:
        self._store = store
        self._settings = settings
        self._folder = settings.directory / FOLDER
        self._one = asyncio.Lock()
        self._commits = -1  # of the store at the newest snapshot
        self._seconds = 0.0

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
        return Snapshot(path, size_bytes, taken_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"), self._seconds)

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
