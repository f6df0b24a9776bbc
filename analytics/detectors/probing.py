"""An agent tries what it may not, or what is not there: name after name, or the catalogs. Somebody looks around."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings
from analytics.detectors.suspicion import Suspicion, listed

NAME: Final = "probing"
# insufficient_privilege, undefined_table, _column, _function, _object, invalid_schema_name, invalid_catalog_name
SQLSTATES: Final = frozenset({"42501", "42P01", "42703", "42883", "42704", "3F000", "3D000"})
TARGETS_MIN: Final = 4  # different ones, in an hour
FACTOR: Final = 1.5  # of the most refusals so far
SURPRISE_MIN: Final = 4.0
CATALOGS: Final = ("pg_catalog.", "information_schema.", "pg_")


def tried(agent: Agent, target: str, settings: Settings) -> Suspicion | None:
    """`target`: the table or shape that was refused, was not there, or is a catalog that it never asked before."""
    agent.refused += 1
    if len(agent.targets) < settings.targets_max:
        agent.targets[target] = None
    targets = len(agent.targets)
    if targets < TARGETS_MIN:
        return None
    found = agent.refusals.burst(agent.refused, TARGETS_MIN, FACTOR, 0.1)
    if found < SURPRISE_MIN:
        return None
    names = [name for name in agent.targets if name]
    return Suspicion(
        NAME,
        "critical" if targets >= 3 * TARGETS_MIN else "warning",
        f"within an hour it was refused, or looked in vain for, {targets} different things: {listed(names)}",
        (
            ("refusals_an_hour", agent.refused),
            ("different_targets", targets),
            ("usual_refusals_an_hour", round(agent.refusals.mean, 2)),
            ("surprise_log10", round(found, 1)),
        ),
    )
