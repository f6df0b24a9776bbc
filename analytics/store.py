"""The tables: rows and how far the log was read, in one transaction. All of it can be thrown away and read again from the log.

DuckDB lets one process hold a database, so the process that projects also answers. The instance is locked when it opens: it reaches
no file but its own, loads nothing, and its settings cannot be changed. Whatever runs SQL that we did not write gets a copy of the
file in a process of its own (`guarded_sql`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import duckdb
import msgspec

from analytics.projections.projection import MACROS, Row, Stage
from analytics.projections.schema import PROJECTIONS, STAGES, TABLES, VIEWS, version
from analytics.settings import AnalyticsSettings
from analytics.staging import staged
from ingest.events import Frame
from ingest.follow import Gap, Seen
from ingest.log import Partition, Record

Value: TypeAlias = object
"""What DuckDB returns: str, int, float, bool, datetime, list, None."""

_OFFSETS: Final = Stage("stage_offsets", {"topic": "VARCHAR", "partition": "BIGINT", "next_offset": "BIGINT", "at_us": "BIGINT"})
_WRITERS: Final = Stage(
    "stage_writers", {"writer": "VARCHAR", "topic": "VARCHAR", "partition": "BIGINT", "boot": "BIGINT", "seq": "BIGINT"}
)
_MISSING: Final = Stage(
    "stage_missing",
    {
        "topic": "VARCHAR",
        "partition": "BIGINT",
        "log_offset": "BIGINT",
        "writer": "VARCHAR",
        "boot": "BIGINT",
        "after_seq": "BIGINT",
        "seq": "BIGINT",
        "at_us": "BIGINT",
    },
)
_STAGES: Final = {**STAGES, **{stage.name: stage for stage in (_OFFSETS, _WRITERS, _MISSING)}}
_BOOKKEEPING: Final = (
    (
        "stage_offsets",
        """merge into offsets o using stage_offsets n on o.topic = n.topic and o.partition = n.partition
            when matched then update set next_offset = n.next_offset, recorded_at = coalesce(instant(n.at_us), o.recorded_at)
            when not matched then insert (topic, partition, next_offset, recorded_at)
                values (n.topic, n.partition, n.next_offset, instant(n.at_us))""",
    ),
    (
        "stage_writers",
        """merge into writers w using stage_writers n
            on w.writer = n.writer and w.topic = n.topic and w.partition = n.partition
            when matched then update set boot = n.boot, seq = n.seq
            when not matched then insert (writer, topic, partition, boot, seq)
                values (n.writer, n.topic, n.partition, n.boot, n.seq)""",
    ),
    (
        "stage_missing",
        """insert into missing_frames by name
            select * exclude (at_us), instant(at_us) as noticed_at from stage_missing""",
    ),
)
SUM_SECONDS_MAX: Final = 3600.0  # of one table

_FILE: Final = "tables.duckdb"
_NEW_FILE: Final = "tables.new.duckdb"
_LOCK: Final = "tables.lock"
STAGED_FOLDER: Final = "staged"  # beside new tables while they are made: what ingest_staged() reads


class TablesBusy(Exception):
    """Another process holds the tables."""


class TablesBroken(Exception):
    """The tables cannot be written or read any more; start_over() makes new ones, to be filled from the log."""


class ReadTooLong(Exception):
    """The read was stopped at its time limit."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a Follower returned, and where it stands after it."""

    frames: Sequence[tuple[Record, Frame]]
    offsets: Mapping[Partition, int]
    seen: Seen
    gaps: Sequence[Gap] = ()


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """As a Batch, of which other processes have made rows: Parquet files in STAGED_FOLDER, by stage, in the log's order."""

    files: Mapping[str, Sequence[Path]]
    rows: Mapping[str, Sequence[Row]]  # in addition
    times: Mapping[Partition, int]  # at_us of the newest record of each partition in this batch
    offsets: Mapping[Partition, int]
    seen: Seen
    gaps: Sequence[tuple[Gap, int]]  # and at_us of the record behind it


@dataclass(frozen=True, slots=True)
class Sum:
    """Of one table; equal contents give equal sums, in whatever order the rows lie."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Rows:
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    types: tuple[str, ...]  # DuckDB's, of the columns


class Store:
    """Every method blocks, and may be called from any thread. Writing is one at a time; reads go on meanwhile."""

    def __init__(self, settings: AnalyticsSettings, path: Path, lock_fd: int) -> None:
        self._settings = settings
        self._path = path
        self._lock_fd = lock_fd
        self._writing = threading.Lock()
        self._opening = threading.Lock()  # cursors are made by one thread at a time
        self._root: duckdb.DuckDBPyConnection
        self._writer: duckdb.DuckDBPyConnection
        self._open = False
        self.notice = ""
        self.commits = 0  # since it was opened

    @classmethod
    def open(cls, settings: AnalyticsSettings, *, fresh: bool = False) -> Store:
        """Take the tables of this directory. `notice` then says what had to be thrown away, if anything.

        With `fresh` new tables are made beside the old ones, which close() then replaces.

        Raises:
            TablesBusy: Another process holds them.
            OSError: The directory cannot be used.
        """
        settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(settings.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock_fd)
            raise TablesBusy(f"another process holds the tables in {settings.directory}; stop it, or ask it over HTTP") from error
        store = cls(settings, settings.directory / (_NEW_FILE if fresh else _FILE), lock_fd)
        try:
            store._open_or_replace(fresh)
        except BaseException:
            os.close(lock_fd)
            raise
        return store

    # -- what was read ---------------------------------------------------------------------------------------------------------

    def offsets(self) -> dict[Partition, int]:
        """The next offset to read of each partition; a partition that is not here was never read."""
        rows = self.read("select topic, partition, next_offset from offsets", {}).rows
        return {(str(topic), int(str(number))): int(str(offset)) for topic, number, offset in rows}

    def seen(self) -> Seen:
        rows = self.read("select writer, topic, partition, boot, seq from writers", {}).rows
        return {(str(w), str(t), int(str(p))): (int(str(boot)), int(str(seq))) for w, t, p, boot, seq in rows}

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def ingest(self, batch: Batch) -> None:
        """Rows and offsets, all or nothing.

        Raises:
            MemoryError: DuckDB's memory limit is reached; nothing was changed, and trying again later may do.
            TablesBroken: The tables take nothing any more.
        """
        times: dict[Partition, int] = {}
        at_us: dict[tuple[str, int, int], int] = {}
        for record, _ in batch.frames:
            times[record.topic, record.partition] = record.at_us
            at_us[record.topic, record.partition, record.offset] = record.at_us
        gaps = [(gap, at_us.get((gap.topic, gap.partition, gap.offset), 0)) for gap in batch.gaps]
        self.ingest_staged(StagedBatch({}, staged(batch.frames), times, batch.offsets, batch.seen, gaps))

    def ingest_staged(self, batch: StagedBatch) -> None:
        """As ingest()."""
        rows = {**batch.rows, **_bookkeeping(batch)}
        with self._writing:
            if not self._open:
                raise TablesBroken("the tables are closed")
            try:
                self._ingest({name: some for name, some in rows.items() if some}, batch.files)
            except duckdb.OutOfMemoryException as error:
                self._roll_back()
                raise MemoryError(str(error)) from error
            except duckdb.Error as error:
                self._roll_back()
                raise TablesBroken(str(error)) from error
            self.commits += 1

    def _ingest(self, rows: Mapping[str, Sequence[Row]], files: Mapping[str, Sequence[Path]]) -> None:
        run = self._writer.execute
        run("begin transaction").fetchall()
        filled = dict.fromkeys((*files, *rows), 0)
        for name, paths in files.items():
            filled[name] += int(run(_fill_from_files(_STAGES[name]), [[str(path) for path in paths]]).fetchall()[0][0])
        for name, some in rows.items():
            filled[name] += len(some)
            run(_fill(_STAGES[name]), [msgspec.json.encode(some).decode()]).fetchall()
        for projection in PROJECTIONS:
            for merge in projection.merge:
                if not any(filled.get(stage) for stage in merge.when):
                    continue
                changed = run(merge.sql).fetchall()
                if merge.fills:
                    filled[merge.fills] = filled.get(merge.fills, 0) + int(changed[0][0])
        for stage, sql in _BOOKKEEPING:
            if filled.get(stage):
                run(sql).fetchall()
        for name, count in filled.items():
            if count:
                run(_EMPTY[name]).fetchall()
        run("commit").fetchall()

    def _roll_back(self) -> None:
        with contextlib.suppress(duckdb.Error):
            self._writer.execute("rollback").fetchall()

    def start_over(self, reason: str) -> None:
        """Set these tables aside and begin with empty ones; the caller reads the log from offset 0.

        Raises:
            OSError, duckdb.Error: New tables cannot be made either.
        """
        with self._writing:
            self._close_connections()
            self._set_aside(reason)
            self._connect()

    def snapshot(self, destination: Path) -> None:
        """Copy the tables as of the last commit to this file, and its write-ahead log beside it.

        Raises:
            OSError: There is no room, or no leave, for the copy.
        """
        with self._writing:
            if not self._open:
                raise OSError("the tables are closed")
            # Fails while a read is under way; then the write-ahead log, copied too, has what the file has not.
            with contextlib.suppress(duckdb.Error):
                self._writer.execute("checkpoint").fetchall()
            wal = _wal(self._path)
            pairs = [(self._path, destination), *([(wal, _wal(destination))] if wal.exists() else [])]
            for source, target in pairs:
                os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # which cp leaves so
                # By another process: closing the file in this one would end DuckDB's lock on it (fcntl(2), F_SETLK: "all locks
                # are released when any file descriptor for the file is closed").
                done = subprocess.run(
                    ["/bin/cp", "--reflink=auto", "--", str(source), str(target)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise OSError(done.stderr.strip()[:500] or "cp failed")

    def size_bytes(self) -> int:
        """Of the tables' files."""
        return sum(path.stat().st_size for path in (self._path, _wal(self._path)) if path.exists())

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: Mapping[str, object], seconds_max: float = 60.0) -> Rows:
        """Run one of our own questions.

        Raises:
            ReadTooLong: It was stopped after `seconds_max`.
            MemoryError, TablesBroken: As ingest().
        """
        with self._opening:
            if not self._open:
                raise TablesBroken("the tables are closed")
            cursor = self._root.cursor()
        try:
            with _limited(cursor, seconds_max):
                cursor.execute(sql, dict(parameters))
                rows = cursor.fetchall()
                columns = tuple(column[0] for column in cursor.description or ())
            types = tuple(str(column[1]) for column in cursor.description or ())
            return Rows(columns, rows, types)
        except duckdb.InterruptException as error:
            raise ReadTooLong(f"stopped after {seconds_max:g} s") from error
        except duckdb.OutOfMemoryException as error:
            raise MemoryError(str(error)) from error
        except (duckdb.ConnectionException, duckdb.FatalException, duckdb.IOException, duckdb.InternalException) as error:
            raise TablesBroken(str(error)) from error
        finally:
            cursor.close()

    def sums(self) -> dict[str, Sum]:
        """Of every table."""
        found = {}
        for table in sorted(TABLES):
            lists = [str(name) for (name,) in self.read(_LISTS, {"table": table}).rows]
            ((rows, sum_),) = self.read(sum_query(table, lists), {}, SUM_SECONDS_MAX).rows
            found[table] = Sum(int(str(rows)), sha256(f"{rows} {sum_}".encode()).hexdigest()[:16])
        return found

    def checksum(self) -> str:
        """Over every row of every table: of equal contents and no others, but for chance (64 bits a row)."""
        return checksum(self.sums())

    def counts(self) -> dict[str, int]:
        counts = {}
        for table in sorted(TABLES):
            (row,) = self.read("select count(*) from $table".replace("$table", table), {}).rows
            counts[table] = int(str(row[0]))
        return counts

    def close(self) -> None:
        """Wait for what is being written, and release the files. Later calls raise."""
        with self._writing:
            if not self._open:
                return
            with contextlib.suppress(duckdb.Error):
                self._writer.execute("checkpoint").fetchall()
            self._close_connections()
            if self._path.name == _NEW_FILE and not _wal(self._path).exists():
                final = self._settings.directory / _FILE
                _wal(final).unlink(missing_ok=True)
                self._path.replace(final)
            os.close(self._lock_fd)

    def discard(self) -> None:
        """Close new tables that are not whole, and leave the old ones in their place."""
        with self._writing:
            self._close_connections()
            if self._path.name == _NEW_FILE:
                self._remove()
            os.close(self._lock_fd)

    # -- opening ---------------------------------------------------------------------------------------------------------------

    def _open_or_replace(self, fresh: bool) -> None:
        if fresh:
            self._remove()
        if not self._path.exists():
            self._connect()
            return
        try:
            self._connect()
            found = self._version()
        except duckdb.Error as error:
            self._close_connections()
            self._set_aside(str(error))
            self._connect()
            return
        if found != version():
            self._close_connections()
            self._remove()
            self._connect()
            kind = f"of another version of pgwarden ({found})" if found else "unfinished"
            self.notice = f"the tables were {kind}; they are built anew from the log"

    def _connect(self) -> None:
        """Open the file, and make the tables when there are none."""
        settings = self._settings
        fresh = self._path.name == _NEW_FILE
        self._root = duckdb.connect(
            str(self._path),
            config={
                "storage_compatibility_version": "v1.5.0",  # until 2.x has settled, and so that 1.5 can open the file
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",  # else a table's name could be a variable of this program
                "threads": str(settings.rebuild_threads if fresh else settings.threads),
                "memory_limit": f"{settings.rebuild_memory_max_mb if fresh else settings.memory_max_mb}MB",
                "temp_directory": "",
            },
        )
        try:
            if fresh:
                self._root.execute("set allowed_directories = [$1]", [f"{settings.directory / STAGED_FOLDER}/"]).fetchall()
            self._root.execute("set enable_external_access = false").fetchall()
            self._root.execute("set TimeZone = 'UTC'").fetchall()
            self._root.execute("set lock_configuration = true").fetchall()
            self._writer = self._root.cursor()
            made = self._writer.execute("select count(*) from duckdb_tables() where not temporary").fetchall()
            if made == [(0,)]:
                self._make()
            for stage in _STAGES.values():
                columns = ", ".join(f"{name} {kind}" for name, kind in stage.columns.items())
                self._writer.execute(f"create temp table {stage.name} ({columns})").fetchall()
        except BaseException:
            self._root.close()
            raise
        self._open = True

    def _make(self) -> None:
        run = self._writer.execute
        run("begin transaction").fetchall()
        for macro in MACROS:
            run(macro).fetchall()
        for name, columns in TABLES.items():
            run(f"create table {name} ({columns})").fetchall()
        for name, query in VIEWS.items():
            run(f"create view {name} as {query}").fetchall()
        run("create table meta (version VARCHAR)").fetchall()
        run("insert into meta values ($1)", [version()]).fetchall()
        run("commit").fetchall()

    def _version(self) -> str:
        """ "" when the tables are not whole."""
        try:
            rows = self.read("select version from meta", {}).rows
            self.offsets()
            self.seen()
        except duckdb.CatalogException:
            return ""
        return str(rows[0][0]) if rows else ""

    def _set_aside(self, reason: str) -> None:
        broken = self._path.with_suffix(".broken")  # one at most: it is kept for whoever wants to know why
        for source, target in ((self._path, broken), (_wal(self._path), _wal(broken))):
            target.unlink(missing_ok=True)
            if source.exists():
                source.replace(target)
        self.notice = f"the tables could not be read ({reason[:300]}); they are built anew from the log; the old ones are {broken}"

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        _wal(self._path).unlink(missing_ok=True)

    def _close_connections(self) -> None:
        with self._opening:
            if self._open:
                self._open = False
                self._writer.close()
                self._root.close()


def sum_query(source: str, lists: Sequence[str]) -> str:
    """Count and sum of the rows of a table or query, of whose columns these are lists.

    DuckDB's hash of a row is thirty times quicker than an MD5 of its text (measured). It takes an empty list, a list of one NULL
    and NULL for the same, so the lists' lengths go in beside it.
    """
    lengths = ", ".join(f'coalesce(len(t."{name}"), -1)' for name in lists) or "0"
    return f"select count(*), coalesce(sum(hash(t, {lengths})::hugeint), 0) from {source} t"  # noqa: S608


def checksum(sums: Mapping[str, Sum]) -> str:
    return sha256("\n".join(f"{table} {sum_.rows} {sum_.checksum}" for table, sum_ in sorted(sums.items())).encode()).hexdigest()


def _bookkeeping(batch: StagedBatch) -> dict[str, list[Row]]:
    return {
        "stage_offsets": [
            {"topic": topic, "partition": number, "next_offset": offset, "at_us": batch.times.get((topic, number), 0)}
            for (topic, number), offset in batch.offsets.items()
        ],
        "stage_writers": [
            {"writer": writer, "topic": topic, "partition": number, "boot": boot, "seq": seq}
            for (writer, topic, number), (boot, seq) in batch.seen.items()
        ],
        "stage_missing": [
            {
                "topic": gap.topic,
                "partition": gap.partition,
                "log_offset": gap.offset,
                "writer": gap.writer,
                "boot": gap.boot,
                "after_seq": gap.after_seq,
                "seq": gap.seq,
                "at_us": at_us,
            }
            for gap, at_us in batch.gaps
        ],
    }


def _fill(stage: Stage) -> str:
    """One JSON parameter, one statement: DuckDB 2.0.0 reads Arrow and pandas wrongly in places."""
    kinds = {name: [kind.removesuffix("[]")] if kind.endswith("[]") else kind for name, kind in stage.columns.items()}
    structure = msgspec.json.encode([kinds]).decode()
    columns = ", ".join(f'r."{name}"' for name in stage.columns)
    source = f"(select unnest(from_json($1::json, '{structure}')) as r)"
    return f"insert into {stage.name} select {columns} from {source}"  # noqa: S608


def _fill_from_files(stage: Stage) -> str:
    columns = ", ".join(f'"{name}"' for name in stage.columns)
    return f"insert into {stage.name} select {columns} from read_parquet($1::varchar[])"  # noqa: S608


_EMPTY: Final = {name: f"delete from {name}" for name in _STAGES}  # noqa: S608

_LISTS: Final = """
    select column_name from duckdb_columns() where table_name = $table and data_type like '%[]' order by column_index"""


@contextlib.contextmanager
def _limited(cursor: duckdb.DuckDBPyConnection, seconds_max: float) -> Iterator[None]:
    """Interrupt what the cursor runs after `seconds_max`, and never what it runs later."""
    guard = threading.Lock()
    over = False

    def interrupt() -> None:
        with guard:
            if not over:
                cursor.interrupt()

    timer = threading.Timer(seconds_max, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with guard:
            over = True
        timer.cancel()


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")
