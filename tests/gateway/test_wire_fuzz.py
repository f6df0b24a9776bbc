"""Drives tests/fuzz/fuzz_wire.py and fuzz_session.py."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import fuzz_session, fuzz_wire


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_hostile_bytes_of_the_handshake_are_read_or_refused(data: bytes) -> None:
    fuzz_wire.one_input(data)


@settings(max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"user\0a\0", b"options\0-c a=b\0", b"n,,n=,r=x", b"c=biws,r=xnonce,p=", b"_pq_.x\0\0"]),
            st.binary(max_size=10),
        ),
        max_size=10,
    )
)
def test_pieces_of_the_handshake_in_any_order_are_read_or_refused(pieces: list[bytes]) -> None:
    fuzz_wire.one_input(b"".join(pieces))


@settings(max_examples=1_000, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=60))
def test_any_conversation_forwards_nothing_undecided(choices: list[int]) -> None:
    fuzz_session.one_input(bytes(choices))
