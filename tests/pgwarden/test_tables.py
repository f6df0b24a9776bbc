from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwarden.printable import columns, cut, printable
from pgwarden.tables import Column, cell, duration_of, records, table, time_of, too_wide

HEADS = (Column("AGENT", "agent"), Column("STATEMENT", "text", flexible=True), Column("ROWS", "rows", right=True))


def test_a_table_lines_up() -> None:
    rows: list[dict[str, object]] = [
        {"agent": "reporter", "text": "SELECT 1", "rows": 1},
        {"agent": "ingest", "text": "INSERT INTO t VALUES (1)", "rows": 12345},
    ]
    assert table(HEADS, rows, 100).split("\n") == [
        "AGENT     STATEMENT                  ROWS",
        "reporter  SELECT 1                      1",
        "ingest    INSERT INTO t VALUES (1)  12345",
    ]


def test_a_narrow_terminal_cuts_the_flexible_column_only() -> None:
    rows: list[dict[str, object]] = [{"agent": "a" * 30, "text": "SELECT " + "x" * 200, "rows": 1}]
    lines = table(HEADS, rows, 60).split("\n")
    assert {columns(line) for line in lines} == {60}
    assert "a" * 30 in lines[1]
    assert "SELECT xxxxxxx" in lines[1]
    assert "…" in lines[1]


def test_the_widest_flexible_column_gives_first() -> None:
    heads = (Column("A", "a", flexible=True), Column("B", "b", flexible=True))
    (_, line) = table(heads, [{"a": "a" * 20, "b": "b" * 90}], 62).split("\n")
    assert line == "a" * 20 + "  " + "b" * 39 + "…"


def test_a_title_is_never_cut() -> None:
    heads = (Column("A", "a", flexible=True), Column("CONNECTION", "b", flexible=True), Column("C", "c"))
    assert table(heads, [{"a": "a" * 90, "b": "shop", "c": "c" * 60}], 60).startswith("A         CONNECTION  C")


def test_event_text_cannot_speak_to_the_terminal() -> None:
    rows: list[dict[str, object]] = [{"agent": "x\x1b]0;evil\x07", "text": "a\nb\r\u202ec\u009b2J", "rows": None}]
    shown = table(HEADS, rows, 100)
    assert shown.split("\n")[1] == "x\\x1b]0;evil\\x07  a\\nb\\r\\u202ec\\x9b2J     -"
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_note_stands_whole_below_its_row() -> None:
    rows: list[dict[str, object]] = [
        {"agent": "a", "text": "x", "rows": 1, "why": "word " * 20 + "\x1b"},
        {"agent": "b", "text": "y", "rows": 2},
    ]
    lines = table(HEADS, rows, 60, "why").split("\n")
    assert [line[:5] for line in lines] == ["AGENT", "a    ", "    w", "    w", "b    "]
    assert (lines[2] + lines[3]).count("word") == 20
    assert lines[3].endswith("\\x1b")
    assert all(len(line) <= 60 for line in lines)


def test_rows_too_wide_for_a_table_are_records() -> None:
    heads = [Column(f"column {number}", str(number), flexible=True) for number in range(12)]
    assert too_wide(heads, 100)
    assert not too_wide(heads[:10], 100)
    rows: list[dict[str, object]] = [{str(number): number for number in range(12)}, {"0": "a\nb"}]
    lines = records(heads, rows).split("\n")
    assert lines[0] == "column 0   0"
    assert lines[11] == "column 11  11"
    assert lines[12] == ""
    assert lines[13] == "column 0   a\\nb"


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert columns("日本") == 4
    assert columns("e\u0301") == 1
    assert cut("日本語", 4) == "日…"
    assert cut("日本語", 5) == "日本…"
    assert cut("abc", 3) == "abc"
    rows: list[dict[str, object]] = [{"agent": "日本", "text": "x", "rows": 1}, {"agent": "abcd", "text": "x", "rows": 1}]
    assert len({columns(line) for line in table(HEADS, rows, 100).split("\n")}) == 1


@given(st.text(), st.integers(1, 20))
def test_what_is_cut_fits(text: str, columns_max: int) -> None:
    assert columns(cut(text, columns_max)) <= columns_max


@given(st.lists(st.fixed_dictionaries({"agent": st.text(max_size=5), "text": st.text(), "rows": st.integers()}), max_size=5))
def test_any_rows_give_one_printable_line_each(rows: list[dict[str, object]]) -> None:
    lines = table(HEADS, rows, 70).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\u202eabc", "\\u202eabc"), ("\udcff", "\\udcff"), ("héllo", "héllo")],
)
def test_what_is_printed_stays_on_its_line(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 300, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0, "0"),
        (1.5, "1.500"),
        (["a", "b\n"], "a, b\\n"),
        ([], "-"),
        ({"a": 1, "b": [2]}, "a=1 b=2"),
    ],
)
def test_values_read_as_people_write_them(value: object, shown: str) -> None:
    assert cell(value) == shown


@pytest.mark.parametrize(
    ("microseconds", "shown"),
    [
        (0, "0 µs"),
        (999, "999 µs"),
        (1000, "1.0 ms"),
        (999_949, "999.9 ms"),
        (999_950, "1.0 s"),
        (59_949_999, "59.9 s"),
        (59_950_000, "1 min"),
        (200_000_000, "3 min 20 s"),
        (3_600_000_000, "1 h"),
        (18_120_000_000, "5 h 2 min"),
        (273_600_000_000, "3 d 4 h"),
        (10**18, "11574074 d 1 h"),
        (None, None),
    ],
)
def test_durations_keep_two_units_at_most(microseconds: object, shown: object) -> None:
    assert duration_of(microseconds) == shown


def test_times_are_shown_to_the_second() -> None:
    assert time_of("2026-11-22T15:52:16.123456Z") == "2026-11-22 15:52:16"
    assert time_of("soon") == "soon"
    assert time_of(None) is None
