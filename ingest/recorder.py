"""Events go in, in order; a ticket comes out, and word when the ticket's event is on disk, and when it is with the brokers.

One recorder a process, on one event loop. It never blocks the loop and starts no thread. One write is in flight at a time; what is
recorded meanwhile goes into the next. What the log does not take is offered again, the same frames in the same order, until it
does: nothing is dropped, and a buffer that is full refuses the newest event aloud.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ingest.events import Event, Stamp, Topic
from ingest.frames import Framer
from ingest.histogram import Histogram
from ingest.log import Entry, EventLog, LogCorrupt, LogUnavailable, Partition
from ingest.log.partitioner import partition
from ingest.settings import RecorderSettings


@dataclass(frozen=True, slots=True)
class RecorderState:
    available: bool
    since_us: int  # when that began: the time of the newest event recorded until then; 0 = from the start
    reason: str  # "" while available
    pending_bytes: int
    pending_events: int


class Horizon:
    """How far the record has come in one respect, as a ticket, and who waits for it. Only its recorder moves it."""

    __slots__ = ("_arrivals", "_awaiting", "_end_reason", "_loop", "_on_wait", "_waiting", "reached")

    def __init__(self, on_wait: Callable[[int], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_wait = on_wait
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []  # heap: ticket, order of arrival
        self._awaiting: set[asyncio.Future[None]] = set()
        self._arrivals = 0
        self._end_reason = ""
        self.reached = 0

    def when(self, ticket: int, callback: Callable[[], None]) -> None:
        """Call back once every event up to this ticket has come so far: at once, or later from the loop in the order of tickets."""
        if ticket <= self.reached:
            callback()
            return
        self._arrivals += 1
        heapq.heappush(self._waiting, (ticket, self._arrivals, callback))
        if self._on_wait is not None:
            self._on_wait(ticket)

    async def passed(self, ticket: int) -> None:
        """Return once every event up to this ticket has come so far, however long that takes.

        Raises:
            LogUnavailable: The recorder ended before. The event may or may not have come so far.
        """
        if ticket <= self.reached:
            return
        if self._end_reason:
            raise LogUnavailable(self._end_reason)
        passed: asyncio.Future[None] = self._loop.create_future()
        self._awaiting.add(passed)
        passed.add_done_callback(self._awaiting.discard)
        self.when(ticket, lambda: None if passed.done() else passed.set_result(None))
        await passed

    def move(self, ticket: int) -> None:
        self.reached = ticket
        waiting = self._waiting
        while waiting and waiting[0][0] <= ticket:
            callback = heapq.heappop(waiting)[2]
            try:
                callback()
            except Exception as error:  # one session's callback must not keep the others' replies back
                self._loop.call_exception_handler({"message": "a callback that waited for a record failed", "exception": error})

    def end(self, reason: str) -> None:
        """Nothing more comes so far."""
        self._end_reason = reason
        for waiting in list(self._awaiting):
            if not waiting.done():
                waiting.set_exception(LogUnavailable(reason))


class Recorder:
    """`boot` must never have been used by this writer before: else new frames would pass for repetitions of old ones.

    `partitions` are those of the log that readers will see, where that is not `log`: frames name the frame before them there.
    `on_availability` is called on the loop whenever `available` changes.
    """

    def __init__(
        self, log: EventLog, writer: str, boot: int, settings: RecorderSettings, *, partitions: Mapping[str, int] | None = None
    ) -> None:
        self._log = log
        self._settings = settings
        self._loop = asyncio.get_running_loop()

        def place(topic: Topic, key: bytes) -> int:
            return partition(key, log.partitions(topic) if partitions is None else partitions[topic])

        self._framer = Framer(
            writer, boot, events_max=settings.frame_events_max, bytes_max=settings.frame_bytes_max, partition=place
        )
        self._high_water_bytes = int(settings.buffer_bytes_max * settings.buffer_high_water)
        self._newest_us = 0
        self._ticket = 0  # of the newest event
        self._wanted = 0  # written without waiting for more
        self._cut = 0  # handed to the log
        self._pending_bytes = 0
        self._linger: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self._write_began = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._state_since_us = 0
        self._state_reason = ""
        self._problem = ""  # why the log takes nothing
        self._blocked = ""  # why it should not grow, by somebody else's word
        self._full = False  # and may not
        self._closed = False
        self._ended = False  # nothing more becomes durable
        self._ends: dict[Partition, int] = {}  # of what this recorder has written: the next offsets
        self._replicated_to: Mapping[Partition, int] = {}
        self._wanted_replicated = 0  # the newest ticket that somebody waits for
        self._unreplicated: deque[tuple[int, dict[Partition, int]]] = deque()  # ticket and ends of the writes that are waited for

        self.disk = Horizon()
        self.brokers = Horizon(self._replication_wanted)  # moved by replicated_to()
        self.written_bytes = 0  # since this recorder began: keys and values of the frames that are on disk
        self.appends = Histogram()  # of all that waited together, from the first attempt until the log had it
        self.available = True
        self.on_availability: Callable[[RecorderState], None] | None = None

    @property
    def durable(self) -> int:
        """The ticket up to which every event is on disk."""
        return self.disk.reached

    @property
    def pending_bytes(self) -> int:
        """Recorded and not yet on disk: who can wait does so well before the buffer is full."""
        return self._pending_bytes

    def record(self, topic: Topic, key: str, event: Event, stamp: Stamp | None = None, *, flush: bool = True) -> int:
        """Take the event, and return its ticket; tickets rise by 1. With `flush=False` it may wait for the linger.

        Raises:
            LogUnavailable: The buffer is full, block() said `full`, or the recorder is closed. The event was not taken.
            ValueError: The event cannot be encoded, or belongs to another topic. The event was not taken.
        """
        if self._pending_bytes >= self._settings.buffer_bytes_max or self._full or self._closed:
            raise LogUnavailable(
                "the recorder is closed" if self._closed else self._state_reason or "the recorder's buffer is full"
            )
        self._pending_bytes += self._framer.add(topic, key, event, stamp)
        self._ticket += 1
        at_us: int = getattr(event, "at_us", 0)
        if at_us:
            self._newest_us = at_us
        if flush:
            self._wanted = self._ticket
            if self._writer is None:
                self._begin()
        elif self._linger is None:
            self._linger = self._loop.call_later(self._settings.linger_ms / 1000, self._linger_over)
        if self._pending_bytes > self._high_water_bytes and self.available:
            self._become_unavailable(f"more than {self._high_water_bytes} bytes wait for the log")
        return self._ticket

    def when_durable(self, ticket: int, callback: Callable[[], None]) -> None:
        self.disk.when(ticket, callback)

    async def recorded(self, ticket: int) -> None:
        """Return once every event up to this ticket is on disk, however long that takes.

        Raises:
            LogUnavailable: The recorder was closed, or ended, before it was. The event may or may not be recorded.
        """
        await self.disk.passed(ticket)

    def replicated_to(self, offsets: Mapping[Partition, int]) -> None:
        """The brokers have what stands below these offsets of the log."""
        self._replicated_to = offsets
        self._look_at_replication()

    def block(self, reason: str, *, full: bool = False) -> None:
        """Be unavailable for this reason too, until told "". Unless `full`, events are still taken: sessions record their end."""
        self._blocked = reason
        self._full = full
        self._decide_availability()

    def state(self) -> RecorderState:
        return RecorderState(
            self.available, self._state_since_us, self._state_reason, self._pending_bytes, self._ticket - self.disk.reached
        )

    async def close(self) -> None:
        """Take no more events, and write those taken. The log stays open.

        Raises:
            LogUnavailable: Some events did not become durable in time, and are given up. Says how many.
        """
        self._closed = True
        self._linger_over()
        if self._writer is not None:
            done, _ = await asyncio.wait({self._writer}, timeout=self._settings.close_seconds_max)
            if not done:
                self._writer.cancel()
                await asyncio.wait({self._writer})
        if self._stall is not None:
            self._stall.cancel()
        if self.durable < self._ticket:
            raise LogUnavailable(f"{self._ticket - self.durable} events were not recorded: {self._state_reason or 'no answer'}")

    def _linger_over(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._wanted = self._ticket
        if self._writer is None and self._wanted > self._cut:
            self._begin()

    def _begin(self) -> None:
        if self._ended:
            return
        # The task takes its first step in the loop's next round, so that all events of this round share the write.
        self._writer = self._loop.create_task(self._write())
        self._writer.add_done_callback(self._write_over)

    async def _write(self) -> None:
        while self._wanted > self._cut:
            through = self._cut = self._ticket
            size = self._pending_bytes
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            await self._append(self._framer.cut())
            self._pending_bytes -= size
            self.disk.move(through)
            if self._wanted_replicated > (self._unreplicated[-1][0] if self._unreplicated else self.brokers.reached):
                self._unreplicated.append((through, dict(self._ends)))
            self._look_at_replication()
            if self._problem and self._pending_bytes <= self._high_water_bytes // 2:
                self._become_available()
        self._writer = None

    async def _append(self, frames: list[Entry]) -> None:
        self._write_began = self._loop.time()
        if self._stall is None:
            self._stall = self._loop.call_later(self._settings.stall_seconds, self._look_for_stall)
        while True:
            try:
                positions = await self._log.append(frames)
                break
            except (LogUnavailable, LogCorrupt) as error:
                self._become_unavailable(str(error) or type(error).__name__)
            await asyncio.sleep(self._settings.retry_ms / 1000)
        self.appends.observe(self._loop.time() - self._write_began)
        for position in positions:
            self._ends[(position.topic, position.partition)] = position.offset + 1
        self.written_bytes += sum(len(frame.key) + len(frame.value) for frame in frames)

    def _write_over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            reason = self._state_reason or "the recorder was stopped in the middle of a write"
        elif (error := task.exception()) is not None:
            # A log that raises what its contract does not name is broken: nothing further can be promised of this recorder.
            reason = f"the recorder ended: {error!r}"
            self._loop.call_exception_handler({"message": "the recorder ended", "exception": error, "task": task})
        else:
            return
        self._ended = self._closed = True
        self._become_unavailable(reason)
        self.disk.end(reason)
        self.brokers.end(reason)

    def _look_for_stall(self) -> None:
        self._stall = None
        if self._writer is None:
            return
        left = self._write_began + self._settings.stall_seconds - self._loop.time()
        if left > 0:
            self._stall = self._loop.call_later(left, self._look_for_stall)
        else:
            self._become_unavailable(f"the log has not answered for {self._settings.stall_seconds:g} s")

    def _replication_wanted(self, ticket: int) -> None:
        self._wanted_replicated = max(self._wanted_replicated, ticket)
        if ticket <= self.disk.reached and (not self._unreplicated or self._unreplicated[-1][0] < ticket):
            self._unreplicated.append((self.disk.reached, dict(self._ends)))

    def _look_at_replication(self) -> None:
        reached = self.brokers.reached
        while self._unreplicated and self._is_replicated(self._unreplicated[0][1]):
            reached = self._unreplicated.popleft()[0]
        if self._is_replicated(self._ends):
            reached = self.disk.reached
        if reached > self.brokers.reached:
            self.brokers.move(reached)

    def _is_replicated(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._replicated_to.get(place, 0) >= end for place, end in ends.items())

    def _become_unavailable(self, reason: str) -> None:
        self._problem = reason
        self._decide_availability()

    def _become_available(self) -> None:
        self._problem = ""
        self._decide_availability()

    def _decide_availability(self) -> None:
        self._state_reason = self._problem or self._blocked
        available = not self._state_reason
        if available == self.available:
            return
        self.available = available
        self._state_since_us = self._newest_us
        if self.on_availability is not None:
            self.on_availability(self.state())
