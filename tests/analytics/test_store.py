from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from analytics.projections import attempts, schema
from analytics.projections.projection import Merge
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, ReadTooLong, Store, TablesBroken, TablesBusy, sum_query
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from tests.analytics.scenario import Writer, stamp


async def one_batch(log: SegmentLog, sessions: int = 3) -> Batch:
    gateway = Writer(log)
    for number in range(sessions):
        gateway.opened(stamp(f"s{number}", "reporter"))
    await gateway.write()
    follower = Follower(log, ("sessions",), {})
    frames = await follower.poll(100, 1.0)
    return Batch(frames, follower.offsets, follower.seen)


async def test_rows_and_offsets_survive_together(log: SegmentLog, settings: AnalyticsSettings) -> None:
    batch = await one_batch(log)
    store = Store.open(settings)
    store.ingest(batch)
    before = (store.offsets(), store.seen(), store.checksum())
    store.close()
    store = Store.open(settings)
    try:
        assert (store.offsets(), store.seen(), store.checksum()) == before
        assert store.offsets() == {("sessions", 0): 1}
        assert store.seen() == {("gw-1", "sessions", 0): (1, 0)}
        assert store.notice == ""
    finally:
        store.close()


async def test_a_batch_that_fails_leaves_nothing_behind(
    log: SegmentLog, settings: AnalyticsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await one_batch(log)
    store = Store.open(settings)
    failing = replace(attempts.PROJECTION, merge=(Merge(("stage_opened",), "select error('the disk is full')"),))
    try:
        empty = store.checksum()
        with monkeypatch.context() as patched:
            patched.setattr("analytics.store.PROJECTIONS", (*schema.PROJECTIONS, failing))
            with pytest.raises(TablesBroken, match="the disk is full"):
                store.ingest(batch)
        assert store.checksum() == empty
        store.ingest(batch)
        assert store.counts()["session_records"] == 3
    finally:
        store.close()


@pytest.mark.parametrize("table", ["executions", "session_records", "texts", "rates"])
def test_a_change_of_any_cell_changes_the_sum(store: Store, table: str) -> None:
    others = {
        "VARCHAR": ["'other'", "''", "null"],
        "BIGINT": ["-7", "0", "null"],
        "TIMESTAMP": ["timestamp '1999-01-01'", "null"],
        "VARCHAR[]": ["['', 'other']", "['other', '']", "['']", "[null]", "[]", "null"],
    }
    found = store.read(f"select column_name, data_type from duckdb_columns() where table_name = '{table}'", {}).rows
    lists = [str(column) for column, kind in found if kind == "VARCHAR[]"]
    for column, kind in found:
        sums = {}
        for value in (f'"{column}"', *others[str(kind)]):
            row = f'(select * replace ({value}::{kind} as "{column}") from (from {table} order by all limit 1))'
            ((cell,),) = store.read(f'select "{column}" from {row}', {}).rows
            ((_, sums[str(cell)]),) = store.read(sum_query(row, lists), {}).rows
        assert len(set(sums.values())) == len(sums) > 1, column


def test_a_second_process_is_told_who_holds_the_tables(settings: AnalyticsSettings) -> None:
    store = Store.open(settings)
    try:
        with pytest.raises(TablesBusy, match="ask it over HTTP"):
            Store.open(settings)
    finally:
        store.close()
    Store.open(settings).close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
async def test_a_damaged_file_is_set_aside_and_said_so(log: SegmentLog, settings: AnalyticsSettings, damage: str) -> None:
    store = Store.open(settings)
    store.ingest(await one_batch(log))
    store.close()
    path = settings.directory / "tables.duckdb"
    whole = path.read_bytes()
    path.write_bytes({"garbage": b"no database " * 5000, "truncated": whole[:10_000], "empty": b""}[damage])
    store = Store.open(settings)
    try:
        assert store.offsets() == {}
        assert "built anew from the log" in store.notice
    finally:
        store.close()
    assert (settings.directory / "tables.broken").exists()


async def test_tables_of_another_version_are_built_anew(
    log: SegmentLog, settings: AnalyticsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(settings)
    store.ingest(await one_batch(log))
    store.close()
    monkeypatch.setattr(schema, "REVISION", schema.REVISION + 1)
    store = Store.open(settings)
    try:
        assert store.offsets() == {}
        assert "another version" in store.notice
    finally:
        store.close()


def test_every_projection_has_a_part_in_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = schema.version()
    assert version == schema.version()
    monkeypatch.setattr(schema, "PROJECTIONS", schema.PROJECTIONS[:-1])
    assert schema.version() != version


async def test_unfinished_tables_are_built_anew(settings: AnalyticsSettings) -> None:
    settings.directory.mkdir(parents=True)
    made = duckdb.connect(str(settings.directory / "tables.duckdb"))
    made.execute("create table offsets (topic varchar)").fetchall()
    made.close()
    store = Store.open(settings)
    try:
        assert store.notice
        assert store.offsets() == {}
    finally:
        store.close()


async def test_starting_over_gives_empty_tables_that_take_rows(log: SegmentLog, settings: AnalyticsSettings) -> None:
    batch = await one_batch(log)
    store = Store.open(settings)
    try:
        store.ingest(batch)
        before = store.checksum()
        store.start_over("checksum of a block is wrong")
        assert store.offsets() == {}
        assert "checksum of a block is wrong" in store.notice
        store.ingest(batch)
        assert store.checksum() == before
    finally:
        store.close()


def test_a_read_that_takes_too_long_is_stopped_and_the_next_one_is_not(store: Store) -> None:
    began = time.monotonic()
    with pytest.raises(ReadTooLong):
        store.read("select count(*) from range(1000000000000)", {}, 0.2)
    assert time.monotonic() - began < 5
    assert store.read("select 1", {}, 0.2).rows == [(1,)]


def test_the_instance_reaches_no_file_and_cannot_be_unlocked(store: Store, tmp_path: Path) -> None:
    for sql in (
        "select * from read_text('/etc/hostname')",
        f"copy texts to '{tmp_path}/out.csv'",
        f"attach '{tmp_path}/other.duckdb'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "install httpfs",
    ):
        with pytest.raises(duckdb.Error):
            store.read(sql, {})
    assert list(tmp_path.glob("o*")) == []


def test_a_snapshot_holds_what_was_committed_and_is_a_whole_database(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    store.snapshot(copy)
    connection = duckdb.connect(str(copy), read_only=True)
    try:
        (count,) = connection.execute("select count(*) from statements").fetchall()
    finally:
        connection.close()
    assert count == (6,)


async def test_snapshots_are_whole_while_others_read_and_write(
    log: SegmentLog, settings: AnalyticsSettings, tmp_path: Path
) -> None:
    store = Store.open(settings)
    gateway = Writer(log)
    follower = Follower(log, ("sessions",), {})
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            store.read("select count(*), max(task) from session_records", {})

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for round_ in range(12):
            for number in range(40):
                gateway.opened(stamp(f"s{round_}-{number}", "reporter", task="t" * 100))
            await gateway.write()
            store.ingest(Batch(await follower.poll(100, 1.0), follower.offsets, follower.seen))
            copy = tmp_path / f"{round_}.duckdb"
            store.snapshot(copy)
            connection = duckdb.connect(str(copy), read_only=True)
            (count,) = connection.execute("select count(*) from session_records").fetchall()
            connection.close()
            assert count == ((round_ + 1) * 40,)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
        store.close()


def test_a_snapshot_does_not_end_the_lock_on_the_tables(store: Store, tmp_path: Path, told: AnalyticsSettings) -> None:
    # A lock of fcntl() ends when its process closes the file, whoever in it had opened it.
    import subprocess
    import sys

    store.snapshot(tmp_path / "copy.duckdb")
    other = subprocess.run(
        [sys.executable, "-c", f"import duckdb; duckdb.connect({str(told.directory / 'tables.duckdb')!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "lock" in other.stderr


def test_a_closed_store_says_so(settings: AnalyticsSettings) -> None:
    store = Store.open(settings)
    store.close()
    store.close()
    with pytest.raises(TablesBroken):
        store.read("select 1", {})
