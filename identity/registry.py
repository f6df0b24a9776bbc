"""Who may act, and within which grants: a fold over the identity events.

The agents may come in any order, a record may come twice, and the log may start late: only the events of one agent, subject or
group must come in the order in which they were recorded, which the log keeps. What is already known changes nothing.

Revocations of an agent, a subject, a group and everything stand side by side: taking one back leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar, assert_never

from identity.principal import Principal
from identity.refusal import Refusal
from identity.restraints import Restraints
from identity.scope import Authority, LiveGrant
from identity.sources import Sources
from ingest.events import (
    AgentHeld,
    AgentKeyReplaced,
    AgentRegistered,
    AgentReinstated,
    AgentReleased,
    AgentRetired,
    AgentRevoked,
    AgentThrottled,
    AgentUnthrottled,
    AllReinstated,
    AllRevoked,
    GrantApproved,
    GrantDenied,
    GrantNarrowed,
    GrantRequested,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    IdentityEvent,
    ResponseChosen,
    Scope,
    SessionOpened,
    SessionRevoked,
    SourceDeclared,
    SourceWithdrawn,
    SubjectReinstated,
    SubjectRevoked,
)

AgentState: TypeAlias = Literal["active", "revoked", "retired"]
GrantState: TypeAlias = Literal["requested", "approved", "denied", "revoked"]
Cause: TypeAlias = Literal[
    "agent unknown",
    "agent retired",
    "agent revoked",
    "all revoked",
    "subject revoked",
    "group revoked",
    "session revoked",
    "grant unknown",
    "grant revoked",
    "grant expired",
]

EVERYONE: Final = "*"
"""The key of the events that concern more than one agent. No agent bears this name."""

SESSIONS_MAX: Final = 100_000  # revoked ones that are remembered, the oldest go first: long before that they have ended


@dataclass(frozen=True, slots=True)
class Agent:
    """A named principal that is no person.

    `known` is false for a name whose end was recorded and whose registration was not seen: where a log starts late, a retired
    name must stay retired.
    """

    id: str
    state: AgentState
    description: str
    owner: str
    issuer: str  # "" when it has no OIDC identity
    client: str
    subject: str  # "" = any `sub` of this client
    key_id: str  # "" when it has no key
    scram_verifier: str
    key_at_us: int
    registered_at_us: int
    registered_by: str
    state_at_us: int  # when it came to this state
    state_by: str
    state_reason: str
    revoked_at_us: int  # its last revocation or retirement, reinstated since or not; 0 = none
    known: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope for a time. That its time is over is no state but a question: `expired(now_us)`."""

    id: str
    agent: str
    scope: Scope
    state: GrantState
    requested_by: str
    requested_at_us: int
    reason: str
    seconds: int  # life from approval; 0 = until revoked
    approver: str  # "" until approved
    approved_at_us: int
    expires_at_us: int  # 0 = never
    ended_by: str  # "" until denied or revoked
    ended_at_us: int
    ended_reason: str
    narrowed_at_us: int = 0  # 0 = never; `scope` is what is left
    narrowed_by: str = ""
    narrowed_reason: str = ""

    def expired(self, now_us: int) -> bool:
        return self.state == "approved" and 0 < self.expires_at_us <= now_us

    def live(self, now_us: int) -> bool:
        """Whether the grant allows anything now, as far as it depends on the grant: the agent may have been revoked."""
        return self.state == "approved" and not self.expired(now_us)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Of a subject, of a group, or of everything: standing, or taken back."""

    standing: bool
    at_us: int  # when it came to be so
    by: str
    reason: str
    revoked_at_us: int  # the last time that it was revoked


@dataclass(frozen=True, slots=True)
class Standing:
    """What a live session rests on."""

    session: str
    agent: str
    issuer: str  # "" for an agent key
    subject: str
    on_behalf_of: str
    groups: frozenset[str]
    grants: tuple[str, ...]
    identity_at_us: int  # the registry's, in the moment in which it let the session in

    @classmethod
    def of(cls, opened: SessionOpened) -> Standing:
        stamp = opened.stamp
        return cls(
            session=stamp.session,
            agent=stamp.agent,
            issuer=stamp.issuer,
            subject=stamp.subject,
            on_behalf_of=stamp.on_behalf_of,
            groups=frozenset(opened.groups),
            grants=stamp.grants,
            # Where that is not told, its gateway knew of nothing later.
            identity_at_us=opened.identity_at_us or opened.at_us,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a session has nothing left to rest on, or a principal may open none."""

    cause: Cause
    at_us: int  # when that was recorded, or when the grant ran out; 0 where nothing is known of it
    reason: str  # the operator's, or our sentence
    grant: str = ""  # of which grant; "" when something else ended


class Registry:
    """Owned by one task. What it hands out is frozen; `agents` and `grants` are views that follow the fold."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._grants: dict[str, Grant] = {}
        self._grants_of: dict[str, list[str]] = {}
        self._agents_of: dict[tuple[str, str], list[str]] = {}
        self._subjects: dict[tuple[str, str], Revocation] = {}
        self._groups: dict[str, dict[str, Revocation]] = {}  # by issuer
        self._sessions: dict[str, SessionRevoked] = {}
        self._everything: Revocation | None = None
        self._identity_at_us = 0
        self.restraints = Restraints()
        self.sources = Sources()
        self.agents: Mapping[str, Agent] = MappingProxyType(self._agents)
        self.grants: Mapping[str, Grant] = MappingProxyType(self._grants)

    # -- the fold --------------------------------------------------------------------------------------------------------------

    def apply(self, event: IdentityEvent) -> bool:
        """Take one event in. False when it told nothing new.

        The times of the events rise (`identity.commands` sees to that, even where the clock steps back): an event that is older
        than the state it speaks of has been seen before. The ends of grants are final and need no such rule.
        """
        self._identity_at_us = max(self._identity_at_us, event.at_us)
        match event:
            case AgentRegistered():
                return self._registered(event)
            case AgentKeyReplaced():
                return self._key_replaced(event)
            case AgentRevoked():
                return self._left(event, "revoked")
            case AgentRetired():
                return self._left(event, "retired")
            case AgentReinstated():
                return self._reinstated(event)
            case GrantRequested():
                return self._requested(event)
            case GrantApproved():
                return self._approved(event)
            case GrantDenied():
                return self._ended(event, "denied")
            case GrantRevoked():
                return self._ended(event, "revoked")
            case GrantNarrowed():
                return self._narrowed(event)
            case AllRevoked() | AllReinstated():
                everything = _turned(self._everything, event, revoked=isinstance(event, AllRevoked))
                changed, self._everything = everything != self._everything, everything
                return changed
            case SubjectRevoked() | SubjectReinstated():
                revoked = isinstance(event, SubjectRevoked)
                return _turn(self._subjects, (event.issuer, event.subject), event, revoked=revoked)
            case GroupRevoked() | GroupReinstated():
                groups = self._groups.setdefault(event.issuer, {})
                return _turn(groups, event.group, event, revoked=isinstance(event, GroupRevoked))
            case SessionRevoked():
                return self._session_revoked(event)
            case ResponseChosen() | AgentThrottled() | AgentUnthrottled() | AgentHeld() | AgentReleased():
                return self.restraints.apply(event)
            case SourceDeclared():
                return self.sources.declared(event)
            case SourceWithdrawn():
                return self.sources.withdrawn(event)
            case _:
                assert_never(event)

    def _registered(self, event: AgentRegistered) -> bool:
        before = self._agents.get(event.agent)
        if before is not None and before.known:
            return False  # a name is registered once; what changes later has events of its own
        registered = Agent(
            id=event.agent,
            state="active",
            description=event.description,
            owner=event.owner,
            issuer=event.issuer,
            client=event.client,
            subject=event.subject,
            key_id=event.key_id,
            scram_verifier=event.scram_verifier,
            key_at_us=event.at_us,
            registered_at_us=event.at_us,
            registered_by=event.operator,
            state_at_us=event.at_us,
            state_by=event.operator,
            state_reason="",
            revoked_at_us=0,
            known=True,
        )
        if before is not None:  # its end is the newer fact
            registered = replace(
                registered,
                state=before.state,
                state_at_us=before.state_at_us,
                state_by=before.state_by,
                state_reason=before.state_reason,
                revoked_at_us=before.revoked_at_us,
            )
        self._agents[event.agent] = registered
        if event.client:
            self._agents_of.setdefault((event.issuer, event.client), []).append(event.agent)
        return True

    def _key_replaced(self, event: AgentKeyReplaced) -> bool:
        agent = self._agents.get(event.agent)
        if agent is None or not agent.known or agent.state == "retired" or event.at_us < agent.key_at_us:
            return False
        return self._put(replace(agent, key_id=event.key_id, scram_verifier=event.scram_verifier, key_at_us=event.at_us))

    def _left(self, event: AgentRevoked | AgentRetired, state: Literal["revoked", "retired"]) -> bool:
        agent = self._agents.get(event.agent) or _unknown(event.agent)
        if agent.state == "retired" or (state == "revoked" and event.at_us < agent.state_at_us):
            return False
        return self._put(
            replace(
                agent,
                state=state,
                state_at_us=event.at_us,
                state_by=event.operator,
                state_reason=event.reason,
                revoked_at_us=event.at_us,
            )
        )

    def _reinstated(self, event: AgentReinstated) -> bool:
        agent = self._agents.get(event.agent)
        if agent is None or agent.state != "revoked" or event.at_us < agent.state_at_us:
            return False
        if not agent.known:
            # Nothing of it is known but that it was revoked, and now not even that.
            del self._agents[event.agent]
            return True
        return self._put(
            replace(agent, state="active", state_at_us=event.at_us, state_by=event.operator, state_reason=event.reason)
        )

    def _requested(self, event: GrantRequested) -> bool:
        if event.grant in self._grants:
            return False
        self._grants[event.grant] = Grant(
            id=event.grant,
            agent=event.agent,
            scope=event.scope,
            state="requested",
            requested_by=event.requested_by,
            requested_at_us=event.at_us,
            reason=event.reason,
            seconds=event.seconds,
            approver="",
            approved_at_us=0,
            expires_at_us=0,
            ended_by="",
            ended_at_us=0,
            ended_reason="",
        )
        self._grants_of.setdefault(event.agent, []).append(event.grant)
        return True

    def _approved(self, event: GrantApproved) -> bool:
        grant = self._grants.get(event.grant)
        if grant is None or grant.agent != event.agent or grant.state != "requested":
            return False
        self._grants[event.grant] = replace(
            grant, state="approved", approver=event.approver, approved_at_us=event.at_us, expires_at_us=event.expires_at_us
        )
        return True

    def _ended(self, event: GrantDenied | GrantRevoked, state: Literal["denied", "revoked"]) -> bool:
        grant = self._grants.get(event.grant)
        if grant is None or grant.agent != event.agent or grant.state in ("denied", "revoked"):
            return False
        self._grants[event.grant] = replace(
            grant, state=state, ended_by=event.operator, ended_at_us=event.at_us, ended_reason=event.reason
        )
        return True

    def _narrowed(self, event: GrantNarrowed) -> bool:
        grant = self._grants.get(event.grant)
        if grant is None or grant.agent != event.agent or event.at_us <= max(grant.narrowed_at_us, grant.requested_at_us):
            return False  # seen before: to take it in again would take a later narrowing back
        self._grants[event.grant] = replace(
            grant,
            scope=event.scope,
            narrowed_at_us=event.at_us,
            narrowed_by=event.operator,
            narrowed_reason=event.reason,
        )
        return True

    def _session_revoked(self, event: SessionRevoked) -> bool:
        if event.session in self._sessions:
            return False
        self._sessions[event.session] = event
        if len(self._sessions) > SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        return True

    def _put(self, agent: Agent) -> bool:
        changed = self._agents.get(agent.id) != agent
        self._agents[agent.id] = agent
        return changed

    # -- questions -------------------------------------------------------------------------------------------------------------

    def agent_of(self, issuer: str, client: str, subject: str) -> str | None:
        """The agent that this OIDC identity names, in whatever state it is.

        None where two agents lay claim to it: `identity.commands` registers no such pair, and to choose one would be to guess.
        """
        if not client:
            return None
        claimants = [id_ for id_ in self._agents_of.get((issuer, client), ()) if self._agents[id_].subject in ("", subject)]
        return claimants[0] if len(claimants) == 1 else None

    def claimants(self, issuer: str, client: str, subject: str) -> tuple[str, ...]:
        """The agents whose tokens could also be those of an agent registered with these three; "" as subject overlaps with all."""
        return tuple(
            id_ for id_ in self._agents_of.get((issuer, client), ()) if not subject or self._agents[id_].subject in ("", subject)
        )

    def grants_of(self, agent: str) -> tuple[Grant, ...]:
        """All of them, in whatever state, in the order in which they were asked for."""
        return tuple(self._grants[id_] for id_ in self._grants_of.get(agent, ()))

    def authority(self, agent: str, connection: str, search_path: tuple[str, ...], now_us: int) -> Authority | Refusal:
        """What this agent may do on this connection now: its approved grants that are neither revoked nor expired.

        Ask `barred` or `ending` first: who acts through the agent is not looked at here.
        """
        if (absence := self._absence(agent)) is not None:
            return Refusal(absence.reason)
        live = tuple(
            LiveGrant(grant.id, agent, grant.scope, grant.approver, grant.expires_at_us)
            for grant in self.grants_of(agent)
            if grant.scope.connection == connection and grant.live(now_us)
        )
        if not live:
            return Refusal(f"agent {agent} holds no live grant on connection {connection}")
        return Authority(agent, connection, search_path, live)

    @property
    def identity_at_us(self) -> int:
        """`at_us` of the newest event taken in; 0 = none. Since their times rise, it says of all older ones that they are in."""
        return self._identity_at_us

    @property
    def everything(self) -> Revocation | None:
        """None when it was never revoked."""
        return self._everything

    def subject(self, issuer: str, subject: str) -> Revocation | None:
        """None when it was never revoked."""
        return self._subjects.get((issuer, subject))

    def group(self, issuer: str, group: str) -> Revocation | None:
        """None when it was never revoked."""
        return self._groups.get(issuer, {}).get(group)

    def names_revoked(self) -> int:
        """How many subjects and groups were ever revoked."""
        return len(self._subjects) + sum(len(groups) for groups in self._groups.values())

    def barred(self, principal: Principal) -> Ending | None:
        """Why this principal may not act now, whatever its grants; None when it may."""
        return self._absence(principal.agent) or self._revoked(
            principal.issuer, principal.subject, principal.on_behalf_of, frozenset(principal.groups), self._identity_at_us
        )

    def ending(self, session: Standing, now_us: int) -> Ending | None:
        """Why this session must end; None when it may go on.

        It rests on all that held at its opening and ends with the first of it, although that may hold again: what was revoked
        after the session was let in ends it, reinstated since or not. A gateway may hear of both at once.
        """
        if (absence := self._absence(session.agent)) is not None:
            return absence
        agent = self._agents[session.agent]
        if agent.revoked_at_us > session.identity_at_us:
            reason = f"agent {agent.id} was revoked, and has been reinstated after this session was opened"
            return Ending("agent revoked", agent.revoked_at_us, reason)
        revoked = self._revoked(session.issuer, session.subject, session.on_behalf_of, session.groups, session.identity_at_us)
        if revoked is not None:
            return revoked
        if (order := self._sessions.get(session.session)) is not None:
            return Ending("session revoked", order.at_us, f"this session was revoked: {order.reason}")
        return self._lost_grant(session.agent, session.grants, now_us)

    def _lost_grant(self, agent: str, grants: Iterable[str], now_us: int) -> Ending | None:
        for id_ in grants:
            grant = self._grants.get(id_)
            if grant is None or grant.agent != agent:
                return Ending("grant unknown", 0, f"grant {id_} of agent {agent} is not in the record", id_)
            if grant.state in ("revoked", "denied"):
                return Ending("grant revoked", grant.ended_at_us, f"grant {id_} was revoked: {grant.ended_reason}", id_)
            if grant.expired(now_us):
                return Ending("grant expired", grant.expires_at_us, f"grant {id_} has run out", id_)
            if grant.state == "requested":
                return Ending("grant unknown", 0, f"grant {id_} was never approved", id_)
        return None

    def _revoked(self, issuer: str, subject: str, on_behalf_of: str, groups: frozenset[str], known_us: int) -> Ending | None:
        """What of these is revoked now, or was after `known_us`."""
        everything = self._everything
        if everything is not None and everything.revoked_at_us > known_us:
            return Ending("all revoked", everything.revoked_at_us, _said("everything", everything))
        if self._subjects:
            for name in (subject, on_behalf_of):
                of = self._subjects.get((issuer, name))
                if of is not None and (of.standing or of.revoked_at_us > known_us):
                    return Ending("subject revoked", of.revoked_at_us, _said(f"subject {name} of {issuer}", of))
        if groups and (revoked := self._groups.get(issuer)):
            # Whichever is shorter: 10,000 sessions of 512 groups each must not cost five million look-ups.
            named = (group for group in revoked if group in groups) if len(revoked) < len(groups) else sorted(groups)
            for name in named:
                of = revoked.get(name)
                if of is not None and (of.standing or of.revoked_at_us > known_us):
                    return Ending("group revoked", of.revoked_at_us, _said(f"group {name} of {issuer}", of))
        return None

    def expired_between(self, after_us: int, until_us: int) -> tuple[Grant, ...]:
        """The approved grants that ran out in `(after_us, until_us]`, first to last."""
        due = (
            g for g in self._grants.values() if g.state == "approved" and g.expires_at_us and after_us < g.expires_at_us <= until_us
        )
        return tuple(sorted(due, key=lambda g: (g.expires_at_us, g.id)))

    def _absence(self, agent: str) -> Ending | None:
        standing = self._agents.get(agent)
        if standing is None:
            return Ending("agent unknown", 0, f"agent {agent} is not registered")
        if standing.state == "retired":
            return Ending("agent retired", standing.state_at_us, f"agent {agent} was retired: {standing.state_reason}")
        if standing.state == "revoked":
            return Ending("agent revoked", standing.state_at_us, f"agent {agent} is revoked: {standing.state_reason}")
        if self._everything is not None and self._everything.standing:
            return Ending("all revoked", self._everything.revoked_at_us, _said("everything", self._everything))
        return None


_Turn: TypeAlias = AllRevoked | AllReinstated | SubjectRevoked | SubjectReinstated | GroupRevoked | GroupReinstated
_Name = TypeVar("_Name")


def _turned(before: Revocation | None, event: _Turn, *, revoked: bool) -> Revocation | None:
    if before is None:
        return Revocation(True, event.at_us, event.operator, event.reason, event.at_us) if revoked else None
    if event.at_us <= before.at_us:
        return before
    return Revocation(revoked, event.at_us, event.operator, event.reason, event.at_us if revoked else before.revoked_at_us)


def _turn(revocations: dict[_Name, Revocation], name: _Name, event: _Turn, *, revoked: bool) -> bool:
    before = revocations.get(name)
    after = _turned(before, event, revoked=revoked)
    if after is None or after == before:
        return False
    revocations[name] = after
    return True


def _said(what: str, revocation: Revocation) -> str:
    if revocation.standing:
        return f"{what} is revoked: {revocation.reason}"
    return f"{what} was revoked, and has been reinstated after this session was opened"


def key_of(event: IdentityEvent) -> str:
    """The key that this event is recorded under: the agent that it concerns, or EVERYONE."""
    if isinstance(event, AllRevoked | AllReinstated | SubjectRevoked | SubjectReinstated | GroupRevoked | GroupReinstated):
        return EVERYONE
    if isinstance(event, SourceDeclared | SourceWithdrawn):
        return EVERYONE
    return event.agent


def _unknown(agent: str) -> Agent:
    return Agent(
        id=agent,
        state="active",
        description="",
        owner="",
        issuer="",
        client="",
        subject="",
        key_id="",
        scram_verifier="",
        key_at_us=0,
        registered_at_us=0,
        registered_by="",
        state_at_us=0,
        state_by="",
        state_reason="",
        revoked_at_us=0,
        known=False,
    )
