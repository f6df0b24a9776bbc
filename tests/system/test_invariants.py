"""The checker of every fault is itself put to the test: an honest history passes, and each lie in it is named by its invariant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec
import pytest

from ingest.events import (
    Event,
    Frame,
    OutcomeResolved,
    SessionClosed,
    SessionKilled,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
    Topic,
)
from ingest.frames import Framer, decode
from ingest.log import Record
from tests.system.invariants import Evidence, Process, Ran, violations

Lie: TypeAlias = Callable[[Evidence], Evidence]
SECRET = b"the database's password"


def stamp(session: str, agent: str, port: int) -> Stamp:
    return Stamp(
        session, agent, "key:1", "", "", (), "", "", (), ("g",), ("o",), "shop", "shop", "app", "127.0.0.1:1", port, 1_000, port
    )


def honest() -> Evidence:
    """Two agents of one gateway: statements that ended, one refused, one aborted by a crash, one killed by a revocation."""
    framer = Framer("gateway-1", 7, events_max=4, bytes_max=10_000)
    first, second = stamp("s1", "reader", 4001), stamp("s2", "writer", 4002)
    opened = [SessionOpened(1_000, of, "scram", "k", 0, "", "TLSv1.3", "3.0", "group") for of in (first, second)]
    recorded: list[tuple[Topic, Stamp | None, str, Event]] = [("sessions", None, event.stamp.agent, event) for event in opened]
    ran: list[Ran] = []

    def run(of: Stamp, number: int, marker: str, *ends: Event) -> None:
        text = f"SELECT '{marker}'"
        events: list[Event] = [
            StatementDefined(number, text, "full", len(text), "f", ("SELECT",), (), ()),
            StatementStarted(2_000 + number, number, number, "rule"),
            *ends,
        ]
        recorded.extend(("statements", of, of.agent, event) for event in events)
        ran.append(Ran(2_000 + number, of.upstream_port, of.backend_pid, text))

    for number in range(1, 6):
        run(first, number, f"m:reader.{number}", StatementFinished(number, "ok", "", "SELECT 1", 1, 0, 9, 5))
    run(second, 1, "m:writer.1", StatementFinished(1, "ok", "", "INSERT 0 1", 1, 0, 9, 5))
    run(second, 2, "m:writer.2", StatementFinished(2, "unknown", "", "", 0, 0, 0, 0), OutcomeResolved(9_000, 2, "aborted", "why"))
    refused = "SELECT 'm:writer.refused' FROM secrets"
    recorded += [
        ("statements", second, "writer", StatementDefined(3, refused, "full", len(refused), "f", ("SELECT",), (), ())),
        ("statements", second, "writer", StatementDenied(3_000, 3, 3, "42501", "default", "no grant")),
        ("sessions", None, "writer", SessionKilled(5_000, "s2", "writer", "agent revoked", 4_000, 4_001, 4_002, 4_900, 4002, "x")),
        ("sessions", None, "writer", SessionClosed(5_001, "s2", "writer", "killed", "57P01", 1, 1, 3, 9)),
        ("sessions", None, "reader", SessionClosed(6_000, "s1", "reader", "client", "", 1, 1, 5, 9)),
    ]
    for topic, of, key, event in recorded:
        framer.add(topic, key, event, of)
    log: dict[str, list[tuple[Record, Frame]]] = {"sessions": [], "statements": []}
    for entry in framer.cut():
        place = log[entry.topic]
        place.append((Record(entry.topic, 0, len(place), 0, entry.key, entry.value), decode(entry.value)))
    return Evidence(
        log=log,
        ran=ran,
        seen=[f"LOG: statement: {line.text}" for line in ran],
        acknowledged=frozenset({"m:reader.1", "m:reader.5", "m:writer.1"}),
        refused=frozenset({"m:writer.refused"}),
        stored=frozenset({"m:writer.1"}),
        revoked_us={"writer": 4_000},
        revocation_us_max=1_000,
        tables={"incremental": "abc", "rebuilt": "abc"},
        executions_in_tables=8,
        artefacts={"gateway.log": b"nothing of note"},
        secrets=[SECRET],
        before=[Process("gateway", 50 << 20, 20)],
        after=[Process("gateway", 60 << 20, 22)],
    )


def _statements(evidence: Evidence, records: Sequence[tuple[Record, Frame]], topic: str = "statements") -> Evidence:
    return dataclasses.replace(evidence, log={**evidence.log, topic: records})


def without(kind: type, topic: str = "statements", **fields: object) -> Lie:
    """The first event of this kind is not on record."""

    def lie(evidence: Evidence) -> Evidence:
        changed, done = [], False
        for record, frame in evidence.log[topic]:
            events = []
            for pair in frame.events:
                fits = isinstance(pair[1], kind) and all(getattr(pair[1], name) == value for name, value in fields.items())
                if done or not fits:
                    events.append(pair)
                done = done or fits
            changed.append((record, msgspec.structs.replace(frame, events=tuple(events))))
        assert done
        return _statements(evidence, changed, topic)

    return lie


def instead(kind: type, made: Callable[[Event], Sequence[Event]], topic: str = "statements") -> Lie:
    """In the first frame that has one, each event of this kind becomes others."""

    def lie(evidence: Evidence) -> Evidence:
        changed, done = [], False
        for record, frame in evidence.log[topic]:
            events: list[tuple[int, Event]] = []
            for index, event in frame.events:
                fits = not done and isinstance(event, kind)
                events += [(index, other) for other in made(event)] if fits else [(index, event)]
                done = done or fits
            changed.append((record, msgspec.structs.replace(frame, events=tuple(events))))
        assert done
        return _statements(evidence, changed, topic)

    return lie


def lost_frame(number: int) -> Lie:
    return lambda evidence: _statements(evidence, [*evidence.log["statements"][:number], *evidence.log["statements"][number + 1 :]])


def swapped_frames(evidence: Evidence) -> Evidence:
    first, second, *rest = evidence.log["statements"]
    return _statements(evidence, [second, first, *rest])


def another_frame_of_the_same_name(evidence: Evidence) -> Evidence:
    record, frame = evidence.log["statements"][0]
    return _statements(evidence, [*evidence.log["statements"], (record, msgspec.structs.replace(frame, events=frame.events[:1]))])


def changed(**fields: object) -> Lie:
    return lambda evidence: dataclasses.replace(evidence, **fields)  # type: ignore[arg-type]


def also_ran(at_us: int, port: int, text: str) -> Lie:
    return lambda evidence: dataclasses.replace(evidence, ran=[*evidence.ran, Ran(at_us, port, port, text)])


def lies() -> Iterator[tuple[str, str, Lie]]:
    yield "I1", "forwarded before it was recorded, and lost", without(StatementStarted, execution=2)
    yield "I1", "ran beside every session", also_ran(2_500, 9_999, "SELECT 'm:stray.1'")
    yield "I1", "ran in another session than recorded", also_ran(2_500, 4002, "SELECT 'm:reader.1'")
    yield "I1", "acknowledged and not on record", changed(acknowledged=frozenset({"m:reader.99"}))
    yield "I1", "committed and not on record", changed(stored=frozenset({"m:writer.99"}))
    yield "I2", "on record as done, never ran", lambda evidence: dataclasses.replace(evidence, ran=evidence.ran[1:])
    yield "I2", "a refused text reached the server", changed(seen=["ERROR: ... 'm:writer.refused' ..."])
    yield "I2", "a refused text was acknowledged", changed(acknowledged=frozenset({"m:writer.refused"}))
    yield "I3", "a revoked agent ran on", also_ran(5_002, 4002, "SELECT 'm:writer.1'")
    killed = lambda event: [msgspec.structs.replace(event, backend_gone_us=0)]  # noqa: E731
    yield "I3", "an end without proof", instead(SessionKilled, killed, "sessions")
    yield "I4", "an outcome was dropped", without(StatementFinished)
    yield "I4", "an outcome came twice", instead(StatementFinished, lambda event: [event, event])
    yield "I4", "a frame in the middle was lost", lost_frame(1)
    yield "I4", "a frame at the beginning was lost", lost_frame(0)
    yield "I4", "frames changed places", swapped_frames
    yield "I4", "a frame was written anew", another_frame_of_the_same_name
    yield "I4", "a session has no end", without(SessionClosed, "sessions")
    yield "I4", "a session was never opened", without(SessionOpened, "sessions")
    yield "I4", "a text is missing", without(StatementDefined)
    yield "I4", "an execution began twice", instead(StatementStarted, lambda event: [event, event])
    yield "I4", "a refusal ended", instead(StatementDenied, lambda e: [e, StatementFinished(3, "ok", "", "", 0, 0, 0, 0)])
    yield "I4", "resolved as aborted, and committed", changed(stored=frozenset({"m:writer.1", "m:writer.2"}))
    yield "I4", "resolved twice", instead(OutcomeResolved, lambda event: [event, event])
    yield "I5", "the tables differ from a rebuild", changed(tables={"incremental": "abc", "rebuilt": "abd"})
    yield "I5", "the tables count an execution twice", changed(executions_in_tables=9)
    yield "I6", "a secret in an artefact", changed(artefacts={"gateway.log": b"connecting with " + SECRET})
    yield "I7", "memory grew", changed(after=[Process("gateway", 190 << 20, 20)])
    yield "I7", "descriptors leaked", changed(after=[Process("gateway", 50 << 20, 90)])


def test_an_honest_history_passes() -> None:
    assert violations(honest()) == []


def test_frames_that_came_twice_are_no_violation() -> None:
    evidence = honest()
    again = evidence.log["statements"][1]
    assert violations(_statements(evidence, [*evidence.log["statements"], again])) == []


@pytest.mark.parametrize(("invariant", "lie"), [pytest.param(name, lie, id=what) for name, what, lie in lies()])
def test_each_lie_is_named_by_its_invariant(invariant: str, lie: Lie) -> None:
    found = violations(lie(honest()))
    assert any(sentence.startswith(invariant) for sentence in found), found
