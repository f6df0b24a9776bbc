from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from analytics.guarded_sql import GuardedSql, SqlAnswer, SqlRefusal
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from tests.analytics.scenario import Writer, stamp


@pytest.fixture
async def guarded(store: Store, told: AnalyticsSettings) -> AsyncIterator[GuardedSql]:
    guarded = GuardedSql(store, told)
    yield guarded
    await guarded.close()


async def rows(guarded: GuardedSql, sql: str) -> list[list[object]]:
    answer = await guarded.run(sql, "alice")
    assert isinstance(answer, SqlAnswer), answer
    found = json.loads(answer.body)["rows"]
    assert isinstance(found, list)
    return found


async def refusal(guarded: GuardedSql, sql: str) -> SqlRefusal:
    answer = await guarded.run(sql, "alice")
    assert isinstance(answer, SqlRefusal), sql
    return answer


async def test_a_select_is_answered_with_its_columns_and_types(guarded: GuardedSql) -> None:
    answer = await guarded.run("select agent, count(*) as n, max(started_at) as last_at from statements group by 1 order by 1", "a")
    assert isinstance(answer, SqlAnswer)
    body = json.loads(answer.body)
    assert body["columns"] == [
        {"name": "agent", "type": "VARCHAR"},
        {"name": "n", "type": "BIGINT"},
        {"name": "last_at", "type": "TIMESTAMP"},
    ]
    assert body["rows"] == [["loader", 3, "2026-11-18T11:09:40.006000Z"], ["reporter", 3, "2026-11-18T11:07:40.004000Z"]]
    assert body["truncated"] is False
    assert body["snapshot_at"].endswith("Z")


async def test_values_that_json_does_not_know_become_what_it_knows(guarded: GuardedSql) -> None:
    (row,) = await rows(
        guarded,
        """select null, true, 170141183460469231731687303715884105727, 1.5, 'nan'::double, '\\xAA'::blob, [1, 2], {'a': date '2026-01-02'},
            timestamptz '2026-01-02 03:04:05+01', interval 1 hour, 'é\u2028'""",
    )
    assert row[:9] == [
        None,
        True,
        170141183460469231731687303715884105727,
        1.5,
        "nan",
        "\\xaa",
        [1, 2],
        {"a": "2026-01-02"},
        "2026-01-02T02:04:05Z",
    ]
    assert row[10] == "é\u2028"


@pytest.mark.parametrize(
    "sql", ["from sessions", "table grants", "values (1), (2)", "with x as (select 1) select * from x", "select 1 --"]
)
async def test_every_form_of_a_select_is_one(guarded: GuardedSql, sql: str) -> None:
    assert await rows(guarded, sql)


WRITES = [
    "insert into texts values ('a')",
    "with x as (insert into texts by name select 'z' as session returning session) select * from x",
    "with x as (delete from texts returning session) select * from x",
    "with x as (update texts set text = '' returning session) select * from x",
    "select 1; delete from texts",
    "rollback; delete from texts",
    "commit; delete from texts",
    "delete from texts",
    "drop table texts",
    "create table evil (a int)",
    "create temp table evil (a int)",
    "create macro evil() as 1",
    "create sequence evil",
    "alter table texts add column a int",
    "truncate texts",
    "explain analyze delete from texts",
    "vacuum",
    "checkpoint",
    "select * from force_checkpoint()",
]
FILES = [
    "copy texts to '{out}'",
    "copy (select 1) to '{out}'",
    "export database '{out}'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_csv_auto('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from read_json('/etc/passwd')",
    "select * from read_parquet('/etc/passwd')",
    "select * from parquet_metadata('/etc/passwd')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from glob('/*')",
    "select * from '/etc/passwd'",
    'select * from "/etc/passwd"',
    "select * from read_text('/proc/self/environ')",
    "select * from read_text('http://127.0.0.1:1/')",
    "attach '{out}' as other",
    "attach ':memory:' as other",
    "detach tables",
    "select * from duckdb_secrets()",
    "create secret (type s3)",
]
SETTINGS = [
    "set enable_external_access = true",
    "set lock_configuration = false",
    "set threads = 8",
    "reset threads",
    "pragma memory_limit = '8GB'",
    "pragma database_list",
    "set variable a = 1",
    "use memory",
    "install httpfs",
    "load httpfs",
    "force install httpfs",
    "call enable_logging()",
    "select * from enable_logging()",
    "select getenv('HOME')",
    "select current_setting('no such thing')",
    "prepare p as select 1",
    "execute p",
    "begin",
    "rollback",
    "",
    ";",
    "-- nothing",
    "select $1",
    "select ?",
    "select 1 from no_such_table",
    "not sql at all",
    "select 'unterminated",
]


@pytest.mark.parametrize("hostile", [WRITES, FILES, SETTINGS], ids=["writes", "files", "settings"])
async def test_what_is_not_one_select_that_only_reads_the_tables_is_refused_and_changes_nothing(
    guarded: GuardedSql, store: Store, tmp_path: Path, hostile: list[str]
) -> None:
    before = store.checksum()
    out = tmp_path / "out"
    for sql in hostile:
        refused = await refusal(guarded, sql.replace("{out}", str(out)))
        assert refused.kind == "invalid", sql
        assert 0 < len(refused.reason) <= 500, sql
        assert "root:" not in refused.reason, sql
        assert not out.exists(), sql
        assert await rows(guarded, "select count(*) from texts") == [[4]], sql
    assert store.checksum() == before


async def test_the_worker_has_none_of_our_environment(guarded: GuardedSql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "canary-2718")
    await rows(guarded, "select 1")
    worker = guarded._worker
    assert worker is not None
    assert b"canary-2718" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert any(line.split()[:5] == ["Max", "file", "size", "0", "0"] for line in limits.splitlines())


async def test_an_answer_of_many_rows_is_cut(guarded: GuardedSql) -> None:
    answer = await guarded.run("select * from range(10_001)", "a")
    assert isinstance(answer, SqlAnswer)
    body = json.loads(answer.body)
    assert (len(body["rows"]), body["truncated"]) == (10_000, True)
    assert len(await rows(guarded, "select * from range(10_000)")) == 10_000


async def test_an_answer_of_many_bytes_is_cut(guarded: GuardedSql) -> None:
    answer = await guarded.run("select repeat('x', 100_000) from range(1000)", "a")
    assert isinstance(answer, SqlAnswer)
    assert len(answer.body) < 9 * 2**20
    assert json.loads(answer.body)["truncated"] is True


@pytest.mark.parametrize(
    "sql",
    [
        "with recursive r as (select 1 as a union all select a + 1 from r) select count(*) from r",
        "select count(*) from range(1000000000000)",
        "select count(*) from range(1000000) a, range(1000000) b",
    ],
)
async def test_a_query_without_an_end_is_interrupted(store: Store, told: AnalyticsSettings, sql: str) -> None:
    guarded = GuardedSql(store, AnalyticsSettings(told.directory, sql_seconds_max=1.0))
    began = time.monotonic()
    refused = await refusal(guarded, sql)
    assert refused.kind == "limit"
    assert "1 s" in refused.reason
    assert time.monotonic() - began < 20  # not until the query ends, which it never does
    assert await rows(guarded, "select 1") == [[1]]
    await guarded.close()


async def test_a_function_that_heeds_no_interrupt_is_ended_by_force(store: Store, told: AnalyticsSettings) -> None:
    guarded = GuardedSql(store, AnalyticsSettings(told.directory, sql_seconds_max=1.0))
    began = time.monotonic()
    refused = await refusal(guarded, "select levenshtein(repeat('ab', 200000), repeat('ba', 200000))")
    assert refused.kind == "limit"
    assert time.monotonic() - began < 20
    assert await rows(guarded, "select 1") == [[1]]
    await guarded.close()


@pytest.mark.parametrize(
    "sql",
    [
        "select repeat('x', 2000000000)",
        "select string_agg(repeat('x', 1000000)) from range(100000)",
        "select list(i) from range(1000000000) t(i)",
    ],
)
async def test_a_query_that_wants_much_memory_is_refused(store: Store, told: AnalyticsSettings, sql: str) -> None:
    guarded = GuardedSql(store, AnalyticsSettings(told.directory, sql_seconds_max=2.0))
    assert (await refusal(guarded, sql)).kind == "limit"
    assert await rows(guarded, "select 1") == [[1]]
    await guarded.close()


@pytest.mark.parametrize(
    "sql",
    [
        "select " + "(" * 30_000 + "1" + ")" * 30_000,
        "select * from " + "(from " * 8_000 + "texts" + ")" * 8_000,
        "select 1" + "+1" * 30_000,
    ],
)
async def test_deep_nesting_costs_one_query(guarded: GuardedSql, sql: str) -> None:
    refused = await refusal(guarded, sql)
    assert refused.kind in ("invalid", "limit")
    assert await rows(guarded, "select 1") == [[1]]


async def test_long_sql_is_refused_unread(guarded: GuardedSql) -> None:
    assert "65536 bytes" in (await refusal(guarded, "select 1 " + " " * 70_000)).reason


async def test_a_caller_has_one_query_at_a_time_and_the_line_has_an_end(store: Store, told: AnalyticsSettings) -> None:
    guarded = GuardedSql(store, AnalyticsSettings(told.directory, sql_waiting_max=2))
    slow = "select count(*) from range(200000000)"
    first = asyncio.create_task(guarded.run(slow, "alice"))
    await asyncio.sleep(0.05)
    again = await guarded.run("select 1", "alice")
    second = asyncio.create_task(guarded.run("select 2", "bob"))
    await asyncio.sleep(0)
    third = await guarded.run("select 3", "carol")
    assert isinstance(again, SqlRefusal)
    assert isinstance(third, SqlRefusal)
    assert (again.kind, third.kind) == ("busy", "busy")
    answers = await asyncio.gather(first, second)
    assert all(isinstance(answer, SqlAnswer) for answer in answers)
    await guarded.close()


async def test_a_caller_that_goes_away_leaves_no_answer_for_the_next(guarded: GuardedSql) -> None:
    await rows(guarded, "select 1")
    gone = asyncio.create_task(guarded.run("select 'not yours', count(*) from range(5000000000)", "alice"))
    await asyncio.sleep(0.05)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await rows(guarded, "select 'mine'") == [["mine"]]


async def test_a_worker_that_dies_is_replaced(guarded: GuardedSql) -> None:
    await rows(guarded, "select 1")
    worker = guarded._worker
    assert worker is not None
    worker.kill()
    await worker.wait()
    assert (await refusal(guarded, "select 1")).kind == "limit"
    assert await rows(guarded, "select 1") == [[1]]


async def test_what_was_committed_is_seen_once_the_copy_is_old_enough(log: SegmentLog, settings: AnalyticsSettings) -> None:
    settings = AnalyticsSettings(settings.directory, snapshot_age_seconds_min=0.0, snapshot_rest_factor=0)
    store = Store.open(settings)
    guarded = GuardedSql(store, settings)
    try:
        follower = Follower(log, ("sessions",), {})
        assert await rows(guarded, "select count(*) from sessions") == [[0]]
        gateway = Writer(log)
        gateway.opened(stamp("s", "reporter"))
        await gateway.write()
        store.ingest(Batch(await follower.poll(10, 1.0), follower.offsets, follower.seen))
        assert await rows(guarded, "select count(*) from sessions") == [[1]]
        assert len(list((settings.directory / "sql").glob("*.duckdb"))) == 1
    finally:
        await guarded.close()
        store.close()
    assert list((settings.directory / "sql").iterdir()) == []


async def test_a_copy_that_is_young_is_used_again(store: Store, told: AnalyticsSettings) -> None:
    guarded = GuardedSql(store, AnalyticsSettings(told.directory, snapshot_age_seconds_min=3600.0))
    first = await guarded.run("select 1", "a")
    store.commits += 1
    second = await guarded.run("select 1", "a")
    assert isinstance(first, SqlAnswer)
    assert isinstance(second, SqlAnswer)
    assert json.loads(first.body)["snapshot_at"] == json.loads(second.body)["snapshot_at"]
    await guarded.close()


async def test_a_store_that_cannot_be_copied_is_told(store: Store, told: AnalyticsSettings) -> None:
    guarded = GuardedSql(store, told)
    store.close()
    answer = await guarded.run("select 1", "a")
    assert isinstance(answer, SqlRefusal)
    assert answer.kind == "unavailable"
    await guarded.close()


async def test_no_worker_is_left_behind(store: Store, told: AnalyticsSettings) -> None:
    guarded = GuardedSql(store, told)
    await rows(guarded, "select 1")
    worker = guarded._worker
    assert worker is not None
    await guarded.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)
