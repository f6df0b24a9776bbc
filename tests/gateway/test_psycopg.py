"""psycopg through a real gateway to a real PostgreSQL, and what the record says of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from ingest.events import Rule, SessionClosed, SessionDenied, SessionOpened, StatementCancelled, StatementParameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Warden  # type: ignore[import-not-found]

ORDERS = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))


def test_an_allowed_statement_returns_rows_and_is_recorded_with_its_outcome(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter", options="-c pgwarden.task=T-7") as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (100,)
        pid = connection.info.backend_pid
    warden.stop()
    (execution,) = warden.executions("reporter")
    assert execution.text == "SELECT count(*) FROM orders"
    assert (execution.decision, execution.outcome, execution.rows, execution.tag) == ("allow", "ok", 1, "SELECT 1")
    assert execution.stamp.backend_pid == pid
    assert execution.stamp.task == "T-7"
    assert execution.stamp.unverified == ("task",)
    assert execution.stamp.approvers == ("oscar",)
    opened, closed = warden.session_events(SessionOpened, SessionClosed)
    assert isinstance(opened, SessionOpened)
    assert opened.tls.startswith("TLSv1.")
    assert isinstance(closed, SessionClosed)
    assert closed.reason == "client"


def test_the_server_sees_the_stamp(warden: Warden) -> None:
    warden.agent("reporter", introspection=True)
    with warden.connect("reporter", application_name="mine") as connection:
        assert connection.execute("SHOW pgwarden.agent").fetchone() == ("reporter",)
        name = connection.execute("SHOW application_name").fetchone()
        assert name is not None
        assert str(name[0]).startswith("pgwarden/reporter/")


def test_a_refused_statement_never_reaches_the_server_and_the_session_goes_on(warden: Warden, postgres: object) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"secrets"):
            connection.execute("SELECT secret AS marker_4711 FROM secrets")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM orders WHERE id = %s", (1,))
        assert connection.execute("SELECT 2").fetchone() == (2,)
    warden.stop()
    assert not [entry for entry in postgres.log_entries() if "marker_4711" in str(entry)]  # type: ignore[attr-defined]
    assert [(execution.decision, execution.sqlstate) for execution in warden.executions()] == [
        ("deny", "42501"),
        ("allow", ""),
        ("deny", "42501"),
        ("allow", ""),
    ]


def test_a_refusal_inside_a_transaction_fails_the_transaction_as_postgres_would(warden: Warden) -> None:
    warden.agent("writer", ORDERS)
    with warden.connect("writer") as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE orders SET note = 'x' WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM secrets")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1 FROM orders")
        connection.execute("ROLLBACK")
        assert connection.execute("SELECT note FROM orders WHERE id = 1").fetchone() == ("note 1",)


def test_a_savepoint_survives_a_refusal(warden: Warden) -> None:
    warden.agent("writer", ORDERS)
    with warden.connect("writer") as connection, connection.transaction():
        connection.execute("UPDATE orders SET note = 'kept' WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute("SELECT * FROM secrets")
        assert connection.execute("SELECT note FROM orders WHERE id = 1").fetchone() == ("kept",)


def test_a_refusal_in_a_pipeline_skips_what_follows_up_to_the_sync(warden: Warden) -> None:
    warden.agent("writer", ORDERS)
    with warden.connect("writer") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.pipeline():
            connection.execute("UPDATE orders SET note = 'one' WHERE id = 1")
            connection.execute("SELECT * FROM secrets")
            connection.execute("UPDATE orders SET note = 'two' WHERE id = 2")
        assert connection.execute("SELECT note FROM orders WHERE id < 3 ORDER BY id").fetchall() == [("note 1",), ("note 2",)]
        with connection.pipeline() as pipeline:
            first = connection.execute("SELECT 1")
            pipeline.sync()
            second = connection.execute("SELECT amount FROM orders WHERE id = %s", (2,))
        assert first.fetchone() == (1,)
        assert second.fetchone() is not None


def test_statements_after_an_error_in_a_pipeline_are_recorded_as_skipped(warden: Warden) -> None:
    warden.agent("writer", ORDERS)
    with warden.connect("writer") as connection, pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
        connection.execute("SELECT 1")
        connection.execute("SELECT 1/0")
        connection.execute("SELECT 3")
    warden.stop()
    assert [(execution.text, execution.outcome, execution.sqlstate) for execution in warden.executions()][:3] == [
        ("SELECT 1", "ok", ""),
        ("SELECT 1/0", "error", "22012"),
        ("SELECT 3", "skipped", ""),
    ]


def test_each_statement_of_a_query_string_is_an_execution_of_its_own(warden: Warden) -> None:
    warden.agent("writer", ORDERS)
    with warden.connect("writer") as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute(b"UPDATE orders SET note = 'a' WHERE id < 4; SELECT 1/0; SELECT 2")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(b"SELECT 1; COMMIT; DROP TABLE orders")
    warden.stop()
    executions = warden.executions()
    assert [(execution.text.strip(), execution.outcome, execution.rows) for execution in executions[:3]] == [
        ("UPDATE orders SET note = 'a' WHERE id < 4", "ok", 3),
        ("SELECT 1/0", "error", 0),
        ("SELECT 2", "skipped", 0),
    ]
    assert executions[3].decision == "deny"


def test_a_prepared_statement_is_recorded_each_time_it_runs(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        for number in range(12):
            connection.execute("SELECT note FROM orders WHERE id = %s", (number,), prepare=True)
    warden.stop()
    executions = [execution for execution in warden.executions() if "note" in execution.text]
    assert len(executions) == 12
    assert sum(execution.rows for execution in executions) == 11


def test_copy_in_both_directions_with_its_rows(warden: Warden) -> None:
    warden.agent("writer", ORDERS, Rule("public", ("customers",), ("select",)))
    with warden.connect("writer") as connection:
        with connection.cursor() as cursor, cursor.copy("COPY orders (id, customer, amount, note) FROM STDIN") as copy:
            for number in range(1000, 1500):
                copy.write_row((number, 1, 2.5, "copied"))
        with connection.cursor() as cursor, cursor.copy("COPY orders TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 600
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            connection.cursor() as cursor,
            cursor.copy("COPY customers TO STDOUT") as copy,
        ):
            copy.read()
        with (
            pytest.raises(psycopg.errors.UniqueViolation),
            connection.cursor() as cursor,
            cursor.copy("COPY orders FROM STDIN") as copy,
        ):
            copy.write_row((1000, 1, 2.5, "again"))
        assert connection.execute("SELECT 1").fetchone() == (1,)
    warden.stop()
    copies = [execution for execution in warden.executions() if execution.text.startswith("COPY")]
    assert [(execution.decision, execution.outcome, execution.rows) for execution in copies] == [
        ("allow", "ok", 500),
        ("allow", "ok", 600),
        ("deny", "", 0),
        ("allow", "error", 0),
    ]


def test_cursors_by_sql_and_large_results(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection, connection.transaction(), connection.cursor(name="c") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT id FROM orders ORDER BY id")
        assert len(cursor.fetchall()) == 100
    with warden.connect("reporter") as connection:
        rows = connection.execute("SELECT repeat('x', 1000) FROM orders a, orders b, orders c LIMIT 20000").fetchall()
        assert len(rows) == 20_000


def test_listen_and_notify_on_a_granted_channel(warden: Warden) -> None:
    warden.agent("reporter", channels=("news",))
    with warden.connect("reporter") as listener, warden.connect("reporter") as speaker:
        listener.execute("LISTEN news")
        speaker.execute("NOTIFY news, 'hello'")
        (notification,) = listener.notifies(timeout=5, stop_after=1)
        assert notification.payload == "hello"
        assert notification.pid == speaker.info.backend_pid
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            listener.execute("LISTEN other")


def test_a_cancel_request_reaches_the_statement_and_is_recorded(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e")
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    warden.stop()
    assert len(warden.session_events(StatementCancelled)) == 1


def test_a_syntax_error_reads_as_from_postgres(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        with pytest.raises(psycopg.errors.SyntaxError, match=r'syntax error at or near "SELEC"'):
            connection.execute("SELEC 1")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("SELECT nothing FROM orders")


def test_parameters_are_recorded_only_where_asked_for(make_warden: Callable[..., Warden]) -> None:
    warden = make_warden(parameters=True)
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        connection.execute("SELECT note FROM orders WHERE note = %s AND id = %s", ("blue", 7))
    warden.stop()
    values = [event.values for _, event in warden.events("statements") if isinstance(event, StatementParameters)]
    assert values == [("blue", "\\x0007")]


@pytest.mark.parametrize("durability", ["fast", "strict"])
def test_every_level_records_the_same(make_warden: Callable[..., Warden], durability: str) -> None:
    warden = make_warden(durability=durability)
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        for number in range(20):
            assert connection.execute("SELECT %s::int", (number,)).fetchone() == (number,)
    warden.stop()
    assert [execution.outcome for execution in warden.executions()] == ["ok"] * 20


def test_a_long_statement_is_parsed_elsewhere_and_a_too_long_one_refused(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        numbers = ", ".join(str(number) for number in range(10_000))
        assert connection.execute(f"SELECT count(*) FROM orders WHERE id IN ({numbers})").fetchone() == (100,)
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            connection.execute("SELECT '" + "x" * 400_000 + "'")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"user": "nobody"}, "authentication of agent nobody failed"),
        ({"password": "pgw_wrong"}, "authentication of agent reporter failed"),
        ({"dbname": "other"}, "does not exist"),
        ({"sslmode": "disable"}, "clear text is refused"),
        ({"options": "-c search_path=app"}, "search_path may not be brought along"),
        ({"options": "-c role=postgres"}, "role may not be brought along"),
        ({"replication": "database"}, "replication"),
        ({"client_encoding": "latin1"}, "UTF8"),
    ],
)
def test_a_login_that_is_refused_says_why_and_is_an_event(warden: Warden, more: dict[str, str], expected: str) -> None:
    warden.agent("reporter")
    with pytest.raises(psycopg.OperationalError, match=expected):
        warden.connect("reporter", **more)
    warden.stop()
    denied = warden.session_events(SessionDenied)
    assert len(denied) >= 1


def test_an_agent_without_a_grant_is_told_to_ask_for_one(warden: Warden) -> None:
    warden.agent("reporter", expires_at_us=time.time_ns() // 1000 - 1)
    with pytest.raises(psycopg.OperationalError, match="ask an operator for a grant"):
        warden.connect("reporter")


def test_no_credential_stands_in_the_record_or_the_output(warden: Warden) -> None:
    warden.agent("reporter")
    with warden.connect("reporter") as connection:
        connection.execute("SELECT 1")
    warden.stop()
    secret = warden.keys["reporter"].encode()
    password = (warden.folder / "password").read_bytes()
    for path in [warden.folder / "gateway.out", *(warden.folder / "state").rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert password not in content
