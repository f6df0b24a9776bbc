"""A run of an agent comes back long after its last session ended: what was given for one run may have been kept."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Invocation, Settings
from analytics.detectors.suspicion import Suspicion, shown

NAME: Final = "ended invocation"
PAUSE_US: Final = 2 * 3_600_000_000  # a run that sleeps longer between two sessions is rare, and learned
INVOCATIONS_MAX: Final = 500


def opened(agent: Agent, invocation: str, at_us: int, settings: Settings) -> Suspicion | None:
    if not invocation:
        return None
    known = agent.invocations.pop(invocation, None) or Invocation()
    agent.invocations[invocation] = known  # the newest last
    if len(agent.invocations) > INVOCATIONS_MAX:
        del agent.invocations[next(iter(agent.invocations))]
    paused_us = at_us - known.over_us
    back = known.live == 0 and known.over_us > 0 and paused_us > PAUSE_US
    known.live += 1
    usual = any(other.reused for other in agent.invocations.values())
    if back:
        known.reused += 1
    if not back or usual or not agent.ripe(settings):
        return None
    hours = paused_us / 3_600_000_000
    return Suspicion(
        NAME,
        "warning",
        f"its run {shown(invocation)} opened a session {hours:.1f} hours after the last one had ended; its runs do not come back",
        (("pause_hours", round(hours, 1)), ("runs_known", len(agent.invocations))),
        invocation,
    )


def closed(agent: Agent, invocation: str, at_us: int) -> None:
    known = agent.invocations.get(invocation)
    if known is not None:
        known.live = max(0, known.live - 1)
        known.over_us = max(known.over_us, at_us)
