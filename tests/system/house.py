"""Gateway, API, watchdog and collectors as processes around one PostgreSQL: what tests of reconciliation drive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from identity import agent_keys
from pgwarden.cli import main
from pgwarden.status_socket import status_of
from tests import broker as brokers
from tests.conftest import Database

ALICE, ALICE_SHA256 = agent_keys.create_operator_key()
BOB, BOB_SHA256 = agent_keys.create_operator_key()
ROOT = Path(__file__).parents[2]
KINDS = ("shadow", "hijacked", "unaudited", "phantom", "miscounted")
WaitFor = Callable[..., object]
Housed = Callable[..., contextlib.AbstractContextManager["House"]]


class House:
    """A running pgwarden that ends what nobody opened. As `warden` it is what tests/system/test_record_equals_server_log.py drives."""

    def __init__(
        self, folder: Path, port: int, api_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder = folder
        self.port = port
        self.api_port = api_port
        self.keys: dict[str, str] = {}
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def run(self, *line: str, by: str = ALICE) -> Any:
        self._monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", by)
        code = main([*line, "--json"])
        captured = self._capsys.readouterr()
        return json.loads(captured.out) if code == 0 else None

    def agent(self, name: str) -> None:
        made = self.run("agents", "register", name, "--description", "d", "--owner", "o", "--key")
        self.keys[name] = made["key"]
        allow = ["--allow", "select, insert, update, delete, copy on public.orders", "--channel", "ours"]
        asked = self.run("grants", "request", name, "--connection", "shop", *allow, "--reason", "work")
        self.run("grants", "approve", asked["grant"], by=BOB)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname="shop",
            user=name,
            password=self.keys[name],
            autocommit=True,
            connect_timeout=10,
        )

    def get(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list of the API."""
        items: list[dict[str, Any]] = []
        before = ""
        while True:
            parameters = {"limit": "1000", **({"before": before} if before else {})}
            answer = httpx.get(
                f"http://127.0.0.1:{self.api_port}{path}",
                params={**dict(httpx.URL(path).params), **parameters},
                headers={"Authorization": f"Bearer {ALICE}"},
                timeout=30,
            )
            assert answer.status_code == 200, answer.text
            items += answer.json()["items"]
            before = answer.json()["next"] or ""
            if not before:
                return items

    def findings(self) -> list[dict[str, Any]]:
        return [finding for finding in self.get("/v1/findings") if finding["detector"] in KINDS]

    def knows(self, name: str) -> bool:
        """Whether the gateway lets this agent in."""
        try:
            self.connect(name).close()
        except psycopg.OperationalError:
            return False
        return True

    def judged(self, role: str) -> bool:
        """Whether each session that the gateway opened, and each other one of this role, has a verdict."""
        seen = [one["verdict"] for one in self.get("/v1/observations/sessions") if one["user_name"] == role]
        return len(seen) >= len(self.get("/v1/sessions")) and "pending" not in seen

    def pgbench(self, agent: str, mode: str) -> None:
        script = self.folder / "script.sql"
        script.write_text(
            "\\set id random(1, 20)\n"
            "BEGIN;\nUPDATE orders SET note = 'b' WHERE id = :id;\nSELECT note FROM orders WHERE id = :id;\nEND;\n"
        )
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", agent]
        done = subprocess.run(
            ["pgbench", "-n", "-M", mode, "-c", "2", "-t", "60", "-f", str(script), *where, "shop"],
            env={"PGPASSWORD": self.keys[agent], "PATH": "/usr/bin:/usr/lib/postgresql/15/bin"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def collectors(self) -> list[dict[str, Any]]:
        """As they say themselves; none while their process does not answer."""
        try:
            said: Any = status_of(self.folder / "state/run/collector.sock", 5.0)
        except (OSError, ValueError):
            return []
        found: list[dict[str, Any]] = said["collectors"]
        return found

    def sees(self) -> bool:
        """Whether each collector does, and has seen a canary."""
        said = self.collectors()
        return bool(said) and all(not one["reason"] and one["canary_us"] for one in said)

    def verdicts(self) -> Counter[str]:
        """Of every session that was seen; of none while one waits for its own, as a canary's that has just begun."""
        found = Counter(one["verdict"] for one in self.get("/v1/observations/sessions"))
        return Counter() if "pending" in found else found

    def compared(self) -> dict[str, int]:
        """What reconciliation has counted, without what it has not met."""
        answer = httpx.get(
            f"http://127.0.0.1:{self.api_port}/v1/coverage", headers={"Authorization": f"Bearer {ALICE}"}, timeout=30
        )
        return {name: number for name, number in answer.json()["reconciliation"].items() if number}


@contextlib.contextmanager
def process(command: str, folder: Path, ready: Callable[[], object], wait_for: WaitFor) -> Iterator[None]:
    with (folder / f"{command}.log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", command, "-c", "pgwarden.toml"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: running.poll() is not None or ready(), 60.0, f"{command} is ready")
        assert running.poll() is None, (folder / f"{command}.log").read_text()
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@pytest.fixture
def housed(
    tmp_path: Path, wait_for: WaitFor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., contextlib.AbstractContextManager[House]]:
    """`with housed(database, collector("log", ...)) as house:` all of it, with its collectors seeing, in the test's folder."""

    def made(database: Database, *collectors: str) -> contextlib.AbstractContextManager[House]:
        return _running(tmp_path, database, "\n".join(collectors), wait_for, capsys, monkeypatch)

    return made


def collector(kind: str, *lines: str) -> str:
    """Its table of the configuration; the server is "main"."""
    own = (f"[collectors.{kind}]", f'kind = "{kind}"', 'server = "main"', 'connections = ["shop"]', "canary_seconds = 5")
    return "\n".join((*own, *lines))


@contextlib.contextmanager
def _running(
    folder: Path,
    database: Database,
    collectors: str,
    wait_for: WaitFor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    gateway_port, api_port = brokers.port(), brokers.port()
    (folder / "shop.password").write_text(database.password)
    (folder / "shop.password").chmod(0o600)
    (folder / "pgwarden.toml").write_text(f"""
state = "state"
[gateway]
listen = "127.0.0.1:{gateway_port}"
tls = "optional"
[api]
listen = "127.0.0.1:{api_port}"
[connections.shop]
host = "{database.host}"
port = {database.port}
database = "{database.name}"
user = "{database.role}"
password = "file:shop.password"
sslmode = "disable"
{collectors}
[reconcile]
kill_shadow = true
[operators.alice]
key_sha256 = "{ALICE_SHA256}"
[operators.bob]
key_sha256 = "{BOB_SHA256}"
""")
    monkeypatch.chdir(folder)
    for name in ("PGWARDEN_API", "PGWARDEN_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    made = House(folder, gateway_port, api_port, capsys, monkeypatch)
    run = folder / "state" / "run"
    with contextlib.ExitStack() as stack:
        stack.enter_context(process("api", folder, (run / "api.sock").exists, wait_for))
        wait_for(lambda: made.run("agents") is not None, 60, "the API answers")
        # What these tests themselves do on the server is declared, as an operator's work would be.
        declared = ["--kind", "administration", "--role", database.superuser, "--from", "127.0.0.0/8", "--reason", "tests"]
        made.run("sources", "declare", "tests", *declared)
        stack.enter_context(process("gateway", folder, (run / "gateway.sock").exists, wait_for))
        stack.enter_context(process("watchdog", folder, (run / "watchdog.sock").exists, wait_for))
        stack.enter_context(process("collector", folder, made.sees, wait_for))
        yield made
