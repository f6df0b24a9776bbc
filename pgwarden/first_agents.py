"""The agents and grants of the configuration file become events, each once.

What is new in the file is registered at the next start. What somebody has changed since (revoked, retired, given another key) stays
as they left it, and what is gone from the file stays too: only an operator takes something away.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from identity import agent_keys, commands
from identity.commands import CONFIG, Rejected
from identity.refusal import Refusal
from identity.registrar import Done, GivenKey, Registrar, Unrecorded
from ingest.events import GrantRequested
from pgwarden.config import AgentConfig, GrantConfig

_log: Final = logging.getLogger("pgwarden.api")


async def register(registrar: Registrar, agents: Mapping[str, AgentConfig]) -> Unrecorded | None:
    """Give the commands that the file stands for. None when all are carried out; call it again where the log took one not."""
    for agent in agents.values():
        if (unrecorded := await _register(registrar, agent)) is not None:
            return unrecorded
    return None


async def _register(registrar: Registrar, agent: AgentConfig) -> Unrecorded | None:
    known = registrar.registry.agents.get(agent.name)
    if known is None:
        command = commands.RegisterAgent(
            agent.name, agent.description, agent.owner or CONFIG, agent.issuer, agent.client, agent.subject
        )
        outcome = await registrar.carry_out(command, f"config:agent:{agent.name}", CONFIG)
        if isinstance(outcome, Unrecorded):
            return outcome
        if isinstance(outcome, Rejected):
            _log.warning("agents.%s of the configuration was not registered: %s", agent.name, outcome.error)
            return None
    elif known.state == "retired":
        _log.warning(
            "agents.%s of the configuration was retired; the name never comes back, so remove it from the file", agent.name
        )
        return None
    elif (known.issuer, known.client, known.subject) != (agent.issuer, agent.client, agent.subject):
        _log.warning(
            "agents.%s of the configuration names another OIDC identity than the one that was registered, which stays;"
            " for a new identity register a new agent",
            agent.name,
        )
    if (key := _given_key(agent)) is not None:
        # By the key's id: the file's key is given once, and does not come back after an operator has replaced it.
        request = f"config:key:{agent.name}:{key.key_id}"
        outcome = await registrar.carry_out(commands.ReplaceKey(agent.name), request, CONFIG, key)
        if isinstance(outcome, Unrecorded):
            return outcome
    for grant in agent.grants:
        if (unrecorded := await _grant(registrar, agent.name, grant)) is not None:
            return unrecorded
    return None


async def _grant(registrar: Registrar, agent: str, grant: GrantConfig) -> Unrecorded | None:
    content = json.dumps([agent, msgspec.to_builtins(grant.scope), grant.seconds, grant.reason])
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    command = commands.RequestGrant(agent, grant.scope, grant.seconds, grant.reason or "as the configuration file says")
    outcome = await registrar.carry_out(command, f"config:grant:{digest}", CONFIG)
    if isinstance(outcome, Rejected):
        _log.warning("a grant of agents.%s of the configuration was not taken: %s", agent, outcome.error)
        return None
    if isinstance(outcome, Done) and isinstance(outcome.event, GrantRequested):
        asked = registrar.registry.grants[outcome.event.grant]
        if asked.state != "requested":
            return None  # approved at an earlier start, or taken back since
        outcome = await registrar.carry_out(commands.ApproveGrant(asked.id), f"config:approve:{asked.id}", CONFIG)
    return outcome if isinstance(outcome, Unrecorded) else None


def _given_key(agent: AgentConfig) -> GivenKey | None:
    if agent.key is not None:
        key = agent.key.reveal()
        key_id, verifier = agent_keys.key_id(key), agent_keys.verifier(key)
        if isinstance(key_id, Refusal) or isinstance(verifier, Refusal):
            raise ValueError(f"agents.{agent.name}.key is no agent key")  # the configuration has looked at it
        return GivenKey(key_id, verifier)
    if agent.key_verifier:
        return GivenKey(agent_keys.verifier_id(agent.key_verifier), agent.key_verifier)
    return None
