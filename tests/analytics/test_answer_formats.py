"""The same rows in every format: exactly in Arrow and Parquet, without a formula in CSV."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import re

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.answer_formats import Unwritable, arrow, csv_lines, inert, parquet, plain

# Each type that a column of the tables or a common expression has, with its extremes.
TYPES = """
    select * from (values
        (true, 1::tinyint, -9223372036854775808, 170141183460469231731687303715884105::hugeint, 18446744073709551615::ubigint,
         1.5::float, 'nan'::double, 12345.678::decimal(18, 3), date '2026-02-28', time '23:59:59.999999',
         timestamp '2026-11-30 10:00:00.123456', timestamptz '2026-11-30 10:00:00+02', 'ä=1', '\\xff'::blob,
         ['a', null], [1, 2]::bigint[], {'a': 1}, map {'k': 'v'}, interval 3 days, uuid '6f1c2f9e-0a3b-4a54-9a94-4f5bd58d28de'),
        (null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)
    ) as t(flag, small, big, huge, unsigned, single, double, exact, day, clock, moment, at_zone, text, bytes, texts, numbers, structure,
           pairs, span, id)"""


@pytest.fixture(scope="module")
def fetched() -> tuple[list[tuple[str, str]], list[tuple[object, ...]]]:
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'").fetchall()
        result = connection.execute(TYPES)
        return [(str(column[0]), str(column[1])) for column in result.description or ()], result.fetchall()


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_table_holds_the_values_that_were_fetched(
    fetched: tuple[list[tuple[str, str]], list[tuple[object, ...]]], kind: str
) -> None:
    columns, rows = fetched
    if kind == "arrow":
        table = pa.ipc.open_stream(arrow(columns, rows)).read_all()
    else:
        table = pq.read_table(io.BytesIO(parquet(columns, rows)))
    assert table.column_names == [name for name, _ in columns]
    first, second = table.to_pylist()
    assert all(value is None for value in second.values())
    utc = datetime.UTC
    assert {name: value for name, value in first.items() if name != "double"} == {
        "flag": True,
        "small": 1,
        "big": -(2**63),
        "huge": decimal.Decimal("170141183460469231731687303715884105"),
        "unsigned": 2**64 - 1,
        "single": 1.5,
        "exact": decimal.Decimal("12345.678"),
        "day": datetime.date(2026, 2, 28),
        "clock": datetime.time(23, 59, 59, 999999),
        "moment": datetime.datetime(2026, 11, 30, 10, 0, 0, 123456, tzinfo=utc),
        "at_zone": datetime.datetime(2026, 11, 30, 8, 0, tzinfo=utc),
        "text": "ä=1",
        "bytes": b"\xff",
        "texts": ["a", None],
        "numbers": [1, 2],
        "structure": '{"a": 1}',
        "pairs": '{"k": "v"}',
        "span": "3 days, 0:00:00",
        "id": "6f1c2f9e-0a3b-4a54-9a94-4f5bd58d28de",
    }
    assert str(first["double"]) == "nan"
    assert table.schema.field("moment").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("numbers").type.value_type == pa.int64()


def test_what_a_format_cannot_say_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unwritable, match="give each a name of its own"):
        arrow([("a", "BIGINT"), ("a", "BIGINT")], [])
    with pytest.raises(Unwritable, match="cast it"):
        parquet([("a", "HUGEINT")], [(10**38,)])
    with pytest.raises(Unwritable, match="cast it"):
        arrow([("a", "TIMESTAMP")], [("infinity",)])


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2", "'-2"),
        ("@SUM(1)", "'@SUM(1)"),
        ("  =1", "  '=1"),
        ('"=1', "\"'=1"),
        ("\t=1", "\t'=1"),
        ("\r\n=1", "\r\n'=1"),
        ("a;=1", "a;'=1"),
        ('a; "=1', "a; \"'=1"),
        ("＝1", "'＝1"),
        ("select 1 = 1 -- x", "select 1 = 1 -- x"),
        ("a@b", "a@b"),
        ("", ""),
    ],
)
def test_text_that_a_spreadsheet_would_run_is_made_text(hostile: str, harmless: str) -> None:
    assert inert(hostile) == harmless
    ((cell,),) = list(csv.reader(io.StringIO(csv_lines([(hostile,)]).decode(), newline=""))) or [[""]]
    assert cell == harmless


def test_numbers_stay_numbers_and_lists_are_json() -> None:
    assert csv_lines([(-5, 1.5, None, True, ["=a", "b"], decimal.Decimal("-2.50"))]) == b'-5,1.5,,true,"[""=a"", ""b""]",-2.5\r\n'


@given(st.lists(st.lists(st.text(alphabet="=+-@＝ \t\r\n;,\"'ab"), min_size=2, max_size=3), max_size=4))
def test_no_cell_begins_a_formula_however_a_spreadsheet_splits_it(rows: list[list[str]]) -> None:
    text = csv_lines(rows).decode()
    for delimiter in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            for cell in row:
                # A comma is ours alone: a program that splits elsewhere sees what stands between commas as one text.
                begin = re.split(r"[;\t\r\n]", cell)
                assert not any(re.match(r'[\s"]*[=+\-@＝]', part) for part in begin), cell


@given(st.text(alphabet="=+-@＝ \t\r\n;,\"'ab"))
def test_nothing_but_apostrophes_is_put_in(text: str) -> None:
    made = inert(text)
    assert inert(made) == made
    assert made.replace("'", "") == text.replace("'", "")


@given(st.text())
def test_csv_gives_back_the_text_it_was_made_of(text: str) -> None:
    line = csv_lines([("x", text)]).decode()
    assert next(csv.reader(io.StringIO(line, newline=""))) == ["x", inert(text.encode("utf-8", "replace").decode())]


def test_times_in_json_are_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    assert plain(datetime.datetime(2026, 1, 1, 2, tzinfo=zone)) == "2026-01-01T00:00:00Z"
