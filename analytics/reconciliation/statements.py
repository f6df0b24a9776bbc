"""The statements of a gateway's session, as its gateway recorded them and as collectors saw them, put side by side."""

from __future__ import annotations

import re
from typing import Final, TypeAlias, assert_never

from analytics.reconciliation.alignment import Observed, Pair, Recorded, Text, agrees
from analytics.reconciliation.comparison import matched, pair_heads, settled
from analytics.reconciliation.state import SECOND, Held, Lane, Opened
from ingest.collectors.collector import digest
from ingest.events import OutcomeResolved, StatementDefined, StatementDenied, StatementFinished, StatementStarted

Statement: TypeAlias = StatementDefined | StatementStarted | StatementFinished | StatementDenied | OutcomeResolved

_TAG_ROWS: Final = re.compile(r"[A-Z ]+(?:0 )?([0-9]{1,18})")


def statement_recorded(held: Held, event: Statement, opened: Opened, place: str) -> None:
    match event:
        case StatementDefined():
            _defined(held, event, opened)
        case StatementStarted():
            _started(held, event, opened, place)
        case StatementFinished():
            _finished(held, event, opened)
        case StatementDenied():
            opened.denied += 1
        case OutcomeResolved():
            _resolved(held, event, opened)
        case _:
            assert_never(event)


def _defined(held: Held, event: StatementDefined, opened: Opened) -> None:
    name = event.digest or (digest(event.text.encode("utf-8")) if event.text_mode == "full" else "")
    start = event.text[: held.settings.text_characters_max]
    opened.texts[event.statement] = Text(name, event.whole, start, event.text_bytes, event.verbs == ("PREPARE",))
    for one in (name, event.whole):
        if one:
            opened.defined[one] = 1
    while len(opened.texts) > held.settings.texts_max:
        oldest = opened.texts.pop(next(iter(opened.texts)))
        opened.defined.pop(oldest.digest, None)
        held.count("texts_forgotten")


def _started(held: Held, event: StatementStarted, opened: Opened, place: str) -> None:
    runs = event.rule != "empty" and not event.continues
    ran = Recorded(event.execution, event.statement, event.at_us, place, runs, bool(event.continues))
    opened.open[event.execution] = ran
    opened.waiting[event.execution] = list(opened.lanes)
    for name, lane in opened.lanes.items():
        lane.recorded.append(ran)
        _bound(held, opened, name, lane)
    held.busy[opened.session] = None


def _finished(held: Held, event: StatementFinished, opened: Opened) -> None:
    ran = opened.open.pop(event.execution, None)
    if ran is None:
        return
    ran.outcome, ran.sqlstate = event.outcome, event.sqlstate
    ran.ended_us = ran.started_us + event.duration_us
    counted = _TAG_ROWS.fullmatch(event.tag)
    # A portal that was run in pieces tells its last piece in the tag, and the collector its first.
    ran.rows = event.rows if counted is None or int(counted[1]) == event.rows else -1
    held.busy[opened.session] = None
    pair_heads(held, opened)


def _resolved(held: Held, event: OutcomeResolved, opened: Opened) -> None:
    if event.resolution != "aborted":
        return
    for lane in opened.lanes.values():
        for ran in lane.recorded:
            if ran.number == event.execution:
                ran.undone = True


def observe(held: Held, opened: Opened, witness: str, observed: Observed) -> None:
    lane = opened.lanes.get(witness)
    if lane is None or observed.at_us <= lane.ignore_us:
        return
    if observed.sequence <= lane.newest:
        _told_again(held, opened, lane, observed)
        return
    lane.newest = observed.sequence
    lane.observed.append(observed)
    _bound(held, opened, witness, lane)
    held.busy[opened.session] = None
    pair_heads(held, opened)


def _told_again(held: Held, opened: Opened, lane: Lane, observed: Observed) -> None:
    """A statement that was told as begun is told once more with its end; what is told twice for a restart is the same again."""
    for place, before in enumerate(lane.observed):
        if before.sequence == observed.sequence:
            if not before.known:
                lane.observed[place] = observed
            return
    ran = lane.begun.pop(observed.sequence, None)
    if ran is not None:
        matched(held, opened, lane, Pair((ran,), observed, agrees((ran,), observed)))


def _bound(held: Held, opened: Opened, witness: str, lane: Lane) -> None:
    """What is beyond the limit is left out on both sides, counted, and nothing is claimed of that time."""
    most = held.settings.statements_max
    if len(lane.recorded) <= most and len(lane.observed) <= most:
        return
    held.count("statements_beyond_the_limit", len(lane.recorded) + len(lane.observed))
    for ran in lane.recorded:
        settled(held, opened, witness, ran, "excused")
    lane.ignore_us = held.now_us + SECOND
    lane.recorded.clear()
    lane.observed.clear()
