"""An agent whose statements are few in kind begins to send many new ones within an hour."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Role, Settings, Shape, count
from analytics.detectors.statistics import surprise
from analytics.detectors.suspicion import Suspicion

NAME: Final = "new statements"
SHAPES_MIN: Final = 5  # in an hour
SURPRISE_MIN: Final = 4.0


def defined(agent: Agent, role: Role, shape: Shape, day: int, settings: Settings) -> Suspicion | None:
    if not shape.fingerprint or not agent.shapes.is_new(shape.fingerprint, day, settings.names_max):
        return None
    strange = not role.knows(role.shapes, shape.fingerprint, settings)
    count(role.shapes, shape.fingerprint, 4 * settings.names_max)
    if not strange:
        return None
    expected = max(0.3, agent.shapes.expected(day) / 4)  # a day's new ones come in a few of its hours
    agent.new_shapes += 1
    if agent.days > 1:  # on its first day everything is new
        agent.shapes.took_up(day)
    if agent.new_shapes < SHAPES_MIN or not agent.ripe(settings) or surprise(agent.new_shapes, expected) < SURPRISE_MIN:
        return None
    return Suspicion(
        NAME,
        "warning",
        f"it sent {agent.new_shapes} kinds of statement within an hour that it had never sent before",
        (("new_statements_an_hour", agent.new_shapes), ("expected_new_statements_an_hour", round(expected, 3))),
    )
