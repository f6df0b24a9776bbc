"""A house to look into: the real API and the real dashboard on a real log, and a browser. Only the gateway is played: it is a writer
of its topics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from playwright.sync_api import Locator, Page

from dashboards import launch
from identity.agent_keys import create_operator_key
from ingest.events import Stamp
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests import broker as brokers
from tests.analytics.scenario import Writer, stamp

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 60_000  # for what has to appear: a page takes a second of it, two busy cores take what they like
ALICE, ALICE_SHA256 = create_operator_key()
BOB, BOB_SHA256 = create_operator_key()
PEOPLE = {"rita": "responders", "vera": "viewers"}  # who sign in, and their group
ACCESS_WORD = "0123456789abcdef" * 4
SHOTS = os.environ.get("PGWARDEN_SCREENSHOTS", "")  # a folder; "" takes none

RECORDS: dict[str, object] = {"available": True, "since_us": 0, "reason": "", "refused": 0, "pending_bytes": 0}

T = TypeVar("T")


@dataclass
class Gateway:
    """Writes sessions and statements as a gateway would, and says on its socket how it is.

    On a loop of its own: the browser's driver holds the test's.
    """

    folder: Path  # the state
    projected: Callable[[], bool]  # whether the API's tables hold all that is in the log
    log_state: dict[str, object] = field(default_factory=lambda: dict(RECORDS))
    states: dict[str, str] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    writer: Writer = field(init=False)
    log: SegmentLog = field(init=False)
    sessions: int = 0

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

        async def begin() -> SegmentLog:
            (self.folder / "run").mkdir(exist_ok=True)
            self.socket = await asyncio.start_unix_server(self.answer, self.folder / "run" / "gateway.sock")
            return SegmentLog(self.folder / "log", LogSettings())

        self.log = self.run(begin())
        self.writer = Writer(self.log, "gateway", 1, now_us() - 60_000_000)
        self.writer.started()
        self.writer.now_us = now_us()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions = [{"session": session, "state": state} for session, state in self.states.items()]
        writer.write(json.dumps({"gateway": "gateway", "boot": 1, "log": self.log_state, "sessions": sessions}).encode())
        await writer.drain()
        writer.close()

    def run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_MS / 1000)

    def session(self, agent: str, **changes: object) -> Stamp:
        self.sessions += 1
        under = stamp(f"{agent}-{self.sessions}", agent, **changes)
        self.writer.now_us = now_us()
        self.writer.opened(under)
        return under

    def record(self) -> None:
        """A page that looks once must find it."""
        self.run(self.writer.write())
        until(self.projected, "the tables hold what was recorded")

    def close(self) -> None:
        async def finish() -> None:
            self.socket.close()
            await self.socket.wait_closed()
            await self.log.close()

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@dataclass
class House:
    folder: Path
    api_port: int
    dashboard_port: int
    api: subprocess.Popen[bytes] | None = None
    dashboard: subprocess.Popen[bytes] | None = None
    issuer_port: int = field(default_factory=brokers.port)
    signed_port: int = field(default_factory=brokers.port)
    issuer: subprocess.Popen[bytes] | None = None
    signed: subprocess.Popen[bytes] | None = None  # a second dashboard, to which people sign in

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_api(self) -> None:
        with (self.folder / "api.log").open("ab") as output:
            command = [sys.executable, "-m", "pgwarden", "api", "-c", str(self.folder / "pgwarden.toml")]
            self.api = subprocess.Popen(command, stdout=output, stderr=output, cwd=launch.APP.parent.parent)
        until(lambda: self.get("/v1/health").status_code == 200, "the API answers", self.folder / "api.log")

    def stop_api(self) -> None:
        assert self.api is not None
        end(self.api)
        self.api = None

    def start_dashboard(self, access_file: Path | None = None) -> None:
        told = launch.environment(f"http://127.0.0.1:{self.api_port}", self.folder / "operator.key", access_file)
        with (self.folder / "dashboard.log").open("ab") as output:
            self.dashboard = subprocess.Popen(
                launch.arguments("127.0.0.1", self.dashboard_port), stdout=output, stderr=output, env={**os.environ, **told}
            )
        until(
            lambda: httpx.get(f"{self.url}/_stcore/health").status_code == 200,
            "the dashboard answers",
            self.folder / "dashboard.log",
        )

    def start_sign_in(self) -> str:
        """The development issuer, and `pgwarden dashboard` as the configuration has it. Returns its address."""
        address = f"http://127.0.0.1:{self.signed_port}"
        people = [argument for who, group in PEOPLE.items() for argument in ("--person", f"{who}:{group}={self.folder / who}")]
        asked = ["--folder", str(self.folder / "issuer"), "--port", str(self.issuer_port), "--client"]
        asked += [f"desk={self.folder / 'desk.secret'}", "--redirect", f"desk={address}/oauth2callback", *people]
        root = launch.APP.parent.parent
        with (self.folder / "sign-in.log").open("ab") as output:
            self.issuer = subprocess.Popen(
                [sys.executable, "-m", "pgwarden.dev_issuer", *asked], stdout=output, stderr=output, cwd=root
            )
            command = [sys.executable, "-m", "pgwarden", "dashboard", "-c", str(self.folder / "pgwarden.toml")]
            self.signed = subprocess.Popen(command, stdout=output, stderr=output, cwd=root)
        for where in (f"{address}/_stcore/health", f"http://127.0.0.1:{self.issuer_port}/jwks"):
            until(lambda where=where: httpx.get(where).status_code == 200, where, self.folder / "sign-in.log")  # type: ignore[misc]
        return address

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.api_port}{path}", headers={"Authorization": f"Bearer {ALICE}"}, timeout=30)

    def projected(self) -> bool:
        return bool(self.get("/v1/health").json()["projection"]["lag_records"] == 0)

    def post(self, path: str, body: dict[str, object], by: str = BOB) -> dict[str, str]:
        address, headers = f"http://127.0.0.1:{self.api_port}{path}", {"Authorization": f"Bearer {by}"}
        answer = httpx.post(address, json=body, headers=headers, timeout=30)
        assert answer.status_code < 300, answer.text
        told: dict[str, str] = answer.json()
        return told

    def agent(self, name: str, description: str = "") -> str:
        self.post("/v1/agents", {"agent": name, "owner": "finance", "description": description, "key": True})
        return name

    def asked(self, agent: str) -> str:
        scope = {"connection": "shop", "rules": [{"schema": "public", "tables": ["orders"], "operations": ["select"]}]}
        return self.post("/v1/grants", {"agent": agent, "scope": scope, "seconds": 3600, "reason": "weekly report"})["grant"]


def now_us() -> int:
    return time.time_ns() // 1000


def until(met: Callable[[], bool], what: str, output: Path | None = None, seconds: float = 3 * WAIT_MS / 1000) -> None:
    end_at = time.monotonic() + seconds
    while True:
        try:
            if met():
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > end_at:
            pytest.fail(f"not within {seconds:g} s: {what}\n{output.read_text()[-4000:] if output else ''}")
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def standing() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="pgwarden-pages-") as name:
        folder = Path(name)
        made = House(folder, brokers.port(), brokers.port())
        key_file = folder / "operator.key"
        key_file.touch(0o600)
        key_file.write_text(ALICE)
        for secret in ("password", "desk.secret", *PEOPLE):
            (folder / secret).touch(0o600)
            (folder / secret).write_text(f"the secret of {secret}")
        (folder / "pgwarden.toml").write_text(
            f"""
state = "state"
[api]
listen = "127.0.0.1:{made.api_port}"
[connections.shop]
host = "127.0.0.1"
database = "shop"
user = "pgwarden"
password = "file:password"
sslmode = "disable"
[operators.alice]
key_sha256 = "{ALICE_SHA256}"
[operators.bob]
key_sha256 = "{BOB_SHA256}"
[issuers.dev]
issuer = "http://127.0.0.1:{made.issuer_port}"
audience = "pgwarden"
insecure_http = true
operator_clients = ["desk"]
responder_groups = ["responders"]
viewer_groups = ["viewers"]
[dashboard]
listen = "127.0.0.1:{made.signed_port}"
issuer = "dev"
client_id = "desk"
client_secret = "file:desk.secret"
address = "http://127.0.0.1:{made.signed_port}"
"""
        )
        try:
            made.start_api()
            made.start_dashboard()
            yield made
        finally:
            for process in (made.api, made.dashboard, made.signed, made.issuer):
                if process is not None:
                    end(process)


@dataclass
class Screen:
    page: Page
    url: str
    strayed: list[str]  # addresses beyond loopback that were asked for
    alerts: list[str]

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}{path}")

    def table(self, key: str) -> Locator:
        return self.page.locator(f".st-key-{key}")

    def shot(self, name: str) -> None:
        """The whole page, not what of it a screen of this size shows: it scrolls within itself."""
        if SHOTS and (size := self.page.viewport_size) is not None:
            height = self.page.evaluate("(document.querySelector('[data-testid=stMain]') ?? document.body).scrollHeight")
            self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], height + 60)})
            self.page.wait_for_timeout(700)
            self.page.screenshot(path=f"{SHOTS}/{name}.png")
            self.page.set_viewport_size(size)
