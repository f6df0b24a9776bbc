"""An agent works at an hour at which it never does, although it has worked long enough to know its hours."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import DAY_US, HOUR_US, Agent, Settings
from analytics.detectors.suspicion import Suspicion

NAME: Final = "unusual hours"
RARE: Final = 0.03  # of the days of its kind on which it worked within an hour of this
WEEKEND_DAYS_MIN: Final = 2
NEW_HOURS_MAX: Final = 1.5  # of late: who has no regular hours cannot leave them


def hour_began(agent: Agent, at_us: int, settings: Settings) -> Suspicion | None:
    """The first statement of an hour (UTC)."""
    days = at_us // DAY_US
    hour = at_us // HOUR_US % 24
    weekend = (days + 3) % 7 >= 5  # 1 January 1970 was a Thursday
    first = 24 if weekend else 0
    known = agent.weekdays[weekend]
    near = sum(agent.hours[first + (hour + step) % 24] for step in (-1, 0, 1))
    other = sum(agent.hours[24 - first + (hour + step) % 24] for step in (-1, 0, 1))
    enough = agent.days > settings.hours_days
    new_day = enough and weekend and known == 0 and agent.weekdays[0] >= settings.hours_days and _seen_weekend(agent, days)
    strange = enough and near <= RARE * known and other <= RARE * agent.weekdays[not weekend] and (known > 0 or weekend)
    agent.new_hours *= 0.86 ** max(0, days - agent.new_hours_day)
    agent.new_hours_day = max(days, agent.new_hours_day)
    regular = agent.new_hours < NEW_HOURS_MAX
    agent.hours[first + hour] += 1.0
    if near == 0.0 and other == 0.0 and agent.days > 2:
        agent.new_hours += 1.0
    if not (strange or new_day) or not regular:
        return None
    when = f"{'at a weekend' if new_day and not strange else 'at'} {hour:02}:00 UTC".replace("weekend ", "weekend, at ")
    return Suspicion(
        NAME,
        "info",
        f"it works {when}; in {agent.days} days of work it had not",
        (("days_of_history", agent.days), ("hour_utc", hour)),
    )


def _seen_weekend(agent: Agent, days: int) -> bool:
    """Whether a whole weekend passed since it began, on which it did not work."""
    return days - agent.first_us // DAY_US >= 9
