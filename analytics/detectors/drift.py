"""An agent's days grow, each a little busier than what it used to do: no single one is odd. ADWIN's test on daily figures."""

from __future__ import annotations

import math
from typing import Final

from analytics.detectors.agent import Agent
from analytics.detectors.suspicion import Suspicion

NAME: Final = "drift"
DAYS_MAX: Final = 42
OLD_DAYS_MIN: Final = 6
NEW_DAYS: Final = (2, 3, 5)
RATIO_MIN: Final = 2.0  # less is growth
CONFIDENCE: Final = math.log(2 / 0.001)


def day_over(agent: Agent) -> Suspicion | None:
    """A day on which it worked."""
    agent.daily.append((math.log1p(agent.today_statements), math.log1p(agent.today_rows)))
    del agent.daily[:-DAYS_MAX]
    for index, what in ((0, "statements"), (1, "rows")):
        values = [day[index] for day in agent.daily]
        for recent in NEW_DAYS:
            old, new = values[:-recent], values[-recent:]
            if len(old) < OLD_DAYS_MIN:
                continue
            before, after = sum(old) / len(old), sum(new) / recent
            ratio = math.exp(after - before)
            variance = sum((value - before) ** 2 for value in old) / len(old)
            # Bifet and Gavaldà 2007, ADWIN §3: the cut, with the harmonic mean of the two lengths.
            length = 1 / (1 / len(old) + 1 / recent)
            cut = math.sqrt(2 / length * max(variance, 0.01) * CONFIDENCE) + 2 / (3 * length) * CONFIDENCE * 0.05
            if ratio >= RATIO_MIN and after - before > cut and min(new) > before + math.log(RATIO_MIN) / 2:
                usual = math.expm1(before)
                return Suspicion(
                    NAME,
                    "info",
                    f"its last {recent} days had {ratio:.1f} times as many {what} as the {len(old)} before",
                    ((f"usual_{what}_a_day", round(usual, 1)), ("ratio", round(ratio, 2)), ("days", recent)),
                    what,
                )
    return None
