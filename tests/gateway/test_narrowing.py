"""A grant is narrowed while sessions are open. After the gateway's word nothing runs that the new one forbids, and the rest goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest

from ingest.events import (
    AllReinstated,
    AllRevoked,
    GrantApproved,
    GrantNarrowed,
    GrantRequested,
    GrantRevoked,
    IdentityEvent,
    Rule,
    Scope,
    SessionKilled,
    SessionRevoked,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Database, Warden  # type: ignore[import-not-found]

WIDE = Rule("public", ("orders", "customers"), ("select", "insert", "update", "delete", "copy"))
NARROW = Scope("shop", (Rule("public", ("customers",), ("select", "insert")),))
MANY = "INSERT INTO orders SELECT n, 1, 1, 'late' FROM generate_series(1000, 20000000) AS n"


def acknowledged(warden: Warden, *events: IdentityEvent) -> float:
    """Record these and wait for the gateway's word that it acts on them; return how long that took."""
    began = time.monotonic()
    warden.record(*events)
    newest = max(event.at_us for event in events)
    until = time.monotonic() + 20
    while int(str(warden.status()["identity_at_us"])) < newest:
        assert time.monotonic() < until, warden.status()
        time.sleep(0.002)
    return time.monotonic() - began


def narrow(warden: Warden, grant: str) -> float:
    return acknowledged(warden, GrantNarrowed(now(), grant, "writer", NARROW, "olga", "orders is none of its business"))


def now() -> int:
    return time.time_ns() // 1000


def kills(warden: Warden, count: int = 0) -> list[SessionKilled]:
    """The proof is there before the word; it stands in the log some milliseconds later."""
    until = time.monotonic() + 10
    while True:
        found = [event for event in warden.session_events(SessionKilled) if isinstance(event, SessionKilled)]
        if len(found) >= count or time.monotonic() > until:
            return found
        time.sleep(0.02)


class Orders:
    """What PostgreSQL itself says of the table, over a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._direct = psycopg.connect(database.superuser_dsn, autocommit=True)
        self._name = database.name

    def locks(self) -> int:
        """Sessions of agents that hold or await a lock on `orders`: whatever reads or writes it does."""
        found = self._direct.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'orders'::regclass"
            " AND a.application_name LIKE 'pgwarden/writer/%%' AND a.datname = %s",
            (self._name,),
        ).fetchone()
        assert found is not None
        return int(str(found[0]))

    def late(self) -> int:
        found = self._direct.execute("SELECT count(*) FROM orders WHERE note = 'late'").fetchone()
        assert found is not None
        return int(str(found[0]))

    def close(self) -> None:
        self._direct.close()


@pytest.fixture
def orders(database: Database) -> object:
    made = Orders(database)
    yield made
    made.close()


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_long_insert_is_undone_before_the_word_and_another_session_notices_nothing(
    warden: Warden, orders: Orders, wait_for: Callable[..., object]
) -> None:
    grant = warden.agent("writer", WIDE)
    with warden.connect("writer") as busy, warden.connect("writer") as idle:
        thread, errors = in_background(lambda: busy.execute(MANY))
        wait_for(lambda: orders.locks() > 0)
        narrow(warden, grant)
        assert orders.locks() == 0
        assert orders.late() == 0
        thread.join(10)
        assert isinstance(errors[0], psycopg.errors.AdminShutdown)
        assert "no longer allowed" in str(errors[0])
        (killed,) = kills(warden, 1)
        assert killed.cause == "grant narrowed"
        assert 0 < killed.requested_us <= killed.decided_us <= killed.backend_gone_us
        assert idle.execute("SELECT count(*) FROM customers").fetchone() == (10,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            idle.execute("SELECT count(*) FROM orders")
        assert idle.execute("SELECT 1").fetchone() == (1,)


def test_a_copy_into_it_is_undone_before_the_word(warden: Warden, orders: Orders, wait_for: Callable[..., object]) -> None:
    grant = warden.agent("writer", WIDE)
    with warden.connect("writer") as busy:

        def copy_on() -> None:
            with busy.cursor() as cursor, cursor.copy("COPY orders FROM STDIN") as copy:
                for number in range(1000, 100_000_000):
                    copy.write_row((number, 1, 2.5, "late"))

        thread, errors = in_background(copy_on)
        wait_for(lambda: orders.locks() > 0)
        narrow(warden, grant)
        assert orders.locks() == 0
        assert orders.late() == 0
        thread.join(10)
        assert errors


def test_a_copy_out_of_it_that_nobody_reads_ends_before_the_word(
    warden: Warden, orders: Orders, wait_for: Callable[..., object]
) -> None:
    grant = warden.agent("writer", WIDE)
    busy = warden.connect("writer")
    busy.pgconn.send_query(b"COPY (SELECT repeat('x', 1000) FROM orders a, orders b, orders c) TO STDOUT")
    busy.pgconn.flush()
    wait_for(lambda: orders.locks() > 0)
    narrow(warden, grant)
    assert orders.locks() == 0
    busy.close()


def test_an_open_cursor_and_a_prepared_statement_give_no_more_and_the_session_goes_on(warden: Warden, orders: Orders) -> None:
    grant = warden.agent("writer", WIDE)
    with warden.connect("writer") as connection:
        connection.execute("PREPARE p AS SELECT note FROM orders")
        connection.execute("BEGIN")
        connection.execute("DECLARE c CURSOR FOR SELECT note FROM orders")
        assert len(connection.execute("FETCH 5 FROM c").fetchall()) == 5
        narrow(warden, grant)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="orders"):
            connection.execute("FETCH 5 FROM c")
        connection.execute("ROLLBACK")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="orders"):
            connection.execute("EXECUTE p")
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == (10,)
    assert kills(warden) == []


def test_a_suspended_portal_gives_no_more_rows(make_warden: Callable[..., Warden]) -> None:
    warden = make_warden(tls="optional")
    grant = warden.agent("writer", WIDE)

    async def talk() -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=warden.port, user="writer", password=warden.keys["writer"], database="shop", ssl=False
        )
        async with connection.transaction():
            cursor = await connection.cursor("SELECT note FROM orders")
            assert len(await cursor.fetch(3)) == 3
            await asyncio.to_thread(narrow, warden, grant)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await cursor.fetch(3)
            await connection.execute("ROLLBACK")
            await connection.execute("BEGIN")
        assert await connection.fetchval("SELECT count(*) FROM customers") == 10
        await connection.close()

    asyncio.run(talk())
    assert kills(warden) == []


@pytest.mark.slow
def test_in_pipelines_half_way_nothing_of_it_is_read_or_written_after_the_word(
    warden: Warden, database: Database, orders: Orders, wait_for: Callable[..., object]
) -> None:
    """Pipelines of Parse, Bind, Execute against both tables run on while the grant is narrowed: the marks tell what ran when."""
    grant = warden.agent("writer", WIDE)
    stop = threading.Event()

    def pipeline(number: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                with warden.connect("writer") as connection:
                    while not stop.is_set():
                        with connection.pipeline():
                            for _ in range(5):
                                count += 1
                                connection.execute("INSERT INTO orders VALUES (%s, 1, 1, 'late')", (number * 1_000_000 + count,))
                                connection.execute("SELECT count(*) FROM orders")
                                connection.execute("SELECT count(*) FROM customers")
            except psycopg.Error:
                pass

    threads = [threading.Thread(target=pipeline, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: orders.late() > 20, 20)
    narrow(warden, grant)
    at_the_word = orders.late()
    looked = [orders.locks() for _ in range(300)]
    stop.set()
    for thread in threads:
        thread.join(20)
    assert orders.late() == at_the_word
    assert max(looked) == 0


def test_a_statement_of_the_old_verdict_that_waits_for_a_lock_ends_before_the_word(
    warden: Warden, database: Database, orders: Orders, wait_for: Callable[..., object]
) -> None:
    grant = warden.agent("writer", WIDE)
    with warden.connect("writer") as busy, psycopg.connect(database.superuser_dsn) as direct:
        direct.execute("UPDATE orders SET note = note WHERE id = 1")
        thread, errors = in_background(lambda: busy.execute("UPDATE orders SET note = 'late' WHERE id = 1"))
        wait_for(lambda: orders.locks() > 0)
        narrow(warden, grant)
        direct.rollback()
        thread.join(10)
        assert isinstance(errors[0], psycopg.errors.AdminShutdown)
        assert orders.late() == 0


def test_one_of_two_grants_that_is_revoked_ends_the_session_and_the_other_opens_a_new_one(warden: Warden) -> None:
    first = warden.agent("writer", WIDE)
    second = Scope("shop", (Rule("public", ("customers",), ("select",)),))
    acknowledged(
        warden,
        GrantRequested(now(), "g-second", "writer", second, 0, "test", "olga"),
        GrantApproved(now(), "g-second", "writer", "oscar", 0),
    )
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        acknowledged(warden, GrantRevoked(now(), first, "writer", "olga", "no longer"))
        with pytest.raises(psycopg.errors.AdminShutdown, match="no longer"):
            connection.execute("SELECT 1")
    with warden.connect("writer") as again:
        assert again.execute("SELECT count(*) FROM customers").fetchone() == (10,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            again.execute("SELECT count(*) FROM orders")


# -- revocations that concern more than an agent -----------------------------------------------------------------------------------


def test_everything_revoked_ends_everybody_until_it_is_reinstated(warden: Warden) -> None:
    for name in ("first", "second"):
        warden.agent(name)
    first, second = warden.connect("first"), warden.connect("second")
    at_us = now()
    acknowledged(warden, AllRevoked(at_us, "break glass", "olga"))
    found = kills(warden, 2)
    assert {(killed.agent, killed.cause, killed.requested_us) for killed in found} == {
        ("first", "all revoked", at_us),
        ("second", "all revoked", at_us),
    }
    assert all(killed.backend_gone_us >= at_us for killed in found), "proven before the word"
    for connection in (first, second):
        with pytest.raises(psycopg.errors.AdminShutdown, match="break glass"):
            connection.execute("SELECT 1")
        connection.close()
    with pytest.raises(psycopg.OperationalError, match="all revoked") as refusal:
        warden.connect("first")
    assert "break glass" not in str(refusal.value), "the reason is for the record"
    acknowledged(warden, AllReinstated(now(), "drill over", "olga"))
    with warden.connect("first") as again:
        assert again.execute("SELECT 1").fetchone() == (1,)


def test_one_session_revoked_ends_alone_and_its_agent_opens_another(warden: Warden) -> None:
    warden.agent("bad")
    with warden.connect("bad") as other, warden.connect("bad") as connection:
        rows: list[dict[str, object]] = warden.status()["sessions"]  # type: ignore[assignment]
        (session,) = [row["session"] for row in rows if row["backend_pid"] == connection.info.backend_pid]
        acknowledged(warden, SessionRevoked(now(), str(session), "bad", "stuck", "olga"))
        with pytest.raises(psycopg.errors.AdminShutdown, match="stuck"):
            connection.execute("SELECT 1")
        assert other.execute("SELECT 1").fetchone() == (1,)
        with warden.connect("bad") as again:
            assert again.execute("SELECT 1").fetchone() == (1,)
    (killed,) = kills(warden, 1)
    assert (killed.session, killed.cause) == (session, "session revoked")


def test_the_word_waits_for_the_proof(warden: Warden, wait_for: Callable[..., object]) -> None:
    """It is told only once the backend is gone, and the record's own times show it."""
    warden.agent("writer", WIDE)
    for round_ in range(5):
        with warden.connect("writer") as busy:
            thread, _ = in_background(lambda busy=busy: busy.execute(MANY))  # type: ignore[misc]
            wait_for(lambda: any(row["state"] == "active" for row in warden.status()["sessions"]))  # type: ignore[union-attr,index]
            session = warden.status()["sessions"][0]["session"]  # type: ignore[index]
            at_us = now()
            before_us = at_us
            warden.record(SessionRevoked(at_us, str(session), "writer", "enough", "olga"))
            while int(str(warden.status()["identity_at_us"])) < at_us:
                assert now() - before_us < 10_000_000
            word_us = now()
            thread.join(10)
        (killed,) = [killed for killed in kills(warden, round_ + 1) if killed.session == session]
        assert killed.backend_gone_us <= word_us


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [100])
def test_everything_revoked_ends_many_sessions_at_once(warden: Warden, sessions: int) -> None:
    warden.agent("bad")
    connections = [warden.connect("bad") for _ in range(sessions)]
    acknowledged(warden, AllRevoked(now(), "drill", "olga"))
    found = kills(warden, sessions)
    assert len(found) == sessions
    assert max(killed.backend_gone_us - killed.requested_us for killed in found) < 2_000_000
    for connection in connections:
        connection.close()
