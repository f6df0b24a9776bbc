"""What must hold after every fault: the log, the server's own log, the clients' word and the tables in; what is broken out.

I1  coverage: what the server ran is on record, begun under its session's stamp
I2  no phantom: what was refused the server never saw; what is on record as done, the server ran
I3  revocation: nothing of a revoked agent runs later than `revocation_us_max` after the fact
I4  the log: each writer's frames are there without a hole; an execution has one end, a session one end
I5  the tables: what was projected under fire is what a rebuild gives, and holds each execution once
I6  no secret in anything that was written
I7  bounded: memory and descriptors are back where they were

Each statement of the load carries a marker of its own, `m:<agent>.<n>`, in a literal: the thread from a client's word to a row.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ingest.events import (
    Event,
    Frame,
    OutcomeResolved,
    SessionClosed,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
)
from ingest.log import Record

MARKER: Final = re.compile(r"m:[\w-]+\.[\w.]+")

Log = Mapping[str, Sequence[tuple[Record, Frame]]]
"""By topic: every record of it, each partition in its order, repetitions included."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One execution in the server's own log."""

    at_us: int
    port: int  # the client's, that is the gateway's local one
    pid: int
    text: str


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    rss_bytes: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Evidence:
    log: Log
    ran: Sequence[Ran]
    seen: Sequence[str] = ()  # every line of the server's log, whole
    acknowledged: frozenset[str] = frozenset()  # markers whose success a client was told of
    refused: frozenset[str] = frozenset()  # markers of statements that no grant allows
    stored: frozenset[str] = frozenset()  # markers of committed rows
    revoked_us: Mapping[str, int] = field(default_factory=dict)  # agent -> when the fact was recorded
    revocation_us_max: int = 1_000_000
    tables: Mapping[str, str] = field(default_factory=dict)  # which way -> checksum over all tables
    executions_in_tables: int | None = None
    artefacts: Mapping[str, bytes] = field(default_factory=dict)
    secrets: Sequence[bytes] = ()
    before: Sequence[Process] = ()
    after: Sequence[Process] = ()
    rss_growth_bytes_max: int = 96 * 2**20
    caches_bytes_max: Mapping[str, int] = field(default_factory=dict)  # process -> what it may hold besides: a database's own bound
    descriptors_growth_max: int = 16


@dataclass(slots=True)
class _Execution:
    stamp: Stamp
    text: str = ""
    started: int = 0
    denied: int = 0
    outcomes: list[str] = field(default_factory=list)
    resolutions: list[str] = field(default_factory=list)


def violations(evidence: Evidence) -> list[str]:
    """Empty when all holds; else one sentence each, which begins with the invariant's name."""
    found: list[str] = []
    frames = {topic: _once(topic, records, found) for topic, records in evidence.log.items()}
    told = _executions(frames.get("statements", ()), found)
    found += _coverage(evidence, told)
    found += _phantoms(evidence, told)
    found += _revocations(evidence, frames)
    found += _ends(told, frames)
    found += _resolutions(evidence, told)
    found += _tables(evidence, told)
    found += _secrets(evidence)
    found += _bounds(evidence)
    return found


def executions(log: Log) -> int:
    """How many the record tells of."""
    nothing: list[str] = []
    return len(_executions(_once("statements", log["statements"], nothing), nothing))


def _once(topic: str, records: Iterable[tuple[Record, Frame]], found: list[str]) -> list[Frame]:
    """Each frame once, and word of every hole (I4). `step` says which frame stood before this one in its partition."""
    newest: dict[tuple[str, int, int], int] = {}
    contents: dict[tuple[str, int, int], Frame] = {}
    kept: list[Frame] = []
    for record, frame in records:
        name = (frame.writer, frame.boot, frame.seq)
        if name in contents:
            if contents[name] != frame:
                found.append(f"I4 {topic}: two frames bear the name {name}")
            continue
        contents[name] = frame
        place = (frame.writer, frame.boot, record.partition)
        before = newest.get(place, -1)
        if frame.seq - frame.step != before:
            found.append(f"I4 {topic}/{record.partition}: after frame {before} of {frame.writer}/{frame.boot} comes {frame.seq}")
        newest[place] = frame.seq
        kept.append(frame)
    for writer, boot in {(writer, boot) for writer, boot, _ in contents}:
        numbers = {seq for w, b, seq in contents if (w, b) == (writer, boot)}
        if missing := set(range(max(numbers) + 1)) - numbers:
            found.append(f"I4 {topic}: frames {sorted(missing)[:5]} of {writer}/{boot} are missing")
    return kept


def _executions(frames: Iterable[Frame], found: list[str]) -> dict[tuple[str, int], _Execution]:
    texts: dict[tuple[str, int], str] = {}
    executions: dict[tuple[str, int], _Execution] = {}
    for stamp, event in _events(frames):
        if stamp is None:
            found.append(f"I4 statements: {type(event).__name__} bears no stamp")
            continue
        match event:
            case StatementDefined():
                texts[stamp.session, event.statement] = event.text
            case StatementStarted() | StatementDenied():
                made = executions.setdefault((stamp.session, event.execution), _Execution(stamp))
                if (stamp.session, event.statement) not in texts:
                    found.append(f"I4 {stamp.session}/{event.execution}: its text is not on record")
                made.text = texts.get((stamp.session, event.statement), "")
                made.started += isinstance(event, StatementStarted)
                made.denied += isinstance(event, StatementDenied)
            case StatementFinished():
                executions.setdefault((stamp.session, event.execution), _Execution(stamp)).outcomes.append(event.outcome)
            case OutcomeResolved():
                executions.setdefault((stamp.session, event.execution), _Execution(stamp)).resolutions.append(event.resolution)
            case _:
                pass
    return executions


def _events(frames: Iterable[Frame]) -> Iterable[tuple[Stamp | None, Event]]:
    for frame in frames:
        for stamp, event in frame.events:
            yield (frame.stamps[stamp] if stamp >= 0 else None), event


def _markers(text: str) -> list[str]:
    return MARKER.findall(text)


def _coverage(evidence: Evidence, executions: Mapping[tuple[str, int], _Execution]) -> Iterable[str]:
    begun: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    recorded: set[str] = set()
    for execution in executions.values():
        if execution.started:
            markers = _markers(execution.text)
            begun[execution.stamp.upstream_port, execution.stamp.backend_pid].update(set(markers))
            recorded.update(markers)
    for ran in evidence.ran:
        for marker in set(_markers(ran.text)):
            if begun[ran.port, ran.pid][marker] == 0:
                yield f"I1 {marker} ran on backend {ran.pid} and no session of that backend has it on record"
    for marker in sorted(evidence.acknowledged - recorded):
        yield f"I1 {marker} was acknowledged to its client and is not on record"
    for marker in sorted(evidence.stored - recorded):
        yield f"I1 {marker} stands in the database and is not on record"


def _phantoms(evidence: Evidence, executions: Mapping[tuple[str, int], _Execution]) -> Iterable[str]:
    ran: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for line in evidence.ran:
        ran[line.port, line.pid].update(set(_markers(line.text)))
    for name, execution in executions.items():
        place = (execution.stamp.upstream_port, execution.stamp.backend_pid)
        for marker in set(_markers(execution.text)):
            if "ok" in execution.outcomes and ran[place][marker] == 0:
                yield f"I2 {marker} is on record as done ({name[0]}/{name[1]}) and the server never ran it"
    if evidence.refused:
        searched = re.compile("|".join(re.escape(marker) + r"(?![\w.])" for marker in sorted(evidence.refused)))
        for line in evidence.seen:
            for marker in searched.findall(line):
                yield f"I2 {marker} was refused and reached the server"
    for marker in sorted(evidence.acknowledged & evidence.refused):
        yield f"I2 {marker} was refused and acknowledged"


def _revocations(evidence: Evidence, frames: Mapping[str, Sequence[Frame]]) -> Iterable[str]:
    backends = {
        (event.stamp.upstream_port, event.stamp.backend_pid): event.stamp.agent
        for _, event in _events(frames.get("sessions", ()))
        if isinstance(event, SessionOpened)
    }
    for line in evidence.ran:
        agent = backends.get((line.port, line.pid), "")
        late_us = line.at_us - evidence.revoked_us.get(agent, line.at_us) - evidence.revocation_us_max
        if late_us > 0:
            yield f"I3 {agent} was revoked, and {late_us / 1e6:.3f} s past the limit ran: {line.text[:80]}"
    for _, event in _events([*frames.get("sessions", ()), *frames.get("observations", ())]):
        if isinstance(event, SessionKilled | SessionReaped) and not event.backend_gone_us:
            yield f"I3 session {event.session}: that its backend is gone was not proven"


def _ends(executions: Mapping[tuple[str, int], _Execution], frames: Mapping[str, Sequence[Frame]]) -> Iterable[str]:
    for (session, number), execution in executions.items():
        name = f"I4 {session}/{number}"
        if execution.started + execution.denied == 0:
            yield f"{name}: ended and never began"
        elif execution.started + execution.denied > 1:
            yield f"{name}: began {execution.started} times and was refused {execution.denied} times"
        if execution.started and len(execution.outcomes) != 1:
            yield f"{name}: {len(execution.outcomes)} ends ({', '.join(execution.outcomes)}): {execution.text[:60]}"
        if execution.denied and execution.outcomes:
            yield f"{name}: refused, and ended with {execution.outcomes[0]}"
        if len(execution.resolutions) > 1:
            yield f"{name}: resolved {len(execution.resolutions)} times"
    opened: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for _, event in _events(frames.get("sessions", ())):
        opened.update([event.stamp.session] if isinstance(event, SessionOpened) else [])
        closed.update([event.session] if isinstance(event, SessionClosed) else [])
    for session in opened.keys() | closed.keys():
        if (opened[session], closed[session]) != (1, 1):
            yield f"I4 session {session}: opened {opened[session]} times, closed {closed[session]} times"
    for session in {execution.stamp.session for execution in executions.values()} - opened.keys():
        yield f"I4 session {session}: has executions and was never opened"


def _resolutions(evidence: Evidence, executions: Mapping[tuple[str, int], _Execution]) -> Iterable[str]:
    for (session, number), execution in executions.items():
        there = [marker for marker in _markers(execution.text) if marker in evidence.stored]
        for resolution in execution.resolutions:
            if resolution in ("aborted", "not executed") and there:
                yield f"I4 {session}/{number}: resolved as {resolution}, and {there[0]} stands in the database"


def _tables(evidence: Evidence, executions: Mapping[tuple[str, int], _Execution]) -> Iterable[str]:
    if len(set(evidence.tables.values())) > 1:
        yield f"I5 the ways to the tables differ: {dict(evidence.tables)}"
    if evidence.executions_in_tables is not None and evidence.executions_in_tables != len(executions):
        yield f"I5 the tables hold {evidence.executions_in_tables} executions, the log {len(executions)}"


def _secrets(evidence: Evidence) -> Iterable[str]:
    for name, content in evidence.artefacts.items():
        for number, secret in enumerate(evidence.secrets):
            if secret in content:
                yield f"I6 secret {number} stands in {name}"


def _bounds(evidence: Evidence) -> Iterable[str]:
    before = {process.name: process for process in evidence.before}
    for process in evidence.after:
        start = before.get(process.name)
        if start is None:
            continue
        cache_bytes = evidence.caches_bytes_max.get(process.name, 0)
        if process.rss_bytes - start.rss_bytes > evidence.rss_growth_bytes_max + cache_bytes:
            yield f"I7 {process.name} grew from {start.rss_bytes >> 20} to {process.rss_bytes >> 20} MiB"
        if process.descriptors - start.descriptors > evidence.descriptors_growth_max:
            yield f"I7 {process.name} holds {process.descriptors} descriptors, {start.descriptors} before"
