"""A statement that changes every row of a table, or reads a large one whole, of a kind that this agent never sent."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings, Shape
from analytics.detectors.suspicion import Suspicion, listed

NAME: Final = "unbounded statement"
CHANGES: Final = frozenset({"update", "delete", "truncate", "merge"})
READ_ROWS_MIN: Final = 10_000
READ_FACTOR: Final = 3.0  # of the largest result so far
CHANGED_ROWS_MIN: Final = 100  # of an agent whose history is short: an empty table may be emptied
CRITICAL_ROWS: Final = 1_000


def finished(agent: Agent, shape: Shape, rows: int, day: int, settings: Settings) -> Suspicion | None:
    """An execution that went well."""
    peak = agent.read_peak
    if rows > peak:
        agent.read_peak = float(rows)
    if not shape.unbounded:
        return None
    known = shape.fingerprint in agent.unbounded
    if known or len(agent.unbounded) < settings.names_max:
        agent.unbounded[shape.fingerprint] = day
    if shape.operation in CHANGES:
        strange = not known and (agent.ripe(settings) or rows >= CHANGED_ROWS_MIN)
        what = f"a {shape.operation.upper()} without a condition"
    else:
        strange = agent.ripe(settings) and rows >= READ_ROWS_MIN and rows > READ_FACTOR * peak
        what = "a SELECT without condition or limit"
    if not strange:
        return None
    changes = shape.operation in CHANGES
    return Suspicion(
        NAME,
        "critical" if changes and (rows >= CRITICAL_ROWS or shape.operation == "truncate") else "warning",
        f"it ran {what} on {listed(list(shape.relations))}, of {rows} rows, as it had never done",
        (("rows", rows), ("largest_result_rows", round(peak))),
        shape.fingerprint,
    )
