"""`pgwarden api` as a process of its own: it starts, serves, records, and ends as it was asked to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from identity.agent_keys import create, create_operator_key
from identity.registry import Registry
from ingest.events import Event, SessionEndOrdered, SessionOpened, Stamp
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden import api_process
from pgwarden.cli import main
from pgwarden.config import Address, ApiConfig

ALICE, ALICE_SHA256 = create_operator_key()
BOB, BOB_SHA256 = create_operator_key()

CONFIG = f"""
state = "state"
[connections.shop]
host = "127.0.0.1"
database = "shop"
user = "pgwarden"
password = "env:SHOP_PASSWORD"
sslmode = "disable"
[operators.alice]
key_sha256 = "{ALICE_SHA256}"
[operators.bob]
key_sha256 = "{BOB_SHA256}"
[agents.reporter]
description = "monthly figures"
owner = "finance"
key = "file:reporter.key"
[[agents.reporter.grants]]
connection = "shop"
reason = "reports"
rules = [{{ schema = "public", tables = ["orders"], operations = ["select"] }}]
"""


@dataclass
class Process:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def post(self, path: str, body: object = None, key: str = ALICE) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=10, trust_env=False)

    def get(self, path: str, key: str = ALICE) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=10, trust_env=False)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pgwarden.toml").write_text(CONFIG, encoding="utf-8")
    write_key(tmp_path)
    return tmp_path


def write_key(folder: Path) -> str:
    key, key_id, _ = create()
    (folder / "reporter.key").touch(mode=0o600)
    (folder / "reporter.key").write_text(key, encoding="utf-8")
    return key_id


@contextmanager
def running(folder: Path, port: int) -> Iterator[Process]:
    config = folder / "pgwarden.toml"
    text = config.read_text(encoding="utf-8").split("\n[api]")[0] + f'\n[api]\nlisten = "127.0.0.1:{port}"\n'
    config.write_text(text, encoding="utf-8")
    with (folder / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", "api", "-c", str(config)],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "SHOP_PASSWORD": "never looked at here"},
        )
    made = Process(process, f"http://127.0.0.1:{port}", folder / "api.log")
    try:
        until = time.monotonic() + 60  # a machine that many share starts it slowly
        while True:
            try:
                made.get("/v1/openapi.json")
                break
            except httpx.TransportError:
                assert process.poll() is None, made.output()
                assert time.monotonic() < until, made.output()
                time.sleep(0.05)
        yield made
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(15)


def recorded(folder: Path, topic: str = "identity") -> list[Event]:
    async def read() -> list[Event]:
        log = SegmentLog(folder / "state" / "log", LogSettings())
        follower = Follower(log, (topic,), {})
        found: list[Event] = []
        ends = log.end_offsets(topic)
        while any(follower.offsets[place] < end for place, end in ends.items()):
            for _, frame in await follower.poll(timeout_seconds=1):
                found.extend(event for _, event in frame.events)
        follower.close()
        await log.close()
        return found

    return asyncio.run(read())


def registry(folder: Path) -> Registry:
    folded = Registry()
    for event in recorded(folder):
        folded.apply(event)  # type: ignore[arg-type]
    return folded


def names(folder: Path) -> list[str]:
    return [type(event).__name__ for event in recorded(folder)]


def open_session(folder: Path, grants: tuple[str, ...], boot: int) -> None:
    """Record, as a gateway does, that the reporter opened session s-1."""

    async def write() -> None:
        log = SegmentLog(folder / "state" / "log", LogSettings())
        recorder = Recorder(log, "gateway", boot, RecorderSettings())
        stamp = Stamp(
            session="s-1",
            agent="reporter",
            subject="key:k",
            issuer="",
            on_behalf_of="",
            actors=(),
            invocation="",
            task="",
            unverified=(),
            grants=grants,
            approvers=("config",) * len(grants),
            connection="shop",
            database="shop",
            role="pgwarden",
            client="127.0.0.1:5000",
            backend_pid=1,
            backend_start_us=1,
            upstream_port=1,
        )
        now_us = time.time_ns() // 1000
        opened = SessionOpened(now_us, stamp, "scram", "k", 0, "psql", "TLSv1.3", "3.0", "group")
        recorder.record("sessions", "reporter", opened)
        await recorder.close()
        await log.close()

    asyncio.run(write())


FIRST = ["AgentRegistered", "AgentKeyReplaced", "GrantRequested", "GrantApproved"]


@pytest.mark.slow
def test_the_agents_of_the_file_are_registered_once_and_stay_as_operators_left_them(folder: Path, free_port: int) -> None:
    with running(folder, free_port) as api:
        assert names(folder) == FIRST
        (grant,) = registry(folder).grants.values()
        assert (grant.requested_by, grant.approver) == ("config", "config")
        assert api.post("/v1/agents/reporter/revoke", {"reason": "odd"}).status_code == 200
        new_key = api.post("/v1/agents/reporter/key").json()
        assert api.post(f"/v1/grants/{grant.id}/revoke", {"reason": "too wide"}, BOB).status_code == 200
    before = recorded(folder)
    with running(folder, free_port):
        assert recorded(folder) == before
    reporter = registry(folder).agents["reporter"]
    assert (reporter.state, reporter.key_id) == ("revoked", new_key["key_id"])


@pytest.mark.slow
def test_what_is_new_in_the_file_is_registered_at_the_next_start(folder: Path, free_port: int) -> None:
    with running(folder, free_port):
        pass
    key_id = write_key(folder)
    config = folder / "pgwarden.toml"
    text = config.read_text(encoding="utf-8").split("\n[api]")[0].replace('"orders"', '"orders", "customers"')
    config.write_text(text + '\n[agents.second]\ndescription = "new"\nowner = "it"\n', encoding="utf-8")
    with running(folder, free_port):
        pass
    assert names(folder) == [*FIRST, "AgentKeyReplaced", "GrantRequested", "GrantApproved", "AgentRegistered"]
    assert registry(folder).agents["reporter"].key_id == key_id


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_what_it_answered_is_recorded(folder: Path, free_port: int, number: int) -> None:
    with running(folder, free_port) as api:
        assert api.post("/v1/agents", {"agent": "late", "owner": "it"}).status_code == 201
        api.process.send_signal(number)
        assert api.process.wait(15) == 0, api.output()
    assert names(folder)[-1] == "AgentRegistered"
    assert "Traceback" not in api.output()


@pytest.mark.slow
def test_a_killed_one_starts_again_and_knows_all_it_answered(folder: Path, free_port: int) -> None:
    with running(folder, free_port) as api:
        assert api.post("/v1/agents", {"agent": "late", "owner": "it"}).status_code == 201
        api.process.kill()
        api.process.wait(5)
    with running(folder, free_port) as api:
        assert api.post("/v1/agents", {"agent": "late", "owner": "it"}).status_code == 409


@pytest.mark.slow
def test_a_second_one_on_the_same_log_does_not_start(folder: Path, free_port: int) -> None:
    with running(folder, free_port):
        second = subprocess.run(
            [sys.executable, "-m", "pgwarden", "api", "-c", str(other_port(folder))],
            capture_output=True,
            timeout=20,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "SHOP_PASSWORD": "x"},
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr.startswith(b"pgwarden api: ") or b"\npgwarden api: " in second.stderr
        assert b"Traceback" not in second.stderr


def other_port(folder: Path) -> Path:
    text = (folder / "pgwarden.toml").read_text(encoding="utf-8")
    other = folder / "other.toml"
    other.write_text(text.split("\n[api]")[0] + '\n[api]\nlisten = "127.0.0.1:0"\n', encoding="utf-8")
    return other


@pytest.mark.slow
def test_no_secret_reaches_a_log_line_or_a_file(folder: Path, free_port: int) -> None:
    with running(folder, free_port) as api:
        made = api.post("/v1/agents", {"agent": "late", "owner": "it", "key": True}).json()["key"]
        wrong = create_operator_key()[0]
        assert api.get("/v1/openapi.json", wrong).status_code == 401
        assert api.get(f"/v1/openapi.json?key={wrong}", wrong).status_code == 401
    secrets = [ALICE, wrong, made, (folder / "reporter.key").read_text(encoding="utf-8"), "never looked at here"]
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "reporter.key"]
    assert len(written) > 3
    for secret in secrets:
        assert not any(secret.encode() in text for text in written)
    assert "refused to 127.0.0.1" in api.output()


@pytest.mark.slow
def test_every_answer_forbids_what_a_browser_could_do_with_it(folder: Path, free_port: int) -> None:
    with running(folder, free_port) as api:
        for answer in (api.get("/v1/openapi.json"), api.get("/nothing"), api.get("/v1/openapi.json", key="")):
            assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert "server" not in answer.headers
        assert api.get("/nothing").json()["error"].startswith("There is nothing")
        assert api.get("/docs").status_code == api.get("/openapi.json").status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize("what", ["agent", "grant"])
def test_what_is_revoked_orders_the_end_of_the_sessions_that_rest_on_it(
    folder: Path, free_port: int, what: str, wait_for: Callable[..., object]
) -> None:
    with running(folder, free_port) as api:
        (grant,) = registry(folder).grants
        open_session(folder, (grant,), boot=1)
        path = "/v1/agents/reporter/revoke" if what == "agent" else f"/v1/grants/{grant}/revoke"
        assert api.post(path, {"reason": "odd queries"}).status_code == 200
        wait_for(lambda: recorded(folder, "commands"))
        (order,) = recorded(folder, "commands")
        assert isinstance(order, SessionEndOrdered)
        assert (order.session, order.agent, order.cause, order.reason) == ("s-1", "reporter", f"{what} revoked", "odd queries")


def routes(api: Process) -> list[tuple[str, str]]:
    """All of them, as the API itself describes them to programs: (method, path)."""
    described = api.get("/v1/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in described.items() for method in methods]


@pytest.mark.slow
def test_no_route_answers_anything_without_an_operators_credential(folder: Path, free_port: int) -> None:
    agents_key = (folder / "reporter.key").read_text(encoding="utf-8")
    wrong = (
        "",
        f"Bearer {create_operator_key()[0]}",
        f"Bearer {agents_key}",
        f"Basic {ALICE}",
        f"Bearer {ALICE_SHA256}",
        "Bearer a.b.c",
    )
    with running(folder, free_port) as api:
        found = [*routes(api), ("GET", "/v1/openapi.json")]
        assert len(found) > 20
        before = recorded(folder)
        with httpx.Client(base_url=api.url, trust_env=False) as client:
            for method, path in found:
                for credential in wrong:
                    answer = client.request(method, path, headers={"Authorization": credential} if credential else {}, json={})
                    assert answer.status_code in (401, 429), (method, path)
                    assert set(answer.json()) == {"error"}
                at_once = f"{path}?wait_seconds=0" if path == "/v1/follow" else path
                right = client.request(
                    method, at_once, headers={"Authorization": f"Bearer {BOB}"}, json={} if method == "POST" else None
                )
                assert right.status_code not in (401, 403, 429, 500), (method, path)
        assert recorded(folder) == before


@pytest.mark.slow
def test_every_route_has_a_heading_in_the_document(folder: Path, free_port: int) -> None:
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### `(\w+ /\S*)`$", document, re.MULTILINE))
    with running(folder, free_port) as api:
        found = {f"{method} {re.sub('{.*?}', '{id}', path)}" for method, path in routes(api)}
    assert headings == found | {"GET /v1/openapi.json"}


@pytest.mark.slow
def test_what_was_commanded_is_answered_a_moment_later(folder: Path, free_port: int, wait_for: Callable[..., object]) -> None:
    with running(folder, free_port) as api:
        wait_for(lambda: api.get("/v1/agents/reporter").status_code == 200)
        assert api.get("/v1/agents/reporter").json()["owner"] == "finance"
        assert api.post("/v1/agents/reporter/revoke", {"reason": "odd queries"}).status_code == 200
        wait_for(lambda: api.get("/v1/agents/reporter").json()["state"] == "revoked")
        (agent,) = api.get("/v1/agents?state=revoked").json()["items"]
        assert (agent["state_by"], agent["state_reason"]) == ("alice", "odd queries")
        (grant,) = api.get("/v1/grants?agent=reporter").json()["items"]
        assert (grant["state"], grant["approver"]) == ("approved", "config")
        counted = api.post("/v1/sql", {"sql": "select state, count(*) as agents from agents group by state"}).json()
        assert counted["rows"] == [["revoked", 1]]


@pytest.mark.slow
def test_a_health_check_needs_no_key_and_fills_no_log(folder: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "never looked at here")
    with running(folder, free_port) as api:
        before = api.log.read_text()
        assert main(["status", "api", "-c", str(folder / "pgwarden.toml")]) == 0
        assert api.log.read_text() == before
    assert main(["status", "api", "-c", str(folder / "pgwarden.toml")]) == 1


@pytest.mark.slow
def test_health_says_that_no_gateway_runs_and_what_one_says_of_itself(folder: Path, free_port: int) -> None:
    said = {"gateway": "gw-1", "boot": 1, "pid": 1, "started_us": 1, "sessions": [], "counters": {}}
    with running(folder, free_port) as api:
        health = api.get("/v1/health").json()
        assert (health["status"], health["gateways"][0]["reachable"]) == ("degraded", False)
        assert "start it with pgwarden gateway" in health["problems"][0]
        (folder / "state" / "run").mkdir(exist_ok=True)
        path = folder / "state" / "run" / "gateway.sock"
        full = {**said, "log": {"available": False, "since_us": 1, "reason": "disk full", "refused": 3, "pending_bytes": 9}}
        with answering(path, json.dumps(full).encode()):
            time.sleep(0.6)
            health = api.get("/v1/health").json()
        assert (health["gateways"][0]["gateway"], health["log"]["available"], health["log"]["reason"]) == (
            "gw-1",
            False,
            "disk full",
        )
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        time.sleep(0.6)
        assert "start it with pgwarden gateway" in api.get("/v1/health").json()["problems"][0]


@contextmanager
def answering(path: Path, said: bytes) -> Iterator[None]:
    """A gateway's socket: says its status to whoever connects."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                peer.sendall(said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)
        path.unlink()


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"{", "its status cannot be read"), (b"[]", "its status cannot be read"), (b"", "its status cannot be read")],
)
async def test_a_gateway_that_talks_nonsense_is_not_reachable(tmp_path: Path, said: bytes, reason: str) -> None:
    with answering(tmp_path / "g.sock", said):
        status = await api_process.gateway_status(tmp_path / "g.sock", "gateway-1")
    assert status["reachable"] is False
    assert str(status["reason"]).startswith(reason)


async def test_a_gateway_that_was_killed_left_a_socket_that_nobody_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "g.sock"))
    assert (await api_process.gateway_status(tmp_path / "g.sock", "gateway-1"))["reachable"] is False


# -- where it listens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_it_listens_beyond_this_machine_only_where_that_is_written(host: str) -> None:
    config = ApiConfig(Address(host, 0), allow_remote=False)
    with pytest.raises(api_process.CannotStart, match="allow_remote = true"):
        api_process.listener(config)


def test_it_listens_beyond_this_machine_where_that_is_written() -> None:
    with api_process.listener(replace(ApiConfig(Address("0.0.0.0", 0), allow_remote=True))) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"


def test_a_port_that_is_taken_is_said_in_one_sentence() -> None:
    with (
        api_process.listener(ApiConfig(Address("127.0.0.1", 0), allow_remote=False)) as first,
        pytest.raises(api_process.CannotStart, match="cannot be used: Address already in use"),
    ):
        first.listen()
        api_process.listener(ApiConfig(Address("127.0.0.1", first.getsockname()[1]), allow_remote=False))


@pytest.mark.slow
def test_health_asks_the_other_processes_of_its_machine(folder: Path, free_port: int, wait_for: Callable[..., object]) -> None:
    run = folder / "state" / "run"
    with running(folder, free_port) as api, answering(run / "watchdog.sock", b'{"blind": [], "log": {"available": true}}'):
        with answering(run / "worker-b.sock", b'{"reason": "behind for 31 s"}'):
            health = api.get("/v1/health").json()
        assert health["processes"] == [
            {"process": "watchdog", "name": "", "up": True, "reason": ""},
            {"process": "worker", "name": "b", "up": True, "reason": "behind for 31 s"},
        ]
        assert "worker b is not well: behind for 31 s" in health["problems"]
        with socket.socket(socket.AF_UNIX) as killed:  # leaves its socket behind
            killed.bind(os.path.relpath(run / "worker-c.sock"))
        assert any("worker c does not answer: it does not run" in one for one in api.get("/v1/health").json()["problems"])
