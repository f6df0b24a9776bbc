"""One leg of a session: a socket's bytes, awaited during login and handed on as they come afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import cast

from gateway.settings import GatewaySettings


class PeerGone(Exception):
    """The peer closed the connection, or it broke."""


class Channel(asyncio.Protocol):
    """`read` until `begin`; from then on `on_data`, `on_lost` and `on_congested` are called."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.congested = False
        self.bytes_read = 0
        self.bytes_written = 0
        self._buffer = b""
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_data: Callable[[bytes], None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self._on_congested: Callable[[bool], None] | None = None
        self._paused = False

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        self.bytes_read += len(data)
        if self._on_data is not None:
            self._on_data(data)
            return
        self._buffer += data
        if len(self._buffer) > 2**17:  # nobody reads: the peer talks out of turn
            self._pause()
        self._wake()

    def eof_received(self) -> bool:
        return False  # PostgreSQL's clients do not half-close; the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._wake()
        if not self._closed.done():
            self._closed.set_result(None)
        if self._on_lost is not None:
            self._on_lost()

    def pause_writing(self) -> None:
        self.congested = True
        if self._on_congested is not None:
            self._on_congested(True)

    def resume_writing(self) -> None:
        self.congested = False
        if self._on_congested is not None:
            self._on_congested(False)

    # -- login -----------------------------------------------------------------------------------------------------------------

    def unread(self, data: bytes) -> None:
        self._buffer = data + self._buffer

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises PeerGone."""
        while len(self._buffer) < size:
            if self.lost:
                raise PeerGone
            self._resume()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def read_message(self, bytes_max: int) -> tuple[bytes, bytes]:
        """Type and body of the next message. Raises PeerGone, ValueError when it is longer than allowed."""
        header = await self.read(5)
        length = int.from_bytes(header[1:], "big", signed=True)
        if length < 4 or length > bytes_max:
            raise ValueError("message length out of bounds")
        return header[:1], await self.read(length - 4)

    # -- relay -----------------------------------------------------------------------------------------------------------------

    def begin(self, on_data: Callable[[bytes], None], on_lost: Callable[[], None], on_congested: Callable[[bool], None]) -> None:
        self._on_data, self._on_lost, self._on_congested = on_data, on_lost, on_congested
        data, self._buffer = self._buffer, b""
        self._resume()
        if data:
            on_data(data)
        if self.lost:
            on_lost()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.lost:
            self.bytes_written += len(data)
            self.transport.write(data)

    def read_on(self, wanted: bool) -> None:
        """Back-pressure: whether to take more from the peer."""
        if wanted:
            self._resume()
        else:
            self._pause()

    async def finish(self, seconds_max: float) -> None:
        """Close once all is written, still reading and discarding for a while: a close with unread input becomes a reset, and a
        reset destroys the last words on their way."""
        self._on_data = self._discard
        transport = self.transport
        if transport is None or self.lost:
            return
        self._resume()
        if transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                transport.write_eof()
        else:
            transport.close()  # TLS: close_notify, behind what was written
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._closed), seconds_max)
        if not self.lost:
            transport.abort()

    def abort(self) -> None:
        if self.transport is not None and not self.lost:
            self.transport.abort()

    # -- facts -----------------------------------------------------------------------------------------------------------------

    @property
    def tls(self) -> ssl.SSLObject | ssl.SSLSocket | None:
        found = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return found if isinstance(found, ssl.SSLObject | ssl.SSLSocket) else None

    def _discard(self, data: bytes) -> None:
        del data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if not self._paused and self.transport is not None and not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self.transport is not None and not self.lost:
            self._paused = False
            self.transport.resume_reading()


def tune(sock: socket.socket, settings: GatewaySettings) -> None:
    """A vanished peer must not hold its session for a quarter of an hour, and a small message must not wait for a larger one."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, settings.keepalive_seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.unacknowledged_ms)
