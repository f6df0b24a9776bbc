"""Recorded events -> CloudEvents 1.0 as JSON in structured mode, for those that somebody outside asked to be told of. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    AllReinstated,
    AllRevoked,
    BackendReaped,
    Event,
    FindingRaised,
    FindingRecurred,
    Frame,
    GrantNarrowed,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    RecordingStopped,
    SessionKilled,
    SessionReaped,
    SessionRevoked,
    SubjectReinstated,
    SubjectRevoked,
    Topic,
    WitnessBlinded,
    WitnessRestored,
)
from ingest.frames import TOPIC_OF, event_id
from pgwarden.webhook_kinds import KINDS, SEVERITIES, Kind, Severity

CONTENT_TYPE: Final = "application/cloudevents+json"
TEXT_CHARACTERS_MAX: Final = 2_000  # of one field; what is longer can be read in the record
ITEMS_MAX: Final = 50  # of one list; a receiver is told what happened, and where to look
TEST: Final = "pgwarden.Test"

_OF_KIND: Final[Mapping[Kind, tuple[type[Event], ...]]] = {
    "findings": (FindingRaised, FindingRecurred),
    "kills": (SessionKilled, SessionReaped, BackendReaped),
    "revocations": (
        AgentRevoked,
        AgentReinstated,
        AgentRetired,
        GrantRevoked,
        GrantNarrowed,
        SubjectRevoked,
        SubjectReinstated,
        GroupRevoked,
        GroupReinstated,
        SessionRevoked,
        AllRevoked,
        AllReinstated,
    ),
    "blindness": (RecordingStopped, WitnessBlinded, WitnessRestored),
}
_SUBJECTS: Final = ("agent", "session", "subject", "group", "server", "gateway")  # the first that an event has
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TEXT: Final = re.compile(r"[\ud800-\udfff]")  # what JSON cannot carry


@dataclass(frozen=True, slots=True)
class CloudEvent:
    id: str  # the same in every reading of the log: who was told already knows by it
    type: str
    body: bytes


def topics(kinds: Collection[Kind]) -> tuple[Topic, ...]:
    """Where events of these kinds stand."""
    return tuple(dict.fromkeys(TOPIC_OF[event] for kind in KINDS if kind in kinds for event in _OF_KIND[kind]))


def is_wanted(event: Event, kinds: Collection[Kind], severity_min: Severity) -> bool:
    if not any(isinstance(event, _OF_KIND[kind]) for kind in kinds):
        return False
    if isinstance(event, FindingRaised | FindingRecurred) and event.severity in SEVERITIES:  # one that is not known here is told
        return SEVERITIES.index(event.severity) >= SEVERITIES.index(severity_min)
    return True


def cloud_event(frame: Frame, index: int, source: str) -> CloudEvent:
    """Of one event of a frame."""
    event = frame.events[index][1]
    # Standard Webhooks sign `id.time.body`: no full stop of a writer's name may stand in the first.
    name = event_id(frame, index).replace(".", "%2E")
    subject = next((found for field in _SUBJECTS if (found := getattr(event, field, ""))), "")
    data = _bounded(event)
    return _event(name, f"pgwarden.{type(event).__name__}", source, str(subject), getattr(event, "at_us", 0), data)


def trial(name: str, source: str, now_us: int) -> CloudEvent:
    """What `pgwarden webhooks test` sends."""
    sentence = "This is a test: nothing has happened."
    return _event(f"test/{now_us}", TEST, source, name, now_us, {"at_us": now_us, "webhook": name, "sentence": sentence})


def _event(name: str, kind: str, source: str, subject: str, at_us: int, data: object) -> CloudEvent:
    # CloudEvents 1.0, JSON format, §3: structured mode. `subject` may be left out, and must not be empty.
    said: dict[str, object] = {"specversion": "1.0", "id": name, "source": source, "type": kind}
    if subject:
        said["subject"] = str(_bounded(subject))
    said |= {"time": _time(at_us), "datacontenttype": "application/json", "data": data}
    return CloudEvent(name, kind, msgspec.json.encode(said))


def _time(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _bounded(found: object) -> object:
    match found:
        case str():
            text = _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", found)
            return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…"
        case list() | tuple():
            return [_bounded(one) for one in found[:ITEMS_MAX]]
        case msgspec.Struct():
            return {name: _bounded(getattr(found, name)) for name in found.__struct_fields__}
        case _:
            return found
