"""An agent that only read begins to write, or to change definitions."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Role, Settings, Shape, count
from analytics.detectors.suspicion import Suspicion, listed

NAME: Final = "new operation"
HARMLESS: Final = frozenset({"", "control", "select"})  # what everybody does


def operation_of(verbs: tuple[str, ...]) -> str:
    verb = verbs[0] if verbs else ""
    if verb in ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "COPY", "CALL"):
        return verb.lower()
    if verb.startswith(("CREATE", "ALTER", "DROP", "GRANT", "REVOKE", "COMMENT", "REFRESH")):
        return "ddl"
    return "control" if verb else ""


def defined(agent: Agent, role: Role, shape: Shape, day: int, settings: Settings) -> Suspicion | None:
    known = shape.operation in agent.operations
    agent.operations[shape.operation] = day
    if known:
        return None
    strange = shape.operation not in HARMLESS and not role.knows(role.operations, shape.operation, settings)
    count(role.operations, shape.operation, settings.names_max)
    if not strange or not agent.ripe(settings):
        return None
    on = f" on {listed(list(shape.relations))}" if shape.relations else ""
    return Suspicion(
        NAME,
        "critical" if shape.operation in ("ddl", "truncate") else "warning",
        f"it used {shape.operation.upper()}{on}; in {agent.days} days of work it had not used this operation",
        (("days_of_history", agent.days),),
        shape.operation,
    )
