"""What the witness and its one client say to each other on the unix socket. Pure.

Each message: its body's length (4 bytes, little-endian), its kind (1 byte), its body.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

PROTOCOL: Final = 2
BODY_BYTES_MAX: Final = 2**20  # a piece of the ring is at most a quarter of this, and one record
HEAD: Final = struct.Struct("<IB")

HELLO: Final = 1  # witness: Hello, as JSON, first of all
KNOWN: Final = 2  # witness: a session_record of source/records.h, of a session that lives
RECORDS: Final = 3  # witness: _PIECE, and a piece of the ring
SPILLED: Final = 4  # witness: the same of the spill ring
STATUS: Final = 5  # witness: Status, as JSON, each second
UNSEEN: Final = 6  # witness: Unseen, as JSON
LET_GO: Final = 7  # client: LetGo

_PIECE: Final = struct.Struct("<QQ")
_LET_GO: Final = struct.Struct("<QQQQ")


class Malformed(Exception):
    """The peer does not speak this protocol."""


class Hello(msgspec.Struct, frozen=True):
    protocol: int
    made_ns: int  # when the ring was made, on CLOCK_BOOTTIME: another number is another ring
    recorded_ns: int  # all that ended before was recorded by an earlier client; 0 = nothing was
    ring_bytes: int
    nested: bool
    wall_us: int  # the wall clock less CLOCK_BOOTTIME when the ring was made: who reads again tells the same times


class Status(msgspec.Struct, frozen=True):
    seeing: bool
    reason: str  # "" while it sees
    major: int  # of the server, 0 = not known yet
    postmaster: int
    verified: bool  # a live backend's title agreed with what its structures say
    stepped: tuple[str, ...]  # functions whose probe costs ten times as much as others
    made: int  # records
    lost: int  # of them, that found no room
    unattributed: int  # of those, that found no room in the spill ring either
    unreadable_texts: int
    full_sessions: int


class Unseen(msgspec.Struct, frozen=True):
    number: int  # rises
    from_ns: int  # 0 = since it is not known when
    until_ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole records of a ring."""

    as_of_ns: int  # all that was written before is in this piece or came before it; 0 = there is more
    end: int  # position behind it
    data: bytes


@dataclass(frozen=True, slots=True)
class LetGo:
    """What need not be kept: the client has it on disk."""

    ring_end: int
    spill_end: int
    unseen: int  # number
    recorded_ns: int


Message: TypeAlias = Hello | Status | Unseen | LetGo


def head(data: bytes) -> tuple[int, int]:
    """Length and kind.

    Raises:
        Malformed
    """
    length, kind = HEAD.unpack(data)
    if length > BODY_BYTES_MAX:
        raise Malformed(f"a message of {length} bytes; at most {BODY_BYTES_MAX} are taken")
    return length, kind


def message(kind: int, body: bytes) -> bytes:
    return HEAD.pack(len(body), kind) + body


def piece(kind: int, sent: Piece) -> bytes:
    return HEAD.pack(_PIECE.size + len(sent.data), kind) + _PIECE.pack(sent.as_of_ns, sent.end) + sent.data


def read_piece(body: bytes) -> Piece:
    """Raises Malformed."""
    if len(body) < _PIECE.size:
        raise Malformed("a piece is cut short")
    as_of_ns, end = _PIECE.unpack_from(body)
    return Piece(as_of_ns, end, body[_PIECE.size :])


def let_go(said: LetGo) -> bytes:
    return message(LET_GO, _LET_GO.pack(said.ring_end, said.spill_end, said.unseen, said.recorded_ns))


def read_let_go(body: bytes) -> LetGo:
    """Raises Malformed."""
    if len(body) != _LET_GO.size:
        raise Malformed(f"{len(body)} bytes let go of something")
    return LetGo(*_LET_GO.unpack(body))


def as_json(kind: int, said: Hello | Status | Unseen) -> bytes:
    return message(kind, msgspec.json.encode(said))


_hello: Final = msgspec.json.Decoder(Hello)
_status: Final = msgspec.json.Decoder(Status)
_unseen: Final = msgspec.json.Decoder(Unseen)


def read_hello(body: bytes) -> Hello:
    """Raises Malformed."""
    try:
        said = _hello.decode(body)
    except msgspec.DecodeError as error:
        raise Malformed(str(error)) from error
    if said.protocol != PROTOCOL:
        raise Malformed(f"the witness speaks version {said.protocol}, this is {PROTOCOL}: run the same pgwarden on both sides")
    return said


def read_status(body: bytes) -> Status:
    """Raises Malformed."""
    try:
        return _status.decode(body)
    except msgspec.DecodeError as error:
        raise Malformed(str(error)) from error


def read_unseen(body: bytes) -> Unseen:
    """Raises Malformed."""
    try:
        return _unseen.decode(body)
    except msgspec.DecodeError as error:
        raise Malformed(str(error)) from error
