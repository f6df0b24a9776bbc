"""Carries out what operators say of findings, one after the other: decided, recorded, and only then true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, TypeAlias, get_args

from analytics import triage
from analytics.triage import Findings, Repeated, Triage, TriageEvent
from identity.commands import Rejected
from ingest.events import FindingEvent
from ingest.follow import Follower
from ingest.log import EventLog, LogUnavailable
from ingest.recorder import Recorder

RETRY_SECONDS: Final = 0.25
_FINDING_EVENTS: Final = get_args(FindingEvent)


@dataclass(frozen=True, slots=True)
class Settings:
    record_seconds_max: float = 5.0  # a command waits this long for the disk; afterwards its outcome is unknown
    read_seconds_max: float = 5.0  # and this long until all is read that was in the log before it
    waiting_max: int = 64
    triage: triage.Settings = field(default_factory=triage.Settings)


@dataclass(frozen=True, slots=True)
class Done:
    event: TriageEvent
    repeated: bool


@dataclass(frozen=True, slots=True)
class Unrecorded:
    reason: str


Outcome: TypeAlias = Done | Rejected | Unrecorded


class Triager:
    """One a process, on the recorder's loop; calls may overlap. `run` follows the log, which also holds what detectors find."""

    def __init__(
        self,
        log: EventLog,
        recorder: Recorder,
        detectors: Collection[str],
        now_us: Callable[[], int],
        settings: Settings = Settings(),
    ) -> None:
        self._log = log
        self._recorder = recorder
        self._detectors = detectors
        self._now_us = now_us
        self._settings = settings
        self._findings = Findings(settings.triage)
        self._follower: Follower | None = None
        self._changed = asyncio.Condition()
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            LogCorrupt: The findings cannot be read.
        """
        while True:
            try:
                self._follower = follower = Follower(self._log, ("findings",), {}, on_gap=lambda _: None)
                try:
                    while True:
                        for _, frame in await follower.poll():
                            for _, event in frame.events:
                                if isinstance(event, _FINDING_EVENTS):
                                    self._findings.apply(event)
                        async with self._changed:
                            self._changed.notify_all()
                finally:
                    follower.close()
            except LogUnavailable:
                self._findings = Findings(self._settings.triage)
                await asyncio.sleep(RETRY_SECONDS)

    async def carry_out(self, command: Triage, idempotency_key: str, operator: str) -> Outcome:
        """Return once the event is on disk."""
        if self._waiting >= self._settings.waiting_max:
            return Unrecorded(f"{self._waiting} commands are waiting for the log")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                return await self._carry_out(command, idempotency_key, operator)
        finally:
            self._waiting -= 1

    async def _carry_out(self, command: Triage, idempotency_key: str, operator: str) -> Outcome:
        # What an earlier command recorded is in the log, and so decided on only once it is read.
        if not await self._read_up():
            return Unrecorded("the findings in the log are not read yet")
        verdict = triage.decide(
            command, idempotency_key, operator, self._findings, self._detectors, self._now_us(), self._settings.triage
        )
        if isinstance(verdict, Rejected):
            return verdict
        if isinstance(verdict, Repeated):
            return Done(verdict.event, repeated=True)
        if not self._recorder.available:
            return Unrecorded(self._recorder.state().reason)
        try:
            ticket = self._recorder.record("findings", verdict.event.agent, verdict.event)
            async with asyncio.timeout(self._settings.record_seconds_max):
                await self._recorder.recorded(ticket)
        except LogUnavailable as error:
            return Unrecorded(str(error))
        except TimeoutError:
            return Unrecorded(f"the log did not take the event within {self._settings.record_seconds_max:g} s")
        return Done(verdict.event, repeated=False)

    async def _read_up(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.read_seconds_max):
                ends = await self._log.offsets("findings")

                def read() -> bool:
                    follower = self._follower
                    return follower is not None and all(follower.offsets.get(place, 0) >= end for place, end in ends.items())

                async with self._changed:
                    await self._changed.wait_for(read)
        except (TimeoutError, LogUnavailable):
            return False
        return True
