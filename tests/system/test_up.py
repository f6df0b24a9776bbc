"""`pgwarden up`: everything runs, is seen to run, and is gone afterwards."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from identity import agent_keys
from pgwarden.small_files import write_private

AGENTS = ("ingestion", "migration", "reporting")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def processes_of(folder: Path) -> dict[int, bytes]:
    """Processes that run for this folder, and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            told = command + (entry / "environ").read_bytes() + os.readlink(entry / "cwd").encode()
        except OSError:
            continue
        if str(folder).encode() in told:
            found[int(entry.name)] = command
    return found


def live(up: Any, agent: str) -> list[dict[str, Any]]:
    return up.items("/v1/sessions", live="true", agent=agent)


def statements(up: Any, agent: str, decision: str) -> list[dict[str, Any]]:
    return up.items("/v1/statements", agent=agent, decision=decision, limit=50)


@pytest.mark.parametrize("agent", AGENTS)
def test_each_agent_works_and_is_refused_now_and_then(up: Any, agent: str, wait_for: Callable[..., Any]) -> None:
    allowed = wait_for(lambda: statements(up, agent, "allow"), 20)
    denied = wait_for(lambda: statements(up, agent, "deny"), 20)
    wrong = {"ingestion": "payroll", "migration": "DROP TABLE public.orders", "reporting": "DELETE FROM public.orders"}[agent]
    assert all(wrong in str(one["text"]) for one in denied)
    assert not any(wrong in str(one["text"]) for one in allowed)
    assert {one["sqlstate"] for one in denied} == {"42501"}
    assert "ok" in {one["outcome"] for one in allowed}


def test_what_was_refused_did_not_happen(up: Any, wait_for: Callable[..., Any]) -> None:
    wait_for(lambda: statements(up, "migration", "deny") and statements(up, "reporting", "deny"), 20)
    service = {"PGSERVICEFILE": str(up.state / "pg_service.conf")}
    command = ["psql", "--no-psqlrc", "-At", "service=ingestion", "-c", "SELECT count(*) FROM orders"]
    if shutil.which("psql") is None:
        pytest.skip("no psql")
    said = subprocess.run(command, env={**os.environ, **service}, capture_output=True, text=True, check=True).stdout
    assert said == "5000\n"


def test_the_addresses_that_the_terminal_shows_answer(up: Any) -> None:
    said = up.said()
    assert up.api in said
    assert up.dashboard in said
    assert httpx.get(f"{up.dashboard}/", trust_env=False).status_code == 200
    assert isinstance(up.get("/v1/health"), dict)


def test_the_terminal_shows_refusals_and_counters_as_they_come(up: Any, wait_for: Callable[..., Any]) -> None:
    for agent in AGENTS:
        wait_for(lambda agent=agent: f"refused     {agent}: " in up.said(), 30, f"no refusal of {agent} in:\n{up.said()}")
    wait_for(lambda: "working     ingestion " in up.said(), 20)


def test_no_secret_is_on_a_command_line_or_in_a_log(up: Any) -> None:
    files = [up.state / "operator.key", up.state / "shop.password", *(up.state / "agents").iterdir()]
    secrets = [file.read_bytes().strip() for file in files]
    secrets.append((up.state / "postgres" / "superuser.password").read_bytes().strip())
    assert len(secrets) >= 6
    assert all(len(secret) > 30 for secret in secrets)
    commands = processes_of(up.folder)
    assert len(commands) >= 8
    logs = b"".join(path.read_bytes() for path in [*(up.state / "logs").iterdir(), *(up.state / "postgres/data/log").iterdir()])
    record = b"".join(path.read_bytes() for path in (up.state / "log").rglob("*") if path.is_file())
    for secret in secrets:
        assert secret not in b"".join(commands.values())
        assert secret not in logs
        assert secret not in record


def test_everything_in_the_folder_is_its_owners_alone(up: Any) -> None:
    open_to_others = [
        path
        for path in up.state.rglob("*")
        if not path.is_symlink() and not path.is_socket() and path.stat().st_mode & 0o077 and path.name != "certificate.pem"
    ]
    assert open_to_others == []
    assert up.state.stat().st_mode & 0o066 == 0  # as root, the database's account goes through


def test_an_agent_cannot_walk_round_the_gateway(up: Any) -> None:
    port = int(
        next(line for line in (up.state / "pgwarden.toml").read_text().splitlines() if line.startswith("port = ")).split()[2]
    )
    key = (up.state / "agents" / "ingestion.key").read_text().strip()
    for user, password in (("ingestion", key), ("pgwarden", key), ("postgres", ""), ("pgwarden", "pgwarden")):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=port, dbname="shop", user=user, password=password, connect_timeout=5)


def test_a_revoked_agent_dies_while_the_others_go_on_and_comes_back_when_reinstated(up: Any, wait_for: Callable[..., Any]) -> None:
    before = {agent: wait_for(lambda agent=agent: live(up, agent), 20)[0] for agent in AGENTS}
    said = up.shell("pgwarden revoke migration --reason 'a test'")
    try:
        wait_for(lambda: not live(up, "migration"), 5, said)
        killed = wait_for(lambda: up.get(f"/v1/sessions/{before['migration']['session']}").get("kill_backend_gone_at"), 5)
        wait_for(lambda: "killed      migration" in up.said(), 5)
        wait_for(lambda: (up.state / "logs" / "migration.log").read_text().count("no connection") >= 2, 10)
        at = datetime.fromisoformat(killed)
        for agent in ("ingestion", "reporting"):
            assert live(up, agent)[0]["session"] == before[agent]["session"]
            since = int(max(at, datetime.now(UTC)).timestamp() * 1e6)
            wait_for(lambda agent=agent, since=since: up.items("/v1/statements", agent=agent, decision="allow", since_us=since), 10)
    finally:
        up.shell("pgwarden reinstate migration")
    wait_for(lambda: live(up, "migration"), 20)


def test_a_second_one_in_the_same_folder_is_refused(up: Any, begin: Callable[..., Any], tmp_path: Path) -> None:
    said = up.shell("pgwarden up")
    assert f"runs already in .pgwarden (process {up.process.pid})" in said


def test_for_some_seconds_ends_with_success_only_when_all_parts_did_their_job(begin: Callable[..., Any]) -> None:
    one = begin("--for", "15")
    assert one.process.wait(120) == 0, one.said() + one.logs()
    assert "all parts did their job" in one.said()
    assert not processes_of(one.folder)
    # The same folder again, now without one agent's work: revoked, it has none.
    first_key = (one.state / "operator.key").read_text()
    assert first_key.strip() in one.said()
    again = begin("--for", "15", folder=one.folder, base=one.base, whole=True)
    assert (one.state / "operator.key").read_text() == first_key
    assert first_key.strip() not in again.said()
    again.shell("pgwarden revoke ingestion --reason 'a test'")
    assert again.process.wait(120) == 1, again.said()
    assert "ingestion has no live session" in again.said()
    assert "all parts did their job" not in again.said()


def test_ctrl_c_ends_everything_within_seconds(begin: Callable[..., Any]) -> None:
    one = begin(whole=True)
    assert len(processes_of(one.folder)) >= 8
    begun = time.monotonic()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(30) == 0, one.said()
    assert time.monotonic() - begun < 15
    assert not processes_of(one.folder)


def test_nothing_survives_when_it_is_killed(begin: Callable[..., Any], wait_for: Callable[..., Any]) -> None:
    one = begin(whole=True)
    one.process.kill()
    one.process.wait()
    wait_for(lambda: not processes_of(one.folder), 20, f"still there: {processes_of(one.folder)}")


def test_a_part_that_dies_ends_the_rest_and_is_named(begin: Callable[..., Any]) -> None:
    one = begin(whole=True)
    status = json.loads(_ask(one.state / "run" / "gateway.sock"))
    os.kill(status["pid"], signal.SIGKILL)
    assert one.process.wait(30) == 1
    assert "gateway was ended by SIGKILL" in one.said()
    assert not processes_of(one.folder)


def test_a_watchdog_that_dies_ends_the_rest_and_is_named(begin: Callable[..., Any]) -> None:
    one = begin(whole=True)
    status = json.loads(_ask(one.state / "run" / "watchdog.sock"))
    assert (status["caught_up"], status["blind"], status["connections"]) == (True, [], {"shop": {"ready": True}})
    os.kill(status["pid"], signal.SIGKILL)
    assert one.process.wait(30) == 1
    assert "watchdog was ended by SIGKILL" in one.said()
    assert not processes_of(one.folder)


def test_a_revoked_agent_is_stopped_while_the_gateway_is_stopped(begin: Callable[..., Any], wait_for: Callable[..., Any]) -> None:
    one = begin(whole=True)
    before = wait_for(lambda: live(one, "migration"), 20)[0]
    gateway = json.loads(_ask(one.state / "run" / "gateway.sock"))["pid"]
    os.kill(gateway, signal.SIGSTOP)
    try:
        one.shell("pgwarden revoke migration --reason 'a test'")
        ended = wait_for(lambda: [s for s in one.items("/v1/sessions", agent="migration") if s["kill_backend_gone_at"]], 20)
        assert before["session"] in {session["session"] for session in ended}
        assert {(session["state"], session["kill_ended_by"]) for session in ended} == {("killed", "watchdog")}
        wait_for(lambda: "killed      migration: agent revoked; its backend was gone after " in one.said(), 20)
        assert "ms by the watchdog" in one.said()
    finally:
        os.kill(gateway, signal.SIGCONT)
    one.shell("pgwarden reinstate migration")
    wait_for(lambda: live(one, "migration"), 30)


def _ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        data = b""
        while part := connection.recv(65536):
            data += part
    return data


def test_a_taken_port_is_named_with_what_to_do(begin: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        base = other.getsockname()[1]
        one = begin(base=base)
        assert one.process.wait(30) == 1
    assert f"127.0.0.1:{base} is taken, and the gateway needs it" in one.said()
    assert "--port-base" in one.said()
    assert not (one.state / "postgres").exists()


def test_with_a_file_it_fronts_the_database_of_that_file(
    begin: Callable[..., Any], database: Any, wait_for: Callable[..., Any], free_ports: Callable[[], int]
) -> None:
    key, _, _ = agent_keys.create()
    operator, digest = agent_keys.create_operator_key()
    gateway = free_ports()
    api, dashboard, metrics = gateway + 1, gateway + 2, gateway + 3
    with tempfile.TemporaryDirectory(prefix="pgwarden-front-") as place:
        folder = Path(place)
        (folder / "state").mkdir(mode=0o700)
        write_private(folder / "reader.key", key)
        write_private(folder / "db.password", database.password)
        write_private(folder / "state" / "operator.key", operator)
        write_private(folder / "hook.secret", "whsec_" + "c2VjcmV0" * 4)
        (folder / "pgwarden.toml").write_text(
            f"""
state = "state"
metrics = {{ listen = "127.0.0.1:{metrics}" }}
webhooks.pager = {{ url = "http://127.0.0.1:9/nobody", secret = "file:hook.secret" }}
gateway = {{ listen = "127.0.0.1:{gateway}" }}
api = {{ listen = "127.0.0.1:{api}" }}
dashboard = {{ listen = "127.0.0.1:{dashboard}" }}
[connections.mine]
host = "{database.host}"
port = {database.port}
database = "{database.name}"
user = "{database.role}"
password = "file:db.password"
sslmode = "disable"
[agents.reader]
description = "reads"
owner = "tests"
key = "file:reader.key"
[[agents.reader.grants]]
connection = "mine"
reason = "a test"
rules = [{{ schema = "public", tables = ["orders"], operations = ["select"] }}]
[operators.tester]
key_sha256 = "{digest}"
"""
        )
        one = begin("--for", "12", folder=folder, base=1, config=folder / "pgwarden.toml")

        def query() -> Any:
            try:
                with psycopg.connect(
                    host="127.0.0.1",
                    port=gateway,
                    dbname="mine",
                    user="reader",
                    password=key,
                    sslmode="verify-full",
                    sslrootcert=str(folder / "state/tls/certificate.pem"),
                    connect_timeout=5,
                ) as connection:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute("SELECT * FROM secrets")
                    connection.rollback()
                    return connection.execute("SELECT count(*) FROM orders").fetchone()
            except psycopg.OperationalError:
                return None

        assert wait_for(query, 60, one.said()) == (100,)
        parts = [f'pgwarden_process_up{{name="",process="{name}"}} 1.0' for name in ("gateway", "watchdog", "api", "webhooks")]

        def scraped() -> bool:
            try:
                page = httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).text
            except httpx.TransportError:
                return False
            return all(part in page for part in parts)

        assert wait_for(scraped, 30, one.said())
        assert one.process.wait(60) == 0, one.said()
        assert "all parts did their job" in one.said()
        assert "ingestion" not in one.said()


def test_a_wrong_file_is_reported_whole_and_nothing_starts(begin: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "pgwarden.toml"
    file.write_text('[gateway]\ntls = "maybe"\n[dashbord]\n')
    one = begin(folder=tmp_path, base=1, config=file)
    assert one.process.wait(30) == 2
    assert "tls" in one.said()
    assert "dashbord" in one.said()
    assert not (tmp_path / ".pgwarden").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as somebody else")
def test_an_ordinary_user_can_run_it(free_ports: Callable[[], int]) -> None:
    account = pwd.getpwnam("nobody")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    libraries = f"{ROOT}:{site}"

    def can_run(python: str) -> bool:
        """Root's own Python often lies where nobody else may go."""
        try:
            found = subprocess.run(
                [python, "-c", "import psycopg, streamlit, duckdb, pglast"],
                env={"PYTHONPATH": libraries, "HOME": "/nonexistent"},
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
        except PermissionError:
            return False
        return found.returncode == 0

    python = next(filter(can_run, (sys.executable, "/usr/bin/python3")), "")
    if not python:
        pytest.skip("no Python here that an ordinary user can run with these libraries")
    with tempfile.TemporaryDirectory(prefix="pgwarden-user-") as place:
        os.chown(place, account.pw_uid, account.pw_gid)
        done = subprocess.run(
            [python, "-m", "pgwarden", "up", "--port-base", str(free_ports()), "--for", "15"],
            env={"PYTHONPATH": libraries, "HOME": place, "PATH": "/usr/bin:/bin"},
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all parts did their job" in done.stdout
        owners = {path.lstat().st_uid for path in Path(place).rglob("*")}
        assert owners == {account.pw_uid}
