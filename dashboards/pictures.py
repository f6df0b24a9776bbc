"""Pictures for what a number alone would not show: a chart of an answer, the hours of a week, the four times of a session's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from dashboards import ledger
from dashboards.answers import Kill
from dashboards.ledger import Json
from dashboards.words import duration, number, one_line

POINTS_MAX: Final = 400  # of one series: more would be thinner than a pixel
SERIES_MAX: Final = 5  # as many as can be told apart
_LABEL_CHARACTERS_MAX: Final = 80
HOURS_OF_A_WEEK: Final = 168


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    values: tuple[float | None, ...]  # one a label


def chart(labels: Sequence[str], series: Sequence[Series], form: Literal["bars", "lines"], *, key: str, title: str = "") -> None:
    """At most POINTS_MAX labels and SERIES_MAX series are drawn: the caller says what is left off."""
    drawn = [Series(each.name, each.values[:POINTS_MAX]) for each in series[:SERIES_MAX]]
    values = [value for each in drawn for value in each.values if value is not None]
    least, most = min(values, default=0.0), max(values, default=0.0)
    items: list[Json] = [
        {
            "name": _label(each.name),
            "values": list(each.values),
            "shown": ["–" if value is None else number(value) for value in each.values],
        }
        for each in drawn
    ]
    ledger.draw(
        {
            "part": "chart",
            "title": title,
            "form": form,
            "labels": [_label(label) for label in labels[:POINTS_MAX]],
            "series": items,
            "least": least,
            "most": most,
            "range": f"from {number(min(0.0, least))} to {number(most)}",
            "label": f"Chart of {', '.join(_label(each.name) for each in drawn)} along {len(labels[:POINTS_MAX])} values",
        },
        key,
    )


def _label(text: str) -> str:
    return one_line(text[:_LABEL_CHARACTERS_MAX])


def hours(counts: Sequence[int], label: str, *, key: str, title: str = "") -> None:
    """`counts` of the 168 hours of a week in UTC, Monday 0:00 first; the browser turns them to its own zone."""
    shown: list[Json] = list(counts)
    ledger.draw(
        {"part": "hours", "title": title, "counts": shown, "most": max(counts, default=0), "label": label},
        key,
    )


def ending(kill: Kill, *, key: str) -> None:
    """From the request to the proof: PostgreSQL's own list of processes no longer held the backend."""
    times = (
        ("End requested", kill.requested_at, "–"),
        ("Decided", kill.decided_at, "–"),
        ("Client closed", kill.client_closed_at, "–"),
        ("Backend gone", kill.backend_gone_at, "not proven: look at pg_stat_activity"),
    )
    moments: list[Json] = [
        {
            "label": label,
            "at": None if at is None else at.timestamp() * 1000,
            "none": none,
            "after": after(kill.requested_at, at) if place else (one_line(kill.cause) or "–"),
        }
        for place, (label, at, none) in enumerate(times)
    ]
    ledger.draw({"part": "ending", "title": "How it ended", "moments": moments, "proven": kill.backend_gone_at is not None}, key)


def after(begin: datetime | None, at: datetime | None) -> str:
    """`+42.0 ms`; nothing where either time is missing."""
    if begin is None or at is None:
        return ""
    return f"+{duration(max(0, int((at - begin).total_seconds() * 1_000_000)))}"
