"""How looks at the record are counted, apart from what records them: the command line reads defaults, and loads no events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LooksSettings:
    repeat_seconds: float = 60.0  # the same look within this is counted, not recorded again: a screen asks every 2 s
    repeats_max: int = 4096  # different looks that are remembered; the oldest is told early
    parameters_bytes_max: int = 64 * 2**10  # as much SQL as is run; what is longer is cut
    record_seconds_max: float = 5.0  # that an answer waits for its record
