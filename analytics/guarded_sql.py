"""One SELECT that somebody wrote comes in; its answer goes out as JSON, CSV, Arrow or Parquet, or a sentence that says why not.

It runs in a process of its own (`sql_worker`), on a copy of the tables: a query can then be ended whatever it is doing (measured: a
`levenshtein` of two long strings ignores an interrupt for minutes; half a million nested subqueries crash the parser), and the
memory and threads that it uses are not those of the projector and of enforcement. docs/audit.md lists the limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import duckdb
import msgspec

from analytics.answer_formats import Format
from analytics.settings import AnalyticsSettings
from analytics.store import Store, TablesBroken

Kind = Literal["invalid", "limit", "busy", "unavailable"]

_HEAD: Final = struct.Struct("!cII")  # outcome, rows, bytes
_WORKER: Final = Path(__file__).with_name("sql_worker.py")
_FOLDER: Final = "sql"
WITHHELD: Final = ("looks",)  # tables that the copies for SQL are without
_QUERIES_OF_A_WORKER_MAX: Final = 200
_START_SECONDS: Final = 20.0  # to import DuckDB, and Arrow where it is asked for, on a loaded machine
_GRACE_SECONDS: Final = 2.0  # beyond the worker's own limits


@dataclass(frozen=True, slots=True)
class SqlAnswer:
    body: bytes  # as JSON: {"columns": [{"name", "type"}], "truncated": bool, "snapshot_at": str, "rows": [[...]]}
    rows: int
    truncated: bool  # there were more
    snapshot_at: str  # when the tables were copied


@dataclass(frozen=True, slots=True)
class SqlRefusal:
    kind: Kind
    reason: str  # one sentence that says what to do


@dataclass(frozen=True, slots=True)
class _Snapshot:
    path: Path
    commits: int  # of the store when it was made
    made_at: str
    made: float  # monotonic
    seconds: float  # that copying took


class _Reply(msgspec.Struct):
    kind: Kind
    reason: str


class GuardedSql:
    """One query at a time, and one a caller; the others wait in a short line. Calls may overlap."""

    def __init__(self, store: Store, settings: AnalyticsSettings) -> None:
        self._store = store
        self._settings = settings
        self._callers: set[str] = set()
        self._one = asyncio.Lock()
        self._snapshot: _Snapshot | None = None
        self._number = 0
        self._worker: asyncio.subprocess.Process | None = None
        self._knows_arrow = False
        self._queries = 0
        self._closed = False

    async def run(self, sql: str, caller: str, kind: Format = "json") -> SqlAnswer | SqlRefusal:
        settings = self._settings
        if len(sql.encode("utf-8", "replace")) > settings.sql_bytes_max:
            return SqlRefusal("invalid", f"Send at most {settings.sql_bytes_max} bytes of SQL.")
        if caller in self._callers:
            return SqlRefusal("busy", "Your last query is still running; wait for its answer.")
        if len(self._callers) >= settings.sql_waiting_max:
            return SqlRefusal("busy", f"{len(self._callers)} queries are waiting; try again in a few seconds.")
        self._callers.add(caller)
        try:
            async with self._one:
                if self._closed:
                    return SqlRefusal("unavailable", "The API is shutting down.")
                try:
                    snapshot = await self._fresh_snapshot()
                    return await self._ask(sql, snapshot, kind)
                except (OSError, TablesBroken) as error:
                    return SqlRefusal("unavailable", f"The tables cannot be copied for a query now: {error}")
        finally:
            self._callers.discard(caller)

    async def close(self) -> None:
        self._closed = True
        async with self._one:
            await self._end_worker()
            if self._snapshot is not None:
                _remove(self._snapshot.path)
                self._snapshot = None

    # -- the copy --------------------------------------------------------------------------------------------------------------

    async def _fresh_snapshot(self) -> _Snapshot:
        old = self._snapshot
        now = time.monotonic()
        if old is not None:
            rest = max(self._settings.snapshot_age_seconds_min, old.seconds * self._settings.snapshot_rest_factor)
            if old.commits == self._store.commits or now - old.made < rest:
                return old
        self._number += 1
        new = await asyncio.to_thread(self._copy, self._number)
        self._snapshot = new
        if old is not None:
            _remove(old.path)
        return new

    def _copy(self, number: int) -> _Snapshot:
        folder = self._settings.directory / _FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        if number == 1:
            for left in folder.iterdir():  # by an earlier process that was killed
                left.unlink(missing_ok=True)
        path = folder / f"{number}.duckdb"
        began = time.monotonic()
        commits = self._store.commits
        made_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._store.snapshot(path)
            self._withhold(path)
        except (OSError, TablesBroken):
            _remove(path)
            raise
        return _Snapshot(path, commits, made_at, time.monotonic(), time.monotonic() - began)

    def _withhold(self, path: Path) -> None:
        """Take away what not everybody who may ask SQL may see: who looked at the record."""
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": "1",
            "memory_limit": f"{self._settings.memory_max_mb}MB",
            "temp_directory": "",
        }
        try:
            with contextlib.closing(duckdb.connect(str(path), config=config)) as connection:
                for table in WITHHELD:
                    connection.execute(f"drop table {table}").fetchall()
        except duckdb.Error as error:
            raise TablesBroken(f"the copy cannot be changed: {error}") from error

    # -- the worker ------------------------------------------------------------------------------------------------------------

    async def _ask(self, sql: str, snapshot: _Snapshot, kind: Format) -> SqlAnswer | SqlRefusal:
        settings = self._settings
        request = msgspec.json.encode(
            {
                "sql": sql,
                "format": kind,
                "path": str(snapshot.path),
                "snapshot_at": snapshot.made_at,
                "seconds_max": settings.sql_seconds_max,
                "rows_max": settings.sql_rows_max,
                "bytes_max": settings.sql_answer_bytes_max,
                "memory_max_mb": settings.sql_memory_max_mb,
            }
        )
        whole = False
        try:
            async with asyncio.timeout(_START_SECONDS + settings.sql_seconds_max + _GRACE_SECONDS):
                arrow = kind in ("arrow", "parquet")
                if arrow and not self._knows_arrow:
                    await self._end_worker()
                worker = self._worker or await self._start(arrow=arrow)
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(request + b"\n")
                await worker.stdin.drain()
                outcome, rows, size = _HEAD.unpack(await worker.stdout.readexactly(_HEAD.size))
                body = await worker.stdout.readexactly(size)
            whole = True
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            return SqlRefusal(
                "limit", f"The query was ended by force: it took more than {settings.sql_seconds_max:g} s or its memory."
            )
        finally:
            # Also when the caller went away meanwhile: an answer that nobody waited for must not be the next one's.
            self._queries += 1
            if not whole or self._queries >= _QUERIES_OF_A_WORKER_MAX:
                await self._end_worker()
        if outcome in (b"A", b"T"):
            return SqlAnswer(body, rows, outcome == b"T", snapshot.made_at)
        reply = msgspec.json.decode(body, type=_Reply)
        return SqlRefusal(reply.kind, reply.reason)

    async def _start(self, *, arrow: bool) -> asyncio.subprocess.Process:
        self._queries = 0
        self._knows_arrow = arrow
        self._worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_WORKER),
            *(["arrow"] if arrow else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},  # nothing of ours: a query could find a way to read it
            limit=2**16,
        )
        return self._worker

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await asyncio.shield(worker.wait())


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".wal").unlink(missing_ok=True)
