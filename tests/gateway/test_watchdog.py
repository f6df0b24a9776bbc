"""A second pair of hands: what a stopped or dead gateway leaves running is ended, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import pytest

from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from gateway.stamp import control_name, stamped_application_name
from gateway.watchdog import Watchdog, WatchdogSettings
from ingest.events import (
    AgentRegistered,
    AgentRevoked,
    GrantApproved,
    GrantRequested,
    Rule,
    Scope,
    SessionClosed,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    Stamp,
)
from ingest.follow import Follower
from ingest.log import Entry, EventLog
from ingest.log.kafka import KafkaLog
from ingest.log.segments import SegmentLog
from ingest.log.topics import apply
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden.config import load
from pgwarden.postgres import Postgres, PostgresSettings
from pgwarden.watchdog_process import sights
from tests import broker as brokers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Warden  # type: ignore[import-not-found]

REPOSITORY = Path(__file__).parents[2]
WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))
MANY_ROWS = "INSERT INTO orders SELECT n, 1, 1, 'late' FROM generate_series(1000, 50000000) AS n"

pytestmark = pytest.mark.slow


def now_us() -> int:
    return time.time_ns() // 1000


class Dog:
    """`pgwarden watchdog` beside a warden, as it is started everywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        with (self.folder / "watchdog.out").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pgwarden", "watchdog", "-c", str(self.folder / "pgwarden.toml")],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + 30
        while ready:
            with suppress(OSError):
                if self.status()["caught_up"] and self.status()["pid"] == self.process.pid:
                    return
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.folder / "state/run/watchdog.sock"))
            data = b""
            while more := client.recv(65536):
                data += more
        answer: dict[str, Any] = orjson.loads(data)
        return answer

    def said(self) -> str:
        return (self.folder / "watchdog.out").read_text()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture
def dog(tmp_path: Path) -> Iterator[Dog]:
    dog = Dog(tmp_path)
    yield dog
    dog.end()


def reaped(warden: Warden) -> list[SessionReaped]:
    return [event for _, event in warden.events("observations") if isinstance(event, SessionReaped)]


def alive(database: Any, pid: int) -> bool:
    with psycopg.connect(database.superuser_dsn) as direct:
        return direct.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None


def late_rows(database: Any) -> int:
    with psycopg.connect(database.superuser_dsn) as direct:
        (count,) = direct.execute("SELECT count(*) FROM orders WHERE note = 'late'").fetchone() or (-1,)
        return int(count)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with suppress(psycopg.Error):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def running(database: Any, pid: int) -> bool:
    with psycopg.connect(database.superuser_dsn) as direct:
        row = direct.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone()
        return row == ("active",)


async def tables(folder: Path, into: str) -> str:
    log = SegmentLog(folder / "state/log", LogSettings())
    try:
        return (await rebuild(log, AnalyticsSettings(folder / into))).checksum
    finally:
        await log.close()


def asked(folder: Path, into: str, question: str) -> list[tuple[object, ...]]:
    store = Store.open(AnalyticsSettings(folder / into))
    try:
        return store.read(question, {}).rows
    finally:
        store.close()


# -- a gateway that is stopped (F2) ------------------------------------------------------------------------------------------------


def test_a_revoked_agent_is_stopped_while_its_gateway_is(
    warden: Warden, dog: Dog, database: Any, wait_for: Callable[..., Any]
) -> None:
    warden.agent("bad", WRITE)
    warden.agent("good", WRITE)
    dog.start()
    bad, good = warden.connect("bad"), warden.connect("good")
    good.execute("SELECT 1")
    bad_pid, good_pid = bad.info.backend_pid, good.info.backend_pid
    worker = in_thread(lambda: bad.execute(MANY_ROWS))
    wait_for(lambda: running(database, bad_pid), 10)
    assert warden.process is not None
    warden.process.send_signal(signal.SIGSTOP)
    try:
        requested_us = now_us()
        warden.record(AgentRevoked(requested_us, "bad", "misbehaves", "olga"))
        (found,) = wait_for(lambda: reaped(warden), 20)
        assert found.session
        assert (found.agent, found.cause, found.gateway, found.backend_pid) == ("bad", "agent revoked", "gateway-1", bad_pid)
        assert found.requested_us == requested_us
        assert 0 < found.decided_us <= found.backend_gone_us
        assert found.backend_gone_us - requested_us < 1_500_000
        assert not alive(database, bad_pid)
        assert alive(database, good_pid)
        assert late_rows(database) == 0
    finally:
        warden.process.send_signal(signal.SIGCONT)
    worker.join(10)
    assert good.execute("SELECT count(*) FROM orders").fetchone() == (100,)
    assert good.info.backend_pid == good_pid
    wait_for(lambda: any(e.session == found.session for e in warden.session_events(SessionClosed)), 20)  # type: ignore[union-attr]
    with warden.connect("good") as another:
        assert another.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="revoked"):
        warden.connect("bad")
    good.close()
    bad.close()
    warden.stop()
    dog.end()
    assert len(reaped(warden)) == 1
    assert {event.session for event in warden.session_events(SessionKilled)} <= {found.session}  # type: ignore[union-attr]
    assert asyncio.run(tables(warden.folder, "once")) == asyncio.run(tables(warden.folder, "twice"))
    kills = asked(warden.folder, "once", "select session, cause, ended_by, backend_gone_at is not null from kills")
    assert kills == [(found.session, "agent revoked", "watchdog", True)]
    sessions = asked(warden.folder, "once", "select state, kill_cause, kill_ended_by from sessions where agent = 'bad'")
    assert sessions == [("killed", "agent revoked", "watchdog")]
    assert late_rows(database) == 0


def test_an_idle_session_and_a_transaction_end_too_and_two_watchdogs_leave_one_row(
    warden: Warden, database: Any, wait_for: Callable[..., Any]
) -> None:
    warden.agent("bad", WRITE)
    idle, busy = warden.connect("bad"), warden.connect("bad")
    busy.execute("BEGIN")
    busy.execute("UPDATE orders SET note = 'late'")
    pids = {idle.info.backend_pid, busy.info.backend_pid}
    assert warden.process is not None

    async def scene() -> None:
        async with dogs(warden.folder, WatchdogSettings(watchdog="one"), WatchdogSettings(watchdog="two")) as (one, two):
            assert one.status()["sessions"] == two.status()["sessions"] == 2
            assert warden.process is not None
            warden.process.send_signal(signal.SIGSTOP)
            await asyncio.to_thread(warden.record, AgentRevoked(now_us(), "bad", "misbehaves", "olga"))
            await until(lambda: not one.status()["sessions"] and not two.status()["sessions"], 20)
            assert not any(alive(database, pid) for pid in pids)
            await until(lambda: not one.status()["ending"] and not two.status()["ending"], 20)

    try:
        asyncio.run(scene())
        found = reaped(warden)
        assert {event.backend_pid for event in found} == pids
        assert len(found) <= 4
        assert len({(event.session, event.watchdog) for event in found}) == len(found), "once a watchdog"
        assert all(0 < event.backend_gone_us - event.requested_us < 1_500_000 for event in found)
        assert late_rows(database) == 0
        asyncio.run(tables(warden.folder, "before"))
        assert asked(warden.folder, "before", "select count(*), count(distinct session) from kills") == [(2, 2)]
    finally:
        warden.process.send_signal(signal.SIGCONT)
    wait_for(lambda: len(warden.session_events(SessionClosed)) == 2, 20)
    warden.stop()
    assert asyncio.run(tables(warden.folder, "once")) == asyncio.run(tables(warden.folder, "twice"))
    assert asked(warden.folder, "once", "select ended_by, count(*) from kills group by all") == [("watchdog", 2)]
    idle.close()
    busy.close()


def test_a_second_watchdog_on_one_log_of_segments_does_not_start(warden: Warden, dog: Dog) -> None:
    dog.start()
    second = Dog(warden.folder)
    second.start(ready=False)
    assert second.process is not None
    assert second.process.wait(30) == 1
    assert "observations" in second.said()
    assert dog.status()["caught_up"]


# -- a gateway that is gone --------------------------------------------------------------------------------------------------------


@dataclass
class Holding:
    """A middle box before a database: it lets go of a gateway's control connections when they end, and keeps the sessions' open."""

    to: tuple[str, int]
    port: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self.to) as server:
            first = client.recv(65536)
            server.sendall(first)
            answers = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
            answers.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    server.sendall(data)
            if b"pgwarden/control/" in first:
                server.shutdown(socket.SHUT_RDWR)
            answers.join(120)  # until the server itself ends it

    @staticmethod
    def _pass_on(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                with suppress(OSError):
                    client.sendall(data)

    def close(self) -> None:
        self._listener.close()


def test_what_a_dead_gateway_left_running_is_ended_and_recorded(
    make_warden: Callable[..., Warden], dog: Dog, database: Any, wait_for: Callable[..., Any]
) -> None:
    """A machine that dies says nothing: its backends run on. Here a middle box keeps them running."""
    warden = make_warden(start=False)
    holding = Holding((database.host, database.port))
    file = warden.folder / "pgwarden.toml"
    direct = file.read_text()
    file.write_text(direct.replace(f"port = {database.port}", f"port = {holding.port}"))
    warden.start()
    warden.agent("worker", WRITE)
    busy, idle = warden.connect("worker"), warden.connect("worker")
    idle.execute("BEGIN")
    idle.execute("UPDATE orders SET note = 'late' WHERE id = 1")
    pids = {busy.info.backend_pid, idle.info.backend_pid}
    worker = in_thread(lambda: busy.execute(MANY_ROWS))
    wait_for(lambda: running(database, busy.info.backend_pid), 10)
    file.write_text(direct)
    dog.start()
    with psycopg.connect(database.dsn, application_name="pgwarden/other/stranger") as stranger:
        warden.kill9()
        killed_us = now_us()
        missed = wait_for(lambda: dog.status()["missed"], 30)
        assert missed[0]["gateway"] == "gateway-1"
        found = wait_for(lambda: len(reaped(warden)) == 2 and reaped(warden), 60)
        assert stranger.execute("SELECT 1").fetchone() == (1,)
    worker.join(10)
    assert {event.backend_pid for event in found} == pids
    assert not any(alive(database, pid) for pid in pids)
    for event in found:
        assert (event.cause, event.gateway, event.agent) == ("gateway gone", "gateway-1", "worker")
        assert event.backend_gone_us - killed_us > 9_000_000, "not before a gateway that lives could have come back"
        assert killed_us - 2_000_000 < event.requested_us <= event.decided_us <= event.backend_gone_us
        assert "already" not in event.reason, "nothing but the watchdog ended them"
    assert late_rows(database) == 0
    dog.end()
    holding.close()
    assert asyncio.run(tables(warden.folder, "once")) == asyncio.run(tables(warden.folder, "twice"))
    rows = asked(warden.folder, "once", "select state, kill_cause, kill_ended_by, closed_at is not null from sessions")
    assert rows == [("killed", "gateway gone", "watchdog", True)] * 2
    assert asked(warden.folder, "once", "select distinct outcome from statements where text like 'INSERT%'") == [("unknown",)]
    for connection in (busy, idle):
        connection.close()


def test_a_dead_gateways_sessions_are_closed_in_the_record_though_their_backends_ended_by_themselves(
    warden: Warden, database: Any
) -> None:
    warden.agent("worker", WRITE)
    connection = warden.connect("worker")
    pid = connection.info.backend_pid

    async def scene() -> None:
        settings = WatchdogSettings(orphan_seconds=2.0, look_ms=100.0)
        async with dogs(warden.folder, settings) as (one,):
            warden.kill9()
            await until(lambda: not alive(database, pid), 20)
            assert one.status()["sessions"] == 1
            await until(lambda: not one.status()["sessions"] and not one.status()["ending"], 20)

    asyncio.run(scene())
    (event,) = reaped(warden)
    assert event.cause == "gateway gone"
    assert event.reason.endswith("gone already")
    connection.close()


def test_a_gateway_that_starts_again_is_not_gone(warden: Warden, dog: Dog, database: Any, wait_for: Callable[..., Any]) -> None:
    warden.agent("worker", WRITE)
    first = warden.connect("worker")
    gone = first.info.backend_pid
    dog.start()
    warden.kill9()
    warden.start()
    second = warden.connect("worker")
    # the first has left nothing behind
    wait_for(lambda: dog.status()["sessions"] == 1 and dog.status()["missed"] == [] and not alive(database, gone), 20)
    assert second.execute("SELECT 1").fetchone() == (1,)
    assert reaped(warden) == []
    first.close()
    second.close()


# -- a gateway that is well --------------------------------------------------------------------------------------------------------


def control_backends(database: Any) -> list[tuple[int, str]]:
    with psycopg.connect(database.superuser_dsn) as direct:
        question = (
            "SELECT pid, application_name FROM pg_stat_activity WHERE usename = %s AND application_name LIKE 'pgwarden/control/%%'"
        )
        return [(int(pid), str(name)) for pid, name in direct.execute(question, (database.role,))]


def end_backends(database: Any, pids: list[int]) -> None:
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:
        for pid in pids:
            direct.execute("SELECT pg_terminate_backend(%s)", (pid,))


def test_an_idle_gateway_makes_its_control_connections_anew_by_itself(
    warden: Warden, database: Any, wait_for: Callable[..., Any]
) -> None:
    boot = int(str(warden.status()["boot"]))
    before = wait_for(lambda: len(control_backends(database)) == 2 and control_backends(database), 20)
    assert {name for _, name in before} == {control_name("gateway-1", boot)}
    end_backends(database, [pid for pid, _ in before])
    begun = time.monotonic()
    after = wait_for(lambda: len(control_backends(database)) == 2 and control_backends(database), 20)
    assert time.monotonic() - begun < 5
    assert {name for _, name in after} == {name for _, name in before}
    assert {pid for pid, _ in after}.isdisjoint(pid for pid, _ in before)


def test_a_gateway_that_is_well_loses_no_session_under_load_nor_when_its_control_connections_are_cut(
    warden: Warden, database: Any
) -> None:
    for number in range(4):
        warden.agent(f"worker-{number}", WRITE)
    stop = threading.Event()
    done: list[int] = []
    failed: list[BaseException] = []

    def work(number: int) -> None:
        statements = 0
        try:
            while not stop.is_set():
                with warden.connect(f"worker-{number}") as connection:
                    for _ in range(50):
                        connection.execute("SELECT count(*) FROM orders")
                        statements += 1
        except BaseException as error:
            failed.append(error)
        done.append(statements)

    async def scene() -> None:
        # Harsher than the defaults: a gateway has half of the time.
        settings = WatchdogSettings(orphan_seconds=5.0, look_ms=100.0)
        async with dogs(warden.folder, settings) as (one,):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(2):
                await asyncio.sleep(3)
                end_backends(database, [pid for pid, _ in await asyncio.to_thread(control_backends, database)])
            await asyncio.sleep(6)  # longer than the bound
            stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join, 20)
            await until(lambda: not one.status()["sessions"], 20)
            assert (one.status()["ending"], one.status()["missed"], one.status()["strangers"]) == ([], [], [])

    asyncio.run(scene())
    assert failed == []
    assert sum(done) > 100
    assert reaped(warden) == []
    assert warden.session_events(SessionKilled) == []


def test_a_restart_of_the_database_ends_no_session_wrongly_and_blindness_is_said(
    make_warden: Callable[..., Warden], database: Any
) -> None:
    home = Path(tempfile.mkdtemp(prefix="pgwarden-test-"))
    home.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        server = Postgres(home / "postgres", PostgresSettings(port=brokers.port(), durable=False))
        stack.callback(server.stop)
        server.start()
        server.execute("postgres", f"CREATE ROLE app LOGIN PASSWORD '{database.password}'")
        server.execute("postgres", "CREATE TABLE orders (id bigint)", "GRANT SELECT ON orders TO app")
        warden = make_warden(start=False)
        file = warden.folder / "pgwarden.toml"
        text = file.read_text().replace(f"port = {database.port}", f"port = {server.port}")
        text = text.replace(f'database = "{database.name}"', 'database = "postgres"').replace(
            f'user = "{database.role}"', 'user = "app"'
        )
        file.write_text(text)
        warden.start()
        warden.agent("worker")
        connections = [warden.connect("worker") for _ in range(3)]

        async def scene() -> None:
            settings = WatchdogSettings(orphan_seconds=4.0, look_ms=100.0, blind_seconds=1.0)
            async with dogs(warden.folder, settings) as (one,):
                assert one.status()["sessions"] == 3
                await asyncio.to_thread(server.stop)
                await until(lambda: [blind["what"] for blind in one.status()["blind"]] == ["connection shop"], 20)
                assert one.status()["connections"] == {"shop": {"ready": False}}
                await asyncio.to_thread(server.start)
                await until(lambda: one.status()["blind"] == [] and one.status()["connections"]["shop"]["ready"], 30)
                again = await asyncio.to_thread(connect_again, warden)
                await until(lambda: one.status()["sessions"] == 1, 20)
                await asyncio.sleep(5)  # longer than the bound: a gateway that did not come back would be missed by now
                assert one.status()["missed"] == []
                assert again.execute("SELECT count(*) FROM orders").fetchone() == (0,)
                again.close()

        asyncio.run(scene())
        assert reaped(warden) == []
        for connection in connections:
            connection.close()
        warden.stop()


def connect_again(warden: Warden) -> psycopg.Connection[tuple[object, ...]]:
    until = time.monotonic() + 45  # the gateway reads the catalogs of a database that was away once a second
    while True:
        try:
            return warden.connect("worker")
        except psycopg.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.2)


# -- the log ---------------------------------------------------------------------------------------------------------------------


def test_a_watchdog_that_cannot_read_the_log_says_so_and_calls_no_gateway_gone(warden: Warden, database: Any) -> None:
    """What it cannot read may be the gateway's last word."""
    warden.agent("worker")
    connection = warden.connect("worker")

    async def scene() -> None:
        log = SegmentLog(warden.folder / "state/log", LogSettings())
        settings = WatchdogSettings(orphan_seconds=3.0, blind_seconds=0.5, look_ms=100.0, log_age_seconds_max=0.5)
        async with dogs(warden.folder, settings) as (one,):
            assert (one.status()["blind"], one.status()["sessions"]) == ([], 1)
            warden.kill9()
            await log.append([Entry("identity", b"worker", b"no frame")])
            await until(lambda: [blind["what"] for blind in one.status()["blind"]] == ["the log"], 20)
            await asyncio.sleep(4)
            assert (one.status()["missed"], one.status()["ending"], one.status()["sessions"]) == ([], [], 1)
        await log.close()

    asyncio.run(scene())
    assert reaped(warden) == []
    connection.close()


# -- Kafka ---------------------------------------------------------------------------------------------------------------------


class Played:
    """A gateway's record without a gateway: sessions with a real backend each, and a control connection."""

    def __init__(self, database: Any, log: EventLog, name: str) -> None:
        boot = now_us()
        self.database = database
        self.recorder = Recorder(log, name, boot, RecorderSettings())
        self.control = psycopg.connect(database.dsn, application_name=control_name(name, boot), autocommit=True)

    async def open(self, agent: str) -> tuple[str, psycopg.Connection[tuple[object, ...]]]:
        session = secrets.token_hex(10)
        name = stamped_application_name(agent, session)
        connection = psycopg.connect(self.database.dsn, application_name=name, autocommit=True)
        question = (
            "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        pid, start_us = connection.execute(question).fetchone() or (0, 0)
        under = Stamp(
            session,
            agent,
            "key:k",
            "",
            "",
            (),
            "",
            "",
            (),
            (f"g-{agent}",),
            ("oscar",),
            "shop",
            "d",
            "r",
            "c",
            int(str(pid)),
            int(str(start_us)),
            1,
        )
        event = SessionOpened(now_us(), under, "scram", "k", 0, "psql", "", "3.0", "group", (), now_us())
        await self.recorder.recorded(self.recorder.record("sessions", agent, event))
        return session, connection


@pytest.mark.kafka
def test_with_kafka_several_watchdogs_agree_and_one_that_cannot_reach_the_brokers_says_so(
    make_warden: Callable[..., Warden], database: Any, own_broker: Any
) -> None:
    folder = make_warden(start=False).folder  # for its configuration
    kafka = brokers.settings(own_broker, f"test-{secrets.token_hex(4)}.")
    apply(kafka)

    async def scene() -> list[SessionReaped]:
        log = await KafkaLog.open(kafka)
        api = Recorder(log, "api", now_us(), RecorderSettings())
        gateway = Played(database, log, "gateway-k")
        scope = Scope("shop", (WRITE,))
        for agent in ("bad", "good"):
            at = now_us()
            api.record("identity", agent, AgentRegistered(at, agent, "", "team", "", "", "", "k", "v", "olga"))
            api.record("identity", agent, GrantRequested(at + 1, f"g-{agent}", agent, scope, 0, "", "olga"))
            await api.recorded(api.record("identity", agent, GrantApproved(at + 2, f"g-{agent}", agent, "oscar", 0)))
        bad, bad_backend = await gateway.open("bad")
        good, good_backend = await gateway.open("good")
        settings = [
            WatchdogSettings(watchdog=name, orphan_seconds=3.0, look_ms=200.0, blind_seconds=2.0) for name in ("one", "two")
        ]
        logs = [await KafkaLog.open(kafka) for _ in settings]
        async with on_logs(folder, logs, settings) as running:
            one, two = running
            await until(lambda: one.status()["sessions"] == two.status()["sessions"] == 2, 30)
            requested_us = now_us()
            await api.recorded(api.record("identity", "bad", AgentRevoked(requested_us, "bad", "misbehaves", "olga")))
            await until(lambda: one.status()["sessions"] == two.status()["sessions"] == 1, 30)
            assert not alive(database, bad_backend.info.backend_pid)
            assert alive(database, good_backend.info.backend_pid)
            own_broker.pause()
            try:
                await until(lambda: "the log" in {blind["what"] for blind in one.status()["blind"]}, 30)
                gateway.control.close()
                await asyncio.sleep(5)
                assert alive(database, good_backend.info.backend_pid), "the gateway's last words may stand in the log"
            finally:
                own_broker.resume()
            await until(lambda: not alive(database, good_backend.info.backend_pid), 60)
            await until(lambda: not one.status()["sessions"] and not two.status()["sessions"], 30)
            await until(lambda: one.status()["blind"] == [] == one.status()["ending"] and not two.status()["ending"], 30)
        found = await read_reaped(log)
        await api.close()
        await gateway.recorder.close()
        for one_log in (*logs, log):
            await one_log.close()
        bad_backend.close()
        good_backend.close()
        assert {(event.session, event.cause) for event in found} == {(bad, "agent revoked"), (good, "gateway gone")}
        revoked = [event for event in found if event.session == bad]
        assert all(0 < event.backend_gone_us - requested_us < 3_000_000 for event in revoked)
        return found

    found = asyncio.run(scene())
    assert len({(event.session, event.watchdog) for event in found}) == len(found), "once a watchdog"


async def read_reaped(log: EventLog) -> list[SessionReaped]:
    follower = Follower(log, ("observations",), {})
    ends = await log.offsets("observations")
    found: list[SessionReaped] = []
    while any(follower.offsets[place] < end for place, end in ends.items()):
        for _, frame in await follower.poll(timeout_seconds=1):
            found += [event for _, event in frame.events if isinstance(event, SessionReaped)]
    follower.close()
    return found


# -- watchdogs in this process -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def dogs(folder: Path, *settings: WatchdogSettings) -> AsyncIterator[tuple[Watchdog, ...]]:
    """Watchdogs of these settings on one log of segments, running and up to date."""
    log = SegmentLog(folder / "state/log", LogSettings())
    try:
        async with on_logs(folder, [log] * len(settings), settings) as running:
            yield running
    finally:
        await log.close()


@asynccontextmanager
async def on_logs(
    folder: Path, logs: Sequence[EventLog], settings: Sequence[WatchdogSettings]
) -> AsyncIterator[tuple[Watchdog, ...]]:
    config = load(folder / "pgwarden.toml")
    recorders, running, tasks, controls = [], [], [], []
    try:
        for log, one in zip(logs, settings, strict=True):
            boot = now_us()
            recorders.append(Recorder(log, one.watchdog, boot, RecorderSettings()))
            eyes = sights(config, one)
            controls += [control for sight in eyes.values() for control in (sight.look, sight.kill)]
            running.append(Watchdog(log, recorders[-1], eyes, boot, one))
            tasks.append(asyncio.create_task(running[-1].run()))
        await until(lambda: all(one.caught_up for one in running), 20)
        yield tuple(running)
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for recorder in recorders:
            await recorder.close()
        for control in controls:
            await control.close()


async def until(predicate: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.02)
