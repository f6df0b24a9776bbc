"""The inspection step that answers findings: what was chosen for a detector and an agent becomes an operator's command.

Only what is fresh is answered: a finding that is read again from an old log must not revoke anybody. What is muted is not answered,
nor what is nobody's, and only so much an hour: a detector gone wrong must not stop everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from analytics.inspection import Effect, Respond, Response
from analytics.settings import ResponsesSettings
from analytics.triage import EVERY_AGENT
from identity.commands import OURS, HoldAgent, RevokeAgent, ThrottleAgent
from identity.restraints import Restraints
from ingest.events import (
    FindingRaised,
    FindingsMuted,
    FindingsUnmuted,
    Frame,
    ResponseChosen,
    Topic,
)
from ingest.log import Record

LIMITED: Final = "response limit"
"""The detector that says that there were too many answers. Its own findings are never answered."""
HOUR_US: Final = 3_600_000_000
REASON_CHARACTERS_MAX: Final = 900  # of the thousand that a command takes


class _State(msgspec.Struct, array_like=True):
    chosen: list[ResponseChosen] = msgspec.field(default_factory=list)
    muted_until_us: dict[str, int] = msgspec.field(default_factory=dict)  # by detector and agent
    answered_us: list[int] = msgspec.field(default_factory=list)  # the last hour's
    told_us: int = 0  # when it was last said that the limit is reached


class Responses:
    """An Inspection."""

    name = "responses"
    version = 1
    topics: tuple[Topic, ...] = ("identity", "findings")

    def __init__(self, settings: ResponsesSettings) -> None:
        self._settings = settings
        self._state = _State()
        self._restraints = Restraints()

    def status(self) -> dict[str, int]:
        return {"answered_within_an_hour": len(self._state.answered_us)}

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    def restore(self, data: bytes) -> None:
        try:
            self._state = msgspec.msgpack.decode(data, type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not what this version keeps: {error}") from error
        for event in self._state.chosen:
            self._restraints.apply(event)

    def tick(self, now_us: int) -> Sequence[Effect]:
        return ()

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        effects: list[Effect] = []
        muted = self._state.muted_until_us
        for _, event in frame.events:
            match event:
                case ResponseChosen():
                    self._choose(event)
                case FindingsMuted():
                    muted[_name(event.detector, event.agent)] = event.until_us
                case FindingsUnmuted():
                    muted.pop(_name(event.detector, event.agent), None)
                case FindingRaised():
                    effects += self._answer(event, now_us)
                case _:
                    pass
        return effects

    def _choose(self, event: ResponseChosen) -> None:
        if self._restraints.apply(event):
            kept = [known for known in self._state.chosen if (known.detector, known.agent) != (event.detector, event.agent)]
            self._state.chosen = [*kept, event]

    def _answer(self, finding: FindingRaised, now_us: int) -> Sequence[Effect]:
        settings, state = self._settings, self._state
        if not finding.agent or finding.detector == LIMITED or now_us - finding.at_us > settings.age_seconds_max * 1_000_000:
            return ()
        muted = state.muted_until_us
        if any(muted.get(_name(finding.detector, whose), 0) > finding.at_us for whose in (finding.agent, EVERY_AGENT)):
            return ()
        command = self._command(finding)
        if command is None:
            return ()
        state.answered_us = [at_us for at_us in state.answered_us if at_us > finding.at_us - HOUR_US]
        if len(state.answered_us) >= settings.an_hour_max:
            return self._limited(finding)
        state.answered_us.append(finding.at_us)
        return (Respond(OURS + finding.finding, command),)

    def _command(self, finding: FindingRaised) -> Response | None:
        reason = f"finding {finding.finding} ({finding.detector}): {finding.summary}"[:REASON_CHARACTERS_MAX]
        match self._restraints.response(finding.detector, finding.agent):
            case "observe":
                return None
            case "throttle":
                return ThrottleAgent(finding.agent, self._settings.throttle_per_minute, reason, finding.finding)
            case "approval":
                return HoldAgent(finding.agent, reason, finding.finding)
            case "revoke":
                return RevokeAgent(finding.agent, reason, finding.finding)

    def _limited(self, finding: FindingRaised) -> Sequence[Effect]:
        state = self._state
        if finding.at_us - state.told_us < HOUR_US:
            return ()
        state.told_us = finding.at_us
        name = "f-" + hashlib.sha256(f"{LIMITED}\0{finding.finding}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
        limit = self._settings.an_hour_max
        summary = (
            f"{limit} findings were answered within an hour, which is the limit: those that follow are recorded and not answered,"
            " until fewer were; look whether a detector has gone wrong"
        )
        numbers = (("answers_an_hour", float(limit)),)
        return (FindingRaised(finding.at_us, name, LIMITED, "", "", "critical", summary, (finding.finding,), numbers),)


def _name(detector: str, agent: str) -> str:
    return f"{detector}\0{agent}"
