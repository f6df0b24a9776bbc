"""`pgwarden sessions`, `audit`, `sql` and `health`: what the record says."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, print_fields, print_json, rows_of, show, shown
from pgwarden.printable import printable
from pgwarden.tables import Column, cell, records, table, too_wide, width

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
    Column("RESULT", "result"),
    Column("ROWS", "rows", right=True),
    Column("TOOK", "duration_us", right=True),
    Column("STATEMENT", "said", flexible=True),
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
        rows = [{**row, **_result(row), "said": row.get("text") or row.get("fingerprint")} for row in rows_of(answer)]
        return show(arguments, answer, _STATEMENTS, rows, "nothing is recorded of it there", "denied_for")

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
        print(records(heads, lines) if too_wide(heads, width()) else table(heads, lines, width()))
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


def _result(row: Json) -> Json:
    """What came of it. A denied statement did not run: it has no rows and took no time."""
    if row.get("decision") == "deny":
        return {"result": f"denied {row.get('sqlstate')}", "denied_for": row.get("reason"), "rows": None, "duration_us": None}
    outcome = row.get("outcome") or "running"
    return {"result": f"{outcome} {row.get('sqlstate')}" if row.get("sqlstate") else outcome}


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, below in enumerate(value):
            yield from _flat(below, f"{name}[{index}]")
    else:
        ((_, read),) = shown({name: value}).items()
        yield name, read
