"""Many more rows than an agent ever takes out or puts in within ten minutes."""

from __future__ import annotations

import math
from typing import Final

from analytics.detectors.agent import Agent, Settings
from analytics.detectors.suspicion import Suspicion

NAME: Final = "volume"
ROWS_MIN: Final = 2_000
FACTOR: Final = 3.0  # of the most so far
RESULT_FACTOR: Final = 6.0  # of the largest single result
DEVIATIONS_MIN: Final = 3.0  # of log1p(rows) in a window
PERIODS_MIN: Final = 24


def finished(agent: Agent, rows: int, settings: Settings) -> Suspicion | None:
    """One execution that went well, of at least `ROWS_MIN` rows."""
    if rows < RESULT_FACTOR * agent.read_peak or not agent.ripe(settings) or agent.rows.seen < PERIODS_MIN:
        return None
    return Suspicion(
        NAME,
        "critical" if rows > 20 * max(agent.read_peak, 1_000.0) else "warning",
        f"one of its statements had {rows} rows; the largest had been {agent.read_peak:.0f}",
        (("rows", rows), ("largest_result_rows", round(agent.read_peak, 1))),
    )


def counted(agent: Agent, settings: Settings) -> Suspicion | None:
    rows = agent.window.rows
    if rows < ROWS_MIN or rows < FACTOR * agent.rows_peak or not agent.ripe(settings) or agent.rows.seen < PERIODS_MIN:
        return None
    deviations = (math.log1p(rows) - agent.rows.mean) / max(0.4, math.sqrt(agent.rows.variance))
    if deviations < DEVIATIONS_MIN:
        return None
    return Suspicion(
        NAME,
        "critical" if rows > 20 * max(agent.rows_peak, 1_000.0) else "warning",
        f"{rows} rows went through its sessions in ten minutes; it had been {agent.rows_peak:.0f} at most",
        (
            ("rows_per_ten_minutes", rows),
            ("most_rows_per_ten_minutes", round(agent.rows_peak, 1)),
            ("bytes_per_ten_minutes", agent.window.bytes),
            ("deviations", round(deviations, 1)),
        ),
    )
