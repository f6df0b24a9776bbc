"""An agent reads or writes a table that it never touched, and that others of its role do not touch either."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Role, Settings, Shape, count
from analytics.detectors.statistics import surprise
from analytics.detectors.suspicion import Suspicion, listed

NAME: Final = "new table"
SURPRISE_MIN: Final = 1.3  # two tables in a day, of an agent that has taken up none lately: expected 0.05 a day


def defined(agent: Agent, role: Role, shape: Shape, day: int, settings: Settings) -> Suspicion | None:
    new = [name for name in shape.relations if agent.tables.is_new(name, day, settings.names_max)]
    if not new:
        return None
    strange = [name for name in new if not role.knows(role.tables, name, settings)]
    for name in new:
        count(role.tables, name, 4 * settings.names_max)
    expected = max(0.05, agent.tables.expected(day))
    # Before it is ripe, what an agent does is judged by its role alone, once that is known.
    judged = agent.ripe(settings) or role.agents >= 2 * settings.peers_min
    if agent.days > 1:  # on its first day everything is new
        for _ in strange:
            agent.tables.took_up(day)
    agent.new_tables += len(strange)
    if not strange or not judged or surprise(agent.new_tables, expected) < SURPRISE_MIN:
        return None
    whose = "it or others of its role" if role.agents > 1 else "it"
    return Suspicion(
        NAME,
        "warning",
        f"it used {listed(strange)}, which {whose} had not used before",
        (
            ("new_tables_today", agent.new_tables),
            ("expected_new_tables_a_day", round(expected, 3)),
            ("known_tables", len(agent.tables.names)),
        ),
    )
