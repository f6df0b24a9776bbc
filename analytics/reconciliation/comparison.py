"""One gateway session's record against what each collector saw of it: what belongs together, and what has no counterpart.

`alignment.py` says what belongs to what; here stands when that may be asked, and what follows from the answer.
"""

from __future__ import annotations

import hashlib
from typing import Final

from analytics.reconciliation.alignment import Context, Explained, Observed, Pair, Recorded, Unrecorded, Unseen, explain, heads
from analytics.reconciliation.findings import find, shown
from analytics.reconciliation.state import SECOND, Held, Lane, Opened
from analytics.reconciliation.witnessed import FOR_EVER

BEGUN_MAX: Final = 100  # of a collector's sight of a session: matched by their begin, and their end may still be told


def pair_heads(held: Held, opened: Opened) -> None:
    """Take off what can only belong together; called whenever one more came."""
    for name, lane in opened.lanes.items():
        if lane.observed:
            recorded, observed = lane.recorded, lane.observed
            waited = len(recorded) + len(observed)
            found = heads(recorded, observed, _context(held, opened, name, lane))
            held.waiting -= waited - len(recorded) - len(observed)
            for ran, seen in found:
                opened.waiting.pop(ran.number, None)  # seen: what other collectors missed is their own loss
                if not seen.known:
                    _begun(lane, ran, seen)
            if found:
                held.count("statements_matched", len(found))


def _context(held: Held, opened: Opened, witness: str, lane: Lane) -> Context:
    eyes = held.eyes(witness, opened.connection)
    ignore_us = seen_since_us = lane.ignore_us
    for one in eyes:
        seen_since_us = max(seen_since_us, one.unseen_until_us, one.passes_over_until_us())

    def excused(ran: Recorded) -> bool:
        ended_us = ran.ended_us or held.now_us
        if not eyes or ran.started_us <= ignore_us + SECOND:
            return True
        return any(
            ran.started_us <= one.passes_over_until_us()
            or not one.saw_all(opened.session_id, ran.started_us - SECOND, ended_us + SECOND)
            for one in eyes
        )

    return Context(opened.texts, opened.defined, opened.denied, seen_since_us + SECOND if eyes else FOR_EVER, excused)


def compare(held: Held, session: str) -> None:
    opened = held.state.opened[session]
    pair_heads(held, opened)
    idle = True
    for name, lane in opened.lanes.items():
        if not lane.recorded and not lane.observed:
            continue
        settled_r = _settled_recorded(held, opened, name, lane)
        settled_o = _settled_observed(held, opened, lane)
        while settled_r or settled_o:
            before = len(lane.recorded), len(lane.observed)
            context = _context(held, opened, name, lane)
            found = explain(lane.recorded, lane.observed, settled_r, settled_o, context)
            held.waiting -= sum(before) - lane.waiting
            for one in found:
                _explained(held, opened, name, lane, one)
            settled_r = max(0, settled_r - (before[0] - len(lane.recorded)))
            settled_o = max(0, settled_o - (before[1] - len(lane.observed)))
            if before == (len(lane.recorded), len(lane.observed)):
                break
        idle = idle and not lane.recorded and not lane.observed
    if idle:
        held.busy.pop(session, None)
    if opened.closed_us and _over(held, opened, idle):
        _drop(held, opened)


def _settled_recorded(held: Held, opened: Opened, witness: str, lane: Lane) -> int:
    """How many from the first on: all that the collector will ever tell of them is here."""
    eyes = held.eyes(witness, opened.connection)
    if not eyes:
        return 0
    complete_us = 0 if eyes[0].blind() else eyes[0].complete_us - int(held.settings.observation_lateness_seconds * SECOND)
    settled = 0
    for ran in lane.recorded:
        if not ran.over and not (opened.closed_us and held.late(opened.closed_us)):
            break
        if not (lane.over or complete_us > (ran.ended_us or ran.started_us)):
            break
        settled += 1
    return settled


def _settled_observed(held: Held, opened: Opened, lane: Lane) -> int:
    """How many from the first on: all that the gateway will ever tell of them is here."""
    over = bool(opened.closed_us) and held.late(opened.closed_us)
    if opened.open and not over:
        return 0  # a statement under way may be what was seen
    settled = 0
    for seen in lane.observed:
        if not over and not (held.late(seen.seen_us) and held.record_is_whole(opened.gateway, seen.seen_us)):
            break
        settled += 1
    return settled


def _explained(held: Held, opened: Opened, witness: str, lane: Lane, one: Explained) -> None:
    match one:
        case Pair():
            matched(held, opened, lane, one, witness)
        case Unseen(ran, claimed):
            settled(held, opened, witness, ran, "missed" if claimed else "excused")
        case Unrecorded(observed, claimed):
            if claimed:
                _unaudited(held, opened, witness, lane, observed)
            else:
                held.count("never_began")


def matched(held: Held, opened: Opened, lane: Lane, pair: Pair, witness: str = "") -> None:
    for ran in pair.recorded:
        if witness:
            settled(held, opened, witness, ran, "seen")
    held.count("statements_matched", len(pair.recorded))
    if not pair.observed.known and len(pair.recorded) == 1 and pair.recorded[0].outcome != "unknown":
        _begun(lane, pair.recorded[0], pair.observed)
    if pair.agrees:
        return
    ran, seen = pair.recorded[-1], pair.observed
    if ran.number in opened.miscounted:
        return  # by another collector, or at its begin
    opened.miscounted[ran.number] = 1
    if len(opened.miscounted) > held.settings.statements_max:
        del opened.miscounted[next(iter(opened.miscounted))]
    failed = next((one for one in pair.recorded if one.outcome == "error"), ran)
    recorded = f"{failed.outcome} {failed.sqlstate}".strip() + (f", {failed.rows} rows" if failed.rows >= 0 else "")
    observed = (seen.sqlstate or "ok") + (f", {seen.rows} rows" if seen.rows >= 0 else "")
    summary = (
        f"execution {ran.number} of session {opened.session} is recorded as {recorded}, and the database ended it as {observed}"
    )
    find(
        held,
        opened,
        "miscounted",
        f"{ran.number}",
        summary,
        (seen.place, ran.place),
        (("recorded_rows", float(failed.rows)), ("observed_rows", float(seen.rows))),
    )


def _begun(lane: Lane, ran: Recorded, observed: Observed) -> None:
    lane.begun[observed.sequence] = ran
    if len(lane.begun) > BEGUN_MAX:
        del lane.begun[next(iter(lane.begun))]


def settled(held: Held, opened: Opened, witness: str, ran: Recorded, how: str) -> None:
    """What one collector's word on an execution comes to: only when all are silent did it not run."""
    waiting = opened.waiting.get(ran.number)
    if waiting is None:
        return
    if how == "missed":
        held.count("statements_not_seen_by_one")
    if how == "seen":
        del opened.waiting[ran.number]  # it ran: what the others missed is their own loss
        return
    if witness in waiting:
        waiting.remove(witness)
        waiting.append("" if how == "missed" else "-")
    if any(name not in ("", "-") for name in waiting):
        return
    del opened.waiting[ran.number]
    if "" not in waiting:
        return
    text = opened.texts.get(ran.statement)
    summary = (
        f"execution {ran.number} of session {opened.session} is on record as run ({ran.outcome}), and the database never ran it"
    )
    named = text.digest if text is not None else ""
    find(held, opened, "phantom", f"{ran.number}", f"{summary}{shown(text.start if text else '', named)}", (ran.place,), ())


def _unaudited(held: Held, opened: Opened, witness: str, lane: Lane, observed: Observed) -> None:
    named = observed.digest or hashlib.sha256(observed.start.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    times = lane.unaudited[named] = lane.unaudited.get(named, 0) + 1
    told = any(other is not lane and other.unaudited.get(named, 0) >= times for other in opened.lanes.values())
    if len(lane.unaudited) > held.settings.texts_max:
        del lane.unaudited[next(iter(lane.unaudited))]
    if told:
        return  # another collector has seen the same
    summary = f"in session {opened.session} the database ran a {observed.source} that is not on record"
    find(held, opened, "unaudited", f"{named}/{times}", f"{summary}{shown(observed.start, observed.digest)}", (observed.place,), ())


def _over(held: Held, opened: Opened, idle: bool) -> bool:
    waited = held.now_us - opened.closed_us
    if idle and held.late(opened.closed_us) and all(lane.over for lane in opened.lanes.values()):
        return True
    return waited >= held.settings.end_seconds * SECOND and (idle or waited >= 10 * held.settings.end_seconds * SECOND)


def _drop(held: Held, opened: Opened) -> None:
    for lane in opened.lanes.values():
        if lane.waiting:
            held.count("statements_not_compared", lane.waiting)
            held.waiting -= lane.waiting
    # Its name stays for a while: a collector may be behind.
    opened.lanes.clear()
    opened.texts.clear()
    opened.defined.clear()
    opened.open.clear()
    opened.waiting.clear()
    held.busy.pop(opened.session, None)
