"""Values as a person reads them: numbers with their unit, times in UTC, scopes in words, hostile text made harmless to look at."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

TEXT_CHARACTERS_MAX: Final = 20_000  # of one SQL text sent to a browser in a list; 50 rows of it are 1 MB

# Bidirectional controls and invisible marks reorder or hide what stands beside them (CVE-2021-42574, "Trojan Source").
_UNSEEN: Final = {
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0x00AD,
    0x061C,
    0x180E,
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
}
_LINE_BREAKS: Final = frozenset("\n\t")
_BLANKS: Final = re.compile(r"[ \t\r\n]+")


def visible(text: str, *, lines: bool = False) -> str:
    """Write every character that cannot be seen as `<U+001B>`: controls, bidirectional marks, invisible blanks, lone surrogates.

    With `lines` true, line feeds and tabs stay as they are, for places that show several lines.
    """
    return "".join(character if _seen(character, lines) else f"<U+{ord(character):04X}>" for character in text)


def _seen(character: str, lines: bool) -> bool:
    code = ord(character)
    if code < 0x20:
        return lines and character in _LINE_BREAKS
    return not (0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in _UNSEEN)


def one_line(text: str) -> str:
    """SQL on one line: line feeds and runs of blanks become one blank, what cannot be seen is written out."""
    return visible(_BLANKS.sub(" ", text).strip(" "))


def cut(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left off."""
    return text[:characters_max], max(0, len(text) - characters_max)


def number(value: int | float) -> str:
    """1234567 -> `1,234,567`; 2.345 -> `2.3`; 144.5 -> `144`: three digits tell enough."""
    if isinstance(value, float) and 0 < value < 0.05:
        return "<0.1"
    if isinstance(value, float) and abs(value) < 100 and not value.is_integer():
        return f"{value:,.1f}"
    return f"{int(value):,}"


def size(count_bytes: int) -> str:
    """Bytes in decimal units, as Postgres clients and disks are bought: `512 B`, `1.4 kB`, `3.0 MB`."""
    if count_bytes < 1000:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            return f"{value:.1f} {unit}"
    raise AssertionError(count_bytes)


def duration(microseconds: int) -> str:
    """`87 µs`, `1.4 ms`, `340 ms`, `2.10 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if microseconds < 1000:
        return f"{microseconds} µs"
    if microseconds < 1_000_000:
        value = microseconds / 1000
        return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
    seconds = microseconds / 1_000_000
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = int(seconds)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86_400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86_400, "d", whole % 86_400 // 3600, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"


def ago(at: datetime | None, now: datetime) -> str:
    """`4 s ago`, `in 20 min`, `never`. A clock that is off by less than a second reads as `now`."""
    if at is None:
        return "never"
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    words = _rough(int(abs(seconds)))
    return f"{words} ago" if seconds > 0 else f"in {words}"


def _rough(seconds: int) -> str:
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def utc(at: datetime | None) -> str:
    """`2026-07-30 14:02:07 UTC`; a dash for no time."""
    return "–" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plural(count: int, one: str, many: str = "") -> str:
    """`1 session`, `3 sessions`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
