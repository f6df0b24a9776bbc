"""What happens now, line by line: frames of the log come in, and what an operator follows goes out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ingest.events import (
    Event,
    FindingRaised,
    FindingRecurred,
    Frame,
    SessionClosed,
    SessionDenied,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
    Topic,
)
from ingest.log import Record

Decision: TypeAlias = Literal["", "allow", "deny"]
Line: TypeAlias = "dict[str, str | int | None]"

TOPICS: Final[tuple[Topic, ...]] = ("sessions", "statements", "findings", "observations")
DECISIONS: Final = ("allow", "deny")


@dataclass(frozen=True, slots=True)
class Wanted:
    agent: str = ""  # "" = of every agent
    decision: Decision = ""  # "" = everything; else statements of which that was decided, and with "deny" refused connections


class Texts:
    """Those that frames, or the tables, have told of, up to a bound: of a statement defined longer ago, the tables are asked."""

    def __init__(self, kept_max: int = 4096, characters_max: int = 1000) -> None:
        self._kept_max = kept_max
        self._characters_max = characters_max
        self._texts: OrderedDict[tuple[str, int], str] = OrderedDict()

    def add(self, session: str, statement: int, text: str) -> None:
        self._texts[session, statement] = text[: self._characters_max]
        self._texts.move_to_end((session, statement))
        if len(self._texts) > self._kept_max:
            self._texts.popitem(last=False)

    def of(self, session: str, statement: int) -> str | None:
        return self._texts.get((session, statement))


def lines(record: Record, frame: Frame, wanted: Wanted, texts: Texts) -> Iterator[Line]:
    """In the order of the frame. `text` is None where `texts` does not have it; `statement` says of which one it is."""
    for index, (stamp_index, event) in enumerate(frame.events):
        stamp = frame.stamps[stamp_index] if 0 <= stamp_index < len(frame.stamps) else None
        if isinstance(event, StatementDefined) and stamp is not None:
            texts.add(stamp.session, event.statement, event.text or event.fingerprint)
        line = _line(event, stamp, texts, record.at_us)
        if line is None or (wanted.agent and line["agent"] != wanted.agent):
            continue
        if wanted.decision and line.get("decision") != wanted.decision:
            continue
        yield line | {"offset": f"{record.topic}/{record.partition}/{record.offset}/{index}"}


def _line(event: Event, stamp: Stamp | None, texts: Texts, recorded_us: int) -> Line | None:
    match event:
        case SessionOpened():
            what = _what(event.at_us, "session opened", event.stamp.agent, event.stamp.session)
            return what | {"text": f"from {event.stamp.client} to {event.stamp.connection}, {event.method}"}
        case SessionDenied():
            what = _what(event.at_us, "session denied", event.agent or event.claimed, "")
            return what | {"decision": "deny", "sqlstate": event.sqlstate, "reason": event.reason, "text": f"from {event.client}"}
        case SessionClosed():
            what = _what(event.at_us, "session closed", event.agent, event.session)
            return what | {"reason": event.reason, "sqlstate": event.sqlstate}
        case SessionKilled() | SessionReaped():
            gone = "the backend is gone" if event.backend_gone_us else "not proven"
            return _what(event.at_us, "session killed", event.agent, event.session) | {"reason": event.cause, "text": gone}
        case StatementStarted() if stamp is not None:
            return _statement(event.at_us, "statement", "allow", event.execution, event.statement, stamp, texts)
        case StatementDenied() if stamp is not None:
            what = _statement(event.at_us, "statement denied", "deny", event.execution, event.statement, stamp, texts)
            return what | {"sqlstate": event.sqlstate, "reason": event.reason}
        case StatementFinished() if stamp is not None:
            what = _what(recorded_us, "statement finished", stamp.agent, stamp.session)
            what |= {"decision": "allow", "execution": event.execution, "outcome": event.outcome, "sqlstate": event.sqlstate}
            return what | {"rows": event.rows, "duration_us": event.duration_us}
        case FindingRaised():
            what = _what(event.at_us, "finding", event.agent, event.session)
            return what | {"finding": event.finding, "reason": f"{event.severity}: {event.detector}", "text": event.summary}
        case FindingRecurred():
            what = _what(event.at_us, "finding again", event.agent, "")
            return what | {"finding": event.finding, "reason": f"{event.times} times", "text": event.summary}
        case _:
            return None


def _what(at_us: int, kind: str, agent: str, session: str) -> Line:
    return {"at_us": at_us, "kind": kind, "agent": agent, "session": session}


def _statement(at_us: int, kind: str, decision: str, execution: int, statement: int, stamp: Stamp, texts: Texts) -> Line:
    what = _what(at_us, kind, stamp.agent, stamp.session)
    what |= {"decision": decision, "execution": execution, "statement": statement}
    return what | {"text": texts.of(stamp.session, statement), "connection": stamp.connection}
