"""The processors in this process: the log's frames to enforcement at once, and to the tables a few times a second.

The two read the log each for itself, so that neither a slow commit nor a broken table holds a revocation back. Where workers
enforce (the log is Kafka), the runner only projects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from analytics import enforcement
from analytics.orders import ORDERS_AT_ONCE, Order, recorded
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store, TablesBroken
from ingest.clock import now_us
from ingest.events import TOPICS, FindingRaised, Frame, SessionEndOrdered, Topic
from ingest.follow import Follower, Gap, log_gap
from ingest.histogram import Histogram
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition, Record

ENFORCED: Final[tuple[Topic, ...]] = ("identity", "sessions")
IDENTITY_SECONDS_MAX: Final = 2.0  # that a session's event waits for older ones of its agent
RETRY_SECONDS: Final = 0.25  # after the log was not available
BROKEN_RETRY_SECONDS: Final = 5.0  # after it was corrupt: a person must act
START_OVER_SECONDS_MIN: Final = 600.0  # a second failure sooner is no accident of the disk

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lag:
    records: int  # in the log and not in the tables
    seconds: float  # since the tables last held all of the log; 0 when they do
    enforcement_records: int  # in the log and not weighed by enforcement
    orders_pending: int  # concluded and not yet durable
    live_sessions: int  # as enforcement sees them
    enforcing: bool  # False: workers do it, and the three figures above say nothing
    projection_error: str  # "" when all is well
    enforcement_error: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far the tables are with one partition of the log."""

    topic: str
    partition: int
    log_offset: int  # of the next record to be written
    table_offset: int  # of the next record to be read


class Runner:
    """One a process, on one loop. It closes neither the log nor the store."""

    def __init__(
        self,
        log: EventLog,
        store: Store,
        order: Order,
        settings: AnalyticsSettings,
        now_us: Callable[[], int] = now_us,
        *,
        enforce: bool = True,
    ) -> None:
        self._log = log
        self._store = store
        self._order = order
        self._settings = settings
        self._now_us = now_us
        self._enforced: tuple[Topic, ...] = ENFORCED if enforce else ()
        self._state = enforcement.State()
        self._replaying = True
        self._pending: dict[str, SessionEndOrdered] = {}
        self._news = asyncio.Event()
        self._projected: dict[Partition, int] = {}
        self._weighed: dict[Partition, int] = {}
        self._current_at = time.monotonic()
        self._progress = asyncio.Condition()
        self._projection_error = ""
        self._enforcement_errors: dict[str, str] = {}
        self._log_at_start: dict[Partition, int] = {}
        self.commits = Histogram()

    async def run(self) -> None:
        """Until cancelled. A log that cannot be read is tried again, and told by lag(); only our own mistakes are raised."""
        if self._store.notice:
            _log.warning("%s", self._store.notice)
        async with asyncio.TaskGroup() as tasks:
            if self._enforced:
                self._log_at_start = {place: end for topic in ENFORCED for place, end in self._log.end_offsets(topic).items()}
                for topic in ENFORCED:
                    tasks.create_task(self._enforce(topic), name=f"enforce {topic}")
                tasks.create_task(self._tick(), name="tick")
                tasks.create_task(self._deliver(), name="deliver orders")
            tasks.create_task(self._project(), name="project")

    def lag(self) -> Lag:
        behind = self._behind(self._projected, TOPICS)
        now = time.monotonic()
        if not behind:
            self._current_at = now
        return Lag(
            records=behind,
            seconds=now - self._current_at,
            enforcement_records=self._behind(self._weighed, self._enforced),
            orders_pending=len(self._pending),
            live_sessions=len(self._state.sessions),
            enforcing=bool(self._enforced),
            projection_error=self._projection_error,
            enforcement_error="; ".join(dict.fromkeys(self._enforcement_errors.values())),
        )

    def positions(self) -> list[Position]:
        return [
            Position(topic, partition, end, self._projected.get((topic, partition), 0))
            for (topic, partition), end in sorted(self._ends().items())
        ]

    async def caught_up(self) -> None:
        """Return once the tables hold all that is in the log now, and enforcement, if it is ours, has weighed it.

        Raises:
            LogUnavailable: It is not known where the log ends.
        """
        ends = {place: end for topic in TOPICS for place, end in (await self._log.offsets(topic)).items()}

        def reached() -> bool:
            return all(
                self._projected.get(place, 0) >= end and (place[0] not in self._enforced or self._weighed.get(place, 0) >= end)
                for place, end in ends.items()
            )

        async with self._progress:
            await self._progress.wait_for(reached)

    def _ends(self) -> dict[Partition, int]:
        return {place: end for topic in TOPICS for place, end in self._log.end_offsets(topic).items()}

    def _behind(self, offsets: dict[Partition, int], topics: tuple[Topic, ...]) -> int:
        return sum(max(0, end - offsets.get(place, 0)) for topic in topics for place, end in self._log.end_offsets(topic).items())

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    # -- enforcement -----------------------------------------------------------------------------------------------------------

    async def _enforce(self, topic: Topic) -> None:
        """Weigh the events of one topic; `sessions` never ahead of what was recorded in `identity` before.

        A gateway lets a session begin after it has read a reinstatement. Were the session weighed first, it would seem to begin
        in the middle of the revocation.
        """
        follower = Follower(self._log, (topic,), {}, on_gap=lambda _: None)  # the other reader tells of gaps
        try:
            while True:
                try:
                    frames = await follower.poll(self._settings.poll_records_max, 1.0)
                except LogUnavailable as error:
                    self._enforcement_errors[topic] = f"the log cannot be read: {error}"
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except LogCorrupt as error:
                    if topic not in self._enforcement_errors:
                        _log.critical("enforcement stopped: %s", error)
                    self._enforcement_errors[topic] = f"the log is damaged: {error}"
                    await asyncio.sleep(BROKEN_RETRY_SECONDS)
                    continue
                self._enforcement_errors.pop(topic, None)
                if topic == "sessions" and frames:
                    await self._weighed_up_to(self._log.end_offsets("identity"))
                now_us = self._now_us()
                for _, frame in frames:
                    for _, event in frame.events:
                        self._state, orders = enforcement.step(self._state, event, frame.writer, frame.boot, now_us)
                        self._add(orders)
                self._weighed |= follower.offsets
                if self._replaying and self._has_weighed(self._log_at_start):
                    # What was ordered in the past is of interest only where the session lives on: it is ordered once more.
                    self._replaying = False
                    self._news.set()
                await self._tell()
        finally:
            follower.close()

    def _has_weighed(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._weighed.get(place, 0) >= end for place, end in ends.items())

    async def _weighed_up_to(self, ends: Mapping[Partition, int]) -> None:
        if self._has_weighed(ends):
            return
        try:
            async with asyncio.timeout(IDENTITY_SECONDS_MAX), self._progress:
                await self._progress.wait_for(lambda: self._has_weighed(ends))
        except TimeoutError:
            _log.error("the identity log is not read to its end; sessions are weighed against what is known of it")

    async def _tick(self) -> None:
        interval = self._settings.tick_interval_ms / 1000
        while True:
            await asyncio.sleep(interval)
            if not self._replaying:
                self._state, orders = enforcement.tick(self._state, self._now_us())
                self._add(orders)

    def _add(self, orders: enforcement.Effects) -> None:
        for order in orders:
            self._pending[order.order] = order
        if orders and not self._replaying:
            self._news.set()
        if len(self._pending) > self._settings.orders_pending_max:
            self._pending = {name: order for name, order in self._pending.items() if order.session in self._state.sessions}
            if len(self._pending) > self._settings.orders_pending_max:
                raise RuntimeError(f"{len(self._pending)} sessions must end and none of the orders could be recorded")

    async def _deliver(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._pending = {name: order for name, order in self._pending.items() if order.session in self._state.sessions}
            while self._pending:
                orders = list(self._pending.values())[:ORDERS_AT_ONCE]
                names = await recorded(orders, self._order)
                for name in names:
                    self._pending.pop(name, None)
                if len(names) < len(orders):
                    await asyncio.sleep(RETRY_SECONDS)
                    self._pending = {name: o for name, o in self._pending.items() if o.session in self._state.sessions}

    # -- projection ------------------------------------------------------------------------------------------------------------

    async def _project(self) -> None:
        started_over_at = -START_OVER_SECONDS_MIN
        while True:
            try:
                await self._project_until_broken()
            except LogUnavailable as error:
                self._projection_error = f"the log cannot be read: {error}"
                await asyncio.sleep(RETRY_SECONDS)
            except LogCorrupt as error:
                if not self._projection_error:
                    _log.critical("the tables stand still: %s", error)
                self._projection_error = f"the log is damaged: {error}"
                await asyncio.sleep(BROKEN_RETRY_SECONDS)
            except MemoryError as error:
                self._projection_error = f"not enough memory for the tables: {error}"
                await asyncio.sleep(RETRY_SECONDS)
            except TablesBroken as error:
                self._projection_error = f"the tables are broken: {error}"
                _log.critical("%s", self._projection_error)
                if time.monotonic() - started_over_at < START_OVER_SECONDS_MIN:
                    await asyncio.sleep(BROKEN_RETRY_SECONDS)
                    continue
                started_over_at = time.monotonic()
                await asyncio.to_thread(self._store.start_over, str(error))
                _log.warning("%s", self._store.notice)

    async def _project_until_broken(self) -> None:
        offsets, seen = await asyncio.to_thread(lambda: (self._store.offsets(), self._store.seen()))
        self._projected = offsets
        gaps: list[Gap] = []

        def on_gap(gap: Gap) -> None:
            log_gap(gap)
            gaps.append(gap)

        follower = Follower(self._log, TOPICS, offsets, seen, on_gap)
        try:
            await self._follow(follower, gaps)
        finally:
            follower.close()

    async def _follow(self, follower: Follower, gaps: list[Gap]) -> None:
        interval = calm = self._settings.commit_interval_ms / 1000
        urgent = self._settings.finding_commit_interval_ms / 1000
        committed_at = time.monotonic() - interval
        batch: list[tuple[Record, Frame]] = []
        events = 0
        # While work never pauses, the tables never hold all that is in the log: they are as old as an end that they have reached.
        end_at, end = time.monotonic(), self._ends()
        while True:
            wait = 1.0 if not batch else max(0.0, committed_at + interval - time.monotonic())
            frames = await follower.poll(self._settings.poll_records_max, wait)
            if frames:
                self._projection_error = ""
            batch += frames
            events += sum(len(frame.events) for _, frame in frames)
            if _found(frames):  # somebody may be about to look
                interval = urgent
            if not batch:
                # Nothing comes from brokers that are away, either: they are asked, and what they do not answer is told.
                await self._log.offsets("identity")
                self._projection_error = ""
                self._projected = dict(follower.offsets)
                end_at, end = time.monotonic(), self._ends()
                if not self._behind(self._projected, TOPICS):
                    self._current_at = end_at
                await self._tell()
                continue
            if events < self._settings.batch_events_max and time.monotonic() < committed_at + interval:
                continue
            offsets = dict(follower.offsets)
            whole = Batch(batch, offsets, dict(follower.seen), tuple(gaps))
            # Finished even when this task is cancelled meanwhile: the thread cannot be stopped halfway.
            begun_at = time.monotonic()
            await asyncio.shield(asyncio.to_thread(self._store.ingest, whole))
            batch, events = [], 0
            interval = calm
            gaps.clear()
            committed_at = time.monotonic()
            self.commits.observe(committed_at - begun_at)
            self._projected = offsets
            if all(offsets.get(place, 0) >= offset for place, offset in end.items()):
                self._current_at = end_at
                end_at, end = committed_at, self._ends()
            await self._tell()


def _found(frames: Sequence[tuple[Record, Frame]]) -> bool:
    return any(
        isinstance(event, FindingRaised) for record, frame in frames if record.topic == "findings" for _, event in frame.events
    )
