"""The wall clock less CLOCK_BOOTTIME, in microseconds. Both run at one rate: their distance changes where somebody sets the clock.

Read anew each time it would differ by the time between the two readings, and what is read of a ring twice would bear two times.
"""

from __future__ import annotations

import time
from typing import Final

SET_US: Final = 10_000  # by less nobody sets a clock: NTP steps from 128 ms on, and slews below that
_READING_NS_MAX: Final = 1_000_000  # longer: this process lost its CPU between the readings


def wall_us(before: int) -> int:
    """`before`, what it was; 0 = not known. That again, unless the clock was set since."""
    begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    wall = time.time_ns()
    ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = wall // 1000 - (begun + ended) // 2000
    if before and (abs(now - before) < SET_US or ended - begun > _READING_NS_MAX):
        return before
    return now
