"""In come an operator's word on a finding and the findings so far; out comes the event that it leads to, or why there is none."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias, assert_never

from analytics.nobody import UNANSWERED, UNMUTED
from identity.commands import AGENT_NAME, Rejected
from ingest.events import (
    FindingAcknowledged,
    FindingConfirmed,
    FindingEvent,
    FindingRaised,
    FindingRecurred,
    FindingsMuted,
    FindingsUnmuted,
    SessionJudged,
)

EVERY_AGENT: Final = "*"

TriageEvent: TypeAlias = FindingAcknowledged | FindingConfirmed | FindingsMuted | FindingsUnmuted


@dataclass(frozen=True, slots=True)
class Settings:
    text_characters_max: int = 1000  # a note, a reason
    mute_seconds_max: int = 366 * 86_400  # whoever mutes for longer wants another detector
    findings_max: int = 100_000  # remembered, the newest: what is older can no longer be acknowledged
    mutes_max: int = 10_000  # of detector and agent, that stand
    requests_max: int = 10_000  # Idempotency-Keys remembered


# -- commands ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledge:
    finding: str
    note: str


@dataclass(frozen=True, slots=True)
class Confirm:
    finding: str
    note: str


@dataclass(frozen=True, slots=True)
class Mute:
    """Of `finding`, its detector and agent; or of these two as they are named."""

    detector: str
    agent: str  # EVERY_AGENT = whichever
    seconds: int
    reason: str
    finding: str = ""


@dataclass(frozen=True, slots=True)
class Unmute:
    detector: str
    agent: str
    reason: str


Triage: TypeAlias = Acknowledge | Confirm | Mute | Unmute


# -- what is known -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    id: str
    detector: str
    agent: str
    state: Literal["open", "acknowledged", "confirmed"]


class Findings:
    """A fold over topic `findings`, bounded; an event that comes twice changes nothing."""

    def __init__(self, settings: Settings = Settings()) -> None:
        self._settings = settings
        self._findings: OrderedDict[str, Finding] = OrderedDict()
        self._muted_until_us: dict[tuple[str, str], int] = {}
        self._requests: OrderedDict[str, TriageEvent] = OrderedDict()
        self._newest_us = 0
        self.detectors: set[str] = set()  # that ever raised one; their number is that of the program's

    def apply(self, event: FindingEvent) -> None:
        match event:
            case FindingRaised():
                if event.finding not in self._findings:
                    self._findings[event.finding] = Finding(event.finding, event.detector, event.agent, "open")
                    self.detectors.add(event.detector)
                    if len(self._findings) > self._settings.findings_max:
                        self._findings.popitem(last=False)
                return
            case FindingRecurred() | SessionJudged():
                return
            case FindingAcknowledged():
                self._triaged(event.finding, "acknowledged")
            case FindingConfirmed():
                self._triaged(event.finding, "confirmed")
            case FindingsMuted():
                self._muted_until_us[(event.detector, event.agent)] = event.until_us
            case FindingsUnmuted():
                self._muted_until_us.pop((event.detector, event.agent), None)
            case _:
                assert_never(event)
        self._newest_us = max(self._newest_us, event.at_us)
        key, colon, _ = event.request.rpartition(":")
        if colon:
            self._requests.setdefault(key, event)
            if len(self._requests) > self._settings.requests_max:
                self._requests.popitem(last=False)

    def _triaged(self, finding: str, state: Literal["acknowledged", "confirmed"]) -> None:
        known = self._findings.get(finding)
        if known is not None and known.state != "confirmed":
            self._findings[finding] = Finding(known.id, known.detector, known.agent, state)

    def finding(self, id_: str) -> Finding | None:
        return self._findings.get(id_)

    def muted(self, detector: str, agent: str, at_us: int) -> bool:
        """What is nobody's never is, even where the log holds a mute of nobody from when that was taken."""
        return agent != "" and any(self._muted_until_us.get((detector, whose), 0) > at_us for whose in (agent, EVERY_AGENT))

    def stands(self, detector: str, agent: str, now_us: int) -> bool:
        """Whether there is a mute of exactly these two."""
        return self._muted_until_us.get((detector, agent), 0) > now_us

    def mutes_standing(self, now_us: int) -> int:
        self._muted_until_us = {name: until_us for name, until_us in self._muted_until_us.items() if until_us > now_us}
        return len(self._muted_until_us)

    def after(self, now_us: int) -> int:
        """A time for the next event: they rise, even where the clock steps back."""
        return max(now_us, self._newest_us + 1)

    def event_of(self, key: str) -> TriageEvent | None:
        return self._requests.get(key)


# -- the decision ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    event: TriageEvent


@dataclass(frozen=True, slots=True)
class Repeated:
    event: TriageEvent


_DETECTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}")


def request(key: str, operator: str, command: Triage) -> str:
    """What an event says of the call that it came of, as in identity.commands."""
    if not key:
        return ""
    content = json.dumps([operator, type(command).__name__, asdict(command)], sort_keys=True)
    return f"{key}:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def decide(
    command: Triage,
    key: str,
    operator: str,
    findings: Findings,
    detectors: Collection[str],
    now_us: int,
    settings: Settings = Settings(),
) -> Accepted | Repeated | Rejected:
    """What comes of it. `detectors`: those that this program has; `key`: the Idempotency-Key, "" for none."""
    stamp = request(key, operator, command)
    if key and (earlier := findings.event_of(key)) is not None:
        if earlier.request == stamp:
            return Repeated(earlier)
        return Rejected("conflict", f"Idempotency-Key {key} was used for another command; use a new one")
    at_us = findings.after(now_us)
    match command:
        case Acknowledge() | Confirm():
            if problem := _text("note", command.note, settings, required=False):
                return Rejected("invalid", problem)
            finding = findings.finding(command.finding)
            if finding is None:
                return _missing(command.finding)
            if isinstance(command, Acknowledge):
                if finding.state != "open":
                    return Rejected("conflict", f"finding {finding.id} is {finding.state} already")
                return Accepted(FindingAcknowledged(at_us, finding.id, finding.agent, operator, command.note, stamp))
            if finding.state == "confirmed":
                return Rejected("conflict", f"finding {finding.id} is confirmed already")
            return Accepted(FindingConfirmed(at_us, finding.id, finding.agent, operator, command.note, stamp))
        case Mute():
            return _mute(command, stamp, operator, findings, detectors, at_us, now_us, settings)
        case Unmute():
            if problem := _text("reason", command.reason, settings, required=False):
                return Rejected("invalid", problem)
            if not findings.stands(command.detector, command.agent, now_us):
                return Rejected("conflict", "this detector is not muted for this agent; GET /v1/mutes lists what is")
            return Accepted(FindingsUnmuted(at_us, command.detector, command.agent, operator, command.reason, stamp))
        case _:
            assert_never(command)


def _mute(
    command: Mute,
    stamp: str,
    operator: str,
    findings: Findings,
    detectors: Collection[str],
    at_us: int,
    now_us: int,
    settings: Settings,
) -> Accepted | Rejected:
    detector, agent = command.detector, command.agent
    if command.finding:
        finding = findings.finding(command.finding)
        if finding is None:
            return _missing(command.finding)
        if not finding.agent:
            why = "a finding of nobody cannot be muted, for that would hide every other one; acknowledge it"
            return Rejected("invalid", UNMUTED.get(finding.detector, why))
        if (detector and detector != finding.detector) or (agent and agent not in (finding.agent, EVERY_AGENT)):
            return Rejected("invalid", "detector, agent: this finding is another's; leave them out")
        detector, agent = finding.detector, agent or finding.agent
    if detector in UNANSWERED or (detector in UNMUTED and agent in ("", EVERY_AGENT)):
        return Rejected("invalid", UNMUTED[detector])
    problems: list[str] = []
    if _DETECTOR.fullmatch(detector) is None or detector not in {*detectors, *findings.detectors}:
        # A misspelt name would mute nothing, and nobody would notice.
        problems.append(
            f"detector: there is none of this name; write one of {', '.join(sorted({*detectors, *findings.detectors}))}"
        )
    if agent not in ("", EVERY_AGENT) and AGENT_NAME.fullmatch(agent) is None:
        problems.append('agent: write its name, or "*" for every agent')
    if not agent and not command.finding:
        problems.append('agent: missing; write its name, or "*" for every agent')
    if not 60 <= command.seconds <= settings.mute_seconds_max:
        problems.append(f"seconds: write 60 to {settings.mute_seconds_max}; nothing is muted for ever")
    if problem := _text("reason", command.reason, settings, required=True):
        problems.append(problem)
    if problems:
        return Rejected("invalid", problems[0], tuple(problems))
    if not findings.stands(detector, agent, now_us) and findings.mutes_standing(now_us) >= settings.mutes_max:
        return Rejected("conflict", f"{settings.mutes_max} mutes stand, which is the limit; remove some")
    until_us = now_us + command.seconds * 1_000_000
    return Accepted(FindingsMuted(at_us, detector, agent, until_us, operator, command.reason, command.finding, stamp))


def _missing(finding: str) -> Rejected:
    return Rejected("missing", f"there is no finding {json.dumps(finding[:80])}; GET /v1/findings lists them")


def _text(name: str, value: str, settings: Settings, *, required: bool) -> str:
    if required and not value.strip():
        return f"{name}: missing; write a sentence that another operator will understand"
    if len(value) > settings.text_characters_max:
        return f"{name}: at most {settings.text_characters_max} characters"
    if not value.replace("\n", "").isprintable():  # a forged line in somebody's terminal
        return f"{name}: holds characters that cannot be printed"
    return ""
