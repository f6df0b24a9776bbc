"""`pgwarden sessions`, `audit`, `sql`, `snapshot` and `health`: what the record says."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Final

from pgwarden.api_client import BadUsage, Json, Place, call, download, fetch, path
from pgwarden.commands.answers import answered, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.small_files import private_file, reason_of, write_private_bytes
from pgwarden.tables import Column, cell, duration_of, records, table, time_of, too_wide, width

_SESSIONS: Final = (
    Column("SESSION", "session"),
    Column("AGENT", "agent", flexible=True),
    Column("STATE", "state", flexible=True),
    Column("CONNECTION", "connection", flexible=True),
    Column("OPENED (UTC)", "opened_at"),
    Column("STATEMENTS", "statements", right=True),
    Column("DENIED", "denied", right=True),
)
_SNAPSHOTS: Final = (Column("SNAPSHOT", "snapshot"), Column("TAKEN (UTC)", "taken_at"), Column("BYTES", "bytes", right=True))
_FILES: Final = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
_PARTS: Final = (Column("PART", "part"), Column("STATE", "state"), Column("SAYS", "says", flexible=True))
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
        rows = [{**row, "why": _why_over(row)} for row in rows_of(answer)]
        return show(arguments, answer, _SESSIONS, rows, "no session is open" if arguments.live else "there is no session", "why")

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
        return show(
            arguments, answer, _STATEMENTS, rows, f"no such statement of {printable(arguments.agent)} is recorded", "denied_for"
        )

    return answered(arguments, work)


def sql(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        kind = arguments.format or ("json" if arguments.json else "table")
        if kind in _FILES:
            return _file(arguments, place, kind)
        if arguments.output is not None:
            raise BadUsage("--output goes with --format csv, parquet or arrow")
        answer = call(place, "POST", path("sql"), {"sql": arguments.query})
        if kind == "json":
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


def _file(arguments: argparse.Namespace, place: Place, kind: str) -> int:
    """The answer as it comes, to a file or to standard output, where the other end is a program."""
    if arguments.output is None and kind != "csv" and sys.stdout.isatty():
        raise BadUsage(f"{kind} is not for a terminal; write --output FILE, or send it on with |")
    data, headers = fetch(place, "POST", path("sql"), {"sql": arguments.query}, _FILES[kind])
    if arguments.output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        try:
            write_private_bytes(arguments.output, data)
        except OSError as error:
            shown = printable(str(arguments.output))
            raise BadUsage(f"{shown} cannot be written: {reason_of(error)}; name a file in a folder that you may write") from error
        print(f"{printable(str(arguments.output), 4096)}: {headers.get('pgwarden-rows')} rows, {len(data)} bytes", file=sys.stderr)
    if notice := headers.get("pgwarden-notice"):
        print(f"pgwarden: {printable(notice, 1000)}", file=sys.stderr)
    return 0


def snapshot(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        if arguments.list:
            answer = call(place, "GET", path("snapshots"))
            return show(arguments, answer, _SNAPSHOTS, rows_of(answer), "there is no snapshot; pgwarden snapshot takes one")
        if arguments.path is None:
            if arguments.existing:
                raise BadUsage("--existing goes with a PATH, where the snapshot is to be written")
            answer = call(place, "POST", path("snapshots"))
        else:
            answer = _downloaded(arguments, place)
        if arguments.json:
            print_json(answer)
        else:
            print(f"{printable(str(answer.get('path')), 4096)}: {answer.get('bytes')} bytes, as of {answer.get('taken_at')}")
        return 0

    return answered(arguments, work)


def _downloaded(arguments: argparse.Namespace, place: Place) -> Json:
    shown = printable(str(arguments.path))
    try:
        with private_file(arguments.path) as out:  # made first: no snapshot is taken that cannot be written
            if arguments.existing:
                there = rows_of(call(place, "GET", path("snapshots")))
                wanted = [one for one in there if arguments.existing in ("latest", one.get("snapshot"))]
                if not wanted:
                    raise BadUsage(
                        f"there is no snapshot {printable(arguments.existing)}; pgwarden snapshot --list shows which there are"
                    )
                answer = wanted[0]
            else:
                answer = call(place, "POST", path("snapshots"))
            download(place, path("snapshots", str(answer.get("snapshot"))), "application/vnd.duckdb", out)
    except OSError as error:
        raise BadUsage(f"{shown} cannot be written: {reason_of(error)}; name a file in a folder that you may write") from error
    return {**answer, "path": str(arguments.path)}


def health(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "GET", path("health"))
        works = answer.get("ok", answer.get("status", "ok")) in (True, "ok")
        if arguments.json:
            print_json(answer)
        else:
            print("ok" if works else "not all is well:")
            problems = answer.get("problems")
            for problem in problems if isinstance(problems, list) else ():
                print(f"  {printable(str(problem), 1000)}")
            print()
            print(table(_PARTS, list(_parts(answer)), width()))
        return 0 if works else 1

    return answered(arguments, work)


def _result(row: Json) -> Json:
    """What came of it. A denied statement did not run: it has no rows and took no time."""
    if row.get("decision") == "deny":
        return {"result": f"denied {row.get('sqlstate')}", "denied_for": row.get("reason"), "rows": None, "duration_us": None}
    outcome = row.get("outcome") or "running"
    return {"result": f"{outcome} {row.get('sqlstate')}" if row.get("sqlstate") else outcome}


def _parts(answer: Json) -> Iterator[Json]:
    """A row for each part that the API knows of."""
    gateways = answer.get("gateways")
    for gateway in gateways if isinstance(gateways, list) else ():
        if not isinstance(gateway, dict):
            continue
        if gateway.get("reachable") is False:
            yield {"part": gateway.get("gateway"), "state": "silent", "says": gateway.get("reason")}
            continue
        counters, log = _within(gateway, "counters"), _within(gateway, "log")
        counted = ", ".join(
            f"{counters[name]} {name.replace('_', ' ')}" for name in ("statements", "denied", "killed") if name in counters
        )
        says = f"{gateway.get('sessions')} sessions; {counted} since {time_of(gateway.get('started_at'))}"
        if waiting := log.get("backlog_bytes"):
            says += f"; {waiting} bytes wait for the brokers"
        yield {"part": gateway.get("gateway"), "state": "records" if log.get("available", True) else "stopped", "says": says}
    gaps = answer.get("gaps")
    yield {"part": "record", "state": "unknown" if gaps is None else "gaps" if gaps else "whole", "says": f"{cell(gaps)} gaps"}
    tables = _within(answer, "projection")
    behind = f"{cell(duration_of(tables.get('lag_us')))} behind, {cell(tables.get('lag_records'))} records"
    yield {"part": "tables", "state": "broken" if tables.get("error") else "follow", "says": behind}
    enforcement = _within(answer, "enforcement")
    if enforcement.get("by") == "workers":
        yield {"part": "enforcement", "state": "elsewhere", "says": "the workers and each gateway do it"}
        return
    orders = (
        f"{cell(enforcement.get('live_sessions'))} live sessions, {cell(enforcement.get('orders_pending'))} ends not proven yet"
    )
    yield {"part": "enforcement", "state": "broken" if enforcement.get("error") else "follows", "says": orders}


def _within(answer: Json, name: str) -> Json:
    found = answer.get(name)
    return found if isinstance(found, dict) else {}


def _why_over(session: Json) -> str:
    """What ended it, where that was not its client."""
    cause = session.get("kill_cause") or session.get("close_reason")
    return "" if cause in (None, "", "client") else f"ended by: {cause}"
