"""Random histories of agents, gateways and operators, as the entries that their processes would append; and what must come of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from analytics import activity, enforcement
from analytics.activity import Activity, ActivitySettings
from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    AllReinstated,
    AllRevoked,
    Event,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantNarrowed,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    IdentityEvent,
    Scope,
    SessionClosed,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    SessionRevoked,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
    SubjectReinstated,
    SubjectRevoked,
)
from ingest.frames import TOPIC_OF, Framer, decode
from ingest.log import Entry
from tests.analytics.scenario import START_US, stamp

FAR_US = START_US + 10**15
SETTINGS = ActivitySettings()


@dataclass
class _Process:
    name: str
    boot: int
    framer: Framer = field(init=False)

    def __post_init__(self) -> None:
        self.framer = Framer(self.name, self.boot, events_max=100, bytes_max=64 * 1024)


@dataclass
class _Session:
    under: Stamp
    gateway: _Process
    executions: int = 0
    statements: int = 0


@dataclass(frozen=True)
class Wanted:
    live: frozenset[str]
    due: frozenset[str]  # orders that must be made: their sessions live on
    possible: frozenset[str]  # and those that may be: their sessions ended by themselves, sooner or later than they were weighed
    activities: dict[str, Activity]


class History:
    """One world, whose names all begin with `name`. `writes` are the appends of its processes, in the order in which they are made."""

    def __init__(self, seed: int, name: str, *, steps: int = 60, at_us: int = START_US, everybody: bool = False) -> None:
        self.name = name
        self.writes: list[list[Entry]] = []
        self._chance = random.Random(seed)
        self._now_us = at_us
        self._identity_at_us = 0
        self._everybody = everybody
        self._agents = [f"{name}-agent-{n}" for n in range(6)]
        self._issuer = f"https://{name}.example"
        self._api = _Process(f"{name}-api", 1)
        self._gateways = [_Process(f"{name}-gw-{n}", 1) for n in range(2)]
        self._boots = 1
        self._open: list[_Session] = []
        self._sessions = 0
        for gateway in self._gateways:
            self._tell_start(gateway)
        self._grants()
        for _ in range(steps):
            self._step()
            if self.writes and self._chance.random() < 0.1:
                again = self._chance.randrange(1, 4)
                self.writes += self.writes[-again:]  # a writer that was not answered appends again, what came since included
        for _ in range(4):
            self._opened()
        agent = self._open[-1].under.agent
        self._identity(agent, AgentRevoked(self._at(), agent, "x", "op"))  # so that something is due at the end
        for gateway in self._gateways:
            # What the end is held against: each gateway says its boot every second, and each of them goes on.
            self._report(gateway)

    def _at(self) -> int:
        self._now_us += self._chance.randrange(1, 9_000_000)
        return self._now_us

    def _append(self, process: _Process, *events: tuple[str, Event, Stamp | None]) -> None:
        for key, event, under in events:
            process.framer.add(TOPIC_OF[type(event)], key, event, under)
        self.writes.append(process.framer.cut())

    def _identity(self, key: str, event: IdentityEvent) -> None:
        self._identity_at_us = event.at_us
        self._append(self._api, (key, event, None))

    def _grants(self) -> None:
        for agent in self._agents:
            for number in range(3):
                # A grant that has run out ran out before anything else could end a session: else the cause would be a matter of when
                # a clock is looked at.
                ends = self._chance.choice((0, 0, FAR_US))
                self._identity(agent, GrantApproved(self._at(), f"g{number}-{agent}", agent, "bob", ends))

    def _step(self) -> None:
        chance = self._chance.random()
        if chance < 0.3 or not self._open:
            self._opened()
        elif chance < 0.38:
            self._closed(self._chance.choice(self._open))
        elif chance < 0.4:
            self._restarted(self._chance.randrange(2))
        elif chance < 0.66:
            self._revoked()
        else:
            self._worked(self._chance.choice(self._open))

    def _opened(self) -> None:
        agent = self._chance.choice(self._agents)
        gateway = self._chance.choice(self._gateways)
        self._sessions += 1
        expires = self._chance.random() < 0.1
        at_us = self._at()
        knows = self._identity_at_us if expires or self._chance.random() < 0.6 else max(0, self._identity_at_us - 8_000_000)
        grants = tuple(f"g{n}-{agent}" for n in range(3) if self._chance.random() < 0.4)
        under = stamp(
            f"{self.name}-s{self._sessions}",
            agent,
            issuer=self._issuer,
            subject=f"sub-{agent}",
            on_behalf_of=self._chance.choice(("", f"{self.name}-alice", f"{self.name}-bob")),
            grants=grants,
        )
        event = SessionOpened(
            at_us,
            under,
            "token",
            "c",
            at_us if expires else self._chance.choice((0, FAR_US)),
            "",
            "",
            "3.0",
            "group",
            tuple(group for group in (f"{self.name}-ops", f"{self.name}-dev") if self._chance.random() < 0.3),
            knows,
        )
        self._open.append(_Session(under, gateway))
        self._append(gateway, (agent, event, None))

    def _closed(self, session: _Session) -> None:
        self._open.remove(session)
        name, agent = session.under.session, session.under.agent
        kind = self._chance.random()
        if kind < 0.6:
            closed = SessionClosed(self._at(), name, agent, "client", "", 1, 1, 1, 1)
            self._append(session.gateway, (agent, closed, None))
        elif kind < 0.8:
            t = self._at()
            killed = SessionKilled(t, name, agent, "ordered", t, t, t, t, 1, "x")
            closed = SessionClosed(t, name, agent, "killed", "", 1, 1, 1, 1)
            self._append(session.gateway, (agent, killed, None), (agent, closed, None))
        else:
            t = self._at()
            reaped = SessionReaped(t, name, agent, session.gateway.name, session.gateway.boot, "gateway gone", t, t, t, 1, "x", "w")
            self._append(self._watchdog(), (agent, reaped, None))

    def _watchdog(self) -> _Process:
        self._boots += 1
        return _Process(f"{self.name}-watchdog", self._boots)

    def _restarted(self, number: int) -> None:
        gateway = self._gateways[number]
        if self._chance.random() < 0.5:
            self._append(gateway, (gateway.name, GatewayStopped(self._at(), gateway.name, gateway.boot), None))
        self._boots += 1
        self._gateways[number] = _Process(gateway.name, self._boots)
        self._open = [session for session in self._open if session.gateway is not gateway]
        self._tell_start(self._gateways[number])

    def _tell_start(self, gateway: _Process) -> None:
        self._append(gateway, (gateway.name, GatewayStarted(self._at(), gateway.name, gateway.boot, "1"), None))

    def _report(self, gateway: _Process) -> None:
        t = self._at()
        report = GatewayReported(t, gateway.name, gateway.boot, 1, True, t, "", 0, 0, 0, t, 0, 0, 0, 0, 0, 0)
        self._append(_Process(f"{gateway.name}-relay", gateway.boot), (gateway.name, report, None))

    def _revoked(self) -> None:
        agent = self._chance.choice(self._agents)
        grant = f"g{self._chance.randrange(3)}-{agent}"
        session = self._chance.choice(self._open).under
        at_us = self._at()
        who = self._chance.choice((f"sub-{agent}", f"{self.name}-alice", f"{self.name}-bob"))
        group = self._chance.choice((f"{self.name}-ops", f"{self.name}-dev"))
        kinds: list[tuple[str, IdentityEvent]] = [
            (agent, AgentRevoked(at_us, agent, "x", "op")),
            (agent, AgentReinstated(at_us, agent, "x", "op")),
            (agent, GrantRevoked(at_us, grant, agent, "op", "x")),
            (agent, GrantNarrowed(at_us, grant, agent, Scope("shop", ()), "op", "x")),
            ("*", SubjectRevoked(at_us, self._issuer, who, "x", "op")),
            ("*", SubjectReinstated(at_us, self._issuer, who, "x", "op")),
            ("*", GroupRevoked(at_us, self._issuer, group, "x", "op")),
            ("*", GroupReinstated(at_us, self._issuer, group, "x", "op")),
            (session.agent, SessionRevoked(at_us, session.session, session.agent, "x", "op")),
        ]
        if self._chance.random() < 0.1:
            kinds = [(agent, AgentRetired(at_us, agent, "x", "op"))]
        elif self._everybody and self._chance.random() < 0.2:
            kinds = [("*", AllRevoked(at_us, "x", "op")), ("*", AllReinstated(at_us, "x", "op"))]
        self._identity(*self._chance.choice(kinds))

    def _worked(self, session: _Session) -> None:
        events: list[tuple[str, Event, Stamp | None]] = []
        agent, under = session.under.agent, session.under
        for _ in range(self._chance.randrange(1, 25)):
            if self._chance.random() < 0.2 or not session.statements:
                session.statements += 1
                relations = tuple(f"public.t{self._chance.randrange(9)}" for _ in range(self._chance.randrange(3)))
                text = StatementDefined(session.statements, "select", "full", 6, "0" * 16, ("SELECT",), relations, ())
                events.append((agent, text, under))
            session.executions += 1
            n, at_us = session.executions, self._at()
            if self._chance.random() < 0.15:
                events.append((agent, StatementDenied(at_us, n, session.statements, "42501", "r", "no"), under))
                continue
            events.append((agent, StatementStarted(at_us, n, session.statements, "r"), under))
            if self._chance.random() < 0.9:
                bad = self._chance.random() < 0.2
                ended = StatementFinished(n, "error" if bad else "ok", "42P01" if bad else "", "", n, 3, 50, 9)
                events.append((agent, ended, under))
        self._append(session.gateway, *events)


def wanted(histories: Sequence[History], now_us: int) -> Wanted:
    """By the plainest fold there is: every event of every topic in the order in which it was appended, in one state."""
    writes = [entry for history in histories for write in history.writes for entry in write]
    live, due = _ended(writes, now_us)
    _, possible = _ended([entry for entry in writes if entry.topic in ("identity", "sessions")], now_us, closing=False)
    activities: dict[str, Activity] = {}
    for entry in writes:
        if entry.topic == "statements":
            agent = entry.key.decode()
            activities[agent], _ = activity.step(activities.get(agent, Activity()), decode(entry.value), agent, SETTINGS)
    return Wanted(live, frozenset(due), frozenset(possible) | frozenset(due), activities)


def _ended(entries: Iterable[Entry], now_us: int, *, closing: bool = True) -> tuple[frozenset[str], set[str]]:
    """The live sessions, and the names of the orders that end some of them. Without `closing` no session ends by itself."""
    state = enforcement.State()
    orders = {}
    seen: set[tuple[str, int, str, int]] = set()
    for entry in entries:
        frame = decode(entry.value)
        name = (frame.writer, frame.boot, entry.topic, frame.seq)
        if name in seen:
            continue
        seen.add(name)
        writer, boot = (frame.writer, frame.boot) if closing else ("", 0)
        for _, event in frame.events:
            if closing or isinstance(event, SessionOpened) or entry.topic == "identity":
                state, more = enforcement.step(state, event, writer, boot, now_us)
                orders |= {order.order: order.session for order in more}
    state, more = enforcement.tick(state, now_us)
    orders |= {order.order: order.session for order in more}
    live = frozenset(state.sessions)
    return live, {name for name, session in orders.items() if not closing or session in live}
