"""What collectors, reconciliation and watchdogs record, and the tables that come of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from analytics.queries import Queries
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store
from identity.sources import Sources
from ingest.events import (
    BackendOpened,
    BackendReaped,
    Event,
    Frame,
    ObservationGap,
    SessionJudged,
    SessionObserved,
    SessionUnobserved,
    SourceDeclared,
    SourceWithdrawn,
    StatementObserved,
    WatchdogConnected,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.frames import TOPIC_OF, Framer, decode
from ingest.log import Record
from tests.analytics.scenario import MINUTE, SECOND, START_US

SERVER = "main"


def observed(number: int, witness: str = "log", at_us: int = START_US, **changes: object) -> SessionObserved:
    fields: dict[str, object] = {
        "at_us": at_us,
        "witness": witness,
        "server": SERVER,
        "session_id": f"6b02d1c3.{number:x}",
        "backend_pid": number,
        "user": "pgwarden",
        "database": "shop",
        "client": "127.0.0.1:41000",
        "application_name": "psql",
    }
    return SessionObserved(**(fields | changes))  # type: ignore[arg-type]


def ran(
    number: int,
    sequence: int,
    text: str = "select 1",
    witness: str = "log",
    source: str = "statement",
    sqlstate: str = "",
    known: bool = True,
) -> StatementObserved:
    return StatementObserved(
        at_us=START_US + sequence * SECOND,
        witness=witness,
        server=SERVER,
        session_id=f"6b02d1c3.{number:x}",
        sequence=sequence,
        source=source,
        text=text,
        text_bytes=len(text),
        digest="d" * 32,
        query_id=-7,
        rows=3 if known and not sqlstate else -1,
        sqlstate=sqlstate,
        duration_us=11,
        user="pgwarden",
        database="shop",
        client="127.0.0.1:41000",
        outcome_known=known,
    )


def reported(at_us: int, *, seeing: bool = True, observed: int = 5) -> WitnessReported:
    reason = "" if seeing else "the log file is gone"
    return WitnessReported(at_us, "log", "log", SERVER, seeing, reason, at_us - SECOND, at_us - MINUTE, observed, 0, 900)


class Pen:
    """Writes what several processes recorded, each under its own name and boot, as records of one partition a topic."""

    def __init__(self) -> None:
        self.frames: list[tuple[Record, Frame]] = []
        self._framers: dict[tuple[str, int], Framer] = {}
        self._offsets: dict[str, int] = {}

    def write(self, writer: str, boot: int, *events: Event) -> None:
        framer = self._framers.setdefault((writer, boot), Framer(writer, boot, events_max=100, bytes_max=64 * 1024))
        for event in events:
            framer.add(TOPIC_OF[type(event)], SERVER, event)
        for entry in framer.cut():
            offset = self._offsets.get(entry.topic, 0)
            self._offsets[entry.topic] = offset + 1
            self.frames.append((Record(entry.topic, 0, offset, START_US, entry.key, entry.value), decode(entry.value)))


def ingest(store: Store, frames: Sequence[tuple[Record, Frame]]) -> None:
    store.ingest(Batch(frames, {}, {}))


def rows(store: Store, sql: str) -> list[dict[str, object]]:
    found = store.read(sql, {})
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.fixture
def pen() -> Pen:
    return Pen()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(AnalyticsSettings(tmp_path / "tables"))
    yield store
    store.close()


def test_a_session_is_one_row_whoever_saw_it_and_the_one_that_knows_the_process_is_believed(pen: Pen, store: Store) -> None:
    pen.write("c", 1, observed(7, "log"), observed(7, "probe", client_pid=99, client_exe="/usr/bin/psql", client_uid=1000))
    pen.write("c", 1, observed(7, "log", START_US + MINUTE))  # told again, by a collector that began anew
    pen.write("c", 1, SessionUnobserved(START_US + MINUTE, "log", SERVER, "6b02d1c3.7", "disconnection"))
    ingest(store, pen.frames)
    (row,) = rows(store, "select * from observed_sessions")
    assert (row["witnesses"], row["client_pid"], row["client_exe"], row["client_uid"]) == (
        ["log", "probe"],
        99,
        "/usr/bin/psql",
        1000,
    )
    assert (row["verdict"], row["end_reason"], row["killed_by"]) == ("pending", "disconnection", "")
    began, ended = row["began_at"], row["ended_at"]
    assert isinstance(began, datetime)
    assert isinstance(ended, datetime)
    assert (ended - began).total_seconds() == 60


def test_the_latest_verdict_stands_and_the_first_proof_of_an_end(pen: Pen, store: Store) -> None:
    pen.write("c", 1, observed(7))
    pen.write("api", 1, SessionJudged(START_US, SERVER, "6b02d1c3.7", "unexplained", "", "", "", "the gateway is late"))
    pen.write("api", 1, SessionJudged(START_US + 1, SERVER, "6b02d1c3.7", "shadow", "", "", "", "no gateway opened it"))
    for watchdog, gone_us in (("w-2", START_US + 9), ("w-1", START_US + 8), ("w-3", 0)):
        pen.write(
            watchdog,
            1,
            BackendReaped(START_US + 10, "o", SERVER, "6b02d1c3.7", 7, START_US, START_US + 1, gone_us, "r", "f", watchdog),
        )
    ingest(store, pen.frames)
    (row,) = rows(
        store, "select verdict, verdict_reason, killed_by, kill_backend_gone_at = ended_at as gone from observed_sessions"
    )
    assert row == {"verdict": "shadow", "verdict_reason": "no gateway opened it", "killed_by": "w-1", "gone": True}


def test_an_observation_that_is_told_again_counts_once(pen: Pen, store: Store) -> None:
    pen.write("c", 1, ran(7, 1), ran(7, 2), ran(7, 2))
    pen.write("c", 2, ran(7, 2), ran(7, 3), ran(7, 3, witness="probe"), ran(7, 3, source="audit"), ran(8, 3))
    for pair in pen.frames:
        ingest(store, [pair])
    found = rows(store, "select witness, session_id, source, sequence from observed_statements order by all")
    assert [tuple(row.values()) for row in found] == [
        ("log", "6b02d1c3.7", "audit", 3),
        ("log", "6b02d1c3.7", "statement", 1),
        ("log", "6b02d1c3.7", "statement", 2),
        ("log", "6b02d1c3.7", "statement", 3),
        ("log", "6b02d1c3.8", "statement", 3),
        ("probe", "6b02d1c3.7", "statement", 3),
    ]


@pytest.mark.parametrize("cut", [1, 4])
def test_the_word_that_knows_the_end_stands_whenever_it_comes(pen: Pen, store: Store, cut: int) -> None:
    begun, failed = ran(7, 1, known=False), ran(7, 1, sqlstate="57014")
    for one in (begun, failed, begun, ran(7, 1)):  # a collector that began anew says what it said, and less at first
        pen.write("c", 1, one)
    pen.write("c", 1, ran(7, 2, known=False), ran(8, 1, known=False))
    for number in range(0, len(pen.frames), cut):
        ingest(store, pen.frames[number : number + cut])
    found = rows(store, "select session_id, sequence, sqlstate, outcome_known from observed_statements order by all")
    assert [tuple(row.values()) for row in found] == [
        ("6b02d1c3.7", 1, "57014", True),
        ("6b02d1c3.7", 2, "", False),
        ("6b02d1c3.8", 1, "", False),
    ]


def started(at_us: int, resumed_us: int = 0) -> WitnessStarted:
    return WitnessStarted(at_us, "log", "log", SERVER, ("shop",), "statements", "1", resumed_us)


def test_a_collector_is_what_it_last_said_of_itself(pen: Pen, store: Store) -> None:
    far = 4_000_000_000_000_000  # a report that is not old, whenever this runs
    pen.write("c", 1, started(far - MINUTE), reported(far - SECOND, observed=4), reported(far, observed=6))
    ingest(store, pen.frames)
    (row,) = rows(store, "select state, connections, sees, observed, reason from witnesses")
    assert row == {"state": "seeing", "connections": ["shop"], "sees": "statements", "observed": 6, "reason": ""}
    pen.write("c", 1, reported(far + SECOND, seeing=False), WitnessBlinded(far + SECOND, "log", "log", SERVER, far, "gone"))
    ingest(store, pen.frames[-1:])
    (row,) = rows(store, "select state, reason, blind_since_at is not null as since from witnesses")
    assert row == {"state": "blind", "reason": "the log file is gone", "since": True}
    pen.write("c", 1, WitnessStopped(far + MINUTE, "log", "log", SERVER))
    ingest(store, pen.frames[-1:])
    assert rows(store, "select state from witnesses") == [{"state": "stopped"}]


def test_a_collector_that_says_nothing_any_more_is_silent(pen: Pen, store: Store) -> None:
    pen.write("c", 1, started(START_US - MINUTE), reported(START_US))
    ingest(store, pen.frames)
    assert rows(store, "select state, reason from witnesses") == [{"state": "silent", "reason": "it says nothing any more"}]


def test_what_nobody_saw_is_told_lost_blind_and_not_looking(pen: Pen, store: Store) -> None:
    pen.write(
        "c", 1, started(START_US), ObservationGap(START_US + 5, "log", SERVER, "6b02d1c3.7", START_US + 1, START_US + 4, 3, "r")
    )
    pen.write("c", 1, WitnessBlinded(START_US + 8, "log", "log", SERVER, START_US + 6, "gone"))
    pen.write("c", 1, WitnessRestored(START_US + 20, "log", "log", SERVER, START_US + 6))
    pen.write("c", 1, WitnessStopped(START_US + 30, "log", "log", SERVER))
    pen.write("c", 2, started(START_US + 50))
    pen.write("c", 3, started(START_US + 90, START_US + 50))  # resumes at once where the one before ended: no gap
    ingest(store, pen.frames)
    found = rows(
        store, "select kind, session_id, epoch_us(from_at) as a, epoch_us(until_at) as b, lost, reason from observation_gaps"
    )
    assert sorted((*row.values(),) for row in found) == [
        ("blind", "", START_US + 6, START_US + 20, 0, "gone"),
        ("lost", "6b02d1c3.7", START_US + 1, START_US + 4, 3, "r"),
        ("not looking", "", START_US + 30, START_US + 50, 0, "the collector did not run"),
    ]


def test_our_own_backends_are_told_by_those_who_opened_them(pen: Pen, store: Store) -> None:
    pen.write("gw", 1, BackendOpened(START_US, "gw", 1, "control", "shop", "pgwarden", 7, 0x6B02D1C3 * SECOND + 5, 41000))
    pen.write("gw", 1, BackendOpened(START_US, "gw", 1, "refused", "shop", "pgwarden", 8, 0, 41001))
    pen.write("w", 1, WatchdogConnected(START_US, "w", "shop", "pgwarden", 9, 0x6B02D1C3 * SECOND, 41002))
    pen.write("c", 1, WitnessConnected(START_US, "log", SERVER, "6b02d1c3.a", 10, "monitor", "canary", "d"))
    ingest(store, pen.frames)
    found = rows(store, "select kind, name, purpose, session_id from own_backends order by backend_pid")
    assert [tuple(row.values()) for row in found] == [
        ("gateway", "gw", "control", "6b02d1c3.7"),
        ("gateway", "gw", "refused", ""),
        ("watchdog", "w", "control", "6b02d1c3.9"),
        ("collector", "log", "canary", "6b02d1c3.a"),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_sources_are_those_of_the_registry(pen: Pen, store: Store, seed: int) -> None:
    chance = random.Random(seed)
    sources = Sources()
    for number in range(60):
        name, at_us = chance.choice("abc"), START_US + number
        stands = name in sources.all and sources.all[name].stands
        event: SourceDeclared | SourceWithdrawn
        if stands:  # what identity.commands lets through, and no other
            event = SourceWithdrawn(at_us, name, f"r{number}", "op")
            sources.withdrawn(event)
        else:
            event = SourceDeclared(at_us, name, "backup", "", ("backup",), "local", "", "", f"r{number}", "op")
            sources.declared(event)
        pen.write("api", 1, event)
    ingest(store, pen.frames)
    found = rows(store, "select source, state, reason, withdrawn_reason from sources order by source")
    assert [tuple(row.values()) for row in found] == [
        (s.name, "declared" if s.stands else "withdrawn", s.reason, s.withdrawn_reason or None)
        for s in sorted(sources.all.values(), key=lambda s: s.name)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_tables_do_not_depend_on_how_the_log_is_cut(tmp_path: Path, pen: Pen, seed: int) -> None:
    chance = random.Random(seed)
    boot = 1
    pen.write("c", boot, started(START_US))
    for number in range(80):
        at_us = START_US + number * SECOND
        session = chance.randrange(6)
        events: list[tuple[str, Event]] = [
            ("c", observed(session, chance.choice(["log", "probe"]), at_us)),
            ("c", SessionUnobserved(at_us, "log", SERVER, f"6b02d1c3.{session:x}")),
            ("c", ran(session, chance.randrange(12))),
            ("c", ran(session, chance.randrange(12), witness="probe")),
            ("c", ran(session, chance.randrange(12), known=False)),
            ("c", ran(session, chance.randrange(12), sqlstate="22012")),
            ("c", reported(at_us, seeing=chance.random() < 0.5, observed=number)),
            ("c", WitnessBlinded(at_us, "log", "log", SERVER, at_us - 1, f"r{number}")),
            ("c", WitnessRestored(at_us, "log", "log", SERVER, at_us - 1 - chance.randrange(4) * SECOND)),
            ("api", SessionJudged(at_us, SERVER, f"6b02d1c3.{session:x}", "shadow", "", "", "", f"r{number}")),
            ("w", BackendReaped(at_us, "o", SERVER, f"6b02d1c3.{session:x}", 7, at_us, at_us, at_us, "r", "f", "w")),
            ("c", ObservationGap(at_us, "log", SERVER, "", at_us - 9, at_us, 1, "r")),
        ]
        if chance.random() < 0.1:
            pen.write("c", boot, WitnessStopped(at_us, "log", "log", SERVER))
            boot += 1
            pen.write("c", boot, started(at_us + 1))
        for writer, event in chance.sample(events, 6):
            pen.write(writer, boot if writer == "c" else 1, event)
    whole = Store.open(AnalyticsSettings(tmp_path / "whole"))
    pieces = Store.open(AnalyticsSettings(tmp_path / "pieces"))
    try:
        ingest(whole, pen.frames)
        by_topic = {
            topic: [pair for pair in pen.frames if pair[0].topic == topic] for topic in ("witness", "findings", "observations")
        }
        while any(by_topic.values()):
            topic = chance.choice([topic for topic, left in by_topic.items() if left])
            count = chance.randrange(1, 9)
            batch, by_topic[topic] = by_topic[topic][:count], by_topic[topic][count:]
            ingest(pieces, batch)
        assert pieces.sums() == whole.sums()
        assert whole.counts()["observed_statements"] > 20
        for view in ("observed_sessions", "observation_gaps", "witnesses"):
            assert rows(whole, f"select * from {view} order by all") == rows(pieces, f"select * from {view} order by all")
    finally:
        whole.close()
        pieces.close()


async def test_each_question_about_coverage_answers_and_pages(pen: Pen, store: Store) -> None:
    pen.write("c", 1, started(START_US), reported(START_US))
    for number in range(5):
        pen.write("c", 1, observed(number, at_us=START_US + number), ran(1, number))
        pen.write("c", 1, ObservationGap(START_US + number, "log", SERVER, "", START_US, START_US + number, 1, "r"))
        pen.write("api", 1, SourceDeclared(START_US, f"s{number}", "backup", "", ("b",), "local", "", "", "r", "op"))
    ingest(store, pen.frames)
    queries = Queries(store, AnalyticsSettings(Path("unused")), lambda: START_US + MINUTE)
    try:
        assert [item["witness"] for item in (await queries.ask("coverage", {})).items] == ["log"]
        for name, given, key in (
            ("observed_sessions", {}, "session_id"),
            ("observed_statements", {"session_id": "6b02d1c3.1"}, "sequence"),
            ("coverage_gaps", {"kind": "lost"}, "until_at"),
            ("sources", {"state": "declared"}, "source"),
        ):
            whole = [item[key] for item in (await queries.ask(name, given)).items]
            assert len(whole) == 5, name
            paged: list[object] = []
            before = ""
            while True:
                answer = await queries.ask(name, {**given, "limit": 2, **({"before": before} if before else {})})
                paged += [item[key] for item in answer.items]
                if answer.next is None:
                    break
                before = answer.next
            assert paged == whole, name
    finally:
        queries.close()
