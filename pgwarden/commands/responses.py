"""`pgwarden responses`: what findings lead to by themselves, and who is throttled or held now."""

from __future__ import annotations

import argparse
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, command, print_json, rows_of, show, shown
from pgwarden.printable import printable
from pgwarden.tables import Column, table, width

_CHOSEN: Final = (
    Column("DETECTOR", "detector"),
    Column("AGENT", "agent", flexible=True),
    Column("RESPONSE", "response"),
    Column("BY", "operator", flexible=True),
    Column("SINCE (UTC)", "chosen_at"),
)
_RESTRAINED: Final = (
    Column("AGENT", "agent", flexible=True),
    Column("STATE", "state"),
    Column("SINCE (UTC)", "since_at"),
    Column("BY", "operator", flexible=True),
    Column("REASON", "reason", flexible=True),
)


def list_(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        answer = call(place, "GET", path("responses"))
        none = "no response was chosen: findings are observed"
        if (code := show(arguments, answer, _CHOSEN, rows_of(answer), none)) or arguments.json:
            return code
        held: list[Json] = [{**row, "state": "held"} for row in rows_of(answer, "held")]
        held += [{**row, "state": f"{row.get('per_minute')} a minute"} for row in rows_of(answer, "throttled")]
        if held:
            print()
            print(table(_RESTRAINED, [shown(row) for row in held], width()))
        return 0

    return answered(arguments, work)


def choose(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        body: Json = {"detector": arguments.detector, "agent": arguments.of, "response": arguments.response}
        answer = command(arguments, place, path("responses"), body)
        if arguments.json:
            print_json(answer)
        else:
            of = "every agent" if arguments.of == "*" else printable(arguments.of)
            print(f"findings of {printable(arguments.detector)} about {of} lead to: {printable(str(answer.get('response', '')))}")
        return 0

    return answered(arguments, work)
