"""What the client makes of answers that are late, wrong or hostile: against a scripted peer on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pgwarden import api_client
from pgwarden.api_client import ApiRefused, ApiUnreachable, Place, call, path
from pgwarden.cli import main
from pgwarden.commands import revocations
from pgwarden.references import Secret

KEY = "pgwop_canary"
Script = Callable[[str, str], tuple[int, bytes]]


class Peer:
    """Answers what the script says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Script = lambda method, path: (200, b"{}")
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                peer.asked.append((self.command, self.path))
                peer.headers.append(dict(self.headers.items()))
                status, body = peer.script(self.command, self.path)
                self.send_response(status)
                self.send_header("Location", "/v1/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = _answer
            do_POST = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.place = Place(self.url, Secret(KEY, "env:X"))


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_call_carries_the_key_and_the_idempotency_key(peer: Peer) -> None:
    peer.script = lambda method, path: (201, b'{"a": 1}')
    assert call(peer.place, "POST", path("agents", "a/b?c", "key"), {"x": 1}, "once") == {"a": 1}
    assert peer.asked == [("POST", "/v1/agents/a%2Fb%3Fc/key")]
    sent = peer.headers[0]
    assert (sent["Authorization"], sent["Idempotency-Key"], sent["Content-Type"]) == (f"Bearer {KEY}", "once", "application/json")


def test_query_parameters_that_are_empty_are_left_out() -> None:
    assert path("sessions", agent="a&b", live=None, before="", limit=5) == "/v1/sessions?agent=a%26b&limit=5"


def test_a_redirect_is_not_followed_with_the_key(peer: Peer) -> None:
    peer.script = lambda method, path: (307, b"{}")
    with pytest.raises(ApiRefused, match="the API answered with status 307"):
        call(peer.place, "GET", path("agents"))
    assert len(peer.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_answer_of_ours_is_refused(peer: Peer, body: bytes) -> None:
    peer.script = lambda method, path: (200, body)
    with pytest.raises(ApiRefused, match=r"what answers at http://127\.0\.0\.1:\d+ \(status 200\) is no pgwarden API; check --api"):
        call(peer.place, "GET", path("agents"))


def test_an_endless_answer_is_cut(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "ANSWER_BYTES_MAX", 1000)
    peer.script = lambda method, path: (200, b'{"a": "' + b"x" * 2000 + b'"}')
    with pytest.raises(ApiRefused, match="the answer is larger than 1000 bytes; ask for less, with --limit"):
        call(peer.place, "GET", path("agents"))


def test_a_silent_peer_is_given_up(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "TIMEOUT_SECONDS", 0.1)
    silent = threading.Event()

    def script(method: str, path: str) -> tuple[int, bytes]:
        silent.wait(5)
        return 200, b"{}"

    peer.script = script
    with pytest.raises(ApiUnreachable, match="cannot be reached: timed out"):
        call(peer.place, "GET", path("agents"))
    silent.set()


def test_an_error_is_shown_with_its_problems_and_escapes(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", KEY)
    peer.script = lambda method, path: (422, json.dumps({"error": "two \x1b[2J", "problems": ["a\n", "b"]}).encode())
    assert main(["agents", "--api", peer.url]) == 1
    assert capsys.readouterr().err == "pgwarden: two \\x1b[2J\n  a\\n\n  b\n"


# -- the kill switch when the tables do not answer -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", KEY)
    monkeypatch.setattr(revocations, "PROOF_SECONDS_MAX", 0.2)
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.05)


ORDERED = b'{"agent": "a", "state": "revoked", "revoked_at": "2026-01-01T00:00:00.000000Z"}'


def session(**fields: object) -> bytes:
    return json.dumps({"items": [{"session": "s1", "agent": "a", "connection": "shop", **fields}], "next": None}).encode()


@pytest.mark.usefixtures("quick")
def test_a_revocation_does_not_wait_for_tables_that_do_not_answer(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.script = lambda method, path: (200, ORDERED) if method == "POST" else (503, b'{"error": "the tables do not answer"}')
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url]) == 1
    captured = capsys.readouterr()
    assert captured.out == "a is revoked; it can open no session\n"
    assert "what became of its sessions is not known: the tables do not answer; look again with" in captured.err
    assert ("POST", "/v1/agents/a/revoke") in peer.asked


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "fields",
    [
        {"state": "active", "closed_at": None},
        {"closed_at": "2026-01-01T00:00:02Z", "kill_requested_at": "2026-01-01T00:00:00.000000Z", "kill_cause": "agent revoked"},
    ],
)
def test_a_session_without_proof_is_told_and_exits_with_1(
    peer: Peer, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    peer.script = lambda method, path: (200, ORDERED if method == "POST" else session(**fields))
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url]) == 1
    captured = capsys.readouterr()
    assert "not proven" in captured.out or "still open" in captured.out
    assert "1 of 1 sessions not proven gone" in captured.err


@pytest.mark.usefixtures("quick")
def test_a_session_that_vanished_from_the_answer_is_not_proven(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    live = session(state="idle", closed_at=None)
    peer.script = lambda method, path: (200, ORDERED if method == "POST" else live if "live=true" in path else b'{"items": []}')
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["proven"] is False
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url]) == 1
    assert "1 sessions that were open are no longer listed" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_older_ends_of_the_agent_are_not_shown(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"closed_at": "2025-01-01T00:00:02Z", "kill_requested_at": "2025-01-01T00:00:00Z", "kill_backend_gone_at": None}
    peer.script = lambda method, path: (
        200, ORDERED if method == "POST" else b'{"items": []}' if "live=true" in path else session(**old)
    )  # fmt: skip
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url]) == 0
    assert capsys.readouterr().out == "a is revoked; it can open no session\nno session was open\n"
