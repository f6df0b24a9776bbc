"""Bytes as a startup packet, its options, a SCRAM exchange from either side, and the bodies of messages: read or refused."""

from __future__ import annotations

import contextlib

from gateway.stamp import Request, request
from gateway.wire import messages
from gateway.wire.messages import ProtocolViolation
from gateway.wire.scram import ScramClient, ScramRefused, ScramServer
from gateway.wire.startup import StartupMessage, encode_startup, packet_length, read_options, read_packet
from identity import agent_keys
from identity.refusal import Refusal

DECOY = agent_keys.decoy("nobody", b"seed")


def one_input(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        packet_length(data[:4].ljust(4, b"\0"), 10_000)
    for packet in (data.ljust(8, b"\0"), b"\0\0\0\0\0\3\0\0" + data + b"\0"):
        with contextlib.suppress(ProtocolViolation):
            read = read_packet(packet)
            if isinstance(read, StartupMessage):
                assert read_packet(encode_startup(read.version, read.parameters)) == StartupMessage(
                    read.version, read.parameters, ()
                )
                assert isinstance(request(read), Request | Refusal)
    with contextlib.suppress(ProtocolViolation):
        read_options(data.decode("latin-1"))
    for read_body in (messages.read_sasl_initial_response,):
        with contextlib.suppress(ProtocolViolation):
            read_body(data)
    with contextlib.suppress(ProtocolViolation):
        messages.bind_parameters(data, 0)
    with contextlib.suppress(ProtocolViolation):
        messages.parameter_types(data, 0)
    messages.error_fields(data)
    first, _, rest = data.partition(b"\0")
    server = ScramServer(DECOY, "nonce", b"\x01" * 32)
    with contextlib.suppress(ScramRefused):
        server.start("SCRAM-SHA-256", first)
        server.finish(rest)
        raise AssertionError("nobody has a key that fits a decoy")
    with contextlib.suppress(ScramRefused):
        ScramClient("password", "nonce", 10).final(b"r=nonceX,s=YQ==,i=" + data)
    with contextlib.suppress(ScramRefused):
        ScramClient("password", "nonce", 10).check(data)
        raise AssertionError("nobody proved anything")
