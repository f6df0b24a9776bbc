"""Page "SQL": one SELECT on a copy of the tables, its answer as rows or as a picture, and what was asked before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
import streamlit as st

from dashboards import exports, ledger, pictures, reach
from dashboards.answers import KnownColumn, SqlAnswer, SqlColumn
from dashboards.api_client import ApiRefused, ApiTrouble
from dashboards.ledger import Banner, Cell, Column, Lines, Number, Row, Sql, Text, Time
from dashboards.pictures import Series
from dashboards.sql_examples import EXAMPLES
from dashboards.words import number, plural

SQL_CHARACTERS_MAX: Final = 65_536  # the API's own bound, in bytes
ROWS_SHOWN: Final = 200  # of an answer; an export has all of it
HISTORY_MAX: Final = 20
NUMERIC: Final = ("BIGINT", "INTEGER", "HUGEINT", "DOUBLE", "FLOAT", "DECIMAL", "SMALLINT", "TINYINT", "UBIGINT", "UINTEGER")
_TEXT: Final = "sql text"
_ANSWER: Final = "sql.answer"
_HISTORY: Final = "sql.history"
_SCHEMA: Final = "sql.schema"
_NEXT: Final = "sql.next"  # taken from the history, for the next run


@dataclass(frozen=True, slots=True)
class Asked:
    sql: str
    answer: SqlAnswer
    seconds: float
    at: datetime


def page() -> None:
    ledger.heading("SQL", key="page", below="One SELECT at a time, read only, on a copy of the tables that is moments old.")
    with st.container(key="beside-sql"):
        left, right = st.columns([7, 3], gap="medium")
    with left:
        _ask()
    with right:
        _schema()
        _history()


def _ask() -> None:
    again = st.session_state.pop(_NEXT, None)
    if isinstance(again, Asked):
        st.session_state[_TEXT], st.session_state[_ANSWER] = again.sql, again
    st.selectbox(
        "Worked example", ("", *EXAMPLES), key="example", on_change=_take_example, format_func=lambda name: name or "choose one"
    )
    with st.form("ask", border=False):
        sql = st.text_area("SELECT", key=_TEXT, height=170, max_chars=SQL_CHARACTERS_MAX, placeholder="select * from agents")
        run = st.form_submit_button("Run", type="primary", help="Ctrl+Enter")
    if run and sql.strip():
        _run(sql)
    asked = st.session_state.get(_ANSWER)
    if isinstance(asked, Asked):
        _show(asked)
    elif isinstance(asked, Banner):
        ledger.banners([asked], key="refused")


def _take_example() -> None:
    st.session_state[_TEXT] = EXAMPLES.get(st.session_state["example"], "")


def _run(sql: str) -> None:
    began = time.monotonic()
    try:
        answer = reach.client().sql(sql)
    except ApiRefused as error:
        st.session_state[_ANSWER] = Banner("warn", "Not answered.", str(error))
        return
    except ApiTrouble as error:
        st.session_state[_ANSWER] = Banner("bad", str(error), error.remedy)
        return
    asked = Asked(sql, answer, time.monotonic() - began, datetime.now(UTC))
    st.session_state[_ANSWER] = asked
    earlier = [each for each in _asked_before() if each.sql != sql]
    st.session_state[_HISTORY] = [asked, *earlier][:HISTORY_MAX]


def _asked_before() -> list[Asked]:
    kept = st.session_state.get(_HISTORY, [])
    return kept if isinstance(kept, list) else []


# -- the answer ------------------------------------------------------------------------------------------------------------------


def _show(asked: Asked) -> None:
    answer = asked.answer
    with st.container(horizontal=True, vertical_alignment="center", key="answer bar"):
        form = st.segmented_control("Show as", ("Table", "Chart"), default="Table", key="shown as", label_visibility="collapsed")
        st.caption(summary(asked))
    exports.draw(asked.sql, "answer", key="exports")
    if form == "Chart":
        _chart(answer)
        return
    ledger.table(
        [Column(column.name[:60], 0, "right" if numeric(column) else "left", column.type) for column in answer.columns],
        rows(answer, ROWS_SHOWN),
        key="answer",
        title="Answer",
        empty="No row fits. Nothing is wrong with the question.",
        height_pixels=520,
    )


def summary(asked: Asked) -> str:
    answer = asked.answer
    shown = f", the first {number(ROWS_SHOWN)} shown" if len(answer.rows) > ROWS_SHOWN else ""
    cut = " There were more than the limits let through: narrow the question." if answer.truncated else ""
    return f"{plural(len(answer.rows), 'row')}{shown}, {asked.seconds:.2f} s.{cut}"


def numeric(column: SqlColumn) -> bool:
    return column.type.startswith(NUMERIC) and not column.type.endswith("]")


def rows(answer: SqlAnswer, most: int) -> list[Row]:
    return [
        Row(id=str(place), cells=tuple(cell(value, column) for value, column in zip(values, answer.columns, strict=False)))
        for place, values in enumerate(answer.rows[:most])
    ]


def cell(value: object, column: SqlColumn) -> Cell:
    match value:
        case None:
            return Text("null", "faint")
        case bool():
            return Text("true" if value else "false")
        case int():
            return Number(number(value))
        case float():
            return Number(f"{value:,.6g}")
        case str() if column.type.startswith("TIMESTAMP"):
            at = _time(value)
            return Text(value) if at is None else Time(at, fine=True)
        case str():
            return Sql(value)
        case _:
            return Sql(msgspec.json.encode(value).decode())


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _chart(answer: SqlAnswer) -> None:
    names = [column.name for column in answer.columns]
    figures = [place for place, column in enumerate(answer.columns) if numeric(column)]
    if not figures or not answer.rows:
        missing = Banner("warn", "Nothing to draw.", "A chart needs a row and a column of numbers, such as a count.")
        ledger.banners([missing], key="no chart")
        return
    with st.container(key="filters"):
        columns = st.columns([1, 2, 1], gap="small")
        along = columns[0].selectbox("Along", range(len(names)), format_func=lambda place: names[place], key="along")
        drawn = columns[1].multiselect(
            "Draw",
            figures,
            default=[place for place in figures if place != along][:2] or figures[:1],
            format_func=lambda place: names[place],
            max_selections=pictures.SERIES_MAX,
            key=f"draw {' '.join(names)[:200]}",
        )
        form = columns[2].selectbox("As", ("bars", "lines"), key="form")
    left_off = len(answer.rows) - pictures.POINTS_MAX
    series = [Series(names[place], tuple(_figure(values[place]) for values in answer.rows)) for place in drawn]
    labels = [_label(values[along]) for values in answer.rows]
    pictures.chart(labels, series, "lines" if form == "lines" else "bars", key="chart")
    if left_off > 0:
        st.caption(f"{number(left_off)} more rows are not drawn.")


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _label(value: object) -> str:
    return "null" if value is None else str(value)


# -- beside it -------------------------------------------------------------------------------------------------------------------


def _known() -> tuple[KnownColumn, ...]:
    """All that can be asked, once for each opened page. Not by SQL: whoever presses Run meanwhile would be told that theirs waits.

    Raises:
        ApiTrouble: It did not come.
    """
    kept = st.session_state.get(_SCHEMA)
    if not isinstance(kept, tuple):
        kept = st.session_state[_SCHEMA] = reach.client().columns()
    return kept


def _schema() -> None:
    try:
        known = _known()
    except ApiTrouble as error:
        reach.trouble(error, "schema")
        return
    tables = sorted({column.table_name for column in known})
    first = tables.index("statements") if "statements" in tables else 0
    table = st.selectbox("Tables", tables, index=first, key="table")
    ledger.table(
        (Column("Column"), Column("Type", 120)),
        [
            Row(id=column.column_name, cells=(Sql(column.column_name), Text(column.data_type, "faint")))
            for column in known
            if column.table_name == table
        ],
        key="schema",
        empty="The API knows no such table.",
        height_pixels=300,
    )


def _history() -> None:
    before: Sequence[Asked] = _asked_before()
    pressed = ledger.table(
        (Column("Question"), Column("Rows", 64, "right")),
        [
            Row(str(place), (Lines(" ".join(each.sql.split()), f"{each.seconds:.2f} s"), Number(number(len(each.answer.rows)))))
            for place, each in enumerate(before)
        ],
        key="history",
        title="Asked in this session",
        empty="What you ask stands here until you close this page.",
        height_pixels=240,
        selectable=bool(before),
    )
    if pressed is not None:
        st.session_state[_NEXT] = before[int(pressed.id)]
        st.rerun()
