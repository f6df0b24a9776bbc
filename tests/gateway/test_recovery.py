"""After a crash: what was left behind ends, and the record says of each execution what is known, once, and nothing that is not so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import psycopg.sql
import pytest

from ingest.events import (
    AgentRevoked,
    OutcomeResolved,
    Rule,
    SessionClosed,
    SessionEvent,
    SessionKilled,
    StatementFinished,
    StatementStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Database, Warden  # type: ignore[import-not-found]

WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))
SLOW = "INSERT INTO orders SELECT n, 1, 1, '{}' FROM generate_series(1000, 20000000) AS n"


def resolved(warden: Warden) -> dict[tuple[str, int], OutcomeResolved]:
    found: dict[tuple[str, int], OutcomeResolved] = {}
    for stamp, event in warden.events("statements"):
        if isinstance(event, OutcomeResolved):
            assert stamp is not None
            assert (stamp.session, event.execution) not in found, "resolved once"
            found[stamp.session, event.execution] = event
    return found


def send(connection: psycopg.Connection[tuple[object, ...]], text: str) -> None:
    connection.pgconn.send_query(text.encode())
    connection.pgconn.flush()


def backends(database: Database) -> int:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:
        found = direct.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgwarden/writer/%%' AND datname = %s",
            (database.name,),
        ).fetchone()
    assert found is not None
    return int(str(found[0]))


def running(database: Database, text: str) -> bool:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:
        found = direct.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND datname = %s AND pid <> pg_backend_pid()",
            (f"%{text}%", database.name),
        ).fetchone()
    assert found is not None
    return found[0] == 1


def recorded(warden: Warden, verb: str) -> bool:
    return any(execution.text.startswith(verb) for execution in warden.executions("writer"))


def closed(warden: Warden) -> list[SessionEvent]:
    return warden.session_events(SessionClosed)


def test_a_statement_in_a_transaction_is_resolved_as_aborted_and_its_session_closed(
    warden: Warden, database: Database, wait_for: Callable[..., object]
) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    connection.execute("BEGIN")
    connection.execute("UPDATE orders SET note = 'left' WHERE id = 1")
    send(connection, SLOW.format("left"))
    wait_for(lambda: running(database, "left") and recorded(warden, "INSERT"), 10)
    warden.kill9()
    warden.start()
    assert backends(database) == 0, "before anybody is let in"
    connection.close()
    warden.stop()
    executions = {execution.text.split()[0]: execution for execution in warden.executions("writer")}
    assert [executions[verb].outcome for verb in ("BEGIN", "UPDATE", "INSERT")] == ["ok", "ok", "unknown"]
    insert = executions["INSERT"]
    (resolution,) = resolved(warden).values()
    assert (resolution.execution, resolution.resolution) == (insert.number, "aborted")
    assert str(executions["BEGIN"].number) in resolution.evidence
    (end,) = closed(warden)
    assert isinstance(end, SessionClosed)
    assert (end.session, end.agent, end.reason, end.executions) == (insert.stamp.session, "writer", "gateway crashed", 3)
    with psycopg.connect(database.dsn) as direct:
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'left'").fetchone() == (0,)


def test_a_statement_outside_a_transaction_stays_unknown(
    warden: Warden, database: Database, wait_for: Callable[..., object]
) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    send(connection, SLOW.format("left"))
    wait_for(lambda: running(database, "left") and recorded(warden, "INSERT"), 10)
    warden.kill9()
    warden.start()
    warden.stop()
    connection.close()
    (execution,) = warden.executions("writer")
    assert execution.outcome == "unknown"
    assert resolved(warden) == {}
    assert len(closed(warden)) == 1


def test_an_idle_session_is_closed_and_nothing_else_is_recorded_of_it(warden: Warden, database: Database) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    connection.execute("SELECT 1")
    statements = len(warden.events("statements"))
    warden.kill9()
    warden.start()
    assert backends(database) == 0
    warden.kill9()
    warden.start()
    warden.stop()
    connection.close()
    assert len(warden.events("statements")) == statements
    assert len(closed(warden)) == 1, "by the first of the two starts"


def test_a_session_that_was_closed_is_not_looked_at_again(warden: Warden) -> None:
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        connection.execute("SELECT 1")
    warden.stop()
    before = warden.events("sessions"), warden.events("statements")
    warden.start()
    warden.stop()
    assert warden.events("statements") == before[1]
    assert [event.reason for event in closed(warden) if isinstance(event, SessionClosed)] == ["client"]


def test_a_revocation_that_was_due_is_what_ended_the_session(
    warden: Warden, wait_for: Callable[..., object], database: Database
) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    send(connection, SLOW.format("left"))
    wait_for(lambda: running(database, "left") and recorded(warden, "INSERT"), 10)
    assert warden.process is not None
    warden.process.send_signal(signal.SIGSTOP)  # it will not hear of it any more
    at_us = time.time_ns() // 1000
    warden.record(AgentRevoked(at_us, "writer", "misbehaves", "olga"))
    warden.kill9()
    warden.start()
    connection.close()
    (killed,) = warden.session_events(SessionKilled)
    assert isinstance(killed, SessionKilled)
    assert (killed.cause, killed.requested_us) == ("agent revoked", at_us)
    assert killed.backend_gone_us >= killed.requested_us
    assert len(closed(warden)) == 1
    assert warden.status()["identity_at_us"] == at_us
    with pytest.raises(psycopg.OperationalError, match="revoked"):
        warden.connect("writer")


@pytest.fixture
def paused_database(make_warden: Callable[..., Warden], database: Database) -> Iterator[tuple[Warden, Callable[[bool], None]]]:
    """A gateway whose database can be made unreachable: it goes through a port of ours."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    reachable = threading.Event()
    reachable.set()
    pairs: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if not reachable.is_set():
                client.close()
                continue
            server = socket.create_connection((database.host, database.port))
            pairs.extend((client, server))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()

    def reach(yes: bool) -> None:
        reachable.set() if yes else reachable.clear()

    warden = make_warden(start=False)
    config = warden.folder / "pgwarden.toml"
    config.write_text(config.read_text().replace(f"port = {database.port}\n", f"port = {port}\n"))
    warden.start()
    yield warden, reach
    warden.kill9()
    listener.close()
    for pair in pairs:
        pair.close()


def test_a_database_that_cannot_be_reached_is_asked_until_it_answers(
    paused_database: tuple[Warden, Callable[[bool], None]], wait_for: Callable[..., object]
) -> None:
    warden, reach = paused_database
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    known = int(str(warden.status()["identity_at_us"]))
    connection.execute("BEGIN")
    send(connection, SLOW.format("left"))
    wait_for(lambda: recorded(warden, "INSERT"))
    warden.kill9()
    reach(False)
    warden.start()
    revoked_us = time.time_ns() // 1000
    warden.record(AgentRevoked(revoked_us, "writer", "misbehaves", "olga"))
    time.sleep(0.3)  # it reads the log every few milliseconds; that it has read this it may not say
    status = warden.status()
    (session,) = status["unproven"]  # type: ignore[misc]
    assert status["identity_at_us"] == known, "what was revoked since may still run there"
    assert closed(warden) == []
    (execution,) = [execution for execution in warden.executions("writer") if "INSERT" in execution.text]
    assert execution.outcome == "unknown"
    reach(True)
    wait_for(lambda: not warden.status()["unproven"], 30)
    assert warden.status()["identity_at_us"] == revoked_us
    wait_for(lambda: len(closed(warden)) == 1)
    (killed,) = warden.session_events(SessionKilled)
    assert isinstance(killed, SessionKilled)
    assert (killed.session, killed.cause) == (session, "agent revoked")
    assert [resolution.resolution for resolution in resolved(warden).values()] == ["aborted"]
    connection.close()


@pytest.mark.parametrize("what", ["missing", "garbage", "another log's", "too far"])
def test_a_bookmark_that_does_not_fit_costs_time_and_nothing_else(warden: Warden, what: str) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    connection.execute("SELECT 1")
    bookmark = warden.folder / "state/run/gateway.bookmark"
    assert b'"sessions"' in bookmark.read_bytes()
    warden.kill9()
    if what == "missing":
        bookmark.unlink()
    elif what == "garbage":
        bookmark.write_bytes(b"\0{")
    elif what == "another log's":
        bookmark.write_bytes(
            b'{"gateway":"gateway-1","marks":[{"topic":"sessions","partition":0,"offset":2,"before":"00"},'
            b'{"topic":"statements","partition":0,"offset":1,"before":"00"}]}'
        )
    else:
        bookmark.write_bytes(
            b'{"gateway":"gateway-1","marks":[{"topic":"sessions","partition":0,"offset":999999,"before":""},'
            b'{"topic":"statements","partition":0,"offset":999999,"before":""}]}'
        )
    warden.start()
    connection.close()
    warden.stop()
    assert [event.reason for event in closed(warden) if isinstance(event, SessionClosed)] == ["gateway crashed"]


def test_a_session_older_than_the_bookmark_is_read_from_its_opening_on(
    warden: Warden, database: Database, wait_for: Callable[..., object]
) -> None:
    """The bookmark stays behind sessions that are open: BEGIN stands before the sessions that came and went since."""
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    connection.execute("BEGIN")
    for _ in range(5):
        with warden.connect("writer") as other:
            other.execute("SELECT 1")
    warden.kill9()
    warden.start()  # which finds the session, and writes a bookmark
    connection.close()
    connection = warden.connect("writer")
    connection.execute("BEGIN")
    send(connection, SLOW.format("left"))
    wait_for(lambda: running(database, "left") and recorded(warden, "INSERT"), 10)
    warden.kill9()
    warden.start()
    warden.stop()
    connection.close()
    assert [resolution.resolution for resolution in resolved(warden).values()] == ["aborted"]


@pytest.mark.faults
def test_a_recovery_that_is_killed_again_and_again_records_everything_once(
    warden: Warden, database: Database, wait_for: Callable[..., object]
) -> None:
    warden.agent("writer", WRITE)
    connections = [warden.connect("writer") for _ in range(8)]
    for number, connection in enumerate(connections):
        connection.execute("BEGIN")
        first = (number + 1) * 100_000_000
        send(connection, SLOW.format(f"left-{number}").replace("1000, 20000000", f"{first}, {first + 20_000_000}"))
    wait_for(lambda: all(running(database, f"left-{number}") for number in range(8)), 20)
    warden.kill9()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", "gateway", "-c", str(warden.folder / "pgwarden.toml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.3 + chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    warden.start()
    warden.stop()
    for connection in connections:
        connection.close()
    outcomes = Counter(execution.outcome for execution in warden.executions("writer"))
    assert outcomes == {"ok": 8, "unknown": 8}, f"seed {seed}"
    assert Counter(event.resolution for event in resolved(warden).values()) == {"aborted": 8}, f"seed {seed}"
    assert len(closed(warden)) == 8, f"seed {seed}"


@pytest.mark.faults
@pytest.mark.parametrize("answered", [False, True], ids=["while the statement runs", "before its answer is on disk"])
def test_a_commit_overtakes_no_record_that_its_transaction_would_be_missed_by(
    make_warden: Callable[..., Warden],
    database: Database,
    needs: Callable[[str, bool], None],
    wait_for: Callable[..., object],
    answered: bool,
) -> None:
    """While the disk is busy for seconds with somebody else's record, a COMMIT is sent without waiting, and the gateway dies."""
    needs("strace", shutil.which("strace") is not None)
    warden = make_warden(tls="optional", start=False)
    slow = ("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=2000000")
    warden.start(wrapper=slow)
    warden.agent("writer", WRITE)
    connection = warden.connect("writer", sslmode="disable", sslrootcert="", connect_timeout=60)
    other = warden.connect("writer", connect_timeout=60)
    with psycopg.connect(database.superuser_dsn) as direct:
        direct.execute("UPDATE orders SET note = 'other' WHERE id = 1")
        connection.execute("BEGIN")
        with socket.socket(fileno=os.dup(connection.fileno())) as raw:
            raw.sendall(query("UPDATE orders SET note = 'mine' WHERE id = 1"))
            wait_for(lambda: recorded(warden, "UPDATE"), 20)
            send(other, "SELECT 1")
            wait_for(lambda: warden.status()["log"]["pending_bytes"])  # type: ignore[index]
            time.sleep(0.1)  # the recorder's linger and some: its write has begun
            if answered:
                direct.rollback()
                wait_for(lambda: in_transaction(database), 10)
            raw.sendall(query("COMMIT"))
            if not answered:
                time.sleep(0.2)
                direct.rollback()
            time.sleep(0.4)
    warden.kill9()
    warden.start()
    connection.close()
    other.close()
    warden.stop()
    (update,) = [execution for execution in warden.executions("writer") if execution.text.startswith("UPDATE")]
    with psycopg.connect(database.dsn) as direct:
        stored = direct.execute("SELECT count(*) FROM orders WHERE note = 'mine'").fetchone() == (1,)
    assert update.outcome == "unknown"
    assert not stored, "the COMMIT waited"
    told = [event.resolution for event in resolved(warden).values() if event.execution == update.number]
    assert told == ["aborted"] or recorded(warden, "COMMIT"), "where the disk was done earlier than that, the COMMIT is on it"


def query(text: str) -> bytes:
    return b"Q" + struct.pack("!I", len(text.encode()) + 5) + text.encode() + b"\0"


def in_transaction(database: Database) -> bool:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:
        found = direct.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE 'UPDATE%%mine%%' AND datname = %s",
            (database.name,),
        ).fetchone()
    return found == (1,)


async def test_what_a_deferred_constraint_undoes_at_sync_is_recorded_as_aborted(
    make_warden: Callable[..., Warden], database: Database
) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:
        direct.execute("CREATE TABLE app.once (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        direct.execute(psycopg.sql.SQL("GRANT ALL ON app.once TO {}").format(psycopg.sql.Identifier(database.role)))
    warden = make_warden(tls="optional", start=False)
    await asyncio.to_thread(warden.start)
    await asyncio.to_thread(warden.agent, "writer", Rule("app", ("once",), ("select", "insert")))
    connection = await asyncpg.connect(
        host="127.0.0.1", port=warden.port, user="writer", password=warden.keys["writer"], database="shop", ssl=False
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO app.once VALUES ($1), ($1)", 1)
    assert await connection.fetchval("SELECT count(*) FROM app.once") == 0
    await connection.close()
    await asyncio.to_thread(warden.stop)
    (insert,) = [execution for execution in await asyncio.to_thread(warden.executions, "writer") if "INSERT" in execution.text]
    assert (insert.outcome, insert.tag) == ("ok", "INSERT 0 2")
    ((name, event),) = (await asyncio.to_thread(resolved, warden)).items()
    assert name == (insert.stamp.session, insert.number)
    assert event.resolution == "aborted"
    assert "the commit at Sync (23505)" in event.evidence


# -- held against a real PostgreSQL ----------------------------------------------------------------------------------------------


def _transaction(chance: random.Random, ids: Iterator[int]) -> list[str]:
    """The texts of one transaction, or of none: each INSERT has a row of its own."""

    def insert() -> str:
        number = next(ids)
        if chance.random() < 0.6:
            return f"INSERT INTO orders VALUES ({number}, 1, 1, 'd:{number}')"
        takes = chance.choice((20_000, 100_000, 400_000))  # so that something is under way when the gateway dies
        return f"INSERT INTO orders SELECT {number}, 1, 1, 'd:{number}' FROM generate_series(1, {takes}) AS n HAVING count(*) > 0"

    def body(count: int) -> list[str]:
        steps: list[str] = []
        for _ in range(count):
            steps.append(
                chance.choice(
                    (
                        insert(),
                        insert(),
                        insert(),
                        "SAVEPOINT s",
                        "ROLLBACK TO s",
                        "RELEASE s",
                        "INSERT INTO orders VALUES (1, 1, 1, 'exists')",
                        "SELECT count(*) FROM orders",
                        f"{insert()}; {insert()}",
                    )
                )
            )
        return steps

    end = chance.choice(("COMMIT", "COMMIT", "COMMIT", "END", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN"))
    match chance.randrange(6):
        case 0:
            return body(3)
        case 1:
            return [f"BEGIN; {insert()}; {insert()}; {end}"]
        case 2:
            return [f"{insert()}; BEGIN; {insert()}", *body(2), end]
        case 3:
            return ["BEGIN", f"{insert()}; {end}; {insert()}"]
        case _:
            return [chance.choice(("BEGIN", "START TRANSACTION")), *body(chance.randrange(1, 6)), end]


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["group", "strict"])
def test_what_is_resolved_as_aborted_is_absent_from_the_database(
    make_warden: Callable[..., Warden], database: Database, durability: str
) -> None:
    """Random transactions, simple, extended and pipelined; the gateway dies at random instants. Then the database is asked."""
    warden = make_warden(durability=durability, tls="optional")
    for number in range(4):
        warden.agent(f"agent-{number}", WRITE)
    seed = int(os.environ.get("PGWARDEN_SEED", "0")) or random.randrange(2**32)
    chance = random.Random(seed)
    ids = itertools.count(1_000)

    def work(number: int, own: random.Random, numbers: Iterator[int]) -> None:
        try:
            with warden.connect(f"agent-{number}", sslmode="disable", sslrootcert="") as connection:
                while True:
                    texts = [*_transaction(own, numbers), "ROLLBACK"]
                    try:
                        match own.randrange(3):
                            case 0:
                                _pipelined(connection, texts, own)
                            case 1:
                                _flood(connection, texts)
                            case _:
                                for text in texts:
                                    connection.execute(text.encode(), prepare=None if ";" not in text else False)
                    except psycopg.Error:
                        if connection.closed:
                            return
                        connection.execute("ROLLBACK")
        except (psycopg.Error, OSError):
            pass

    for _ in range(25):
        threads = []
        for number in range(4):
            start = next(ids) * 1_000_000
            own = random.Random(chance.random())
            threads.append(threading.Thread(target=work, args=(number, own, itertools.count(start))))
        for thread in threads:
            thread.start()
        time.sleep(0.05 + chance.random() * 0.4)
        warden.kill9()
        for thread in threads:
            thread.join()
        warden.start()
    warden.stop()

    with psycopg.connect(database.dsn) as direct:
        stored = {str(row[0]) for row in direct.execute("SELECT note FROM orders WHERE note LIKE 'd:%'")}
    by_name = {(execution.stamp.session, execution.number): execution for execution in warden.executions()}
    told = resolved(warden)
    claimed: Counter[str] = Counter()
    for name, event in told.items():
        execution = by_name[name]
        claimed[f"{execution.outcome} {event.resolution}"] += 1
        marks = {part.split("'")[0] for part in execution.text.split("'d:")[1:]}
        for mark in marks:
            assert f"d:{mark}" not in stored, f"seed {seed}: {execution.text} is stored, and recorded as {event}"
    begun = Counter(
        (stamp.session, event.execution)
        for stamp, event in warden.events("statements")
        if stamp and isinstance(event, StatementStarted)
    )
    ended = Counter(
        (stamp.session, event.execution)
        for stamp, event in warden.events("statements")
        if stamp and isinstance(event, StatementFinished)
    )
    assert begun == ended, f"seed {seed}: exactly one end each"
    assert claimed["unknown aborted"] > 0, f"seed {seed}: {claimed}"
    print(f"seed {seed}: {len(by_name)} executions, {len(stored)} rows stored, resolved {dict(claimed)}")


def _pipelined(connection: psycopg.Connection[tuple[object, ...]], texts: list[str], own: random.Random) -> None:
    with connection.pipeline() as pipeline:
        for text in texts:
            for part in text.split("; "):
                connection.execute(part)
            if own.random() < 0.2:
                time.sleep(own.random() * 0.01)
            if own.random() < 0.2:
                pipeline.sync()


def _flood(connection: psycopg.Connection[tuple[object, ...]], texts: list[str]) -> None:
    """As a client of the simple protocol may: all at once on the socket, and then it reads the answers."""
    with socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.setblocking(True)
        raw.sendall(b"".join(map(query, texts)))
        data = b""
        ready = 0
        while ready < len(texts):
            more = raw.recv(65536)
            if not more:
                raise psycopg.OperationalError("the gateway is gone")
            data += more
            while len(data) >= 5 and len(data) > (length := struct.unpack("!I", data[1:5])[0]):
                ready += data[:1] == b"Z"
                data = data[length + 1 :]
        raw.setblocking(False)
