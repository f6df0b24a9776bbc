"""The folders beside this package -> nothing, or which of them Python would take from elsewhere.

`identity`, `gateway` and the others are names that other packages on the registry bear too. One of those in the same environment
would decide who may read a database.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

NAMES: Final = ("ingest", "identity", "gateway", "analytics", "dashboards")


class PartFromElsewhere(Exception):
    """A part of pgwarden would come from a stranger's package."""


def check(names: Sequence[str] = NAMES, house: Path | None = None) -> None:
    """
    Raises:
        PartFromElsewhere: Says which, from where, and what to do.
    """
    house = (house or Path(__file__).parent.parent).resolve()
    strangers: list[str] = []
    for name in names:
        place = _place(name)
        if place is None:
            strangers.append(f"{name} is missing")
        elif place.resolve() != house / name / "__init__.py":
            strangers.append(f"{name} comes from {place}")
    if strangers:
        raise PartFromElsewhere(
            f"{'; '.join(strangers)}, but the parts of this pgwarden are in {house};"
            " install pgwarden in an environment of its own: python -m venv .venv && .venv/bin/pip install pgwarden"
        )


def _place(name: str) -> Path | None:
    try:
        specification = importlib.util.find_spec(name)  # of what is loaded already, if it is
    except (ImportError, ValueError):
        return None
    if specification is None or specification.origin is None:
        return None
    return Path(specification.origin)
