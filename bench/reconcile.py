"""What reconciliation costs: `python -m bench.reconcile` (`make bench-reconcile`). No server is needed.

Honest sessions run point selects, as their gateway and one collector tell of them, in frames as both write them; the step reads
them with a tick every quarter of a second. CPU time of the step alone, an event; beside it, decoding the same frames. And what a
statement that waits for its counterpart takes of memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
import tracemalloc
from collections.abc import Iterator, Sequence

from analytics.reconcile import Reconcile
from analytics.settings import ReconcileSettings
from ingest.collectors.collector import digest, session_id
from ingest.events import (
    Event,
    SessionObserved,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementFinished,
    StatementObserved,
    StatementStarted,
    WitnessReported,
    WitnessStarted,
)
from ingest.frames import TOPIC_OF, Framer, decode
from ingest.log import Record

SECOND = 1_000_000
BEGIN_US = 1_790_000_000 * SECOND
FRAME_EVENTS = 100  # of a gateway under load; the collector's are alike
STATEMENTS_A_SECOND = 2_000


def records(sessions: int, statements: int, texts: int, *, observed: bool) -> Iterator[tuple[int, Record]]:
    """`statements` in all, of the sessions in turn; each session has `texts` of its own."""
    framers = {"gw-1": Framer("gw-1", 1, events_max=FRAME_EVENTS, bytes_max=2**20)}
    framers["log"] = Framer("log", 1, events_max=FRAME_EVENTS, bytes_max=2**20)
    offsets: dict[str, int] = {}

    def cut(writer: str, at_us: int) -> Iterator[tuple[int, Record]]:
        for entry in framers[writer].cut():
            offset = offsets[entry.topic] = offsets.get(entry.topic, -1) + 1
            yield at_us, Record(entry.topic, 0, offset, at_us, entry.key, entry.value)

    def add(writer: str, event: Event, under: Stamp | None = None) -> None:
        framers[writer].add(TOPIC_OF[type(event)], "k", event, under)

    add("log", WitnessStarted(BEGIN_US, "log", "log", "main", ("shop",), "statements", "1"))
    stamps, names = [], []
    for number in range(sessions):
        pid = 1_000 + number
        who = (f"s{number}", f"agent-{number % 50}", "key:k", "", "", (), "", "", (), ("g-1",), ("op",))
        under = Stamp(*who, "shop", "shop", "pgwarden", "127.0.0.1:4", pid, BEGIN_US, 5)
        stamps.append(under)
        names.append(session_id(BEGIN_US, pid))
        add("gw-1", SessionOpened(BEGIN_US, under, "scram", "k", 0, "", "", "3.0", "group"))
        add("log", SessionObserved(BEGIN_US, "log", "main", names[-1], pid, "pgwarden", "shop", "127.0.0.1:5", "pgwarden/a/s"))
    yield from cut("log", BEGIN_US)
    yield from cut("gw-1", BEGIN_US + 1)
    for number in range(statements):
        session, turn = number % sessions, number // sessions
        at_us = BEGIN_US + 5 * SECOND + number * SECOND // STATEMENTS_A_SECOND
        text = f"SELECT id, customer, amount FROM public.orders WHERE customer = {turn % texts} ORDER BY id DESC LIMIT 20"
        name = digest(text.encode())
        if turn < texts:
            verbs, relations = ("SELECT",), ("public.orders",)
            defined = StatementDefined(turn + 1, text, "full", len(text), "f", verbs, relations, (), digest=name)
            add("gw-1", defined, stamps[session])
        add("gw-1", StatementStarted(at_us, turn + 1, turn % texts + 1, "r"), stamps[session])
        add("gw-1", StatementFinished(turn + 1, "ok", "", "SELECT 20", 20, 0, 900, 300), stamps[session])
        if observed:
            ran = StatementObserved(
                at_us + 50,
                "log",
                "main",
                names[session],
                turn + 1,
                "statement",
                text,
                len(text),
                name,
                0,
                -1,
                "",
                250,
                "p",
                "shop",
                "",
            )
            add("log", ran)
        if number % FRAME_EVENTS == FRAME_EVENTS - 1:
            yield from cut("gw-1", at_us)
            if number % (4 * FRAME_EVENTS) == 4 * FRAME_EVENTS - 1:  # a collector is behind the gateway
                report = WitnessReported(
                    at_us, "log", "log", "main", True, "", at_us - SECOND if observed else 0, at_us, number, 0, 1
                )
                add("log", report)
                yield from cut("log", at_us)


def cost(found: Sequence[tuple[int, Record]]) -> tuple[float, float, int, Reconcile]:
    """CPU us an event of decoding and of the step, how many events, and the step as it stands then."""
    step = Reconcile(ReconcileSettings(waiting_max=10_000_000, statements_max=1_000_000))
    decoding = stepping = 0
    events = 0
    tick_us = 0
    for at_us, record in found:
        begun = time.process_time_ns()
        frame = decode(record.value)
        decoded = time.process_time_ns()
        step.step(record, frame, at_us)
        if at_us >= tick_us + SECOND // 4:
            step.tick(at_us)
            tick_us = at_us
        decoding += decoded - begun
        stepping += time.process_time_ns() - decoded
        events += len(frame.events)
    return decoding / events / 1000, stepping / events / 1000, events, step


def waiting_bytes(sessions: int, statements: int) -> float:
    """Of memory for each statement that waits, where the collector tells of none."""
    found = list(records(sessions, statements, 10, observed=False))
    gc.collect()
    tracemalloc.start()
    *_, step = cost(found)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / step.status()["statements_waiting"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, nargs="*", default=[10, 200, 2_000])
    parser.add_argument("--statements", type=int, default=40_000)
    parser.add_argument("--texts", type=int, default=10, help="that each session has of its own")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}; {given.statements} statements, {given.rounds} rounds, medians [least-greatest]")
    for sessions in given.sessions:
        found = list(records(sessions, given.statements, given.texts, observed=True))
        rounds = [cost(found) for _ in range(given.rounds)]
        matched = rounds[0][3].status()["statements_matched"]
        assert matched > 0.9 * given.statements, matched
        decoding, stepping = [one[0] for one in rounds], [one[1] for one in rounds]
        print(
            f"{sessions:>6} sessions, {rounds[0][2]} events: step {statistics.median(stepping):.2f} us an event"
            f" [{min(stepping):.2f}-{max(stepping):.2f}], decoding {statistics.median(decoding):.2f} us"
            f" [{min(decoding):.2f}-{max(decoding):.2f}]"
        )
    print(f"a statement that waits: {waiting_bytes(200, min(given.statements, 20_000)):.0f} bytes")


if __name__ == "__main__":
    main()
