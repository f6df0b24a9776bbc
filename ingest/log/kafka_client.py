"""How a client of kafka-python is told where the brokers are and whom it may trust, and what its errors mean in a sentence.

kafka-python comes with `pgwarden[kafka]`; nothing here imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator
from typing import Final

from ingest.log import LogUnavailable
from ingest.settings import KafkaSettings

INSTALL: Final = "the log is in Kafka, and its client is not installed: run pip install 'pgwarden[kafka]'"


class _Hidden(str):
    """A password that kafka-python does not show when it prints its settings, which it does at level DEBUG."""

    def __repr__(self) -> str:
        return "'***'"


def connection(settings: KafkaSettings) -> dict[str, object]:
    """What every client of kafka-python is given of these settings. Asks for the password.

    Raises:
        LogUnavailable: A file or the password cannot be read.
    """
    told: dict[str, object] = {
        "bootstrap_servers": list(settings.bootstrap),
        "client_id": "pgwarden",
        "security_protocol": ("SASL_" if settings.sasl else "") + ("SSL" if settings.tls else "PLAINTEXT"),
        "bootstrap_timeout_ms": int(settings.append_seconds_max * 1000),
        "reconnect_backoff_max_ms": 1000,  # the default of 30 s would add as much to an outage
    }
    try:
        if settings.tls:
            told["ssl_context"] = _context(settings)
        if settings.sasl:
            told["sasl_mechanism"] = settings.sasl
            told["sasl_plain_username"] = settings.user
            told["sasl_plain_password"] = _Hidden(settings.password())
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise LogUnavailable(f"Kafka cannot be reached: {error}") from error
    return told


def _context(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    # Spelled out, though they are the defaults: without either, anybody on the way could be the broker.
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate_file:
        context.load_cert_chain(settings.certificate_file, settings.key_file or None, password=lambda: b"")
    return context


class Heard(logging.Handler):
    """The last thing that kafka-python complained of. Its errors say that it gave up, and only its log says why."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for sign, meaning in _MEANINGS.items():
            # "socket disconnected" follows most of the others, and says less.
            if sign in message and (sign != "socket disconnected" or not self.last):
                self.last = meaning


_MEANINGS: Final = {
    "SaslAuthenticationFailedError": "they refuse the user or its password",
    "CERTIFICATE_VERIFY_FAILED": "their certificate is not trusted, or not theirs: see kafka.ca_file",
    "DNS": "no such host is known",
    "ECONNREFUSED": "nobody listens there",
    "socket disconnected": "they end the connection at once: see kafka.tls, and the user and its password",
}


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    heard = Heard()
    logger = logging.getLogger("kafka.net")
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)


def sentence(settings: KafkaSettings, error: Exception, heard: Heard | None = None) -> str:
    """Why the brokers could not be asked, for an operator; holds no secret."""
    where = ", ".join(settings.bootstrap)
    if heard is not None and heard.last:
        return f"the brokers at {where} do not answer: {heard.last}"
    return f"the brokers at {where} do not answer: {str(error) or type(error).__name__}"
