"""Whatever happens to a segment's bytes, a survey finds the beginning of what was written, or says that it is damaged."""

from __future__ import annotations

import contextlib

from ingest.log import batches


def one_input(data: bytes) -> None:
    """The first bytes lay out a segment, the others damage it."""
    written, segment = _segment(data[:4])
    changes = data[4:]
    damaged = bytearray(segment)
    for at in range(0, len(changes) - 3, 4):
        place = int.from_bytes(changes[at : at + 2], "big") % (len(damaged) + 1)
        kind, value = changes[at + 2] % 3, changes[at + 3]
        if kind == 0 and place < len(damaged):
            damaged[place] ^= value
        elif kind == 1:
            del damaged[place:]
        else:
            damaged[place : place + value] = bytes(len(damaged[place : place + value]))
    _check(bytes(damaged), written)
    _check_foreign(data)


def _segment(plan: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    written: list[tuple[bytes, bytes]] = []
    segment = b""
    for number, byte in enumerate(plan):
        records = [(b"k%d" % number, bytes([n]) * (byte >> 2)) for n in range(1 + byte % 3)]
        batch = batches.encode(7 + len(written), 1, records)
        if number + 1 < len(plan) or byte & 128:
            batch = bytes([batches.DURABLE]) + batch[1:]
        segment += batch
        written += records
    return written, segment + bytes(64)


def _check(segment: bytes, written: list[tuple[bytes, bytes]]) -> None:
    try:
        found = batches.survey(segment, 7)
    except batches.BatchInvalid:
        return
    recovered: list[tuple[bytes, bytes]] = []
    place = 0
    while place < found.length:
        head = batches.header(segment, place)
        recovered += batches.records(segment, place, head)
        place += batches.HEADER_BYTES + head.length
    assert place == found.length
    assert recovered == written[: len(recovered)]
    assert found.next_offset == 7 + len(recovered)
    assert found.length + found.dropped_bytes <= len(segment)


def _check_foreign(data: bytes) -> None:
    with contextlib.suppress(batches.BatchInvalid):
        batches.survey(data, 0)
    if len(data) >= batches.HEADER_BYTES:
        with contextlib.suppress(batches.BatchInvalid):
            batches.records(data, 0, batches.header(data, 0))
