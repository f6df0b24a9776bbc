"""A client that sends any bytes after an honest login, in the clear from loopback."""

from __future__ import annotations

import secrets
import socket
import struct

from gateway.wire import messages
from gateway.wire.scram import ScramClient
from gateway.wire.startup import encode_startup


class RawClient:
    def __init__(self, port: int, agent: str, key: str, **parameters: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.buffer = b""
        self.pid, self.key = 0, b""
        self.send(encode_startup(0x00030000, {"user": agent, "database": "shop", **parameters}))
        scram = ScramClient(key, secrets.token_urlsafe(18), 100_000)
        self._expect(10)
        self.send(messages.sasl_initial_response(scram.mechanism, scram.first()))
        self.send(messages.sasl_response(scram.final(self._expect(11))))
        scram.check(self._expect(12))
        self._expect(0)
        for kind, body in self.until(b"Z"):
            if kind == b"K":
                self.pid, self.key = int.from_bytes(body[:4], "big"), body[4:]

    def _expect(self, code: int) -> bytes:
        kind, body = self.message()
        assert (kind, int.from_bytes(body[:4], "big")) == (b"R", code), (kind, body)
        return body[4:]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def message(self) -> tuple[bytes, bytes]:
        while len(self.buffer) < 5 or len(self.buffer) < 1 + int.from_bytes(self.buffer[1:5], "big"):
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(self.buffer)
            self.buffer += more
        end = 1 + int.from_bytes(self.buffer[1:5], "big")
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken[:1], taken[5:]

    def until(self, kind: bytes, times: int = 1) -> list[tuple[bytes, bytes]]:
        """Messages up to the last of so many of this kind."""
        found = []
        while times:
            found.append(self.message())
            times -= found[-1][0] == kind
        return found

    def kinds(self, syncs: int) -> str:
        """The types of the answers up to so many ReadyForQuery."""
        return b"".join(kind for kind, _ in self.until(b"Z", syncs)).decode()

    def vanish(self) -> None:
        """As a machine that lost its power would, but told: with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.send(messages.TERMINATE)
        self.socket.close()


def query(text: str) -> bytes:
    return messages.query(text)


def parse(text: str, name: str = "") -> bytes:
    return messages.parse(name, text)


def bind(statement: str = "", portal: str = "", *values: str) -> bytes:
    encoded = b"".join(struct.pack("!i", len(value.encode())) + value.encode() for value in values)
    body = (
        portal.encode() + b"\0" + statement.encode() + b"\0" + struct.pack("!hh", 0, len(values)) + encoded + struct.pack("!h", 0)
    )
    return messages.message(b"B", body)


def execute(portal: str = "", rows: int = 0) -> bytes:
    return messages.message(b"E", portal.encode() + b"\0" + struct.pack("!i", rows))


def close(kind: str, name: str) -> bytes:
    return messages.message(b"C", kind.encode() + name.encode() + b"\0")


def run(text: str) -> bytes:
    return parse(text) + bind() + execute()


SYNC = messages.SYNC
FLUSH = messages.message(b"H", b"")
COPY_DONE = messages.message(b"c", b"")


def copy_data(rows: str) -> bytes:
    return messages.message(b"d", rows.encode())


def copy_fail(why: str) -> bytes:
    return messages.message(b"f", why.encode() + b"\0")
