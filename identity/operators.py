"""In comes an Authorization header; out comes the operator that it proves, or why it proves none."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from identity.agent_keys import is_operator_key, operator_key_sha256
from identity.claims import OperatorClaims
from identity.refusal import Refusal
from identity.roles import Role

HEADER_CHARACTERS_MAX: Final = 16_384 + len("Bearer ")  # the longest token that any row may allow


@dataclass(frozen=True, slots=True)
class Settings:
    failures_burst: int = 20  # of one peer, before it has to wait
    failures_per_minute: float = 10.0  # what comes back of that
    peers_max: int = 1024  # remembered; the one that failed longest ago goes first


@dataclass(frozen=True, slots=True)
class Operator:
    """Who gives a command. `id` is what events record and what approving one's own request is told by."""

    id: str  # the name of a key's holder, or `<issuer's row>:<sub>`
    name: str  # to be shown, never compared
    method: Literal["key", "token"]
    role: Role
    issuer: str  # the URL of who signed the token; "" with a key


@dataclass(frozen=True, slots=True)
class Holder:
    """Of an operator key, as the configuration knows them."""

    key_sha256: str  # 64 lower-case hex digits
    role: Role


@dataclass(frozen=True, slots=True)
class Throttled(Refusal):
    """This peer failed too often: its tokens are not looked at for a while. A right operator key still opens."""

    retry_after_seconds: int


ProveToken: TypeAlias = Callable[[str, int], Awaitable[OperatorClaims | Refusal]]
"""(token, now_us) to the person behind it."""


class Operators:
    """`holders` are those of keys, by their names. One a process, on one event loop."""

    def __init__(self, holders: Mapping[str, Holder], prove_token: ProveToken, settings: Settings = Settings()) -> None:
        self._keys = tuple((name, bytes.fromhex(holder.key_sha256), holder.role) for name, holder in holders.items())
        self._prove_token = prove_token
        self._settings = settings
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer -> (tokens left, when that was)

    async def authenticate(self, authorization: str, peer: str, now_us: int) -> Operator | Refusal:
        """`authorization` is the header's value, "" for none; `peer` the address that failures are counted against."""
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip(" ")
        if len(authorization) > HEADER_CHARACTERS_MAX:
            return self._failed(peer, now_us, "the Authorization header is longer than any token may be")
        if scheme.lower() != "bearer" or not credential:  # RFC 9110 §11.1: schemes know no case
            return self._failed(peer, now_us, "there is no Authorization: Bearer header")
        if is_operator_key(credential):
            operator = self._holder(credential)
            return operator or self._failed(peer, now_us, "the operator key is nobody's")
        # A key costs microseconds, a signature up to a millisecond and perhaps a request to the issuer: only this is rationed.
        if (wait := self._wait_seconds(peer, now_us)) > 0:
            return Throttled("this peer failed to authenticate too often", wait)
        person = await self._prove_token(credential, now_us)
        if isinstance(person, Refusal):
            return self._failed(peer, now_us, person.reason)
        return Operator(person.id, person.name, "token", person.role, person.issuer)

    def _holder(self, key: str) -> Operator | None:
        digest = bytes.fromhex(operator_key_sha256(key))
        # All of them are compared, each in constant time: the time tells neither whose key it was nor how near it came.
        holders = [(name, role) for name, known, role in self._keys if hmac.compare_digest(known, digest)]
        return Operator(holders[0][0], holders[0][0], "key", holders[0][1], "") if holders else None

    def _failed(self, peer: str, now_us: int, reason: str) -> Refusal:
        left = self._left(peer, now_us)
        self._failures[peer] = (max(left - 1.0, 0.0), now_us)
        self._failures.move_to_end(peer)
        if len(self._failures) > self._settings.peers_max:
            self._failures.popitem(last=False)
        if left < 1.0:
            return Throttled(reason, self._wait_seconds(peer, now_us))
        return Refusal(reason)

    def _wait_seconds(self, peer: str, now_us: int) -> int:
        missing = 1.0 - self._left(peer, now_us)
        return math.ceil(missing * 60.0 / self._settings.failures_per_minute) if missing > 0 else 0

    def _left(self, peer: str, now_us: int) -> float:
        if peer not in self._failures:
            return float(self._settings.failures_burst)
        left, at_us = self._failures[peer]
        minutes = max(now_us - at_us, 0) / 60e6  # a clock that steps back gives nothing
        return min(left + minutes * self._settings.failures_per_minute, float(self._settings.failures_burst))
