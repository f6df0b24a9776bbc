"""Events of identities and sessions in; out comes which live sessions must end, and why.

Topics are read side by side, so an event of one topic may be seen before an older one of another. The conclusions do not depend
on that: what ended stays known here, with its time, and a session is held against it when it opens, however late that is seen. What
a session ends for is the first thing in the record that ends it; what its gateway knew already when it let the session in
(`SessionOpened.identity_at_us`), taken back meanwhile or not, does not. So no two clocks are compared.

The registry (`identity.registry`) answers another question, whether a session may begin. It says no to what it does not know;
here that would end a session whose grant merely has not been read yet, so only recorded ends count. A grant that is narrowed ends
no session: the gateway goes on within what is left, and ends what runs outside.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from ingest.events import (
    AgentRetired,
    AgentRevoked,
    AllRevoked,
    BackendEndOrdered,
    BackendOpened,
    BackendReaped,
    Event,
    FindingAcknowledged,
    FindingConfirmed,
    FindingRaised,
    FindingRecurred,
    FindingsMuted,
    FindingsUnmuted,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantRevoked,
    GroupRevoked,
    IdentityEvent,
    LogRecovered,
    ObservationGap,
    OutcomeResolved,
    ProcessReported,
    RecordingStopped,
    RecordRead,
    SessionClosed,
    SessionDenied,
    SessionEndOrdered,
    SessionJudged,
    SessionKilled,
    SessionObserved,
    SessionOpened,
    SessionReaped,
    SessionRevoked,
    SessionUnobserved,
    StatementCancelled,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementParameters,
    StatementStarted,
    SubjectRevoked,
    WatchdogConnected,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)

Cause: TypeAlias = Literal[
    "agent revoked",
    "agent retired",
    "all revoked",
    "subject revoked",
    "group revoked",
    "session revoked",
    "grant revoked",
    "grant expired",
    "token expired",
]
Key: TypeAlias = tuple[str, str, str]
"""What a revocation is of: its kind, and up to two names."""

FOR_EVER_US: Final = 2**63 - 1
REPEATS_MAX: Final = 16  # revocations of one name that are remembered; of a session that outlives more, a later one is told
SESSIONS_MAX: Final = 100_000  # revoked sessions that are remembered, as in the registry
HEAP_SPARE: Final = 1024  # entries of sessions that are over, before the heap is made anew
CLOSED_MAX: Final = 10_000  # about 1 MB; readers pass over what comes twice, so this is for whoever does not


@dataclass(frozen=True, slots=True)
class LiveSession:
    session: str
    agent: str
    issuer: str
    subject: str
    on_behalf_of: str
    groups: frozenset[str]
    grants: tuple[str, ...]
    writer: str  # the gateway that recorded it
    boot: int
    method: str
    identity_at_us: int  # the newest identity event that its gateway knew when it let it in
    expires_at_us: int  # as recorded; 0 = never


@dataclass(frozen=True, slots=True)
class End:
    """A recorded end, of those sessions that were let in without knowing of it."""

    cause: Cause
    about: str
    at_us: int
    reason: str


Effects: TypeAlias = tuple[SessionEndOrdered, ...]


class State:
    """Owned by one caller: `step` and `tick` change it and hand it back, so that one event of 10,000 live sessions copies nothing.

    Where the sessions are spread over several (one a partition of `sessions`), each of them sees all of `identity`, and the starts
    and stops of all gateways.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, LiveSession] = {}
        self._of_agent: dict[str, dict[str, LiveSession]] = {}
        self._ordered: set[str] = set()  # whose end was concluded; once is enough
        self._closed: dict[str, None] = {}  # the newest that are over: an opening that is seen again opens nothing
        self._boots: dict[str, int] = {}  # writer -> the lowest boot whose sessions can be live
        self._due: list[tuple[int, str]] = []  # a heap: when a session may be due, in whole or in vain
        self._ends: dict[Key, tuple[End, ...]] = {}  # first to last
        self._revoked_sessions: dict[str, End] = {}
        self._expiries: dict[str, tuple[int, int]] = {}  # grant -> its end, and its approval; those without an end are not here
        self._identity_at_us = 0
        self.sessions: Mapping[str, LiveSession] = MappingProxyType(self._sessions)

    def of_identity(self) -> State:
        """A state that knows the same of identities and gateways, and no session: to begin another partition with."""
        other = State()
        other._boots = dict(self._boots)
        other._ends = dict(self._ends)
        other._revoked_sessions = dict(self._revoked_sessions)
        other._expiries = dict(self._expiries)
        other._identity_at_us = self._identity_at_us
        return other

    @property
    def due_us(self) -> int:
        """Nothing is due before; FOR_EVER_US = nothing ever."""
        return self._due[0][0] if self._due else FOR_EVER_US

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        names = ("_sessions", "_ordered", "_boots", "_ends", "_revoked_sessions", "_expiries", "_identity_at_us")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    __hash__ = None  # type: ignore[assignment]  # it changes

    # -- sessions --------------------------------------------------------------------------------------------------------------

    def open(self, event: SessionOpened, writer: str, boot: int) -> Iterator[tuple[LiveSession, End]]:
        stamp = event.stamp
        if boot < self._boots.get(writer, 0) or stamp.session in self._sessions or stamp.session in self._closed:
            return
        live = LiveSession(
            session=stamp.session,
            agent=stamp.agent,
            issuer=stamp.issuer,
            subject=stamp.subject,
            on_behalf_of=stamp.on_behalf_of,
            groups=frozenset(event.groups),
            grants=stamp.grants,
            writer=writer,
            boot=boot,
            method=event.method,
            identity_at_us=event.identity_at_us,
            expires_at_us=event.expires_at_us,
        )
        self._sessions[live.session] = live
        self._of_agent.setdefault(live.agent, {})[live.session] = live
        self._schedule(live)
        ends = [end for key in _rests_on(live) for end in self._ends.get(key, ()) if _concerns(end, live)]
        if (of_session := self._revoked_sessions.get(live.session)) is not None:
            ends.append(of_session)
        if ends:
            yield live, min(ends, key=lambda end: (end.at_us, end.cause, end.about))

    def close(self, session: str) -> None:
        live = self._sessions.pop(session, None)
        if live is None:
            return
        self._ordered.discard(session)
        self._closed[session] = None
        if len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        of_agent = self._of_agent[live.agent]
        del of_agent[session]
        if not of_agent:
            del self._of_agent[live.agent]
        if len(self._due) > 2 * len(self._sessions) + HEAP_SPARE:
            self._due.clear()
            for other in self._sessions.values():
                self._schedule(other)

    def began(self, writer: str, boot: int) -> None:
        """A writer runs once: what it records in one boot shows that its earlier boots are over."""
        if boot <= self._boots.get(writer, -1):
            return
        self._boots[writer] = boot
        for session in [s.session for s in self._sessions.values() if s.writer == writer and s.boot < boot]:
            self.close(session)

    # -- identities ------------------------------------------------------------------------------------------------------------

    def told(self, event: IdentityEvent) -> Iterator[tuple[LiveSession, End]]:
        """Which sessions the event ends, each with the first thing that did."""
        self._identity_at_us = max(self._identity_at_us, event.at_us)
        match event:
            case AgentRevoked() | AgentRetired():
                cause: Cause = "agent revoked" if isinstance(event, AgentRevoked) else "agent retired"
                end = End(cause, event.agent, event.at_us, event.reason)
                self._remember(("agent", event.agent, ""), end)
                yield from ((live, end) for live in self._of_agent.get(event.agent, {}).values() if _concerns(end, live))
            case GrantRevoked():
                end = End("grant revoked", event.grant, event.at_us, event.reason)
                self._remember(("grant", event.grant, ""), end)
                yield from ((live, end) for live in self._of_agent.get(event.agent, {}).values() if event.grant in live.grants)
            case GrantApproved():
                if event.expires_at_us and event.grant not in self._expiries:
                    self._expiries[event.grant] = (event.expires_at_us, event.at_us)
                    for live in self._of_agent.get(event.agent, {}).values():
                        if event.grant in live.grants:
                            self._schedule(live)
            case SubjectRevoked():
                end = End("subject revoked", f"{event.issuer}\0{event.subject}", event.at_us, event.reason)
                self._remember(("subject", event.issuer, event.subject), end)
                yield from self._of(("subject", event.issuer, event.subject), end)
            case GroupRevoked():
                end = End("group revoked", f"{event.issuer}\0{event.group}", event.at_us, event.reason)
                self._remember(("group", event.issuer, event.group), end)
                yield from self._of(("group", event.issuer, event.group), end)
            case AllRevoked():
                end = End("all revoked", "", event.at_us, event.reason)
                self._remember(_ALL, end)
                yield from self._of(_ALL, end)
            case SessionRevoked():
                end = self._revoked_sessions.setdefault(event.session, End("session revoked", "", event.at_us, event.reason))
                if len(self._revoked_sessions) > SESSIONS_MAX:
                    del self._revoked_sessions[next(iter(self._revoked_sessions))]
                if (revoked := self._sessions.get(event.session)) is not None:
                    yield revoked, end
            case _:
                pass  # a reinstatement opens the door to new sessions, and says nothing of those that are open

    def _of(self, key: Key, end: End) -> Iterator[tuple[LiveSession, End]]:
        return ((live, end) for live in self._sessions.values() if _concerns(end, live) and _rests(live, key))

    def _remember(self, key: Key, end: End) -> None:
        ends = self._ends.get(key, ())
        if not ends or ends[-1].at_us < end.at_us:
            self._ends[key] = (*ends, end)[-REPEATS_MAX:]

    # -- the end of their time -------------------------------------------------------------------------------------------------

    def expired(self, now_us: int) -> Iterator[tuple[LiveSession, End]]:
        early: list[tuple[int, str]] = []
        while self._due and self._due[0][0] <= now_us:
            due = heapq.heappop(self._due)
            live = self._sessions.get(due[1])
            if live is None or live.session in self._ordered:
                continue
            if live.identity_at_us > self._identity_at_us:
                early.append(due)  # which of its grants ran out, if any, will be known when those are read
            elif (end := self._expiry(live)) is not None:
                yield live, end
        for due in early:
            heapq.heappush(self._due, due)

    def first(self, live: LiveSession, end: End, now_us: int) -> End:
        """`end`, unless the session's time was over before that, by what was approved before that.

        What was approved later may or may not have been read here.
        """
        expiry = self._expiry(live, end.at_us)
        return expiry if expiry is not None and expiry.at_us < min(end.at_us, now_us + 1) else end

    def order(self, live: LiveSession) -> bool:
        """False when that was done before."""
        if live.session in self._ordered:
            return False
        self._ordered.add(live.session)
        return True

    def _schedule(self, live: LiveSession) -> None:
        due_us = min([live.expires_at_us or FOR_EVER_US, *self._grant_ends(live, FOR_EVER_US).values()])
        if due_us < FOR_EVER_US and live.session not in self._ordered:
            heapq.heappush(self._due, (due_us, live.session))

    def _grant_ends(self, live: LiveSession, before_us: int) -> dict[str, int]:
        """Of those grants that were approved before."""
        known = ((grant, self._expiries[grant]) for grant in live.grants if grant in self._expiries)
        return {grant: end_us for grant, (end_us, approved_us) in known if approved_us < before_us}

    def _expiry(self, live: LiveSession, before_us: int = FOR_EVER_US) -> End | None:
        of_grants = self._grant_ends(live, before_us)
        due_us = min([live.expires_at_us or FOR_EVER_US, *of_grants.values()])
        if due_us == FOR_EVER_US:
            return None
        over = sorted(grant for grant, at_us in of_grants.items() if at_us == due_us)
        if over:
            return End("grant expired", over[0], due_us, f"grant {over[0]} has run out")
        if live.method == "token":
            return End("token expired", "", due_us, "the token that opened this session has expired")
        return End("grant expired", "", due_us, "a grant of this session has run out")


_ALL: Final[Key] = ("all", "", "")


def step(state: State, event: Event, writer: str, boot: int, now_us: int) -> tuple[State, Effects]:
    """Take one event in, of the frame that `writer` recorded in `boot`. An event seen twice orders nothing twice."""
    state.began(writer, boot)
    match event:
        case SessionOpened():
            return state, _orders(state, state.open(event, writer, boot), now_us)
        case SessionClosed() | SessionKilled() | SessionReaped():
            state.close(event.session)
        case GatewayStarted():
            state.began(writer, event.boot)
        case GatewayStopped():
            state.began(writer, event.boot + 1)
        case (
            SessionDenied()
            | StatementCancelled()
            | RecordingStopped()
            | LogRecovered()
            | StatementDefined()
            | StatementStarted()
            | StatementDenied()
            | StatementFinished()
            | StatementParameters()
            | OutcomeResolved()
            | SessionEndOrdered()
            | BackendEndOrdered()
            | FindingRaised()
            | FindingRecurred()
            | FindingAcknowledged()
            | FindingConfirmed()
            | FindingsMuted()
            | FindingsUnmuted()
            | GatewayReported()
            | BackendReaped()
            | WitnessStarted()
            | WitnessStopped()
            | WitnessReported()
            | WitnessBlinded()
            | WitnessRestored()
            | SessionObserved()
            | SessionUnobserved()
            | StatementObserved()
            | ObservationGap()
            | WitnessConnected()
            | RecordRead()
            | BackendOpened()
            | WatchdogConnected()
            | ProcessReported()
            | SessionJudged()
        ):
            pass
        case _:
            return state, _orders(state, state.told(event), now_us)
    return state, ()


def tick(state: State, now_us: int) -> tuple[State, Effects]:
    """Order the end of the sessions whose time is over."""
    if now_us < state.due_us:
        return state, ()
    return state, _orders(state, state.expired(now_us), now_us)


def order_id(session: str, cause: Cause, about: str) -> str:
    """The same session and the same cause make the same order, in whatever process and however often it is concluded."""
    return hashlib.sha256("\0".join(("SessionEndOrdered", session, cause, about)).encode()).hexdigest()[:32]


def _orders(state: State, ended: Iterable[tuple[LiveSession, End]], now_us: int) -> Effects:
    orders: list[SessionEndOrdered] = []
    for live, end in ended:
        if state.order(live):
            first = state.first(live, end, now_us)
            name = order_id(live.session, first.cause, first.about)
            orders.append(SessionEndOrdered(now_us, name, live.session, live.agent, first.cause, first.at_us, first.reason))
    return tuple(orders)


def _rests_on(live: LiveSession) -> Iterator[Key]:
    yield _ALL
    yield "agent", live.agent, ""
    yield from (("grant", grant, "") for grant in live.grants)
    yield "subject", live.issuer, live.subject
    if live.on_behalf_of:
        yield "subject", live.issuer, live.on_behalf_of
    yield from (("group", live.issuer, group) for group in live.groups)


def _rests(live: LiveSession, key: Key) -> bool:
    """Whether `key` is in `_rests_on(live)`; a session may name 512 groups, and all sessions are asked."""
    kind, issuer, name = key
    if kind == "group":
        return live.issuer == issuer and name in live.groups
    return kind == "all" or (live.issuer == issuer and name in (live.subject, live.on_behalf_of))


def _concerns(end: End, live: LiveSession) -> bool:
    return end.at_us > live.identity_at_us or end.cause in ("agent retired", "grant revoked")
