"""A text in, before any parser sees it; the limit that it breaks out, if any. Linear in the length of the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# PostgreSQL's scanner (flex) reads a run of operator characters again at each step: 160 KB of `/*/*/*` take it half a minute,
# unkillable, and libpg_query is the same code. An operator has at most 63 characters (NAMEDATALEN).
OPERATOR_RUN_CHARACTERS_MAX: Final = 64
COMMENT_DEPTH_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Limits:
    statement_bytes_max: int = 256 * 1024  # configurable; 8 MB is the most that was measured
    tokens_max: int = 50_000  # 1,000 rows of 10 values are 21,000
    parse_inline_bytes_max: int = 32 * 1024  # above this a worker process parses, see ingest.parser_process
    parse_inline_tokens_max: int = 6_000  # about 10 ms of parsing and walking


# scan.l, `op_chars`
_LONG_RUN: Final = re.compile(r"[-+*/<>=~!@#%^&|`?]{65,}")

# scan.l in one expression; what is opaque comes first, and what does not end runs to the end of the text. Every character beyond
# ASCII is a letter there (`[\200-\377]`), and `$` is part of an identifier but not of a number.
_TOKEN: Final = re.compile(
    r"""(?P<line>--[^\n\r]*)
      | (?P<comment>/\*)
      | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
      | (?P<quoted>'[^']*(?:'|\Z))
      | (?P<identifier>"[^"]*(?:"|\Z))
      | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$)
      | (?P<run>[-+*/<>=~!@#%^&|`?]+?(?=--|/\*|[^-+*/<>=~!@#%^&|`?]|\Z))
      | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
      | (?P<number>[0-9]+)
      | (?P<space>[ \t\n\r\f\v]+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_WORD_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_" + bytes(range(128, 256))
_SPACE_BYTES: Final = b" \t\n\r\f\v"


def tokens_at_most(raw: bytes) -> int:
    """An upper bound, at the speed of memory: literals and comments count as if they were code."""
    punctuation = len(raw.translate(None, _WORD_BYTES + _SPACE_BYTES))
    spaces = len(raw.translate(None, _WORD_BYTES)) - punctuation
    return 2 * punctuation + spaces + 1


def broken(text: str, raw: bytes, limits: Limits) -> tuple[str, str] | None:
    """SQLSTATE and sentence of the first limit that the text breaks. `raw` is the text in UTF-8."""
    if len(raw) > limits.statement_bytes_max:
        return "54000", f"statement of {len(raw)} bytes is longer than {limits.statement_bytes_max} bytes"
    if b"\0" in raw:  # libpg_query reads a C string: what follows would run unseen. PostgreSQL answers 08P01 as well
        return "08P01", "a statement may not contain a zero byte"
    if len(raw) <= OPERATOR_RUN_CHARACTERS_MAX:
        return None
    runs = _LONG_RUN.findall(text)
    # Within a comment too, and even where `/**/` closes each one again: it is the run that is read again and again.
    if any(run.count("/*") > COMMENT_DEPTH_MAX for run in runs):
        return "54001", f"comments are nested deeper than {COMMENT_DEPTH_MAX}"
    if not runs and raw.count(b"/*") <= COMMENT_DEPTH_MAX and tokens_at_most(raw) <= limits.tokens_max:
        return None
    return _scan(text, limits)


def _scan(text: str, limits: Limits) -> tuple[str, str] | None:
    """Read the text as the server's scanner does, to tell code from what only looks like it: `-- -----` is a comment."""
    position, length, tokens, run_characters = 0, len(text), 0, 0
    while position < length:
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        kind, position = match.lastgroup, match.end()
        if kind == "comment":
            depth = 1
            for edge in _COMMENT_EDGE.finditer(text, position):
                depth += 1 if edge[0] == "/*" else -1
                position = edge.end()
                if depth > COMMENT_DEPTH_MAX:
                    return "54001", f"comments are nested deeper than {COMMENT_DEPTH_MAX}"
                if depth == 0:
                    break
            if depth:
                return None  # does not end: the parser says so
        elif kind == "dollar":
            end = text.find(match[0], position)
            position = length if end < 0 else end + len(match[0])
        if kind == "run":
            run_characters += len(match[0])
            if run_characters > OPERATOR_RUN_CHARACTERS_MAX:
                return "54000", f"more than {OPERATOR_RUN_CHARACTERS_MAX} operator characters in a row"
        else:
            run_characters = 0
        if kind not in ("line", "comment", "space"):
            tokens += 1
            if tokens > limits.tokens_max:
                return "54000", f"statement has more than {limits.tokens_max} tokens"
    return None
