"""A connection's first packets: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage. Manual 54.2.1, 54.7."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gateway.wire.messages import ProtocolViolation, c_string

_int32 = struct.Struct("!i")

SSL_REQUEST_CODE: Final = 80877103
GSSENC_REQUEST_CODE: Final = 80877104
CANCEL_REQUEST_CODE: Final = 80877102
VERSION_3_0: Final = 0x00030000
VERSION_3_2: Final = 0x00030002
SSL_REQUEST: Final = struct.pack("!ii", 8, SSL_REQUEST_CODE)


@dataclass(frozen=True, slots=True)
class SSLRequest:
    pass


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    pass


@dataclass(frozen=True, slots=True)
class CancelRequest:
    pid: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StartupMessage:
    version: int
    parameters: Mapping[str, str]
    unknown_options: tuple[str, ...]  # names that begin with `_pq_.`: the protocol's own, none of which exist yet


FirstPacket: TypeAlias = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


class UnsupportedVersion(ProtocolViolation):
    """Neither 3.x nor a special request; PostgreSQL answers 0A000."""


def packet_length(header: bytes, bytes_max: int) -> int:
    """The whole packet's length from its first four bytes. Raises ProtocolViolation before anything is allocated."""
    (length,) = _int32.unpack(header)
    if length < 8 or length > bytes_max:
        raise ProtocolViolation("invalid length of startup packet")
    return int(length)


def read_packet(packet: bytes) -> FirstPacket:
    """Raises ProtocolViolation, UnsupportedVersion."""
    (code,) = _int32.unpack_from(packet, 4)
    if code == SSL_REQUEST_CODE and len(packet) == 8:
        return SSLRequest()
    if code == GSSENC_REQUEST_CODE and len(packet) == 8:
        return GSSENCRequest()
    if code == CANCEL_REQUEST_CODE:
        key = packet[12:]
        if not 4 <= len(key) <= 256:  # manual 54.2.8
            raise ProtocolViolation("invalid length of cancel key")
        (pid,) = _int32.unpack_from(packet, 8)
        return CancelRequest(pid, key)
    if code >> 16 != 3:
        raise UnsupportedVersion(f"unsupported frontend protocol {code >> 16 & 0xFFFF}.{code & 0xFFFF}: server supports 3.0 to 3.2")
    return _startup_message(code, packet)


def _startup_message(version: int, packet: bytes) -> StartupMessage:
    if packet[-1] != 0:
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")
    parameters: dict[str, str] = {}
    unknown: list[str] = []
    at = 8
    while at < len(packet) - 1:
        name_bytes, at = c_string(packet, at)
        value_bytes, at = c_string(packet, at)
        try:
            name, value = name_bytes.decode("utf-8"), value_bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolViolation("a startup parameter is not UTF-8") from error
        if not name:
            raise ProtocolViolation("a startup parameter has no name")
        if name in parameters or name in unknown:
            # Servers take the last, readers of logs the first: whoever decides on one while the other counts is fooled.
            raise ProtocolViolation(f"startup parameter {name!a} stands twice")
        if name.startswith("_pq_."):
            unknown.append(name)
        else:
            parameters[name] = value
    if at != len(packet) - 1:
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")
    return StartupMessage(version, parameters, tuple(unknown))


def encode_startup(version: int, parameters: Mapping[str, str]) -> bytes:
    body = b"".join(name.encode("utf-8") + b"\0" + value.encode("utf-8") + b"\0" for name, value in parameters.items()) + b"\0"
    return _int32.pack(len(body) + 8) + _int32.pack(version) + body


def encode_cancel(pid: int, key: bytes) -> bytes:
    return struct.pack("!iii", 12 + len(key), CANCEL_REQUEST_CODE, pid) + key


def read_options(options: str) -> dict[str, str]:
    """The settings in a startup packet's `options`: `-c name=value` and `--name=value`, backslash-escaped as libpq sends them.

    Raises ProtocolViolation for every other switch, since a server would act on it.
    """
    words = _words(options)
    settings: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        if word == "-c" and index + 1 < len(words):
            index += 1
            assignment = words[index]
        elif (word.startswith("-c") and len(word) > 2) or word.startswith("--"):
            assignment = word[2:]
        else:
            raise ProtocolViolation(f"options may hold -c name=value only, not {word!a}")
        name, equals, value = assignment.partition("=")
        if not name or not equals:
            raise ProtocolViolation(f"options may hold -c name=value only, not {assignment!a}")
        name = name.replace("-", "_").lower() if word.startswith("--") else name.lower()
        if name in settings:
            raise ProtocolViolation(f"setting {name!a} stands twice in options")
        settings[name] = value
        index += 1
    return settings


def _words(options: str) -> list[str]:
    words: list[str] = []
    word: list[str] | None = None
    escaped = False
    for character in options:
        if escaped:
            word = [*(word or []), character]
            escaped = False
        elif character == "\\":
            escaped = True
            word = word or []
        elif character in " \t\n\r\v\f":
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            if word is None:
                word = []
            word.append(character)
    if word is not None:
        words.append("".join(word))
    return words
