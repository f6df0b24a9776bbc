"""`python -m bench.desk`: how long each page of the dashboard takes until its content is there, measured in a browser.

Over a month that never was (`bench.history`): the real API on log and tables, the real dashboard, Debian's Chromium. The clock runs
from the navigation until the page's last part holds rows, as a person's does: the page's own scripts, the WebSocket, the questions.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Page, sync_playwright

from bench import backbone_tables
from bench.servers import CannotMeasure
from dashboards import launch
from identity.agent_keys import create_operator_key

CHROMIUM: Final = "/usr/bin/chromium"
RUNS: Final = 5  # after one that is not counted: scripts come from the browser's store as they do for who uses the pages
GOAL_SECONDS: Final = 1.0
START_SECONDS_MAX: Final = 60.0
PAGE_SECONDS_MAX: Final = 30.0

# Each page, and a part of it that comes last. The month is over, so pages look at all time.
PAGES: Final = {
    "Now": ("/", ".st-key-refusals tr"),
    "Agents": ("/agents?agent=agent-00000", ".st-key-its-sessions tr.row"),
    "Sessions": ("/sessions?span=all+time", ".st-key-sessions tr.row"),
    "one session": ("/sessions?session={session}", ".st-key-timeline tr.row"),
    "Statements": ("/statements?span=all+time", ".st-key-statements tr.row"),
    "Statements of a table": ("/statements?span=all+time&relation=public.table_7", ".st-key-statements tr.row"),
    "Findings": ("/findings", ".st-key-findings tr"),
    "Coverage": ("/coverage?span=all+time", ".st-key-topics tr.row"),
    "SQL": ("/sql", ".st-key-schema tr.row"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.desk")
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, help="where log and tables are kept, and found again")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="pgwarden-desk-") as name:
            folder = asked.keep or Path(name)
            folder.mkdir(mode=0o700, exist_ok=True)
            asyncio.run(backbone_tables.kept(folder, asked.executions))
            with _served(folder) as (url, api, key):
                session = _some_session(api, key)
                _measure(url, session, asked.executions)
    except CannotMeasure as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    return 0


def _measure(url: str, session: str, executions: int) -> None:
    print(f"{executions} executions, 1,000 agents; median and slowest of {RUNS}, load average {os.getloadavg()[0]:.1f}")
    slow = 0
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="pgwarden-browser-") as profile:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, headless=True, args=flags)
        page = browser.pages[0]
        for name, (path, part) in PAGES.items():
            seconds = [_seconds(page, url + path.format(session=session), part) for _ in range(RUNS + 1)][1:]
            median = statistics.median(seconds)
            slow += median > GOAL_SECONDS
            print(
                f"{median:6.2f} s {max(seconds):6.2f} s  {name}{'   more than the goal' if median > GOAL_SECONDS else ''}",
                flush=True,
            )
        browser.close()
    print(f"{slow} of {len(PAGES)} take more than {GOAL_SECONDS:g} s")


def _seconds(page: Page, url: str, part: str) -> float:
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator(part).first.wait_for(state="visible", timeout=PAGE_SECONDS_MAX * 1000)
    return time.perf_counter() - began


def _some_session(api: str, key: str) -> str:
    found = httpx.get(f"{api}/v1/sessions", params={"limit": 50}, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    items = found.json()["items"]
    return str(max(items, key=lambda item: item["statements"])["session"])


@contextmanager
def _served(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The API on that folder, and a dashboard: its address, the API's, and an operator's key."""
    key, digest = create_operator_key()
    key_file = folder / "operator.key"
    key_file.touch(0o600)
    key_file.write_text(key)
    api_port, port = _port(), _port()
    configuration = folder / "pgwarden.toml"
    configuration.write_text(f'state = "."\n[api]\nlisten = "127.0.0.1:{api_port}"\n[operators.bench]\nkey_sha256 = "{digest}"\n')
    api, url = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{port}"
    environment = {**os.environ, **launch.environment(api, key_file)}
    commands = (
        [sys.executable, "-m", "pgwarden", "api", "-c", str(configuration)],
        list(launch.arguments("127.0.0.1", port)),
    )
    started = []
    try:
        with (folder / "output.log").open("ab") as output:
            for command in commands:
                started.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        headers = {"Authorization": f"Bearer {key}"}
        _until(lambda: httpx.get(f"{api}/v1/sessions", headers=headers).status_code == 200, folder / "output.log")
        _until(lambda: httpx.get(f"{url}/_stcore/health").status_code == 200, folder / "output.log")
        yield url, api, key
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


def _until(met: Callable[[], bool], output: Path) -> None:
    end = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < end:
        try:
            if met():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise CannotMeasure(f"nothing answers; the end of its output: {output.read_text()[-1000:]}")


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
