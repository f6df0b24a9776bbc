from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import messages
from gateway.wire.messages import Error, ProtocolViolation


def test_an_error_says_its_severity_twice_and_its_state() -> None:
    fields = messages.error_fields(messages.error_response(Error("42501", "no", "ask", fatal=True, position=3))[5:])
    assert fields == {"S": "FATAL", "V": "FATAL", "C": "42501", "M": "no", "H": "ask", "P": "3"}


def test_a_sentence_cannot_carry_control_characters_or_end_the_message() -> None:
    fields = messages.error_fields(messages.error_response(Error("42501", "a\0b\nc\x1b[31m\u00e9"))[5:])
    assert fields["M"] == "a?b?c?[31m?"


@given(st.binary(max_size=300))
def test_no_answer_of_a_server_breaks_the_reader(body: bytes) -> None:
    assert len(messages.sqlstate_of(body)) == 5
    assert messages.is_fatal(body) in (True, False)


@pytest.mark.parametrize(
    ("tag", "rows"), [("INSERT 0 5", 5), ("SELECT 3", 3), ("COPY 7", 7), ("BEGIN", 0), ("", 0), ("CREATE TABLE", 0)]
)
def test_a_tag_tells_its_rows(tag: str, rows: int) -> None:
    assert messages.rows_of_tag(tag) == rows


def test_parameters_are_read_by_their_formats() -> None:
    body = b"portal\0name\0" + struct.pack("!hhh", 2, 0, 1) + struct.pack("!h", 3)
    body += struct.pack("!i", 2) + b"ab" + struct.pack("!i", 2) + b"\x00\x07" + struct.pack("!i", -1) + struct.pack("!h", 0)
    assert messages.bind_parameters(body + b"", 12) == ("ab", "\\x0007", None)


@given(st.binary(max_size=100))
def test_a_malformed_bind_is_a_violation_and_nothing_else(body: bytes) -> None:
    try:
        messages.bind_parameters(body, 0)
    except ProtocolViolation:
        pass


@given(st.binary(max_size=100))
def test_a_malformed_sasl_response_is_a_violation_and_nothing_else(body: bytes) -> None:
    try:
        messages.read_sasl_initial_response(body)
    except ProtocolViolation:
        pass
