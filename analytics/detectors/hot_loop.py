"""The same statement over and over, far faster than ever: an agent that has gone wrong, whether it fails or not."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings
from analytics.detectors.suspicion import Suspicion

NAME: Final = "hot loop"
REPEATS_MIN: Final = 60  # a minute
FACTOR: Final = 4.0  # of the most repeated statement so far
REPEATS_UNKNOWN_MIN: Final = 600  # of an agent of which little is known: ten a second are no person's and hardly a plan
SURPRISE_MIN: Final = 10.0
FAILURES_MIN: Final = 20  # a minute, of one statement, nearly always failing
FAILURES_FACTOR: Final = 2.0
CRITICAL: Final = 3_000  # a minute
PERIODS_MIN: Final = 30  # minutes with work in them


def repeated(agent: Agent, fingerprint: str, times: int, settings: Settings) -> Suspicion | None:
    ripe = agent.days > 1 and agent.repeats.seen >= PERIODS_MIN
    found = agent.repeats.burst(times, REPEATS_MIN if ripe else REPEATS_UNKNOWN_MIN, FACTOR if ripe else 1.0)
    if found < SURPRISE_MIN:
        return None
    return _said(agent, fingerprint, times, "", found)


def failed(agent: Agent, fingerprint: str, times: int, settings: Settings) -> Suspicion | None:
    if times * 10 < agent.in_minute.get(fingerprint, times) * 9:
        return None
    found = agent.failures.burst(times, FAILURES_MIN, FAILURES_FACTOR)
    if found < SURPRISE_MIN:
        return None
    return _said(agent, fingerprint, times, ", and it nearly always fails", found)


def _said(agent: Agent, fingerprint: str, times: int, how: str, found: float) -> Suspicion:
    return Suspicion(
        NAME,
        "critical" if times >= CRITICAL else "warning",
        f"it sent the same statement {times} times within a minute{how}; no statement of it had come"
        f" more than {agent.repeats.peak:.0f} times a minute",
        (
            ("repeats_per_minute", times),
            ("most_repeats_per_minute", round(agent.repeats.peak, 1)),
            ("usual_repeats_per_minute", round(agent.repeats.mean, 2)),
            ("surprise_log10", round(found, 1)),
        ),
        fingerprint,
    )
