from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_guarded_sql import one_input

WORDS = [
    "select",
    "with",
    "as",
    "(",
    ")",
    "insert",
    "into",
    "delete",
    "from",
    "update",
    "set",
    "texts",
    "session",
    "text",
    "returning",
    "*",
    ",",
    ";",
    "--",
    "/*",
    "*/",
    "'",
    '"',
    "$1",
    "1",
    "0",
    "null",
    "and",
    "or",
    "not",
    "union",
    "all",
    "values",
    "order",
    "by",
    "limit",
    "recursive",
    "copy",
    "to",
    "attach",
    "'/etc/passwd'",
    "read_text",
    "nextval",
    "numbers",
    "pragma",
    "set",
    "begin",
    "commit",
    "rollback",
    "explain",
    "analyze",
    "describe",
    "pivot",
    "on",
    "using",
    "count(*)",
    "range(10)",
    "lambda",
    "x",
    ":",
    "x",
    "unnest",
    "[",
    "]",
    "{",
    "}",
    "case",
    "when",
    "then",
    "end",
    "::",
    "varchar",
    "repeat",
]


@settings(max_examples=90, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_no_sentence_of_sql_words_changes_the_copy(words: list[str]) -> None:
    one_input(" ".join(words).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_no_bytes_change_the_copy(data: bytes) -> None:
    one_input(data)
