"""The topology of docker-compose.yml as processes of this machine, each with a state folder and ports of its own.

What runs, with which command, is read from docker-compose.yml; certificates, secrets and configurations are those that
deploy/setup.py makes. Only what a container would bring stands elsewhere: PostgreSQL, the brokers and the issuer.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import psycopg
import yaml
from psycopg import sql

from ingest.events import Event, Frame, Stamp, Topic
from ingest.frames import decode
from ingest.log import LogUnavailable, Record
from ingest.log.kafka import KafkaLog
from ingest.settings import KafkaSettings
from pgwarden.config import Config, load
from pgwarden.postgres import die_with_parent
from tests.broker import port
from tests.system.invariants import Process

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
STOP_SECONDS_MAX: Final = 30.0
READY_SECONDS_MAX: Final = 90.0  # two old cores, with ten processes starting at once


def services() -> dict[str, list[str]]:
    """The long-running services of ours, and their commands: those that docker-compose.yml checks the health of."""
    return {
        name: list(service["command"])
        for name, service in COMPOSE["services"].items()
        if service.get("image") == "pgwarden" and "healthcheck" in service
    }


@dataclass
class Topology:
    folder: Path
    bootstrap: tuple[str, ...]
    host: str
    database_port: int
    superuser_dsn: str
    issuer: str = "https://127.0.0.1:1/realms/agents"  # nobody, where no test asks for tokens
    replication: int = 1
    server_log: Path | None = None  # the folder of the server's log; None: no collector runs
    changes: dict[str, str] = field(default_factory=dict)  # text of the configuration -> what stands there instead
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = {
            "state": str(self.folder / "state" / "@process@"),
            "kafka": '", "'.join(self.bootstrap),
            "postgres_host": self.host,
            "postgres_port": str(self.database_port),
            "issuer": self.issuer,
            "replication": str(self.replication),
            "postgres_log": str(self.server_log or self.folder / "postgres-log"),
        }
        subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "setup.py"), str(self.folder), *(f"{k}={v}" for k, v in values.items())],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        api_port, dashboard_port = port(), port()
        self.ports = {"api": api_port, "dashboard": dashboard_port}
        for file in (self.folder / "pgwarden").glob("*.toml"):
            text = file.read_text()
            own_port = 6432  # which only gateways listen on
            if file.stem.startswith("gateway"):
                own_port = self.ports[file.stem] = port()
            text = text.replace("0.0.0.0:6432", f"127.0.0.1:{own_port}")
            text = text.replace("0.0.0.0:8470", f"127.0.0.1:{api_port}").replace("0.0.0.0:8471", f"127.0.0.1:{dashboard_port}")
            text = text.replace('sslmode = "verify-full"', 'sslmode = "disable"')  # the embedded server speaks no TLS
            text = re.sub(r"sslrootcert = .*\n", "", text)
            for old, new in self.changes.items():
                assert old in text
                text = text.replace(old, new)
            file.write_text(text)

    # -- life ------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Topology:
        with ExitStack() as stack:
            stack.callback(self.close)
            self._make_database()
            self.run("topics", "apply", "-c", str(self.file("api")))
            started = [name for name in services() if name != "collector" or self.server_log is not None]
            for service in started:
                self.launch(service)
            for service in started:
                self.wait_well(service)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS_MAX
        for process in self.processes.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self, *names: str) -> None:
        """End them as a service manager does; they must."""
        for name in names:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in names:
            assert self.processes[name].wait(STOP_SECONDS_MAX) == 0, self.output(name).read_text(errors="replace")[-2000:]

    def _make_database(self) -> None:
        """What the container of PostgreSQL does with the file of deploy/setup.py, and `\\connect` by hand."""
        first, _, then = (self.folder / "postgres" / "10-shop.sql").read_text().partition("\\connect shop\n")
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            for statement in filter(str.strip, first.split(";\n")):
                connection.execute(statement.encode())
        with psycopg.connect(self.superuser_dsn, dbname="shop", autocommit=True) as connection:
            connection.execute(then.encode())

    def drop_database(self) -> None:
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS shop WITH (FORCE)"))
            connection.execute(sql.SQL("DROP ROLE IF EXISTS warden"))

    # -- processes -------------------------------------------------------------------------------------------------------------

    def file(self, process: str) -> Path:
        return self.folder / "pgwarden" / f"{process}.toml"

    def config(self, process: str) -> Config:
        return load(self.file(process))

    def arguments(self, command: Iterable[str]) -> list[str]:
        told = [word.replace("/etc/pgwarden/", f"{self.folder}/pgwarden/") for word in command]
        return [sys.executable, "-m", "pgwarden", *told]

    def environment(self, service: str = "") -> dict[str, str]:
        told = COMPOSE["services"].get(service, {}).get("environment", {})
        moved = {name: value.replace("/etc/pgwarden/", f"{self.folder}/pgwarden/") for name, value in told.items()}
        return {**os.environ, "PYTHONPATH": str(ROOT), **moved}

    def launch(self, service: str, wrapper: Sequence[str] = ()) -> None:
        with self.output(service).open("ab") as output:
            self.processes[service] = subprocess.Popen(
                [*wrapper, *self.arguments(services()[service])],
                cwd=ROOT,
                env=self.environment(service),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def run(self, *command: str) -> str:
        """One command to its end; its output."""
        done = subprocess.run(
            self.arguments(command), cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"pgwarden {' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def output(self, service: str) -> Path:
        return self.folder / f"{service}.out"

    def well(self, service: str) -> bool:
        """What docker-compose.yml asks."""
        test = COMPOSE["services"][service]["healthcheck"]["test"]
        assert test[:2] == ["CMD", "pgwarden"]
        return (
            subprocess.run(self.arguments(test[2:]), cwd=ROOT, env=self.environment(), capture_output=True, check=False).returncode
            == 0
        )

    def wait_well(self, service: str, seconds: float = READY_SECONDS_MAX) -> None:
        until = time.monotonic() + seconds
        while not self.well(service):
            gone = self.processes[service].poll()
            if gone is not None or time.monotonic() > until:
                said = self.output(service).read_text(errors="replace")[-4000:]
                raise AssertionError(f"{service} is not well (exit status {gone}):\n{said}")
            time.sleep(0.2)

    def kill9(self, service: str) -> None:
        self.processes[service].kill()
        self.processes[service].wait()

    def pause(self, service: str) -> None:
        self.processes[service].send_signal(signal.SIGSTOP)

    def resume(self, service: str) -> None:
        self.processes[service].send_signal(signal.SIGCONT)

    def status(self, gateway: str) -> dict[str, Any]:
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.folder / "state" / gateway / "run" / "gateway.sock"))
            said = b""
            while more := client.recv(65_536):
                said += more
        answer: dict[str, Any] = orjson.loads(said)
        return answer

    def measured(self) -> list[Process]:
        """Memory and descriptors of every process that runs."""
        found = []
        for name, process in self.processes.items():
            if process.poll() is None:
                folder = Path("/proc") / str(process.pid)
                pages = int((folder / "statm").read_text().split()[1])
                found.append(Process(name, pages * os.sysconf("SC_PAGE_SIZE"), len(list((folder / "fd").iterdir()))))
        return found

    # -- operators and agents --------------------------------------------------------------------------------------------------

    def word(self, name: str) -> str:
        return (self.folder / "pgwarden" / name).read_text().strip()

    def ask(self, method: str, path: str, body: object = None, by: str = "operator", **query: str | int) -> httpx.Response:
        return httpx.request(
            method,
            f"http://127.0.0.1:{self.ports['api']}{path}",
            json=body,
            params=query,
            headers={"Authorization": f"Bearer {self.word(f'{by}.key')}"},
            timeout=30,
            trust_env=False,
        )

    def call(self, method: str, path: str, body: object = None, by: str = "operator", **query: str | int) -> Any:
        answer = self.ask(method, path, body, by, **query)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def agent(self, name: str, *rules: dict[str, object]) -> str:
        """Register an agent with an approved grant; return its key."""
        key: str = self.call("POST", "/v1/agents", {"agent": name, "description": name, "owner": "team", "key": True})["key"]
        scope = {"connection": "shop", "rules": list(rules), "functions": [], "channels": [], "introspection": False}
        asked = self.call("POST", "/v1/grants", {"agent": name, "scope": scope, "seconds": 0, "reason": "a test"})
        self.call("POST", f"/v1/grants/{asked['grant']}/approve", by="approver")
        return key

    def dsn(self, agent: str, key: str, gateway: str, **more: object) -> str:
        parameters: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.ports[gateway],
            "dbname": "shop",
            "user": agent,
            "password": key,
            "sslmode": "verify-full",
            "sslrootcert": str(self.folder / "pgwarden" / "ca.pem"),
            "connect_timeout": 10,
        }
        return psycopg.conninfo.make_conninfo("", **{**parameters, **more})

    def connect(self, agent: str, key: str, gateway: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.dsn(agent, key, gateway), autocommit=True)

    # -- the log ---------------------------------------------------------------------------------------------------------------

    @property
    def kafka(self) -> KafkaSettings:
        settings = self.config("api").kafka
        assert settings is not None
        return settings

    def records(self, *topics: Topic) -> dict[str, list[tuple[Record, Frame]]]:
        """All that is in these topics now, repetitions included."""

        async def read() -> dict[str, list[tuple[Record, Frame]]]:
            log = await KafkaLog.open(self.kafka)
            found: dict[str, list[tuple[Record, Frame]]] = {topic: [] for topic in topics}
            try:
                for topic in topics:
                    ends = await log.offsets(topic)
                    left = sum(ends.values())
                    subscription = log.assign(dict.fromkeys(ends, 0))
                    while left > 0:
                        for record in await subscription.poll(1_000, 5.0):
                            found[topic].append((record, decode(record.value)))
                            left -= 1
                    subscription.close()
            finally:
                await log.close()
            return found

        end = time.monotonic() + 60
        while True:
            try:
                return asyncio.run(asyncio.wait_for(read(), 120))
            except LogUnavailable:  # a broker that has just come back
                if time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def events(self, topic: Topic) -> list[tuple[Stamp | None, Event]]:
        return [
            (frame.stamps[index] if index >= 0 else None, event)
            for _, frame in self.records(topic)[topic]
            for index, event in frame.events
        ]


def until(met: Callable[[], bool], what: str, seconds: float = 30.0, every: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(every)
