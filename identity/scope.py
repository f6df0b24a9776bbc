"""A statement and an agent's live grants in; a decision with its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from ingest import events
from ingest.sql import Operation, Statement

OPERATIONS: Final[tuple[Operation, ...]] = ("select", "insert", "update", "delete", "ddl", "copy", "call")


@dataclass(frozen=True, slots=True)
class LiveGrant:
    """An approved grant that has neither expired nor been revoked: `identity.registry` is the only one who says so."""

    id: str
    agent: str
    scope: events.Scope
    approver: str
    expires_at_us: int  # 0 = never


@dataclass(frozen=True, slots=True)
class Authority:
    """What one agent may do on one connection at one moment."""

    agent: str
    connection: str
    search_path: tuple[str, ...]  # as pinned by the gateway
    grants: tuple[LiveGrant, ...]


@dataclass(frozen=True, slots=True)
class Allow:
    rule: str  # "select public.orders by g-1"
    grants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deny:
    sqlstate: str
    rule: str
    reason: str  # one ASCII sentence that an agent can act on


Decision: TypeAlias = Allow | Deny


def decide(
    statement: Statement, authority: Authority, prepared: Mapping[str, Statement], callable_names: frozenset[str]
) -> Decision:
    """`prepared` are the session's statements by name; `callable_names` the functions of the database outside pg_catalog."""
    return Deny("42501", "no rule", "no statement is allowed yet")
