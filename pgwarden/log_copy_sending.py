"""The records of a copy go in, in their order; they are with the brokers once `all_sent` returns."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final, Protocol

from ingest.log import LogUnavailable
from ingest.log.brokers import connected
from ingest.log.kafka_client import INSTALL
from ingest.settings import KafkaSettings
from pgwarden.log_copy import Moved

try:
    from kafka import KafkaProducer
    from kafka.errors import KafkaError
except ImportError as error:
    raise ImportError(INSTALL) from error

ON_THE_WAY_MAX: Final = 4_000  # records, and
ON_THE_WAY_BYTES_MAX: Final = 32 * 2**20
ANSWER_SECONDS_MAX: Final = 60.0  # for one record; a copy may wait for a broker that restarts


class Sent(Protocol):
    def get(self, timeout: float) -> object: ...


class Sending:
    """Hands records to the brokers in order, a bounded number at once. After the first failure nothing more is sent: what follows a
    hole would make it look like an end."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: KafkaProducer | None = None
        self._on_the_way: deque[tuple[Sent, int]] = deque()
        self._bytes = 0

    def send(self, topic: str, moved: Moved) -> None:
        producer = self._connected()
        size = len(moved.key) + len(moved.value)
        while self._on_the_way and (len(self._on_the_way) >= ON_THE_WAY_MAX or self._bytes + size > ON_THE_WAY_BYTES_MAX):
            self._await_oldest()
        name = self._settings.topic_prefix + topic
        try:
            sent = producer.send(name, value=moved.value, key=moved.key, partition=moved.partition, timestamp_ms=moved.at_ms)
        except KafkaError as error:
            raise LogUnavailable(f"the brokers do not take records: {error}") from error
        self._on_the_way.append((sent, size))
        self._bytes += size

    def all_sent(self) -> None:
        while self._on_the_way:
            self._await_oldest()

    def close(self) -> None:
        if self._producer is None:
            return
        if self._on_the_way:  # close() alone would first wait for what will not come
            self._producer._sender.force_close()
        with contextlib.suppress(KafkaError):
            self._producer.close(timeout=0 if self._on_the_way else ANSWER_SECONDS_MAX)

    def _await_oldest(self) -> None:
        sent, size = self._on_the_way[0]
        try:
            sent.get(timeout=ANSWER_SECONDS_MAX + 5)
        except KafkaError as error:
            raise LogUnavailable(f"the brokers have not acknowledged: {error}") from error
        self._on_the_way.popleft()
        self._bytes -= size

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = connected(
                KafkaProducer,
                self._settings,
                self._settings.connect_seconds_max,
                ANSWER_SECONDS_MAX / 2,
                acks="all",
                enable_idempotence=True,
                delivery_timeout_ms=round(ANSWER_SECONDS_MAX * 1000),
                linger_ms=self._settings.linger_ms,
                batch_size=self._settings.batch_bytes,
                max_request_size=self._settings.record_bytes_max + 64 * 2**10,
                max_block_ms=round(ANSWER_SECONDS_MAX * 1000),
                allow_auto_create_topics=False,
            )
        return self._producer
