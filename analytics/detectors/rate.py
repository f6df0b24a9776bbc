"""Many more statements than an agent ever sends in ten minutes."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Role, Settings
from analytics.detectors.suspicion import Suspicion

NAME: Final = "rate"
STATEMENTS_MIN: Final = 100
FACTOR: Final = 2.5  # of the most it sent so far
SURPRISE_MIN: Final = 8.0
PERIODS_MIN: Final = 24  # windows with work in them, before they say what is usual


def counted(agent: Agent, role: Role, settings: Settings) -> Suspicion | None:
    level, whose = agent.rate, "it"
    if not agent.ripe(settings) or level.seen < PERIODS_MIN:
        level, whose = role.rate, "its role"
        if role.agents < settings.peers_min or level.seen < 10 * PERIODS_MIN:
            return None
    found = level.burst(agent.window.statements, STATEMENTS_MIN, FACTOR)
    if found < SURPRISE_MIN or agent.loop_us >= agent.window.begin_us:
        return None  # a loop is told as a loop
    return Suspicion(
        NAME,
        "warning",
        f"it sent {agent.window.statements} statements in ten minutes; {whose} had sent {level.peak:.0f} at most",
        (
            ("statements_per_ten_minutes", agent.window.statements),
            ("usual_statements_per_ten_minutes", round(level.mean, 1)),
            ("most_statements_per_ten_minutes", round(level.peak, 1)),
            ("surprise_log10", round(found, 1)),
        ),
    )
