"""`pgwarden metrics`: serves what the processes of this machine say of themselves, at `/metrics`. Writes nothing, reads no log.

A process of its own, so that none of the others listens for it: they are asked at their status sockets, which only their user may
open, and the gateway, the watchdog and the privileged collector speak no HTTP.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from pgwarden.config import Config
from pgwarden.http_server import CannotStart, SecurityHeaders, Server, bound, settings
from pgwarden.metrics import render
from pgwarden.neighbours import asked

PATH: Final = "/metrics"
SCRAPES_MAX: Final = 4  # at once; each asks every process
CONNECTIONS_MAX: Final = 32
HEADER_BYTES_MAX: Final = 8 * 2**10
ACCEPT_BYTES_MAX: Final = 1_000
SHUTDOWN_SECONDS_MAX: Final = 2


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start."""
    if config.metrics is None:
        sys.stderr.write("pgwarden metrics: the configuration has no [metrics]: write that table, if only its name\n")
        return 1
    try:
        listening = bound(config.metrics.listen, config.metrics.allow_remote, "metrics")
    except CannotStart as error:
        sys.stderr.write(f"pgwarden metrics: {error}\n")
        return 1
    with listening:
        return uvloop.run(
            _serve(Server(settings(application(config.state), CONNECTIONS_MAX, HEADER_BYTES_MAX, SHUTDOWN_SECONDS_MAX)), listening)
        )


async def _serve(server: Server, listening: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    await server.serve([listening])
    return 0


def application(state: Path) -> ASGIApp:
    scrapes = asyncio.Semaphore(SCRAPES_MAX)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if scope["path"] != PATH:
            await _send(send, 404, b"there is /metrics\n", "text/plain; charset=utf-8")
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(send, 405, b"this path takes GET\n", "text/plain; charset=utf-8")
        else:
            async with scrapes:
                body, content_type = render(await asked(state), accept(scope))
            await _send(send, 200, b"" if scope["method"] == "HEAD" else body, content_type)

    return SecurityHeaders(answer)


def accept(scope: Scope) -> str:
    found = b", ".join(value for name, value in scope["headers"] if name == b"accept")
    return found.decode("latin-1") if len(found) <= ACCEPT_BYTES_MAX else ""


async def _send(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode("latin-1")), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
