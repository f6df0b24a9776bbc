"""The unprivileged side against a peer on its socket that is no witness, or one that is out of its mind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ingest.collectors.ebpf import messages
from ingest.collectors.ebpf.messages import HEAD, Hello, Piece, Status
from ingest.collectors.ebpf.reader import EbpfCollector
from tests.ingest.collectors.ebpf.test_witness import Kept

HELLO = messages.as_json(messages.HELLO, Hello(messages.PROTOCOL, 1, 0, 2**16, nested=False, wall_us=0))
STATUS = messages.as_json(messages.STATUS, Status(True, "", 18, 1, True, (), 5, 0, 0, 0, 0))
RECORDS = messages.piece(messages.RECORDS, Piece(0, 45, b"\x01\x00\x00\x00\xff" * 9))


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        HEAD.pack(2**31, messages.HELLO),
        STATUS,  # before its hello
        messages.message(messages.HELLO, b"{"),
        messages.message(messages.HELLO, b'{"protocol":"\xff"}'),
        messages.message(messages.HELLO, HELLO[HEAD.size :].replace(b'"protocol":%d' % messages.PROTOCOL, b'"protocol":9')),
        HELLO + messages.message(messages.STATUS, STATUS[HEAD.size :].replace(b'"reason":""', b'"reason":"\xff\xfe"')),
        HELLO + messages.message(messages.UNSEEN, b"[" * 5_000),
        HELLO + messages.message(99, b""),
        HELLO + messages.message(messages.RECORDS, b"short"),
        HELLO + RECORDS,
    ],
)
async def test_garbage_is_refused_with_the_reason_and_the_next_that_makes_sense_is_read(
    tmp_path: Path, garbage: bytes, await_for: Callable[..., Awaitable[object]]
) -> None:
    said = [garbage]

    heard_out = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said[0])
        with contextlib.suppress(OSError):
            await reader.read()  # until the collector hangs up
        writer.close()
        if said[0] != garbage:
            heard_out.set()

    path = tmp_path / "witness.sock"
    outlet = Kept()
    collector = EbpfCollector("ebpf", "main", path, retry_seconds=0.01)
    async with await asyncio.start_unix_server(speak, str(path)):
        task = asyncio.create_task(collector.run(outlet))
        try:
            await await_for(lambda: "cannot be understood" in collector.state().reason, 10)
            assert not collector.state().seeing
            said[0] = HELLO + STATUS * 2
            await await_for(lambda: collector.state().seeing, 10)
            assert collector.state().witness == {
                "reached": 1,
                "attached": 1,
                "made": 5,
                "lost": 0,
                "unattributed": 0,
                "unreadable_texts": 0,
                "full_sessions": 0,
            }
        finally:
            task.cancel()
            await asyncio.wait({task})
        await asyncio.wait_for(heard_out.wait(), 10)
    assert task.cancelled()
    assert outlet.seen == []
