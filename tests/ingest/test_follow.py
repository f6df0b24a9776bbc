from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from ingest.events import AgentRevoked, Event, Frame
from ingest.follow import Follower, Gap, follow
from ingest.frames import Framer, decode, encode
from ingest.log import Entry, LogCorrupt
from ingest.log.memory import MemoryLog
from ingest.log.partitioner import partition
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings


def revoked(n: int) -> AgentRevoked:
    return AgentRevoked(at_us=n, agent="a", reason="r", operator="o")


def framer(boot: int = 1, partitions: int = 1) -> Framer:
    return Framer("w", boot, events_max=1, bytes_max=1000, partition=lambda _, key: partition(key, partitions))


def frames(subject: Framer, count: int, keys: int = 1) -> list[Entry]:
    for n in range(count):
        subject.add("identity", f"agent {n % keys}", revoked(n))
    return subject.cut()


def reader(log: MemoryLog, gaps: list[Gap]) -> Follower:
    return Follower(log, ("identity",), {}, on_gap=gaps.append)


async def events(follower: Follower) -> list[Event]:
    found: list[Event] = []
    while some := await follower.poll(timeout_seconds=0):
        found += [event for _, frame in some for _, event in frame.events]
    return found


async def test_frames_come_in_order_beside_their_records() -> None:
    log = MemoryLog()
    await log.append(frames(framer(), 5))
    found = await reader(log, []).poll()
    assert [(record.offset, frame.seq) for record, frame in found] == [(n, n) for n in range(5)]


async def test_a_frame_that_was_appended_again_is_returned_once() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    entries = frames(framer(), 6)
    for some in (entries[:2], entries[:3], entries[:3], entries[3:], entries[3:]):
        await log.append(some)
    follower = reader(log, gaps)
    assert await events(follower) == [revoked(n) for n in range(6)]
    assert follower.offsets == {("identity", 0): 14}
    assert gaps == []


async def test_repetitions_alone_are_not_taken_for_the_end() -> None:
    log = MemoryLog()
    entries = frames(framer(), 3)
    await log.append([*entries, *entries, *frames(framer(2), 1)])
    follower = reader(log, [])
    assert [len(await follower.poll(3, 0)) for _ in range(3)] == [3, 1, 0]


@pytest.mark.parametrize(("lost", "after", "seq"), [(0, -1, 1), (3, 2, 4)])
async def test_a_missing_frame_is_told_before_the_one_behind_it(lost: int, after: int, seq: int) -> None:
    log, gaps = MemoryLog(), list[Gap]()
    entries = frames(framer(), 6)
    await log.append(entries[:lost] + entries[lost + 1 :])
    assert len(await events(reader(log, gaps))) == 5
    assert gaps == [Gap("identity", 0, lost, "w", 1, after, seq)]


async def test_without_a_listener_a_gap_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    log = MemoryLog()
    await log.append(frames(framer(), 3)[1:])
    with caplog.at_level(logging.ERROR):
        await Follower(log, ("identity",), {}).poll()
    assert "frames are missing" in caplog.text


async def test_over_several_partitions_only_a_real_gap_is_told() -> None:
    log, gaps = MemoryLog({"identity": 4}), list[Gap]()
    entries = frames(framer(partitions=4), 60, keys=13)
    lost = entries[31]
    for entry in entries:
        if entry is not lost:
            await log.append([entry])
    assert len(await events(reader(log, gaps))) == 59
    [gap] = gaps
    assert gap.partition == partition(lost.key, 4)
    assert gap.after_seq < decode(lost.value).seq < gap.seq


async def test_a_new_boot_begins_a_new_count() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    for boot in (1, 2, 7):
        await log.append(frames(framer(boot), 3))
    assert len(await events(reader(log, gaps))) == 9
    assert gaps == []


async def test_the_loss_of_a_new_boots_first_frame_is_told() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    await log.append(frames(framer(1), 3) + frames(framer(2), 3)[1:])
    await events(reader(log, gaps))
    assert [(gap.boot, gap.after_seq, gap.seq) for gap in gaps] == [(2, -1, 1)]


async def test_what_an_earlier_boot_appended_again_comes_late_and_is_passed_over() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    before, after = frames(framer(1), 4), frames(framer(2), 3)
    await log.append([*before[:3], *after[:2], *before[1:3], before[3], *before[2:], after[2]])
    follower = reader(log, gaps)
    found = [(frame.boot, frame.seq) for _, frame in await follower.poll()]
    assert found == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (1, 3), (2, 2)]
    assert gaps == []


async def test_a_frame_of_an_earlier_boot_that_never_came_is_missed_when_a_later_one_comes() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    before, after = frames(framer(1), 4), frames(framer(2), 1)
    await log.append([before[0], *after, before[3]])
    await events(reader(log, gaps))
    assert [(gap.boot, gap.after_seq, gap.seq) for gap in gaps] == [(1, 0, 3)]


async def test_a_reading_that_is_resumed_knows_repetitions_and_gaps_from_before() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    entries = frames(framer(), 8)
    await log.append(entries[:4])
    first = reader(log, gaps)
    await events(first)
    await log.append(entries[2:6] + entries[7:])
    second = Follower(log, ("identity",), first.offsets, first.seen, gaps.append)
    assert await events(second) == [revoked(4), revoked(5), revoked(7)]
    assert [(gap.after_seq, gap.seq) for gap in gaps] == [(5, 7)]


async def test_a_reading_that_begins_in_the_middle_takes_what_stands_before_on_trust() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    await log.append(frames(framer(), 8))
    follower = Follower(log, ("identity",), {("identity", 0): 5}, on_gap=gaps.append)
    assert await events(follower) == [revoked(5), revoked(6), revoked(7)]
    assert gaps == []


async def test_a_record_that_is_no_frame_stops_the_reading_there_and_not_before() -> None:
    log = MemoryLog()
    entries = frames(framer(), 3)
    await log.append([*entries[:2], Entry("identity", b"agent 0", b"\xc1 no frame"), *entries[2:]])
    follower = reader(log, [])
    assert len(await follower.poll()) == 2
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="identity/0, record 2"):
            await follower.poll()
    assert follower.offsets == {("identity", 0): 2}


async def test_a_record_that_is_no_frame_takes_no_other_topics_frames_with_it() -> None:
    log = MemoryLog()
    await log.append([*frames(framer(), 2), Entry("identity", b"agent 0", b"\xc1 no frame")])
    await log.append([Entry("findings", e.key, e.value) for e in frames(framer(), 5)])
    follower = Follower(log, ("identity", "findings"), {})
    found: list[tuple[str, int]] = []
    with pytest.raises(LogCorrupt, match="identity/0, record 2"):
        while True:
            found += [(record.topic, record.offset) for record, _ in await follower.poll(100, 0)]
    seen = {topic: [offset for t, offset in found if t == topic] for topic in ("identity", "findings")}
    assert seen["identity"] == [0, 1]
    assert seen["findings"] == list(range(follower.offsets[("findings", 0)]))


async def test_what_retention_took_from_a_reading_that_was_behind_is_told_though_no_writer_misses_it(tmp_path: Path) -> None:
    """A boot that is lost from its first frame to its last leaves no hole in the numbers of the next one."""
    log, gaps = SegmentLog(tmp_path, LogSettings(segment_bytes_max=4096, preallocate_bytes=4096)), list[Gap]()
    for boot, count in ((1, 10), (2, 200), (3, 1)):
        for entry in frames(framer(boot), count):
            await log.append([entry])
    first = Follower(log, ("identity",), {}, on_gap=gaps.append)
    while first.offsets[("identity", 0)] < 10:
        await first.poll(10 - first.offsets[("identity", 0)])
    log.trim("identity", 0, 210)
    begin = log.begin_offsets("identity")[("identity", 0)]
    assert begin > 10
    resumed = Follower(log, ("identity",), first.offsets, first.seen, gaps.append)
    assert len(await events(resumed)) == 211 - begin
    assert gaps[0] == Gap("identity", 0, begin, "", 0, 9, begin)
    told = len(gaps)
    assert len(await events(Follower(log, ("identity",), {}, on_gap=gaps.append))) == 211 - begin
    assert len(gaps) == told, "what nobody began to read is no gap"
    await log.close()


async def test_an_event_of_another_topic_stops_the_reading_there() -> None:
    """Who may write `commands` may not grant."""
    log = MemoryLog()
    (entry,) = frames(framer(), 1)
    await log.append([Entry("commands", entry.key, entry.value)])
    follower = Follower(log, ("identity", "commands"), {})
    with pytest.raises(LogCorrupt, match="commands/0, record 0: AgentRevoked does not belong to topic commands"):
        await follower.poll()


async def test_follow_gives_one_frame_after_the_other_and_waits_for_more() -> None:
    log = MemoryLog()
    subject = framer()
    await log.append(frames(subject, 2))
    found: list[Frame] = []
    async with asyncio.timeout(5):
        async for _, frame in follow(log, ("identity",), {}):
            found.append(frame)
            if len(found) == 2:
                await log.append(frames(subject, 1))
            if len(found) == 3:
                break
    assert [frame.seq for frame in found] == [0, 1, 2]


async def test_two_writers_of_one_topic_are_counted_apart() -> None:
    log, gaps = MemoryLog(), list[Gap]()
    one = frames(framer(), 4)
    other = [Entry(e.topic, e.key, encode(msgspec.structs.replace(decode(e.value), writer="other"))) for e in one]
    for pair in zip(one, other, strict=True):
        await log.append(pair)
    assert len(await events(reader(log, gaps))) == 8
    assert gaps == []
