"""In comes the time of now; out comes the time at which a throttled agent's next statement may go on."""

from __future__ import annotations

from typing import Final

MINUTE_US: Final = 60_000_000


class Pace:
    """Of one agent, for all of its sessions at this gateway: statements go on evenly spaced, in the order in which they ask.

    A session asks once for a statement and has one statement waiting at most, so no more wait than there are sessions.
    """

    def __init__(self, per_minute: int) -> None:
        self._interval_us = MINUTE_US // per_minute
        self._next_us = 0

    def change(self, per_minute: int) -> None:
        self._interval_us = MINUTE_US // per_minute

    def slot(self, mono_us: int) -> int:
        at_us = max(mono_us, self._next_us)
        self._next_us = at_us + self._interval_us
        return at_us
