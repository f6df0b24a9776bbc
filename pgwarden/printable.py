"""Any text -> the same, fit for one line of a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str, characters_max: int = 200) -> str:
    """Control characters, bidirectional marks and lone surrogates as escapes; what is too long is cut.

    Event text comes from agents: an escape sequence in it could hide a line, or type into the operator's terminal.
    """
    cut = text if len(text) <= characters_max else text[: characters_max - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes: two for wide East Asian characters, none for combining marks."""
    return len(text) if text.isascii() else sum(_columns_of(c) for c in text)


def cut(text: str, columns_max: int) -> str:
    """`text` in at most so many columns, with … for what is left out."""
    if columns(text) <= columns_max:
        return text
    taken = 1
    for index, character in enumerate(text):
        taken += _columns_of(character)
        if taken > columns_max:
            return text[:index] + "…"
    return text  # never: it is wider than `columns_max`


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
