from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dashboards.api_client import ApiRefused, ApiUnreachable, Client, request_key
from dashboards.settings import Settings

KEY = "pgw_operator_key_for_tests"


@dataclass
class Peer:
    """Answers each request with the same bytes, and keeps what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def peer() -> Iterator[Peer]:
    scripted = Peer()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            scripted.asked.append((self.command, self.path, headers, body))
            self.send_response(scripted.status)
            for name, value in scripted.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(scripted.body)))
            self.end_headers()
            self.wfile.write(scripted.body)

        do_GET = do_POST = answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scripted.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield scripted
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(peer: Peer, tmp_path: Path) -> Iterator[Client]:
    key_file = tmp_path / "operator.key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    made = Client(Settings(api=f"http://127.0.0.1:{peer.port}", key_file=key_file, answer_bytes_max=10_000))
    yield made
    made.close()


def test_each_request_carries_the_operator_key(client: Client, peer: Peer) -> None:
    peer.body = b'{"items": [], "next": null}'
    client.agents()
    assert [asked[2]["authorization"] for asked in peer.asked] == [f"Bearer {KEY}"]


def test_a_command_carries_its_idempotency_key_and_reason(client: Client, peer: Peer) -> None:
    client.revoke("reporter", "reads payroll", "dashboard-1")
    method, path, headers, body = peer.asked[0]
    assert (method, path, headers["idempotency-key"]) == ("POST", "/v1/agents/reporter/revoke", "dashboard-1")
    assert json.loads(body) == {"reason": "reads payroll"}


def test_a_name_cannot_leave_its_place_in_the_path(client: Client, peer: Peer) -> None:
    client.revoke("../grants/g1/approve?x=#", "why", "dashboard-1")
    assert peer.asked[0][1] == "/v1/agents/..%2Fgrants%2Fg1%2Fapprove%3Fx%3D%23/revoke"


def test_two_forms_have_two_idempotency_keys() -> None:
    assert request_key() != request_key()


def test_fields_that_are_not_known_are_passed_over(client: Client, peer: Peer) -> None:
    peer.body = b'{"items": [{"agent": "reporter", "state": "active", "colour": "blue"}], "next": null, "later": 1}'
    assert [agent.agent for agent in client.agents()] == ["reporter"]


def test_pages_are_followed_to_the_last(client: Client, peer: Peer) -> None:
    peer.body = b'{"items": [{"agent": "reporter", "state": "active"}], "next": "more"}'
    assert len(client.agents()) == len(peer.asked) > 1  # it never ends, and yet we do


def test_an_answer_of_another_shape_says_to_run_one_version(client: Client, peer: Peer) -> None:
    peer.body = b'{"items": [{"agent": 7}], "next": null}'
    with pytest.raises(ApiUnreachable) as trouble:
        client.agents()
    assert "same version" in trouble.value.remedy


def test_an_answer_without_end_is_not_read_to_its_end(client: Client, peer: Peer) -> None:
    peer.body = b" " * 20_000
    with pytest.raises(ApiUnreachable, match="too long"):
        client.agents()


@pytest.mark.parametrize("status", [401, 429])
def test_a_key_that_is_not_accepted_says_where_to_put_another(client: Client, peer: Peer, status: int) -> None:
    peer.status, peer.body = status, b'{"error": "Send Authorization."}'
    with pytest.raises(ApiUnreachable) as trouble:
        client.agents()
    assert "PGWARDEN_OPERATOR_KEY_FILE" in trouble.value.remedy


def test_a_refused_command_gives_the_sentence_of_the_api(client: Client, peer: Peer) -> None:
    peer.status, peer.body = 403, b'{"error": "Another operator must approve it."}'
    with pytest.raises(ApiRefused, match="Another operator must approve it"):
        client.approve("g1", "dashboard-1")


def test_a_refusal_without_a_sentence_names_its_status(client: Client, peer: Peer) -> None:
    peer.status, peer.body = 404, b"<html>"
    with pytest.raises(ApiRefused, match="404"):
        client.approve("g1", "dashboard-1")


def test_a_redirect_does_not_take_the_key_elsewhere(client: Client, peer: Peer) -> None:
    peer.status, peer.headers = 307, {"Location": f"http://127.0.0.1:{peer.port}/elsewhere"}
    with pytest.raises(ApiRefused):
        client.agents()
    assert len(peer.asked) == 1


def test_a_proxy_from_the_environment_does_not_see_the_key(
    client: Client, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    peer.body = b'{"items": [], "next": null}'
    again = Client(Settings(api=f"http://127.0.0.1:{peer.port}", key_file=tmp_path / "operator.key"))
    try:
        assert again.agents() == ()
    finally:
        again.close()


def test_an_api_that_is_down_says_how_to_start_it(tmp_path: Path) -> None:
    key_file = tmp_path / "operator.key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    client = Client(Settings(api="http://127.0.0.1:1", key_file=key_file))
    with pytest.raises(ApiUnreachable, match="cannot be reached") as trouble:
        client.agents()
    client.close()
    assert "pgwarden up" in trouble.value.remedy


def test_no_error_shows_the_key(client: Client, peer: Peer) -> None:
    for peer.status, peer.body in ((401, b"{}"), (500, b"{}"), (200, b"[]"), (404, b"{}")):
        with pytest.raises((ApiUnreachable, ApiRefused)) as trouble:
            client.agents()
        assert KEY not in f"{trouble.value!r} {trouble.value} {trouble.value.remedy}"


def test_an_agent_that_is_not_there_is_none_and_its_name_stays_a_parameter(client: Client, peer: Peer) -> None:
    peer.body = json.dumps({"items": [], "next": None}).encode()
    assert client.agent("a&state=revoked") is None
    assert peer.asked[-1][1] == "/v1/questions/agents?agent=a%26state%3Drevoked"
    peer.body = json.dumps({"items": [{"agent": "a", "state": "active"}], "next": None}).encode()
    found = client.agent("a")
    assert found is not None
    assert found.state == "active"


def test_nobody_is_asked_for_an_agent_without_a_name(client: Client, peer: Peer) -> None:
    assert client.agent("") is None
    assert peer.asked == []
