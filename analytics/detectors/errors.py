"""Many more failing statements than an agent usually has. What it was refused, or looked for in vain, is `probing`'s."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings
from analytics.detectors.suspicion import Suspicion

NAME: Final = "errors"
ERRORS_MIN: Final = 8  # in ten minutes
FACTOR: Final = 2.0
SURPRISE_MIN: Final = 5.0


def failed(agent: Agent, settings: Settings) -> Suspicion | None:
    found = agent.errors.burst(agent.window.errors, ERRORS_MIN, FACTOR)
    if found < SURPRISE_MIN or not agent.ripe(settings) or agent.loop_us >= agent.window.begin_us:
        return None
    return Suspicion(
        NAME,
        "info" if agent.window.errors * 4 < agent.window.statements else "warning",
        f"{agent.window.errors} of its statements failed within ten minutes; it had been {agent.errors.peak:.0f} at most",
        (
            ("errors_per_ten_minutes", agent.window.errors),
            ("statements_per_ten_minutes", agent.window.statements),
            ("usual_errors_per_ten_minutes", round(agent.errors.mean, 2)),
            ("surprise_log10", round(found, 1)),
        ),
    )
