from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import words

NOW = datetime(2026, 7, 30, 14, 2, 7, tzinfo=UTC)


def test_a_terminal_escape_is_written_out() -> None:
    assert words.visible("a\x1b[2Jb") == "a<U+001B>[2Jb"


def test_marks_that_reorder_text_are_written_out() -> None:
    assert words.visible("safe\u202etxt.exe\u2066\u200b") == "safe<U+202E>txt.exe<U+2066><U+200B>"


def test_a_lone_surrogate_is_written_out_since_it_cannot_be_sent() -> None:
    assert words.visible("\ud800") == "<U+D800>"


def test_letters_of_all_scripts_stay_as_they_are() -> None:
    assert words.visible("Straße, 表, عربي, 🙂") == "Straße, 表, عربي, 🙂"


def test_line_feeds_stay_only_where_lines_are_shown() -> None:
    assert words.visible("a\n\tb\r", lines=True) == "a\n\tb<U+000D>"
    assert words.visible("a\nb") == "a<U+000A>b"


@given(st.text(alphabet=st.characters()))
def test_what_is_shown_can_be_encoded_and_holds_no_control_character(text: str) -> None:
    shown = words.visible(text)
    shown.encode("utf-8")
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)


def test_sql_of_several_lines_becomes_one_line() -> None:
    assert words.one_line("SELECT 1\n   FROM t\r\n\tWHERE \x00 x") == "SELECT 1 FROM t WHERE <U+0000> x"


def test_a_long_text_is_cut_and_says_how_much_is_left_off() -> None:
    assert words.cut("abcdef", 4) == ("abcd", 2)
    assert words.cut("abcd", 4) == ("abcd", 0)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1234567, "1,234,567"), (2.345, "2.3"), (144.5, "144"), (3.0, "3"), (0.01, "<0.1"), (0.0, "0")]
)
def test_numbers_are_grouped_and_rounded(value: float, shown: str) -> None:
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("count_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (999_960, "1.0 MB"), (3_000_000_000_000_000, "3000.0 TB")],
)
def test_sizes_have_a_unit(count_bytes: int, shown: str) -> None:
    assert words.size(count_bytes) == shown


@pytest.mark.parametrize(
    ("microseconds", "shown"),
    [
        (87, "87 µs"),
        (1_400, "1.4 ms"),
        (340_000, "340 ms"),
        (2_100_000, "2.10 s"),
        (200_000_000, "3 min 20 s"),
        (7_500_000_000, "2 h 5 min"),
        (3_600_000_000, "1 h"),
        (273_600_000_000, "3 d 4 h"),
    ],
)
def test_durations_have_the_unit_that_fits(microseconds: int, shown: str) -> None:
    assert words.duration(microseconds) == shown


def test_times_are_told_relative_to_now() -> None:
    assert words.ago(None, NOW) == "never"
    assert words.ago(NOW - timedelta(milliseconds=300), NOW) == "now"
    assert words.ago(NOW - timedelta(seconds=4), NOW) == "4 s ago"
    assert words.ago(NOW + timedelta(minutes=20), NOW) == "in 20 min"
    assert words.ago(NOW - timedelta(days=40), NOW) == "40 d ago"


def test_times_are_shown_in_utc_whatever_their_zone() -> None:
    assert words.utc(datetime.fromisoformat("2026-07-30T16:02:07+02:00")) == "2026-07-30 14:02:07 UTC"
    assert words.utc(None) == "–"


def test_lists_read_as_a_sentence() -> None:
    assert [words.listing(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_a_count_agrees_with_its_noun() -> None:
    assert words.plural(1, "session") == "1 session"
    assert words.plural(2000, "session") == "2,000 sessions"
