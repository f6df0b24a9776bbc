"""Messages of the PostgreSQL protocol, version 3, under the manual's names. Section numbers: manual 18, chapter 54."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_length = struct.Struct("!i")
_int16 = struct.Struct("!h")


FIRST_USER_OID: Final = 16384  # FirstNormalObjectId: below it is only what PostgreSQL brings
NAME_LOOKUP_TYPES: Final = frozenset({24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191})  # pg_type.dat: reg*


class ProtocolViolation(Exception):
    """The peer broke the protocol; the connection ends with 08P01. The text is for the log and safe to send."""


@dataclass(frozen=True, slots=True)
class Error:
    """What an ErrorResponse says. The sentence is ASCII, since it must be valid in every client encoding."""

    sqlstate: str
    message: str
    hint: str = ""
    fatal: bool = False
    position: int = 0  # in characters, from 1; 0 = none


def message(kind: bytes, body: bytes) -> bytes:
    return kind + _length.pack(len(body) + 4) + body


def _ascii(text: str) -> bytes:
    """Control characters and all beyond ASCII become `?`: a sentence must not break a client's terminal or its decoder."""
    return bytes(byte if 32 <= byte < 127 else 63 for byte in text.encode("ascii", "replace"))


def error_response(error: Error) -> bytes:
    severity = b"FATAL" if error.fatal else b"ERROR"
    fields = [b"S" + severity, b"V" + severity, b"C" + error.sqlstate.encode("ascii"), b"M" + _ascii(error.message)]
    if error.hint:
        fields.append(b"H" + _ascii(error.hint))
    if error.position:
        fields.append(b"P" + str(error.position).encode("ascii"))
    return message(b"E", b"\0".join(fields) + b"\0\0")


def error_fields(body: bytes) -> dict[str, str]:
    """An ErrorResponse's or NoticeResponse's fields by their letter. Never raises: a server's words are hostile bytes too."""
    fields: dict[str, str] = {}
    for field in body.split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode("utf-8", "replace")
    return fields


def sqlstate_of(body: bytes) -> str:
    state = error_fields(body).get("C", "")
    return state if len(state) == 5 and state.isalnum() else "XX000"


def is_fatal(body: bytes) -> bool:
    fields = error_fields(body)
    return fields.get("V", fields.get("S", "")) in {"FATAL", "PANIC"}


AUTHENTICATION_OK = message(b"R", _length.pack(0))
AUTHENTICATION_CLEARTEXT_PASSWORD = message(b"R", _length.pack(3))
SYNC = message(b"S", b"")
TERMINATE = message(b"X", b"")


def authentication_sasl(mechanisms: list[str]) -> bytes:
    return message(b"R", _length.pack(10) + b"".join(name.encode("ascii") + b"\0" for name in mechanisms) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    return message(b"R", _length.pack(11) + data)


def authentication_sasl_final(data: bytes) -> bytes:
    return message(b"R", _length.pack(12) + data)


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    return message(b"p", mechanism.encode("ascii") + b"\0" + _length.pack(len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    return message(b"p", data)


def read_sasl_initial_response(body: bytes) -> tuple[str, bytes]:
    """Mechanism and data. Raises ProtocolViolation."""
    end = body.find(b"\0")
    if end < 0 or len(body) < end + 5:
        raise ProtocolViolation("malformed SASLInitialResponse")
    (length,) = _length.unpack_from(body, end + 1)
    data = body[end + 5 :]
    if length == -1 and not data:
        return body[:end].decode("ascii", "replace"), b""
    if length != len(data):
        raise ProtocolViolation("malformed SASLInitialResponse")
    return body[:end].decode("ascii", "replace"), data


def negotiate_protocol_version(version: int, unknown_options: list[str]) -> bytes:
    """`version` whole (0x00030002), as PostgreSQL sends it and libpq compares it, though the manual says minor."""
    names = b"".join(name.encode("utf-8") + b"\0" for name in unknown_options)
    return message(b"v", _length.pack(version) + _length.pack(len(unknown_options)) + names)


def query(text: str) -> bytes:
    return message(b"Q", text.encode("utf-8") + b"\0")


def parse(name: str, text: str) -> bytes:
    return message(b"P", name.encode("utf-8") + b"\0" + text.encode("utf-8") + b"\0" + _int16.pack(0))


def c_string(body: bytes, start: int) -> tuple[bytes, int]:
    """The bytes up to the next NUL, and the place after it. Raises ProtocolViolation."""
    end = body.find(b"\0", start)
    if end < 0:
        raise ProtocolViolation("a string in a message has no end")
    return body[start:end], end + 1


def parameter_types(body: bytes, start: int) -> tuple[int, ...]:
    """The type OIDs that a Parse message declares from `start`, after its two strings; 0 = left to the server.

    Raises ProtocolViolation.
    """
    try:
        (count,) = _int16.unpack_from(body, start)
        types: tuple[int, ...] = struct.unpack_from(f"!{count & 0xFFFF}I", body, start + 2)
    except struct.error as error:
        raise ProtocolViolation("malformed Parse") from error
    if len(body) != start + 2 + 4 * len(types):
        raise ProtocolViolation("malformed Parse")
    return types


def bind_parameters(body: bytes, start: int) -> tuple[str | None, ...]:
    """The values of a Bind message from `start`, after its two names: text as text, binary as `\\x` and hexadecimal digits.

    Raises ProtocolViolation.
    """
    try:
        (formats_count,) = _int16.unpack_from(body, start)
        at = start + 2
        if formats_count < 0:
            raise ProtocolViolation("malformed Bind")
        formats = struct.unpack_from(f"!{formats_count}h", body, at)
        at += 2 * formats_count
        (count,) = _int16.unpack_from(body, at)
        at += 2
        values: list[str | None] = []
        for number in range(count & 0xFFFF):
            (length,) = _length.unpack_from(body, at)
            at += 4
            if length == -1:
                values.append(None)
                continue
            if length < 0 or at + length > len(body):
                raise ProtocolViolation("malformed Bind")
            value = body[at : at + length]
            at += length
            binary = formats[number] if number < len(formats) else (formats[0] if len(formats) == 1 else 0)
            values.append("\\x" + value.hex() if binary else value.decode("utf-8", "replace"))
    except struct.error as error:
        raise ProtocolViolation("malformed Bind") from error
    return tuple(values)


def rows_of_tag(tag: str) -> int:
    """The count at the end of a CommandComplete tag: `INSERT 0 5`, `SELECT 3`, `COPY 7`; 0 where there is none."""
    word = tag.rpartition(" ")[2]
    return int(word) if word.isdigit() and len(word) < 19 else 0  # a hostile server's number must fit into a record
