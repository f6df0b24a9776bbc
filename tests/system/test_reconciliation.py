"""Gateway, API, watchdog and log collector as processes, a real PostgreSQL: what is honest raises nothing, who goes round is named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from analytics.checkpoints import Checkpoint, read
from analytics.reconcile import Reconcile
from analytics.settings import ReconcileSettings
from identity import agent_keys
from pgwarden.cli import main
from pgwarden.postgres import Postgres
from pgwarden.status_socket import status_of
from tests import broker as brokers
from tests.conftest import Database
from tests.system.test_record_equals_server_log import Agent

ALICE, ALICE_SHA256 = agent_keys.create_operator_key()
BOB, BOB_SHA256 = agent_keys.create_operator_key()
ROOT = Path(__file__).parents[2]
KINDS = ("shadow", "hijacked", "unaudited", "phantom", "miscounted")


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


@contextlib.contextmanager
def process(command: str, folder: Path, ready: Callable[[], object], wait_for: Callable[..., object]) -> Iterator[None]:
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


def _sees(house: House) -> bool:
    try:
        said = status_of(house.folder / "state/run/collector.sock", 5.0)
    except (OSError, ValueError):
        return False
    collectors: Any = said["collectors"]
    return not said["blind"] and bool(collectors[0]["canary_us"])


def _knows(house: House, name: str) -> bool:
    try:
        house.connect(name).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def house(
    tmp_path: Path,
    database: Database,
    postgres: Postgres,
    wait_for: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    gateway_port, api_port = brokers.port(), brokers.port()
    (tmp_path / "shop.password").write_text(database.password)
    (tmp_path / "shop.password").chmod(0o600)
    (tmp_path / "pgwarden.toml").write_text(f"""
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
[collectors.log]
kind = "log"
server = "main"
connections = ["shop"]
path = "{postgres.log_path.parent}"
canary_seconds = 5
[reconcile]
kill_shadow = true
[operators.alice]
key_sha256 = "{ALICE_SHA256}"
[operators.bob]
key_sha256 = "{BOB_SHA256}"
""")
    monkeypatch.chdir(tmp_path)
    for name in ("PGWARDEN_API", "PGWARDEN_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    made = House(tmp_path, gateway_port, api_port, capsys, monkeypatch)
    run = tmp_path / "state" / "run"
    with contextlib.ExitStack() as running:
        running.enter_context(process("api", tmp_path, (run / "api.sock").exists, wait_for))
        wait_for(lambda: made.run("agents") is not None, 60, "the API answers")
        # What these tests themselves do on the server is declared, as an operator's work would be.
        declared = ["--kind", "administration", "--role", database.superuser, "--from", "127.0.0.0/8", "--reason", "tests"]
        made.run("sources", "declare", "tests", *declared)
        running.enter_context(process("gateway", tmp_path, (run / "gateway.sock").exists, wait_for))
        running.enter_context(process("watchdog", tmp_path, (run / "watchdog.sock").exists, wait_for))
        running.enter_context(process("collector", tmp_path, lambda: _sees(made), wait_for))
        yield made


def _pgbench(house: House, agent: str, folder: Path, mode: str) -> None:
    script = folder / "script.sql"
    script.write_text(
        "\\set id random(1, 20)\n"
        "BEGIN;\nUPDATE orders SET note = 'b' WHERE id = :id;\nSELECT note FROM orders WHERE id = :id;\nEND;\n"
    )
    done = subprocess.run(
        [
            "pgbench",
            "-n",
            "-M",
            mode,
            "-c",
            "2",
            "-t",
            "60",
            "-f",
            str(script),
            "-h",
            "127.0.0.1",
            "-p",
            str(house.port),
            "-U",
            agent,
            "shop",
        ],
        env={"PGPASSWORD": house.keys[agent], "PATH": "/usr/bin:/usr/lib/postgresql/15/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_that_the_protocol_allows_is_explained_and_nothing_else(
    house: House, tmp_path: Path, database: Database, wait_for: Callable[..., object], needs: Callable[[str, bool], None]
) -> None:
    needs("pgbench", shutil.which("pgbench") is not None)
    agents = [Agent(house, number) for number in range(3)]  # type: ignore[arg-type]
    for agent in agents:
        house.agent(agent.name)
    wait_for(lambda: all(_knows(house, agent.name) for agent in agents), 20, "the gateway knows the agents")
    for agent in agents:
        for scenario in agent.scenarios():
            scenario()
    for mode in ("simple", "extended", "prepared"):
        _pgbench(house, agents[0].name, tmp_path, mode)

    def judged() -> bool:
        seen = [one["verdict"] for one in house.get("/v1/observations/sessions") if one["user_name"] == database.role]
        return len(seen) >= len(house.get("/v1/sessions")) and "pending" not in seen

    wait_for(judged, 60, "every session is judged")
    time.sleep(8)  # what is not explained by now is told by now: 5 s of lateness, a second of the watermark
    assert [finding["summary"] for finding in house.findings()] == []
    verdicts = Counter(one["verdict"] for one in house.get("/v1/observations/sessions"))
    assert set(verdicts) <= {"audited", "ours", "declared"}, verdicts
    assert verdicts["audited"] > 30
    ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
    recorded = len(ran)
    assert recorded > 1_000
    # The API keeps the step's state as it ends.
    subprocess.run(["/bin/kill", "-TERM", str(status_of(house.folder / "state/run/api.sock", 5.0)["pid"])], check=True)
    (folder,) = (house.folder / "state").glob("**/inspections")

    def kept() -> dict[str, int]:
        found = read(str(folder / "reconcile.state"))
        assert isinstance(found, Checkpoint)
        step = Reconcile(ReconcileSettings())
        step.restore(found.state)
        return step.status()

    counts = wait_for(lambda: (counts := kept()).get("statements_matched", 0) > 0.9 * recorded and counts, 20)
    assert isinstance(counts, dict)
    assert not {"statements_beyond_the_limit", "statements_not_compared", "live_sessions_forgotten"} & set(counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psql", "pgwarden/reporting/0123456789ab01234567"])
def test_an_agent_that_learned_the_password_and_goes_straight_to_postgres_is_named_and_ended(
    house: House, database: Database, wait_for: Callable[..., object], name: str
) -> None:
    began = time.monotonic()
    stolen = psycopg.connect(database.dsn, application_name=name, autocommit=True)
    assert stolen.execute("SELECT count(*) FROM orders").fetchone() is not None
    wait_for(house.findings, 20, "it is found")
    seconds = time.monotonic() - began
    (finding,) = house.findings()
    assert finding["detector"] == "shadow"  # from the gateway's own machine: only its process could tell the two apart
    summary = finding["summary"]
    assert f"role {database.role} on database {database.name} from 127.0.0.1:" in summary
    assert name in summary
    print(f"a shadow that calls itself {name} stands in the tables after {seconds:.2f} s")

    def ended() -> list[dict[str, Any]]:
        return [one for one in house.get("/v1/observations/sessions?verdict=shadow") if one["kill_backend_gone_at"]]

    wait_for(ended, 20, "its end is proven")
    with pytest.raises(psycopg.OperationalError):
        stolen.execute("SELECT 1")
    assert [one["killed_by"] for one in ended()] == ["watchdog"]
    stolen.close()
