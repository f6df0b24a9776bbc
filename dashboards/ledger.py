"""Tables, figures and banners for text that nobody may trust.

Streamlit's own text elements read Markdown (an image in it is a request to its host), so all that comes from events goes through
here: `words.visible` shows control characters, and ledger.js writes it with `textContent` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias

import streamlit as st

from dashboards.words import one_line, visible

Tone: TypeAlias = Literal["", "good", "warn", "bad", "quiet", "strong", "faint"]
UTC_WANTED: Final = "times in UTC"  # a widget's key: app.py draws it
CELL_CHARACTERS_MAX: Final = 400  # of one cell: no column is wider; the whole text is in the detail


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    tone: Tone = ""
    title: str = ""  # shown while the pointer rests on it


@dataclass(frozen=True, slots=True)
class Mono:
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Sql:
    text: str
    note: str = ""  # beside it, in words
    below: bool = False  # the note stands on a line of its own


@dataclass(frozen=True, slots=True)
class Number:
    text: str  # formatted, with its unit unless the column names it
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Time:
    at: datetime | None
    none: str = "–"
    fine: bool = False  # milliseconds instead of "4 s ago"


@dataclass(frozen=True, slots=True)
class Mark:
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Lines:
    text: str
    below: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Lines that wrap: the one cell that may be higher than its row."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    values: tuple[int, ...]
    refused: tuple[int, ...]  # of those values
    titles: tuple[str, ...]
    maximum: int
    label: str


Cell: TypeAlias = Text | Mono | Sql | Number | Time | Mark | Lines | Paragraph | Bars


@dataclass(frozen=True, slots=True)
class Column:
    label: str
    width: int = 0  # pixels; 0 shares what is left
    align: Literal["left", "right"] = "left"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    cell: Cell


@dataclass(frozen=True, slots=True)
class Detail:
    """What a row shows when it is pressed."""

    text: str = ""  # several lines, monospaced
    note: str = ""
    facts: tuple[Fact, ...] = ()
    actions: tuple[tuple[str, str], ...] = ()  # name, label


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    cells: tuple[Cell, ...]
    detail: Detail | None = None
    tone: Tone = ""
    selected: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    label: str
    value: str
    unit: str = ""
    hint: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Banner:
    tone: Literal["good", "warn", "bad"]
    title: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A press: `select` on a row, or one of a detail's actions."""

    name: str
    id: str


Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_FOLDER: Final = Path(__file__).parent
_mount = st.components.v2.component(
    "pgwarden_ledger",
    css=(_FOLDER / "ledger.css").read_text("utf-8"),
    # one module to the browser: ledger.js names the parts that the others draw
    js="".join((_FOLDER / name).read_text("utf-8") for name in ("cells.js", "pictures.js", "replay.js", "ledger.js")),
    isolate_styles=True,
)


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    key: str,
    empty: str,
    title: str = "",
    height_pixels: int = 0,
    selectable: bool = False,
    flash: bool = False,
) -> Action | None:
    """Draw rows; return what was pressed since the last run, once. `empty` says what to do when there are none."""
    data: dict[str, Json] = {
        "part": "table",
        "name": key,
        "title": title,
        "columns": [{"label": c.label, "width": c.width, "align": c.align, "title": c.title} for c in columns],
        "rows": [_row(row) for row in rows],
        "empty": empty,
        "height": height_pixels,
        "selectable": selectable,
        "flash": flash,
    }
    action = draw(data, key)
    if not isinstance(action, dict):
        return None
    name, row_id = action.get("name"), action.get("id")
    # The browser is a peer: a row that was not sent cannot be pressed.
    known = isinstance(name, str) and isinstance(row_id, str) and any(row.id == row_id for row in rows)
    return Action(str(name), str(row_id)) if known else None


def strip(figures: Sequence[Figure], *, key: str) -> None:
    items: list[Json] = [
        {"label": f.label, "value": f.value, "unit": f.unit, "hint": visible(f.hint), "tone": f.tone} for f in figures
    ]
    draw({"part": "strip", "items": items}, key)


def banners(items: Sequence[Banner], *, key: str) -> None:
    drawn: list[Json] = [{"tone": b.tone, "title": visible(b.title), "text": visible(b.text)} for b in items]
    draw({"part": "banners", "items": drawn}, key)


def heading(title: str, *, key: str, below: str = "", mark: Mark | None = None) -> None:
    drawn = None if mark is None else shown(mark)
    draw({"part": "heading", "title": visible(title), "below": visible(below), "mark": drawn}, key)


def facts(pairs: Sequence[Fact], *, key: str, title: str = "", wide: bool = False) -> None:
    """Names and values, one pair a line; two where there is room for it."""
    draw({"part": "facts", "title": title, "facts": [fact(pair) for pair in pairs], "wide": wide}, key)


def draw(data: dict[str, Json], key: str) -> object:
    """Mount one part of ledger.js; the caller made its texts visible, and trusts nothing that comes back."""
    result = _mount(
        key=key,
        data={**data, "now": datetime.now(UTC).timestamp() * 1000, "utc": in_utc()},
        on_action_change=_nothing,
        width="stretch",
        height="content",
    )
    return result.get("action")


def in_utc() -> bool:
    """Whether this viewer wants times in UTC instead of the browser's zone; UTC is at hand either way."""
    return st.session_state.get(UTC_WANTED, False) is True


def _nothing() -> None:
    """A trigger needs a callback to be declared; its value is read from the result."""


def _row(row: Row) -> Json:
    return {
        "id": row.id,
        "cells": [shown(cell) for cell in row.cells],
        "detail": None if row.detail is None else _detail(row.detail),
        "tone": row.tone,
        "selected": row.selected,
    }


def _detail(detail: Detail) -> Json:
    return {
        "text": visible(detail.text.strip("\r\n"), lines=True),
        "note": visible(detail.note),
        "facts": [fact(pair) for pair in detail.facts],
        "actions": [{"name": name, "label": label} for name, label in detail.actions],
    }


def fact(pair: Fact) -> Json:
    return {"label": pair.label, "cell": shown(pair.cell, characters_max=4000)}


def shown(cell: Cell, characters_max: int = CELL_CHARACTERS_MAX) -> dict[str, Json]:
    def short(text: str) -> str:
        return text if len(text) <= characters_max else f"{text[: characters_max - 1]}…"

    match cell:
        case Text(text, tone, title):
            return {"kind": "text", "text": visible(short(text)), "tone": tone, "title": visible(title)}
        case Mono(text, tone):
            return {"kind": "mono", "text": visible(short(text)), "tone": tone}
        case Sql(text, note, below):
            return {"kind": "sql", "text": one_line(short(text)), "note": visible(short(note)), "below": below}
        case Number(text, tone):
            return {"kind": "number", "text": text, "tone": tone}
        case Time(at, none, fine):
            return {"kind": "time", "at": None if at is None else at.timestamp() * 1000, "none": none, "fine": fine}
        case Mark(text, tone):
            return {"kind": "mark", "text": visible(short(text)), "tone": tone}
        case Lines(text, below):
            return {"kind": "lines", "text": visible(short(text)), "below": visible(short(below))}
        case Paragraph(lines):
            return {"kind": "paragraph", "lines": [visible(line[:4000]) for line in lines[:100]]}
        case Bars(values, refused, titles, maximum, label):
            return {
                "kind": "bars",
                "values": list(values),
                "refused": list(refused),
                "titles": [visible(title) for title in titles],
                "maximum": maximum,
                "label": visible(label),
            }
