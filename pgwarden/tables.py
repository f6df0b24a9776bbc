"""Rows of values -> a table for a terminal, every cell on one line."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pgwarden.printable import columns, cut, printable

COLUMNS: Final = 100  # where the terminal does not say
COLUMNS_MIN: Final = 60
CELL_CHARACTERS_MAX: Final = 2000
_FLEXIBLE_COLUMNS_MIN: Final = 8
_GAP: Final = "  "
_INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    key: str  # of the row
    flexible: bool = False  # may be cut where the terminal is narrow; ids and times never are, since people copy them
    right: bool = False


def width() -> int:
    """Columns of this terminal."""
    return max(COLUMNS_MIN, shutil.get_terminal_size((COLUMNS, 24)).columns)


def table(heads: Sequence[Column], rows: Sequence[dict[str, object]], columns_max: int, notes: str = "") -> str:
    """Lines without trailing space. Wider than `columns_max` only where the columns that are never cut are.

    `notes` is the key of what stands below a row, whole and indented, where the row has it.
    """
    cells = [[cell(row.get(head.key)) for head in heads] for row in rows]
    widths = [max([columns(head.title), *(columns(line[index]) for line in cells)]) for index, head in enumerate(heads)]
    _narrow(widths, heads, columns_max)
    lines = [_line([head.title for head in heads], widths, heads)]
    for row, line in zip(rows, cells, strict=True):
        lines.append(_line(line, widths, heads))
        if row.get(notes):
            lines += textwrap.wrap(
                cell(row[notes]), columns_max, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
            )
    return "\n".join(lines)


def records(heads: Sequence[Column], rows: Sequence[dict[str, object]]) -> str:
    """Each row as lines of title and value: for rows that are too wide for a table."""
    size = max((columns(head.title) for head in heads), default=0)
    blocks = (
        "\n".join(f"{_padded(head.title, size, False)}{_GAP}{cell(row.get(head.key))}".rstrip() for head in heads) for row in rows
    )
    return "\n\n".join(blocks)


def too_wide(heads: Sequence[Column], columns_max: int) -> bool:
    """Whether even cut to the least a table of these would not fit."""
    return len(heads) * (_FLEXIBLE_COLUMNS_MIN + len(_GAP)) > columns_max + len(_GAP)


def cell(value: object) -> str:
    """One value as people read it: nothing for none, times to the second, lists with commas."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}"
        case list() | tuple():
            return ", ".join(cell(item) for item in value) or "-"
        case dict():
            return " ".join(f"{printable(str(key))}={cell(below)}" for key, below in value.items()) or "-"
        case _:
            return printable(str(value), CELL_CHARACTERS_MAX)


def time_of(value: object) -> object:
    """An ISO 8601 time in UTC as `2026-11-22 15:52:16`; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return value


def duration_of(microseconds: object) -> object:
    """`950 µs`, `12.3 ms`, `4.2 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    if not isinstance(microseconds, int) or isinstance(microseconds, bool):
        return microseconds
    if microseconds < 1000:
        return f"{microseconds} µs"
    if microseconds < 999_950:
        return f"{microseconds / 1000:.1f} ms"
    if microseconds < 59_950_000:
        return f"{microseconds / 1_000_000:.1f} s"
    seconds = round(microseconds / 1_000_000)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if not hours:
        return _two(minutes, "min", seconds % 60, "s")
    if not days:
        return _two(hours, "h", minutes % 60, "min")
    return _two(days, "d", hours % 24, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit}" + (f" {small} {small_unit}" if small else "")


def _narrow(widths: list[int], heads: Sequence[Column], columns_max: int) -> None:
    """Take columns from the widest flexible one until the table fits or none can give: no title is cut."""
    least = [max(_FLEXIBLE_COLUMNS_MIN, columns(head.title)) for head in heads]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - columns_max
    while excess > 0:
        giving = [index for index, head in enumerate(heads) if head.flexible and widths[index] > least[index]]
        if not giving:
            return
        widest = max(giving, key=lambda index: widths[index])
        others = [widths[index] for index in giving if widths[index] < widths[widest]]
        step = max(1, min(excess, widths[widest] - max([least[widest], *others])))
        widths[widest] -= step
        excess -= step


def _line(texts: Sequence[str], widths: Sequence[int], heads: Sequence[Column]) -> str:
    return _GAP.join(_padded(text, size, head.right) for text, size, head in zip(texts, widths, heads, strict=True)).rstrip()


def _padded(text: str, size: int, right: bool) -> str:
    text = cut(text, size)
    space = " " * (size - columns(text))
    return space + text if right else text + space
