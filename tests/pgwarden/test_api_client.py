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
from pgwarden.commands import answers, revocations
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


def test_what_is_said_of_a_finding_of_nobody_says_so(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", KEY)
    peer.script = lambda method, path: (200, b'{"finding": "shadow-1", "agent": ""}')
    assert main(["findings", "acknowledge", "shadow-1", "--api", peer.url]) == 0
    assert capsys.readouterr().out == "shadow-1 of nobody is acknowledged\n"


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
def test_a_command_that_may_yet_be_recorded_says_how_to_repeat_it(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.script = lambda method, path: (503, b'{"error": "The log is slow."}')
    assert main(["revoke", "a", "--reason", "r", "--api", peer.url]) == 1
    key = peer.headers[-1]["Idempotency-Key"]
    assert capsys.readouterr().err == f"pgwarden: The log is slow. To repeat the command, add --idempotency-key {key}\n"


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


# -- who acts on it ------------------------------------------------------------------------------------------------------------------


def taken(applied: list[bool]) -> Callable[[str, str], tuple[int, bytes]]:
    """A grant's revocation, of which gateway-2 says each time what stands first in the list, and at last the last."""

    def script(method: str, path: str) -> tuple[int, bytes]:
        known = applied.pop(0) if len(applied) > 1 else applied[0]
        said = {"grant": "g", "agent": "a", "state": "revoked", "applied": known, "waiting_for": [] if known else ["gateway-2"]}
        return 200, json.dumps(said).encode()

    return script


@pytest.mark.usefixtures("quick")
def test_a_command_waits_until_every_gateway_acts_on_it(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.script = taken([False, False, True])
    assert main(["grants", "revoke", "g", "--reason", "r", "--api", peer.url]) == 0
    assert capsys.readouterr().out == "grant g of a is revoked\n"
    assert peer.asked == [("POST", "/v1/grants/g/revoke")] * 3


@pytest.mark.usefixtures("quick")
def test_a_gateway_that_does_not_act_on_it_is_named_and_exits_with_1(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "APPLIED_SECONDS_MAX", 0.3)
    peer.script = taken([False])
    assert main(["grants", "revoke", "g", "--reason", "r", "--api", peer.url]) == 1
    assert capsys.readouterr().err == "pgwarden: recorded, but not acted on yet by gateway-2; see pgwarden health\n"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("verb", "said"), [("release", "is released"), ("unthrottle", "is throttled no more")])
def test_letting_go_waits_for_the_gateways_too(peer: Peer, capsys: pytest.CaptureFixture[str], verb: str, said: str) -> None:
    peer.script = taken([False, True])
    assert main([verb, "a", "--api", peer.url]) == 0
    assert capsys.readouterr().out == f"a {said}\n"
    assert peer.asked == [("POST", f"/v1/agents/a/{verb}")] * 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("line", "path", "body"),
    [
        (["--subject", "idp", "ada"], "/v1/subjects/revoke", {"issuer": "idp", "subject": "ada"}),
        (["--group", "idp", "staff"], "/v1/groups/revoke", {"issuer": "idp", "group": "staff"}),
        (["--session", "s 1", "--of", "a"], "/v1/sessions/s%201/revoke", {"agent": "a"}),
        (["--all"], "/v1/all/revoke", {}),
    ],
)
def test_each_kind_of_revocation_shows_the_sessions_that_it_concerns_and_no_others(
    peer: Peer, line: list[str], path: str, body: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"connection": "shop", "closed_at": None, "groups": [], "on_behalf_of": ""}
    live = [
        {**common, "session": "s 1", "agent": "a", "issuer": "https://idp", "subject": "ada", "groups": ["staff"]},
        {**common, "session": "s2", "agent": "a", "issuer": "https://other", "subject": "ada", "groups": ["staff"]},
    ]
    proof = {
        "closed_at": "2026-01-01T00:00:00.1Z",
        **{f"kill_{step}_at": "2026-01-01T00:00:00.05Z" for step in ("requested", "decided", "client_closed", "backend_gone")},
    }

    def script(method: str, asked: str) -> tuple[int, bytes]:
        if method == "POST":
            said = {**body, "issuer": "https://idp", "agent": "a", "state": "revoked", "revoked_at": "2026-01-01T00:00:00Z"}
            return 200, json.dumps(said).encode()
        if "live=true" in asked:
            return 200, json.dumps({"items": live, "next": None}).encode()
        (row,) = [row for row in live if asked.endswith(str(row["session"]).replace(" ", "%20"))]
        return 200, json.dumps({**row, **proof}).encode()

    peer.script = script
    assert main(["revoke", *line, "--reason", "r", "--api", peer.url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = ["s 1", "s2"] if line == ["--all"] else ["s 1"]
    assert ([row["session"] for row in document["sessions"]], document["proven"]) == (expected, True)
    assert ("POST", path) in peer.asked


@pytest.mark.usefixtures("quick")
def test_of_many_sessions_those_that_took_longest_are_shown_and_all_are_counted(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"session": f"s{n:04}", "agent": "a", "connection": "shop", "closed_at": None} for n in range(1500)]
    posted: list[str] = []

    def script(method: str, asked: str) -> tuple[int, bytes]:
        if method == "POST":
            posted.append(asked)
            return 200, b'{"state": "revoked", "revoked_at": "2026-01-01T00:00:00Z"}'
        second = "before=next" in asked
        if "live=true" in asked:
            items: list[dict[str, object]] = [] if posted else [*(rows[1000:] if second else rows[:1000])]
        else:
            kills = [
                {
                    "session": row["session"], "recorded_at": "2026-01-01T00:00:01Z", "cause": "all revoked",
                    "requested_at": "2026-01-01T00:00:00Z", "decided_at": "2026-01-01T00:00:00Z",
                    "client_closed_at": "2026-01-01T00:00:00Z", "backend_gone_at": f"2026-01-01T00:00:00.{n:06}Z",
                }
                for n, row in enumerate(rows)
            ]  # fmt: skip
            older = {"session": "older", "recorded_at": "2025-12-31T00:00:00Z"}
            items = [*(kills[1000:] if second else kills[:1000]), *([older] if second else [])]
        more = not second and len(items) == 1000
        return 200, json.dumps({"items": items, "next": "next" if more else None}).encode()

    peer.script = script
    assert main(["revoke", "--all", "--reason", "r", "--api", peer.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["everything is revoked; nobody can open a session", "1500 sessions were to end; the 50 that took longest:"]
    assert (lines[3].split()[0], len(lines)) == ("s1499", 53)
