"""What the three programs do between two connections: say why, wait, longer each time."""

from __future__ import annotations

import sys
from dataclasses import dataclass

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 10.0


@dataclass(slots=True)
class Backoff:
    seconds: float = FIRST_SECONDS

    def reset(self) -> None:
        self.seconds = FIRST_SECONDS

    def after(self, reason: str) -> float:
        """Say why there is no connection, and return how long to wait before the next attempt."""
        wait = self.seconds
        self.seconds = min(LONGEST_SECONDS, self.seconds * 2)
        say(f"no connection: {one_line(reason)}; trying again in {wait:g} s")
        return wait


def say(text: str) -> None:
    print(text, flush=True)
    sys.stdout.flush()


def one_line(text: str) -> str:
    """libpq's errors are paragraphs."""
    return " ".join(text.split())[:400]
