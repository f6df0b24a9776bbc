"""How surprising a count is, and what is usual: estimates that forget, a few numbers each."""

from __future__ import annotations

import math
from typing import Final

import msgspec

_LN10: Final = math.log(10)


def surprise(count: float, expected: float, dispersion: float = 1.0) -> float:
    """-log10 of a bound on the chance of so many where `expected` are usual; 0 where there are no more than that.

    Chernoff's bound of the Poisson tail, exp(-(k ln(k/l) - (k - l))); `dispersion` (variance over mean) widens it for counts that
    come in clusters, as those of a negative binomial do.
    """
    expected = max(expected, 1e-6)
    if count <= expected:
        return 0.0
    return (count * math.log(count / expected) - (count - expected)) / (max(1.0, dispersion) * _LN10)


class Level(msgspec.Struct, array_like=True):
    """Mean, variance and highest value of a quantity, learned from one value a period and forgotten over some hundred."""

    mean: float = 0.0
    variance: float = 0.0
    peak: float = 0.0
    seen: int = 0  # periods

    def learn(self, value: float, memory: int = 200) -> None:
        self.seen += 1
        share = 1.0 / min(self.seen, memory)
        step = value - self.mean
        self.mean += share * step
        self.variance = (1.0 - share) * (self.variance + share * step * step)
        # Half of it is forgotten after some seven memories without its like.
        self.peak = max(value, self.peak * (1.0 - 0.1 / memory))

    @property
    def dispersion(self) -> float:
        return max(1.0, self.variance / self.mean) if self.mean > 0 else 1.0

    def burst(self, value: float, floor: float, factor: float, mean_min: float = 0.5) -> float:
        """How surprising it is, where it is beyond `floor` and beyond `factor` times the highest so far; else 0."""
        if value < floor or value < factor * self.peak:
            return 0.0
        return surprise(value, max(self.mean, mean_min), self.dispersion)


class Habit(msgspec.Struct, array_like=True):
    """Names that an agent uses, each with the day on which it did last, and how often it takes up new ones."""

    names: dict[str, int] = msgspec.field(default_factory=dict)
    fresh: float = 0.0  # new names, forgotten over a week
    fresh_day: int = 0

    def is_new(self, name: str, day: int, names_max: int) -> bool:
        known = name in self.names
        self.names[name] = day
        if not known and len(self.names) > names_max:
            del self.names[min(self.names, key=self.names.__getitem__)]
        return not known

    def expected(self, day: int) -> float:
        """New names a day, as of late."""
        return self.fresh * 0.86 ** max(0, day - self.fresh_day) / 7.0

    def took_up(self, day: int) -> None:
        self.fresh = self.fresh * 0.86 ** max(0, day - self.fresh_day) + 1.0
        self.fresh_day = max(day, self.fresh_day)

    def forget(self, day: int, days_max: int) -> None:
        self.names = {name: last for name, last in self.names.items() if day - last <= days_max}
