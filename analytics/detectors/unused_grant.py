"""A grant that nobody has used for a month: what an agent may do and does not is what its thief may do."""

from __future__ import annotations

from typing import Final

import msgspec

from analytics.detectors.agent import DAY_US, Settings
from analytics.detectors.suspicion import Suspicion, shown

NAME: Final = "unused grant"


class Held(msgspec.Struct, array_like=True):
    agent: str
    since_us: int  # approved, or used last
    used: bool
    told: bool = False


def day_over(grant: str, held: Held, now_us: int, settings: Settings) -> Suspicion | None:
    days = (now_us - held.since_us) // DAY_US
    if held.told or days < settings.unused_grant_days:
        return None
    held.told = True
    how = "has not been used" if held.used else "was never used"
    return Suspicion(
        NAME,
        "info",
        f"its grant {shown(grant)} {how} for {days} days; take it back, or retire the agent",
        (("unused_days", days),),
        grant,
    )
