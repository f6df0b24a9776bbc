"""`python -m bench.desk`: how long each page of the dashboard takes until its content is there, measured in a browser.

Over a month that never was (`bench.history`): the real API on log and tables, the real dashboard, Debian's Chromium. The clock runs
until the page's last part holds rows, as a person's does. Each page is opened in two ways: from another page of the dashboard, as
by a press, and by its address in an empty tab, where the browser loads and compiles Streamlit's scripts before anything is asked.
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

from analytics.checkpoints import Checkpoint, read, write
from analytics.detection import Detection
from analytics.inspector import FOLDER
from analytics.reconcile import Reconcile
from analytics.responses import Responses
from analytics.settings import ReconcileSettings, ResponsesSettings
from bench import backbone_tables
from bench.servers import CannotMeasure
from dashboards import launch
from identity.agent_keys import create_operator_key
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

CHROMIUM: Final = "/usr/bin/chromium"
# After the first, which is told by itself: it waits for what Python imports, and the browser has none of the scripts.
RUNS: Final = 5
GOAL_SECONDS: Final = 1.0
START_SECONDS_MAX: Final = 60.0
PAGE_SECONDS_MAX: Final = 30.0

QUIET_MS: Final = 300  # until what was drawn last has settled
ELSEWHERE: Final = ("/coverage", ".st-key-topics tr.row")
ELSEWHERE_OF_ELSEWHERE: Final = ("/findings", ".st-key-findings tr")

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
            asyncio.run(_inspect_from_now_on(folder))
            with _served(folder) as (url, api, key):
                session = _some_session(api, key)
                _measure(url, session, asked.executions)
    except CannotMeasure as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    return 0


def _measure(url: str, session: str, executions: int) -> None:
    print(f"{executions} executions, 1,000 agents; median and slowest of {RUNS}, load average {os.getloadavg()[0]:.1f}")
    print("by a press: median, slowest | by its address: median, slowest, the first of all")
    slow = 0
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="pgwarden-browser-") as profile:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, headless=True, args=flags)
        page = browser.pages[0]
        for name, (path, part) in PAGES.items():
            address = path.format(session=session)
            first, *opened = [_opened(page, url + address, part) for _ in range(RUNS + 1)]
            _, *pressed = [_pressed(page, url, address, part) for _ in range(RUNS + 1)]
            median = statistics.median(pressed)
            slow += median > GOAL_SECONDS
            print(
                f"{median:5.2f} {max(pressed):5.2f} | {statistics.median(opened):5.2f} {max(opened):5.2f} {first:5.2f}  {name}"
                f"{'   more than the goal' if median > GOAL_SECONDS else ''}",
                flush=True,
            )
        browser.close()
    print(f"{slow} of {len(PAGES)} take more than {GOAL_SECONDS:g} s by a press")


async def _inspect_from_now_on(folder: Path) -> None:
    """Detectors and reconciliation begin behind the month: it holds no finding, and reading it would take them many minutes."""
    log = SegmentLog(folder / "log", LogSettings())
    try:
        for step in (Detection(), Reconcile(ReconcileSettings()), Responses(ResponsesSettings())):
            place = folder / "tables" / FOLDER / f"{step.name}.state"
            ends = {at: end for topic in step.topics for at, end in (await log.offsets(topic)).items()}
            kept = read(str(place))
            if not isinstance(kept, Checkpoint) or any(kept.offsets.get(at, 0) < end for at, end in ends.items()):
                write(str(place), Checkpoint(step.version, ends, {}, step.encode()))
    finally:
        await log.close()


def _opened(page: Page, url: str, part: str) -> float:
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator(part).first.wait_for(state="visible", timeout=PAGE_SECONDS_MAX * 1000)
    return time.perf_counter() - began


def _pressed(page: Page, url: str, address: str, part: str) -> float:
    """From a page that is there: as the browser's own buttons do it, and with the address that a link would have."""
    other, shown = ELSEWHERE if not address.startswith(ELSEWHERE[0]) else ELSEWHERE_OF_ELSEWHERE
    page.goto(url + other)
    page.locator(shown).first.wait_for(state="visible", timeout=PAGE_SECONDS_MAX * 1000)
    page.get_by_text("Times in UTC").wait_for(timeout=PAGE_SECONDS_MAX * 1000)  # the foot comes last
    page.wait_for_timeout(QUIET_MS)
    began = time.perf_counter()
    page.evaluate("address => { history.pushState({}, '', address); dispatchEvent(new PopStateEvent('popstate')) }", address)
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
        _until(lambda: _inspected(api, headers), folder / "output.log")
        yield url, api, key
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


def _inspected(api: str, headers: dict[str, str]) -> bool:
    """Whether no inspection step has anything left to read: its work would be measured with the pages."""
    health = httpx.get(f"{api}/v1/health", headers=headers, timeout=30).json()
    if failed := [each for each in health["inspections"] if each["error"]]:
        raise CannotMeasure(f"inspection {failed[0]['inspection']}: {failed[0]['error']}")
    return all(each["lag_records"] == 0 for each in health["inspections"])


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
