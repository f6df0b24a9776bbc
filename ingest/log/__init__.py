"""In come frames by topic and key; out come the same frames, in order, for as long as they are kept.

The contract of a log. `segments.py`, `memory.py` and `kafka.py` keep it; `tests/ingest/test_log_contract.py` is its test.

A topic is split into partitions; the partition of a key is murmur2(key) as in Kafka's default partitioner, so that a move to
another backend keeps each key's place. Offsets count records within a partition, dense, from 0. In segments one process writes a
topic; with Kafka many may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

        An empty sequence says that there was none for `timeout_seconds`; with 0, that there is none now. From Kafka it says that
        none has come: a broker that is away is told by `offsets`, or by an append, and reading goes on when it is back.
        What is returned is durable: no crash of the writer takes it back. A cancelled call has taken nothing.

        Raises:
            LogCorrupt: The next record cannot be what was written. Every later call raises it too.
            LogUnavailable: The log cannot be read now.
        """
        ...

    def seek(self, partition: Partition, offset: int) -> None: ...

    def close(self) -> None: ...


class GroupSubscription(Subscription, Protocol):
    """As a Subscription, of those partitions that this member of the group has now; it begins where the group committed last."""

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Return once a later member of the group would begin at these offsets: the next that it has not done yet.

        Raises:
            LogUnavailable: It may or may not be so. Also when another member has the partition by now.
        """
        ...

    async def committed(self) -> dict[Partition, int]:
        """Where the group stands, 0 where it never committed. Of every partition of its topics, whoever has them."""
        ...


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

    def append_nowait(self, entries: Sequence[Entry]) -> None:
        """Take the entries into a bounded buffer, in order with every other append; `flush` says what became of them.

        Raises:
            LogUnavailable: The buffer is full. No entry was taken.
            ValueError: As append().
        """
        ...

    async def flush(self) -> None:
        """Return once all that append_nowait() took before is durable.

        Raises:
            LogUnavailable, LogLocked, LogCorrupt: As append(), for any of those entries since the last flush(). They are dropped:
                who must lose none appends, and appends again.
        """
        ...

    def assign(self, offsets: dict[Partition, int]) -> Subscription:
        """Read from these offsets on, in no group. Ends never; sees what other processes append.

        An offset may lie ahead of the end. Where it lies below `begin_offsets`, reading begins there: the records' offsets tell.
        """
        ...

    def subscribe(self, topics: Sequence[str], group: str) -> GroupSubscription:
        """Read as a member of a group: each partition is one member's at a time, and passes to another when that one ends.

        Kafka shares a topic's partitions among the members; segments and memory give them all to one, and the others wait.
        """
        ...

    def partitions(self, topic: str) -> int: ...

    async def offsets(self, topic: str) -> dict[Partition, int]:
        """The next offset of each partition: all whose append had returned, in any process, before this call, lie below.

        Raises:
            LogUnavailable: The log does not answer.
        """
        ...

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        """As `offsets`, at once: as far as this process can see now, which with Kafka may be a moment old."""
        ...

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        """The first offset of each partition that is still kept: 0 until retention or `trim` took the beginning away."""
        ...

    async def close(self) -> None:
        """Make what was appended durable, and release the files.

        Raises:
            LogUnavailable: The log does not answer. Each append() says for itself whether it succeeded.
        """
        ...
