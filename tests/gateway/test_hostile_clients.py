"""Bytes on the gateway's port that no honest client sends. After each of them an honest one is served."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from gateway.wire import messages
from gateway.wire.startup import SSL_REQUEST, encode_cancel, encode_startup

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

GSS_REQUEST = struct.pack("!ii", 8, 80877104)


def _socket(warden: Warden) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", warden.port), timeout=5)
    sock.settimeout(5)
    return sock


def _context(warden: Warden) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(warden.folder / "state/tls/certificate.pem"))
    context.set_alpn_protocols(["postgresql"])
    return context


def _tls(warden: Warden) -> ssl.SSLSocket:
    sock = _socket(warden)
    sock.sendall(SSL_REQUEST)
    assert sock.recv(1) == b"S"
    return _context(warden).wrap_socket(sock, server_hostname="127.0.0.1")


def _rest(sock: socket.socket) -> bytes:
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except (ConnectionResetError, ssl.SSLError):
        pass
    finally:
        sock.close()
    return data


def _serves(warden: Warden) -> None:
    with warden.connect("reporter") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_bytes_in_the_clear_behind_a_request_for_tls_are_refused(warden: Warden) -> None:
    warden.agent("reporter")
    sock = _socket(warden)
    sock.sendall(SSL_REQUEST + encode_startup(0x00030000, {"user": "reporter"}))
    assert b"S" not in _rest(sock)[:1]
    _serves(warden)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"\0\0\0\x07\0\3\0\0",
        b"\x7f\xff\xff\xff\0\3\0\0",
        b"\0\0\x27\x11\0\3\0\0",
        SSL_REQUEST[:5],
        GSS_REQUEST + GSS_REQUEST,
        b"\x16\x03\x01\0\x05garbage",
        encode_cancel(1, b"12345678"),
        encode_cancel(1, b"x" * 256),
        encode_startup(0x00020000, {"user": "reporter"}),
        os.urandom(5_000),
    ],
)
def test_garbage_ends_its_own_connection_only(warden: Warden, data: bytes) -> None:
    warden.agent("reporter")
    sock = _socket(warden)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    assert b"R\0\0\0" not in _rest(sock)
    _serves(warden)


def test_gssenc_then_ssl_is_answered_in_order(warden: Warden) -> None:
    warden.agent("reporter")
    sock = _socket(warden)
    sock.sendall(GSS_REQUEST)
    assert sock.recv(1) == b"N"
    sock.sendall(SSL_REQUEST)
    assert sock.recv(1) == b"S"
    sock.close()


def test_direct_tls_needs_the_protocols_name(warden: Warden) -> None:
    warden.agent("reporter")
    direct = _context(warden).wrap_socket(_socket(warden), server_hostname="127.0.0.1")
    direct.sendall(encode_startup(0x00030000, {"user": "reporter", "database": "shop"}))
    assert direct.recv(1) == b"R"
    direct.close()
    nameless = ssl.create_default_context(cafile=str(warden.folder / "state/tls/certificate.pem"))
    sock = nameless.wrap_socket(_socket(warden), server_hostname="127.0.0.1")
    assert _rest(sock)[:1] != b"R"
    _serves(warden)


def test_a_newer_protocol_is_negotiated_once_before_authentication(warden: Warden) -> None:
    warden.agent("reporter")
    sock = _tls(warden)
    sock.sendall(encode_startup(0x0003270F, {"user": "reporter", "database": "shop", "_pq_.test_protocol_negotiation": ""}))
    kind, length = sock.recv(1), struct.unpack("!i", sock.recv(4))[0]
    body = sock.recv(length - 4)
    assert kind == b"v"
    assert struct.unpack("!ii", body[:8]) == (0x00030002, 1)
    assert body[8:] == b"_pq_.test_protocol_negotiation\0"
    assert sock.recv(1) == b"R"
    sock.close()


@pytest.mark.parametrize(
    "answer",
    [
        messages.query("SELECT 1"),
        encode_startup(0x00030000, {"user": "other", "database": "shop"}),
        b"p\x7f\xff\xff\xff",
        messages.message(b"p", b"x" * 70_000),
        messages.message(b"p", b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        messages.message(b"p", b"SCRAM-SHA-256\0\0\0\0\x05n,,n="),
        messages.message(b"p", b""),
    ],
)
def test_nothing_but_a_proof_leads_past_authentication(warden: Warden, answer: bytes) -> None:
    warden.agent("reporter")
    sock = _tls(warden)
    sock.sendall(encode_startup(0x00030000, {"user": "reporter", "database": "shop"}))
    assert sock.recv(1) == b"R"
    sock.sendall(answer)
    sock.sendall(messages.query("SELECT 'inside'") * 3)
    told = _rest(sock)
    assert b"inside" not in told
    assert messages.AUTHENTICATION_OK not in told
    _serves(warden)


def test_a_startup_parameter_named_twice_is_refused(warden: Warden) -> None:
    warden.agent("reporter")
    sock = _tls(warden)
    body = b"user\0reporter\0user\0admin\0\0"
    sock.sendall(struct.pack("!ii", len(body) + 8, 0x00030000) + body)
    assert b"08P01" in _rest(sock)


@pytest.mark.slow
def test_slow_and_silent_clients_do_not_keep_others_out(warden: Warden) -> None:
    warden.agent("reporter")
    silent = [_socket(warden) for _ in range(50)]
    for sock in silent[:25]:
        sock.sendall(b"\0")
    started = time.monotonic()
    _serves(warden)
    assert time.monotonic() - started < 5
    for sock in silent:
        sock.settimeout(15)
        assert sock.recv(10) == b""
        sock.close()


@pytest.mark.slow
def test_many_connections_leave_no_descriptor_behind(warden: Warden) -> None:
    warden.agent("reporter")
    _serves(warden)
    assert warden.process is not None
    folder = f"/proc/{warden.process.pid}/fd"
    before = len(os.listdir(folder))

    def knock() -> None:
        for _ in range(40):
            sock = _socket(warden)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(SSL_REQUEST)
            sock.close()
        for _ in range(5):
            _serves(warden)

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until = time.monotonic() + 15
    while len(os.listdir(folder)) > before + 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(os.listdir(folder)) <= before + 2
    _serves(warden)
