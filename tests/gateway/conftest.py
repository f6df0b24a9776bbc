"""A real gateway process before a real PostgreSQL, and the record that it leaves."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psycopg
import pytest

from identity import agent_keys
from ingest.events import (
    AgentRegistered,
    Event,
    GrantApproved,
    GrantRequested,
    IdentityEvent,
    Rule,
    Scope,
    SessionEvent,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementEvent,
    StatementFinished,
    StatementStarted,
    Topic,
)
from ingest.follow import Follower, Gap
from ingest.log import EventLog
from ingest.log.kafka import KafkaLog
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import KafkaSettings, LogSettings, RecorderSettings

REPOSITORY = Path(__file__).parents[2]
READ_ORDERS = Rule("public", ("orders",), ("select",))
WRITE_APP = Rule("app", ("*",), ("select", "insert", "update", "delete", "ddl", "copy"))

CONFIG = """
state = "state"
[gateway]
name = "gateway-1"
listen = "127.0.0.1:{port}"
durability = "{durability}"
parameters = {parameters}
tls = "{tls}"
[connections.shop]
host = "{host}"
port = {database_port}
database = "{database}"
user = "{role}"
password = "file:password"
sslmode = "disable"
search_path = ["public"]
{more}
"""


KAFKA = """
[log]
backend = "kafka"
stale_seconds_max = {stale_seconds_max}
backlog_bytes_max = {backlog_bytes_max}
[kafka]
bootstrap = ["{bootstrap}"]
tls = false
topic_prefix = "{prefix}"
replication = 1
in_sync_min = 1
sessions_partitions = {sessions}
statements_partitions = {statements}
findings_partitions = {findings}
observations_partitions = {observations}
witness_partitions = {witness}
looks_partitions = {looks}
"""


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution as the record tells it."""

    stamp: Stamp
    number: int
    text: str
    decision: str  # "allow" | "deny"
    outcome: str  # "" = none recorded
    sqlstate: str
    tag: str
    rows: int
    rule: str
    reason: str = ""


@dataclass
class Warden:
    """A gateway on a folder of its own. The test plays the API: it is the only writer of the identity topic.

    With `kafka` the log is there, and the folder's own is the gateway's alone.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    keys: dict[str, str] = field(default_factory=dict)
    kafka: KafkaSettings | None = None
    gaps: list[Gap] = field(default_factory=list)  # that events() met
    newest_us: int = 0  # of the identity events recorded
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def start(self, environment: dict[str, str] | None = None, *, wrapper: Sequence[str] = ()) -> None:
        with (self.folder / "gateway.out").open("ab") as output:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "pgwarden", "gateway", "-c", str(self.folder / "pgwarden.toml")],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + 60
        while True:
            try:
                self.status()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.folder / "gateway.out").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill9(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def status(self) -> dict[str, object]:
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.folder / "state/run/gateway.sock"))
            data = b""
            while more := client.recv(65536):
                data += more
        answer: dict[str, object] = orjson.loads(data)
        return answer

    # -- identity ----------------------------------------------------------------------------------------------------------------

    def record(self, *events: IdentityEvent | Event, topic: Topic = "identity") -> None:
        async def append() -> None:
            log = await self.log()
            recorder = Recorder(log, "test", time.time_ns() // 1000, RecorderSettings())
            for event in events:
                recorder.record(topic, getattr(event, "agent", ""), event)
            await recorder.close()
            await log.close()

        asyncio.run(append())
        if topic == "identity":
            self.newest_us = max([self.newest_us, *(getattr(event, "at_us", 0) for event in events)])

    async def log(self) -> EventLog:
        return SegmentLog(self.folder / "state/log", LogSettings()) if self.kafka is None else await KafkaLog.open(self.kafka)

    def agent(
        self,
        name: str,
        *rules: Rule,
        functions: tuple[str, ...] = (),
        channels: tuple[str, ...] = (),
        introspection: bool = False,
        expires_at_us: int = 0,
        issuer: str = "",
        client: str = "",
        connection: str = "shop",
    ) -> str:
        """Register an agent with a key (or a token client) and one approved grant; return the grant's id."""
        now = time.time_ns() // 1000
        key, key_id, verifier = agent_keys.create()
        self.keys[name] = key
        if issuer:
            key_id = verifier = ""
        grant = f"g-{next(self._numbers)}-{name}"
        scope = Scope(connection, rules or (READ_ORDERS,), functions, channels, introspection)
        self.record(
            AgentRegistered(now, name, f"the {name}", "team", issuer, "", client, key_id, verifier, "olga"),
            GrantRequested(now, grant, name, scope, 0, "test", "olga"),
            GrantApproved(now, grant, name, "oscar", expires_at_us),
        )
        self.settle()
        return grant

    def settle(self) -> None:
        """Return once the gateway acts on every identity event that was recorded; at once where none runs."""
        if self.process is None or self.process.poll() is not None:
            return
        until = time.monotonic() + 30
        while int(str(self.status()["identity_at_us"])) < self.newest_us:
            assert time.monotonic() < until, "the gateway does not follow the log"
            time.sleep(0.01)

    # -- clients -----------------------------------------------------------------------------------------------------------------

    def dsn(self, agent: str, **more: object) -> str:
        parameters: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "dbname": "shop",
            "user": agent,
            "password": self.keys[agent],
            "sslmode": "verify-full",
            "sslrootcert": str(self.folder / "state/tls/certificate.pem"),
            "connect_timeout": 10,
        }
        return psycopg.conninfo.make_conninfo("", **{**parameters, **more})

    def connect(self, agent: str, **more: object) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.dsn(agent, **more), autocommit=True)

    # -- record ------------------------------------------------------------------------------------------------------------------

    def events(self, topic: Topic) -> list[tuple[Stamp | None, Event]]:
        async def read() -> list[tuple[Stamp | None, Event]]:
            log = await self.log()
            follower = Follower(log, (topic,), {}, on_gap=self.gaps.append)
            found: list[tuple[Stamp | None, Event]] = []
            end = sum((await log.offsets(topic)).values())
            while sum(follower.offsets.values()) < end:
                for _, frame in await follower.poll(timeout_seconds=1):
                    found.extend((frame.stamps[index] if index >= 0 else None, event) for index, event in frame.events)
            follower.close()
            await log.close()
            return found

        return asyncio.run(read())

    def session_events(self, *kinds: type[SessionEvent]) -> list[SessionEvent]:
        return [event for _, event in self.events("sessions") if isinstance(event, kinds)]

    def executions(self, agent: str = "") -> list[Execution]:
        texts: dict[tuple[str, int], str] = {}
        found: dict[tuple[str, int], Execution] = {}
        for stamp, event in self.events("statements"):
            assert stamp is not None
            assert isinstance(event, StatementEvent)
            if isinstance(event, StatementDefined):
                texts[(stamp.session, event.statement)] = event.text
            elif isinstance(event, StatementStarted):
                text = texts[(stamp.session, event.statement)]
                found[(stamp.session, event.execution)] = Execution(
                    stamp, event.execution, text, "allow", "", "", "", 0, event.rule
                )
            elif isinstance(event, StatementDenied):
                text = texts.get((stamp.session, event.statement), "")
                found[(stamp.session, event.execution)] = Execution(
                    stamp, event.execution, text, "deny", "", event.sqlstate, "", 0, event.rule, event.reason
                )
            elif isinstance(event, StatementFinished):
                begun = found[(stamp.session, event.execution)]
                assert begun.outcome == "", "an execution has one end"
                found[(stamp.session, event.execution)] = Execution(
                    stamp,
                    begun.number,
                    begun.text,
                    begun.decision,
                    event.outcome,
                    event.sqlstate,
                    event.tag,
                    event.rows,
                    begun.rule,
                )
        return [execution for execution in found.values() if not agent or execution.stamp.agent == agent]


@pytest.fixture
def make_warden(tmp_path: Path, request: pytest.FixtureRequest, free_port: int) -> Iterator[Callable[..., Warden]]:
    """Make gateways before the test's own database; all are stopped after the test."""
    database = request.getfixturevalue("database")
    made: list[Warden] = []

    def make(
        *,
        durability: str = "group",
        parameters: bool = False,
        tls: str = "required",
        more: str = "",
        start: bool = True,
        kafka: KafkaSettings | None = None,
        stale_seconds_max: float = 10.0,
        backlog_bytes_max: int = 2**30,
    ) -> Warden:
        if kafka is not None:
            more += KAFKA.format(
                stale_seconds_max=stale_seconds_max,
                backlog_bytes_max=backlog_bytes_max,
                bootstrap=kafka.bootstrap[0],
                prefix=kafka.topic_prefix,
                **kafka.partitions,
            )
        warden = Warden(tmp_path, free_port, kafka=kafka)
        (tmp_path / "password").write_text(database.password)
        (tmp_path / "password").chmod(0o600)
        config = CONFIG.format(
            port=free_port,
            durability=durability,
            parameters="true" if parameters else "false",
            tls=tls,
            host=database.host,
            database_port=database.port,
            database=database.name,
            role=database.role,
            more=more,
        )
        (tmp_path / "pgwarden.toml").write_text(config)
        (tmp_path / "pgwarden.toml").chmod(0o600)
        made.append(warden)
        if start:
            warden.start()
        return warden

    yield make
    for warden in made:
        if warden.process is not None and warden.process.poll() is None:
            warden.kill9()


@pytest.fixture
def warden(make_warden: Callable[..., Warden]) -> Warden:
    return make_warden()
