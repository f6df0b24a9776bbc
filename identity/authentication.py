"""In comes a bearer token; out comes the principal or the operator that it proves, under the first row that explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from identity import claims, tokens
from identity.claims import AgentOf, OperatorClaims
from identity.keys import JwksCache
from identity.principal import Principal
from identity.refusal import Refusal
from identity.settings import IssuerRules
from identity.tokens import SignedClaims

_Proven = TypeVar("_Proven", Principal, OperatorClaims)


async def principal(
    token: str, rows: Iterable[IssuerRules], cache: JwksCache, agent_of: AgentOf, now_us: int, certificate_sha256: bytes = b""
) -> Principal | Refusal:
    return await _first(token, rows, cache, now_us, certificate_sha256, lambda signed, row: claims.principal(signed, row, agent_of))


async def operator(
    token: str, rows: Iterable[IssuerRules], cache: JwksCache, now_us: int, certificate_sha256: bytes = b""
) -> OperatorClaims | Refusal:
    people = [row for row in rows if row.groups_of_role()]
    return await _first(token, people, cache, now_us, certificate_sha256, claims.operator)


async def _first(
    token: str,
    rows: Iterable[IssuerRules],
    cache: JwksCache,
    now_us: int,
    certificate_sha256: bytes,
    read: Callable[[SignedClaims, IssuerRules], _Proven | Refusal],
) -> _Proven | Refusal:
    peeked = tokens.peek(token)
    if isinstance(peeked, Refusal):
        return peeked
    fitting = tokens.rows_for(peeked, rows)
    if isinstance(fitting, Refusal):
        return fitting
    reasons: list[str] = []
    for row in fitting:  # two rows may share an issuer: agents in one, people in the other
        keys = await cache.keys(row, peeked.kid)
        signed = keys if isinstance(keys, Refusal) else tokens.verify(token, row, keys, now_us, certificate_sha256)
        proven = signed if isinstance(signed, Refusal) else read(signed, row)
        if not isinstance(proven, Refusal):
            return proven
        reasons.append(f"{row.name}: {proven.reason}")
    return Refusal("; ".join(reasons))
