"""`pgwarden agents`: list them, register them, give them keys."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from pgwarden.api_client import Json, Place, call, path
from pgwarden.commands.answers import answered, command, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column

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
