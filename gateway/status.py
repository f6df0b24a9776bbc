"""Answers what the gateway is doing: one JSON object a connection, on a socket that only this user may open."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson


async def serve_status(path: Path, status: Callable[[], Mapping[str, object]]) -> asyncio.Server:
    """Raises OSError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with contextlib.suppress(OSError):
            writer.write(orjson.dumps(status()))
            await writer.drain()
        writer.close()

    _make_room(path)
    previous = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(answer, path)
    finally:
        os.umask(previous)


def _make_room(path: Path) -> None:
    """A socket that a killed gateway left behind would be in the way; two gateways are kept apart by the log's lock."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
