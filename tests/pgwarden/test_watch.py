"""What `pgwarden up` shows, against answers as the API gives them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pgwarden.watch import Watch


class Answers(ThreadingHTTPServer):
    refused: list[dict[str, object]]

    def refuse(self, execution: int, minute: int, text: str) -> None:
        at = f"2026-11-22T16:{minute:02}:00.000000Z"
        one = {"started_at": at, "session": "s", "agent": "a", "execution": execution, "text": text, "reason": "no grant"}
        self.refused.insert(0, one)


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Answers)
        items = self.server.refused if urlsplit(self.path).path == "/v1/statements" else []
        body = json.dumps({"items": items, "next": None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[Answers]:
    server = Answers(("127.0.0.1", 0), _Answer)
    server.refused = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def watch(answers: Answers, tmp_path: Path) -> Iterator[Watch]:
    (tmp_path / "key").write_text("pgwop_key")
    sockets = (tmp_path / "none.sock", tmp_path / "watchdog.sock")
    reader = Watch(f"http://127.0.0.1:{answers.server_address[1]}", tmp_path / "key", *sockets, 0)
    yield reader
    reader.close()


def test_a_refusal_that_repeats_is_shown_once_a_minute(answers: Answers, watch: Watch) -> None:
    answers.refuse(1, 1, "SELECT salary")
    answers.refuse(2, 1, "SELECT salary")
    assert watch.news() == ["refused     a: SELECT salary — no grant"]
    answers.refuse(3, 1, "DROP TABLE orders")
    answers.refuse(4, 1, "SELECT salary")
    assert watch.news() == ["refused     a: DROP TABLE orders — no grant"]
    answers.refuse(5, 2, "SELECT salary")
    assert watch.news() == ["refused     a: SELECT salary — no grant"]
    assert watch.news() == []


@contextmanager
def saying(path: Path, status: dict[str, object]) -> Iterator[None]:
    """A socket that answers once."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(json.dumps(status).encode())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_a_watchdog_that_is_blind_or_misses_a_gateway_has_not_done_its_job(watch: Watch, tmp_path: Path) -> None:
    def of_the_watchdog() -> list[str]:
        return [one for one in watch.shortcomings((), "http://127.0.0.1:1") if "the watchdog" in one]

    assert of_the_watchdog()[0].startswith("the watchdog does not say how it is")
    status: dict[str, object] = {
        "log": {"available": False, "reason": "disk full"},
        "blind": [{"what": "connection shop", "since_us": 1, "reason": "no route"}],
        "missed": [{"connection": "shop", "gateway": "gateway-1", "boot": 1, "since_us": 1}],
    }
    with saying(tmp_path / "watchdog.sock", status):
        assert of_the_watchdog() == [
            "the watchdog cannot record: disk full",
            "the watchdog does not see connection shop: no route",
            "the watchdog misses gateway gateway-1 on shop",
        ]
    (tmp_path / "watchdog.sock").unlink()
    with saying(tmp_path / "watchdog.sock", {"log": {"available": True}, "blind": [], "missed": []}):
        assert of_the_watchdog() == []
