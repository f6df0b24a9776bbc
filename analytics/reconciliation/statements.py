"""The statements of a gateway's session, as its gateway recorded them and as collectors saw them, put side by side."""

from __future__ import annotations

import re
from typing import Final, TypeAlias, assert_never

from analytics.reconciliation.alignment import Observed, Pair, Recorded, Text, agrees
from analytics.reconciliation.comparison import matched, pair_heads, settled
from analytics.reconciliation.findings import find_let_go, find_unreconciled
from analytics.reconciliation.state import SECOND, Held, Lane, Opened, Seen
from ingest.collectors.collector import digest
from ingest.events import OutcomeResolved, StatementDefined, StatementDenied, StatementFinished, StatementStarted

Statement: TypeAlias = StatementDefined | StatementStarted | StatementFinished | StatementDenied | OutcomeResolved

_TAG_ROWS: Final = re.compile(r"[A-Z ]+(?:0 )?([0-9]{1,18})")


def statement_recorded(held: Held, event: Statement, opened: Opened, place: str) -> None:
    match event:
        case StatementStarted():
            _started(held, event, opened, place)
        case StatementFinished():
            _finished(held, event, opened)
        case StatementDefined():
            _defined(held, event, opened)
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
    held.busy[opened.session] = None
    settings = held.settings
    for name, lane in opened.lanes.items():
        lane.recorded.append(ran)
        held.waiting += 1
        if len(lane.recorded) > settings.statements_max:
            _let_go_alone(held, opened, name, lane)
    if held.waiting > settings.waiting_max:
        _bound_together(held)


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
    if lane is None:
        return
    if observed.at_us <= lane.ignore_us:
        held.count("statements_passed_over")
        return
    if observed.sequence <= lane.newest:
        _told_again(held, opened, lane, observed)
        return
    lane.newest = observed.sequence
    lane.observed.append(observed)
    held.waiting += 1
    held.busy[opened.session] = None
    if len(lane.observed) > held.settings.statements_max:
        _let_go_alone(held, opened, witness, lane)
    pair_heads(held, opened)
    if held.waiting > held.settings.waiting_max:
        _bound_together(held)


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


def observe_early(held: Held, seen: Seen, witness: str, observed: Observed) -> None:
    """What a session ran of which no gateway has told yet."""
    seen.early.append((witness, observed))
    held.waiting += 1
    if len(seen.early) > held.settings.statements_max:
        if not seen.unkept_us:
            find_let_go(held, f"{seen.server}/{seen.session_id}", seen, 1, 1)
        _, oldest = seen.early.pop(0)
        seen.unkept_us = max(seen.unkept_us, oldest.at_us)
        held.waiting -= 1
        held.count("statements_beyond_the_limit")
    if held.waiting > held.settings.waiting_max:
        _bound_together(held)


# -- limits ----------------------------------------------------------------------------------------------------------------------


def _let_go(held: Held, opened: Opened, witness: str, lane: Lane) -> None:
    """What is beyond the limit is left out on both sides, counted, and nothing is claimed of that time."""
    held.count("statements_beyond_the_limit", lane.waiting)
    held.waiting -= lane.waiting
    for ran in lane.recorded:
        settled(held, opened, witness, ran, "excused")
    lane.ignore_us = held.now_us + SECOND
    lane.recorded.clear()
    lane.observed.clear()


def _let_go_alone(held: Held, opened: Opened, witness: str, lane: Lane) -> None:
    statements = lane.waiting
    _let_go(held, opened, witness, lane)
    times = opened.told["unreconciled"] = opened.told.get("unreconciled", 0) + 1
    find_let_go(held, f"{opened.connection}/{opened.session_id}", opened, statements, times)


def _let_go_early(held: Held, seen: Seen) -> None:
    held.count("statements_beyond_the_limit", len(seen.early))
    held.waiting -= len(seen.early)
    seen.unkept_us = held.now_us + SECOND
    seen.early.clear()


def _bound_together(held: Held) -> None:
    """Where too many wait over all sessions, those with the most are let go of: who floods makes us blind for itself alone."""
    most = held.settings.waiting_max
    crowds: list[tuple[int, str, Opened | Seen]] = []
    for session in held.busy:
        opened = held.state.opened[session]
        if waiting := sum(lane.waiting for lane in opened.lanes.values()):
            crowds.append((waiting, f"{opened.connection}/{opened.session_id}", opened))
    crowds += [(len(seen.early), key, seen) for key, seen in held.state.seen.items() if seen.early]
    crowds.sort(key=lambda one: (-one[0], one[1]))
    before, sessions = held.waiting, 0
    for _, _, crowd in crowds:
        if held.waiting <= most * 3 // 4:  # room for many, so that this is not done for each one that comes
            break
        sessions += 1
        if isinstance(crowd, Seen):
            _let_go_early(held, crowd)
            continue
        for witness, lane in crowd.lanes.items():
            _let_go(held, crowd, witness, lane)
    held.count("waiting_limit_reached")
    find_unreconciled(held, crowds[0][1], crowds[0][2], before - held.waiting, sessions)
