"""The log's records come in; frames come out, each once, and every lost one is named."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ingest.events import Frame
from ingest.frames import FrameInvalid, decode
from ingest.log import EventLog, LogCorrupt, Partition, Record

POLL_RECORDS: Final = 500
POLL_SECONDS: Final = 1.0
BOOTS_REMEMBERED: Final = 8  # of a writer, behind its present one; what comes late comes within seconds

Seen: TypeAlias = dict[tuple[str, str, int], tuple[int, int]]
"""(writer, topic, partition) -> (boot, seq) of the newest frame. Kept beside the offsets, it makes a reading resumable."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Frames of this writer that stood before the record at this offset are not in the log.

    `writer` "": records of whomever, which retention took when a reading had come up to them; `after_seq` and `seq` are offsets.
    """

    topic: str
    partition: int
    offset: int
    writer: str
    boot: int
    after_seq: int  # the last one that was seen before; -1 = none
    seq: int  # the one that was seen next


class Sequences:
    """Tells a frame that is new from one that was seen, and names what is missing before it. Frames come in the log's order.

    `whole`: the partitions that are read from their first record on, by this object or by the one whose `seen` it goes on with.
    """

    def __init__(self, seen: Seen, whole: Iterable[Partition], on_gap: Callable[[Gap], None]) -> None:
        self.seen = seen
        self._whole = set(whole)
        self._on_gap = on_gap
        self._earlier: dict[tuple[str, str, int], dict[int, int]] = {}  # boots that ended -> their newest frame

    def is_new(self, topic: str, partition: int, offset: int, writer: str, boot: int, seq: int, step: int) -> bool:
        name = (writer, topic, partition)
        before = seq - step
        newest = self.seen.get(name)
        if newest is not None and newest[0] == boot:
            if seq <= newest[1]:
                return False
            last = newest[1]
        elif (ended := self._earlier.get(name, {}).get(boot)) is not None:
            # An append of a writer that was killed can come late, behind the first frames of its next boot.
            if seq <= ended:
                return False
            if before != ended:
                self._on_gap(Gap(topic, partition, offset, writer, boot, ended, seq))
            self._earlier[name][boot] = seq
            return True
        elif newest is not None or (topic, partition) in self._whole:
            last = -1
        else:
            last = before  # began in the middle of the log, knowing nothing of what stands before
        if before != last:
            self._on_gap(Gap(topic, partition, offset, writer, boot, last, seq))
        if newest is not None and newest[0] != boot:
            earlier = self._earlier.setdefault(name, {})
            earlier[newest[0]] = newest[1]
            while len(earlier) > BOOTS_REMEMBERED:
                del earlier[next(iter(earlier))]
        self.seen[name] = (boot, seq)
        return True


def log_gap(gap: Gap) -> None:
    logging.getLogger(__name__).error("frames are missing from the log: %s", gap)


class Follower:
    """Reads topics from given offsets on; a partition that is not named is read from its beginning.

    `offsets` (the next to read) and `seen` are up to date with what poll() returned: store both with what was made of it.
    A frame that was appended twice is returned once. A gap is told to `on_gap`, before the frame behind it is returned.
    """

    def __init__(
        self,
        log: EventLog,
        topics: Iterable[str],
        offsets: Mapping[Partition, int],
        seen: Mapping[tuple[str, str, int], tuple[int, int]] | None = None,
        on_gap: Callable[[Gap], None] = log_gap,
    ) -> None:
        self._on_gap = on_gap
        places = [(topic, number) for topic in topics for number in range(log.partitions(topic))]
        self.offsets: dict[Partition, int] = {place: offsets.get(place, 0) for place in places}
        self.seen: Seen = dict(seen or {})
        begins = {place: begin for topic in {topic for topic, _ in places} for place, begin in log.begin_offsets(topic).items()}
        # What retention took away before anybody read it is no gap.
        whole = (
            place
            for place, offset in self.offsets.items()
            if (offset > 0 and seen is not None) or (offset == 0 and begins[place] == 0)
        )
        self._sequences = Sequences(self.seen, whole, on_gap)
        self._subscription = log.assign(dict(self.offsets))

    async def poll(self, records_max: int = POLL_RECORDS, timeout_seconds: float = POLL_SECONDS) -> list[tuple[Record, Frame]]:
        """Return the next frames as soon as there is one; none when there was none for `timeout_seconds`.

        Raises:
            LogCorrupt: A record is not a frame, or the log is damaged. Every later call raises it too.
            LogUnavailable: The log cannot be read now.
        """
        until = time.monotonic() + timeout_seconds
        while records := await self._subscription.poll(records_max, max(0.0, until - time.monotonic())):
            if found := self._frames(records):
                return found
        return []

    def _frames(self, records: Sequence[Record]) -> list[tuple[Record, Frame]]:
        found: list[tuple[Record, Frame]] = []
        for record in records:
            place = (record.topic, record.partition)
            reached = self.offsets[place]
            if 0 < reached < record.offset:  # offsets are dense; what went before the first reading is nobody's gap
                self._on_gap(Gap(*place, record.offset, "", 0, reached - 1, record.offset))
                self.offsets[place] = record.offset
            try:
                frame = decode(record.value, record.topic)
            except FrameInvalid as error:
                for other, offset in self.offsets.items():  # what came behind it was not looked at, in any partition
                    self._subscription.seek(other, offset)
                if found:
                    break  # those before it are whole; a later call comes back to this one
                raise LogCorrupt(f"{record.topic}/{record.partition}, record {record.offset}: {error}") from error
            if self._sequences.is_new(
                record.topic, record.partition, record.offset, frame.writer, frame.boot, frame.seq, frame.step
            ):
                found.append((record, frame))
            self.offsets[place] = record.offset + 1
        return found

    def close(self) -> None:
        self._subscription.close()


async def follow(
    log: EventLog, topics: Iterable[str], offsets: Mapping[Partition, int], on_gap: Callable[[Gap], None] = log_gap
) -> AsyncIterator[tuple[Record, Frame]]:
    """Every frame, one after the other, without an end."""
    follower = Follower(log, topics, offsets, on_gap=on_gap)
    try:
        while True:
            for record, frame in await follower.poll():
                yield record, frame
    finally:
        follower.close()
