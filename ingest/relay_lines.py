"""What a gateway and its relay tell each other: one JSON value a line, on a socket that only their user may open."""

from __future__ import annotations

from typing import Final

import msgspec

from ingest.events import GatewayReported

LINE_BYTES_MAX: Final = 64 * 1024


class RelayState(msgspec.Struct, frozen=True):
    """The relay's word: pushed at each change, and every second."""

    pid: int
    # When the brokers were last asked for the end of `identity`, all of which stands in this machine's log by now; 0 = never.
    # CLOCK_MONOTONIC, which the processes of a machine share, and nobody sets.
    contact_mono_us: int = 0
    identity_offset: int = 0  # that end: the local log holds the same records at the same offsets
    shipped: dict[str, int] = {}  # topic -> the first local offset that the brokers do not have; {} = not known yet
    backlog_bytes: int = -1  # in the local log, not with the brokers; -1 = not counted yet
    backlog_records: int = -1
    error: str = ""  # what is in the way now; "" = nothing


class GatewayWord(msgspec.Struct, frozen=True):
    """The gateway's: every second, and as soon as it acts on a newer identity."""

    report: GatewayReported
    needed: dict[str, int] = {}  # topic -> from which local offset on its next start may have to read; {} = not known


_states: Final = msgspec.json.Decoder(RelayState)
_words: Final = msgspec.json.Decoder(GatewayWord)


def line(word: RelayState | GatewayWord) -> bytes:
    return msgspec.json.encode(word) + b"\n"


def state(data: bytes) -> RelayState:
    """Raises ValueError."""
    return _states.decode(data)


def word(data: bytes) -> GatewayWord:
    """Raises ValueError."""
    return _words.decode(data)
