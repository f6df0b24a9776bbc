"""What an agent may, held against what it did: a grant that nobody needs is a door left open."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from dashboards import ledger, pictures
from dashboards.answers import Grant, Hour, Touched
from dashboards.grants import grant_state
from dashboards.ledger import Column, Lines, Number, Row, Text, Time
from dashboards.words import listing, number

DAYS: Final = 30  # of use that is looked at
COLUMNS: Final = (
    Column("Table, and what it may there"),
    Column("Did", 116, title=f"Kinds of statements in the last {DAYS} days, refused ones included"),
    Column("Statements", 80, "right"),
    Column("Refused", 66, "right"),
    Column("Rows", 84, "right"),
    Column("Last", 152),
)


@dataclass(slots=True)
class Use:
    """One table, or every table of a schema, in grants that are in force and in what was done."""

    may: set[str] = field(default_factory=set)
    did: set[str] = field(default_factory=set)
    statements: int = 0
    denied: int = 0
    rows: int = 0
    last_at: datetime | None = None

    def add(self, touched: Touched) -> None:
        self.did |= {verb.lower() for verb in touched.verbs}
        self.statements += touched.statements
        self.denied += touched.denied
        self.rows += touched.rows
        self.last_at = max((at for at in (self.last_at, touched.last_at) if at is not None), default=None)


def uses(grants: Sequence[Grant], touched: Sequence[Touched], now: datetime) -> dict[str, Use]:
    """By table. What falls under a grant for a whole schema counts for that grant, and stands in a row of its own too.

    A name without a schema counts for the table that it can mean here: the only one of that name, or in the only schema.
    """
    found: dict[str, Use] = {}
    for grant in grants:
        if grant_state(grant, now) == "approved":
            for rule in grant.scope.rules:
                for table in rule.tables:
                    found.setdefault(f"{rule.schema}.{table}", Use()).may.update(rule.operations)
    whole = {name.removesuffix(".*"): use for name, use in found.items() if name.endswith(".*")}
    known = {*found, *(each.relation for each in touched)}
    for each in touched:
        relation = _in_schema(each.relation, known)
        found.setdefault(relation, Use()).add(each)
        schema = relation.rpartition(".")[0]
        if schema in whole:
            whole[schema].add(each)
            found[relation].may |= whole[schema].may
    return found


def _in_schema(relation: str, known: Collection[str]) -> str:
    if "." in relation:
        return relation
    same = [name for name in known if name.endswith(f".{relation}")]
    schemas = {name.rpartition(".")[0] for name in known if "." in name}
    if len(same) == 1:
        return same[0]
    return f"{schemas.pop()}.{relation}" if not same and len(schemas) == 1 else relation


def rows(found: dict[str, Use]) -> list[Row]:
    """What was refused first, then what is allowed and never used, then by use."""
    order = sorted(found.items(), key=lambda item: (not item[1].denied, not _unused(item[1]), -item[1].statements, item[0]))
    return [_row(table, use) for table, use in order]


def _unused(use: Use) -> bool:
    return bool(use.may) and not use.statements and not use.denied


def _row(table: str, use: Use) -> Row:
    name = f"every table of {table.removesuffix('.*')}" if table.endswith(".*") else table
    may = f"may {listing(sorted(use.may))}" if use.may else "nothing is granted"
    return Row(
        id=table,
        cells=(
            Lines(name, may),
            Text("never used", "warn", "Granted, and not used: is it needed?")
            if _unused(use)
            else Text(listing(sorted(use.did)) or "–"),
            Number(number(use.statements), "" if use.statements else "faint"),
            Number(number(use.denied), "bad" if use.denied else "faint"),
            Number(number(use.rows), "" if use.rows else "faint"),
            Time(use.last_at),
        ),
        tone="bad" if use.denied and not use.may else "warn" if _unused(use) else "",
    )


def draw(grants: Sequence[Grant], touched: Sequence[Touched], hours: Sequence[Hour], now: datetime) -> None:
    ledger.table(
        COLUMNS,
        rows(uses(grants, touched, now)),
        key="use",
        title=f"Granted and used, {DAYS} days",
        empty="It may touch no table, and touched none.",
    )
    counts = [0] * pictures.HOURS_OF_A_WEEK
    for each in hours:
        if 0 <= each.hour < len(counts):
            counts[each.hour] += each.statements
    if any(counts):
        pictures.hours(counts, "Statements by hour of the week, last 28 days", key="hours", title="When it works")
