"""What an operator follows: the lines that frames make, and those that a filter lets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics.following import TOPICS, Line, Texts, Wanted, lines
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings


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
