"""How a process of this machine is: one JSON object a connection, on a socket that only its user may open. Both ends of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import orjson

STATUS_BYTES_MAX: Final = 16 * 2**20  # 250 bytes a session

Answer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_decoder: Final = msgspec.json.Decoder(dict[str, object])


# -- who is asked ----------------------------------------------------------------------------------------------------------------


async def serve_status(path: Path, status: Callable[[], Mapping[str, object]]) -> asyncio.Server:
    """Raises OSError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with contextlib.suppress(OSError):
            writer.write(orjson.dumps(status()))
            await writer.drain()
        writer.close()

    return await listen(path, answer)


async def listen(path: Path, answer: Answer, line_bytes_max: int = 64 * 2**10) -> asyncio.Server:
    """Raises OSError."""
    _make_room(path)
    previous = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(answer, path, limit=line_bytes_max)
    finally:
        os.umask(previous)


def _make_room(path: Path) -> None:
    """A socket that a killed process left behind would be in the way; two processes are kept apart by the log's locks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


# -- who asks --------------------------------------------------------------------------------------------------------------------


def status_of(path: Path, seconds_max: float) -> Mapping[str, object]:
    """What it says, or the first line of what goes on. Blocks, for no longer than `seconds_max` in silence.

    Raises:
        FileNotFoundError, ConnectionRefusedError: It does not run. The second: one that was killed leaves its socket behind.
        OSError, ValueError: It does not answer, or not as it should.
    """
    said = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(seconds_max)
        peer.connect(str(path))
        while not _add(said, peer.recv(65_536)):
            pass
    return _decoder.decode(said.partition(b"\n")[0])


async def read_status(path: Path, seconds_max: float) -> Mapping[str, object]:
    """As status_of(), without blocking, and within `seconds_max`; TimeoutError, which is an OSError, beyond it."""
    async with asyncio.timeout(seconds_max):
        reader, writer = await asyncio.open_unix_connection(path)
        said = bytearray()
        try:
            while not _add(said, await reader.read(65_536)):
                pass
        finally:
            writer.close()
    return _decoder.decode(said.partition(b"\n")[0])


def _add(said: bytearray, more: bytes) -> bool:
    """Whether that was all. Raises ValueError when it is too much."""
    said += more
    if len(said) > STATUS_BYTES_MAX:
        raise ValueError(f"it is larger than {STATUS_BYTES_MAX} bytes")
    return not more or b"\n" in more
