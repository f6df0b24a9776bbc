"""The backbone under fire: every process is killed in turn under the load of twenty agents, the broker stands still, disks fill and
lie. After each fault the invariants are checked against the log, the server's own log, the clients' word and the tables."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from analytics.settings import AnalyticsSettings
from ingest.events import LogRecovered, SessionClosed, SessionOpened, StatementFinished
from tests.system.invariants import Evidence, Ran, executions, violations
from tests.system.load import Load
from tests.system.topology import Topology, until

if TYPE_CHECKING:
    from pgwarden.postgres import Postgres
    from tests.broker import Broker, Cluster

AGENTS = 20
GATEWAYS = ("gateway-1", "gateway-2")
ORDERS: dict[str, object] = {"schema": "public", "tables": ["orders"], "operations": ["select", "insert"]}
QUIET_SECONDS_MAX = 120.0
TABLES_BYTES_MAX = AnalyticsSettings(Path()).memory_max_mb * 2**20

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(1200)]


class House:
    """A running topology, its load, and the evidence that both leave."""

    def __init__(self, topology: Topology, postgres: Postgres) -> None:
        self.topology, self.postgres = topology, postgres
        self.seed = random.randrange(2**32)
        self.keys = {f"agent-{number}": topology.agent(f"agent-{number}", ORDERS) for number in range(AGENTS)}
        self.load = Load(
            list(self.keys), GATEWAYS, lambda agent, gateway: topology.connect(agent, self.keys[agent], gateway), self.seed
        )
        self.before = topology.measured()
        self._lines_before = sum(1 for _ in postgres.log_entries())  # of other tests' databases of the same name

    def under_load(self, fault: Callable[[], None], seconds: float = 3.0) -> None:
        """Work, the fault at a random moment, and work again afterwards; then every session is closed."""
        with self.load:
            self._work(50)
            time.sleep(random.Random(self.seed).random())
            fault()
            self._work(100)
            time.sleep(seconds)

    def _work(self, statements: int) -> None:
        reached = self.load.progress() + statements
        until(lambda: self.load.progress() >= reached, f"{statements} more statements; {self.load.told.errors[-5:]}", 90)

    def quiet(self) -> None:
        """Return once every session has its end on record with the brokers, and the tables hold all of it."""

        def ended() -> bool:
            opened: set[str] = set()
            closed: set[str] = set()
            for _, event in self.topology.events("sessions"):
                opened |= {event.stamp.session} if isinstance(event, SessionOpened) else set()
                closed |= {event.session} if isinstance(event, SessionClosed) else set()
            return opened == closed

        def projected() -> bool:
            try:
                health = self.topology.ask("GET", "/v1/health")
            except httpx.TransportError:
                return False
            return health.status_code == 200 and bool(health.json()["projection"]["lag_records"] == 0)

        until(projected, "the tables hold all that is in the log", QUIET_SECONDS_MAX, every=0.5)
        until(ended, "every session has its end on record", QUIET_SECONDS_MAX, every=1.0)  # reads all that the brokers have
        time.sleep(2.5)  # where the log ends may have been a second old
        until(projected, "the tables hold all that is in the log", QUIET_SECONDS_MAX)

    def evidence(self) -> Evidence:
        self.quiet()
        log = self.topology.records("sessions", "statements", "observations")
        since = itertools.islice(self.postgres.log_entries(), self._lines_before, None)
        lines = [line for line in since if line.get("dbname") == "shop"]
        with psycopg.connect(self.topology.superuser_dsn, dbname="shop") as direct:
            stored = frozenset(str(row[0]) for row in direct.execute("SELECT customer FROM orders WHERE customer LIKE 'm:%'"))
        return Evidence(
            log=log,
            ran=list(_ran(lines)),
            seen=[json.dumps(line) for line in lines if not _direct(line)],
            acknowledged=frozenset(self.load.told.acknowledged),
            refused=frozenset(self.load.told.refused),
            stored=stored,
            executions_in_tables=self._executions_in_tables(executions(log)),
            artefacts=self._artefacts(),
            secrets=[self.topology.word("database-password").encode(), *(key.encode() for key in self.keys.values())],
            before=self.before,
            after=self.topology.measured(),
            caches_bytes_max={"api": TABLES_BYTES_MAX},
        )

    def _executions_in_tables(self, wanted: int) -> int:
        """Foreign SQL sees a copy of the tables, made anew the more seldom the longer that takes, in a process that has 5 s."""
        found: list[int] = []

        def counted() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answer = self.topology.ask("POST", "/v1/sql", {"sql": "SELECT count(*) FROM statements"})
                if answer.status_code == 200:
                    found.append(int(answer.json()["rows"][0][0]))
            return wanted in found

        with contextlib.suppress(AssertionError):  # what they hold instead is for the checker to say
            until(counted, "the tables hold what the log does", QUIET_SECONDS_MAX)
        return found[-1]

    def _artefacts(self) -> Mapping[str, bytes]:
        found = {path.name: path.read_bytes() for path in self.topology.folder.glob("*.out")}
        for name, process in self.topology.processes.items():
            if process.poll() is None:
                found[f"{name} command line"] = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        return found

    def check(self) -> Evidence:
        evidence = self.evidence()
        assert violations(evidence)[:10] == [], f"seed {self.seed}"
        return evidence


def _direct(line: Mapping[str, object]) -> bool:
    """The test's own, straight to the server."""
    return not str(line.get("application_name", "")).startswith("pgwarden/")


def _ran(lines: list[Mapping[str, object]]) -> Iterator[Ran]:
    for line in lines:
        message = str(line.get("message", ""))
        if line.get("error_severity") == "LOG" and message.startswith(("statement: ", "execute ")) and not _direct(line):
            at = datetime.strptime(str(line["timestamp"]).rsplit(" ", 1)[0], "%Y-%m-%d %H:%M:%S.%f")  # noqa: DTZ007
            yield Ran(int(at.timestamp() * 1e6), int(str(line["remote_port"])), int(str(line["pid"])), message)


@pytest.fixture
def house(own_broker: Broker, postgres: Postgres, tmp_path: Path) -> Iterator[House]:
    # `strict`: only there must nothing run that is not on record, even for a gateway that is killed in the middle.
    strict = {'durability = "group"': 'durability = "strict"'}
    made = Topology(tmp_path, (own_broker.bootstrap,), postgres.host, postgres.port, postgres.dsn("postgres"), changes=strict)
    try:
        with made:
            yield House(made, postgres)
    finally:
        made.drop_database()


def test_whichever_process_is_killed_nothing_is_lost_and_nothing_runs_unrecorded(house: House) -> None:
    topology = house.topology

    def killed(service: str) -> Callable[[], None]:
        def kill() -> None:
            topology.kill9(service)
            time.sleep(1.0)
            topology.launch(service)
            topology.wait_well(service)

        return kill

    for service in ("gateway-1", "worker-1", "watchdog", "gateway-2", "api", "worker-2"):
        house.under_load(killed(service))
        house.check()

    def relay_killed() -> None:
        for gateway in GATEWAYS:
            os.kill(_child(topology.processes[gateway].pid, "relay"), 9)

    house.under_load(relay_killed)
    house.check()

    # Each kill left its trace, and the last word of what was under way.
    finished = [event for _, event in topology.events("statements") if isinstance(event, StatementFinished)]
    assert len(finished) > 1_000
    reasons = {event.reason for _, event in topology.events("sessions") if isinstance(event, SessionClosed)}
    assert "gateway crashed" in reasons


def test_a_broker_that_is_killed_or_stands_still_loses_nothing_and_stops_nobody(house: House, own_broker: Broker) -> None:
    broker = own_broker

    def killed() -> None:
        broker.kill9()
        reached = house.load.progress() + 200
        until(lambda: house.load.progress() >= reached, "statements go on without the broker", 60)
        broker.start()

    house.under_load(killed)
    house.check()

    def still() -> None:
        with broker.paused():
            end = time.monotonic() + 30
            reached = house.load.progress() + 200
            until(lambda: house.load.progress() >= reached, "statements go on while the broker stands still", 60)
            time.sleep(max(0.0, end - time.monotonic()))

    house.under_load(still)
    evidence = house.check()

    # And the checker is worth its word on this evidence too.
    statements = list(evidence.log["statements"])
    lost = statements[5][1]  # and its repetition, if the broker's answer was lost
    others = [(record, frame) for record, frame in statements if frame != lost]
    without_a_frame = dataclasses.replace(evidence, log={**evidence.log, "statements": others})
    assert violations(without_a_frame)
    stray = dataclasses.replace(evidence, ran=[*evidence.ran, Ran(0, 1, 1, "SELECT 'm:agent-1.never.1'")])
    assert violations(stray)

    # The projector's tables, made under fire, are those of a rebuild.
    house.topology.stop("gateway-1", "gateway-2", "watchdog", "worker-1", "worker-2")
    house.quiet()
    house.topology.stop("api")
    rebuilt = json.loads(house.topology.run("rebuild", "-c", str(house.topology.file("api")), "--json"))
    different = {table["table"] for table in rebuilt["tables"] if table["before"] != "equal"}
    # Who looked how often is told as the API ends; on a busy machine it does not wait until the tables hold that too.
    assert different <= {"looks", "offsets", "writers"}, rebuilt


@pytest.fixture
def house_on_three_brokers(cluster: Cluster, postgres: Postgres, tmp_path: Path) -> Iterator[House]:
    changes = {'durability = "group"': 'durability = "strict"', "in_sync_min = 1": "in_sync_min = 2"}
    made = Topology(
        tmp_path, cluster.bootstrap, postgres.host, postgres.port, postgres.dsn("postgres"), replication=3, changes=changes
    )
    try:
        with made:
            yield House(made, postgres)
    finally:
        made.drop_database()


def test_any_one_of_three_brokers_may_die(house_on_three_brokers: House, cluster: Cluster) -> None:
    house = house_on_three_brokers
    for broker in cluster.brokers:

        def killed(broker: Broker = broker) -> None:
            broker.kill9()
            reached = house.load.progress() + 200
            until(lambda: house.load.progress() >= reached, "statements go on with two brokers", 60)
            broker.start()

        house.under_load(killed)
        house.check()


@pytest.fixture
def house_on_a_small_disk(
    own_broker: Broker, postgres: Postgres, tmp_path: Path, needs: Callable[[str, bool], None]
) -> Iterator[tuple[House, Path]]:
    """gateway-1 keeps its record on a disk of 48 MiB."""
    needs("root", os.geteuid() == 0)
    needs("strace", shutil.which("strace") is not None)
    disk = tmp_path / "state" / "gateway-1"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", str(disk)], check=True)
    strict = {'durability = "group"': 'durability = "strict"'}
    try:
        made = Topology(tmp_path, (own_broker.bootstrap,), postgres.host, postgres.port, postgres.dsn("postgres"), changes=strict)
        try:
            with made:
                yield House(made, postgres), disk
        finally:
            made.drop_database()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_full_or_lies_or_was_torn_costs_no_record(house_on_a_small_disk: tuple[House, Path]) -> None:
    house, disk = house_on_a_small_disk
    topology = house.topology
    ballast = disk / "ballast"

    def full() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 65_536)
        # Segments have room made ready, which must fill up too.
        with contextlib.suppress(psycopg.Error), topology.connect("agent-0", house.keys["agent-0"], "gateway-1") as session:
            for number in range(1_000):  # each a text of its own: one that is known already is recorded by its number
                session.execute(f"SELECT '{number}{'y' * 50_000}'".encode())
        until(lambda: topology.status("gateway-1")["log"]["available"] is False, "gateway-1 says that it cannot record", 90)
        reached = house.load.progress() + 50
        until(lambda: house.load.progress() >= reached, "the agents go on through gateway-2", 60)
        ballast.unlink()
        until(lambda: topology.status("gateway-1")["log"]["available"] is True, "gateway-1 recovers by itself", 60)

    house.under_load(full)
    house.check()

    def torn() -> None:
        topology.kill9("gateway-1")
        segment = max((disk / "gateway-log" / "statements" / "0").glob("*.seg"))
        with segment.open("r+b") as file:  # a batch that was being written: pending, and cut short
            file.seek(_end(segment.read_bytes()))
            file.write(b"\x5a\x00\x00\x05" + os.urandom(200))
        topology.launch("gateway-1")
        topology.wait_well("gateway-1")

    house.under_load(torn)
    house.check()
    recovered = [event for _, event in topology.events("sessions") if isinstance(event, LogRecovered)]
    assert any(event.topic == "statements" and event.dropped_bytes for event in recovered)

    def lies() -> None:
        topology.kill9("gateway-2")
        fails_once = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]
        topology.launch("gateway-2", [*fails_once, "-e", "inject=fdatasync:error=EIO:when=60"])
        topology.wait_well("gateway-2")

    house.under_load(lies, seconds=8.0)
    house.check()


def _end(segment: bytes) -> int:
    """Where the durable batches end (docs/log-format.md)."""
    at = 0
    while segment[at : at + 1] == b"\xa5":
        at += 28 + int.from_bytes(segment[at + 20 : at + 24], "big")
    return at


def _child(parent: int, word: str) -> int:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", word], capture_output=True, text=True, check=True).stdout.split()
    assert found, f"process {parent} has no child {word}"
    return int(found[0])
