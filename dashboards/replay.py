"""A session again, moment by moment: in comes its timeline, out comes a slider over it that plays by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dashboards import ledger
from dashboards.answers import Moment, Session
from dashboards.ledger import Fact, Json, Mono, Number, Text, Time
from dashboards.moments import after_us, moment_mark
from dashboards.words import cut, duration, number, visible

TEXT_CHARACTERS_MAX: Final = 4000  # of one statement; its row below has more, and leads to the whole


def draw(session: Session, moments: Sequence[Moment], *, key: str, step: str = "") -> None:
    """`step` is the moment that the page's address names, counted from 1; anything else is the first."""
    begin = session.opened_at or (moments[0].at if moments else None)
    last = max((moment.at for moment in moments), default=begin)
    span_us = max(1, session.duration_us or 0, int((last - begin).total_seconds() * 1_000_000) if begin and last else 0)
    items: list[Json] = [_moment(moment, session, span_us) for moment in moments]
    place = int(step) - 1 if step.isascii() and step.isdigit() and len(step) < 10 else 0
    ledger.draw(
        {
            "part": "replay",
            "title": "Replay",
            "label": "Replay of this session",
            "moments": items,
            "place": place,
            "first": 1,
            "empty": "Nothing is recorded of this session here.",
        },
        key,
    )


def _moment(moment: Moment, session: Session, span_us: int) -> Json:
    mark = moment_mark(moment)
    after = after_us(moment, session)
    pairs = [Fact("Rows", Number(number(moment.rows)))] if moment.kind == "statement" and moment.rows is not None else []
    if moment.duration_us is not None:
        pairs.append(Fact("Took", Number(duration(moment.duration_us))))
    if moment.reason:
        pairs.append(Fact("Why", Text(moment.reason, "bad" if moment.kind == "denied" else "")))
    if moment.sqlstate:
        pairs.append(Fact("SQLSTATE", Mono(moment.sqlstate)))
    tone = mark.tone if mark.tone in ("bad", "warn") else "quiet" if moment.kind in ("opened", "closed") else ""
    return {
        "kind": visible(mark.text),
        "mark": ledger.shown(mark),
        "time": ledger.shown(Time(moment.at, fine=True)),
        "after": f"+{duration(after)}",
        "share": min(1.0, after / span_us),
        "length": min(1.0, (moment.duration_us or 0) / span_us) if moment.kind == "statement" else 0.0,
        "tone": tone,
        "text": visible(cut(moment.text, TEXT_CHARACTERS_MAX)[0].strip("\r\n"), lines=True),
        "facts": [ledger.fact(pair) for pair in pairs],
    }
