"""Events of identities and sessions in; out comes which live sessions must end, and why.

Topics are read side by side, so an event of one topic may be seen before an older one of another. The conclusions do not depend
on that: what ended stays known here, with its time, and a session is held against it when it opens, however late that is seen.

The registry (`identity.registry`) answers another question, whether a session may begin. It says no to what it does not know;
here that would end a session whose grant merely has not been read yet, so only recorded ends count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    Event,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantRevoked,
    SessionClosed,
    SessionEndOrdered,
    SessionKilled,
    SessionOpened,
)

Cause: TypeAlias = Literal["agent revoked", "agent retired", "grant revoked", "grant expired", "token expired"]

FOR_EVER_US: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class LiveSession:
    session: str
    agent: str
    writer: str  # the gateway that recorded it
    boot: int
    grants: tuple[str, ...]
    method: str
    opened_us: int
    expires_at_us: int  # as recorded; 0 = never
    due_us: int  # the earliest end of what it rests on, the grants' included; FOR_EVER_US = none
    ordered: bool  # its end was concluded; once is enough


@dataclass(frozen=True, slots=True)
class End:
    """A recorded end: of an agent, for all sessions opened at or before `until_us`, or of a grant."""

    cause: Cause
    at_us: int
    until_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    sessions: Mapping[str, LiveSession] = field(default_factory=dict)
    agents: Mapping[str, End] = field(default_factory=dict)
    grants: Mapping[str, End] = field(default_factory=dict)
    expiries: Mapping[str, int] = field(default_factory=dict)  # grant -> its end; those without one are not here
    boots: Mapping[str, int] = field(default_factory=dict)  # writer -> the lowest boot whose sessions can be live
    due_us: int = FOR_EVER_US  # nothing can be due before


Effects: TypeAlias = tuple[SessionEndOrdered, ...]


def step(state: State, event: Event, writer: str, boot: int, now_us: int) -> tuple[State, Effects]:
    """Take one event in, of the frame that `writer` recorded in `boot`. An event seen twice orders nothing twice."""
    state = _seen(state, writer, boot)
    match event:
        case SessionOpened():
            return _opened(state, event, writer, boot, now_us)
        case SessionClosed() | SessionKilled():
            if event.session not in state.sessions:
                return state, ()
            rest = {session: live for session, live in state.sessions.items() if session != event.session}
            return replace(state, sessions=rest), ()
        case GatewayStarted():
            return _began(state, writer, event.boot), ()
        case GatewayStopped():
            return _began(state, writer, event.boot + 1), ()
        case AgentRevoked():
            if (before := state.agents.get(event.agent)) is not None and before.cause == "agent retired":
                return state, ()
            return _agent_ended(state, event.agent, End("agent revoked", event.at_us, FOR_EVER_US, event.reason), now_us)
        case AgentRetired():
            return _agent_ended(state, event.agent, End("agent retired", event.at_us, FOR_EVER_US, event.reason), now_us)
        case AgentReinstated():
            before = state.agents.get(event.agent)
            if before is None or before.cause == "agent retired":
                return state, ()
            # A session opened while the revocation stood, by a gateway that had not heard of it yet, ends all the same.
            ended = replace(before, until_us=event.at_us)
            return replace(state, agents={**state.agents, event.agent: ended}), ()
        case GrantRevoked():
            if event.grant in state.grants:
                return state, ()
            end = End("grant revoked", event.at_us, FOR_EVER_US, event.reason)
            state = replace(state, grants={**state.grants, event.grant: end})
            return _order(state, (s for s in state.sessions.values() if event.grant in s.grants), end, event.grant, now_us)
        case GrantApproved():
            return _approved(state, event), ()
        case _:
            return state, ()


def tick(state: State, now_us: int) -> tuple[State, Effects]:
    """Order the end of the sessions whose time is over."""
    if now_us < state.due_us:
        return state, ()
    effects: list[SessionEndOrdered] = []
    for live in [s for s in state.sessions.values() if not s.ordered and s.due_us <= now_us]:
        end, about = _expiry(state, live)
        state, ordered = _order(state, (live,), end, about, now_us)
        effects.extend(ordered)
    return _due(state), tuple(effects)


def order_id(session: str, cause: Cause, about: str) -> str:
    """The same session and the same cause make the same order, in whatever process and however often it is concluded."""
    return hashlib.sha256("\0".join(("SessionEndOrdered", session, cause, about)).encode()).hexdigest()[:32]


def _opened(state: State, event: SessionOpened, writer: str, boot: int, now_us: int) -> tuple[State, Effects]:
    stamp = event.stamp
    if boot < state.boots.get(writer, 0) or stamp.session in state.sessions:
        return state, ()
    live = LiveSession(
        session=stamp.session,
        agent=stamp.agent,
        writer=writer,
        boot=boot,
        grants=stamp.grants,
        method=event.method,
        opened_us=event.at_us,
        expires_at_us=event.expires_at_us,
        due_us=_session_due(state.expiries, stamp.grants, event.expires_at_us),
        ordered=False,
    )
    state = replace(state, sessions={**state.sessions, live.session: live}, due_us=min(state.due_us, live.due_us))
    agent = state.agents.get(live.agent)
    if agent is not None and live.opened_us <= agent.until_us:
        return _order(state, (live,), agent, live.agent, now_us)
    for grant in live.grants:
        if (end := state.grants.get(grant)) is not None:
            return _order(state, (live,), end, grant, now_us)
    return state, ()


def _agent_ended(state: State, agent: str, end: End, now_us: int) -> tuple[State, Effects]:
    state = replace(state, agents={**state.agents, agent: end})
    return _order(state, (s for s in state.sessions.values() if s.agent == agent), end, agent, now_us)


def _approved(state: State, event: GrantApproved) -> State:
    if not event.expires_at_us or event.grant in state.expiries:
        return state
    expiries = {**state.expiries, event.grant: event.expires_at_us}
    sessions = dict(state.sessions)
    for live in state.sessions.values():
        if event.grant in live.grants:
            sessions[live.session] = replace(live, due_us=_session_due(expiries, live.grants, live.expires_at_us))
    return _due(replace(state, expiries=expiries, sessions=sessions))


def _seen(state: State, writer: str, boot: int) -> State:
    """A writer runs once: what it records in one boot shows that its earlier boots are over."""
    return _began(state, writer, boot) if boot > state.boots.get(writer, -1) else state


def _began(state: State, writer: str, boot: int) -> State:
    if boot <= state.boots.get(writer, -1):
        return state
    rest = {session: live for session, live in state.sessions.items() if live.writer != writer or live.boot >= boot}
    return replace(state, boots={**state.boots, writer: boot}, sessions=rest)


def _expiry(state: State, live: LiveSession) -> tuple[End, str]:
    over = [(state.expiries[grant], grant) for grant in live.grants if state.expiries.get(grant, FOR_EVER_US) == live.due_us]
    if over:
        at_us, grant = min(over)
        return End("grant expired", at_us, FOR_EVER_US, f"grant {grant} has run out"), grant
    if live.method == "token":
        return End("token expired", live.due_us, FOR_EVER_US, "the token that opened this session has expired"), ""
    return End("grant expired", live.due_us, FOR_EVER_US, "a grant of this session has run out"), ""


def _order(state: State, sessions: Iterable[LiveSession], end: End, about: str, now_us: int) -> tuple[State, Effects]:
    ending = [live for live in sessions if not live.ordered]
    if not ending:
        return state, ()
    orders = tuple(
        SessionEndOrdered(
            at_us=now_us,
            order=order_id(live.session, end.cause, about),
            session=live.session,
            agent=live.agent,
            cause=end.cause,
            cause_at_us=end.at_us,
            reason=end.reason,
        )
        for live in ending
    )
    return replace(state, sessions={**state.sessions, **{live.session: replace(live, ordered=True) for live in ending}}), orders


def _session_due(expiries: Mapping[str, int], grants: tuple[str, ...], expires_at_us: int) -> int:
    return min([expires_at_us or FOR_EVER_US, *(expiries[grant] for grant in grants if grant in expiries)])


def _due(state: State) -> State:
    return replace(state, due_us=min((s.due_us for s in state.sessions.values() if not s.ordered), default=FOR_EVER_US))
