"""Events of identities, sessions and orders in; out comes which sessions are live, which of them must end, and since when.

A watchdog's view: it ends what a gateway should have ended, so it concludes from recorded facts alone. That something is not known
here is no reason to end a session: it may merely not have been read yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gateway.stamp import CONTROL_PREFIX, bears, control_name
from identity.registry import Registry, Standing
from identity.restraints import RestraintEvent
from ingest.events import (
    Event,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    IdentityEvent,
    SessionClosed,
    SessionEndOrdered,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    SessionRevoked,
    SourceDeclared,
    SourceWithdrawn,
)

GATEWAY_GONE: Final = "gateway gone"
_UNKNOWN: Final = frozenset({"agent unknown", "grant unknown"})
_CONTROL_BEFORE: Final = CONTROL_PREFIX.rstrip("/")  # of a gateway from before boots stood in the name: any boot may be its

BackendName = tuple[int, int]
"""pid and start in microseconds."""


@dataclass(frozen=True, slots=True)
class Moment:
    wall_us: int  # for what is recorded, and for what runs out
    mono_us: int  # for patience: no step of the wall clock makes it shorter


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session whose end is not recorded."""

    gateway: str  # the writer that recorded it
    boot: int
    standing: Standing
    connection: str
    backend: BackendName
    method: str
    expires_at_us: int  # as recorded; 0 = never

    @property
    def id(self) -> str:
        return self.standing.session

    @property
    def agent(self) -> str:
        return self.standing.agent


@dataclass(frozen=True, slots=True)
class MustEnd:
    cause: str
    requested_us: int  # when the fact that causes it was recorded, or its time ran out
    reason: str
    since_us: int  # monotonic: since when it has held, as far as it is known here


@dataclass(frozen=True, slots=True)
class Orphan:
    """A session whose gateway is gone."""

    session: LiveSession
    there: bool  # its backend is, and is proven to be its
    missed: Moment  # when the gateway was missed first


class LiveSessions:
    """Owned by one task. What it hands out is frozen; `sessions` and `must_end` are views that follow the fold."""

    def __init__(self, registry: Registry, sessions_max: int, remembered_max: int) -> None:
        self._registry = registry
        self._sessions_max = sessions_max
        self._remembered_max = remembered_max
        self._sessions: dict[str, LiveSession] = {}
        self._must_end: dict[str, MustEnd] = {}
        self._of_agent: dict[str, dict[str, None]] = {}
        self._of_connection: dict[str, dict[str, None]] = {}
        self._told: dict[str, MustEnd] = {}  # an order, or a kill without proof: it holds until the session is over
        self._unproven: set[str] = set()  # their gateway gave the proof up: that it calls them closed proves nothing
        self._orders: dict[str, SessionEndOrdered] = {}  # for sessions that were not read yet, the oldest first
        self._reaped: dict[str, None] = {}  # likewise
        self._boots: dict[str, int] = {}  # gateway -> the lowest boot that can be alive
        self._heard: dict[tuple[str, int], int] = {}  # gateway and boot -> when it recorded something, monotonic
        self._missed: dict[tuple[str, str, int], Moment] = {}  # connection, gateway and boot
        self._expired_until_us = 0
        self.untracked = 0  # sessions beyond `sessions_max`: nobody looks after them
        self.strangers: frozenset[str] = frozenset()  # orphans whose backend bears another name: left alone
        self.sessions: Mapping[str, LiveSession] = MappingProxyType(self._sessions)
        self.must_end: Mapping[str, MustEnd] = MappingProxyType(self._must_end)

    # -- the fold --------------------------------------------------------------------------------------------------------------

    def identity(self, event: IdentityEvent, now: Moment) -> None:
        self._registry.apply(event)
        if isinstance(event, SourceDeclared | SourceWithdrawn | RestraintEvent):
            return  # neither connections round the gateway nor what holds an agent back ends a session
        if isinstance(event, SessionRevoked):
            concerned: Iterable[str] = (event.session,)
        else:
            agent = getattr(event, "agent", "")
            concerned = self._of_agent.get(agent, ()) if agent else self._sessions
        for session in tuple(concerned):
            self._review(session, now)

    def apply(self, event: Event, writer: str, boot: int, now: Moment) -> None:
        """Take in one event of any other topic, of the frame that `writer` recorded in `boot`. Twice is as once."""
        match event:
            case SessionOpened():
                self._seen(writer, boot, now)
                self._opened(event, writer, boot, now)
            case SessionClosed():
                self._seen(writer, boot, now)
                if event.session not in self._unproven:
                    self.forget(event.session)
            case SessionKilled():
                self._seen(writer, boot, now)
                if event.backend_gone_us:
                    self.forget(event.session)
                elif event.session in self._sessions:
                    self._unproven.add(event.session)
                    self._tell(event.session, MustEnd(event.cause, event.requested_us, event.reason, now.mono_us), now)
            case GatewayStarted():
                self._seen(writer, event.boot, now)
            case GatewayStopped():
                self._boots[writer] = max(self._boots.get(writer, 0), event.boot + 1)
            case GatewayReported():
                self._seen(event.gateway, event.boot, now)
            case SessionEndOrdered():
                if event.session in self._sessions:
                    self._tell(event.session, MustEnd(event.cause, event.cause_at_us, event.reason, now.mono_us), now)
                else:
                    self._orders[event.session] = event
                    if len(self._orders) > self._remembered_max:
                        del self._orders[next(iter(self._orders))]
            case SessionReaped():
                if event.backend_gone_us:
                    self.forget(event.session)
                    self._reaped[event.session] = None
                    if len(self._reaped) > self._remembered_max:
                        del self._reaped[next(iter(self._reaped))]
            case _:
                pass

    def tick(self, now: Moment) -> None:
        """What ran out meanwhile."""
        for grant in self._registry.expired_between(self._expired_until_us, now.wall_us):
            for session in tuple(self._of_agent.get(grant.agent, ())):
                self._review(session, now)
        self._expired_until_us = now.wall_us
        over = [s.id for s in self._sessions.values() if 0 < s.expires_at_us <= now.wall_us and s.id not in self._must_end]
        for session in over:
            self._review(session, now)

    def forget(self, session: str) -> None:
        """It is over."""
        live = self._sessions.pop(session, None)
        if live is None:
            return
        self._must_end.pop(session, None)
        self._told.pop(session, None)
        self._unproven.discard(session)
        for index, name in ((self._of_agent, live.agent), (self._of_connection, live.connection)):
            del index[name][session]
            if not index[name]:
                del index[name]

    def _opened(self, event: SessionOpened, writer: str, boot: int, now: Moment) -> None:
        stamp = event.stamp
        if stamp.session in self._sessions or stamp.session in self._reaped:
            return
        if len(self._sessions) >= self._sessions_max:
            self.untracked += 1
            return
        self._sessions[stamp.session] = LiveSession(
            gateway=writer,
            boot=boot,
            standing=Standing.of(event),
            connection=stamp.connection,
            backend=(stamp.backend_pid, stamp.backend_start_us),
            method=event.method,
            expires_at_us=event.expires_at_us,
        )
        self._of_agent.setdefault(stamp.agent, {})[stamp.session] = None
        self._of_connection.setdefault(stamp.connection, {})[stamp.session] = None
        if (order := self._orders.pop(stamp.session, None)) is not None:
            self._told[stamp.session] = MustEnd(order.cause, order.cause_at_us, order.reason, now.mono_us)
        self._review(stamp.session, now)

    def _tell(self, session: str, end: MustEnd, now: Moment) -> None:
        self._told.setdefault(session, end)
        self._review(session, now)

    def _review(self, session: str, now: Moment) -> None:
        live = self._sessions.get(session)
        if live is None:
            return
        end = self._told.get(session) or self._ending(live, now)
        if end is None:
            self._must_end.pop(session, None)
        else:
            self._must_end.setdefault(session, end)  # the first cause counts, and since when it has held

    def _ending(self, live: LiveSession, now: Moment) -> MustEnd | None:
        ending = self._registry.ending(live.standing, now.wall_us)
        if ending is not None and ending.cause not in _UNKNOWN:
            return MustEnd(ending.cause, ending.at_us, ending.reason, now.mono_us)
        if not 0 < live.expires_at_us <= now.wall_us:
            return None
        if live.method == "token":
            return MustEnd("token expired", live.expires_at_us, "the token that opened this session has expired", now.mono_us)
        return MustEnd("grant expired", live.expires_at_us, "a grant of this session has run out", now.mono_us)

    def _seen(self, writer: str, boot: int, now: Moment) -> None:
        """A gateway runs once: what it records in one boot shows that its earlier boots are over."""
        if boot > self._boots.get(writer, 0):
            self._boots[writer] = boot
            self._heard = {(gateway, old): at for (gateway, old), at in self._heard.items() if gateway != writer}
        self._heard[writer, boot] = now.mono_us

    # -- questions -------------------------------------------------------------------------------------------------------------

    def due(self, patience_us: int, now: Moment) -> list[LiveSession]:
        """Those that have had to end for so long, and whose gateway has recorded no end."""
        return [self._sessions[session] for session, end in self._must_end.items() if now.mono_us - end.since_us >= patience_us]

    def on(self, connection: str) -> int:
        """How many sessions are live there."""
        return len(self._of_connection.get(connection, ()))

    def connections(self) -> frozenset[str]:
        return frozenset(self._of_connection)

    def missed(self) -> Iterator[tuple[str, str, int, Moment]]:
        """Connection, gateway, boot, and since when none of its control connections is there."""
        for (connection, gateway, boot), moment in self._missed.items():
            yield connection, gateway, boot, moment

    # -- gateways that are gone ------------------------------------------------------------------------------------------------

    def looked(self, connection: str, ours: Mapping[BackendName, str], orphan_us: int, now: Moment) -> list[Orphan]:
        """`ours`: every backend of ours on this connection's server, by application name. Return what nobody looks after any more.

        A gateway is gone when none of its control connections was there in any look of so long, and it has recorded nothing since.
        A session that its gateway's next boot left behind, and whose backend is gone, is over: it is forgotten.
        """
        names = frozenset(ours.values())
        missed: dict[tuple[str, str, int], Moment] = {}
        orphans: list[Orphan] = []
        strangers: set[str] = set()
        for session in tuple(self._of_connection.get(connection, ())):
            live = self._sessions[session]
            name = ours.get(live.backend)
            behind = live.boot < self._boots.get(live.gateway, 0)
            if name is None and behind:
                self.forget(session)
                continue
            if control_name(live.gateway, live.boot) in names or _CONTROL_BEFORE in names:
                continue
            key = (connection, live.gateway, live.boot)
            since = missed.get(key) or self._missed.get(key) or now
            if self._heard.get((live.gateway, live.boot), 0) > since.mono_us:
                since = now
            missed[key] = since
            if now.mono_us - since.mono_us < orphan_us:
                continue
            if name is None or bears(name, session):
                orphans.append(Orphan(live, name is not None, since))
            else:
                strangers.add(session)
        self._missed = {key: moment for key, moment in self._missed.items() if key[0] != connection} | missed
        self.strangers = frozenset(s for s in self.strangers if s in self._sessions and self._sessions[s].connection != connection)
        self.strangers |= strangers
        return orphans

    def blind(self, connection: str) -> None:
        """Nobody looked: that a gateway was not seen says nothing."""
        self._missed = {key: moment for key, moment in self._missed.items() if key[0] != connection}
