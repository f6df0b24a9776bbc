"""In come an operator's command and the registry; out comes the event that it leads to, or why there is none.

Nothing is recorded here: `identity.api` records the event and only then tells the registry and the operator.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Final, Literal, TypeAlias, assert_never

from identity.registry import Agent, Grant, Registry, Revocation
from identity.restraints import EVERY, RESPONSES
from identity.scope import OPERATIONS, beyond
from identity.sources import KINDS, LOCAL, network
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
    Rule,
    Scope,
    SessionRevoked,
    SourceDeclared,
    SourceWithdrawn,
    SubjectReinstated,
    SubjectRevoked,
)

CONFIG: Final = "config"
"""Asks for and approves the grants of the configuration file. No operator bears this name."""

OURSELVES: Final = "pgwarden"
"""Gives the commands that answer a finding. No operator bears this name."""

OURS: Final = "finding:"
"""How our own Idempotency-Keys begin: no caller may use one up beforehand."""

RESERVED: Final[Mapping[str, str]] = {CONFIG: "the configuration file's", "unused": "a path of the API"}
"""Names that no agent can have, and what they are."""

SOURCE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
AGENT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")  # also a Postgres user name: NAMEDATALEN - 1 = 63 bytes
IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Settings:
    grant_seconds_max: int = 10 * 366 * 86_400  # ten years
    text_characters_max: int = 1000  # a description, a reason
    name_characters_max: int = 256  # an owner, an issuer, a client, a subject: enough for a URL
    claim_characters_max: int = 512  # a subject, a group that is revoked: as much as a token may hold (identity.tokens)
    session_characters_max: int = 64  # its id; the gateway's have 20
    identifier_bytes_max: int = 63  # PostgreSQL's NAMEDATALEN - 1
    rules_max: int = 100
    tables_max: int = 1000  # of one rule
    functions_max: int = 1000
    channels_max: int = 100
    outside_max: int = 100  # told of a scope that is no part of another
    grants_per_agent_max: int = 1000  # that are requested or approved; what ended does not count
    agents_max: int = 100_000
    revocations_max: int = 100_000  # subjects and groups that were ever revoked
    sources_max: int = 1_000  # declared and not withdrawn: each session that a collector sees is held against them
    source_roles_max: int = 20
    throttle_per_minute_max: int = 100_000  # faster than a gateway is
    responses_max: int = 10_000  # of a detector and an agent, chosen
    requests_max: int = 100_000  # Idempotency-Keys remembered; the oldest go first


# -- commands ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegisterAgent:
    agent: str
    description: str
    owner: str
    issuer: str = ""
    client: str = ""
    subject: str = ""
    key: bool = False


@dataclass(frozen=True, slots=True)
class ReplaceKey:
    agent: str


@dataclass(frozen=True, slots=True)
class RevokeAgent:
    agent: str
    reason: str
    finding: str = ""  # that it answers


@dataclass(frozen=True, slots=True)
class ThrottleAgent:
    agent: str
    per_minute: int
    reason: str
    finding: str = ""


@dataclass(frozen=True, slots=True)
class UnthrottleAgent:
    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldAgent:
    agent: str
    reason: str
    finding: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseAgent:
    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChooseResponse:
    detector: str  # "*" = every detector
    agent: str  # "*" = every agent
    response: str


@dataclass(frozen=True, slots=True)
class ReinstateAgent:
    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetireAgent:
    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevokeSession:
    session: str
    agent: str  # whose it is
    reason: str


@dataclass(frozen=True, slots=True)
class RevokeSubject:
    issuer: str  # as configured: the name of its table, or its URL
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReinstateSubject:
    issuer: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevokeGroup:
    issuer: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReinstateGroup:
    issuer: str
    group: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevokeAll:
    reason: str


@dataclass(frozen=True, slots=True)
class ReinstateAll:
    reason: str


@dataclass(frozen=True, slots=True)
class RequestGrant:
    agent: str
    scope: Scope
    seconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class ApproveGrant:
    grant: str


@dataclass(frozen=True, slots=True)
class DenyGrant:
    grant: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevokeGrant:
    grant: str
    reason: str


@dataclass(frozen=True, slots=True)
class NarrowGrant:
    grant: str
    scope: Scope  # all that it allows from now on
    reason: str


@dataclass(frozen=True, slots=True)
class DeclareSource:
    source: str
    kind: str
    roles: tuple[str, ...]
    reason: str
    server: str = ""
    client: str = ""
    executable: str = ""
    application_name: str = ""


@dataclass(frozen=True, slots=True)
class WithdrawSource:
    source: str
    reason: str


RestraintCommand: TypeAlias = ThrottleAgent | UnthrottleAgent | HoldAgent | ReleaseAgent
SourceCommand: TypeAlias = DeclareSource | WithdrawSource
AgentCommand: TypeAlias = RegisterAgent | ReplaceKey | RevokeAgent | ReinstateAgent | RetireAgent
GrantCommand: TypeAlias = RequestGrant | ApproveGrant | DenyGrant | RevokeGrant | NarrowGrant
NameCommand: TypeAlias = RevokeSubject | ReinstateSubject | RevokeGroup | ReinstateGroup
Command: TypeAlias = (
    AgentCommand
    | GrantCommand
    | NameCommand
    | SourceCommand
    | RevokeSession
    | RevokeAll
    | ReinstateAll
    | RestraintCommand
    | ChooseResponse
)


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a command may use up that cannot be computed: made anew for each command by the shell."""

    grant: str = ""  # an id
    key_id: str = ""
    scram_verifier: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the configuration says there is."""

    connections: frozenset[str]
    issuers: Mapping[str, str]  # the URL by the name of its table
    detectors: frozenset[str] = frozenset()  # whose findings may be answered
    unanswered: Mapping[str, str] = field(
        default_factory=dict
    )  # those of them that find what is no agent's, and what to set instead


# -- answers -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """Record this event, and apply it once it is recorded."""

    event: IdentityEvent


@dataclass(frozen=True, slots=True)
class Repeated:
    """The command was given before under the same Idempotency-Key; this event came of it."""

    event: IdentityEvent


@dataclass(frozen=True, slots=True)
class Rejected:
    kind: Literal["invalid", "missing", "forbidden", "conflict"]
    error: str  # one sentence that says what to do
    problems: tuple[str, ...] = ()  # all of them, where there may be several


Verdict: TypeAlias = Accepted | Repeated | Rejected


class Requests:
    """Which event came of which Idempotency-Key: a second fold over the identity events, bounded.

    An event's `request` is `<Idempotency-Key>:<first 16 hex digits of the SHA-256 of operator and command>`, so a key that comes
    back with another content, or from another operator, is known after a restart too. The configuration's own are never forgotten:
    otherwise a grant of the file that was revoked would be granted again.
    """

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._events: OrderedDict[str, IdentityEvent] = OrderedDict()
        self._config: dict[str, IdentityEvent] = {}

    def apply(self, event: IdentityEvent) -> None:
        key, colon, _digest = event.request.rpartition(":")
        if not colon:
            return
        if by(event) == CONFIG:
            self._config.setdefault(key, event)
            return
        self._events.setdefault(key, event)
        if len(self._events) > self._requests_max:
            self._events.popitem(last=False)

    def event(self, key: str) -> IdentityEvent | None:
        return self._config.get(key) or self._events.get(key)


def request(key: str, operator: str, command: Command) -> str:
    """What an event says of the call that it came of; "" for a call without an Idempotency-Key."""
    if not key:
        return ""
    content = json.dumps([operator, type(command).__name__, asdict(command) | _scope_of(command)], sort_keys=True)
    return f"{key}:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _scope_of(command: Command) -> dict[str, object]:
    if not isinstance(command, RequestGrant | NarrowGrant):
        return {}
    scope = command.scope
    rules = [[rule.schema, rule.tables, rule.operations] for rule in scope.rules]
    return {"scope": [scope.connection, rules, scope.functions, scope.channels, scope.introspection]}


def by(event: IdentityEvent) -> str:
    """Who gave the command."""
    match event:
        case GrantRequested():
            return event.requested_by
        case GrantApproved():
            return event.approver
        case _:
            return event.operator


# -- the decision ----------------------------------------------------------------------------------------------------------------


def decide(
    command: Command,
    key: str,
    operator: str,
    registry: Registry,
    requests: Requests,
    known: Known,
    fresh: Fresh,
    now_us: int,
    settings: Settings = Settings(),
) -> Verdict:
    """What comes of a command that this operator gave. `key` is the Idempotency-Key, "" for none."""
    stamp = request(key, operator, command)
    if key and (earlier := requests.event(key)) is not None:
        if earlier.request == stamp:
            return Repeated(earlier)
        return Rejected("conflict", f"Idempotency-Key {key} was used for another command; use a new one")
    # Times rise over all events, even where the clock steps back: the registry tells a repeated event from a new one by its time,
    # and a gateway that names the newest time it knows says with it that it knows all before.
    at_us = max(now_us, registry.identity_at_us + 1)
    match command:
        case RegisterAgent():
            return _register(command, stamp, operator, registry, known, fresh, at_us, settings)
        case RequestGrant():
            return _request(command, stamp, operator, registry, known, fresh, at_us, now_us, settings)
        case ReplaceKey() | RevokeAgent() | ReinstateAgent() | RetireAgent():
            agent = registry.agents.get(command.agent)
            if agent is None or not agent.known:
                return Rejected("missing", f"agent {_shown(command.agent)} is not registered; GET /v1/agents lists those that are")
            return _agent_command(command, agent, stamp, operator, fresh, at_us, settings)
        case RevokeSession():
            return _revoke_session(command, stamp, operator, registry, at_us, settings)
        case RevokeSubject() | ReinstateSubject() | RevokeGroup() | ReinstateGroup():
            return _name_command(command, stamp, operator, registry, known, at_us, settings)
        case RevokeAll() | ReinstateAll():
            return _all_command(command, stamp, operator, registry.everything, at_us, settings)
        case ThrottleAgent() | UnthrottleAgent() | HoldAgent() | ReleaseAgent():
            return _restrain(command, stamp, operator, registry, at_us, settings)
        case ChooseResponse():
            return _choose(command, stamp, operator, registry, known, at_us, settings)
        case DeclareSource():
            return _declare_source(command, stamp, operator, registry, at_us, settings)
        case WithdrawSource():
            return _withdraw_source(command, stamp, operator, registry, at_us, settings)
        case ApproveGrant() | DenyGrant() | RevokeGrant() | NarrowGrant():
            grant = registry.grants.get(command.grant)
            if grant is None:
                return Rejected("missing", f"there is no grant {_shown(command.grant)}; GET /v1/grants lists those that are")
            agent = registry.agents.get(grant.agent)
            if isinstance(command, NarrowGrant):
                return _narrow(command, grant, stamp, operator, known, at_us, now_us, settings)
            return _grant_command(command, grant, agent, stamp, operator, at_us, now_us, settings)
        case _:
            assert_never(command)


def _register(
    command: RegisterAgent,
    stamp: str,
    operator: str,
    registry: Registry,
    known: Known,
    fresh: Fresh,
    at_us: int,
    settings: Settings,
) -> Verdict:
    issuer = known.issuers.get(command.issuer, command.issuer)
    problems: list[str] = []
    if AGENT_NAME.fullmatch(command.agent) is None:
        problems.append("agent: write 1 to 63 of a-z, 0-9, _, . and -, a letter or digit first")
    elif command.agent in RESERVED:
        problems.append(f"agent: the name {command.agent} is {RESERVED[command.agent]}; choose another")
    problems += _text("description", command.description, settings.text_characters_max, required=False)
    problems += _text("owner", command.owner, settings.name_characters_max, required=True)
    for name, value in (("issuer", command.issuer), ("client", command.client), ("subject", command.subject)):
        problems += _text(name, value, settings.name_characters_max, required=False)
    if command.issuer and issuer not in known.issuers.values():
        problems.append(f"issuer: {_shown(command.issuer)} is not configured; configured are {_listed(known.issuers)}")
    if bool(command.issuer) != bool(command.client):
        problems.append("client: an OIDC identity needs both issuer and client")
    if command.subject and not command.client:
        problems.append("subject: pins a client's tokens, so it needs issuer and client")
    if problems:
        return _invalid("the agent", problems)
    if (namesake := registry.agents.get(command.agent)) is not None:
        if namesake.state == "retired":
            return Rejected("conflict", f"agent {command.agent} was retired and its name never comes back; choose another name")
        return Rejected("conflict", f"agent {command.agent} is registered already; choose another name")
    # A retired agent keeps its OIDC identity for ever: the issuer may still hand out tokens for it.
    if command.client and (claimants := registry.claimants(issuer, command.client, command.subject)):
        return Rejected(
            "conflict", f"client {command.client} of this issuer is agent {claimants[0]}; give each agent its own client"
        )
    if len(registry.agents) >= settings.agents_max:
        return Rejected("conflict", f"there are {settings.agents_max} agents, which is the limit")
    return Accepted(
        AgentRegistered(
            at_us=at_us,
            agent=command.agent,
            description=command.description,
            owner=command.owner,
            issuer=issuer,
            subject=command.subject,
            client=command.client,
            key_id=fresh.key_id if command.key else "",
            scram_verifier=fresh.scram_verifier if command.key else "",
            operator=operator,
            request=stamp,
        )
    )


def _agent_command(
    command: ReplaceKey | RevokeAgent | ReinstateAgent | RetireAgent,
    agent: Agent,
    stamp: str,
    operator: str,
    fresh: Fresh,
    at_us: int,
    settings: Settings,
) -> Verdict:
    if not isinstance(command, ReplaceKey):
        required = not isinstance(command, ReinstateAgent)
        if problems := _text("reason", command.reason, settings.text_characters_max, required=required):
            return _invalid("the call", problems)
    if agent.state == "retired":
        return Rejected("conflict", f"agent {agent.id} was retired for good; register another agent")
    match command:
        case ReplaceKey():
            return Accepted(AgentKeyReplaced(at_us, agent.id, fresh.key_id, fresh.scram_verifier, operator, stamp))
        case RevokeAgent():
            # Revoking what is revoked is recorded too: whoever asks wants the sessions ended, now.
            return Accepted(AgentRevoked(at_us, agent.id, command.reason, operator, stamp, command.finding))
        case ReinstateAgent():
            if agent.state == "active":
                return Rejected("conflict", f"agent {agent.id} is active; there is nothing to reinstate")
            return Accepted(AgentReinstated(at_us, agent.id, command.reason, operator, stamp))
        case RetireAgent():
            return Accepted(AgentRetired(at_us, agent.id, command.reason, operator, stamp))
        case _:
            assert_never(command)


def _request(
    command: RequestGrant,
    stamp: str,
    operator: str,
    registry: Registry,
    known: Known,
    fresh: Fresh,
    at_us: int,
    now_us: int,
    settings: Settings,
) -> Verdict:
    agent = registry.agents.get(command.agent)
    problems: list[str] = []
    if agent is None or (not agent.known and agent.state != "retired"):
        problems.append(f"agent: {_shown(command.agent)} is not registered; register it first")
    problems += scope_problems(command.scope, known, settings)
    if not 0 <= command.seconds <= settings.grant_seconds_max:
        problems.append(f"seconds: write 0 (until revoked) to {settings.grant_seconds_max} (ten years)")
    problems += _text("reason", command.reason, settings.text_characters_max, required=True)
    if problems:
        return _invalid("the grant", problems)
    if agent is not None and agent.state == "retired":
        return Rejected("conflict", f"agent {agent.id} was retired for good; register another agent")
    standing = sum(1 for grant in registry.grants_of(command.agent) if grant.state == "requested" or grant.live(now_us))
    if standing >= settings.grants_per_agent_max:
        return Rejected("conflict", f"agent {command.agent} has {standing} grants and requests, which is the limit; revoke some")
    return Accepted(
        GrantRequested(at_us, fresh.grant, command.agent, command.scope, command.seconds, command.reason, operator, stamp)
    )


def _grant_command(
    command: ApproveGrant | DenyGrant | RevokeGrant,
    grant: Grant,
    agent: Agent | None,
    stamp: str,
    operator: str,
    at_us: int,
    now_us: int,
    settings: Settings,
) -> Verdict:
    if not isinstance(command, ApproveGrant) and (
        problems := _text("reason", command.reason, settings.text_characters_max, required=True)
    ):
        return _invalid("the call", problems)
    if not isinstance(command, RevokeGrant):
        if grant.state != "requested":
            return Rejected("conflict", f"grant {grant.id} is {grant.state}; only a requested one can be approved or denied")
        if operator == grant.requested_by and operator != CONFIG:
            return Rejected("forbidden", f"{operator} asked for grant {grant.id}; another operator must approve or deny it")
    match command:
        case ApproveGrant():
            if agent is None or agent.state == "retired":
                return Rejected("conflict", f"agent {grant.agent} was retired; deny the grant instead")
            expires_at_us = now_us + grant.seconds * 1_000_000 if grant.seconds else 0
            return Accepted(GrantApproved(at_us, grant.id, grant.agent, operator, expires_at_us, stamp))
        case DenyGrant():
            return Accepted(GrantDenied(at_us, grant.id, grant.agent, operator, command.reason, stamp))
        case RevokeGrant():
            if grant.state in ("denied", "revoked"):
                return Rejected("conflict", f"grant {grant.id} is {grant.state} already; there is nothing to revoke")
            return Accepted(GrantRevoked(at_us, grant.id, grant.agent, operator, command.reason, stamp))
        case _:
            assert_never(command)


def _narrow(
    command: NarrowGrant, grant: Grant, stamp: str, operator: str, known: Known, at_us: int, now_us: int, settings: Settings
) -> Verdict:
    # Its connection may have left the configuration; what is granted on it may be narrowed all the same.
    problems = scope_problems(command.scope, Known(known.connections | {grant.scope.connection}, known.issuers), settings)
    if not problems:
        outside = list(islice(beyond(grant.scope, command.scope), settings.outside_max + 1))
        problems += [
            f"scope: grant {grant.id} does not allow {_plain(what)} now; leave it out, or ask for another grant"
            for what in outside[: settings.outside_max]
        ]
    problems += _text("reason", command.reason, settings.text_characters_max, required=True)
    if problems:
        return _invalid("the scope", problems)
    if grant.state == "requested":
        return Rejected("conflict", f"grant {grant.id} is not approved yet; deny it, and ask for a narrower one")
    if not grant.live(now_us):
        ended = "expired" if grant.expired(now_us) else grant.state
        return Rejected("conflict", f"grant {grant.id} is {ended}, so there is nothing to narrow")
    if next(beyond(command.scope, grant.scope), None) is None:
        return Rejected("conflict", f"grant {grant.id} allows no more than this already; there is nothing to narrow")
    return Accepted(GrantNarrowed(at_us, grant.id, grant.agent, command.scope, operator, command.reason, stamp))


# -- more than one agent, and less ---------------------------------------------------------------------------------------------


def _revoke_session(
    command: RevokeSession, stamp: str, operator: str, registry: Registry, at_us: int, settings: Settings
) -> Verdict:
    problems = _name("session", command.session, settings.session_characters_max)
    problems += _text("reason", command.reason, settings.text_characters_max, required=True)
    if problems:
        return _invalid("the call", problems)
    agent = registry.agents.get(command.agent)
    if agent is None:
        return Rejected("missing", f"agent {_shown(command.agent)} is not registered; GET /v1/agents lists those that are")
    # Whether there is such a session only the gateways know, and the tables a moment later: an order for none ends none.
    return Accepted(SessionRevoked(at_us, command.session, command.agent, command.reason, operator, stamp))


def _name_command(
    command: NameCommand, stamp: str, operator: str, registry: Registry, known: Known, at_us: int, settings: Settings
) -> Verdict:
    issuer = known.issuers.get(command.issuer, command.issuer)
    if isinstance(command, RevokeSubject | ReinstateSubject):
        kind, name, standing = "subject", command.subject, registry.subject(issuer, command.subject)
    else:
        kind, name, standing = "group", command.group, registry.group(issuer, command.group)
    revoking = isinstance(command, RevokeSubject | RevokeGroup)
    problems: list[str] = []
    # What was revoked can be reinstated although its issuer has left the configuration.
    if standing is None and issuer not in known.issuers.values():
        # A misspelt issuer would revoke nobody, and nobody would notice.
        there_are = _listed(known.issuers)
        problems.append(f"issuer: {_shown(command.issuer)} is not configured; configured are {there_are}")
    problems += _name(kind, name, settings.claim_characters_max)
    problems += _text("reason", command.reason, settings.text_characters_max, required=revoking)
    if problems:
        return _invalid("the call", problems)
    if not revoking and (standing is None or not standing.standing):
        return Rejected("conflict", f"{kind} {_shown(name)} of this issuer is not revoked; there is nothing to reinstate")
    if standing is None and registry.names_revoked() >= settings.revocations_max:
        limit = f"{settings.revocations_max} subjects and groups were revoked, which is the limit"
        return Rejected("conflict", f"{limit}; revoke the agent, or remove the subject at its issuer")
    match command:
        case RevokeSubject():
            return Accepted(SubjectRevoked(at_us, issuer, name, command.reason, operator, stamp))
        case ReinstateSubject():
            return Accepted(SubjectReinstated(at_us, issuer, name, command.reason, operator, stamp))
        case RevokeGroup():
            return Accepted(GroupRevoked(at_us, issuer, name, command.reason, operator, stamp))
        case ReinstateGroup():
            return Accepted(GroupReinstated(at_us, issuer, name, command.reason, operator, stamp))
        case _:
            assert_never(command)


def _all_command(
    command: RevokeAll | ReinstateAll,
    stamp: str,
    operator: str,
    everything: Revocation | None,
    at_us: int,
    settings: Settings,
) -> Verdict:
    required = isinstance(command, RevokeAll)
    if problems := _text("reason", command.reason, settings.text_characters_max, required=required):
        return _invalid("the call", problems)
    if isinstance(command, RevokeAll):
        return Accepted(AllRevoked(at_us, command.reason, operator, stamp))
    if everything is None or not everything.standing:
        return Rejected("conflict", "not everything is revoked; what is revoked one by one is reinstated one by one")
    return Accepted(AllReinstated(at_us, command.reason, operator, stamp))


# -- connections round the gateway ---------------------------------------------------------------------------------------------


def _declare_source(
    command: DeclareSource, stamp: str, operator: str, registry: Registry, at_us: int, settings: Settings
) -> Verdict:
    problems: list[str] = []
    if SOURCE_NAME.fullmatch(command.source) is None:
        problems.append("source: write 1 to 63 of a-z, 0-9, _, . and -, a letter or digit first")
    if command.kind not in KINDS:
        problems.append(f"kind: choose of {', '.join(KINDS)}")
    if not command.roles:
        problems.append("roles: name the database roles that it logs in as")
    problems += _names("roles", command.roles, settings.source_roles_max, settings.identifier_bytes_max)
    if command.client and command.client != LOCAL and network(command.client) is None:
        problems.append(f"client: {_shown(command.client)} is no address; write 10.0.0.7, 10.0.0.0/24 or {LOCAL}")
    if command.executable and not command.executable.startswith("/"):
        problems.append("executable: write the whole path of the program, as a collector shows it")
    if not (command.client or command.executable):
        # What only knows the password, and what only calls itself something, is what reconciliation is to find.
        problems.append("client: say where it connects from (an address, a network, local), or name its executable")
    for name, value in (
        ("server", command.server),
        ("executable", command.executable),
        ("application_name", command.application_name),
    ):
        problems += _text(name, value, settings.name_characters_max, required=False)
    problems += _text("reason", command.reason, settings.text_characters_max, required=True)
    if problems:
        return _invalid("the source", problems)
    standing = registry.sources.all.get(command.source)
    if standing is not None and standing.stands:
        return Rejected("conflict", f"source {command.source} is declared already; withdraw it first, or choose another name")
    if sum(1 for _ in registry.sources.standing()) >= settings.sources_max:
        return Rejected("conflict", f"{settings.sources_max} sources are declared, which is the limit; withdraw some")
    return Accepted(
        SourceDeclared(
            at_us=at_us,
            source=command.source,
            kind=command.kind,
            server=command.server,
            roles=command.roles,
            client=command.client,
            executable=command.executable,
            application_name=command.application_name,
            reason=command.reason,
            operator=operator,
            request=stamp,
        )
    )


def _withdraw_source(
    command: WithdrawSource, stamp: str, operator: str, registry: Registry, at_us: int, settings: Settings
) -> Verdict:
    if problems := _text("reason", command.reason, settings.text_characters_max, required=True):
        return _invalid("the call", problems)
    standing = registry.sources.all.get(command.source)
    if standing is None:
        return Rejected("missing", f"there is no source {_shown(command.source)}; GET /v1/sources lists those that are declared")
    if not standing.stands:
        return Rejected("conflict", f"source {command.source} is withdrawn already")
    return Accepted(SourceWithdrawn(at_us, command.source, command.reason, operator, stamp))


# -- short of a revocation -----------------------------------------------------------------------------------------------------


def _restrain(command: RestraintCommand, stamp: str, operator: str, registry: Registry, at_us: int, settings: Settings) -> Verdict:
    required = isinstance(command, ThrottleAgent | HoldAgent)
    problems = _text("reason", command.reason, settings.text_characters_max, required=required)
    if isinstance(command, ThrottleAgent) and not 1 <= command.per_minute <= settings.throttle_per_minute_max:
        problems.append(f"per_minute: write 1 to {settings.throttle_per_minute_max} statements; hold an agent that is to send none")
    if problems:
        return _invalid("the call", problems)
    agent = registry.agents.get(command.agent)
    if agent is None or not agent.known:
        return Rejected("missing", f"agent {_shown(command.agent)} is not registered; GET /v1/agents lists those that are")
    if agent.state == "retired":
        return Rejected("conflict", f"agent {agent.id} was retired for good; it can do nothing")
    restraints = registry.restraints
    match command:
        case ThrottleAgent():
            event = AgentThrottled(at_us, agent.id, command.per_minute, command.reason, operator, command.finding, stamp)
            return Accepted(event)
        case UnthrottleAgent():
            if agent.id not in restraints.throttles:
                return Rejected("conflict", f"agent {agent.id} is not throttled")
            return Accepted(AgentUnthrottled(at_us, agent.id, command.reason, operator, stamp))
        case HoldAgent():
            return Accepted(AgentHeld(at_us, agent.id, command.reason, operator, command.finding, stamp))
        case ReleaseAgent():
            if agent.id not in restraints.holds:
                return Rejected("conflict", f"agent {agent.id} is not held; there is nothing to release")
            return Accepted(AgentReleased(at_us, agent.id, command.reason, operator, stamp))
        case _:
            assert_never(command)


def _choose(
    command: ChooseResponse, stamp: str, operator: str, registry: Registry, known: Known, at_us: int, settings: Settings
) -> Verdict:
    problems: list[str] = []
    if command.detector != EVERY and command.detector not in known.detectors:
        # A misspelt name would answer nothing, and nobody would notice.
        problems.append(f'detector: there is none of this name; write "*", or one of {", ".join(sorted(known.detectors))}')
    if command.agent != EVERY and command.agent not in registry.agents:
        problems.append(f'agent: {_shown(command.agent)} is not registered; write "*" for every agent')
    if command.response != "observe" and (instead := known.unanswered.get(command.detector)):
        problems.append(f"detector: what {command.detector} finds is no agent's, and nothing would answer it; {instead}")
    if command.response not in RESPONSES:
        problems.append(f"response: write one of {', '.join(RESPONSES)}")
    if problems:
        return _invalid("the response", problems)
    chosen = registry.restraints.chosen
    if (command.detector, command.agent) not in chosen and len(chosen) >= settings.responses_max:
        return Rejected("conflict", f"{settings.responses_max} responses are chosen, which is the limit")
    return Accepted(ResponseChosen(at_us, command.detector, command.agent, command.response, operator, stamp))


# -- validation ------------------------------------------------------------------------------------------------------------------


def scope_problems(scope: Scope, known: Known, settings: Settings = Settings()) -> list[str]:
    """All that is wrong with a scope, each as `field: what to write`."""
    problems: list[str] = []
    if scope.connection not in known.connections:
        there_are = _listed(known.connections)
        problems.append(f"scope.connection: {_shown(scope.connection)} is not configured; configured are {there_are}")
    if not (scope.rules or scope.functions or scope.channels or scope.introspection):
        problems.append("scope.rules: the scope allows nothing; write at least one rule")
    if len(scope.rules) > settings.rules_max:
        problems.append(f"scope.rules: write at most {settings.rules_max}")
    for index, rule in enumerate(scope.rules[: settings.rules_max]):
        problems += _rule_problems(f"scope.rules[{index}]", rule, settings)
    problems += _names("scope.functions", scope.functions, settings.functions_max, settings.identifier_bytes_max, qualified=True)
    problems += _names("scope.channels", scope.channels, settings.channels_max, settings.identifier_bytes_max)
    return problems


def _rule_problems(where: str, rule: Rule, settings: Settings) -> list[str]:
    problems: list[str] = []
    if not _identifier(rule.schema, settings.identifier_bytes_max) or rule.schema == "*":
        problems.append(f"{where}.schema: {_shown(rule.schema)} is no schema's name; name one, a rule is for one schema")
    if not rule.tables:
        problems.append(f'{where}.tables: empty; name tables, or "*" for every table of the schema')
    problems += _names(f"{where}.tables", rule.tables, settings.tables_max, settings.identifier_bytes_max)
    if not rule.operations:
        problems.append(f"{where}.operations: empty; choose of {', '.join(OPERATIONS)}")
    if unknown := [operation for operation in rule.operations if operation not in OPERATIONS]:
        named = ", ".join(_shown(operation) for operation in unknown[:5])
        problems.append(f"{where}.operations: {named} is no operation; choose of {', '.join(OPERATIONS)}")
    if len(set(rule.operations)) != len(rule.operations):
        problems.append(f"{where}.operations: name each once")
    return problems


def _names(where: str, names: tuple[str, ...], count_max: int, bytes_max: int, *, qualified: bool = False) -> list[str]:
    problems: list[str] = []
    if len(names) > count_max:
        problems.append(f"{where}: write at most {count_max}")
    for name in names[:count_max]:
        if qualified:
            schema, dot, function = name.partition(".")
            if not (dot and _identifier(schema, bytes_max) and _identifier(function, bytes_max)):
                problems.append(f"{where}: {_shown(name)} must be written schema.name")
        elif not _identifier(name, bytes_max):
            problems.append(f"{where}: {_shown(name)} cannot be a name in PostgreSQL")
    return problems


def _identifier(name: str, bytes_max: int) -> bool:
    return bool(name) and name.isprintable() and len(name.encode("utf-8", "surrogatepass")) <= bytes_max


def _text(name: str, value: str, characters_max: int, *, required: bool) -> list[str]:
    if required and not value.strip():
        return [f"{name}: missing; write a sentence that another operator will understand"]
    if len(value) > characters_max:
        return [f"{name}: at most {characters_max} characters"]
    # Control characters forge lines in a terminal, and bidirectional ones turn a sentence round.
    if not value.replace("\n", "").isprintable():
        return [f"{name}: holds characters that cannot be printed"]
    return []


def _name(field: str, value: str, characters_max: int) -> list[str]:
    """A name from a token or from the record, compared byte for byte."""
    if not value:
        return [f"{field}: missing; write it as GET /v1/sessions shows it"]
    if len(value) > characters_max or not value.isprintable():
        return [f"{field}: at most {characters_max} characters, all of which can be printed"]
    return []


def _invalid(what: str, problems: list[str]) -> Rejected:
    many = f"{what} has {len(problems)} problems: {problems[0]}" if len(problems) > 1 else problems[0]
    return Rejected("invalid", many, tuple(problems))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"


def _plain(text: str) -> str:
    """Words that hold names from outside, fit for a message."""
    return json.dumps(text[:160])[1:-1].replace('\\"', '"')


def _shown(name: str) -> str:
    """A name from outside, fit for a message: quoted, escaped and short."""
    return json.dumps(name[:80])
