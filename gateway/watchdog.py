"""A second pair of hands: ends, and proves to be ended, what its own gateway does not end.

It has the log and connections of its own to each database, and nothing of the gateway's: a gateway that is stopped, hangs, or is
gone cannot hold it up. Where it cannot see, it ends nothing for want of a gateway, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, get_args

from gateway.control import Backend, Control, ControlFailed
from gateway.live_sessions import GATEWAY_GONE, BackendName, LiveSession, LiveSessions, Moment, Orphan
from gateway.strays import Strays
from identity.registry import Registry
from ingest.clock import mono_us, now_us
from ingest.events import BackendEndOrdered, BackendReaped, IdentityEvent, SessionReaped, Topic, WatchdogConnected
from ingest.follow import Follower
from ingest.histogram import Histogram
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition
from ingest.recorder import Recorder

_IDENTITY_EVENTS: Final = get_args(IdentityEvent)
_FIRST: Final[tuple[Topic, ...]] = ("identity", "commands", "observations")
_LOG: Final = "the log"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchdogSettings:
    watchdog: str = "watchdog"  # names this one in events; two never share a name
    patience_ms: float = 500.0  # for a gateway to end a session and record it; a sound one takes 20 to 200
    orphan_seconds: float = 10.0  # without a control connection; a gateway makes a lost one anew within two
    look_ms: float = 1_000.0  # between two looks at who is connected
    judge_ms: float = 50.0  # between two looks at what is due
    tick_ms: float = 250.0  # between two looks at what has run out; as the gateway's
    gone_seconds: float = 5.0  # for a gateway's own record where a backend was gone before it was touched
    kill_seconds_max: float = 4.0  # for a proof; then it is said that it did not come, and trying goes on
    unproven_seconds: float = 60.0  # then that is recorded, once
    blind_seconds: float = 5.0  # without the log or a database; then it is said
    log_age_seconds_max: float = 2.0  # without word of the log, no gateway is called gone: its last words may stand there
    identity_seconds_max: float = 2.0  # that sessions wait for what was recorded of identities before; as enforcement's
    observations_read_max: int = 200_000  # of each partition at the start; with Kafka each gateway reports every second
    sessions_max: int = 200_000  # live at once; 800 bytes each
    remembered_max: int = 100_000  # orders and ends of sessions that were not read yet


@dataclass(frozen=True, slots=True)
class Sight:
    """A connection to look after, and our own two connections to it: one to look, one kept free for ending."""

    look: Control
    kill: Control


@dataclass(slots=True)
class _Work:
    """The end of one session."""

    session: LiveSession
    cause: str
    requested_us: int
    reason: str
    decided_us: int
    begun: float  # monotonic
    sent: bool = False  # the backend was there, and was told to end
    gone_us: int = 0
    gone_since: float = 0.0  # monotonic
    alone: bool = False  # its gateway is gone, and will record nothing
    complained: bool = False
    unproven_recorded: bool = False

    @property
    def backend(self) -> Backend:
        return Backend(*self.session.backend)


@dataclass(slots=True)
class _Blindness:
    since_us: int
    since: float  # monotonic
    reason: str
    told: bool = False


class Watchdog:
    """`run` until cancelled. Owned by one event loop; closes neither log nor recorder."""

    def __init__(
        self,
        log: EventLog,
        recorder: Recorder,
        sights: Mapping[str, Sight],
        boot: int,
        settings: WatchdogSettings,
    ) -> None:
        self._log = log
        self._recorder = recorder
        self._sights = sights
        self._boot = boot
        self._settings = settings
        self._live = LiveSessions(Registry(), settings.sessions_max, settings.remembered_max)
        self._strays = Strays(
            {name: sight.kill for name, sight in sights.items()},
            recorder,
            settings.watchdog,
            self._gateways_on,
            lambda: self.caught_up,
            settings.unproven_seconds,
        )
        for connection, sight in sights.items():
            for control in (sight.look, sight.kill):
                control.tell(partial(self._opened, connection, control.role))
        self._work: dict[str, _Work] = {}
        self._news = {connection: asyncio.Event() for connection in sights}
        self._looked: set[str] = set()
        self._blind: dict[str, _Blindness] = {}
        self._unknown_told: set[str] = set()
        self._read: dict[Partition, int] = {}
        self._ends: dict[Partition, int] | None = None  # what stood in the log when this one began
        self._log_seen = time.monotonic()
        self._progress = asyncio.Condition()
        self.caught_up = False
        self.reaped = 0
        self.unproven = 0  # recorded without a proof
        self.kills = Histogram()  # of those it ended: from the record of what caused it to the proof

    async def run(self) -> None:
        """A log or a database that does not answer is tried again, and told by status(); only our own mistakes are raised."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._begin(tasks), name="begin")
            tasks.create_task(self._probe(), name="probe")
            tasks.create_task(self._tick(), name="tick")
            tasks.create_task(self._strays.run(), name="end strays")
            for connection, sight in self._sights.items():
                tasks.create_task(self._look(connection, sight), name=f"look {connection}")
                tasks.create_task(self._end(connection, sight.kill), name=f"end {connection}")

    # -- the log ---------------------------------------------------------------------------------------------------------------

    async def _begin(self, tasks: asyncio.TaskGroup) -> None:
        while self._ends is None:
            try:
                self._ends = await self._log_ends((*_FIRST, "sessions"))
            except LogUnavailable as error:
                self._lost(_LOG, str(error))
                await asyncio.sleep(0.25)
        late = self._settings.observations_read_max
        kept = self._log.begin_offsets("observations")
        begins = {place: max(begin, self._ends[place] - late) for place, begin in kept.items()}
        tasks.create_task(self._follow(_FIRST, begins), name="follow identity")
        tasks.create_task(self._follow(("sessions",), {}), name="follow sessions")

    async def _log_ends(self, topics: Sequence[Topic]) -> dict[Partition, int]:
        """Raises LogUnavailable."""
        return {place: end for topic in topics for place, end in (await self._log.offsets(topic)).items()}

    async def _follow(self, topics: Sequence[Topic], offsets: Mapping[Partition, int]) -> None:
        """Take topics in; `sessions` never ahead of what was recorded of identities before.

        A gateway lets a session begin after it has read a reinstatement. Were the session taken in first, it would seem to begin in
        the middle of the revocation.
        """
        follower = Follower(self._log, topics, offsets)
        try:
            while True:
                try:
                    frames = await follower.poll(timeout_seconds=0.5)
                except (LogUnavailable, LogCorrupt) as error:
                    self._lost(_LOG, f"{', '.join(topics)}: {error}")
                    await asyncio.sleep(5.0 if isinstance(error, LogCorrupt) else 0.25)
                    continue
                if frames and topics == ("sessions",):
                    await self._read_what_came_before()
                now = _now()
                for _, frame in frames:
                    for _, event in frame.events:
                        if isinstance(event, _IDENTITY_EVENTS):
                            self._live.identity(event, now)
                        elif isinstance(event, BackendEndOrdered | BackendReaped):
                            self._strays.take(event)
                        else:
                            self._live.apply(event, frame.writer, frame.boot, now)
                self._read |= follower.offsets
                if not self.caught_up and self._ends is not None and self._has_read(self._ends):
                    self.caught_up = True
                async with self._progress:
                    self._progress.notify_all()
        finally:
            follower.close()

    def _has_read(self, ends: Mapping[Partition, int]) -> bool:
        return all(self._read.get(place, 0) >= end for place, end in ends.items())

    async def _read_what_came_before(self) -> None:
        try:
            async with asyncio.timeout(self._settings.identity_seconds_max):
                ends = await self._log_ends(_FIRST)
                async with self._progress:
                    await self._progress.wait_for(lambda: self._has_read(ends))
        except (LogUnavailable, TimeoutError):
            _log.error("what was recorded of identities is not read to its end; sessions are held against what is known of it")

    async def _probe(self) -> None:
        """Whether the log answers, and all of it is read: silence may be the log's, or nobody's."""
        while True:
            try:
                await self._read_to_the_end()
            except (LogUnavailable, TimeoutError) as error:
                self._lost(_LOG, str(error) or "what stands in it is not read")
            else:
                self._log_seen = time.monotonic()
                self._found(_LOG)
            await asyncio.sleep(self._settings.look_ms / 1_000)

    async def _read_to_the_end(self) -> None:
        """Raises LogUnavailable, TimeoutError."""
        async with asyncio.timeout(self._settings.log_age_seconds_max):
            ends = await self._log_ends((*_FIRST, "sessions"))
            async with self._progress:
                await self._progress.wait_for(lambda: self._has_read(ends))

    # -- what is due -----------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        ticked = 0.0
        while True:
            await asyncio.sleep(self._settings.judge_ms / 1_000)
            self._tell()
            if not self.caught_up:
                continue
            now = _now()
            if time.monotonic() - ticked >= self._settings.tick_ms / 1_000:
                ticked = time.monotonic()
                self._live.tick(now)
            for session in self._live.due(int(self._settings.patience_ms * 1_000), now):
                if session.id not in self._work:
                    end = self._live.must_end[session.id]
                    self._take(_Work(session, end.cause, end.requested_us, end.reason, now.wall_us, time.monotonic()))

    def _take(self, work: _Work) -> None:
        connection = work.session.connection
        if connection not in self._sights:
            if connection not in self._unknown_told:
                self._unknown_told.add(connection)
                _log.error("sessions on connection %s must end, which this configuration does not know", connection)
            return
        _log.warning(
            "session %s of agent %s must end (%s), and gateway %s has not recorded its end",
            work.session.id,
            work.session.agent,
            work.cause,
            work.session.gateway,
        )
        self._work[work.session.id] = work
        self._news[connection].set()

    # -- gateways that are gone ------------------------------------------------------------------------------------------------

    async def _look(self, connection: str, sight: Sight) -> None:
        name = f"connection {connection}"
        while True:
            try:
                if self.caught_up and self._live.on(connection):
                    ours = {(one.pid, one.start_us): named for one, named in await sight.look.ours()}
                    self._judge(connection, ours)
                else:
                    self._live.blind(connection)
                    await sight.look.keep()
                await sight.kill.keep()
                self._found(name)
            except ControlFailed as failed:
                self._live.blind(connection)
                self._lost(name, str(failed))
            await asyncio.sleep(self._settings.look_ms / 1_000)

    def _judge(self, connection: str, ours: Mapping[BackendName, str]) -> None:
        if time.monotonic() - self._log_seen > self._settings.log_age_seconds_max + self._settings.look_ms / 1_000:
            self._live.blind(connection)
            return
        now = _now()
        for orphan in self._live.looked(connection, ours, int(self._settings.orphan_seconds * 1_000_000), now):
            if orphan.session.id not in self._work:
                self._take(self._orphaned(orphan, now))

    def _orphaned(self, orphan: Orphan, now: Moment) -> _Work:
        session = orphan.session
        reason = f"gateway {session.gateway} has had no connection to the database for {self._settings.orphan_seconds:g} s"
        return _Work(session, GATEWAY_GONE, orphan.missed.wall_us, reason, now.wall_us, time.monotonic(), alone=True)

    # -- ending ----------------------------------------------------------------------------------------------------------------

    async def _end(self, connection: str, control: Control) -> None:
        name = f"connection {connection}, to end sessions there"
        news = self._news[connection]
        while True:
            await news.wait()
            news.clear()
            pause = 0.002
            while works := [work for work in self._work.values() if work.session.connection == connection]:
                standing = [work for work in works if not work.gone_us]
                try:
                    there = await control.terminate_all([work.backend for work in standing])
                    alive = await control.alive_of([work.backend for work in standing])
                except ControlFailed as failed:
                    self._lost(name, str(failed))
                    pause = max(pause, 0.05)
                else:
                    self._found(name)
                    moment = time.monotonic()
                    for work in standing:
                        work.sent = work.sent or work.backend in there
                        if work.backend not in alive:
                            work.gone_us, work.gone_since = _now().wall_us, moment
                for work in works:
                    self._settle(work)
                if news.is_set():
                    news.clear()
                    pause = 0.002
                try:
                    async with asyncio.timeout(pause):
                        await news.wait()
                except TimeoutError:
                    pause = min(pause * 1.5, 0.1)

    def _settle(self, work: _Work) -> None:
        """Record what is to be recorded, and say whether anything is left to do by leaving it in `_work`."""
        session = work.session.id
        known = session in self._live.sessions
        elapsed = time.monotonic() - work.begun
        if not work.gone_us:
            if not known and not work.sent:
                del self._work[session]  # its gateway has recorded the end meanwhile
                return
            if elapsed > self._settings.kill_seconds_max and not work.complained:
                work.complained = True
                _log.error("session %s of agent %s is not proven to have ended; trying on", session, work.session.agent)
            if elapsed > self._settings.unproven_seconds and not work.unproven_recorded:
                work.unproven_recorded = self._record(work)
            return
        if not work.sent and not work.alone:
            # The gateway may have ended it, and its record be on its way. A revocation taken back leaves nothing to record either.
            if not known or session not in self._live.must_end:
                del self._work[session]
                return
            if time.monotonic() - work.gone_since < self._settings.gone_seconds:
                return
        if not work.sent and not known:
            del self._work[session]
            return
        if self._record(work):
            del self._work[session]
            _log.warning("ended session %s of agent %s: %s", session, work.session.agent, work.cause)

    def _record(self, work: _Work) -> bool:
        session = work.session
        event = SessionReaped(
            at_us=_now().wall_us,
            session=session.id,
            agent=session.agent,
            gateway=session.gateway,
            boot=session.boot,
            cause=work.cause,
            requested_us=work.requested_us,
            decided_us=work.decided_us,
            backend_gone_us=work.gone_us,
            backend_pid=session.backend[0],
            reason=work.reason if work.sent or not work.gone_us else f"{work.reason}; its backend was gone already",
            watchdog=self._settings.watchdog,
        )
        try:
            self._recorder.record("observations", session.agent, event)
        except LogUnavailable:
            return False  # tried again: a kill that is not in the record is not done
        if work.gone_us:
            self.reaped += 1
            self.kills.observe(max(0, work.gone_us - work.requested_us) / 1e6)
        else:
            self.unproven += 1
        self._live.apply(event, self._settings.watchdog, self._boot, _now())
        return True

    # -- what no gateway opened ------------------------------------------------------------------------------------------------

    def _gateways_on(self, connection: str) -> frozenset[tuple[int, int]]:
        live = self._live.sessions.values()
        return frozenset((one.backend[0], one.backend[1] // 1_000_000) for one in live if one.connection == connection)

    def _opened(self, connection: str, role: str, backend: Backend, port: int) -> None:
        """Say which backends are ours: nobody else opened them, and no gateway."""
        event = WatchdogConnected(_now().wall_us, self._settings.watchdog, connection, role, backend.pid, backend.start_us, port)
        with contextlib.suppress(LogUnavailable):
            self._recorder.record("observations", self._settings.watchdog, event)

    # -- blindness -------------------------------------------------------------------------------------------------------------

    def _lost(self, what: str, reason: str) -> None:
        blindness = self._blind.get(what)
        if blindness is None:
            _log.warning("%s does not answer: %s", what, reason)
            self._blind[what] = _Blindness(_now().wall_us, time.monotonic(), reason)
        else:
            blindness.reason = reason

    def _found(self, what: str) -> None:
        blindness = self._blind.pop(what, None)
        if blindness is not None and blindness.told:
            _log.warning("sees %s again, after %.1f s", what, time.monotonic() - blindness.since)

    def _tell(self) -> None:
        for what, blindness in self._blindness():
            if not blindness.told:
                blindness.told = True
                _log.error("blind for %g s: %s does not answer: %s", self._settings.blind_seconds, what, blindness.reason)

    def _blindness(self) -> list[tuple[str, _Blindness]]:
        until = time.monotonic() - self._settings.blind_seconds
        return [(what, blindness) for what, blindness in self._blind.items() if blindness.since <= until]

    def status(self) -> Mapping[str, object]:
        recording = self._recorder.state()
        live = self._live
        return {
            "watchdog": self._settings.watchdog,
            "boot": self._boot,
            "pid": os.getpid(),
            "started_us": self._boot,
            "caught_up": self.caught_up,
            "blind": [
                {"what": what, "since_us": blindness.since_us, "reason": blindness.reason} for what, blindness in self._blindness()
            ],
            "log": {
                "available": recording.available,
                "since_us": recording.since_us,
                "reason": recording.reason,
                "pending_bytes": recording.pending_bytes,
            },
            "connections": {name: {"ready": f"connection {name}" not in self._blind} for name in self._sights},
            "unknown_connections": sorted(live.connections() - self._sights.keys()),
            "sessions": len(live.sessions),
            "untracked": live.untracked,
            "must_end": len(live.must_end),
            "ending": [
                {
                    "session": work.session.id,
                    "agent": work.session.agent,
                    "connection": work.session.connection,
                    "cause": work.cause,
                    "decided_us": work.decided_us,
                    "proven": work.gone_us > 0,
                }
                for work in self._work.values()
            ],
            "missed": [
                {"connection": connection, "gateway": gateway, "boot": boot, "since_us": moment.wall_us}
                for connection, gateway, boot, moment in live.missed()
            ],
            "strangers": sorted(live.strangers),
            "strays": {"pending": self._strays.pending, "reaped": self._strays.reaped, "hindrance": self._strays.hindrance},
            "counters": {"reaped": self.reaped, "unproven": self.unproven},
            "kills": self.kills.facts(),
            "appends": self._recorder.appends.facts(),
        }


def _now() -> Moment:
    return Moment(now_us(), mono_us())
