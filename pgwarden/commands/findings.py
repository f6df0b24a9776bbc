"""`pgwarden findings`: list what detectors found, look at one, acknowledge, confirm, mute and unmute."""

from __future__ import annotations

import argparse
import time
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, command, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column, time_of

_FINDINGS: Final = (
    Column("FINDING", "finding"),
    Column("LAST (UTC)", "last_at"),
    Column("SEVERITY", "severity"),
    Column("STATE", "state"),
    Column("DETECTOR", "detector"),
    Column("AGENT", "agent", flexible=True),
    Column("TIMES", "times", right=True),
)
_MUTES: Final = (
    Column("DETECTOR", "detector"),
    Column("AGENT", "agent", flexible=True),
    Column("UNTIL (UTC)", "until_at"),
    Column("BY", "operator", flexible=True),
    Column("REASON", "reason", flexible=True),
)


def list_(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        since_us = time.time_ns() // 1000 - arguments.since * 1_000_000 if arguments.since else ""
        wanted = {name: getattr(arguments, name) for name in ("agent", "detector", "severity", "state", "limit", "before")}
        answer = call(place, "GET", path("findings", **wanted, since_us=since_us))
        return show(arguments, answer, _FINDINGS, rows_of(answer), "there is no such finding", "summary")

    return answered(arguments, work)


def mutes(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "GET", path("mutes", limit=arguments.limit, before=arguments.before))
        return show(arguments, answer, _MUTES, rows_of(answer), "nothing is muted")

    return answered(arguments, work)


def show_(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        found = call(place, "GET", path("findings", arguments.finding))
        if arguments.json:
            print_json(found)
            return 0
        print(f"{_text(found, 'severity')}, {_text(found, 'state')}: {_text(found, 'summary', 1000)}")
        for name in ("finding", "detector", "agent", "session", "times"):
            print(f"  {name}: {_text(found, name)}")
        for name in ("raised_at", "last_at"):
            print(f"  {name.removesuffix('_at')}: {time_of(found.get(name))} UTC")
        numbers = found.get("numbers")
        for number, value in numbers.items() if isinstance(numbers, dict) else ():
            print(f"  {printable(str(number))}: {printable(str(value))}")
        for name in ("offsets", "evidence"):
            values = found.get(name)
            print(f"  {name}: {' '.join(printable(str(value)) for value in values) if isinstance(values, list) else ''}")
        for row in reversed(rows_of(found, "history")):
            by = f" by {_text(row, 'operator')}" if row.get("operator") else f", {_text(row, 'times')} times in all"
            print(f"  {time_of(row.get('recorded_at'))} UTC {_text(row, 'kind')}{by}: {_text(row, 'said', 1000)}")
        return 0

    return answered(arguments, work)


def acknowledge(arguments: argparse.Namespace) -> int:
    return _said(arguments, "acknowledge", "is acknowledged")


def confirm(arguments: argparse.Namespace) -> int:
    return _said(arguments, "confirm", "is confirmed")


def mute(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        body: Json = {"seconds": arguments.seconds, "reason": arguments.reason}
        body |= {name: value for name in ("finding", "detector", "of") if (value := getattr(arguments, name))}
        if "of" in body:
            body["agent"] = body.pop("of")
        answer = command(arguments, place, path("mutes"), body)
        if arguments.json:
            print_json(answer)
        else:
            print(f"{_text(answer, 'detector')} of {_whose(answer)} is muted until {time_of(answer.get('until_at'))} UTC")
        return 0

    return answered(arguments, work)


def unmute(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        body: Json = {"detector": arguments.detector, "agent": arguments.of, "reason": arguments.reason}
        answer = command(arguments, place, path("mutes", "remove"), body)
        if arguments.json:
            print_json(answer)
        else:
            print(f"{_text(answer, 'detector')} of {_whose(answer)} is no longer muted")
        return 0

    return answered(arguments, work)


def _said(arguments: argparse.Namespace, verb: str, done: str) -> int:
    def work(place: Place) -> int:
        answer = command(arguments, place, path("findings", arguments.finding, verb), {"note": arguments.note})
        if arguments.json:
            print_json(answer)
        else:
            print(f"{_text(answer, 'finding')} of {_whose(answer)} {done}")
        return 0

    return answered(arguments, work)


def _whose(row: Json) -> str:
    return _text(row, "agent") or "nobody"


def _text(row: Json, name: str, characters_max: int = 200) -> str:
    return printable(str(row.get(name, "")), characters_max)
