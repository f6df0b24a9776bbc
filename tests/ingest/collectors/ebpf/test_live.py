"""Real servers, real clients, every protocol: what was seen is exactly what the test knows that it ran."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable

import asyncpg
import psycopg
import pytest

from ingest.collectors.collector import digest
from ingest.events import SessionObserved, SessionUnobserved, StatementObserved
from tests.ingest.collectors.ebpf.conftest import Watched
from tests.ingest.collectors.ebpf.servers import Server, Wire

pytestmark = pytest.mark.slow

WaitFor = Callable[..., object]


def statements(watched: Watched, wait_for: WaitFor, application: str) -> list[StatementObserved]:
    """Of the sessions of that name, which are over, in order; nested ones left out."""

    def over() -> bool:
        sessions = sessions_of(watched, application)
        gone = {seen.session_id for seen in watched.look() if isinstance(seen, SessionUnobserved)}
        return bool(sessions) and {session.session_id for session in sessions} <= gone

    wait_for(over, 10)
    ids = {session.session_id for session in sessions_of(watched, application)}
    return [
        seen for seen in watched.seen if isinstance(seen, StatementObserved) and seen.session_id in ids and seen.source != "nested"
    ]


def sessions_of(watched: Watched, application: str) -> list[SessionObserved]:
    return [seen for seen in watched.look() if isinstance(seen, SessionObserved) and seen.application_name == application]


def told(seen: list[StatementObserved]) -> list[tuple[str, int, str]]:
    return [(one.text, one.rows, one.sqlstate) for one in seen]


def test_each_statement_of_the_simple_protocol_is_seen_once_with_its_own_text_rows_and_error(
    watched: Watched, wait_for: WaitFor
) -> None:
    with psycopg.connect(watched.server.dsn(application_name="simple"), autocommit=True) as connection:
        for text in (
            "select 1 -- a comment",
            "create temp table t (a int); insert into t values (1), (2), (3); ; update t set a = 0 where a > 1; drop table t",
            "select 1; -- between\n select generate_series(1, 4) ; ",
            "select 1; select 2/(select 0); select 3",
            "selec 1; select 2",
            "select * from nowhere",
            "begin",
            "savepoint s",
            "select 1/0",
            "select 2",
            "rollback",
            "copy (select generate_series(1, 7)) to stdout",
            "select 'ü€𝄞'",
            "  /* first */ select 5;",
        ):
            connection.pgconn.send_query(text.encode())
            while (result := connection.pgconn.get_result()) is not None:
                if result.status == psycopg.pq.ExecStatus.COPY_OUT:
                    while connection.pgconn.get_copy_data(0)[0] > 0:
                        pass
    seen = statements(watched, wait_for, "simple")
    assert told(seen) == [
        ("select 1 -- a comment", 1, ""),
        ("create temp table t (a int)", 0, ""),
        ("insert into t values (1), (2), (3)", 3, ""),
        ("update t set a = 0 where a > 1", 2, ""),
        ("drop table t", 0, ""),
        ("select 1", 1, ""),
        ("select generate_series(1, 4) ", 4, ""),
        ("select 1", 1, ""),
        ("select 2/(select 0)", -1, "22012"),
        ("selec 1; select 2", -1, "42601"),
        ("select * from nowhere", -1, "42P01"),
        ("begin", 0, ""),
        ("savepoint s", 0, ""),
        ("select 1/0", -1, "22012"),
        ("select 2", -1, "25P02"),
        ("rollback", 0, ""),
        ("copy (select generate_series(1, 7)) to stdout", 7, ""),
        ("select 'ü€𝄞'", 1, ""),
        ("  /* first */ select 5;", 1, ""),
    ]
    assert all(one.digest == digest(one.text.encode()) and one.text_bytes == len(one.text.encode()) for one in seen)
    assert [one.sequence for one in seen] == sorted({one.sequence for one in seen})
    assert all(one.query_id for one in seen if one.rows >= 0 and one.text.startswith("select"))
    assert watched.decoding.lost == 0


def test_each_execution_of_the_extended_protocol_is_seen_once(watched: Watched, wait_for: WaitFor) -> None:
    with psycopg.connect(watched.server.dsn(application_name="extended"), autocommit=True) as connection:
        connection.execute("select %s::int + 1", (1,))
        for number in range(3):
            connection.execute("select generate_series(1, %s)", (number,), prepare=True)
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("select %s::int", ("x",))
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("selec %s", (1,))
        with connection.pipeline():
            for number in range(4):
                connection.execute("select %s::int * 2", (number,))
        connection.execute("prepare p as select $1::int")
        connection.execute("execute p(5)")
        connection.execute("create temp table t (a int)")
        with connection.cursor().copy("copy t from stdin") as copy:
            for number in range(9):
                copy.write_row((number,))
        connection.execute("begin")
        connection.execute("declare c cursor for select * from t")
        connection.execute("fetch 4 from c")
        connection.execute("commit")
    assert told(statements(watched, wait_for, "extended")) == [
        ("select $1::int + 1", 1, ""),
        ("select generate_series(1, $1)", 0, ""),
        ("select generate_series(1, $1)", 1, ""),
        ("select generate_series(1, $1)", 2, ""),
        ("select $1::int", -1, "22P02"),
        ("selec $1", -1, "42601"),
        *[("select $1::int * 2", 1, "")] * 4,
        ("prepare p as select $1::int", 0, ""),
        ("execute p(5)", 1, ""),
        ("create temp table t (a int)", 0, ""),
        ("copy t from stdin", 9, ""),
        ("begin", 0, ""),
        ("declare c cursor for select * from t", 0, ""),
        ("fetch 4 from c", 4, ""),
        ("commit", 0, ""),
    ]


async def test_a_portal_that_is_read_in_pieces_is_one_execution(watched: Watched, wait_for: WaitFor) -> None:
    resumed = watched.decoding.resumed
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=watched.server.port,
        user="postgres",
        database="postgres",
        server_settings={"application_name": "portals"},
    )
    async with connection.transaction():
        cursor = await connection.cursor("select generate_series(1, 10)")
        assert len(await cursor.fetch(3)) == 3
        assert len(await cursor.fetch(3)) == 3
        other = await connection.cursor("select 'other'")
        assert len(await other.fetch(1)) == 1
        assert len(await cursor.fetch(100)) == 4
        failing = await connection.cursor("select 1 / (4 - n) from generate_series(1, 10) n")
        assert len(await failing.fetch(2)) == 2
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await failing.fetch(2)
    await connection.close()
    seen = await asyncio.to_thread(statements, watched, wait_for, "portals")
    assert [(one.text, one.rows, one.sqlstate, one.outcome_known) for one in seen if "savepoint" not in one.text.lower()] == [
        ("BEGIN;", 0, "", True),
        ("select generate_series(1, 10)", -1, "", False),
        ("select 'other'", -1, "", False),
        ("select generate_series(1, 10)", 10, "", True),  # the same, told again
        ("select 1 / (4 - n) from generate_series(1, 10) n", -1, "", False),
        ("select 1 / (4 - n) from generate_series(1, 10) n", -1, "22012", True),
        ("COMMIT;", 0, "", True),
    ]
    named = [(one.sequence, one.at_us, one.digest) for one in seen if one.text.startswith("select")]
    assert (named[2], named[4]) == (named[0], named[3])
    assert watched.decoding.resumed - resumed == 3


def test_what_was_prepared_before_the_probes_came_is_seen_with_its_text(server: Server, wait_for: WaitFor) -> None:
    wire = Wire(server.port, application_name="before")
    wire.send((b"P", b"s\0select 'prepared before'\0\0\0"), (b"S", b""))
    wire.until_ready()
    watched = Watched(server)
    wire.send((b"B", b"\0s\0\0\0\0\0\0\0"), (b"E", b"\0\0\0\0\0"), (b"S", b""))
    wire.until_ready()
    wire.close()
    try:
        assert told(statements(watched, wait_for, "before")) == [("select 'prepared before'", 1, "")]
    finally:
        watched.close()


def test_fast_path_calls_and_replication_commands_are_seen(watched: Watched, wait_for: WaitFor) -> None:
    wire = Wire(watched.server.port, application_name="fast")
    loid = (0).to_bytes(4, "big")
    call = (957).to_bytes(4, "big") + b"\0\1\0\1\0\1" + (4).to_bytes(4, "big") + loid + b"\0\1"  # lo_create(oid)
    wire.send((b"Q", b"begin\0"))
    wire.until_ready()
    wire.send((b"F", (715).to_bytes(4, "big") + call[4:]))
    assert [kind for kind, _ in wire.until_ready()] == [b"V", b"Z"]
    wire.send((b"Q", b"rollback\0"))
    wire.until_ready()
    wire.close()
    walsender = Wire(watched.server.port, application_name="walsender", replication="database")
    for text in (b"IDENTIFY_SYSTEM", b"select 1", b"DROP_REPLICATION_SLOT nowhere", b"SHOW port"):
        walsender.send((b"Q", text + b"\0"))
        walsender.until_ready()
    walsender.close()
    fast = statements(watched, wait_for, "fast")
    assert [(one.source, one.text, one.sqlstate) for one in fast] == [
        ("statement", "begin", ""),
        ("function call", "function 715", ""),
        ("statement", "rollback", ""),
    ]
    seen = statements(watched, wait_for, "walsender")
    assert [(one.source, one.text, one.sqlstate) for one in seen] == [
        ("replication", "IDENTIFY_SYSTEM", ""),
        ("statement", "select 1", ""),
        ("replication", "DROP_REPLICATION_SLOT nowhere", "42704"),
        ("replication", "SHOW port", ""),
    ]


def test_the_sql_of_functions_is_told_apart(watched: Watched, wait_for: WaitFor) -> None:
    with psycopg.connect(watched.server.dsn(application_name="nested"), autocommit=True) as connection:
        connection.execute("do $$ begin perform 41 + 1; execute 'create temp table inside (a int)'; end $$")
    statements(watched, wait_for, "nested")
    session = sessions_of(watched, "nested")[0].session_id
    seen = [one for one in watched.seen if isinstance(one, StatementObserved) and one.session_id == session]
    assert [(one.source, one.text) for one in seen] == [
        ("nested", "SELECT 41 + 1"),
        ("nested", "create temp table inside (a int)"),
        ("statement", "do $$ begin perform 41 + 1; execute 'create temp table inside (a int)'; end $$"),
    ]


def test_an_error_that_is_caught_is_none_and_one_that_is_thrown_again_keeps_its_code(watched: Watched, wait_for: WaitFor) -> None:
    with psycopg.connect(watched.server.dsn(application_name="caught"), autocommit=True) as connection:
        connection.execute("do $$ begin perform 1/0; exception when others then null; end $$")
        for body in (
            "begin perform 1/0; exception when others then begin perform 'x'::int; exception when others then null; end; raise; end",
            "begin raise exception 'own' using errcode = 'P0099'; end",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(f"do $$ {body} $$")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("set statement_timeout = 50; select pg_sleep(5)")
    assert [one.sqlstate for one in statements(watched, wait_for, "caught")] == ["", "22012", "P0099", "", "57014"]


def test_a_statement_whose_backend_is_ended_has_an_end(watched: Watched, wait_for: WaitFor) -> None:
    victim = psycopg.connect(watched.server.dsn(application_name="ended"), autocommit=True)
    victim.pgconn.send_query(b"select pg_sleep(60)")
    with psycopg.connect(watched.server.dsn(), autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", (victim.info.backend_pid,))
    victim.close()
    (seen,) = statements(watched, wait_for, "ended")
    assert (seen.text, seen.sqlstate, seen.outcome_known) == ("select pg_sleep(60)", "57P01", False)


def test_a_text_is_whole_up_to_the_limit_and_said_to_be_cut_beyond_it(watched: Watched, wait_for: WaitFor) -> None:
    limit = 16 * 4015
    lengths = [400, 430, 431, 432, 433, 4013, 4014, 4015, 4016, 4017, 20_000, 60_000, 64_000, 80_000]
    texts = ["select '" + "x" * (length - 9) + "'" for length in lengths]
    with psycopg.connect(watched.server.dsn(application_name="lengths"), autocommit=True) as connection:
        for text in texts:
            connection.pgconn.exec_(text.encode())
            connection.pgconn.exec_(f"select 1; {text} ; select 2".encode())
    seen = statements(watched, wait_for, "lengths")
    assert len(seen) == 4 * len(texts)
    for number, text in enumerate(texts):
        alone, first, piece, last = seen[4 * number : 4 * number + 4]
        assert (first.text, last.text) == ("select 1", "select 2")
        for one, whole in ((alone, text), (piece, text + " ")):
            if len(text) < limit:
                assert (one.text, one.digest, one.text_bytes) == (whole, digest(whole.encode()), len(whole))
            else:
                assert whole.startswith(one.text)
                assert limit - 1 <= len(one.text) <= limit  # the blank before the piece is not shown, and took its room
                assert (one.digest, one.text_bytes) == ("", len(one.text) + 1)


def test_who_connected_is_known_over_tcp_and_over_a_unix_socket(watched: Watched, wait_for: WaitFor) -> None:
    began = time.time_ns() // 1000
    for number, host in enumerate(("127.0.0.1", str(watched.server.home))):
        child = subprocess.Popen(
            ["psql", "-Xqt", watched.server.dsn(host=host, dbname="template1", application_name=f"who {number}"), "-c", "select 1"],
            stdout=subprocess.DEVNULL,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert child.wait(30) == 0
        statements(watched, wait_for, f"who {number}")
        (session,) = sessions_of(watched, f"who {number}")
        assert (session.user, session.database, session.client_uid) == ("postgres", "template1", 65534)
        assert session.client_exe.endswith("/psql")
        assert session.client_pid == child.pid
        assert began - 20_000 < session.client_start_us < time.time_ns() // 1000
        assert session.client_cgroup > 0
        assert session.client.startswith("127.0.0.1:") if number == 0 else session.client == "local"


def test_the_session_is_the_one_that_the_server_names(watched: Watched, wait_for: WaitFor) -> None:
    with psycopg.connect(watched.server.dsn(application_name="named"), autocommit=True) as connection:
        row = connection.execute(
            "select to_hex(trunc(extract(epoch from backend_start))::bigint) || '.' || to_hex(pid), "
            "(extract(epoch from backend_start) * 1000000)::bigint, client_port, pid from pg_stat_activity where pid = pg_backend_pid()"
        ).fetchone()
    statements(watched, wait_for, "named")
    (session,) = sessions_of(watched, "named")
    assert row == (session.session_id, session.at_us, int(session.client.rpartition(":")[2]), session.backend_pid)
    assert os.getpid() == session.client_pid
