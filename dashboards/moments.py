"""What happened in a session, one row a moment."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from dashboards.answers import Moment, Session
from dashboards.ledger import Column, Detail, Fact, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.statements import OUTCOME_TONES, WHOLE
from dashboards.words import cut, duration, number

MOMENT_TONES: Final[dict[str, Tone]] = {
    "denied": "bad",
    "killed": "bad",
    "end ordered": "warn",
    "cancel requested": "warn",
    "lost": "warn",
}

MOMENT_COLUMNS: Final = (
    Column("Time", 136),
    Column("After opening", 106, "right"),
    Column("What", 124),
    Column("Statement, or what happened"),
    Column("Rows", 84, "right"),
    Column("Time taken", 96, "right"),
)


def after_us(moment: Moment, session: Session) -> int:
    """How long after the session's opening."""
    after = moment.at - session.opened_at if session.opened_at else timedelta()
    return max(0, after // timedelta(microseconds=1))


def moment_row(moment: Moment, session: Session) -> Row:
    asked = moment.kind in ("statement", "running", "denied")
    note = moment.reason if moment.kind == "denied" else moment.sqlstate if moment.outcome == "error" else ""
    told = f"{moment.text}{': ' if moment.text and moment.reason else ''}{moment.reason}"
    ran = moment.kind == "statement"
    return Row(
        id=f"{session.session}/{moment.execution}" if asked else f"{session.session}/{moment.kind}/{moment.at.timestamp()}",
        cells=(
            Time(moment.at, fine=True),
            Number(f"+{duration(after_us(moment, session))}"),
            moment_mark(moment),
            Sql(moment.text, note, below=True) if asked else Text(told, "faint"),
            Number(number(moment.rows)) if ran and moment.rows is not None else Number("–", "faint"),
            Number(duration(moment.duration_us)) if ran and moment.duration_us is not None else Number("–", "faint"),
        ),
        detail=Detail(text=cut(moment.text)[0], facts=moment_facts(moment), actions=(WHOLE,)) if asked else None,
        tone="bad" if moment.kind in ("denied", "killed") else "warn" if moment.outcome == "error" else "",
    )


def moment_mark(moment: Moment) -> Mark:
    if moment.kind == "statement":
        return Mark(moment.outcome, OUTCOME_TONES.get(moment.outcome, "warn"))
    return Mark("refused" if moment.kind == "denied" else moment.kind, MOMENT_TONES.get(moment.kind, "quiet"))


def moment_facts(moment: Moment) -> tuple[Fact, ...]:
    facts = (Fact("SQLSTATE", Mono(moment.sqlstate or "–")), Fact("Execution", Text(number(moment.execution))))
    return (Fact("Why", Text(moment.reason, "bad")), *facts) if moment.reason else facts
