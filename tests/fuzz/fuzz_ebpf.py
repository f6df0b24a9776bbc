"""Any bytes are records, symbols, a probe's site or messages, or are refused by name; nothing else comes out, and it ends."""

from __future__ import annotations

import contextlib

from ingest.collectors.ebpf import elf, messages, server, sites, versions
from ingest.collectors.ebpf.decode import DecodeSettings, Decoding, RingInvalid

_SMALL = DecodeSettings(sessions_max=4, connections_max=4, text_bytes_max=4096, homeless_max=8)


def one_input(data: bytes) -> None:
    decoding = Decoding("ebpf", "main", _SMALL)
    for read in (decoding.records, decoding.spilled, decoding.known):
        with contextlib.suppress(RingInvalid):
            read(data, 0)
    assert len(decoding._sessions) <= _SMALL.sessions_max
    assert len(decoding._connections) <= _SMALL.connections_max
    assert decoding._homeless_records <= _SMALL.homeless_max
    assert 0 <= decoding._text_bytes <= _SMALL.text_bytes_max
    with contextlib.suppress(elf.ElfInvalid):
        elf.symbols(data, versions.VARIABLES)
    with contextlib.suppress(server.ServerUnknown):
        server.probes_of(data, versions.major_of(data), nested=True, chunks=1)
    found = sites.site("x86_64", data, 3)
    assert 0 <= found.offset <= len(data)
    for understand in (messages.head, messages.read_hello, messages.read_let_go, messages.read_piece, messages.read_status):
        with contextlib.suppress(messages.Malformed):
            understand(data[:5].ljust(5, b"\0") if understand is messages.head else data)
    with contextlib.suppress(messages.Malformed):
        messages.read_unseen(data)
