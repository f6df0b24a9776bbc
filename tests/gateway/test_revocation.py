"""Revoked means stopped: whatever the session does, its backend is gone, what it did not commit is undone, and others notice nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    GrantRevoked,
    Rule,
    SessionEndOrdered,
    SessionKilled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Warden  # type: ignore[import-not-found]

WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))


def _now() -> int:
    return time.time_ns() // 1000


def _revoke(warden: Warden, agent: str) -> None:
    warden.record(AgentRevoked(_now(), agent, "misbehaves", "olga"))


def _killed(warden: Warden, count: int = 1) -> list[SessionKilled]:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        found = [event for event in warden.session_events(SessionKilled) if isinstance(event, SessionKilled)]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError("no session was killed")


def _in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_an_idle_session_ends_with_57P01_and_the_reason(warden: Warden) -> None:
    warden.agent("bad")
    warden.agent("good")
    bad, good = warden.connect("bad"), warden.connect("good")
    bad.execute("SELECT 1")
    _revoke(warden, "bad")
    (killed,) = _killed(warden)
    assert 0 < killed.requested_us <= killed.decided_us
    assert killed.decided_us <= killed.client_closed_us
    assert killed.decided_us <= killed.backend_gone_us
    assert killed.backend_gone_us - killed.requested_us < 1_000_000
    with pytest.raises(psycopg.errors.AdminShutdown, match="misbehaves|revoked"):
        bad.execute("SELECT 1")
    assert good.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="revoked"):
        warden.connect("bad")
    warden.record(AgentReinstated(_now(), "bad", "explained", "olga"))
    warden.settle()
    with warden.connect("bad") as again:
        assert again.execute("SELECT 1").fetchone() == (1,)
    bad.close()
    good.close()


def test_an_insert_of_many_rows_leaves_none_behind_and_the_others_go_on(warden: Warden, database: object) -> None:
    warden.agent("bad", WRITE)
    warden.agent("good", WRITE)
    bad, good = warden.connect("bad"), warden.connect("good")
    thread, errors = _in_thread(
        lambda: bad.execute("INSERT INTO orders SELECT n, 1, 1, 'late' FROM generate_series(1000, 3000000) AS n")
    )
    time.sleep(0.4)
    answered = 0
    _revoke(warden, "bad")
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        good.execute("SELECT count(*) FROM customers" if False else "SELECT 1 FROM orders LIMIT 1")
        answered += 1
    thread.join(10)
    assert isinstance(errors[0], psycopg.errors.AdminShutdown)
    (killed,) = _killed(warden)
    assert killed.backend_gone_us
    assert killed.backend_gone_us - killed.requested_us < 1_000_000
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'late'").fetchone() == (0,)
    assert answered > 20
    warden.stop()
    (execution,) = [execution for execution in warden.executions("bad") if "INSERT" in execution.text]
    assert (execution.outcome, execution.sqlstate) in {("error", "57P01"), ("error", "57014")}
    bad.close()
    good.close()


def test_a_transaction_is_undone(warden: Warden, database: object) -> None:
    warden.agent("bad", WRITE)
    bad = warden.connect("bad")
    bad.execute("BEGIN")
    bad.execute("UPDATE orders SET note = 'late'")
    _revoke(warden, "bad")
    _killed(warden)
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'late'").fetchone() == (0,)
    bad.close()


def test_a_copy_is_undone(warden: Warden, database: object) -> None:
    warden.agent("bad", WRITE)
    bad = warden.connect("bad")

    def copy_on() -> None:
        with bad.cursor() as cursor, cursor.copy("COPY orders FROM STDIN") as copy:
            for number in range(1000, 10_000_000):
                copy.write_row((number, 1, 2.5, "late"))

    thread, errors = _in_thread(copy_on)
    time.sleep(0.4)
    _revoke(warden, "bad")
    thread.join(10)
    assert isinstance(errors[0], psycopg.Error)
    (killed,) = _killed(warden)
    assert killed.backend_gone_us - killed.requested_us < 1_000_000
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'late'").fetchone() == (0,)
    bad.close()


def test_a_client_that_does_not_read_cannot_keep_its_session(warden: Warden) -> None:
    warden.agent("bad")
    bad = warden.connect("bad")
    bad.pgconn.send_query(b"SELECT repeat('x', 1000) FROM orders a, orders b, orders c")
    time.sleep(0.5)
    _revoke(warden, "bad")
    (killed,) = _killed(warden)
    assert killed.backend_gone_us
    assert killed.backend_gone_us - killed.requested_us < 1_000_000
    bad.close()


def test_an_open_cursor_ends_with_its_session(warden: Warden) -> None:
    warden.agent("bad")
    bad = warden.connect("bad")
    bad.execute("BEGIN")
    bad.execute("DECLARE c CURSOR FOR SELECT id FROM orders")
    bad.execute("FETCH 5 FROM c")
    _revoke(warden, "bad")
    _killed(warden)
    with pytest.raises(psycopg.Error):
        bad.execute("FETCH 5 FROM c")
    bad.close()


def test_the_end_of_one_grant_ends_the_sessions_that_rest_on_it(warden: Warden) -> None:
    grant = warden.agent("bad")
    bad = warden.connect("bad")
    warden.record(GrantRevoked(_now(), grant, "bad", "olga", "no longer needed"))
    (killed,) = _killed(warden)
    assert killed.cause == "grant revoked"
    bad.close()


def test_a_grant_that_runs_out_ends_a_live_session(warden: Warden) -> None:
    warden.agent("bad", expires_at_us=_now() + 1_500_000)
    bad = warden.connect("bad")
    assert bad.execute("SELECT 1").fetchone() == (1,)
    (killed,) = _killed(warden)
    assert killed.cause == "grant expired"
    assert 0 <= killed.decided_us - killed.requested_us < 1_000_000
    bad.close()


def test_an_order_for_one_session_ends_that_session_alone(warden: Warden) -> None:
    warden.agent("bad")
    first, second = warden.connect("bad"), warden.connect("bad")
    sessions = {row["backend_pid"]: row["session"] for row in warden.status()["sessions"]}  # type: ignore[index,union-attr]
    session = sessions[first.info.backend_pid]
    warden.record(SessionEndOrdered(_now(), "o-1", session, "bad", "ordered", _now(), "by hand"), topic="commands")
    (killed,) = _killed(warden)
    assert killed.session == session
    assert second.execute("SELECT 1").fetchone() == (1,)
    first.close()
    second.close()


def test_a_retired_agent_never_comes_back(warden: Warden) -> None:
    warden.agent("bad")
    bad = warden.connect("bad")
    warden.record(AgentRetired(_now(), "bad", "offboarded", "olga"))
    _killed(warden)
    warden.record(AgentReinstated(_now(), "bad", "no", "olga"))
    warden.settle()
    with pytest.raises(psycopg.OperationalError, match="retired"):
        warden.connect("bad")
    bad.close()


@pytest.mark.slow
def test_many_sessions_end_within_a_second(warden: Warden) -> None:
    warden.agent("bad")
    connections = [warden.connect("bad") for _ in range(40)]
    _revoke(warden, "bad")
    killed = _killed(warden, 40)
    assert max(event.backend_gone_us - event.requested_us for event in killed) < 1_000_000
    assert all(event.backend_gone_us for event in killed)
    for connection in connections:
        connection.close()
