"""In come signed claims and the rules of their issuer; out comes the agent that acts, or why there is none.

The agent is always the one that acts: the client, or the outermost `act`. A person's `sub` beside it is on whose behalf. What no
rule explains is refused, so that nobody is blamed for what an agent did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from typing import Final, TypeAlias

from identity.principal import LABEL_CHARACTERS_MAX, MINT, Principal
from identity.refusal import Refusal
from identity.roles import Role, widest
from identity.settings import IssuerRules, Path
from identity.strict_json import Json, Object
from identity.tokens import IDENTIFIER_CHARACTERS_MAX, SignedClaims, at, shown

AgentOf: TypeAlias = Callable[[str, str, str], "str | None"]
"""(issuer, client, subject) to the registered agent. An agent with a pinned subject is found with that subject only, and one
without is found with any, "" included: `Registry.agent_of`."""

ACTORS_MAX: Final = 8  # hops of one delegation; three are rare
GROUPS_MAX: Final = 512  # 8 KB hold hardly more

_OPERATOR_MINT: Final = object()


@dataclass(frozen=True, slots=True)
class OperatorClaims:
    """A person who may give commands, as a token proved it. Only `operator` makes it."""

    id: str  # `<row>:<sub>`; what events record, and what approving one's own request is told by
    name: str  # to be shown, never compared: a person may change it
    subject: str
    issuer: str
    groups: tuple[str, ...]
    expires_at_us: int
    role: Role
    mint: InitVar[object]

    def __post_init__(self, mint: object) -> None:
        if mint is not _OPERATOR_MINT:
            raise TypeError("OperatorClaims are made by identity.claims.operator, from signed claims")


@dataclass(frozen=True, slots=True)
class _Actor:
    subject: str
    client: str  # "" when the act names none
    issuer: str  # "" when the act names none: then the token's

    @property
    def name(self) -> str:
        return self.client or self.subject


def principal(signed: SignedClaims, rules: IssuerRules, agent_of: AgentOf) -> Principal | Refusal:
    claims = _of(signed, rules)
    subject = _text(claims, ("sub",))
    if isinstance(subject, Refusal):
        return subject
    chain = _chain(claims, rules)
    if isinstance(chain, Refusal):
        return chain
    client = _client(claims, rules, delegated=bool(chain))
    if isinstance(client, Refusal):
        return client
    if chain:
        acting = _delegated(claims, rules, subject, client, chain, agent_of)
    else:
        acting = _direct(claims, rules, subject, client, agent_of)
    if isinstance(acting, Refusal):
        return acting
    groups = _groups(claims, rules)
    if isinstance(groups, Refusal):
        return groups
    invocation = _label(claims, rules.invocation)
    if isinstance(invocation, Refusal):
        return invocation
    task = _label(claims, rules.task)
    if isinstance(task, Refusal):
        return task
    return Principal(
        agent=acting.agent,
        subject=subject,
        issuer=rules.issuer,
        client=client or acting.client,
        method="token",
        credential=signed.credential,
        on_behalf_of=acting.on_behalf_of,
        actors=tuple(actor.name for actor in chain) or acting.actors,
        invocation=invocation,
        task=task,
        groups=groups,
        expires_at_us=signed.expires_at_us,
        mint=MINT,
    )


def operator(signed: SignedClaims, rules: IssuerRules) -> OperatorClaims | Refusal:
    """The person behind a token, if a person, and not an agent for her, presents it, and she is in a group of operators."""
    claims = _of(signed, rules)
    groups_of_role = rules.groups_of_role()
    if not groups_of_role:
        return Refusal(f"issuer {rules.name} names no operator groups")
    subject = _text(claims, ("sub",))
    if isinstance(subject, Refusal):
        return subject
    client = _client(claims, rules, delegated=False)
    if isinstance(client, Refusal):
        return client
    groups = _groups(claims, rules)
    if isinstance(groups, Refusal):
        return groups
    if "act" in claims or (rules.actor and at(claims, rules.actor) is not None):
        return Refusal("an agent acts here for the person; operators come themselves")
    if client not in rules.operator_clients:
        # An agent's exchanged token holds the person's sub and groups; its client is all that differs.
        return Refusal(f"client {shown(client)} is not one that operators use")
    if rules.workload or _own_account(claims, rules, subject, client):
        return Refusal("this is a client's own account, not a person's")
    role = widest(role for role, some in groups_of_role.items() if not some.isdisjoint(groups))
    if role is None:
        return Refusal(f"{shown(subject)} is in no group of operators")
    said = [claims.get(claim) for claim in ("preferred_username", "name")]
    names = [text for text in said if isinstance(text, str) and 0 < len(text) <= LABEL_CHARACTERS_MAX and text.isprintable()]
    return OperatorClaims(
        id=f"{rules.name}:{subject}",
        name=names[0] if names else subject,
        subject=subject,
        issuer=rules.issuer,
        groups=groups,
        expires_at_us=signed.expires_at_us,
        role=role,
        mint=_OPERATOR_MINT,
    )


@dataclass(frozen=True, slots=True)
class _Acting:
    agent: str
    client: str
    on_behalf_of: str = ""
    actors: tuple[str, ...] = ()


def _direct(claims: Object, rules: IssuerRules, subject: str, client: str, agent_of: AgentOf) -> _Acting | Refusal:
    """Nobody is named as acting: the client for itself, or, in Keycloak after an exchange, the client for a person."""
    if not client:
        return Refusal("the token names no client")
    pinned = _pinned(claims, rules)
    if isinstance(pinned, Refusal):
        return pinned
    agent = agent_of(rules.issuer, client, pinned)
    proven_own = rules.pinned == (("sub",),) and agent is not None and agent_of(rules.issuer, client, "") != agent
    if rules.workload or proven_own or _own_account(claims, rules, subject, client):
        return _Acting(agent, client) if agent is not None else _unregistered(client, pinned)
    if rules.without_act == "refuse":
        return Refusal(
            f"sub {shown(subject)} is not known as the own account of client {shown(client)}, and no act says who acts: pin the"
            " agent's subject, or set own_account_claim or without_act in the issuer's row"
        )
    person = _text(claims, rules.on_behalf_of)
    if isinstance(person, Refusal):
        return person
    agent = agent_of(rules.issuer, client, "")  # no pin fits: sub is the person's
    return _Acting(agent, client, person, (client,)) if agent is not None else _unregistered(client, "")


def _delegated(
    claims: Object, rules: IssuerRules, subject: str, client: str, chain: tuple[_Actor, ...], agent_of: AgentOf
) -> _Acting | Refusal:
    """RFC 8693 §4.1: the outermost `act` acts now; the ones inside are history and decide nothing."""
    actor = chain[0]
    if actor.issuer and actor.issuer != rules.issuer:
        # compared before lookup, else an actor of issuer A matches an agent of issuer B
        return Refusal(f"act comes from another issuer, {shown(actor.issuer)}")
    if actor.client and client and actor.client != client:
        return Refusal(f"act names client {shown(actor.client)}, the token was given to {shown(client)}")
    name = actor.client or client or actor.subject
    agent = agent_of(rules.issuer, name, actor.subject)
    if agent is None:
        return _unregistered(name, actor.subject)
    if not actor.client and not _is_account_of(actor.subject, name, rules) and agent_of(rules.issuer, name, "") == agent:
        # Somebody acts whose tie to this client nobody has stated: revoking the real actor would not stop it.
        return Refusal(
            f"act.sub {shown(actor.subject)} is not known as the account of client {shown(name)}: pin the agent's subject"
        )
    if actor.subject == subject:
        return _Acting(agent, name)  # Keycloak's mapper writes act into the agent's own token too
    person = _text(claims, rules.on_behalf_of)
    return person if isinstance(person, Refusal) else _Acting(agent, name, person)


def _own_account(claims: Object, rules: IssuerRules, subject: str, client: str) -> bool:
    if rules.own_account_claim and at(claims, rules.own_account_claim) is not None:
        return True
    return _is_account_of(subject, client, rules)


def _is_account_of(subject: str, client: str, rules: IssuerRules) -> bool:
    # RFC 9068 §2.2: where no resource owner is involved, sub is an identifier of the client
    return bool(client) and subject in (client, client + rules.own_account_suffix)


def _of(signed: SignedClaims, rules: IssuerRules) -> Object:
    if signed.rules != rules:
        raise ValueError(f"claims that were verified for {signed.rules.name} are read by the rules of {rules.name}")
    return signed.claims


def _client(claims: Object, rules: IssuerRules, *, delegated: bool) -> str | Refusal:
    """The value of the alternatives that are there; "" when none is."""
    found: str = ""
    for path in rules.agent:
        # Spring: sub is the client's id, until there is an act: then it is the person's
        if at(claims, path) is None or (delegated and path == ("sub",)):
            continue
        value = _text(claims, path)
        if isinstance(value, Refusal):
            return value
        if found and value != found:
            return Refusal(f"the token names two clients, {shown(found)} and {shown(value)}")
        found = value
    return found


def _pinned(claims: Object, rules: IssuerRules) -> str | Refusal:
    values: list[str] = []
    for path in rules.pinned:
        value = _text(claims, path)
        if isinstance(value, Refusal):
            return value
        if " " in value and len(rules.pinned) > 1:
            return Refusal(f"{'.'.join(path)} holds a space, so that it cannot be told from its neighbour")
        values.append(value)
    return " ".join(values)


def _chain(claims: Object, rules: IssuerRules) -> tuple[_Actor, ...] | Refusal:
    """The actors, the one acting now first. `may_act` is not looked at: it lets somebody ask the issuer, and is no act."""
    value = at(claims, rules.actor) if rules.actor else None
    if value is None:
        return Refusal("the token has an act, which its row does not allow") if "act" in claims else ()
    if isinstance(value, str):
        value = {"sub": value}
    chain: list[_Actor] = []
    while value is not None:
        if len(chain) == ACTORS_MAX:
            return Refusal(f"act is nested deeper than {ACTORS_MAX}")
        if not isinstance(value, Mapping):
            return Refusal("act is not an object")
        subject = _text(value, ("sub",))
        client = _text(value, ("client_id",)) if "client_id" in value else ""
        issuer = _text(value, ("iss",)) if "iss" in value else ""
        for part in (subject, client, issuer):
            if isinstance(part, Refusal):
                return Refusal(f"in act: {part.reason}")
        chain.append(_Actor(str(subject), str(client), str(issuer)))
        value = value.get("act")
    return tuple(chain)


def _groups(claims: Object, rules: IssuerRules) -> tuple[str, ...] | Refusal:
    """No claim is no groups. A leading slash is part of the name: Keycloak's full paths."""
    value = at(claims, rules.groups) if rules.groups else None
    if value is None:
        return ()
    if isinstance(value, str):
        value = tuple(value.split(rules.group_separator)) if rules.group_separator else (value,)
    name = ".".join(rules.groups)
    if not isinstance(value, tuple):
        return Refusal(f"{name} is neither a string nor an array")
    if len(value) > GROUPS_MAX:
        return Refusal(f"{name} holds more than {GROUPS_MAX} groups")
    found: list[str] = []
    for item in value:
        if not isinstance(item, str) or len(item) > IDENTIFIER_CHARACTERS_MAX or (item and not item.isprintable()):
            return Refusal(f"{name} holds what is no group's name")
        if item and item not in found:
            found.append(item)
    return tuple(found)


def _label(claims: Object, path: Path) -> str | Refusal:
    """What a run or a task is called. The agent may have chosen it (`task`, request tags): for the record, never authority."""
    value = at(claims, path) if path else None
    items = value if isinstance(value, tuple) else (value,)  # Keycloak's parameterized scope gives an array
    texts = [_label_text(item) for item in items if item is not None]
    label = ",".join(text for text in texts if text is not None)
    if None in texts or len(label) > LABEL_CHARACTERS_MAX or (label and not label.isprintable()):
        return Refusal(f"{'.'.join(path)} is not a printable text of at most {LABEL_CHARACTERS_MAX} characters")
    return label


def _label_text(value: Json) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _text(claims: Object, path: Path) -> str | Refusal:
    """An identifier. Compared byte for byte later, so nothing is trimmed, folded or normalised here."""
    value = at(claims, path)
    if isinstance(value, str) and 0 < len(value) <= IDENTIFIER_CHARACTERS_MAX and value.isprintable():
        return value
    return Refusal(f"{'.'.join(path)} is not a printable string of a fair length")


def _unregistered(client: str, subject: str) -> Refusal:
    # Keycloak: a client that was deleted and made anew has its old name and a new sub; a renamed one the reverse
    return Refusal(f"no agent is registered for client {shown(client)} with subject {shown(subject)}")
