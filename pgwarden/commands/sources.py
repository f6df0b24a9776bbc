"""`pgwarden sources`: list what is declared to connect round the gateway, declare it, withdraw it."""

from __future__ import annotations

import argparse
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, command, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column

_SOURCES: Final = (
    Column("SOURCE", "source"),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("ROLES", "roles", flexible=True),
    Column("FROM", "from", flexible=True),
    Column("DECLARED BY", "declared_by", flexible=True),
)


def list_(arguments: argparse.Namespace) -> int:
    state = arguments.state

    def work(place: Place) -> int:
        answer = call(place, "GET", path("sources", state=state, limit=arguments.limit, before=arguments.before))
        rows = [{**row, "roles": _roles(row), "from": _from(row)} for row in rows_of(answer)]
        return show(arguments, answer, _SOURCES, rows, "no source is declared", "reason")

    return answered(arguments, work)


def declare(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        body: Json = {
            "source": arguments.source,
            "kind": arguments.kind,
            "roles": arguments.role,
            "client": arguments.client_address,
            "executable": arguments.executable,
            "server": arguments.server,
            "application_name": arguments.application_name,
            "reason": arguments.reason,
        }
        return _said(arguments, command(arguments, place, path("sources"), body))

    return answered(arguments, work)


def withdraw(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        return _said(
            arguments, command(arguments, place, path("sources", arguments.source, "withdraw"), {"reason": arguments.reason})
        )

    return answered(arguments, work)


def _said(arguments: argparse.Namespace, answer: Json) -> int:
    if arguments.json:
        print_json(answer)
    else:
        print(f"source {printable(str(answer.get('source')))} is {printable(str(answer.get('state')))}")
    return 0


def _roles(row: Json) -> str:
    roles = row.get("roles")
    return ", ".join(map(str, roles)) if isinstance(roles, list) else ""


def _from(row: Json) -> str:
    named = (row.get("client"), row.get("executable"), row.get("server") and f"on {row['server']}")
    return ", ".join(str(part) for part in named if part)
