"""SQL text in; out come its statements and what each one touches, by PostgreSQL's own grammar.

Nothing here decides: `identity.scope` does. What is not understood is a refusal, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Operation: TypeAlias = Literal["select", "insert", "update", "delete", "ddl", "copy", "call"]


@dataclass(frozen=True, slots=True)
class Name:
    schema: str  # "" = written without one; the search_path decides
    name: str


@dataclass(frozen=True, slots=True)
class Access:
    schema: str  # "" = written without one; the search_path decides
    name: str  # "*" = the schema itself
    operation: Operation


@dataclass(frozen=True, slots=True)
class Statement:
    verb: str  # "SELECT", "CREATE TABLE", ...
    start: int  # slice of the text's UTF-8 bytes
    end: int
    accesses: tuple[Access, ...] = ()
    functions: tuple[Name, ...] = ()
    operators: tuple[Name, ...] = ()  # those that PostgreSQL does not bring
    types: tuple[Name, ...] = ()  # those that PostgreSQL does not bring
    attributes: tuple[str, ...] = ()  # last parts of multi-part column references: `o.f` calls f(o) when o has no column f
    introspects: bool = False  # uses regclass and its kin, which tell whether a name exists
    channels: tuple[str, ...] = ()  # LISTEN, NOTIFY
    settings: tuple[str, ...] = ()  # SET, RESET, SHOW
    prepares: str = ""  # SQL PREPARE's name
    prepared: Statement | None = None  # and what it prepares
    executes: str = ""  # SQL EXECUTE's name
    deallocates: str = ""  # DEALLOCATE's name, "*" for all
    declares: str = ""  # DECLARE's cursor
    fetches: str = ""  # FETCH's, MOVE's or CLOSE's cursor, "*" for all
    transaction: str = ""  # "begin" | "commit" | "rollback" | "savepoint" | "release" | "rollback to" | ""
    refusal: str = ""  # why this is never allowed, whoever asks; "" = ask `identity.scope.decide`


@dataclass(frozen=True, slots=True)
class Script:
    statements: tuple[Statement, ...]  # none for an empty text or a comment
    fingerprint: str  # libpg_query's, 16 hex digits


@dataclass(frozen=True, slots=True)
class Unparsable:
    sqlstate: str  # 42601 syntax, 54000/54001 limits, 22021 not text
    message: str  # as PostgreSQL words it
    position: int  # in characters from 1; 0 = nowhere in particular


def parse(text: str) -> Script | Unparsable:
    """Never raises, whatever the text."""
    return Unparsable("0A000", "the parser is not here yet", 0)


def relation_names(statement: Statement) -> tuple[str, ...]:
    """Each relation once, as it was written, for the record."""
    return tuple(dict.fromkeys(f"{a.schema}.{a.name}" if a.schema else a.name for a in statement.accesses))
