"""What `pgwarden up` shows, against answers as the API gives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
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
    reader = Watch(f"http://127.0.0.1:{answers.server_address[1]}", tmp_path / "key", tmp_path / "none.sock", 0)
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
