"""`pgwarden revoke`, `reinstate`, `retire`, `revocations`: who is stopped, and the proof of each session's end."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pgwarden.api_client import ApiRefused, ApiUnreachable, Json, Place, call, path
from pgwarden.commands.answers import answered, command, not_applied, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column, duration_of, table, width

PROOF_SECONDS_MAX: Final = 5.0  # the gateway's own limit for one proof (gateway.settings.kill_seconds_max)
PROOF_INTERVAL_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 0.5  # sessions that were opened just before the revocation reach the tables within this
PAGE_ROWS: Final = 1000  # the API's most
PAGES_MAX: Final = 20  # 20,000 sessions are looked at; what lies beyond is not proven
SHOWN_MAX: Final = 50  # ends on the screen; --json has all

_REVOCATIONS: Final = (
    Column("KIND", "kind"),
    Column("NAME", "name", flexible=True),
    Column("ISSUER", "issuer", flexible=True),
    Column("SINCE (UTC)", "revoked_at"),
    Column("BY", "operator", flexible=True),
    Column("REASON", "reason", flexible=True),
)
_ENDS: Final = (
    Column("SESSION", "session"),
    Column("CONNECTION", "connection", flexible=True),
    Column("REQUESTED (UTC)", "requested"),
    Column("DECIDED", "decided", right=True),
    Column("CLIENT CLOSED", "client_closed", right=True),
    Column("BACKEND GONE", "backend_gone", right=True),
)


@dataclass(frozen=True, slots=True)
class _Target:
    """Who or what is stopped."""

    parts: tuple[str, ...]  # of the path, before the verb
    body: Json
    agent: str  # whose sessions alone are concerned; "" = anybody's
    concerns: Callable[[Json, Json], bool]  # a live session's row, and the answer to the order
    look_again: str  # the command that shows these sessions

    def name(self, answer: Json) -> str:
        match self.parts[0]:
            case "agents":
                return printable(self.agent)
            case "sessions":
                return f"session {printable(self.parts[1])} of {printable(str(answer.get('agent', '')))}"
            case "all":
                return "everything"
            case kind:
                noun = kind.removesuffix("s")
                return f"{noun} {printable(str(self.body[noun]))} of {printable(str(answer.get('issuer', '')))}"

    def means(self) -> str:
        return {
            "agents": "it can open no session",
            "sessions": "its agent may open another",
            "subjects": "nobody can act as it or for it",
            "groups": "no token that names it opens a session",
            "all": "nobody can open a session",
        }[self.parts[0]]


def list_(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "GET", path("revocations", limit=arguments.limit, before=arguments.before))
        return show(arguments, answer, _REVOCATIONS, rows_of(answer), "nothing is revoked")

    return answered(arguments, work)


def reinstate(arguments: argparse.Namespace) -> int:
    target = _target(arguments)

    def work(place: Place) -> int:
        answer = command(arguments, place, path(*target.parts, "reinstate"), {**target.body, "reason": arguments.reason})
        if arguments.json:
            print_json(answer)
        elif target.parts[0] == "all":
            print("whoever is not revoked by name may act again")
        else:
            print(f"{target.name(answer)} is active again")
        return 0

    return answered(arguments, work)


def revoke(arguments: argparse.Namespace) -> int:
    return _end(arguments, "revoke")


def retire(arguments: argparse.Namespace) -> int:
    return _end(arguments, "retire")


def _target(arguments: argparse.Namespace) -> _Target:
    if getattr(arguments, "session", ""):
        session = arguments.session
        body: Json = {"agent": arguments.of} if arguments.of else {}
        return _Target(("sessions", session), body, "", lambda row, _: row.get("session") == session, "pgwarden sessions")
    if getattr(arguments, "subject", None):
        issuer, subject = arguments.subject

        def acts(row: Json, answer: Json) -> bool:
            return row.get("issuer") == answer.get("issuer") and subject in (row.get("subject"), row.get("on_behalf_of"))

        return _Target(("subjects",), {"issuer": issuer, "subject": subject}, "", acts, "pgwarden sessions --live")
    if getattr(arguments, "group", None):
        issuer, group = arguments.group

        def named(row: Json, answer: Json) -> bool:
            groups = row.get("groups")
            return row.get("issuer") == answer.get("issuer") and isinstance(groups, list) and group in groups

        return _Target(("groups",), {"issuer": issuer, "group": group}, "", named, "pgwarden sessions --live")
    if getattr(arguments, "all", False):
        return _Target(("all",), {}, "", lambda _row, _answer: True, "pgwarden sessions --live")
    agent = arguments.agent
    again = f"pgwarden sessions --agent {printable(agent)}"
    return _Target(("agents", agent), {}, agent, lambda row, _: row.get("agent") == agent, again)


# -- the end, and the proof of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ends:
    sessions: tuple[Json, ...]  # those that this order ended, or was to end
    proven: bool
    unknown: str  # why nothing can be said of the sessions; "" when it can


def _end(arguments: argparse.Namespace, verb: str) -> int:
    target = _target(arguments)

    def work(place: Place) -> int:
        before: list[Json] = []
        # Asked before: these are the sessions whose end is to be shown. The order does not wait for tables that do not answer.
        with contextlib.suppress(ApiRefused):
            before = _live(place, target.agent)
        answer = command(arguments, place, path(*target.parts, verb), {**target.body, "reason": arguments.reason})
        known = {str(row.get("session")): row for row in before if target.concerns(row, answer)}
        ends = _wait(place, target, answer, known, _time(answer.get(f"{verb.removesuffix('e')}ed_at")))
        done = ends.proven and answer.get("applied") is not False
        if arguments.json:
            print_json({**answer, "sessions": list(ends.sessions), "proven": ends.proven})
            return 0 if done else 1
        print(f"{target.name(answer)} is {printable(str(answer.get('state', verb)))}; {target.means()}")
        _show(ends)
        not_applied(answer)
        if not ends.proven:
            unproven = sum(not _proven(row) for row in ends.sessions)
            why = ends.unknown or f"{unproven} of {len(ends.sessions)} sessions not proven gone"
            print(f"pgwarden: {why}; look again with: {target.look_again}", file=sys.stderr)
        return 0 if done else 1

    return answered(arguments, work)


def _show(ends: _Ends) -> None:
    if not ends.sessions:
        if ends.proven:
            print("no session was open")
        return
    shown: Sequence[Json] = ends.sessions
    if len(shown) > SHOWN_MAX:
        shown = sorted(shown, key=_gone_us, reverse=True)[:SHOWN_MAX]
        print(f"{len(ends.sessions)} sessions were to end; the {SHOWN_MAX} that took longest:")
    print(table(_ENDS, [_times(row) for row in shown], width()))


def _wait(place: Place, target: _Target, answer: Json, known: dict[str, Json], ordered_at: datetime | None) -> _Ends:
    """Until each session is proven gone, or the time is up. A session that was opened between the look and the order counts too."""
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            ends = _ends(place, target, answer, known, ordered_at)
        except (ApiRefused, ApiUnreachable) as error:
            ends = _Ends((), False, f"what became of its sessions is not known: {error}")
        waited = time.monotonic() - began
        if (ends.proven and waited >= SETTLE_SECONDS) or waited >= PROOF_SECONDS_MAX:
            return ends
        time.sleep(max(PROOF_INTERVAL_SECONDS, time.monotonic() - asked))  # no more than half of the API's time is ours


def _ends(place: Place, target: _Target, answer: Json, known: dict[str, Json], ordered_at: datetime | None) -> _Ends:
    if target.agent:
        found = rows_of(call(place, "GET", path("sessions", agent=target.agent, limit=PAGE_ROWS)))
        rows = [row for row in found if _concerned(row, known, ordered_at)]
    else:
        live = _live(place, "")
        for row in live:
            if target.concerns(row, answer):
                known.setdefault(str(row.get("session")), row)
        if len(known) <= SHOWN_MAX:
            rows = [call(place, "GET", path("sessions", session)) for session in known]
        else:
            rows = _many(place, known, live, ordered_at)
    missing = known.keys() - {str(row.get("session")) for row in rows}
    unknown = f"{len(missing)} sessions that were open are no longer listed" if missing else ""
    return _Ends(tuple(rows), not missing and all(_proven(row) for row in rows), unknown)


def _live(place: Place, agent: str) -> list[Json]:
    return _pages(place, ("sessions",), {"agent": agent, "live": "true"}, lambda _: True)


def _many(place: Place, known: dict[str, Json], live: Sequence[Json], ordered_at: datetime | None) -> list[Json]:
    """Sessions as they were, with the proofs that were recorded since the order. `live` was asked before them."""

    def since(row: Json) -> bool:
        recorded_at = _time(row.get("recorded_at"))
        return recorded_at is None or ordered_at is None or recorded_at >= ordered_at

    kills = {str(row.get("session")): row for row in _pages(place, ("questions", "kills"), {}, since)}
    open_ = {str(row.get("session")) for row in live}
    rows: list[Json] = []
    for session, row in known.items():
        if (kill := kills.get(session)) is not None:
            steps = ("requested", "decided", "client_closed", "backend_gone")
            rows.append({**row, "kill_cause": kill.get("cause"), **{f"kill_{step}_at": kill.get(f"{step}_at") for step in steps}})
        elif session not in open_:
            rows.append({**row, "closed_at": "since", "close_reason": "by itself"})
        else:
            rows.append(row)
    return rows


def _pages(place: Place, parts: Sequence[str], query: Mapping[str, str], wanted: Callable[[Json], bool]) -> list[Json]:
    """The rows of a list up to the first that is not wanted, and of PAGES_MAX pages."""
    rows: list[Json] = []
    before = ""
    for _ in range(PAGES_MAX):
        answer = call(place, "GET", path(*parts, **query, limit=PAGE_ROWS, before=before))
        for row in rows_of(answer):
            if not wanted(row):
                return rows
            rows.append(row)
        if not (before := str(answer.get("next") or "")):
            break
    return rows


def _concerned(row: Json, known: dict[str, Json], ordered_at: datetime | None) -> bool:
    if row.get("session") in known or not row.get("closed_at"):
        return True
    requested_at = _time(row.get("kill_requested_at"))
    return requested_at is not None and ordered_at is not None and requested_at >= ordered_at


def _proven(row: Json) -> bool:
    """Ended by itself in the meantime, or killed with the proof that its backend is gone."""
    if row.get("kill_requested_at") or row.get("kill_cause"):
        return bool(row.get("kill_backend_gone_at"))
    return bool(row.get("closed_at"))


def _gone_us(row: Json) -> float:
    """How long after the request; for ever where it is not proven."""
    requested, gone = _time(row.get("kill_requested_at")), _time(row.get("kill_backend_gone_at"))
    if requested is not None and gone is not None:
        return (gone - requested).total_seconds() * 1e6
    return 0.0 if _proven(row) else float("inf")


def _times(row: Json) -> Json:
    """Each step as the time after the request."""
    requested = _time(row.get("kill_requested_at"))
    steps: Json = {"session": row.get("session"), "connection": row.get("connection")}
    if requested is None:
        ended = f"closed: {row.get('close_reason')}" if row.get("closed_at") else "still open"
        return {**steps, "requested": ended}
    steps["requested"] = requested.strftime("%H:%M:%S.%f")[:-3]
    for name in ("decided", "client_closed", "backend_gone"):
        at = _time(row.get(f"kill_{name}_at"))
        microseconds = None if at is None else round((at - requested).total_seconds() * 1_000_000)
        steps[name] = "not proven" if microseconds is None else f"+{duration_of(max(0, microseconds))}"
    return steps


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
