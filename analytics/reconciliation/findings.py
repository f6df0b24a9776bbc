"""A difference between record and server -> a finding, named after its evidence so that it is told once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from analytics.reconciliation.state import Held, Opened, Seen
from ingest.events import FindingRaised, FindingRecurred

SEVERITY: Final = {
    "shadow": "critical",
    "hijacked": "critical",
    "unaudited": "critical",
    "phantom": "critical",
    "miscounted": "warning",
    "unreconciled": "warning",
}
"""The names under which reconciliation raises findings."""


def find_session(held: Held, key: str, seen: Seen, kind: str, summary: str, opened: Opened | None) -> None:
    seen.finding = finding_name(kind, key)
    held.effects.append(
        FindingRaised(
            at_us=held.now_us,
            finding=seen.finding,
            detector=kind,
            agent=opened.agent if opened is not None else "",
            session=opened.session if opened is not None else "",
            severity=SEVERITY[kind],
            summary=summary,
            evidence=(seen.event, *((opened.event,) if opened is not None else ())),
            numbers=(("client_pid", float(seen.client_pid)), ("backend_pid", float(seen.backend_pid))),
            offsets=(seen.place, *((opened.place,) if opened is not None else ())),
        )
    )


def find(
    held: Held, opened: Opened, kind: str, what: str, summary: str, places: Sequence[str], numbers: tuple[tuple[str, float], ...]
) -> None:
    times = opened.told[kind] = opened.told.get(kind, 0) + 1
    held.count(kind)
    most = held.settings.findings_per_session_max
    if times > most:
        if times & (times - 1) == 0:  # each time that it has doubled
            last = finding_name(kind, f"{opened.connection}/{opened.session_id}/many")
            held.effects.append(
                FindingRecurred(held.now_us, last, opened.agent, times, held.now_us, summary, severity=SEVERITY[kind])
            )
        return
    if times == most:
        what, summary = "many", f"{summary}; what follows of this kind in this session is counted"
    events = tuple(place.partition(" ")[2] for place in places if " " in place)
    held.effects.append(
        FindingRaised(
            at_us=held.now_us,
            finding=finding_name(kind, f"{opened.connection}/{opened.session_id}/{what}"),
            detector=kind,
            agent=opened.agent,
            session=opened.session,
            severity=SEVERITY[kind],
            summary=summary,
            evidence=(opened.event, *events),
            numbers=numbers,
            offsets=tuple(place.partition(" ")[0] for place in places),
        )
    )


def find_unreconciled(held: Held, place: str, most: Opened | Seen, statements: int, sessions: int) -> None:
    """Too many waited over all sessions, and `statements` of `sessions` were let go of; `most` had the most of them."""
    times = held.state.counts["waiting_limit_reached"]
    _not_compared(
        held,
        f"{place}/{times}",
        most,
        f"more than {held.settings.waiting_max} statements waited for their counterpart: {statements} of {sessions} sessions are "
        f"not compared, most of them of {_whose(most, f'a session of server {place} that no gateway has told of')}",
        times,
        (("statements", float(statements)), ("sessions", float(sessions)), ("reached", float(times))),
    )


def find_let_go(held: Held, place: str, whose: Opened | Seen, statements: int, times: int) -> None:
    """Too many of one session waited, for the `times`-th time, and `statements` of them were let go of."""
    of = _whose(whose, f"session {place}, of which no gateway has told,")
    _not_compared(
        held,
        f"{place}/alone/{times}",
        whose,
        f"more than {held.settings.statements_max} statements of {of} waited for their counterpart, and what waited is not"
        " compared",
        times,
        (("statements", float(statements)), ("reached", float(times))),
    )


def _whose(session: Opened | Seen, unknown: str) -> str:
    if isinstance(session, Opened) and session.session:
        return f"session {session.session} of agent {session.agent}"
    return unknown


def _not_compared(
    held: Held, name: str, whose: Opened | Seen, summary: str, times: int, numbers: tuple[tuple[str, float], ...]
) -> None:
    if times & (times - 1):  # told each time that it has doubled
        return
    agent, session = (whose.agent, whose.session) if isinstance(whose, Opened) else ("", "")
    held.effects.append(
        FindingRaised(
            at_us=held.now_us,
            finding=finding_name("unreconciled", name),
            detector="unreconciled",
            agent=agent,
            session=session,
            severity=SEVERITY["unreconciled"],
            summary=f"{summary}; reached {times} times so far",
            evidence=(whose.event,),
            numbers=numbers,
            offsets=(whose.place,),
        )
    )


def finding_name(kind: str, what: str) -> str:
    return f"{kind}-{hashlib.sha256(what.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def shown(start: str, named: str) -> str:
    """A statement, as a sentence can hold it: what an agent wrote, escaped and short."""
    if start:
        return f": {start[:200]!a}"
    return f": SHA-256 {named}" if named else ""
