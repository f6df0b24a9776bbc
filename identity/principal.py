"""A proven identity. In comes a proof (signed claims, or a SCRAM exchange), out comes the name that sessions act under."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import InitVar, dataclass
from typing import Final, Literal, TypeAlias

from identity.refusal import Refusal

Method: TypeAlias = Literal["token", "scram"]

LABEL_CHARACTERS_MAX: Final = 256
"""An invocation, a task, a person's name: enough for a URL or an ARN, too little to fill a frame."""

MINT: Final = object()
"""What a Principal is struck with. Only identity/claims.py and `of_key` below use it; a test reads the sources to keep it so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Only a Principal opens a session, and only `claims.principal` and `of_key` make one."""

    agent: str  # the registered name; what locks, quotas and grants hang on. For a delegated token: the actor
    subject: str  # the token's `sub`, or `key:<key id>`
    issuer: str  # "" for an agent key
    client: str  # the token's client; "" for an agent key
    method: Method
    credential: str  # key id, or the SHA-256 of the token's jti in hex
    on_behalf_of: str = ""  # "" when nobody is named
    actors: tuple[str, ...] = ()  # RFC 8693 §4.1 `act` chain, outermost (the one acting now) first
    invocation: str = ""
    task: str = ""
    unverified: tuple[str, ...] = ()  # which of on_behalf_of, invocation, task are the client's own word
    groups: tuple[str, ...] = ()
    expires_at_us: int = 0  # 0 = none
    mint: InitVar[object]

    def __post_init__(self, mint: object) -> None:
        if mint is not MINT:
            raise TypeError("a Principal is made by identity.claims.principal or identity.principal.of_key, from a proof")


@dataclass(frozen=True, slots=True)
class ProvenKey:
    """A SCRAM exchange that held: the peer's proof gave the ClientKey behind the agent's StoredKey.

    Made by the SCRAM server; the ClientKey is looked at and not kept.

    Raises:
        ValueError: `client_key` is not the key behind `stored_key`. Check the exchange first: this is the last line.
    """

    agent: str
    key_id: str
    stored_key: InitVar[bytes]
    client_key: InitVar[bytes]

    def __post_init__(self, stored_key: bytes, client_key: bytes) -> None:
        # RFC 5802 §3: StoredKey := H(ClientKey)
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), stored_key):
            raise ValueError("the client key does not belong to the stored key")
        if not self.agent or not self.key_id:
            raise ValueError("a proven key has an agent and a key id")


def of_key(proven: ProvenKey) -> Principal:
    return Principal(
        agent=proven.agent,
        subject=f"key:{proven.key_id}",
        issuer="",
        client="",
        method="scram",
        credential=proven.key_id,
        mint=MINT,
    )


def labelled(principal: Principal, *, on_behalf_of: str = "", invocation: str = "", task: str = "") -> Principal | Refusal:
    """Add what the client says of itself in its startup options, marked as unverified.

    A signed claim wins: the client's word for the same thing is dropped. Labels are for the record, never authority.
    """
    signed = {"on_behalf_of": principal.on_behalf_of, "invocation": principal.invocation, "task": principal.task}
    said = {"on_behalf_of": on_behalf_of, "invocation": invocation, "task": task}
    for name, value in said.items():
        if len(value) > LABEL_CHARACTERS_MAX:
            return Refusal(f"the startup option pgwarden.{name} is longer than {LABEL_CHARACTERS_MAX} characters")
        if value and not value.isprintable():
            return Refusal(f"the startup option pgwarden.{name} holds characters that cannot be printed")
    added = tuple(name for name, value in said.items() if value and not signed[name])
    final = {name: said[name] if name in added else value for name, value in signed.items()}
    return Principal(
        agent=principal.agent,
        subject=principal.subject,
        issuer=principal.issuer,
        client=principal.client,
        method=principal.method,
        credential=principal.credential,
        on_behalf_of=final["on_behalf_of"],
        actors=principal.actors,
        invocation=final["invocation"],
        task=final["task"],
        unverified=(*principal.unverified, *(name for name in added if name not in principal.unverified)),
        groups=principal.groups,
        expires_at_us=principal.expires_at_us,
        mint=MINT,
    )
