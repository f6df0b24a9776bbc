"""A fresh connection to Postgres for one session: TLS, login with the stored credential, and its first words."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway import tls
from gateway.channel import Channel, PeerGone, tune
from gateway.settings import Durability, GatewaySettings
from gateway.wire import messages
from gateway.wire.messages import Error
from gateway.wire.scram import SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramClient, ScramRefused
from gateway.wire.startup import SSL_REQUEST, encode_cancel, encode_startup


@dataclass(frozen=True, slots=True)
class Target:
    """A named database and the credential for it."""

    name: str
    host: str
    port: int
    database: str
    role: str
    password: Callable[[], str] = field(repr=False)
    tls: ssl.SSLContext | None
    search_path: tuple[str, ...]
    durability: Durability


class UpstreamRefused(Exception):
    """Postgres said no, in `response`'s own words, or could not be reached, in ours."""

    def __init__(self, response: bytes, reason: str, sqlstate: str) -> None:
        super().__init__(reason)
        self.response = response
        self.reason = reason
        self.sqlstate = sqlstate


@dataclass(slots=True)
class Upstream:
    channel: Channel
    greeting: bytes = field(repr=False)  # ParameterStatus, BackendKeyData, ReadyForQuery as they came
    parameters: Mapping[str, str]
    pid: int
    key: bytes = field(repr=False)
    local_port: int


async def connect(target: Target, version: int, parameters: Mapping[str, str], settings: GatewaySettings) -> Upstream:
    """Raises UpstreamRefused."""
    try:
        async with asyncio.timeout(settings.upstream_connect_seconds_max):
            channel = await _open(target, settings)
            try:
                return await _login(channel, target, version, parameters, settings)
            except BaseException:
                channel.abort()
                raise
    except (OSError, PeerGone, ValueError, TimeoutError, ScramRefused) as error:
        if isinstance(error, ssl.SSLError | ScramRefused):
            reason = f"the server of {target.name} could not be trusted: {error}"
        else:
            reason = f"the server of {target.name} cannot be reached: {error or type(error).__name__}"
        told = Error("08006", f"the database behind {target.name} cannot be reached now: try again later", fatal=True)
        raise UpstreamRefused(messages.error_response(told), reason, "08006") from error


async def _open(target: Target, settings: GatewaySettings) -> Channel:
    loop = asyncio.get_running_loop()
    sock = await _socket(target, settings)
    channel = Channel()
    try:
        if target.tls is None:
            await loop.create_connection(lambda: channel, sock=sock)
            return channel
        await loop.sock_sendall(sock, SSL_REQUEST)
        # One byte and no more: what follows it in clear text must not be taken for part of the encrypted stream.
        answer = await loop.sock_recv(sock, 1)
        if answer != b"S":
            raise ssl.SSLError(f"it does not offer TLS, which sslmode of connection {target.name} demands")
        await loop.create_connection(lambda: channel, sock=sock, ssl=target.tls, server_hostname=target.host)
        return channel
    except BaseException:
        sock.close()
        raise


async def _socket(target: Target, settings: GatewaySettings) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        tune(sock, settings)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _login(
    channel: Channel, target: Target, version: int, parameters: Mapping[str, str], settings: GatewaySettings
) -> Upstream:
    channel.write(encode_startup(version, parameters))
    scram: ScramClient | None = None
    proven = False
    greeting: list[bytes] = []
    reported: dict[str, str] = {}
    pid, key = 0, b""
    for _ in range(1_000):  # a server that never gets to the point
        kind, body = await channel.read_message(settings.authentication_bytes_max)
        if kind == b"E":
            response = messages.message(kind, body)
            raise UpstreamRefused(response, messages.error_fields(body).get("M", ""), messages.sqlstate_of(body))
        if kind == b"R":
            if len(body) < 4:
                raise ValueError("an authentication message without a code")
            code = int.from_bytes(body[:4], "big")
            if code == 10:
                offered = body[4:].rstrip(b"\0").decode("ascii", "replace").split("\0")
                scram = _scram(channel, target, offered, settings)
                channel.write(messages.sasl_initial_response(scram.mechanism, scram.first()))
            elif code == 11 and scram is not None:
                # PBKDF2 in a thread: thousands of rounds would hold up every other session
                final = await asyncio.to_thread(scram.final, body[4:])
                channel.write(messages.sasl_response(final))
            elif code == 12 and scram is not None:
                scram.check(body[4:])
                proven = True
            elif code == 0:
                if scram is not None and not proven:
                    raise ScramRefused("the server let us in without proving that it knows the password")
            else:
                raise ScramRefused(f"it asks for authentication method {code}; only SCRAM-SHA-256 is done, set up the role with it")
        elif kind in (b"S", b"N"):
            greeting.append(messages.message(kind, body))
            if kind == b"S":
                name, _, value = body.rstrip(b"\0").partition(b"\0")
                reported[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        elif kind == b"K":
            pid, key = int.from_bytes(body[:4], "big", signed=True), body[4:]
            greeting.append(messages.message(kind, body))
        elif kind == b"Z":
            greeting.append(messages.message(kind, body))
            name_of_socket = channel.transport.get_extra_info("sockname") if channel.transport is not None else None
            local_port = int(name_of_socket[1]) if isinstance(name_of_socket, tuple) else 0
            return Upstream(channel, b"".join(greeting), reported, pid, key, local_port)
        # NegotiateProtocolVersion: ours to the client was sent before; a lower one changes nothing that is passed on
    raise ValueError("too many messages before ReadyForQuery")


def _scram(channel: Channel, target: Target, offered: list[str], settings: GatewaySettings) -> ScramClient:
    nonce = secrets.token_urlsafe(18)
    connection = channel.tls
    if connection is not None and SCRAM_SHA_256_PLUS in offered:
        certificate = connection.getpeercert(binary_form=True)
        binding = tls.end_point(certificate) if certificate else None
        if binding is not None:
            return ScramClient(target.password(), nonce, settings.scram_iterations_max, binding)
    if SCRAM_SHA_256 not in offered:
        raise ScramRefused(f"it offers {', '.join(offered)} only")
    return ScramClient(target.password(), nonce, settings.scram_iterations_max)


async def cancel(target: Target, pid: int, key: bytes, settings: GatewaySettings) -> None:
    """Ask the server to cancel what `pid` runs, over the same kind of transport as its session. Returns when the server has
    closed, which is when the signal was sent; errors are no answer and are not raised."""
    with contextlib.suppress(OSError, TimeoutError, PeerGone):
        async with asyncio.timeout(settings.cancel_seconds_max):
            channel = await _open(target, settings)
            try:
                channel.write(encode_cancel(pid, key))
                await channel.read(1)
            finally:
                channel.abort()
