"""What our HTTP servers have in common: where they listen, what they let a peer send, what every answer bears."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from identity.settings import loopback
from pgwarden.config import Address

BACKLOG: Final = 128
KEEP_ALIVE_SECONDS: Final = 15

# An answer is data for one caller: not kept, not guessed to be a page, not shown in one.
SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class CannotStart(Exception):
    """The configuration asks for what a process does not do. Says what to write instead."""


def bound(listen: Address, allow_remote: bool, table: str) -> socket.socket:
    """A socket that has its address and takes no connection yet: whoever reaches the port finds a process that answers.

    Raises:
        CannotStart: The address is not this machine's alone and nobody asked for that, or it cannot be used.
    """
    if not loopback(listen.host) and not allow_remote:
        raise CannotStart(f"[{table}] listen = {listen} is open to other machines: write 127.0.0.1, or allow_remote = true")
    made = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its own connections of a moment ago are no obstacle
        made.bind((listen.host, listen.port))
    except OSError as error:
        made.close()
        raise CannotStart(f"[{table}] listen = {listen} cannot be used: {error.strerror or error}") from error
    return made


def settings(app: ASGIApp, connections_max: int, header_bytes_max: int, shutdown_seconds_max: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,  # X-Forwarded-For would let a peer choose the address that its failures are counted against
        server_header=False,
        access_log=False,
        log_config=None,
        limit_concurrency=connections_max,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds_max,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=header_bytes_max,
    )


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own: what it holds is written after the last answer."""
        yield


class SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            await send(message)

        await self._app(scope, receive, sending)
