"""`pgwarden grants`: list them, ask for them, approve, deny, narrow and revoke them."""

from __future__ import annotations

import argparse
import re
from typing import Final

from pgwarden.api_client import BadUsage, Json, Place, call, path
from pgwarden.commands.answers import answered, command, not_applied, print_json, rows_of, show
from pgwarden.printable import printable
from pgwarden.tables import Column

_GRANTS: Final = (
    Column("GRANT", "grant"),
    Column("AGENT", "agent", flexible=True),
    Column("STATE", "state"),
    Column("CONNECTION", "connection", flexible=True),
    Column("APPROVER", "approver", flexible=True),
    Column("EXPIRES (UTC)", "expires_at"),
)

_NAME: Final = r'(?:"(?:[^"]|"")+"|[^\s".,]+)'
_RULE: Final = re.compile(r"\s*([a-z]+(?:\s*,\s*[a-z]+)*)\s+on\s+(\S.*?)\s*", re.IGNORECASE | re.DOTALL)
_TABLE: Final = re.compile(rf"\s*({_NAME})\.({_NAME})\s*(?:,|$)")


def list_(arguments: argparse.Namespace) -> int:
    agent, state = arguments.agent, arguments.state

    def work(place: Place) -> int:
        answer = call(place, "GET", path("grants", agent=agent, state=state, limit=arguments.limit, before=arguments.before))
        rows = [{**row, "connection": _scope(row).get("connection"), "said": _said_of(row)} for row in rows_of(answer)]
        return show(arguments, answer, _GRANTS, rows, "there is no such grant" if agent or state else "there is no grant", "said")

    return answered(arguments, work)


def request(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        scope = _scope_of(arguments, arguments.connection)
        body: Json = {"agent": arguments.agent, "scope": scope, "seconds": arguments.seconds, "reason": arguments.reason}
        return _said(arguments, command(arguments, place, path("grants"), body))

    return answered(arguments, work)


def approve(arguments: argparse.Namespace) -> int:
    return _decided(arguments, "approve", None)


def deny(arguments: argparse.Namespace) -> int:
    return _decided(arguments, "deny", {"reason": arguments.reason})


def revoke(arguments: argparse.Namespace) -> int:
    return _decided(arguments, "revoke", {"reason": arguments.reason})


def narrow(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        body: Json = {"scope": _scope_of(arguments, arguments.connection), "reason": arguments.reason}
        return _said(arguments, command(arguments, place, path("grants", arguments.grant, "narrow"), body), "is narrowed")

    return answered(arguments, work)


def _scope_of(arguments: argparse.Namespace, connection: str) -> Json:
    return {
        "connection": connection,
        "rules": [rule for text in arguments.allow for rule in rules(text)],
        "functions": arguments.function,
        "channels": arguments.channel,
        "introspection": arguments.introspection,
    }


def rules(text: str) -> list[Json]:
    """`select, insert on public.orders, audit.*` as the API writes it: one rule for each schema. Names are exact; `"` quotes them.

    Raises:
        BadUsage: It cannot be read so.
    """
    match = _RULE.fullmatch(text)
    tables: dict[str, list[str]] = {}
    if match is not None:
        at, named = 0, match[2]
        while at < len(named) and (table := _TABLE.match(named, at)) is not None:
            tables.setdefault(_unquoted(table[1]), []).append(_unquoted(table[2]))
            at = table.end()
        if at == len(named) and not named.endswith(","):
            operations = [operation.strip().lower() for operation in match[1].split(",")]
            return [{"schema": schema, "tables": names, "operations": operations} for schema, names in tables.items()]
    raise BadUsage(f'{printable(text)!r} is no rule; write one as "select, insert on public.orders", or public.* for every table')


def allows(scope: Json) -> str:
    """A scope on one line."""
    parts = []
    for rule in rows_of(scope, "rules"):
        tables = ", ".join(f"{rule.get('schema')}.{table}" for table in _texts(rule.get("tables")))
        parts.append(f"{', '.join(_texts(rule.get('operations')))} on {tables}")
    for key, what in (("functions", "call"), ("channels", "channel")):
        if names := _texts(scope.get(key)):
            parts.append(f"{what} {', '.join(names)}")
    if scope.get("introspection"):
        parts.append("introspection")
    return "; ".join(parts)


def _decided(arguments: argparse.Namespace, verb: str, body: Json | None) -> int:
    def work(place: Place) -> int:
        return _said(arguments, command(arguments, place, path("grants", arguments.grant, verb), body))

    return answered(arguments, work)


def _said(arguments: argparse.Namespace, answer: Json, what: str = "") -> int:
    if arguments.json:
        print_json(answer)
        return 1 if answer.get("applied") is False else 0
    grant, state = printable(str(answer.get("grant"))), printable(str(answer.get("state")))
    print(f"grant {grant} of {printable(str(answer.get('agent')))} {what or f'is {state}'}")
    if not_applied(answer):
        return 1
    if state == "requested":
        print(f"another operator approves it with: pgwarden grants approve {grant}")
    elif answer.get("expires_at"):
        print(f"it ends at {printable(str(answer['expires_at']))}")
    return 0


def _said_of(row: Json) -> str:
    return f"{allows(_scope(row))}: {row.get('reason')}"


def _scope(row: Json) -> Json:
    scope = row.get("scope")
    return scope if isinstance(scope, dict) else {}


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
