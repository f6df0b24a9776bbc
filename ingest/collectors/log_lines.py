"""Bytes of a PostgreSQL log file -> records: jsonlog, one line each; csvlog, quoted, whose records may span lines.

Fields come from the columns alone. What a client can put into a text (line ends, quotes, what looks like another record) is escaped
by PostgreSQL in both formats, and is never looked for here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

import msgspec

from ingest.collectors.csv_fields import csv_fields

Format: TypeAlias = Literal["jsonlog", "csvlog"]

BEGIN_BYTES: Final = 40  # of a record: enough to tell that it is one
CSV_COLUMNS: Final = 26  # PostgreSQL 14 to 18, "Using CSV-Format Log Output"


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """One record. What is not there is "" or 0, in both formats; jsonlog's names (PostgreSQL 15 to 18)."""

    session_id: str
    line_num: int
    timestamp: str
    error_severity: str = ""
    message: str = ""
    user: str = ""
    dbname: str = ""
    pid: int = 0
    remote_host: str = ""
    remote_port: int = 0
    ps: str = ""
    state_code: str = ""
    detail: str = ""
    context: str = ""
    statement: str = ""
    application_name: str = ""
    backend_type: str = ""
    query_id: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is none. `reason` repeats nothing of it: it may hold what nobody should read."""

    reason: str


_decoder: Final = msgspec.json.Decoder(LogLine)
_CSV_BEGIN: Final = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
_TIMESTAMP: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{3}) (UTC|GMT|Etc/UTC|[+-]\d{2}(?::?\d{2})?)")


def cut(kind: Format, data: bytes) -> tuple[Sequence[bytes], int]:
    """The whole records at the start of `data`, and the bytes that they take; the rest is not whole yet."""
    end = data.rfind(b"\n") + 1
    if not end:
        return (), 0
    lines = data[: end - 1].split(b"\n")
    if kind == "jsonlog":
        return lines, end
    records: list[bytes] = []
    open_lines: list[bytes] = []
    is_open = False
    for line in lines:
        # Within a field each quote is doubled, so a record is whole exactly when its quotes are even.
        is_open ^= line.count(b'"') % 2 == 1
        open_lines.append(line)
        if not is_open:
            records.append(b"\n".join(open_lines) if len(open_lines) > 1 else line)
            open_lines.clear()
    return records, end - sum(len(line) + 1 for line in open_lines)


def resume(kind: Format, data: bytes) -> int:
    """Where in `data`, which may begin in the middle of a record, one begins; -1 where none does."""
    at = -1
    while (at := data.find(b"\n", at + 1)) >= 0:
        begin = data[at + 1 : at + 1 + BEGIN_BYTES]
        if (kind == "jsonlog" and begin.startswith(b'{"timestamp":"')) or (kind == "csvlog" and _CSV_BEGIN.match(begin)):
            return at + 1
    return -1


def last_begin(kind: Format, data: bytes) -> int:
    """Where in the end of a file to begin, so that nothing that comes is missed: its last record may be read once more."""
    if kind == "jsonlog":
        return data.rfind(b"\n") + 1
    begins = [match.start() for match in _CSV_BEGIN.finditer(data) if match.start() == 0 or data[match.start() - 1] == 0x0A]
    return begins[-1] if begins else 0


def parse(kind: Format, record: bytes) -> LogLine | Unreadable:
    if kind == "jsonlog":
        try:
            return _decoder.decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        try:
            # A database in another encoding than UTF-8 may log what is no text.
            return _decoder.decode(record.decode("utf-8", "replace").encode())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Unreadable("a line is no jsonlog record")
    return _csv(record.decode("utf-8", "replace"))


def _csv(text: str) -> LogLine | Unreadable:
    fields = csv_fields(text)
    if len(fields) < CSV_COLUMNS:
        return Unreadable("a record is none of csvlog, as PostgreSQL 14 and newer write it")
    host, colon, port = fields[4].rpartition(":")
    try:
        return LogLine(  # by place: half the time of names
            fields[5],
            int(fields[6]),
            fields[0],
            fields[11],
            fields[13],
            fields[1],
            fields[2],
            int(fields[3] or 0),
            host if colon and port.isdigit() else fields[4],
            int(port) if colon and port.isdigit() else 0,
            fields[7],
            "" if fields[12] == "00000" else fields[12],
            fields[14],
            fields[18],
            fields[19],
            fields[22],
            fields[23],
            int(fields[25] or 0),
        )
    except ValueError:
        return Unreadable("a record has text where csvlog has numbers")


class Clock:
    """The time of records, in microseconds. Most records are of the second of the one before."""

    __slots__ = ("_last", "_last_us", "_millis", "_second", "_second_us")

    def __init__(self) -> None:
        self._last = ""
        self._last_us = -1
        self._second = ""
        self._second_us = 0
        self._millis: dict[str, int] = {}  # of what follows the second, in its zone: at most a thousand

    def at_us(self, timestamp: str) -> int:
        """-1 for a timestamp in a zone that is not known: only UTC, and zones that are numbers, mean the same everywhere."""
        if timestamp != self._last:
            self._last_us = self._read(timestamp)
            self._last = timestamp
        return self._last_us

    def _read(self, timestamp: str) -> int:
        if timestamp[:20] == self._second:
            milli_us = self._millis.get(timestamp[20:])
            if milli_us is not None:
                return self._second_us + milli_us
        match = _TIMESTAMP.fullmatch(timestamp)
        if match is None:
            return -1
        year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
        try:
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return -1
        if timestamp[:20] != self._second:
            self._second = timestamp[:20]
            self._second_us = int(moment.timestamp()) * 1_000_000
        if len(self._millis) > 1000:  # the zone has changed
            self._millis.clear()
        milli_us = self._millis[timestamp[20:]] = int(match[7]) * 1_000 - _offset_us(match[8])
        return self._second_us + milli_us


def _offset_us(zone: str) -> int:
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return (-seconds if zone[0] == "-" else seconds) * 1_000_000
