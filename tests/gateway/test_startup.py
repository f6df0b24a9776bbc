from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.messages import ProtocolViolation
from gateway.wire.startup import (
    CancelRequest,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    UnsupportedVersion,
    encode_cancel,
    encode_startup,
    packet_length,
    read_options,
    read_packet,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda name: not name.startswith("_pq_.")
)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_a_startup_message_survives_the_round_trip(parameters: dict[str, str]) -> None:
    packet = encode_startup(0x00030000, parameters)
    assert packet_length(packet[:4], 10_000_000) == len(packet)
    assert read_packet(packet) == StartupMessage(0x00030000, parameters, ())


@given(st.binary(min_size=4, max_size=256), st.integers(-(2**31), 2**31 - 1))
def test_a_cancel_request_survives_the_round_trip(key: bytes, pid: int) -> None:
    assert read_packet(encode_cancel(pid, key)) == CancelRequest(pid, key)


def test_requests_for_encryption_are_told_apart() -> None:
    assert read_packet(struct.pack("!ii", 8, 80877103)) == SSLRequest()
    assert read_packet(struct.pack("!ii", 8, 80877104)) == GSSENCRequest()


@pytest.mark.parametrize("length", [-1, 0, 4, 7, 10_001, 2**31 - 1])
def test_an_impossible_length_is_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(ProtocolViolation):
        packet_length(struct.pack("!i", length), 10_000)


@pytest.mark.parametrize("version", [0x00020000, 0x00040000, 0])
def test_other_major_versions_are_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersion):
        read_packet(encode_startup(version, {"user": "a"}))


@pytest.mark.parametrize(
    "body",
    [b"user\0a", b"user\0a\0", b"user\0a\0\0\0", b"\0a\0\0", b"user\0a\0user\0b\0\0", b"user\0\xff\0\0", b"user\0a\0x"],
)
def test_a_malformed_startup_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_packet(struct.pack("!ii", len(body) + 8, 0x00030000) + body)


def test_unknown_protocol_options_are_kept_apart() -> None:
    packet = encode_startup(0x00030000, {"user": "a", "_pq_.test_protocol_negotiation": ""})
    assert read_packet(packet) == StartupMessage(0x00030000, {"user": "a"}, ("_pq_.test_protocol_negotiation",))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("-c a=b", {"a": "b"}),
        ("-ca=b --c-d=e", {"a": "b", "c_d": "e"}),
        (r"-c a=b\ c -c d=\\", {"a": "b c", "d": "\\"}),
        ("  -c\tA.B=x  ", {"a.b": "x"}),
    ],
)
def test_options_are_read_as_postgres_reads_them(options: str, expected: dict[str, str]) -> None:
    assert read_options(options) == expected


@pytest.mark.parametrize("options", ["-c", "-c =b", "-c a", "-d 5", "word", "-c a=1 -c a=2", "--=x", "-W 10"])
def test_other_switches_are_refused(options: str) -> None:
    with pytest.raises(ProtocolViolation):
        read_options(options)
