"""Carries out operators' commands one after the other: decided, recorded, and only then true.

The order of the log is the order of the decisions, and what one call recorded the next one sees. The registry never runs ahead of
the log: an event is applied at the moment in which it is known to be on disk, however long that takes.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from identity import agent_keys, commands
from identity.commands import Command, Fresh, Known, RegisterAgent, Rejected, Repeated, ReplaceKey, RequestGrant, Requests
from identity.registry import Registry, key_of
from ingest.events import IdentityEvent
from ingest.log import LogUnavailable
from ingest.recorder import Recorder

GRANT_ID_BYTES: Final = 10  # 80 random bits: sixteen letters of base32


@dataclass(frozen=True, slots=True)
class Settings:
    record_seconds_max: float = 5.0  # a command waits this long for the disk; afterwards its outcome is unknown
    waiting_max: int = 64  # commands in the queue; the log takes one in a few milliseconds
    commands: commands.Settings = field(default_factory=commands.Settings)


@dataclass(frozen=True, slots=True)
class GivenKey:
    """A key that was made elsewhere."""

    key_id: str
    scram_verifier: str


@dataclass(frozen=True, slots=True)
class Done:
    event: IdentityEvent
    repeated: bool  # the event is that of an earlier call with the same Idempotency-Key
    key: str = field(default="", repr=False)  # a new agent key in clear: here, once, and nowhere else


@dataclass(frozen=True, slots=True)
class Unrecorded:
    reason: str
    may_follow: bool  # it was handed over: it is recorded, and true, as soon as the log takes records again


Outcome: TypeAlias = Done | Rejected | Unrecorded


class Registrar:
    """The only writer of topic `identity`. One a process, on the recorder's loop; calls may overlap."""

    def __init__(
        self, registry: Registry, recorder: Recorder, known: Known, now_us: Callable[[], int], settings: Settings = Settings()
    ) -> None:
        self._registry = registry
        self._requests = Requests(settings.commands.requests_max)
        self._recorder = recorder
        self._known = known
        self._now_us = now_us
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._ticket = 0  # of the newest command's event

    @property
    def registry(self) -> Registry:
        return self._registry

    def apply(self, event: IdentityEvent) -> None:
        """Take in an event that is in the log: all of them at start, in their order, before the first command."""
        self._registry.apply(event)
        self._requests.apply(event)

    async def carry_out(self, command: Command, idempotency_key: str, operator: str, given_key: GivenKey | None = None) -> Outcome:
        """Return once the event is on disk and the registry shows it. `given_key`: take this one where the command makes a key."""
        if self._waiting >= self._settings.waiting_max:
            return Unrecorded(f"{self._waiting} commands are waiting for the log", may_follow=False)
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                return await self._carry_out(command, idempotency_key, operator, given_key)
        finally:
            self._waiting -= 1

    async def _carry_out(self, command: Command, idempotency_key: str, operator: str, given_key: GivenKey | None) -> Outcome:
        # What is decided before an earlier event has found its place would be decided on a state that may not come to be.
        if self._recorder.durable < self._ticket:
            return Unrecorded("an earlier command is still waiting for the log", may_follow=False)
        fresh, key = _fresh(command, given_key)
        verdict = commands.decide(
            command,
            idempotency_key,
            operator,
            self._registry,
            self._requests,
            self._known,
            fresh,
            self._now_us(),
            self._settings.commands,
        )
        if isinstance(verdict, Rejected):
            return verdict
        if isinstance(verdict, Repeated):
            return Done(verdict.event, repeated=True)
        if not self._recorder.available:
            return Unrecorded(self._recorder.state().reason, may_follow=False)
        event = verdict.event
        durable = asyncio.Event()

        def recorded() -> None:
            self.apply(event)
            durable.set()

        try:
            self._ticket = self._recorder.record("identity", key_of(event), event)
        except LogUnavailable as error:
            return Unrecorded(str(error), may_follow=False)
        self._recorder.when_durable(self._ticket, recorded)
        try:
            async with asyncio.timeout(self._settings.record_seconds_max):
                await durable.wait()
        except TimeoutError:
            return Unrecorded(f"the log did not take the event within {self._settings.record_seconds_max:g} s", may_follow=True)
        return Done(event, repeated=False, key=key)


def _fresh(command: Command, given_key: GivenKey | None) -> tuple[Fresh, str]:
    match command:
        case RegisterAgent(key=True) | ReplaceKey():
            if given_key is not None:
                return Fresh(key_id=given_key.key_id, scram_verifier=given_key.scram_verifier), ""
            key, key_id, verifier = agent_keys.create()
            return Fresh(key_id=key_id, scram_verifier=verifier), key
        case RequestGrant():
            return Fresh(grant="g-" + base64.b32encode(secrets.token_bytes(GRANT_ID_BYTES)).decode("ascii").lower()), ""
        case _:
            return Fresh(), ""
