"""Records become the bytes of a batch, and the bytes of a segment become batches again, or the reason why they cannot be ours.

A batch, all numbers big-endian:

    mark u8 · flags u8 · count u16 · base offset u64 · at_us u64 · length u32 · CRC-32 u32 · `length` bytes of records
    a record: key length u16 · value length u32 · key · value

The checksum covers all but the mark and itself. A batch is written under the mark PENDING; once it is durable, the mark alone is
set to DURABLE. So a torn batch (PENDING, or nothing at all) and a damaged one (DURABLE, but not what its checksum says) are never
taken for one another, and a reader sees nothing that a crash could take back. Zeros are room that was not used yet.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

# Any two of the three (and zero) differ in at least four bits.
PENDING: Final = 0x5A
DURABLE: Final = 0xA5
NOTHING: Final = 0x00

COUNT_MAX: Final = 2**16 - 1
LENGTH_MAX: Final = 2**28  # far above what a writer makes; a length above it is damage, whatever the file's size

_HEADER: Final = struct.Struct(">BBHQQII")
_RECORD: Final = struct.Struct(">HI")
HEADER_BYTES: Final = _HEADER.size
RECORD_HEADER_BYTES: Final = _RECORD.size
KEY_BYTES_MAX: Final = 2**16 - 1
_MARKS: Final = {PENDING: b"\x5a", DURABLE: b"\xa5"}

Bytes: TypeAlias = bytes | mmap.mmap


class BatchInvalid(Exception):
    """The bytes at this place are not a batch that a writer made."""


class Header(NamedTuple):
    mark: int
    flags: int
    record_count: int
    base_offset: int
    at_us: int
    length: int
    checksum: int


def encode(base_offset: int, at_us: int, records: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PENDING batch of 1 to COUNT_MAX keys and values."""
    parts: list[bytes] = []
    for key, value in records:
        parts += (_RECORD.pack(len(key), len(value)), key, value)
    body = b"".join(parts)
    bare = _HEADER.pack(PENDING, 0, len(records), base_offset, at_us, len(body), 0)
    checksum = zlib.crc32(body, zlib.crc32(bare[1:-4]))
    return bare[:-4] + checksum.to_bytes(4, "big") + body


def header(data: Bytes, at: int) -> Header:
    """Of the batch that begins there; `data` holds at least HEADER_BYTES from there on.

    Raises:
        BatchInvalid: No header begins there.
    """
    found = Header._make(_HEADER.unpack_from(data, at))
    if found.mark not in _MARKS:
        raise BatchInvalid(f"a batch begins with the mark {found.mark:#04x}")
    if found.flags:
        raise BatchInvalid(f"unknown flags {found.flags:#04x}")
    if not found.record_count or found.length > LENGTH_MAX or found.length < found.record_count * RECORD_HEADER_BYTES:
        raise BatchInvalid(f"{found.record_count} records in {found.length} bytes")
    return found


def check(data: bytes, at: int, head: Header) -> None:
    """The batch that begins there; `data` holds all of it.

    Raises:
        BatchInvalid: The checksum does not match.
    """
    if not _matches(data, at, head):
        raise BatchInvalid("the checksum does not match")


def records(data: bytes, at: int, head: Header) -> list[tuple[bytes, bytes]]:
    """Keys and values of the batch that begins there; `data` holds all of it.

    Raises:
        BatchInvalid: The checksum does not match, or the records do not fill the batch.
    """
    body = at + HEADER_BYTES
    end = body + head.length
    check(data, at, head)
    found: list[tuple[bytes, bytes]] = []
    place = body
    for _ in range(head.record_count):
        if place + RECORD_HEADER_BYTES > end:
            raise BatchInvalid("a record begins beyond its batch")
        key_length, value_length = _RECORD.unpack_from(data, place)
        value = place + RECORD_HEADER_BYTES + key_length
        place = value + value_length
        if place > end:
            raise BatchInvalid("a record ends beyond its batch")
        found.append((data[value - key_length : value], data[value:place]))
    if place != end:
        raise BatchInvalid("bytes stand behind the last record")
    return found


def _matches(data: Bytes, at: int, head: Header) -> bool:
    view = memoryview(data)
    body = at + HEADER_BYTES
    try:
        return zlib.crc32(view[body : body + head.length], zlib.crc32(view[at + 1 : body - 4])) == head.checksum
    finally:
        view.release()


@dataclass(frozen=True, slots=True)
class Survey:
    """What a writer finds in its last segment."""

    length: int  # bytes of whole batches
    next_offset: int
    pending: tuple[tuple[int, int], ...]  # (place, bytes) of whole batches that were not marked durable
    dropped_bytes: int  # up to the last byte behind `length` that is not zero: what was written and is not whole


def survey(data: Bytes, base_offset: int) -> Survey:
    """Find the end of a segment that a crash may have cut short anywhere.

    Raises:
        BatchInvalid: Something that was durable is damaged or missing. Says the place.
    """
    size = len(data)
    place = 0
    offset = base_offset
    pending: list[tuple[int, int]] = []
    problem = "nothing"
    while place + HEADER_BYTES <= size and data[place] != NOTHING:
        try:
            head = header(data, place)
        except BatchInvalid as invalid:
            problem = str(invalid)
            break
        end = place + HEADER_BYTES + head.length
        whole = end <= size and head.base_offset == offset and _matches(data, place, head)
        if not whole and head.mark == DURABLE:
            raise BatchInvalid(f"the batch at byte {place} (record {offset}) was durable and is damaged")
        if not whole:
            problem = "a torn batch"
            break
        if head.mark == PENDING:  # also before a durable one: a crash of the machine may lose the earlier mark of two
            pending.append((place, end - place))
        place = end
        offset += head.record_count
    later = _durable_batch_after(data, place, offset)
    if later is not None:
        raise BatchInvalid(f"{problem} at byte {place} (record {offset}), but a durable batch follows at byte {later}")
    return Survey(place, offset, tuple(pending), _used_bytes(data, place))


def _durable_batch_after(data: Bytes, place: int, offset: int) -> int | None:
    """Where the next durable batch begins behind a place at which none could be read."""
    mark = _MARKS[DURABLE]
    found = data.find(mark, place)
    while found >= 0 and found + HEADER_BYTES <= len(data):
        try:
            head = header(data, found)
        except BatchInvalid:
            pass
        else:
            if head.base_offset >= offset and found + HEADER_BYTES + head.length <= len(data) and _matches(data, found, head):
                return found
        found = data.find(mark, found + 1)
    return None


def _used_bytes(data: Bytes, place: int) -> int:
    used = 0
    for start in range(place, len(data), 2**20):
        window = data[start : start + 2**20].rstrip(b"\x00")
        if window:
            used = start + len(window) - place
    return used
