"""A server that lies, stalls or talks nonsense behind the gateway: its session ends, the gateway goes on, and nothing is made up."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.settings import GatewaySettings
from gateway.upstream import Target, UpstreamRefused, connect
from gateway.wire.messages import message

SETTINGS = GatewaySettings(upstream_connect_seconds_max=0.5)
READY = message(b"R", struct.pack("!i", 0)) + message(b"K", struct.pack("!ii", 7, 7)) + message(b"Z", b"I")


def sasl(*names: bytes) -> bytes:
    return message(b"R", struct.pack("!i", 10) + b"".join(name + b"\0" for name in names) + b"\0")


@asynccontextmanager
async def serving(answer: bytes, *, hang: bool = False) -> AsyncIterator[Target]:
    over = asyncio.Event()
    talks: set[asyncio.Task[None] | None] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        await reader.read(1000)
        writer.write(answer)
        if hang:
            await over.wait()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Target("shop", "127.0.0.1", port, "shop", "role", lambda: "password", None, ("public",), "group")
    finally:
        server.close()
        over.set()
        await asyncio.gather(*(task for task in talks if task is not None))
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"R\x7f\xff\xff\xff",
        b"R\0\0\0\0",
        message(b"R", struct.pack("!i", 3)),
        message(b"R", struct.pack("!i", 11) + b"r=x,s=YQ==,i=1"),
        message(b"R", struct.pack("!i", 12) + b"v=YQ=="),
        sasl(b"SCRAM-SHA-1"),
        sasl(b"SCRAM-SHA-256") + message(b"R", struct.pack("!i", 0)) + READY,
        sasl(b"SCRAM-SHA-256") + message(b"R", struct.pack("!i", 11) + b"r=other,s=YQ==,i=4096"),
        message(b"S", b"a\0b\0") * 2_000,
        message(b"N", b"x" * 60_000) * 5,
        message(b"E", b""),
        message(b"E", b"\xff\xfe\0C\0M"),
    ],
)
@pytest.mark.parametrize("hang", [False, True])
async def test_a_login_at_a_server_that_misbehaves_is_refused_in_time(answer: bytes, hang: bool) -> None:
    async with serving(answer, hang=hang) as target, asyncio.timeout(1.5):
        with pytest.raises(UpstreamRefused):
            await connect(target, 0x00030000, {"user": "role"}, SETTINGS)


@pytest.mark.parametrize("offered", [b"", b"\0", b"\0\0\0"])
async def test_an_authentication_message_without_a_code_proves_nothing(offered: bytes) -> None:
    async with serving(message(b"R", offered) + message(b"K", struct.pack("!ii", 7, 7)) + message(b"Z", b"I")) as target:
        with pytest.raises(UpstreamRefused):
            await connect(target, 0x00030000, {"user": "role"}, SETTINGS)
