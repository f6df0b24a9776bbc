"""What an operator follows: the lines that frames make, and those that a filter lets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics.follow_api import _behind_seconds, _found, whole
from analytics.following import TOPICS, Line, Texts, Wanted, lines
from analytics.queries import Queries
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.events import StatementStarted
from ingest.follow import Follower
from ingest.log import Entry, LogCorrupt
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.analytics.scenario import Writer, stamp


async def followed(folder: Path, wanted: Wanted, texts: Texts | None = None) -> list[Line]:
    log = SegmentLog(folder / "log", LogSettings())
    follower = Follower(log, TOPICS, {})
    texts = texts or Texts()
    found: list[Line] = []
    ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
    while any(follower.offsets[place] < end for place, end in ends.items()):
        for record, frame in await follower.poll(timeout_seconds=1):
            found += lines(record, frame, wanted, texts)
    follower.close()
    await log.close()
    return sorted(found, key=lambda line: int(line["at_us"] or 0))


async def test_a_story_is_told_line_by_line(told_once: Path) -> None:
    found = await followed(told_once, Wanted(agent="reporter"))
    mine = [line for line in found if line["session"] == "s1"]
    assert [line["kind"] for line in mine if line["kind"] != "statement finished"] == [
        "session opened",
        "statement",
        "statement denied",
        "statement",
        "session killed",
        "session closed",
    ]
    assert {line["kind"] for line in found if line["session"] != "s1"} >= {"session denied", "finding"}
    refused = next(line for line in found if line["kind"] == "statement denied")
    assert (refused["text"], refused["reason"], refused["sqlstate"], refused["execution"]) == (
        "SELECT * FROM secrets",
        "secrets is not in your scope",
        "42501",
        2,
    )
    ended = [line for line in found if line["kind"] == "statement finished"]
    assert [(line["execution"], line["outcome"], line["rows"]) for line in ended] == [(1, "ok", 10), (3, "ok", 7)]
    assert len({line["offset"] for line in found}) == len(found)


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (Wanted(decision="deny"), {"statement denied", "session denied"}),
        (Wanted(decision="allow"), {"statement", "statement finished"}),
        (Wanted(agent="loader", decision="deny"), set()),
        (Wanted(agent="nobody"), set()),
    ],
)
async def test_a_filter_lets_through_what_it_names(told_once: Path, wanted: Wanted, kinds: set[str]) -> None:
    found = await followed(told_once, wanted)
    assert {line["kind"] for line in found} == kinds
    assert {line["agent"] for line in found} <= {wanted.agent or "reporter", "loader"}


async def test_a_text_that_was_forgotten_is_left_to_the_tables_and_a_long_one_is_cut(told_once: Path) -> None:
    forgetful = await followed(told_once, Wanted(agent="reporter"), Texts(kept_max=1))
    assert [line["text"] for line in forgetful if line["kind"] == "statement"] == [None, None]
    short = await followed(told_once, Wanted(agent="reporter"), Texts(characters_max=6))
    assert {line["text"] for line in short if line["kind"] == "statement"} == {"SELECT"}


async def test_what_the_tables_know_is_told_and_kept_and_what_nobody_knows_stays_open(told_once: Path, store: Store) -> None:
    lost = await followed(told_once, Wanted(agent="reporter"), Texts(kept_max=0))
    lost += [line | {"session": "s-never"} for line in lost if line["kind"] == "statement"][:1]
    texts = Texts()
    queries = Queries(store, AnalyticsSettings(told_once / "tables"))
    told = [(item["session"], item["text"]) for item in await whole(queries, lost, texts) if "decision" in item and "text" in item]
    queries.close()
    assert ("s1", "SELECT * FROM secrets") in told
    assert [session for session, text in told if text is None] == ["s-never"]
    assert [texts.of(str(line["session"]), int(line["statement"] or 0)) is None for line in lost if "statement" in line] == [
        line["session"] == "s-never" for line in lost if "statement" in line
    ]


async def test_tables_that_do_not_answer_cost_the_texts_and_not_what_happened(told_once: Path, store: Store) -> None:
    lost = await followed(told_once, Wanted(agent="reporter"), Texts(kept_max=0))
    queries = Queries(store, AnalyticsSettings(told_once / "tables"))
    store.close()
    told = await whole(queries, lost, Texts())
    queries.close()
    assert len(told) == len(lost)
    assert {item["text"] for item in told if item["kind"] == "statement"} == {None}


def test_behind_is_the_age_of_what_was_read_last_where_there_is_more() -> None:
    a, b = ("statements", 0), ("sessions", 0)
    ends = {a: 10, b: 4}
    assert _behind_seconds({a: 10, b: 5}, ends, {a: 1_000_000}, 90_000_000) == 0
    assert _behind_seconds({a: 9, b: 4}, ends, {a: 30_000_000, b: 1_000_000}, 90_000_000) == 60
    assert _behind_seconds({a: 9, b: 3}, ends, {a: 30_000_000, b: 1_000_000}, 90_000_000) == 89
    assert _behind_seconds({a: 9, b: 4}, ends, {}, 90_000_000) is None


async def test_what_stands_before_damage_is_told_before_the_damage_is(log: SegmentLog) -> None:
    writer = Writer(log)
    under = stamp("s1", "reporter")
    for execution in range(30):
        writer.add("reporter", StatementStarted(writer.at(), execution, 1, "rule"), under)
        await writer.write()
    await log.append([Entry("statements", b"reporter", b"no frame")])
    offsets = {place: 0 for topic in TOPICS for place in log.end_offsets(topic)}
    found, _ = await _found(log, offsets, Wanted(), Texts(), 5, lambda: False)
    assert ([line["execution"] for line in found], offsets["statements", 0]) == (list(range(30)), 30)
    with pytest.raises(LogCorrupt):
        await _found(log, offsets, Wanted(), Texts(), 5, lambda: False)
