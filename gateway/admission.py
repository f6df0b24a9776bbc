"""Credentials in, a Principal out, or why not. The only place where the gateway learns who somebody is."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gateway.channel import Channel
from gateway.settings import GatewaySettings
from gateway.stamp import Request
from gateway.wire import messages
from gateway.wire.messages import ProtocolViolation
from gateway.wire.scram import ScramRefused, ScramServer
from identity import agent_keys, authentication
from identity.agent_keys import Verifier
from identity.keys import JwksCache
from identity.principal import Principal, ProvenKey, labelled, of_key
from identity.refusal import Refusal
from identity.registry import Agent, Registry
from identity.settings import IssuerRules

NowUs: TypeAlias = Callable[[], int]

_SASL_BYTES_MAX: Final = 4_096  # one SCRAM message; PostgreSQL allows 1,024


@dataclass(frozen=True, slots=True)
class Denied:
    """`reason` is for the record; the peer gets `told` under `sqlstate`."""

    sqlstate: str
    told: str
    reason: str
    method: str
    agent: str = ""  # where it was proven


class Admission:
    """Owned by one event loop. Names that do not exist look like names that do."""

    def __init__(
        self, registry: Registry, issuers: Mapping[str, IssuerRules], keys: JwksCache, settings: GatewaySettings, now_us: NowUs
    ) -> None:
        self._registry = registry
        self._issuers = issuers
        self._keys = keys
        self._settings = settings
        self._now_us = now_us
        self._decoy_seed = secrets.token_bytes(32)

    async def prove(self, channel: Channel, asked: Request, channel_binding: bytes | None, encrypted: bool) -> Principal | Denied:
        """Ask the client for its credential and check it. Raises PeerGone, ProtocolViolation, ValueError (message too long)."""
        agent = self._registry.agents.get(asked.user)
        method = self._method(asked.user, agent)
        if method == "token":
            if not encrypted:
                told = "a token travels over TLS only: connect with sslmode=require or better"
                return Denied("28000", told, told, "token")
            proven = await self._token(channel, asked)
        else:
            proven = await self._key(channel, asked, agent, channel_binding)
        if isinstance(proven, Denied):
            return proven
        named = labelled(proven, **asked.labels)
        if isinstance(named, Refusal):
            return Denied("28000", named.reason, named.reason, method, proven.agent)
        return named

    def _method(self, user: str, agent: Agent | None) -> Literal["token", "scram"]:
        if agent is not None and (agent.scram_verifier or agent.client):
            return "scram" if agent.scram_verifier else "token"
        # Asked twice, an unknown name gets the same question; asked about two, neither kind stands out.
        coin = hmac.digest(self._decoy_seed, user.encode("utf-8"), "sha256")[0] & 1
        return "token" if self._issuers and coin else "scram"

    async def _key(
        self, channel: Channel, asked: Request, agent: Agent | None, channel_binding: bytes | None
    ) -> Principal | Denied:
        verifier = self._verifier(asked.user, agent)
        server = ScramServer(verifier, secrets.token_urlsafe(18), channel_binding)
        channel.write(messages.authentication_sasl(server.mechanisms()))
        mechanism, first = messages.read_sasl_initial_response(await _password(channel, _SASL_BYTES_MAX))
        try:
            channel.write(messages.authentication_sasl_continue(server.start(mechanism, first)))
            proof = server.finish(await _password(channel, _SASL_BYTES_MAX))
        except ScramRefused as refused:
            return _failed(asked.user, str(refused) if agent is not None else "no agent of this name", "scram")
        if agent is None:
            return _failed(asked.user, "no agent of this name", "scram")
        channel.write(messages.authentication_sasl_final(proof.server_final))
        return of_key(ProvenKey(agent.id, agent.key_id, verifier.stored_key, proof.client_key))

    def _verifier(self, user: str, agent: Agent | None) -> Verifier:
        if agent is not None and agent.scram_verifier:
            parsed = agent_keys.parse_verifier(agent.scram_verifier)
            if isinstance(parsed, Verifier):
                return parsed
        return agent_keys.decoy(user, self._decoy_seed)

    async def _token(self, channel: Channel, asked: Request) -> Principal | Denied:
        channel.write(messages.AUTHENTICATION_CLEARTEXT_PASSWORD)
        body = await _password(channel, self._settings.authentication_bytes_max)
        token = body[:-1].decode("ascii", "replace") if body[-1:] == b"\0" else ""
        if not token:
            return Denied("28P01", "the password is empty: it must be an access token", "empty password", "token")
        proven = await authentication.principal(token, self._issuers.values(), self._keys, self._registry.agent_of, self._now_us())
        if isinstance(proven, Refusal):
            return _failed(asked.user, proven.reason, "token")
        if proven.agent != asked.user:
            # The name decides nothing, but a client that is mistaken about itself must not act under another's name unawares.
            return _failed(asked.user, f"the token is of agent {proven.agent}, the startup packet names {asked.user}", "token")
        return proven


async def _password(channel: Channel, bytes_max: int) -> bytes:
    kind, body = await channel.read_message(bytes_max)
    if kind != b"p":
        raise ProtocolViolation(f"expected a password message, got type {kind!a}")
    return body


def _failed(user: str, reason: str, method: str) -> Denied:
    shown = user if user.isprintable() else ascii(user)
    return Denied("28000", f"authentication of agent {shown[:63]} failed", reason, method)
