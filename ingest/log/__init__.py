"""In come frames by topic and key; out come the same frames, in order, for as long as they are kept.

The contract of a log. `segments.py`, `memory.py` and (later) `kafka.py` keep it; `tests/ingest/test_log_contract.py` is its test.

A topic is split into partitions; the partition of a key is murmur2(key) as in Kafka's default partitioner, so that a move to
another backend keeps each key's place. Offsets count records within a partition, dense, from 0. One process writes a topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Partition: TypeAlias = tuple[str, int]
"""Topic and partition number."""


class LogUnavailable(Exception):
    """The record may or may not be in the log; appending it again is safe, since a frame carries its own name."""


class LogLocked(LogUnavailable):
    """Another process writes this partition. Nothing was recorded."""


class LogCorrupt(Exception):
    """Bytes that were durable once do not match their checksum, or are missing. Says the file and the place."""


@dataclass(frozen=True, slots=True)
class Position:
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    partition: int
    offset: int
    at_us: int  # when the writer appended it, wall clock
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """What a writer appends."""

    topic: str
    key: bytes
    value: bytes


class Subscription(Protocol):
    async def poll(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        """Return the next records, as soon as there is one. One call at a time.

        An empty sequence says that there was none for `timeout_seconds`; with 0, that there is none now.
        What is returned is durable: no crash of the writer takes it back. A cancelled call has taken nothing.

        Raises:
            LogCorrupt: The next record cannot be what was written. Every later call raises it too.
            LogUnavailable: The log cannot be read now.
        """
        ...

    def seek(self, partition: Partition, offset: int) -> None: ...

    def close(self) -> None: ...


class EventLog(Protocol):
    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        """Return once every entry would survive a crash of this machine. All entries, or an exception.

        Calls may overlap; the offsets of a key rise in the order in which the calls were made, and what waits together is made
        durable together.

        Raises:
            LogUnavailable: Some or all entries may or may not be recorded. Append the same entries again, in the same order.
            LogLocked: Another process writes one of the partitions.
            LogCorrupt: What a partition already holds is damaged, so nothing may be added to it.
            ValueError: An entry is larger than the log takes. Nothing was recorded.
        """
        ...

    def assign(self, offsets: dict[Partition, int]) -> Subscription:
        """Read from these offsets on, in no group. Ends never; sees what other processes append.

        An offset may lie ahead of the end.
        """
        ...

    def partitions(self, topic: str) -> int: ...

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        """The next offset of each partition, as far as this process can see now."""
        ...

    async def close(self) -> None:
        """Make what was appended durable, and release the files.

        Raises:
            LogUnavailable: The log does not answer. Each append() says for itself whether it succeeded.
        """
        ...
