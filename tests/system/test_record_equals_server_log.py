"""Twenty agents do everything that the protocol allows and much that scopes do not; then the record is held against the server's log."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import psycopg
import pytest
from psycopg import pq

from ingest.events import Event, Rule, Stamp, StatementDefined, StatementDenied, StatementFinished, StatementStarted
from tests.gateway import conftest as gateway_fixtures
from tests.system import raw_client as raw
from tests.system.checker import violations
from tests.system.raw_client import COPY_DONE, FLUSH, SYNC, RawClient

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.gateway.conftest import Warden

make_warden = gateway_fixtures.make_warden

AGENTS = 20
ORDERS = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))

REFUSED = (
    "SELECT secret, '{}' FROM secrets",
    "DO $$BEGIN PERFORM '{}'; END$$",
    "SELECT 1; DELETE FROM customers WHERE name = '{}'",
    "SELEKT '{}'",
    "COPY orders TO PROGRAM 'echo {}'",
    "SET application_name = '{}'",
    "SELECT pg_read_file('{}')",
    "SELECT ('{}'::text).pg_read_file",
    "EXPLAIN SELECT '{}' FROM secrets",
    "PREPARE x AS SELECT '{}' FROM secrets",
    "DECLARE x CURSOR FOR SELECT '{}' FROM secrets",
    "CREATE TEMP TABLE t AS SELECT '{}'",
    "WITH d AS (DELETE FROM customers RETURNING '{}') SELECT * FROM d",
    "COPY (SELECT '{}' FROM secrets) TO STDOUT",
    "NOTIFY other, '{}'",
    "SELECT set_config('role', '{}', false)",
)


class Agent:
    """One agent's work. Each scenario ends with its connection usable or closed."""

    def __init__(self, warden: Warden, number: int) -> None:
        self.warden, self.name, self.number = warden, f"agent-{number}", number
        self.chance = random.Random(number)
        self.ids = iter(range(10_000 + number * 1_000, 11_000 + number * 1_000))
        self.markers: list[str] = []

    def raw(self) -> RawClient:
        return RawClient(self.warden.port, self.name, self.warden.keys[self.name])

    def scenarios(self) -> list[Callable[[], None]]:
        chosen: list[Callable[[], None]] = [
            self.simple,
            self.prepared,
            self.pipelines,
            self.copies,
            self.cursors,
            self.portals,
            self.refusals,
            self.refusals_in_pipelines,
            self.cancels,
            self.vanishes,
            self.transactions,
            self.notifies,
            self.names,
        ]
        self.chance.shuffle(chosen)
        return chosen

    def simple(self) -> None:
        client = self.raw()
        client.send(raw.query("SELECT 1") + raw.query("") + raw.query(" ; ") + raw.query("-- nothing"))
        assert client.kinds(4) == "TDCZIZIZIZ"
        client.send(raw.query(f"SELECT 1; UPDATE orders SET note = 'a{self.number}' WHERE id = {self.number}; SELECT 2;"))
        client.send(raw.query("SELECT 1; SELECT 1/0; SELECT 3") + raw.query("SELECT nothing FROM orders"))
        client.kinds(3)
        client.send(raw.query("ROLLBACK") + raw.query(f"SELECT 'o''{self.number}' AS \"ü\" /* ; */"))
        client.kinds(2)
        client.close()

    def prepared(self) -> None:
        client = self.raw()
        client.send(raw.parse("SELECT note FROM orders WHERE id = $1", "s") + SYNC)
        client.kinds(1)
        for number in range(8):
            client.send(raw.bind("s", "", str(number)) + raw.execute() + SYNC)
        client.kinds(8)
        client.send(raw.query("PREPARE q(int) AS SELECT $1 / 3") + raw.query("EXECUTE q(6)") + raw.query("EXECUTE q(1)"))
        client.kinds(3)
        client.send(raw.bind("q", "", "9") + raw.execute() + SYNC + raw.bind("q", "", "x") + raw.execute() + SYNC)
        client.kinds(2)
        client.send(raw.query("DEALLOCATE q; PREPARE q AS SELECT 'other'") + raw.bind("q") + raw.execute() + SYNC)
        client.kinds(2)
        client.send(raw.query("EXECUTE nothing") + raw.query("DISCARD ALL") + raw.bind("s", "", "1") + raw.execute() + SYNC)
        client.kinds(3)
        client.close()

    def pipelines(self) -> None:
        client = self.raw()
        broken = (
            raw.run(f"UPDATE orders SET note = 'p' WHERE id = {self.number}")
            + raw.run("SELECT 1/0")
            + raw.run("SELECT 'after'")
            + SYNC
        )
        client.send(broken + raw.run("SELECT 'next'") + SYNC + raw.run("SELEC 'syntax'"[1:]) + raw.run("SELECT 'skipped'") + SYNC)
        client.kinds(3)
        client.send(raw.parse("SELECT 'flushed'") + FLUSH)
        client.until(b"1")
        client.send(
            raw.bind()
            + FLUSH
            + raw.execute()
            + FLUSH
            + SYNC
            + raw.run("SELECT nothing FROM orders")
            + raw.query("SELECT 'not me'")
            + SYNC
        )
        client.kinds(2)
        with self.warden.connect(self.name) as connection, connection.pipeline() as pipeline:
            cursor = connection.cursor()
            cursor.executemany("UPDATE orders SET note = %s WHERE id = %s", [(f"m{n}", n) for n in range(20)])
            pipeline.sync()
        client.close()

    def copies(self) -> None:
        with self.warden.connect(self.name) as connection, connection.cursor() as cursor:
            with cursor.copy("COPY orders (id, customer, amount) FROM STDIN") as copy:
                copy.write_row((next(self.ids), 1, 2))
            with pytest.raises(psycopg.Error), cursor.copy("COPY orders FROM STDIN") as copy:
                copy.write("bad\n")
            with cursor.copy("COPY (SELECT id FROM orders) TO STDOUT") as copy:
                assert len(list(copy)) > 10
        client = self.raw()
        client.send(raw.run("COPY orders FROM STDIN") + SYNC)
        client.until(b"G")
        client.send(raw.copy_data("bad\n") + raw.copy_data("x") + COPY_DONE + SYNC + raw.query("SELECT 'after copy'"))
        client.kinds(2)
        client.send(raw.query("COPY orders FROM STDIN; SELECT 'skipped by copy'"))
        client.until(b"G")
        client.send(raw.copy_fail("changed my mind") + COPY_DONE + raw.query("SELECT 1/0") + raw.query("SELECT 'still here'"))
        client.kinds(3)
        client.close()

    def cursors(self) -> None:
        with self.warden.connect(self.name) as connection, connection.transaction(), connection.cursor("c") as cursor:
            cursor.itersize = 7
            cursor.execute("SELECT id FROM orders LIMIT 30")
            assert len(cursor.fetchall()) == 30

    def portals(self) -> None:
        client = self.raw()
        client.send(raw.query("BEGIN") + raw.parse("SELECT id FROM orders") + raw.bind("", "p") + raw.execute("p", 10) + SYNC)
        client.kinds(2)
        client.send(raw.execute("p", 10) + raw.execute("p", 10) + SYNC + raw.query("SELECT 'between'") + raw.execute("p") + SYNC)
        client.kinds(3)
        client.send(
            raw.bind("", "left")
            + raw.execute("left", 1)
            + SYNC
            + raw.parse("SELECT 5")
            + raw.bind()
            + raw.execute("", 1)
            + raw.run("SELECT 6")
            + SYNC
        )
        client.kinds(2)
        client.send(raw.query("SAVEPOINT s") + raw.query("SELECT 1/0") + raw.query("ROLLBACK TO s") + raw.execute("left", 1) + SYNC)
        client.kinds(4)
        client.send(raw.close("P", "left") + raw.execute("left") + SYNC + raw.query("ROLLBACK"))
        client.kinds(2)
        client.close()

    def refusals(self) -> None:
        with self.warden.connect(self.name) as connection:
            for number, text in enumerate(REFUSED):
                marker = f"leak{self.number}x{number}x"
                self.markers.append(marker)
                for prepared in (False, True) if ";" not in text else (False,):
                    with pytest.raises(psycopg.Error):
                        if prepared:
                            connection.execute(text.format(marker).encode(), prepare=True)
                        else:
                            connection.pgconn.exec_(text.format(marker).encode())
                            raise psycopg.Error
                assert connection.execute("SELECT 1").fetchone() == (1,)

    def refusals_in_pipelines(self) -> None:
        client = self.raw()
        marker = f"leak{self.number}pipe"
        self.markers.append(marker)
        refused = f"SELECT '{marker}' FROM secrets"
        client.send(
            raw.run("SELECT 'before'") + raw.run(refused) + raw.run("SELECT 'behind'") + SYNC + raw.run("SELECT 'again'") + SYNC
        )
        assert client.kinds(2) == "12DCEZ12DCZ"
        client.send(
            raw.run("SELECT nothing FROM orders")
            + raw.run(refused)
            + raw.query(refused)
            + SYNC
            + raw.query(refused)
            + raw.query("SELECT 'more'")
        )
        client.kinds(3)
        client.send(raw.query("BEGIN") + raw.query(refused) + raw.query("SELECT 'aborted'") + raw.query("ROLLBACK"))
        client.kinds(4)
        client.send(raw.bind("nosuch") + raw.execute() + SYNC + raw.execute("nosuch") + SYNC)
        client.kinds(2)
        client.close()

    def cancels(self) -> None:
        with self.warden.connect(self.name) as connection:
            pgconn = connection.pgconn
            pgconn.send_query(b"SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e")
            pgconn.flush()
            time.sleep(0.1)
            connection.cancel_safe(timeout=5)
            result = pgconn.get_result()
            assert result is not None
            assert result.error_field(pq.DiagnosticField.SQLSTATE) == b"57014"
            while pgconn.get_result() is not None:
                pass

    def vanishes(self) -> None:
        client = self.raw()
        client.send(raw.query("BEGIN") + raw.query(f"UPDATE orders SET note = 'gone{self.number}' WHERE id = {self.number}"))
        client.kinds(2)
        client.send(raw.query("SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e") + raw.run("SELECT 'never'"))
        client.vanish()
        client = self.raw()
        client.send(raw.run("SELECT 'answered'") + SYNC + raw.run("SELECT 'cut'")[:-4])
        client.vanish()

    def transactions(self) -> None:
        with self.warden.connect(self.name) as connection:
            with pytest.raises(ZeroDivisionError), connection.transaction():
                connection.execute("INSERT INTO orders VALUES (%s, 1, 1, 'undone')", (next(self.ids),))
                raise ZeroDivisionError
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute("INSERT INTO orders VALUES (1, 1, 1, 'twice')")
            with pytest.raises(psycopg.Error):
                connection.execute("SELECT note::int FROM orders WHERE id = 1")

    def notifies(self) -> None:
        with self.warden.connect(self.name) as connection:
            connection.execute("LISTEN ours")
            connection.execute("NOTIFY ours, 'hello'")
            connection.execute("SELECT 1")
            assert list(connection.notifies(timeout=0.05, stop_after=1))
            connection.execute("ROLLBACK")  # a notice: there is no transaction
            connection.execute("UNLISTEN *")

    def names(self) -> None:
        client = self.raw()
        first, second = f"SELECT 'first{self.number}'", f"SELECT 'second{self.number}'"
        client.send(raw.parse(first, "n") + raw.parse(first) + SYNC)
        client.kinds(1)
        client.send(raw.parse(second, "n") + SYNC + raw.bind("n") + raw.execute() + SYNC)
        client.send(raw.parse("SELECT nothing FROM orders", "x") + raw.parse(second) + SYNC + raw.bind() + raw.execute() + SYNC)
        client.send(raw.close("S", "n") + raw.parse(second, "n") + raw.bind("n") + raw.execute() + SYNC)
        client.send(raw.query("SELECT 1") + COPY_DONE + raw.query("SELECT 1/0") + raw.query(first))
        client.kinds(8)
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["group", "strict"])
def test_the_record_says_what_the_server_says(
    make_warden: Callable[..., Warden],
    postgres: object,
    database: Database,
    durability: str,
) -> None:
    warden = make_warden(tls="optional", durability=durability)
    agents = [Agent(warden, number) for number in range(AGENTS)]
    for agent in agents:
        warden.agent(agent.name, ORDERS, channels=("ours",))
    failures: list[str] = []

    def work(agent: Agent) -> None:
        for scenario in agent.scenarios():
            try:
                scenario()
            except BaseException as error:
                failures.append(f"{agent.name} {scenario.__name__}: {error!r}")

    threads = [threading.Thread(target=work, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:5]
    until = time.monotonic() + 10
    while warden.status()["sessions"] and time.monotonic() < until:
        time.sleep(0.1)
    warden.stop()
    events = warden.events("statements")
    log = [entry for entry in postgres.log_entries() if entry.get("dbname") == database.name]  # type: ignore[attr-defined]
    markers = [marker for agent in agents for marker in agent.markers]
    assert sum(isinstance(event, StatementStarted) for _, event in events) > 100 * AGENTS
    assert sum(isinstance(event, StatementDenied) for _, event in events) > 30 * AGENTS
    assert violations(events, log, database.name, markers)[:10] == []

    # And the checker is worth its word: each of these it must see.
    for name, (seeded_events, seeded_log) in _seeded(events, log, database.name):
        assert violations(seeded_events, seeded_log, database.name, markers), f"the checker did not see: {name}"


Events = list[tuple[Stamp | None, Event]]
Log = list[dict[str, object]]


def _seeded(events: Events, log: Log, database: str) -> Iterator[tuple[str, tuple[Events, Log]]]:
    def without(number: int) -> Events:
        return events[:number] + events[number + 1 :]

    def place(kind: type, **fields: object) -> int:
        return next(
            number
            for number, (_, event) in enumerate(events)
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
        )

    ended = place(StatementFinished, outcome="ok")
    stamp, finished = events[ended]
    yield "an end is missing", (without(ended), log)
    yield "an end comes twice", (events[: ended + 1] + events[ended:], log)
    assert isinstance(finished, StatementFinished)
    assert stamp is not None
    wrong = msgspec.structs.replace(finished, outcome="error", sqlstate="22012")
    yield "an ok is recorded as failed", ([*events[:ended], (stamp, wrong), *events[ended + 1 :]], log)
    skipped = msgspec.structs.replace(finished, outcome="skipped")
    yield "what ran is recorded as skipped", ([*events[:ended], (stamp, skipped), *events[ended + 1 :]], log)
    failed = place(StatementFinished, outcome="error", sqlstate="22012")
    right = events[failed]
    assert isinstance(right[1], StatementFinished)
    as_ok = msgspec.structs.replace(right[1], outcome="ok", sqlstate="")
    yield "a failure is recorded as ok", ([*events[:failed], (right[0], as_ok), *events[failed + 1 :]], log)
    other = msgspec.structs.replace(right[1], sqlstate="23505")
    yield "a SQLSTATE is wrong", ([*events[:failed], (right[0], other), *events[failed + 1 :]], log)
    dropped = [
        (of, event)
        for of, event in events
        if not (of is stamp or (of and of.session == stamp.session))
        or not (isinstance(event, StatementStarted | StatementFinished) and event.execution == finished.execution)
    ]
    yield "an execution is missing", (dropped, log)
    first = place(StatementStarted)
    at, begun = events[first]
    assert isinstance(begun, StatementStarted)
    extra: Events = [
        (at, StatementDefined(99_999, "SELECT 'phantom'", "full", 16, "", (), (), ())),
        (at, StatementStarted(begun.at_us, 99_999, 99_999, "")),
        (at, StatementFinished(99_999, "ok", "", "SELECT 1", 1, 0, 0, 1)),
    ]
    yield "an execution is made up", (events + extra, log)
    text = place(StatementDefined, verbs=("UPDATE",))
    of, defined = events[text]
    assert isinstance(defined, StatementDefined)
    yield (
        "another text is recorded",
        (
            [*events[:text], (of, msgspec.structs.replace(defined, text="SELECT 'harmless'")), *events[text + 1 :]],
            log,
        ),
    )
    line = next(
        entry
        for entry in log
        if entry.get("dbname") == database
        and str(entry.get("message", "")).startswith("statement: ")
        and str(entry.get("application_name", "")).startswith("pgwarden/agent")
    )
    yield "a refused text reached the server", (events, [*log, {**line, "error_severity": "ERROR", "message": "leak0x0x"}])
    yield "a statement of no session ran", (events, [*log, {**line, "pid": 1}])
    denial = place(StatementDenied)
    of_denial = events[denial][0]
    assert of_denial is not None
    all_of = [
        pair
        for pair in events
        if not (isinstance(pair[1], StatementDenied) and pair[0] is not None and pair[0].session == of_denial.session)
    ]
    yield "denials are missing", (all_of, log)
