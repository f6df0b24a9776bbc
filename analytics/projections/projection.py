from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from ingest.events import Frame, Stamp, Topic
from ingest.log import Record

Cell: TypeAlias = str | int | tuple[str | int | None, ...] | None
Row: TypeAlias = Mapping[str, Cell]
Staged: TypeAlias = tuple[str, Row]
"""The stage that the row is for, and the row."""

INDEX_BITS: Final = 20
MACROS: Final = (
    # Microseconds since 1970 to a TIMESTAMP in UTC; 0 is none. Cut at the end of the year 9999: a wilder time must not stop us.
    "create macro instant(us) as case when us > 0 then make_timestamp(least(us, 253402300799999999)) end",
    # Whether a statement names this relation, with its schema or without.
    """create macro names_relation(relations, relation) as
        len(list_filter(relations, lambda r: r = relation or suffix(r, '.' || relation))) > 0""",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A table that is emptied before each batch: the batch's rows before they are merged, or what a merge left for the next."""

    name: str
    columns: Mapping[str, str]  # name -> DuckDB type


@dataclass(frozen=True, slots=True)
class Merge:
    """One statement. It is passed over when all of the stages that it reads are empty."""

    when: tuple[str, ...]
    sql: str
    fills: str = ""  # the stage that it adds to


@dataclass(frozen=True, slots=True)
class Projection:
    """`rows` is a pure function of its arguments; `merge` runs once a batch, in one transaction with the batch's offsets.

    What `merge` leaves in the tables depends on the events alone, not on how they were cut into batches, nor on how the
    partitions were read side by side.
    """

    topics: tuple[Topic, ...]  # whose frames `rows` wants to see
    tables: Mapping[str, str]  # name -> columns, as in CREATE TABLE; part of the checksum
    stages: tuple[Stage, ...]
    rows: Callable[[Record, Frame], Iterator[Staged]]
    merge: tuple[Merge, ...]
    views: Mapping[str, str] | None = None  # name -> query


def place(record: Record, index: int) -> int:
    """One number that orders the events of a partition."""
    return record.offset << INDEX_BITS | index


def lists(types: Mapping[str, str]) -> dict[str, str]:
    """The same columns, staged in lists."""
    return {name: f"{kind}[]" for name, kind in types.items()}


def unnested(stage: str, same: Iterable[str], listed: Iterable[str]) -> str:
    """The query of a stage's rows, one an element of its lists."""
    return f"select {', '.join([*same, *(f'unnest({name}) as {name}' for name in listed)])} from {stage}"  # noqa: S608


def columns(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


STAMP_COLUMNS: Final[Mapping[str, str]] = {
    "session": "VARCHAR",
    "agent": "VARCHAR",
    "subject": "VARCHAR",
    "issuer": "VARCHAR",
    "on_behalf_of": "VARCHAR",
    "actors": "VARCHAR[]",
    "invocation": "VARCHAR",
    "task": "VARCHAR",
    "unverified": "VARCHAR[]",
    "grants": "VARCHAR[]",
    "approvers": "VARCHAR[]",
    "connection": "VARCHAR",
    "database": "VARCHAR",
    "role": "VARCHAR",
    "client": "VARCHAR",
    "backend_pid": "BIGINT",
    "backend_start_us": "BIGINT",
    "upstream_port": "BIGINT",
}
"""As they are staged. In the tables `backend_start_us` stands as `backend_start`."""

STAMP_TYPES: Final[Mapping[str, str]] = {
    "backend_start" if name == "backend_start_us" else name: "TIMESTAMP" if name == "backend_start_us" else kind
    for name, kind in STAMP_COLUMNS.items()
}


def stamp_row(stamp: Stamp) -> dict[str, Cell]:
    return {
        "session": stamp.session,
        "agent": stamp.agent,
        "subject": stamp.subject,
        "issuer": stamp.issuer,
        "on_behalf_of": stamp.on_behalf_of,
        "actors": stamp.actors,
        "invocation": stamp.invocation,
        "task": stamp.task,
        "unverified": stamp.unverified,
        "grants": stamp.grants,
        "approvers": stamp.approvers,
        "connection": stamp.connection,
        "database": stamp.database,
        "role": stamp.role,
        "client": stamp.client,
        "backend_pid": stamp.backend_pid,
        "backend_start_us": stamp.backend_start_us,
        "upstream_port": stamp.upstream_port,
    }
