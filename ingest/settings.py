"""What the recorder and the log let grow, and for how long they wait. Units stand last in the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class LogSettings:
    segment_bytes_max: int = 64 * 2**20  # a segment that has reached it is sealed before the next write; Kafka's is 1 GiB
    preallocate_bytes: int = 4 * 2**20  # zeros written ahead, so that fdatasync seldom has a new file size to store
    batch_bytes_max: int = 2**20  # one checksum covers at most this, unless a single record is larger
    group_bytes_max: int = 8 * 2**20  # made durable by one write; what waits beyond it goes into the next
    record_bytes_max: int = 32 * 2**20  # a key and its value; twice the largest message that the gateway takes
    waiting_bytes_max: int = 64 * 2**20  # appended and not yet written; beyond it append() raises LogUnavailable
    read_bytes: int = 256 * 2**10  # one blocking read, unless a single batch is larger; 50 us from the page cache
    poll_bytes_max: int = 4 * 2**20  # values returned by one poll(), unless a single record is larger
    poll_interval_min_ms: float = 2.0  # between two looks for news, soon after the last news
    poll_interval_max_ms: float = 20.0  # and when there has been none for a while; 0.2 % of a core
    close_seconds_max: float = 10.0  # close() waits this long for a disk that does not answer


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    frame_events_max: int = 100  # 50 executions, begun and finished: the stamp's share of each is then under 8 bytes
    frame_bytes_max: int = 64 * 2**10  # a frame is cut before it passes this, unless a single event is larger
    linger_ms: float = 10.0  # what may wait (level `fast`) waits this long for company; its promise is 50 ms
    retry_ms: float = 250.0  # between two attempts to append what the log did not take
    buffer_bytes_max: int = 16 * 2**20  # recorded and not yet durable, overhead included; beyond it record() raises
    buffer_high_water: float = 0.75  # of it: from here on `available` is False, so that sessions can still record their end
    stall_seconds: float = 5.0  # a write without an answer for this long makes `available` False
    close_seconds_max: float = 5.0  # close() gives what is still waiting this long to become durable


Sasl: TypeAlias = Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

PARTITIONS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "identity": 1,
        "commands": 1,
        "sessions": 8,
        "statements": 16,
        "findings": 4,
        "observations": 4,
        "witness": 16,
        "looks": 1,
        "checkpoints": 1,
    }
)
"""Of each topic in Kafka. Each gateway and worker reads all of `identity` and `commands`: one partition, one order for all."""
TABLES: Final[Mapping[str, str]] = MappingProxyType({"worker-floors": "sessions", "worker-activity": "statements"})
"""What the workers remember in Kafka, by key, newest only: each beside the topic whose partitions it shares. No facts: all of it
can be thrown away while no worker runs."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    bootstrap: tuple[str, ...]  # HOST:PORT of some brokers
    tls: bool = True
    ca_file: str = ""  # PEM; "" = the system's trust store
    certificate_file: str = ""  # PEM, with `key_file`: a client certificate
    key_file: str = ""
    sasl: Sasl = ""
    user: str = ""
    password: Callable[[], str] = str  # asked at each connection; never stored
    topic_prefix: str = "pgwarden."
    partitions: Mapping[str, int] = field(default_factory=lambda: PARTITIONS)
    replication: int = 3
    in_sync_min: int = 2  # brokers that have a record before it is acknowledged
    retention_days: int = 90  # of sessions, statements, findings, observations, witness and looks; the others are kept for ever
    record_bytes_max: int = 2**20  # max.message.bytes of our topics is this and some room; a frame is cut far below it
    linger_ms: float = 5.0
    batch_bytes: int = 128 * 2**10
    append_seconds_max: float = 10.0  # without an acknowledgement: LogUnavailable, and the outcome is unknown
    waiting_bytes_max: int = 64 * 2**20  # appended and not yet acknowledged
    fetch_wait_ms: int = 1000  # a broker answers a fetch that finds nothing after this long
    poll_bytes_max: int = 4 * 2**20
    end_offsets_age_ms: float = 100.0  # `end_offsets` may be this old
    session_seconds: float = 10.0  # a group's member that says nothing for so long has ended (Kafka's 45 is a long time to wait)
    work_seconds_max: float = 60.0  # a group's member that asks for no more records for so long has ended too
    connect_seconds_max: float = 10.0  # until a broker has answered at all, at open()
    answer_seconds_max: float = 5.0  # for an offset, a commit; beyond it LogUnavailable
    close_seconds_max: float = 10.0  # close() waits this long for brokers that do not answer


@dataclass(frozen=True, slots=True)
class RelaySettings:
    backlog_bytes_max: int = 2**30  # on this disk and not with the brokers; beyond it no statement is forwarded
    stale_seconds_max: float = 10.0  # without word of the brokers for so long, no new session is admitted
    batch_records_max: int = 500  # on their way to the brokers at once
    report_ms: float = 1000.0  # between two GatewayReported
    keep_seconds: float = 86_400.0  # what the brokers have stays on this disk for so long
