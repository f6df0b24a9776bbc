"""`python -m bench.desk`: how long each page of the dashboard takes until its content is there, measured in a browser.

Over a month that never was (`bench.history`): the real API on log and tables, the real dashboard, Debian's Chromium. The clock runs
until the page's last part holds rows, as a person's does. Each page is opened in two ways: from another page of the dashboard, as
by a press, and by its address in an empty tab, where the browser loads and compiles Streamlit's scripts before anything is asked.

Beside the clock stands the CPU that the dashboard, the API with its workers, and the browser took meanwhile: other work on the
machine lengthens the one and hardly the other. The peer is a page of one word under the same settings, opened in the same two ways
in the same run: what Streamlit takes by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import httpx
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

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
EMPTY_APP: Final = str(Path(__file__).with_name("empty_page.py"))
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
# After the first, which is told by itself: the browser has none of the scripts.
RUNS: Final = 5
GOAL_SECONDS: Final = 1.0
START_SECONDS_MAX: Final = 180.0
PAGE_SECONDS_MAX: Final = 60.0
TICKS: Final = os.sysconf("SC_CLK_TCK")

QUIET_MS: Final = 300  # until what was drawn last has settled


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    part: str  # of it that comes last


# Where a press comes from: it has no filter in its address that the page pressed for has too, for Streamlit would take that out of
# the new address together with the page that is left.
ELSEWHERE: Final = Place("/sql", ".st-key-schema tr.row")
ELSEWHERE_OF_ELSEWHERE: Final = Place("/coverage", ".st-key-topics tr.row")
FOOT: Final = "Times in UTC"  # drawn last on every page of ours

EMPTY: Final = Place("/", "text=one")
EMPTY_ELSEWHERE: Final = Place("/other", "text=other")

# The month is over, so pages look at all time.
PAGES: Final = {
    "Now": Place("/", ".st-key-refusals tr.row"),
    "Agents": Place("/agents?agent=agent-00000", ".st-key-its-sessions tr.row"),
    "Sessions": Place("/sessions?span=all+time", ".st-key-sessions tr.row"),
    "one session": Place("/sessions?session={session}", ".st-key-timeline tr.row"),
    "Statements": Place("/statements?span=all+time", ".st-key-statements tr.row"),
    "Statements of a table": Place("/statements?span=all+time&relation=public.table_7", ".st-key-statements tr.row"),
    "Findings": Place("/findings", ".st-key-findings tr"),
    "Coverage": Place("/coverage?span=all+time", ".st-key-topics tr.row"),
    "SQL": Place("/sql", ".st-key-schema tr.row"),
}


@dataclass(frozen=True, slots=True)
class Cost:
    seconds: float  # by the clock
    dashboard: float  # CPU, seconds
    api: float
    browser: float


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    empty_url: str
    api: str
    key: str
    dashboard_pid: int
    empty_pid: int
    api_pid: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.desk")
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, help="where log and tables are kept, and found again")
    parser.add_argument("--page", choices=tuple(PAGES), action="append", help="measure this one alone; may be repeated")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="pgwarden-desk-") as name:
            folder = asked.keep or Path(name)
            folder.mkdir(mode=0o700, exist_ok=True)
            asyncio.run(backbone_tables.kept(folder, asked.executions))
            asyncio.run(_inspect_from_now_on(folder))
            with _served(folder) as served:
                _measure(served, _some_session(served.api, served.key), asked.executions, asked.page or tuple(PAGES))
    except CannotMeasure as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    return 0


def _measure(served: Served, session: str, executions: int, names: Sequence[str]) -> None:
    print(f"{executions} executions, 1,000 agents; {RUNS} runs, load average {os.getloadavg()[0]:.1f}")
    print("seconds: median, slowest (CPU: dashboard, API, browser), by a press | by its address | the first of all | load")
    slow = 0
    with sync_playwright() as playwright, _profile() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=list(FLAGS), viewport={"width": 1280, "height": 900}
        )
        page = browser.pages[0]
        ours = _Screen(page, served.url, served.dashboard_pid, served.api_pid)
        floor = _told("(Streamlit alone)", _Screen(page, served.empty_url, served.empty_pid, 0), EMPTY, EMPTY_ELSEWHERE)
        for name in names:
            found = Place(PAGES[name].path.format(session=session), PAGES[name].part)
            pressed = _told(name, ours, found, ELSEWHERE_OF_ELSEWHERE if found.path == ELSEWHERE.path else ELSEWHERE, floor)
            slow += pressed[0] > GOAL_SECONDS
        browser.close()
    print(f"{slow} of {len(names)} take more than {GOAL_SECONDS:g} s by a press")


Medians: TypeAlias = tuple[float, float]  # by a press and by its address, seconds


def _told(name: str, screen: _Screen, place: Place, elsewhere: Place, floor: Medians | None = None) -> Medians:
    first, *opened = [screen.opened(place) for _ in range(RUNS + 1)]
    _, *pressed = [screen.pressed(place, elsewhere) for _ in range(RUNS + 1)]
    medians = tuple(statistics.median(each.seconds for each in way) for way in (pressed, opened))
    ratio = "" if floor is None else f"  {medians[0] / floor[0]:.1f} and {medians[1] / floor[1]:.1f} times Streamlit alone"
    print(
        f"{_line(pressed)} | {_line(opened)} | {first.seconds:5.2f} | {os.getloadavg()[0]:4.1f}  {name}{ratio}"
        f"{'   more than the goal' if medians[0] > GOAL_SECONDS else ''}",
        flush=True,
    )
    return medians[0], medians[1]


def _line(runs: Sequence[Cost]) -> str:
    median = statistics.median
    cpu = " ".join(f"{median(getattr(run, who) for run in runs):.2f}" for who in ("dashboard", "api", "browser"))
    return f"{median(run.seconds for run in runs):5.2f} {max(run.seconds for run in runs):5.2f} ({cpu})"


@dataclass(frozen=True, slots=True)
class _Screen:
    page: BrowserPage
    url: str
    server_pid: int
    api_pid: int  # 0: none

    def opened(self, place: Place) -> Cost:
        self.page.goto("about:blank")
        self.page.wait_for_timeout(QUIET_MS)
        return self._until_shown(lambda: self.page.goto(self.url + place.path, wait_until="commit"), place)

    def pressed(self, place: Place, elsewhere: Place) -> Cost:
        """From a page that is there: as the browser's own buttons do it, and with the address that a link would have."""
        self.page.goto(self.url + elsewhere.path)
        self._shown(elsewhere)
        if self.api_pid:
            self.page.get_by_text(FOOT).wait_for(timeout=PAGE_SECONDS_MAX * 1000)
        self.page.wait_for_timeout(QUIET_MS)
        press = "address => { history.pushState({}, '', address); dispatchEvent(new PopStateEvent('popstate')) }"
        return self._until_shown(lambda: self.page.evaluate(press, place.path), place)

    def _until_shown(self, go: Callable[[], object], place: Place) -> Cost:
        servers = [self.server_pid, *([self.api_pid] if self.api_pid else [])]
        before = [_cpu_seconds(pid) for pid in servers], _cpu_of_browser()
        began = time.perf_counter()
        go()
        self._shown(place)
        seconds = time.perf_counter() - began
        after = [_cpu_seconds(pid) for pid in servers], _cpu_of_browser()
        spent = [_spent(*pair) for pair in zip(before[0], after[0], strict=True)]
        return Cost(seconds, spent[0], spent[1] if self.api_pid else 0.0, _spent(before[1], after[1]))

    def _shown(self, place: Place) -> None:
        try:
            self.page.locator(place.part).first.wait_for(state="visible", timeout=PAGE_SECONDS_MAX * 1000)
        except PlaywrightTimeout as error:
            raise CannotMeasure(f"{place.path} showed no {place.part} within {PAGE_SECONDS_MAX:g} s") from error


def _cpu_seconds(pid: int) -> dict[int, float]:
    """Of a process and its descendants, so far."""
    found = {}
    with contextlib.suppress(OSError):  # one that ended meanwhile
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        found[pid] = (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime: proc(5)
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= _cpu_seconds(int(child))
    return found


def _cpu_of_browser() -> dict[int, float]:
    """All Chromium below this process; Playwright's own driver is none of it."""
    found = {}
    for pid, seconds in _cpu_seconds(os.getpid()).items():
        with contextlib.suppress(OSError):
            if b"chromium" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                found[pid] = seconds
    return found


def _spent(before: dict[int, float], after: dict[int, float]) -> float:
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


@contextmanager
def _profile() -> Iterator[str]:
    """A folder for the browser, which may still write into it while it ends."""
    with tempfile.TemporaryDirectory(prefix="pgwarden-browser-", ignore_cleanup_errors=True) as name:
        yield name


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


def _some_session(api: str, key: str) -> str:
    found = httpx.get(f"{api}/v1/sessions", params={"limit": 50}, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    items = found.json()["items"]
    return str(max(items, key=lambda item: item["statements"])["session"])


@contextmanager
def _served(folder: Path) -> Iterator[Served]:
    """The API on that folder, a dashboard, and the empty page."""
    key, digest = create_operator_key()
    key_file = folder / "operator.key"
    key_file.touch(0o600)
    key_file.write_text(key)
    api_port, port, empty_port = _port(), _port(), _port()
    configuration = folder / "pgwarden.toml"
    configuration.write_text(f'state = "."\n[api]\nlisten = "127.0.0.1:{api_port}"\n[operators.bench]\nkey_sha256 = "{digest}"\n')
    api, url, empty_url = (f"http://127.0.0.1:{number}" for number in (api_port, port, empty_port))
    environment = {**os.environ, **launch.environment(api, key_file)}
    commands = (
        [sys.executable, "-m", "pgwarden", "api", "-c", str(configuration)],
        list(launch.arguments("127.0.0.1", port)),
        [EMPTY_APP if part == str(launch.APP) else part for part in launch.arguments("127.0.0.1", empty_port)],
    )
    started = []
    try:
        with (folder / "output.log").open("ab") as output:
            for command in commands:
                started.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        headers = {"Authorization": f"Bearer {key}"}
        _until(lambda: httpx.get(f"{api}/v1/sessions", headers=headers).status_code == 200, folder / "output.log")
        for each in (url, empty_url):
            _until(lambda each=each: httpx.get(f"{each}/_stcore/health").status_code == 200, folder / "output.log")  # type: ignore[misc]
        _until(lambda: _inspected(api, headers), folder / "output.log")
        yield Served(url, empty_url, api, key, started[1].pid, started[2].pid, started[0].pid)
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
