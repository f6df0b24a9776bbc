"""Several topics of the log as one stream, in the order in which they were recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Final

from ingest.events import Frame, Topic
from ingest.follow import Follower, Seen
from ingest.log import EventLog, LogUnavailable, Partition, Record

POLL_RECORDS: Final = 100  # at once; a frame holds at most about 100 events
WAIT_SECONDS_MAX: Final = 2.0  # that a frame waits for older ones of another topic, which the log has and does not hand out
RETRY_SECONDS: Final = 0.25  # after the log was not available


class Merged:
    """Reads each topic by itself, a bounded number of frames ahead, and hands out whichever was recorded first.

    A frame is handed out once nothing older can be waiting in another topic: all that the log held there, when the frame was seen,
    has been read. Of one moment, the topic that is named first comes first. `offsets` and `seen` are those of what was handed out.
    """

    def __init__(
        self,
        log: EventLog,
        topics: tuple[Topic, ...],
        offsets: Mapping[Partition, int],
        seen: Mapping[tuple[str, str, int], tuple[int, int]],
        frames_ahead_max: int,
    ) -> None:
        self.offsets: dict[Partition, int] = dict(offsets)
        self.seen: Seen = dict(seen)
        self.unavailable = ""  # why the log cannot be read now
        self._log = log
        self._ahead_max = frames_ahead_max
        self._changed = asyncio.Condition()
        self._lanes = [_Lane(topic, self._follower(topic)) for topic in topics]
        self._readers = [
            asyncio.get_running_loop().create_task(self._read(lane), name=f"read {lane.topic}") for lane in self._lanes
        ]

    def _follower(self, topic: Topic) -> Follower:
        seen = {name: newest for name, newest in self.seen.items() if name[1] == topic}
        offsets = {place: offset for place, offset in self.offsets.items() if place[0] == topic}
        return Follower(self._log, (topic,), offsets, seen or None, on_gap=lambda _: None)  # the tables' reader tells of gaps

    async def take(self, frames_max: int, seconds: float) -> list[tuple[Record, Frame]]:
        """The next frames, as soon as there is one; none when there was none for so long.

        Raises:
            LogCorrupt: A topic cannot be read any further. What stands before the damage was handed out.
        """
        found: list[tuple[Record, Frame]] = []
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: any(lane.frames or lane.failed for lane in self._lanes))
            while len(found) < frames_max and (first := self._first()) is not None:
                if not await self._may_go(first, wait=not found):
                    break
                first = self._first() or first
                _, record, frame = first.frames.popleft()
                self._handed_out(record, frame)
                found.append((record, frame))
            self._changed.notify_all()
            if not found:
                for lane in self._lanes:
                    if lane.failed is not None and not lane.frames:
                        raise lane.failed
        return found

    def behind(self) -> int:
        """Records that the log holds and that were not handed out."""
        ends = [item for lane in self._lanes for item in self._log.end_offsets(lane.topic).items()]
        return sum(max(0, end - self.offsets.get(place, 0)) for place, end in ends)

    async def close(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for lane in self._lanes:
            lane.follower.close()

    def _first(self) -> _Lane | None:
        return min((lane for lane in self._lanes if lane.frames), key=lambda lane: lane.frames[0][0], default=None)

    async def _may_go(self, first: _Lane, *, wait: bool) -> bool:
        """Whether every other topic shows its next frame, or has none up to where it ends now."""
        waited = [(lane, self._log.end_offsets(lane.topic)) for lane in self._lanes if not lane.frames and lane is not first]

        def shown() -> bool:
            return all(lane.frames or lane.failed or lane.has_read(ends) for lane, ends in waited)

        if shown():
            return True
        if not wait:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._changed.wait_for(shown)
        return True

    def _handed_out(self, record: Record, frame: Frame) -> None:
        self.offsets[(record.topic, record.partition)] = record.offset + 1
        name = (frame.writer, record.topic, record.partition)
        self.seen[name] = max(self.seen.get(name, (-1, -1)), (frame.boot, frame.seq))

    async def _read(self, lane: _Lane) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: len(lane.frames) < self._ahead_max)
            try:
                frames = await lane.follower.poll(POLL_RECORDS, 1.0)
                self.unavailable = ""
            except LogUnavailable as error:
                self.unavailable = str(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except Exception as error:  # LogCorrupt, and whatever else: raised where the frames are wanted
                lane.failed = error
                async with self._changed:
                    self._changed.notify_all()
                return
            async with self._changed:
                lane.add(frames)
                self._changed.notify_all()


class _Lane:
    def __init__(self, topic: Topic, follower: Follower) -> None:
        self.topic = topic
        self.follower = follower
        self.frames: deque[tuple[int, Record, Frame]] = deque()  # each behind the time that it is ordered by
        self.failed: Exception | None = None
        self._read = dict(follower.offsets)
        self._newest_us: dict[int, int] = {}  # by partition: a clock that steps back must not turn its order round

    def add(self, frames: list[tuple[Record, Frame]]) -> None:
        dated = []
        for record, frame in frames:
            at_us = self._newest_us[record.partition] = max(record.at_us, self._newest_us.get(record.partition, 0))
            dated.append((at_us, record, frame))
        self.frames.extend(sorted(dated, key=lambda each: each[0]))
        self._read = dict(self.follower.offsets)

    def has_read(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._read.get(place, 0) >= end for place, end in ends.items())
