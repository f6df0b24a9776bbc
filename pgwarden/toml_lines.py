"""The line of every table and key in a TOML text, which `tomllib` reads but does not tell."""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import Final, TypeAlias

Place: TypeAlias = tuple[str | int, ...]
"""The keys and array indexes that lead to a value."""

_SPACE: Final = re.compile(r"[ \t]*")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_HEADER_END: Final = re.compile(r"\]{1,2}")
_LINE_REST: Final = re.compile(r"[^\n]*\n?")
_SCALAR: Final = re.compile(r"[^,\]}#\n]+")
_KEY_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
# Multi-line strings first; up to two quotes may stand right before the closing three (TOML 1.0, String).
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)


def locate(text: str) -> dict[Place, int]:
    """Lines count from 1. The line of an array of tables is that of its first; of an implied table, that of what implies it.

    `text` must be one that `tomllib.loads` accepts: it is scanned for places, not checked again.

    Raises:
        ValueError: It is not.
        RecursionError: Its values are nested too deeply.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Place, int] = {}
        self.array_lengths: dict[Place, int] = {}  # of arrays of tables
        self.line_ends = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> None:
        table: Place = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip(_LINE_REST)
            self.skip(_BLANK)

    def header(self) -> Place:
        line = self.line()
        opening = 2 if self.text.startswith("[[", self.at) else 1
        self.at += opening
        *parents, name = self.key()
        self.take(_HEADER_END)
        table: Place = ()
        for part in parents:
            table = self.latest((*table, part))
            self.lines.setdefault(table, line)
        table = (*table, name)
        if opening == 1:
            # An earlier [a.b] implied [a]; the table's own header is the better line for what is missing in it.
            self.lines[table] = line
            return table
        self.lines.setdefault(table, line)
        index = self.array_lengths.get(table, 0)
        self.array_lengths[table] = index + 1
        self.lines[(*table, index)] = line
        return (*table, index)

    def latest(self, table: Place) -> Place:
        """A header below an array of tables means the last of them."""
        length = self.array_lengths.get(table)
        return table if length is None else (*table, length - 1)

    def pair(self, table: Place) -> None:
        line = self.line()
        for part in self.key():
            table = (*table, part)
            self.lines.setdefault(table, line)
        self.at += 1  # =
        self.skip(_SPACE)
        self.value(table)

    def value(self, place: Place) -> None:
        match self.peek():
            case "[":
                self.at += 1
                self.skip(_BLANK)
                index = 0
                while self.peek() != "]":
                    self.lines[(*place, index)] = self.line()
                    self.value((*place, index))
                    index += 1
                    self.comma()
                self.at += 1
            case "{":
                self.at += 1
                self.skip(_BLANK)
                while self.peek() != "}":
                    self.pair(place)
                    self.comma()
                self.at += 1
            case '"' | "'":
                self.take(_STRING)
            case _:
                self.take(_SCALAR)

    def comma(self) -> None:
        self.skip(_BLANK)
        if self.peek() == ",":
            self.at += 1
            self.skip(_BLANK)

    def key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_SPACE)
            token = self.take(_KEY_PART)
            parts.append(tomllib.loads(f"key = {token}")["key"] if token[0] in "\"'" else token)
            self.skip(_SPACE)
            if self.peek() != ".":
                return parts
            self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip(self, pattern: re.Pattern[str]) -> None:
        self.take(pattern)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not valid TOML at line {self.line()}")
        self.at = match.end()
        return match.group()

    def line(self) -> int:
        return bisect.bisect_left(self.line_ends, self.at) + 1
