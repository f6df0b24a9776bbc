"""Settings go in; a client that a broker has answered comes out, or a sentence that says why there is none.

Only a process that is configured for Kafka imports this file and `kafka.py`: kafka-python alone takes a third of a second.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from ingest.log import LogUnavailable
from ingest.log.kafka_client import INSTALL, connection, listening, sentence
from ingest.once_a_minute import OnceAMinute
from ingest.settings import KafkaSettings

try:
    import crc32c  # noqa: F401 - kafka-python has one of its own, in Python: 36 us for each 400 bytes instead of 0.04
    import kafka
    from kafka.errors import AuthorizationError, KafkaConnectionError, KafkaError, SaslAuthenticationFailedError
    from kafka.net.compat import KafkaNetClient
    from kafka.net.inet import KafkaNetSocket
    from kafka.net.manager import KafkaConnectionManager
    from kafka.net.sasl import register_sasl_mechanism
    from kafka.net.sasl.plain import SaslMechanismPlain
    from kafka.net.sasl.scram import SaslMechanismScram
    from kafka.net.selector import NetworkSelector
    from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
except ImportError as error:
    raise ImportError(f"{INSTALL} ({error.name} is missing)", name=error.name) from error

_CONNECTING_MS: Final = 10.0  # between two looks whether a connection stands; what comes from it wakes its thread at once

Client = TypeVar("Client")


def connected(
    kind: Callable[..., Client], settings: KafkaSettings, connect_seconds: float, answer_seconds: float, **configuration: object
) -> Client:
    """A client of kafka-python's that a broker has answered within `connect_seconds`. Blocks.

    Raises:
        LogUnavailable: No broker answered, or none lets us in, or a certificate cannot be read. Nothing of the client is left.
    """
    _begin()
    made: list[KafkaNetClient] = []

    def network(**given: object) -> KafkaNetClient:
        selector = NetworkSelector(**given)
        setup_ms = round(answer_seconds * 1000)
        times = {"socket_connection_setup_timeout_ms": setup_ms, "socket_connection_setup_timeout_max_ms": setup_ms}
        client = _ProducersClient if kind is kafka.KafkaProducer else KafkaNetClient
        made.append(client(net=selector, manager=_Connections(selector, **given, **times), **given))
        return made[-1]

    told = {
        **connection(settings),
        "kafka_client": network,
        "bootstrap_timeout_ms": round(connect_seconds * 1000),
        "request_timeout_ms": round(answer_seconds * 1000),
        "reconnect_backoff_ms": 50,
        "retry_backoff_ms": 50,
        "metadata_max_age_ms": 60_000,
        **({} if kind is kafka.KafkaAdminClient else {"metrics_enabled": False}),  # it has none
        **configuration,
    }
    if settings.sasl:
        told["sasl_plain_password"] = settings.password  # the function: asked at each connection, see _with_password()
    with listening() as heard:
        try:
            return kind(**told)
        except BaseException as error:
            for one in made:  # with its thread and sockets, which a client that was not born leaves behind
                one.close()
            if isinstance(error, (KafkaError, OSError)):
                raise LogUnavailable(sentence(settings, error, heard)) from error
            raise


def refused(error: BaseException) -> bool:
    """Whether a client that met this error keeps to it, though a new one may do better."""
    return isinstance(error, (SaslAuthenticationFailedError, AuthorizationError))


class _ProducersClient(KafkaNetClient):  # type: ignore[misc]
    def connection_delay(self, node_id: object) -> float:
        """In milliseconds, as the producer's thread takes it, which would else spin while a connection is being made."""
        seconds: float = super().connection_delay(node_id)
        return max(_CONNECTING_MS, seconds * 1000)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """kafka-python's own leaves the socket of a failed attempt open, and waits without an end for the answer to a TLS greeting."""

    async def _build_transport(self, node: object, timeout_at: float | None = None) -> KafkaTCPTransport:
        host, port = str(getattr(node, "host", "")), int(getattr(node, "port", 0))
        problem: Exception = KafkaConnectionError(f"{host} has no address")
        for family, kind, protocol, _, address in KafkaNetSocket().dns_lookup(host, port):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                for option in self.config["socket_options"]:
                    connection.setsockopt(*option)
                await KafkaNetSocket().sock_connect(self._net, connection, address, timeout_at=timeout_at)
                return await self._greeted(connection, host, timeout_at)
            except (KafkaError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
                connection.close()
                problem = error if isinstance(error, KafkaConnectionError) else KafkaConnectionError(f"Handshake failed: {error}")
            except BaseException:  # the client is closed meanwhile
                connection.close()
                raise
        raise problem

    async def _greeted(self, connection: socket.socket, host: str, timeout_at: float | None) -> KafkaTCPTransport:
        if not self.ssl_enabled:
            return KafkaTCPTransport(self._net, connection, host=host)
        transport = KafkaSSLTransport(self._net, connection, host=host, ssl_context=self.config["ssl_context"])
        own = transport._sock
        # The handshake then meets an end of the stream, and fails.
        over = self._net.call_at(timeout_at, lambda: own.shutdown(socket.SHUT_RDWR)) if timeout_at is not None else None
        try:
            await transport.handshake()
        except BaseException:
            own.close()
            raise
        finally:
            if over is not None:
                self._net.cancel(over)
        return transport


class _Plain(SaslMechanismPlain):  # type: ignore[misc]
    def __init__(self, **configuration: object) -> None:
        super().__init__(**_with_password(configuration))


class _Scram(SaslMechanismScram):  # type: ignore[misc]
    def __init__(self, **configuration: object) -> None:
        super().__init__(**_with_password(configuration))


def _with_password(configuration: dict[str, object]) -> dict[str, object]:
    password = configuration.get("sasl_plain_password")
    return {**configuration, "sasl_plain_password": password()} if callable(password) else configuration


_begun = threading.Event()


def _begin() -> None:
    if _begun.is_set():
        return
    _begun.set()
    said = logging.getLogger("kafka")
    words = OnceAMinute(logging.getLogger(__name__))
    words.addFilter(lambda record: record.name != "kafka.net.selector")  # how long its own tasks took, on a machine that is busy
    said.addHandler(words)
    said.propagate = False
    said.setLevel(logging.WARNING)  # at DEBUG it would write records and SASL's bytes, however the root is set
    for name, mechanism in (("PLAIN", _Plain), ("SCRAM-SHA-256", _Scram), ("SCRAM-SHA-512", _Scram)):
        register_sasl_mechanism(name, mechanism, overwrite=True)
