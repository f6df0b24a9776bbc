"""The same steps on Faust: workers of one group share the partitions of `sessions` and `statements`. Nothing else imports faust.

Faust says who has which partition and hands records over. What must be right is not left to it: enforcement.py's state is kept by
enforcer.py, which trusts no committed offset, and the table below is a cache of counts whose every value names the frames that are
in it. docs/worker.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faust
from aiokafka.errors import IllegalStateError  # type: ignore[import-untyped]
from faust.auth import SASLCredentials, SSLCredentials
from faust.exceptions import ConsumerNotStarted
from faust.types import TP, AppT, EventT, Message, StreamT
from faust.types.tables import TableT

from analytics import activity
from analytics.activity import ActivitySettings, Window
from analytics.enforcer import Enforcer, Unreadable
from ingest.events import Frame
from ingest.frames import FrameInvalid, decode
from ingest.log import EventLog, LogUnavailable, Partition
from ingest.log.kafka_client import connection
from ingest.settings import KafkaSettings

GROUP: Final = "worker"  # behind the topics' prefix; the tables' changelogs are <group>-<table>-changelog
FLOORS: Final = "floors"
ACTIVITY: Final = "activity"
HEARTBEAT_SECONDS: Final = 3.0
POSITION_SECONDS_MAX: Final = 5.0
LOOK_SECONDS: Final = 1.0
FLOOR_SECONDS: Final = 1.0  # between two floors of one partition
RECOVERY_SECONDS_MAX: Final = 10.0  # for the tables at an assignment; without its floor a partition is read from its beginning

_log: Final = logging.getLogger(__name__)


class StreamsFailed(Exception):
    """Faust ended by itself. Says what it said last."""


@dataclass(frozen=True, slots=True)
class StreamsStanding:
    statements: tuple[int, ...]  # partitions that this worker counts
    statement_records: int  # in the log and not counted
    age_seconds: float  # since all that was in this worker's partitions had been processed; 0 when it has
    agents: int
    frames: int  # counted by this process
    windows_closed: int
    unreadable: int
    rebalancing: bool


class Streams:
    """One a process, on the running loop."""

    def __init__(
        self,
        kafka: KafkaSettings,
        log: EventLog,
        enforcer: Enforcer,
        settings: ActivitySettings,
        folder: Path,
        credentials: SASLCredentials | SSLCredentials | None = None,
    ) -> None:
        self._log = log
        self._enforcer = enforcer
        self._settings = settings
        self._sessions = kafka.topic_prefix + "sessions"
        self._statements = kafka.topic_prefix + "statements"
        self._counted: dict[int, int] = {}  # partition of `statements` -> next offset
        self._floored_at: dict[int, float] = {}
        self._assigned: frozenset[TP] = frozenset()
        self._changed = asyncio.Event()
        self._current_at = time.monotonic()
        self._frames = self._closed = self._unreadable = 0
        self.app = faust.App(
            kafka.topic_prefix + GROUP,
            broker=[f"kafka://{address}" for address in kafka.bootstrap],
            broker_credentials=credentials,
            broker_session_timeout=kafka.session_seconds,
            broker_rebalance_timeout=max(kafka.session_seconds, 10.0),
            broker_heartbeat_interval=min(HEARTBEAT_SECONDS, kafka.session_seconds / 3),
            broker_commit_interval=1.0,
            broker_max_poll_interval=kafka.work_seconds_max,
            broker_check_crcs=True,
            consumer_auto_offset_reset="earliest",
            producer_acks=-1,
            producer_linger=0.0,
            stream_wait_empty=False,
            topic_allow_declare=False,  # `pgwarden topics apply` makes them, with a fixed number of partitions
            topic_disable_leader=True,
            web_enabled=False,  # its router and tables would answer anybody
            store="memory://",
            table_standby_replicas=0,  # a changelog is read in a second; a second worker need not hold it twice
            datadir=folder,
            key_serializer="raw",
            value_serializer="raw",
            processing_guarantee="at_least_once",
            loghandlers=[],
        )
        partitions = kafka.partitions
        table = self.app.Table
        self._activity: TableT[bytes, bytes] = table(
            ACTIVITY, partitions=partitions["statements"], key_type=bytes, value_type=bytes
        )
        self._floors: TableT[bytes, bytes] = table(FLOORS, partitions=partitions["sessions"], key_type=bytes, value_type=bytes)
        topic = self.app.topic
        self.app.agent(topic(self._sessions, key_type=bytes, value_type=bytes), name="enforce")(self._enforce)
        self.app.agent(topic(self._statements, key_type=bytes, value_type=bytes), name="count")(self._count)
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)

    async def run(self) -> None:
        """Until cancelled; stop() after that.

        Raises:
            StreamsFailed
        """
        sharing = asyncio.create_task(self._share_out(), name="share out")
        looking = asyncio.create_task(self._look(), name="look")
        try:
            await self.app.start()
            waiting = asyncio.create_task(self.app.wait_until_stopped(), name="faust")
            try:
                await asyncio.wait({waiting, sharing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            if sharing.done():
                sharing.result()
            raise StreamsFailed(f"Faust ended by itself: {self.app.crash_reason!r}")
        finally:
            sharing.cancel()
            looking.cancel()

    async def stop(self) -> None:
        """Leave the group. May hang on brokers that do not answer: give it a time limit."""
        await self.app.stop()

    def standing(self) -> StreamsStanding:
        ends = self._ends()
        offsets = self._offsets()
        behind = not self._reached(ends)
        statements = ((end, offsets.get(place, end)) for place, end in ends.items() if place[0] == "statements")
        return StreamsStanding(
            statements=tuple(sorted(self._counted)),
            statement_records=sum(max(0, end - offset) for end, offset in statements),
            age_seconds=time.monotonic() - self._current_at if behind else 0.0,
            agents=len(self._activity),
            frames=self._frames,
            windows_closed=self._closed,
            unreadable=self._unreadable,
            rebalancing=self.app.rebalancing,
        )

    async def _look(self) -> None:
        """While work never pauses, the end is never reached: so what is known is as old as an end that was."""
        ends, at = self._ends(), time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._reached(ends):
                self._current_at = at
                ends, at = self._ends(), time.monotonic()

    def _ends(self) -> dict[Partition, int]:
        return {
            place: end for topic in ("identity", "sessions", "statements") for place, end in self._log.end_offsets(topic).items()
        }

    def _offsets(self) -> dict[Partition, int]:
        return self._enforcer.offsets() | {("statements", number): offset for number, offset in self._counted.items()}

    def _reached(self, ends: Mapping[Partition, int]) -> bool:
        """Of what is this worker's."""
        return all(offset >= ends.get(place, 0) for place, offset in self._offsets().items())

    # -- agents: what Faust hands over ------------------------------------------------------------------------------------------

    async def _enforce(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            partition = event.message.partition
            with contextlib.suppress(Unreadable, LogUnavailable):  # told by the enforcer's standing; it reads it again by itself
                await self._enforcer.take(partition, event.message.offset, event.value or b"")
            if (floor := self._new_floor(partition)) is not None:
                self._floors[b"%d" % partition] = floor

    async def _count(self, stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            try:
                key, agent, frame = _frame(event)
            except FrameInvalid as error:
                self._pass_over(event.message, error)
                continue
            state, closed = activity.step(activity.decode(self._activity.get(key)), frame, agent, self._settings)
            self._activity[key] = activity.encode(state)
            self._on_counted(event.message, closed)

    # -- what the agents need ---------------------------------------------------------------------------------------------------

    def _new_floor(self, partition: int) -> bytes | None:
        now = time.monotonic()
        if now < self._floored_at.get(partition, 0.0) + FLOOR_SECONDS:
            return None
        self._floored_at[partition] = now
        return self._enforcer.floor(partition)

    def _pass_over(self, message: Message, error: FrameInvalid) -> None:
        self._unreadable += 1
        self._counted[message.partition] = message.offset + 1
        _log.error("record %d of partition %d of statements is not counted: %s", message.offset, message.partition, error)

    def _on_counted(self, message: Message, closed: tuple[Window, ...]) -> None:
        self._frames += 1
        self._closed += len(closed)
        self._counted[message.partition] = message.offset + 1

    # -- partitions come and go -------------------------------------------------------------------------------------------------

    async def _on_assigned(self, app: AppT, /, *told: set[TP], **_: object) -> None:
        del app
        self._assigned = frozenset(told[0])
        self._changed.set()

    async def _share_out(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            until = time.monotonic() + RECOVERY_SECONDS_MAX
            while (self.app.rebalancing or not self.app.tables.actives_ready) and time.monotonic() < until:  # noqa: ASYNC110 - flags are all it has
                await asyncio.sleep(0.02)
            mine = {tp.partition for tp in self._assigned if tp.topic == self._sessions}
            self._enforcer.give(mine, lambda number: self._floors.get(b"%d" % number))
            begins = {tp.partition: await self._position(tp) for tp in self._assigned if tp.topic == self._statements}
            # What was counted while we asked is newer than the answer; what another worker counted in between is not.
            self._counted = {number: max(begin, self._counted.get(number, 0)) for number, begin in begins.items()}
            _log.info("this worker has %d partitions of sessions and %d of statements", len(mine), len(begins))

    async def _position(self, tp: TP) -> int:
        """Where its reading goes on; 0 where another rebalance came in between, after which we are here again."""
        with contextlib.suppress(IllegalStateError, ConsumerNotStarted, TimeoutError):
            async with asyncio.timeout(POSITION_SECONDS_MAX):
                return await self.app.consumer.position(tp) or 0
        return 0


def _frame(event: EventT[bytes]) -> tuple[bytes, str, Frame]:
    """The key, the agent that it names, and the frame. Neither key nor value need be there: anybody may have written the record.

    Raises:
        FrameInvalid
    """
    if not isinstance(event.key, bytes) or not isinstance(event.value, bytes):
        raise FrameInvalid("a record without a key, or without a value")
    try:
        agent = event.key.decode()
    except UnicodeDecodeError as error:
        raise FrameInvalid(f"a key that is no name: {error}") from error
    return event.key, agent, decode(event.value, "statements")


def credentials(settings: KafkaSettings) -> SASLCredentials | SSLCredentials | None:
    """Asks for the password.

    Raises:
        LogUnavailable: A file or the password cannot be read.
    """
    told = connection(settings)
    context = told.get("ssl_context")
    assert context is None or isinstance(context, ssl.SSLContext)
    if settings.sasl:
        password = str(told["sasl_plain_password"])
        return SASLCredentials(username=settings.user, password=password, ssl_context=context, mechanism=settings.sasl)
    return SSLCredentials(context) if context is not None else None
