"""A gateway whose log is in Kafka: a real broker that stops, hangs and comes back, and a relay and a gateway that are killed."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from ingest.events import (
    AgentRevoked,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    RecordingStopped,
    Rule,
    SessionDenied,
    SessionKilled,
    SessionOpened,
)
from ingest.log import topics
from ingest.settings import KafkaSettings
from tests import broker as brokers
from tests.broker import Broker, jars

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete"))

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def module_broker(needs: Callable[[str, bool], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that tests of this file may pause and restart, if they leave it running."""
    lib = jars()
    needs("kafka", lib is not None)
    assert lib is not None
    with Broker(tmp_path_factory.mktemp("broker") / "broker", lib) as running:
        yield running


@pytest.fixture
def kafka(module_broker: Broker) -> Iterator[KafkaSettings]:
    module_broker.resume()
    settings = brokers.settings(module_broker, f"relayed-{secrets.token_hex(4)}.")
    topics.apply(settings)
    try:
        yield settings
    finally:
        module_broker.start()
        module_broker.resume()
        brokers.remove_topics(settings)


class Load:
    """Agents that write markers, one after the other, until they are told to stop or their session ends."""

    def __init__(self, warden: Warden, agents: int = 4) -> None:
        self._warden = warden
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ids = iter(range(10_000, 10_000_000))
        self._agents = [f"agent-{number}" for number in range(agents)]
        for agent in self._agents:
            if agent not in warden.keys:
                warden.agent(agent, WRITE)
        self.acknowledged: set[str] = set()
        self.errors: list[str] = []

    @contextlib.contextmanager
    def running(self, round_: int = 0) -> Iterator[None]:
        self._stop.clear()
        threads = [threading.Thread(target=self._work, args=(agent, round_)) for agent in self._agents]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _work(self, agent: str, round_: int) -> None:
        try:
            with self._warden.connect(agent) as connection:
                count = 0
                while not self._stop.is_set():
                    marker = f"m:{round_}.{agent}.{count}"
                    with self._lock:
                        number = next(self._ids)
                    connection.execute(f"INSERT INTO orders VALUES ({number}, 1, 1, '{marker}')".encode())
                    with self._lock:
                        self.acknowledged.add(marker)
                    count += 1
        except psycopg.Error as error:
            with self._lock:
                self.errors.append(str(error))


def marker(text: str) -> str:
    return text.rsplit("'", 2)[1] if "'" in text else ""


def relay(warden: Warden) -> dict[str, object]:
    facts = warden.status()["relay"]
    assert isinstance(facts, dict)
    return facts


def relay_pid(warden: Warden) -> int:
    pid = int(str(relay(warden)["pid"]))
    assert pid > 1  # 0 = none was heard of; a signal to 0 goes to all of us
    return pid


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shipped(warden: Warden, wait_for: Callable[..., object]) -> None:
    wait_for(lambda: relay(warden)["connected"] and relay(warden)["error"] == "", seconds=60)
    wait_for(lambda: relay(warden)["backlog_records"] == 0, seconds=60)


def assert_recorded(warden: Warden, acknowledged: set[str]) -> None:
    """In Kafka, in order, each once, without a hole."""
    recorded = [found for execution in warden.executions() if (found := marker(execution.text)) in acknowledged]
    assert acknowledged - set(recorded) == set()
    assert len(recorded) == len(set(recorded))
    warden.events("sessions")
    assert warden.gaps == []


def test_a_gateway_obeys_what_the_brokers_hold_and_records_there(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka)
    warden.agent("reader")
    with warden.connect("reader") as connection:
        assert connection.execute("SELECT 40 + 2").fetchone() == (42,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM orders")
        child = relay_pid(warden)
        wait_for(lambda: [e.decision for e in warden.executions()] == ["allow", "deny"], seconds=20)

        def reported() -> GatewayReported | None:
            """The newest, once it tells of the session."""
            found = [event for _, event in warden.events("observations") if isinstance(event, GatewayReported)]
            return found[-1] if found and found[-1].sessions == 1 and found[-1].statements == 2 else None

        report = wait_for(reported, seconds=20)
    assert isinstance(report, GatewayReported)
    assert (report.gateway, report.available, report.denied, report.sessions_opened) == ("gateway-1", True, 1, 1)
    assert report.identity_at_us >= warden.newest_us
    assert warden.stop() == 0
    assert not is_alive(child)
    assert isinstance(warden.session_events(GatewayStopped)[-1], GatewayStopped), "its last word was shipped before it ended"
    assert_recorded(warden, set())


def test_a_revocation_at_the_brokers_ends_a_session_at_work(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka)
    warden.agent("worker")
    figures: list[float] = []
    with warden.connect("worker") as connection:
        failed: list[tuple[float, str]] = []

        def work() -> None:
            try:
                connection.execute("SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e")
            except psycopg.Error as error:
                failed.append((time.time(), str(error)))

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: [s["state"] for s in warden.status()["sessions"]] == ["active"], seconds=20)  # type: ignore[attr-defined]
        at_us = time.time_ns() // 1000
        warden.record(AgentRevoked(at_us, "worker", "test", "olga"))
        thread.join(30)
        assert "test" in failed[0][1]
        figures.append(failed[0][0] - at_us / 1e6)
    killed = wait_for(lambda: warden.session_events(SessionKilled), seconds=20)
    assert isinstance(killed, list)
    proof = killed[0]
    assert isinstance(proof, SessionKilled)
    assert proof.backend_gone_us > proof.decided_us >= at_us
    # The test's own connection to the brokers, made anew for this record, is most of it.
    print(f"\nclient told {figures[0] * 1000:.0f} ms, backend gone {(proof.backend_gone_us - at_us) / 1000:.0f} ms after the order")
    assert proof.backend_gone_us - at_us < 10_000_000
    wait_for(lambda: _reports(warden) >= at_us, seconds=20)  # the word on which the API's answer waits


def _reports(warden: Warden) -> int:
    return max(event.identity_at_us for _, event in warden.events("observations") if isinstance(event, GatewayReported))


@pytest.mark.faults
def test_a_relay_that_is_killed_again_and_again_under_load_loses_nothing(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka)
    load = Load(warden)
    with load.running():
        for _ in range(6):
            time.sleep(0.3 + random.random() * 0.5)
            killed = relay_pid(warden)
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda killed=killed: relay(warden)["connected"] and relay(warden)["pid"] != killed, seconds=60)
    assert load.errors == []
    assert len(load.acknowledged) > 100
    shipped(warden, wait_for)
    assert_recorded(warden, load.acknowledged)
    assert warden.stop() == 0


@pytest.mark.faults
@pytest.mark.parametrize("durability", ["group", "replicated"])
def test_a_gateway_that_is_killed_under_load_loses_nothing_that_it_acknowledged(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object], durability: str
) -> None:
    warden = make_warden(kafka=kafka, durability=durability)
    load = Load(warden)
    for round_ in range(4):
        child = relay_pid(warden)
        with load.running(round_):
            time.sleep(0.5 + random.random())
            warden.kill9()
        if durability == "replicated":  # it was with the brokers before the agent knew: whatever became of this machine
            assert_recorded(warden, load.acknowledged)
        if round_ % 2:
            wait_for(lambda child=child: not is_alive(child), seconds=30)
        warden.start()
    assert len(load.acknowledged) > 50
    shipped(warden, wait_for)
    assert_recorded(warden, load.acknowledged)
    starts = [event.boot for event in warden.session_events(GatewayStarted) if isinstance(event, GatewayStarted)]
    assert len(starts) == 5
    assert starts == sorted(set(starts))
    assert warden.stop() == 0


@pytest.mark.faults
def test_statements_go_on_while_a_broker_hangs_and_what_was_recorded_meanwhile_is_shipped_after_it(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, module_broker: Broker, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka, durability="strict", stale_seconds_max=60)
    load = Load(warden)
    with load.running():
        wait_for(lambda: len(load.acknowledged) > 20, seconds=60)
        with module_broker.paused():
            time.sleep(1)
            before = len(load.acknowledged)
            wait_for(lambda: len(load.acknowledged) > before + 50, seconds=50)
            behind = relay(warden)["backlog_bytes"]
        wait_for(lambda: relay(warden)["error"] == "" and int(str(relay(warden)["backlog_records"])) < 50, seconds=60)
    assert int(str(behind)) > 0
    assert load.errors == []
    shipped(warden, wait_for)
    assert_recorded(warden, load.acknowledged)


@pytest.mark.faults
def test_a_backlog_beyond_its_bound_stops_every_statement_until_the_brokers_have_taken_it(
    make_warden: Callable[..., Warden],
    kafka: KafkaSettings,
    module_broker: Broker,
    wait_for: Callable[..., object],
    database: object,
) -> None:
    warden = make_warden(kafka=kafka, backlog_bytes_max=2**20, stale_seconds_max=600)
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        connection.execute("SELECT 1")
        module_broker.kill9()
        refusal: psycopg.Error | None = None
        until = time.monotonic() + 60
        count = 0
        while refusal is None and time.monotonic() < until:
            try:
                connection.execute(f"SELECT '{'y' * 60_000}{count}'".encode())
                count += 1
                # The backlog is looked at a few times a second; from 1.25 times this small bound on even an end is not recorded.
                time.sleep(0.25)
            except psycopg.Error as error:
                refusal = error
        assert refusal is not None, "there was no bound"
        assert refusal.sqlstate == "58030"
        assert "bytes of the record wait for Kafka, and log.backlog_bytes_max is 1048576" in str(refusal)
        assert 14 <= count <= 40
        with pytest.raises(psycopg.Error, match="wait for Kafka"):
            connection.execute("UPDATE orders SET note = 'unrecorded'")
        with pytest.raises(psycopg.OperationalError, match="cannot be recorded"):
            warden.connect("writer")
        status = warden.status()["log"]
        assert isinstance(status, dict)
        assert not status["available"]
        assert "Kafka" in str(status["reason"])
        module_broker.start()
        wait_for(lambda: warden.status()["log"]["available"], seconds=60)  # type: ignore[index]
        assert connection.execute("SELECT 2").fetchone() == (2,), "the session was kept"
    shipped(warden, wait_for)
    (stopped,) = warden.session_events(RecordingStopped)
    assert isinstance(stopped, RecordingStopped)
    assert stopped.refused >= 2
    assert "Kafka" in stopped.reason
    assert_recorded(warden, set())
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'unrecorded'").fetchone() == (0,)


def test_at_level_replicated_a_statement_reaches_postgres_only_once_the_brokers_have_its_record(
    make_warden: Callable[..., Warden],
    kafka: KafkaSettings,
    module_broker: Broker,
    wait_for: Callable[..., object],
    database: object,
) -> None:
    warden = make_warden(kafka=kafka, durability="replicated")
    warden.agent("writer", WRITE)
    answers: list[str] = []

    def ask(connection: psycopg.Connection[tuple[object, ...]], statement: bytes) -> threading.Thread:
        def work() -> None:
            try:
                answers.append(connection.execute(statement).statusmessage or "")
            except psycopg.Error as error:
                answers.append(str(error.sqlstate))

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    with warden.connect("writer") as one, warden.connect("writer") as other:
        began = time.monotonic()
        for _ in range(20):
            one.execute("SELECT 1")
        print(f"\na statement at level replicated takes {(time.monotonic() - began) / 20 * 1000:.1f} ms")
        with psycopg.connect(database.dsn, autocommit=True) as direct:  # type: ignore[attr-defined]
            asked = "SELECT count(*) FROM orders WHERE note = 'replicated'"
            with module_broker.paused():
                threads = [
                    ask(one, b"INSERT INTO orders VALUES (90001, 1, 1, 'replicated')"),
                    ask(other, b"DELETE FROM secrets"),
                ]
                time.sleep(2)
                assert direct.execute(asked).fetchone() == (0,)
                assert answers == [], "a refusal that could be lost is not told either"
            for thread in threads:
                thread.join(30)
            assert sorted(answers) == ["42501", "INSERT 0 1"]
            assert direct.execute(asked).fetchone() == (1,)
    shipped(warden, wait_for)
    assert_recorded(warden, {"replicated"})


@pytest.mark.faults
def test_at_level_replicated_a_session_whose_record_does_not_reach_the_brokers_ends_and_its_statement_never_runs(
    make_warden: Callable[..., Warden],
    kafka: KafkaSettings,
    module_broker: Broker,
    wait_for: Callable[..., object],
    database: object,
) -> None:
    warden = make_warden(kafka=kafka, durability="replicated", stale_seconds_max=600)
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        connection.execute("SELECT 1")
        with module_broker.paused():
            began = time.monotonic()
            with pytest.raises(psycopg.errors.IoError, match="does not reach the brokers"):
                connection.execute("INSERT INTO orders VALUES (90002, 1, 1, 'never')")
            assert 8 < time.monotonic() - began < 30
            with pytest.raises(psycopg.OperationalError, match="is not safe yet"):
                warden.connect("writer")
            wait_for(lambda: warden.status()["sessions"] == [], seconds=30)
    shipped(warden, wait_for)
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'never'").fetchone() == (0,)
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert [event.sqlstate for event in warden.session_events(SessionDenied) if isinstance(event, SessionDenied)] == ["58030"]


def test_a_gateway_that_hears_nothing_of_the_brokers_lets_nobody_in_and_keeps_those_who_are(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, module_broker: Broker, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka, stale_seconds_max=2)
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        with module_broker.paused():
            wait_for(lambda: relay(warden)["stale"], seconds=20)
            with pytest.raises(psycopg.OperationalError, match="what was revoked may not be known here"):
                warden.connect("writer")
            assert connection.execute("SELECT 1").fetchone() == (1,)
            wait_for(lambda: "not" in str(relay(warden)["error"]), seconds=60)
        wait_for(lambda: relay(warden)["stale"] == "", seconds=60)
        with warden.connect("writer") as another:
            assert another.execute("SELECT 1").fetchone() == (1,)
        assert connection.execute("SELECT 2").fetchone() == (2,)
    shipped(warden, wait_for)
    (denied,) = (event for event in warden.session_events(SessionDenied) if isinstance(event, SessionDenied))
    assert denied.sqlstate == "57P03"
    assert "nothing was heard of the brokers for" in denied.reason


def test_a_relay_that_hangs_counts_as_silence(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka, stale_seconds_max=1)
    warden.agent("writer", WRITE)
    wait_for(lambda: relay(warden)["stale"] == "", seconds=20)
    child = relay_pid(warden)
    os.kill(child, signal.SIGSTOP)
    try:
        wait_for(lambda: relay(warden)["stale"], seconds=20)
        with pytest.raises(psycopg.OperationalError, match="what was revoked may not be known here"):
            warden.connect("writer")
    finally:
        os.kill(child, signal.SIGCONT)
    wait_for(lambda: relay(warden)["stale"] == "", seconds=20)
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.faults
def test_a_session_that_the_brokers_have_not_heard_of_ends_when_they_stay_away_and_the_others_go_on(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    """Let in by a gateway that was just cut off: no watchdog knows of it, and no revocation reaches it."""
    warden = make_warden(kafka=kafka)
    warden.agent("writer", WRITE)
    with warden.connect("writer") as known:
        wait_for(lambda: warden.session_events(SessionOpened), seconds=20)
        wait_for(lambda: relay(warden)["backlog_records"] == 0, seconds=20)  # and the gateway was told
        child = relay_pid(warden)
        os.kill(child, signal.SIGSTOP)
        try:
            with warden.connect("writer") as unheard_of:
                assert unheard_of.execute("SELECT 1").fetchone() == (1,)

                def ended() -> bool:
                    try:
                        unheard_of.execute("SELECT 1")
                    except psycopg.Error as error:
                        return error.sqlstate == "57P01" or unheard_of.broken
                    return False

                wait_for(ended, seconds=90)
            assert known.execute("SELECT 1").fetchone() == (1,)
        finally:
            os.kill(child, signal.SIGCONT)
        shipped(warden, wait_for)
        assert known.execute("SELECT 2").fetchone() == (2,)
    (killed,) = (event for event in warden.session_events(SessionKilled) if isinstance(event, SessionKilled))
    assert killed.cause == "not shipped"
    assert killed.backend_gone_us > 0


@pytest.mark.faults
def test_a_gateway_starts_without_brokers_and_lets_in_once_they_are_there(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, module_broker: Broker, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka, stale_seconds_max=2)
    warden.agent("writer", WRITE)
    assert warden.stop() == 0
    module_broker.kill9()
    warden.start()
    try:
        with pytest.raises(psycopg.OperationalError, match="what was revoked may not be known here"):
            warden.connect("writer")
        wait_for(lambda: "do not answer" in str(relay(warden)["error"]), seconds=60)
    finally:
        module_broker.start()
    wait_for(lambda: relay(warden)["stale"] == "", seconds=60)
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert len(warden.session_events(SessionOpened)) == 1


def test_a_relay_ends_with_its_gateway_however_that_ends(
    make_warden: Callable[..., Warden], kafka: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka)
    child = relay_pid(warden)
    warden.kill9()
    wait_for(lambda: not is_alive(child), seconds=20)
    warden.start()
    child = relay_pid(warden)
    assert warden.stop() == 0
    assert not is_alive(child)
