"""What metrics cost: CPU a turn of a session, CPU a scrape of a gateway with many sessions, and of the process that serves it.

`make bench-metrics`. The turn is timed as the gateway's own code has it, beside the same code without: the difference is what a
client's turn pays. Figures are CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import orjson

from ingest.histogram import Histogram
from pgwarden.metrics import render
from pgwarden.neighbours import Neighbour

TURNS: Final = 2_000_000
REPEATS: Final = 5
TURNS_A_TIMING: Final = 16  # as gateway/conversation.py
SESSIONS: Final = (10, 1_000, 10_000)


class _Turns:
    def __init__(self) -> None:
        self.last_active = 0.0
        self.until_timed = TURNS_A_TIMING
        self.decisions = Histogram()

    def bare(self) -> None:
        self.last_active = time.monotonic()

    def timed(self) -> None:
        self.last_active = began = time.monotonic()
        self.until_timed -= 1
        if not self.until_timed:
            self.until_timed = TURNS_A_TIMING
            self.decisions.observe(time.monotonic() - began)


def _cpu_us(work: Callable[[], object], times: int) -> float:
    """The least of some runs: what disturbs only adds."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - began) / times * 1e6)
    return min(found)


def _facts() -> object:
    histogram = Histogram()
    for number in range(10_000):
        histogram.observe(number / 1e5)
    return histogram.facts()


def _status(sessions: int, facts: object) -> dict[str, object]:
    """As a gateway puts it together, a little dearer: it has the texts ready."""
    live = [
        {
            "session": f"0193{number:012x}",
            "agent": f"agent-{number % 300}",
            "connection": "shop",
            "client": f"10.0.0.{number % 250}:{number}",
            "backend_pid": number,
            "opened_us": 1_790_000_000_000_000 + number,
            "state": "idle",
        }
        for number in range(sessions)
    ]
    counters = {"statements": 10**9, "denied": 5, "sessions_opened": 7, "sessions_denied": 1, "killed": 2, "unproven": 0}
    log = {"available": True, "since_us": 0, "reason": "", "refused": 0, "pending_bytes": 0}
    return {"sessions": live, "counters": counters, "log": log, "decisions": facts, "kills": facts, "appends": facts}


def _said(sessions: int, facts: object) -> bytes:
    return orjson.dumps(_status(sessions, facts))


def main() -> int:
    turns = _Turns()
    bare, timed = _cpu_us(turns.bare, TURNS), _cpu_us(turns.timed, TURNS)
    print(f"a turn: {bare:.3f} us of CPU without, {timed:.3f} with; metrics cost {timed - bare:.3f} us")
    facts = _facts()
    for sessions in SESSIONS:
        said = _cpu_us(partial(_said, sessions, facts), 20)
        one = [Neighbour("gateway", "", orjson.loads(_said(sessions, facts)))]
        page = _cpu_us(partial(render, one, ""), 20)
        print(f"a scrape, {sessions} live sessions: {said / 1e3:.2f} ms of the gateway's, {page / 1e3:.2f} ms for the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
