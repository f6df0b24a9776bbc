"""Rows as files of other programs: CSV for a spreadsheet, Arrow and Parquet for everything else.

Imports nothing of pgwarden: `sql_worker`, which runs alone, loads it by its path. Columns have DuckDB's types, as their names say;
values are what DuckDB's Python client returns. Arrow is made of these values, never by DuckDB itself, which reads and writes it
wrongly in places.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:  # importing it takes 0.3 s, which JSON and CSV need not wait for
    import pyarrow as pa

Format: TypeAlias = Literal["json", "csv", "arrow", "parquet"]
Columns: TypeAlias = Sequence[tuple[str, str]]
"""Name and DuckDB's type of each."""

MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}

# A spreadsheet takes a cell that begins so for a formula, and some, in other countries, split cells at `;` too. What is put before
# it, an apostrophe, makes it a text. The full-width signs are the same to Excel in Japanese.
_FORMULA: Final = re.compile(r'(^|[;\t\r\n])([\s"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])')

_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")
_SIMPLE: Final = {
    "BOOLEAN": "bool_",
    "TINYINT": "int8",
    "SMALLINT": "int16",
    "INTEGER": "int32",
    "BIGINT": "int64",
    "UTINYINT": "uint8",
    "USMALLINT": "uint16",
    "UINTEGER": "uint32",
    "UBIGINT": "uint64",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "DATE": "date32",
    "BLOB": "binary",
}
"""DuckDB's types, and Arrow's of the same values."""
_US: Final = datetime.timedelta(microseconds=1)
_EPOCH: Final = datetime.datetime(1970, 1, 1)  # noqa: DTZ001  # as the tables have it: UTC, without saying so


class Unwritable(Exception):
    """This answer does not fit the format. Says what to do."""


def plain(value: object) -> object:
    """What JSON can say. Times are UTC; bytes are hexadecimal; NaN and infinities are strings."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime():
            return _naive(value).isoformat() + "Z"
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case _:
            return str(value)


def _naive(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo is None else moment.astimezone(datetime.UTC).replace(tzinfo=None)


# -- CSV -------------------------------------------------------------------------------------------------------------------------


def csv_lines(rows: Sequence[Sequence[object]]) -> bytes:
    """RFC 4180 in UTF-8. Text that a spreadsheet would run is made harmless; numbers are as they are."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    said = plain(value)
    if said is None:
        return ""
    if isinstance(said, bool):
        return "true" if said else "false"
    if isinstance(said, list | dict):
        said = json.dumps(said, ensure_ascii=False)
    return inert(said) if isinstance(said, str) else said


def inert(text: str) -> str:
    return _FORMULA.sub(r"\1\2'", text)


# -- Arrow and Parquet -----------------------------------------------------------------------------------------------------------


def schema(columns: Columns) -> pa.Schema:
    """
    Raises:
        Unwritable: Two columns have one name.
    """
    import pyarrow as pa

    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Unwritable(f"Two columns are named {twice[0][:100]!r}; give each a name of its own with AS.")
    return pa.schema([(name, _type(kind)) for name, kind in columns])


def batch(of: pa.Schema, columns: Columns, rows: Sequence[Sequence[object]]) -> pa.RecordBatch:
    """
    Raises:
        Unwritable: A value is larger than the format can say.
    """
    import pyarrow as pa

    arrays = []
    for index, (name, kind) in enumerate(columns):
        wanted, convert = of.field(index).type, _converter(kind)
        try:
            arrays.append(pa.array([None if row[index] is None else convert(row[index]) for row in rows], wanted))
        except (pa.ArrowInvalid, OverflowError, TypeError, ValueError) as error:
            raise Unwritable(
                f"The column {name[:100]!r} ({kind}) has a value that does not fit; cast it, for example to text."
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=of)


def arrow(columns: Columns, rows: Sequence[Sequence[object]]) -> bytes:
    """One IPC stream.

    Raises:
        Unwritable: As schema() and batch().
    """
    import pyarrow as pa

    of = schema(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, of) as writer:
        writer.write_batch(batch(of, columns, rows))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def parquet(columns: Columns, rows: Sequence[Sequence[object]]) -> bytes:
    """One file.

    Raises:
        Unwritable: As schema() and batch().
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    of = schema(columns)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, of, compression="zstd") as writer:
        writer.write_batch(batch(of, columns, rows))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _type(kind: str) -> pa.DataType:
    """What has no counterpart that every reader knows is text: as JSON where it has parts."""
    import pyarrow as pa

    if kind.endswith("[]"):
        return pa.list_(_type(kind[:-2]))
    if found := _DECIMAL.fullmatch(kind):
        return pa.decimal128(int(found[1]), int(found[2]))
    if kind in ("HUGEINT", "UHUGEINT"):
        return pa.decimal128(38, 0)  # sums of BIGINT are; a double would be another number
    if kind.startswith("TIMESTAMP"):
        return pa.timestamp("us", tz="UTC")
    if kind == "TIME":
        return pa.time64("us")
    return getattr(pa, _SIMPLE[kind])() if kind in _SIMPLE else pa.string()


def _converter(kind: str) -> Callable[[object], object]:
    if kind.endswith("[]"):
        inner = _converter(kind[:-2])
        return lambda value: [None if item is None else inner(item) for item in value] if isinstance(value, list | tuple) else value
    if kind.startswith("TIMESTAMP"):
        return _microseconds
    if kind in ("HUGEINT", "UHUGEINT"):
        return lambda value: decimal.Decimal(str(value))
    return _same if kind in _SIMPLE or kind == "TIME" or _DECIMAL.fullmatch(kind) else _text


def _same(value: object) -> object:
    return value


def _microseconds(value: object) -> object:
    if isinstance(value, datetime.datetime):
        return (_naive(value) - _EPOCH) // _US
    raise ValueError("no time")  # DuckDB gives text for an infinity


def _text(value: object) -> str:
    said = plain(value)
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()
