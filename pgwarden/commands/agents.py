"""`pgwarden agents`, and `revoke`, `reinstate`, `retire`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pgwarden.api_client import ApiRefused, ApiUnreachable, Json, Place, call, path
from pgwarden.commands.answers import answered, command, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column, duration_of, table, width

PROOF_SECONDS_MAX: Final = 5.0  # the gateway's own limit for one proof (gateway.settings.kill_seconds_max)
PROOF_INTERVAL_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 0.5  # sessions that were opened just before the revocation reach the tables within this

_AGENTS: Final = (
    Column("AGENT", "agent"),
    Column("STATE", "state"),
    Column("OWNER", "owner", flexible=True),
    Column("CLIENT", "client", flexible=True),
    Column("LIVE", "live_sessions", right=True),
    Column("STATEMENTS", "statements", right=True),
    Column("DENIED", "denied", right=True),
    Column("LAST SEEN (UTC)", "last_seen_at"),
)
_ENDS: Final = (
    Column("SESSION", "session"),
    Column("CONNECTION", "connection", flexible=True),
    Column("REQUESTED (UTC)", "requested"),
    Column("DECIDED", "decided", right=True),
    Column("CLIENT CLOSED", "client_closed", right=True),
    Column("BACKEND GONE", "backend_gone", right=True),
)


def list_(arguments: argparse.Namespace) -> int:
    unused = arguments.unused

    def work(place: Place) -> int:
        parts = ("agents", "unused") if unused else ("agents",)
        answer = call(place, "GET", path(*parts, days=unused, limit=arguments.limit, before=arguments.before))
        return show(arguments, answer, _AGENTS, rows_of(answer), "no agent is unused" if unused else "no agent is registered")

    return answered(arguments, work)


def register(arguments: argparse.Namespace) -> int:
    body: Json = {
        name: getattr(arguments, name) for name in ("agent", "description", "owner", "issuer", "client", "subject", "key")
    }

    def work(place: Place) -> int:
        return _with_key(arguments, command(arguments, place, path("agents"), body), "registered")

    return answered(arguments, work)


def key(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        return _with_key(arguments, command(arguments, place, path("agents", arguments.agent, "key")), "has a new key")

    return answered(arguments, work)


def reinstate(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = command(arguments, place, path("agents", arguments.agent, "reinstate"), {"reason": arguments.reason})
        if arguments.json:
            print_json(answer)
        else:
            print(f"{printable(arguments.agent)} is active again")
        return 0

    return answered(arguments, work)


def revoke(arguments: argparse.Namespace) -> int:
    return _end(arguments, "revoke")


def retire(arguments: argparse.Namespace) -> int:
    return _end(arguments, "retire")


def _with_key(arguments: argparse.Namespace, answer: Json, what: str) -> int:
    if arguments.json:
        print_json(answer)
        return 0
    print(f"{printable(str(answer.get('agent', arguments.agent)))}: {what}")
    if answer.get("key"):
        print(
            f"\n    {printable(str(answer['key']))}\n\nThis key is shown once and kept nowhere: clients give it as their password."
        )
    elif answer.get("key_id"):
        print(
            "The key was shown by the first call, and is shown no more; make another with: pgwarden agents key NAME",
            file=sys.stderr,
        )
    return 0


# -- the end of an agent, and the proof of it ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ends:
    sessions: tuple[Json, ...]  # those that this order ended, or was to end
    proven: bool
    unknown: str  # why nothing can be said of the sessions; "" when it can


def _end(arguments: argparse.Namespace, verb: str) -> int:
    def work(place: Place) -> int:
        live: set[str] = set()
        # Asked before: these are the sessions whose end is to be shown. The order does not wait for tables that do not answer.
        with contextlib.suppress(ApiRefused):
            live = {str(row.get("session")) for row in _sessions(place, arguments.agent, live=True)}
        answer = command(arguments, place, path("agents", arguments.agent, verb), {"reason": arguments.reason})
        ends = _wait(place, arguments.agent, live, _time(answer.get(f"{verb.removesuffix('e')}ed_at")))
        if arguments.json:
            print_json({**answer, "sessions": list(ends.sessions), "proven": ends.proven})
            return 0 if ends.proven else 1
        print(f"{printable(arguments.agent)} is {printable(str(answer.get('state', verb)))}; it can open no session")
        if ends.sessions:
            print(table(_ENDS, [_times(row) for row in ends.sessions], width()))
        elif ends.proven:
            print("no session was open")
        if not ends.proven:
            unproven = sum(not _proven(row) for row in ends.sessions)
            why = ends.unknown or f"{unproven} of {len(ends.sessions)} sessions not proven gone"
            print(f"pgwarden: {why}; look again with: pgwarden sessions --agent {printable(arguments.agent)}", file=sys.stderr)
        return 0 if ends.proven else 1

    return answered(arguments, work)


def _wait(place: Place, agent: str, live: set[str], ordered_at: datetime | None) -> _Ends:
    """Until each session is proven gone, or the time is up. A session that was opened between the look and the order counts too."""
    began = time.monotonic()
    while True:
        try:
            rows = [row for row in _sessions(place, agent, live=False) if _concerned(row, live, ordered_at)]
        except (ApiRefused, ApiUnreachable) as error:
            ends = _Ends((), False, f"what became of its sessions is not known: {error}")
        else:
            missing = live - {str(row.get("session")) for row in rows}
            unknown = f"{len(missing)} sessions that were open are no longer listed" if missing else ""
            ends = _Ends(tuple(rows), not missing and all(_proven(row) for row in rows), unknown)
        waited = time.monotonic() - began
        if (ends.proven and waited >= SETTLE_SECONDS) or waited >= PROOF_SECONDS_MAX:
            return ends
        time.sleep(PROOF_INTERVAL_SECONDS)


def _sessions(place: Place, agent: str, *, live: bool) -> list[Json]:
    return rows_of(call(place, "GET", path("sessions", agent=agent, live="true" if live else None, limit=1000)))


def _concerned(row: Json, live: set[str], ordered_at: datetime | None) -> bool:
    if row.get("session") in live or not row.get("closed_at"):
        return True
    requested_at = _time(row.get("kill_requested_at"))
    return requested_at is not None and ordered_at is not None and requested_at >= ordered_at


def _proven(row: Json) -> bool:
    """Ended by itself in the meantime, or killed with the proof that its backend is gone."""
    if row.get("kill_requested_at") or row.get("kill_cause"):
        return bool(row.get("kill_backend_gone_at"))
    return bool(row.get("closed_at"))


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
