"""Partitions of `sessions` come to this process and go; all of `identity` is followed; out go the orders that end sessions.

What is known of a partition is a fold over its records, in order and without a hole, from a place before which no session was
opened that still lives. Whoever hands records over may hand them over twice, out of order or not at all: what is known is passed
over, and a hole is read from the log itself. So nothing rests on what a consumer group committed, and two processes that both
believe that they have a partition come to the same orders, under the same names.

A gateway's start stands in one partition of `sessions`, and ends what its earlier boots left open in all of them. The others hear
of it from `observations`, of which every process follows the end: each gateway reports its boot once a second, and the watchdog
says which sessions it ended itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from analytics import enforcement
from analytics.orders import ORDERS_AT_ONCE, Order, recorded
from ingest.clock import now_us
from ingest.events import GatewayReported, GatewayStarted, SessionEndOrdered, SessionOpened, SessionReaped
from ingest.follow import Follower
from ingest.frames import FrameInvalid, decode
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition

TOPIC: Final = "sessions"
RETRY_SECONDS: Final = 0.25  # after the log was not available
BROKEN_RETRY_SECONDS: Final = 5.0  # after it was corrupt: a person must act

_log: Final = logging.getLogger(__name__)


class Unreadable(Exception):
    """A record of `sessions` is not a frame that this version reads. What stands behind it in its partition is not weighed."""


class Floor(msgspec.Struct, frozen=True, array_like=True):
    """Where the reading of a partition may begin: every session that was opened before `offset` is over.

    A floor that is old, or none at all, costs time and nothing else.
    """

    offset: int
    boots: dict[str, int]  # of each gateway, the newest that was seen: earlier ones have no session


@dataclass(frozen=True, slots=True)
class EnforcerSettings:
    tick_interval_ms: int = 100  # expiries are found this late at most
    poll_records_max: int = 500
    orders_pending_max: int = 100_000  # one a live session; beyond it the process ends with an error
    behind_seconds_max: float = 2.0  # a record that was not handed over for so long is read from the log; a rebalance takes 2 to 3
    observations_back: int = 2_000  # records of each partition of `observations` read at the start; what is older is missed
    reaped_max: int = 10_000  # sessions that the watchdog ended, remembered for partitions that come later


@dataclass(slots=True)
class _Share:
    """One partition."""

    number: int
    next: int  # offset
    state: enforcement.State
    boots: dict[str, int]
    opened: dict[str, int] = field(default_factory=dict)  # live session -> its record's offset
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # writer -> (boot, seq) of its newest frame
    handed: int = 0  # what was handed over lies below this offset, known or not
    reading: bool = True  # what it says is past: no order goes out
    error: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class EnforcerStatus:
    partitions: tuple[int, ...]  # of `sessions`
    reading: tuple[int, ...]  # those of them whose past is being read
    records: int  # in the log and not weighed
    identity_records: int
    identity_at_us: int  # `at_us` of the newest identity event that was weighed
    live_sessions: int
    orders_pending: int
    orders_recorded: int  # by this process
    error: str  # "" when all is well


class Enforcer:
    """One a process, on one loop. It does not close the log."""

    def __init__(self, log: EventLog, order: Order, settings: EnforcerSettings, now_us: Callable[[], int] = now_us) -> None:
        self._log = log
        self._order = order
        self._settings = settings
        self._now_us = now_us
        self._identity = enforcement.State()  # of identity events alone: what each new share begins with
        self._identity_next: dict[Partition, int] = {}
        self._identity_at_us = 0
        self._identity_read = False  # to the end that it had when this process began
        self._identity_error = ""
        self._reported: dict[str, int] = {}  # gateway -> its boot
        self._reaped: dict[str, SessionReaped] = {}
        self._progress = asyncio.Condition()
        self._shares: dict[int, _Share] = {}
        self._pending: dict[str, tuple[int, SessionEndOrdered]] = {}
        self._news = asyncio.Event()
        self._recorded = 0
        self._given = asyncio.Event()
        self._floors: Callable[[int], bytes | None] = lambda _: None

    async def run(self) -> None:
        """Until cancelled. What cannot be read or recorded is tried again and told by status(); only our mistakes are raised."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_identity(), name="follow identity")
            tasks.create_task(self._follow_observations(), name="follow observations")
            tasks.create_task(self._tick(), name="tick")
            tasks.create_task(self._deliver(), name="deliver orders")
            tasks.create_task(self._catch_up(), name="catch up")
            tasks.create_task(self._look_behind(), name="look behind")

    def give(self, partitions: Iterable[int], floor: Callable[[int], bytes | None]) -> None:
        """From here on this process has these partitions and no others. `floor` is what floor() said last of one, anywhere."""
        wanted = set(partitions)
        for number in set(self._shares) - wanted:
            del self._shares[number]
        self._floors = floor
        for number in wanted - set(self._shares):
            begin = _floor(floor(number))
            self._shares[number] = _Share(number, begin.offset, enforcement.State(), dict(begin.boots))
        self._pending = {name: due for name, due in self._pending.items() if due[0] in self._shares}
        self._given.set()

    async def take(self, partition: int, offset: int, value: bytes) -> None:
        """Weigh a record of `sessions`. Of a partition that this process does not have, or knows this far, it is passed over.

        Raises:
            Unreadable: See there. The next record of the partition raises it too.
        """
        share = self._shares.get(partition)
        if share is None:
            return
        share.handed = max(share.handed, offset + 1)
        if share.reading:
            return  # whoever reads goes on to what was handed over
        async with share.lock:
            if offset > share.next:
                await self._read(share, offset)
            if offset == share.next:
                await self._weigh(share, offset, value)

    def floor(self, partition: int) -> bytes | None:
        """To be kept where the next owner of the partition finds it; None while there is nothing to say."""
        share = self._shares.get(partition)
        if share is None or share.reading:
            return None
        live = share.state.sessions
        share.opened = {session: offset for session, offset in share.opened.items() if session in live}
        return msgspec.msgpack.encode(Floor(min(share.opened.values(), default=share.next), share.boots))

    def status(self) -> EnforcerStatus:
        ends = self._log.end_offsets(TOPIC)
        shares = self._shares.values()
        errors = [self._identity_error, *(share.error for share in shares)]
        return EnforcerStatus(
            partitions=tuple(sorted(self._shares)),
            reading=tuple(sorted(share.number for share in shares if share.reading)),
            records=sum(max(0, ends.get((TOPIC, share.number), 0) - share.next) for share in shares),
            identity_records=self._behind(self._log.end_offsets("identity")),
            identity_at_us=self._identity_at_us,
            live_sessions=sum(len(share.state.sessions) for share in shares),
            orders_pending=len(self._pending),
            orders_recorded=self._recorded,
            error="; ".join(error for error in errors if error),
        )

    def offsets(self) -> dict[Partition, int]:
        """The next record to weigh, of all that this process reads now."""
        return self._identity_next | {(TOPIC, share.number): share.next for share in self._shares.values()}

    def live(self) -> dict[str, str]:
        """Live session -> agent, of the partitions that this process has."""
        return {live.session: live.agent for share in self._shares.values() for live in share.state.sessions.values()}

    # -- identity --------------------------------------------------------------------------------------------------------------

    async def _follow_identity(self) -> None:
        ends: Mapping[Partition, int] | None = None
        follower = Follower(self._log, ("identity",), {}, on_gap=lambda _: None)  # the tables' reader tells of gaps
        try:
            while True:
                try:
                    if ends is None:
                        ends = await self._log.offsets("identity")
                    frames = await follower.poll(self._settings.poll_records_max, 1.0 if self._identity_read else 0.2)
                except LogUnavailable as error:
                    self._identity_error = f"the log cannot be read: {error}"
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except LogCorrupt as error:
                    if not self._identity_error:
                        _log.critical("enforcement stopped: %s", error)
                    self._identity_error = f"the log is damaged: {error}"
                    await asyncio.sleep(BROKEN_RETRY_SECONDS)
                    continue
                self._identity_error = ""
                now_us = self._now_us()
                for _, frame in frames:
                    for _, event in frame.events:
                        self._identity, _ = enforcement.step(self._identity, event, frame.writer, frame.boot, now_us)
                        for share in self._shares.values():
                            share.state, orders = enforcement.step(share.state, event, frame.writer, frame.boot, now_us)
                            self._add(share, orders)
                        self._identity_at_us = max(self._identity_at_us, event.at_us if hasattr(event, "at_us") else 0)
                self._identity_next = dict(follower.offsets)
                if not self._behind(ends):
                    self._identity_read = True
                async with self._progress:
                    self._progress.notify_all()
        finally:
            follower.close()

    def _behind(self, ends: Mapping[Partition, int]) -> int:
        return sum(max(0, end - self._identity_next.get(place, 0)) for place, end in ends.items())

    # -- observations ----------------------------------------------------------------------------------------------------------

    async def _follow_observations(self) -> None:
        """Only a help: a session that is wrongly thought to live gets an order that nobody needs."""
        follower: Follower | None = None
        try:
            while True:
                try:
                    if follower is None:
                        ends = await self._log.offsets("observations")
                        back = {place: max(0, end - self._settings.observations_back) for place, end in ends.items()}
                        begins = self._log.begin_offsets("observations")
                        offsets = {place: max(offset, begins.get(place, 0)) for place, offset in back.items()}
                        follower = Follower(self._log, ("observations",), offsets, on_gap=lambda _: None)
                    frames = await follower.poll(self._settings.poll_records_max, 1.0)
                except LogUnavailable:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except LogCorrupt as error:
                    _log.error("observations cannot be read: %s", error)
                    return
                for _, frame in frames:
                    for _, event in frame.events:
                        if isinstance(event, GatewayReported):
                            if event.boot <= self._reported.get(event.gateway, -1):
                                continue
                            self._reported[event.gateway] = event.boot
                        elif isinstance(event, SessionReaped):
                            self._reaped[event.session] = event
                            while len(self._reaped) > self._settings.reaped_max:
                                del self._reaped[next(iter(self._reaped))]
                        else:
                            continue
                        for share in self._shares.values():
                            self._observe(share, event)
        finally:
            if follower is not None:
                follower.close()

    def _observe(self, share: _Share, event: GatewayReported | SessionReaped) -> None:
        # As it would stand in `sessions`. Of a gateway that reports, no session of an earlier boot is open.
        told = GatewayStarted(event.at_us, event.gateway, event.boot, "") if isinstance(event, GatewayReported) else event
        share.state, _ = enforcement.step(share.state, told, event.gateway, event.boot, 0)

    # -- sessions --------------------------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Read the past of each partition that came."""
        while True:
            await self._given.wait()
            self._given.clear()
            async with self._progress:
                await self._progress.wait_for(lambda: self._identity_read)
            # More than one at a time would only share one core.
            for share in [share for share in self._shares.values() if share.reading]:
                await self._begin(share)
            if any(share.reading for share in self._shares.values()):
                await asyncio.sleep(RETRY_SECONDS)
                self._given.set()

    async def _look_behind(self) -> None:
        """Read what the log has and nobody hands over: a consumer may stand still and not know it."""
        before: Mapping[Partition, int] = {}
        while True:
            await asyncio.sleep(self._settings.behind_seconds_max)
            for share in list(self._shares.values()):
                end = before.get((TOPIC, share.number), 0)
                if share.reading or share.next >= end or share.lock.locked():
                    continue
                _log.warning("partition %d of sessions: nobody hands records %d to %d over", share.number, share.next, end - 1)
                async with share.lock:
                    try:
                        await self._read(share, end)
                        share.error = ""
                    except (LogUnavailable, Unreadable) as error:
                        share.error = str(error)
            before = self._log.end_offsets(TOPIC)

    async def _begin(self, share: _Share) -> None:
        async with share.lock:
            share.state = self._identity.of_identity()
            for writer, boot in share.boots.items():
                share.state, _ = enforcement.step(share.state, GatewayStarted(0, writer, boot, ""), writer, boot, 0)
            began, first = time.monotonic(), share.next
            try:
                end = (await self._log.offsets(TOPIC)).get((TOPIC, share.number), 0)
                await self._read(share, end)
                while share.next < share.handed:
                    await self._read(share, share.handed)
                share.error = ""
            except (LogUnavailable, Unreadable) as error:
                # What was read of it stays in the state; the next attempt goes on behind it, on a state that knows it.
                share.error = str(error)
                _log.error("partition %d of sessions: %s", share.number, error)
                if isinstance(error, LogUnavailable):
                    self._start_over(share)
                    return
            for gateway, boot in self._reported.items():
                share.state, _ = enforcement.step(share.state, GatewayStarted(0, gateway, boot, ""), gateway, boot, 0)
            share.reading = False
        seconds = time.monotonic() - began
        _log.info("partition %d of sessions: %d records of the past in %.1f s", share.number, share.next - first, seconds)
        self._news.set()

    def _start_over(self, share: _Share) -> None:
        begin = _floor(self._floors(share.number))
        share.next, share.boots = begin.offset, dict(begin.boots)
        share.opened, share.seen = {}, {}

    async def _read(self, share: _Share, end: int) -> None:
        """Weigh what the log holds of this partition up to `end`. Orders wait until all of it is known: it is in the past.

        Raises:
            LogUnavailable, Unreadable
        """
        if share.next >= end:
            return
        held, share.reading = share.reading, True
        place = (TOPIC, share.number)
        share.next = max(share.next, min(end, self._log.begin_offsets(TOPIC).get(place, 0)))
        subscription = self._log.assign({place: share.next})
        try:
            while share.next < end:
                for record in await subscription.poll(self._settings.poll_records_max, 1.0):
                    if record.offset >= end:
                        share.next = end
                        break
                    await self._weigh(share, record.offset, record.value)
        except LogCorrupt as error:
            raise Unreadable(str(error)) from error
        finally:
            subscription.close()
            share.reading = held
            self._news.set()

    async def _weigh(self, share: _Share, offset: int, value: bytes) -> None:
        try:
            frame = decode(value, TOPIC)
        except FrameInvalid as error:
            share.error = f"record {offset} of partition {share.number} of sessions: {error}"
            raise Unreadable(share.error) from error
        share.error = ""
        name = (frame.boot, frame.seq)
        if name > share.seen.get(frame.writer, (-1, -1)):
            share.seen[frame.writer] = name
            share.boots[frame.writer] = max(share.boots.get(frame.writer, 0), frame.boot)
            now_us = self._now_us()
            for _, event in frame.events:
                if isinstance(event, SessionOpened):
                    share.opened.setdefault(event.stamp.session, offset)
                share.state, orders = enforcement.step(share.state, event, frame.writer, frame.boot, now_us)
                self._add(share, orders)
                if isinstance(event, SessionOpened) and (reaped := self._reaped.get(event.stamp.session)) is not None:
                    self._observe(share, reaped)  # that was read first
        share.next = offset + 1

    # -- orders ----------------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        interval = self._settings.tick_interval_ms / 1000
        while True:
            await asyncio.sleep(interval)
            now_us = self._now_us()
            for share in self._shares.values():
                if not share.reading:
                    share.state, orders = enforcement.tick(share.state, now_us)
                    self._add(share, orders)

    def _add(self, share: _Share, orders: enforcement.Effects) -> None:
        for order in orders:
            self._pending[order.order] = (share.number, order)
        if orders and not share.reading:
            self._news.set()
        if len(self._pending) > self._settings.orders_pending_max:
            self._forget()
            if len(self._pending) > self._settings.orders_pending_max:
                raise RuntimeError(f"{len(self._pending)} sessions must end and none of the orders could be recorded")

    def _forget(self) -> None:
        """Orders of sessions that ended meanwhile, and of partitions whose next owner makes them itself."""
        self._pending = {
            name: (number, order)
            for name, (number, order) in self._pending.items()
            if (share := self._shares.get(number)) is not None and order.session in share.state.sessions
        }

    def _due(self) -> list[SessionEndOrdered]:
        self._forget()
        return [order for number, order in self._pending.values() if not self._shares[number].reading]

    async def _deliver(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while orders := self._due()[:ORDERS_AT_ONCE]:
                names = await recorded(orders, self._order)
                for name in names:
                    self._pending.pop(name, None)
                self._recorded += len(names)
                if len(names) < len(orders):
                    await asyncio.sleep(RETRY_SECONDS)


def _floor(kept: bytes | None) -> Floor:
    if kept is None:
        return Floor(0, {})
    try:
        return msgspec.msgpack.decode(kept, type=Floor)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Floor(0, {})
