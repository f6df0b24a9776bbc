"""What a detector says: not yet a finding, for the same may have been said a minute ago."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Suspicion:
    detector: str
    severity: Severity
    summary: str  # one sentence; names from outside have gone through `shown`
    numbers: tuple[tuple[str, float], ...]  # each with its unit last in the name
    subject: str = ""  # what it is about, where an agent may be suspected of the same in two ways at once


def shown(name: str) -> str:
    """A name that an agent chose, fit for a sentence: quoted, escaped and short."""
    return json.dumps(name[:63])


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more
