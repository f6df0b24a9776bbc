"""What a watchdog ended, and what evidence says of an unknown outcome, in the tables: once, and the same however it was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics.queries import Queries
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store
from ingest.events import TOPICS, Frame, OutcomeResolved, SessionKilled, SessionReaped
from ingest.follow import Follower
from ingest.log import Record
from ingest.log.segments import SegmentLog
from tests.analytics.scenario import SECOND, START_US, Writer, stamp

UNDER = stamp("s1", "reporter")


@pytest.fixture
def empty(settings: AnalyticsSettings) -> Store:
    return Store.open(settings)


def rows(store: Store, question: str) -> list[tuple[object, ...]]:
    return store.read(question, {}).rows


def reaped(gone_us: int, watchdog: str = "watchdog", cause: str = "agent revoked", session: str = "s1") -> SessionReaped:
    return SessionReaped(
        gone_us + 1, session, "reporter", "gw-1", 1, cause, START_US, START_US + 500_000, gone_us, 4711, "leaked", watchdog
    )


async def frames_of(log: SegmentLog) -> tuple[list[tuple[Record, Frame]], Follower]:
    follower = Follower(log, TOPICS, {})
    frames = []
    while found := await follower.poll(timeout_seconds=0.05):
        frames += found
    follower.close()
    return frames, follower


async def everything(log: SegmentLog, store: Store) -> None:
    frames, follower = await frames_of(log)
    store.ingest(Batch(frames, follower.offsets, follower.seen))


async def opened(log: SegmentLog) -> Writer:
    gateway = Writer(log)
    gateway.started()
    gateway.opened(UNDER)
    gateway.defined(UNDER, 1, "INSERT INTO orders SELECT 1")
    gateway.began(UNDER, 1, 1)
    await gateway.write()
    return gateway


async def test_a_session_that_a_watchdog_ended_is_killed_and_its_statement_unknown(log: SegmentLog, empty: Store) -> None:
    await opened(log)
    dog = Writer(log, "watchdog")
    dog.add("reporter", reaped(START_US + SECOND))
    await dog.write()
    await everything(log, empty)
    found = rows(empty, "select state, close_reason, kill_cause, kill_ended_by, closed_at = kill_backend_gone_at from sessions")
    assert found == [("killed", "killed", "agent revoked", "watchdog", True)]
    assert rows(empty, "select outcome from statements") == [("unknown",)]
    assert rows(empty, "select ended_by, watchdog, client_closed_at from kills") == [("watchdog", "watchdog", None)]


async def test_whoever_proved_it_first_has_the_row_however_often_and_late_others_say_so(log: SegmentLog, empty: Store) -> None:
    gateway = await opened(log)
    for name, gone_us in (("second", START_US + 2 * SECOND), ("first", START_US + SECOND), ("blind", 0)):
        dog = Writer(log, name)
        dog.add("reporter", reaped(gone_us, name))
        await dog.write()
    t = START_US + 30 * SECOND
    gateway.add(
        "reporter", SessionKilled(t, "s1", "reporter", "agent revoked", START_US, t - 300, t - 200, t - 100, 4711, "leaked")
    )
    gateway.at(30 * SECOND)
    gateway.closed(UNDER, "killed")
    await gateway.write()
    await everything(log, empty)
    found = rows(empty, "select ended_by, watchdog, epoch_us(backend_gone_at), epoch_us(client_closed_at) from kills")
    assert found == [("watchdog", "first", START_US + SECOND, t - 200)]
    assert rows(empty, "select count(*) from kill_records") == [(4,)]
    found = rows(empty, "select state, close_reason, kill_ended_by, executions from sessions")
    assert found == [("killed", "killed", "watchdog", 3)]


async def test_the_tables_are_the_same_whichever_topic_was_read_first(log: SegmentLog, tmp_path: Path) -> None:
    gateway = await opened(log)
    for name in ("a", "b"):
        dog = Writer(log, name)
        dog.add("reporter", reaped(START_US + SECOND, name))
        await dog.write()
    gateway.killed(UNDER)
    gateway.closed(UNDER, "server")
    gateway.add("reporter", OutcomeResolved(gateway.at(), 1, "aborted", "in a transaction"), UNDER)
    gateway.add("reporter", OutcomeResolved(gateway.at(), 1, "committed", "said again"), UNDER)
    await gateway.write()
    frames, follower = await frames_of(log)
    sums, kills = set(), []
    topics = ("observations", "sessions", "statements")
    for number, first in enumerate(topics):
        store = Store.open(AnalyticsSettings(tmp_path / f"tables-{number}"))
        last = topics[number - 1]
        for pair in sorted(frames, key=lambda pair: (pair[0].topic != first, pair[0].topic == last)):  # each topic in its order
            store.ingest(Batch([pair], follower.offsets, follower.seen))
        sums.add(store.checksum())
        kills.append(rows(store, "select * from kills"))
        assert rows(store, "select resolution, resolution_evidence from statements") == [("aborted", "in a transaction")]
        store.close()
    assert len(sums) == 1
    assert kills[0] == kills[1] == kills[2]
    assert len(kills[0]) == 1


@pytest.mark.parametrize(("closed_after_us", "state"), [(-1, "closed"), (0, "killed"), (90 * SECOND, "killed")])
async def test_a_session_that_its_gateway_had_closed_before_it_was_missed_was_not_ended_for_want_of_it(
    log: SegmentLog, empty: Store, closed_after_us: int, state: str
) -> None:
    gateway = await opened(log)
    dog = Writer(log, "watchdog")
    dog.add("reporter", reaped(START_US + SECOND, cause="gateway gone"))  # missed at START_US
    await dog.write()
    await everything(log, empty)
    assert rows(empty, "select state from sessions") == [("killed",)]
    gateway.now_us = START_US + closed_after_us
    gateway.closed(UNDER)
    await gateway.write()
    frames, follower = await frames_of(log)
    late = [pair for pair in frames if pair[0].topic == "sessions"][-1:]
    empty.ingest(Batch(late, follower.offsets, follower.seen))
    assert rows(empty, "select state, close_reason, kill_cause is null from sessions") == [(state, "client", state == "closed")]


async def test_questions_show_who_ended_a_session_and_what_evidence_says(log: SegmentLog, empty: Store) -> None:
    gateway = await opened(log)
    gateway.add("reporter", OutcomeResolved(gateway.at(), 1, "not executed", "its text never left the gateway"), UNDER)
    await gateway.write()
    dog = Writer(log, "watchdog")
    dog.add("reporter", reaped(START_US + SECOND, cause="gateway gone"))
    await dog.write()
    await everything(log, empty)
    queries = Queries(empty, AnalyticsSettings(Path("unused")))
    (kill,) = (await queries.ask("kills", {})).items
    assert (kill["ended_by"], kill["watchdog"], kill["cause"]) == ("watchdog", "watchdog", "gateway gone")
    assert kill["backend_gone_after_us"] == SECOND
    (statement,) = (await queries.ask("statements", {})).items
    assert (statement["outcome"], statement["resolution"]) == ("unknown", "not executed")
    (whole,) = (await queries.ask("statement", {"session": "s1", "execution": 1})).items
    assert whole["resolution_evidence"] == "its text never left the gateway"
    timeline = (await queries.ask("timeline", {"session": "s1"})).items
    assert ("killed", "gateway gone, by the watchdog, the backend is gone") in {(one["kind"], one["text"]) for one in timeline}
    assert "not executed" in {one["resolution"] for one in timeline}
    queries.close()
