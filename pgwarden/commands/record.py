"""`pgwarden sessions`, `audit`, `sql` and `health`: what the record says."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, print_fields, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column, cell, table, width

_SESSIONS: Final = (
    Column("SESSION", "session"),
    Column("AGENT", "agent", flexible=True),
    Column("STATE", "state", flexible=True),
    Column("CONNECTION", "connection", flexible=True),
    Column("OPENED (UTC)", "opened_at"),
    Column("STATEMENTS", "statements", right=True),
    Column("DENIED", "denied", right=True),
    Column("ENDED BY", "ended_by", flexible=True),
)
_STATEMENTS: Final = (
    Column("TIME (UTC)", "started_at"),
    Column("DECISION", "decision"),
    Column("OUTCOME", "outcome"),
    Column("ROWS", "rows", right=True),
    Column("TOOK", "duration_us", right=True),
    Column("STATEMENT", "said", flexible=True),
    Column("WHY", "why", flexible=True),
)


def sessions(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        live = "true" if arguments.live else None
        answer = call(
            place, "GET", path("sessions", agent=arguments.agent, live=live, limit=arguments.limit, before=arguments.before)
        )
        rows = [{**row, "ended_by": row.get("kill_cause") or row.get("close_reason")} for row in rows_of(answer)]
        return show(arguments, answer, _SESSIONS, rows, "no session is open" if arguments.live else "there is no session")

    return answered(arguments, work)


def audit(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        since_us = None if arguments.since is None else int((time.time() - arguments.since) * 1_000_000)
        answer = call(
            place,
            "GET",
            path(
                "statements",
                agent=arguments.agent,
                session=arguments.session,
                decision="deny" if arguments.denied else None,
                since_us=since_us,
                limit=arguments.limit,
                before=arguments.before,
            ),
        )
        rows = [{**row, "said": row.get("text") or row.get("fingerprint"), "why": _why(row)} for row in rows_of(answer)]
        return show(arguments, answer, _STATEMENTS, rows, "nothing is recorded of it there")

    return answered(arguments, work)


def sql(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "POST", path("sql"), {"sql": arguments.query})
        if arguments.json:
            print_json(answer)
            return 0
        columns, rows = answer.get("columns"), answer.get("rows")
        names = [str(column.get("name")) for column in columns if isinstance(column, dict)] if isinstance(columns, list) else []
        # Two columns may have one name: the key is the place.
        heads = [Column(printable(name), str(index), flexible=True) for index, name in enumerate(names)]
        lines: list[Json] = [
            {str(index): value for index, value in enumerate(row)}
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, list)
        ]
        print(table(heads, lines, width()))
        print(f"({len(lines)} row{'s' * (len(lines) != 1)}{', cut: ask for fewer' if answer.get('truncated') else ''})")
        return 0

    return answered(arguments, work)


def health(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "GET", path("health"))
        works = answer.get("ok", answer.get("status", "ok")) in (True, "ok")
        if arguments.json:
            print_json(answer)
        else:
            print_fields({printable(name): cell(value) for name, value in _flat(answer)})
        return 0 if works else 1

    return answered(arguments, work)


def _why(row: Json) -> object:
    """What decided it: the reason of a denial, the SQLSTATE of a failure, else the rule."""
    if row.get("decision") == "deny":
        return f"{row.get('sqlstate')} {row.get('reason')}"
    return row.get("sqlstate") if row.get("outcome") == "error" else row.get("rule")


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, below in enumerate(value):
            yield from _flat(below, f"{name}[{index}]")
    else:
        yield name, value
