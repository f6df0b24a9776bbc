"""The machine's two clocks, in microseconds."""

from __future__ import annotations

import time


def now_us() -> int:
    """Wall clock: for what is recorded. It may be set, and differs from machine to machine."""
    return time.time_ns() // 1_000


def mono_us() -> int:
    """CLOCK_MONOTONIC: for how long something takes. Nobody sets it, and all processes of a machine share it."""
    return time.monotonic_ns() // 1_000
