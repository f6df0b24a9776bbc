"""One suite for every log. A log joins it with one function that opens it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from ingest.log import Entry, EventLog, GroupSubscription, LogUnavailable, Partition, Position, Record, Subscription, topics
from ingest.log.memory import MemoryLog
from ingest.log.partitioner import partition
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests import broker as brokers

Open: TypeAlias = Callable[[], Awaitable[EventLog]]
PARTITIONS = {"narrow": 1, "wide": 4, "other": 1, "unwritten": 1}
RECORD_BYTES_MAX = 6 * 2**20
WAITING_BYTES_MAX = 8 * 2**20

# Several open()s of one test are several processes' views of one log, as far as one process can have them; but for memory, where
# they are the same object.


def memory_opener() -> Open:
    log = MemoryLog(PARTITIONS, record_bytes_max=RECORD_BYTES_MAX, waiting_bytes_max=WAITING_BYTES_MAX)

    async def open_memory() -> EventLog:
        return log

    return open_memory


def segments_opener(directory: Path) -> Open:
    # Small segments and batches, so that the suite passes over many of their ends.
    settings = LogSettings(
        segment_bytes_max=2000,
        preallocate_bytes=512,
        batch_bytes_max=300,
        read_bytes=400,
        record_bytes_max=RECORD_BYTES_MAX,
        waiting_bytes_max=WAITING_BYTES_MAX,
    )

    async def open_segments() -> EventLog:
        return SegmentLog(directory / "log", settings, partitions=PARTITIONS)

    return open_segments


@pytest.fixture(params=["memory", "segments", pytest.param("kafka", marks=pytest.mark.kafka)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    if request.param == "memory":
        yield memory_opener()
        return
    if request.param == "segments":
        yield segments_opener(tmp_path)
        return
    from ingest.log.kafka import KafkaLog  # on a machine without a broker there may be no kafka-python either

    settings = replace(
        brokers.settings(request.getfixturevalue("broker"), f"contract-{secrets.token_hex(4)}."),
        partitions=PARTITIONS,
        record_bytes_max=RECORD_BYTES_MAX,
        waiting_bytes_max=WAITING_BYTES_MAX,
        session_seconds=6.0,  # the least that brokers take is another setting of theirs
    )
    topics.apply(settings)
    try:
        yield lambda: KafkaLog.open(settings)
    finally:
        brokers.remove_topics(settings)


@pytest.fixture
async def log(opener: Open) -> AsyncIterator[EventLog]:
    opened = await opener()
    yield opened
    await opened.close()


def entry(n: int, key: bytes = b"a", topic: str = "narrow") -> Entry:
    return Entry(topic, key, b"value %d " % n + b"." * (n * 37 % 200))


async def read(subscription: Subscription, count: int, records_max: int = 1000) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            some = await subscription.poll(records_max, 1.0)
            assert len(some) <= records_max
            found += some
    return found


def everything(log: EventLog, topic: str) -> Subscription:
    return log.assign({(topic, number): 0 for number in range(log.partitions(topic))})


async def test_what_was_appended_is_read_in_order_with_its_key_and_place(log: EventLog) -> None:
    entries = [entry(n, b"key %d" % n) for n in range(50)]
    before_us = time.time_ns() // 1000
    positions = await log.append(entries)
    found = await read(everything(log, "narrow"), 50)
    assert positions == [Position("narrow", 0, n) for n in range(50)]
    assert [(r.key, r.value) for r in found] == [(e.key, e.value) for e in entries]
    assert [(r.topic, r.partition, r.offset) for r in found] == [("narrow", 0, n) for n in range(50)]
    assert all(before_us - 1_000_000 <= r.at_us <= time.time_ns() // 1000 + 1_000_000 for r in found)


async def test_offsets_are_dense_from_zero_over_many_appends(log: EventLog) -> None:
    offsets = [p.offset for n in range(30) for p in await log.append([entry(n), entry(n + 1)])]
    assert offsets == list(range(60))
    assert [r.offset for r in await read(everything(log, "narrow"), 60)] == offsets


async def test_overlapping_appends_keep_the_order_of_their_calls(log: EventLog) -> None:
    positions = await asyncio.gather(*(log.append([entry(n), entry(1000 + n)]) for n in range(200)))
    assert [p.offset for some in positions for p in some] == list(range(400))
    values = [r.value for r in await read(everything(log, "narrow"), 400)]
    assert values == [e.value for n in range(200) for e in (entry(n), entry(1000 + n))]


async def test_a_key_stays_in_its_partition_and_in_order(log: EventLog) -> None:
    keys = [b"agent %d" % n for n in range(20)]
    entries = [entry(n, key, "wide") for n, key in itertools.product(range(10), keys)]
    positions = await log.append(entries)
    assert [p.partition for p in positions] == [partition(e.key, 4) for e in entries]
    found = await read(everything(log, "wide"), 200)
    for key in keys:
        assert [r.value for r in found if r.key == key] == [e.value for e in entries if e.key == key]
    for number in range(4):
        offsets = [r.offset for r in found if r.partition == number]
        assert offsets == list(range(len(offsets)))


async def test_one_append_may_fill_several_topics(log: EventLog) -> None:
    positions = await log.append([entry(1), entry(2, topic="other"), entry(3), entry(4, topic="other")])
    assert [(p.topic, p.offset) for p in positions] == [("narrow", 0), ("other", 0), ("narrow", 1), ("other", 1)]


async def test_reading_begins_at_any_offset(log: EventLog) -> None:
    await log.append([entry(n) for n in range(60)])
    for offset in range(0, 60, 7):
        subscription = log.assign({("narrow", 0): offset})
        assert (await read(subscription, 1, 1))[0].offset == offset
        subscription.close()


async def test_a_reader_takes_no_more_than_it_asks_for_and_loses_nothing(log: EventLog) -> None:
    await log.append([entry(n) for n in range(100)])
    assert [r.offset for r in await read(everything(log, "narrow"), 100, records_max=7)] == list(range(100))


async def test_two_readers_do_not_disturb_one_another(log: EventLog) -> None:
    await log.append([entry(n) for n in range(20)])
    one, other = everything(log, "narrow"), everything(log, "narrow")
    assert len(await read(one, 20)) == len(await read(other, 20)) == 20


async def test_a_waiting_reader_gets_what_comes(log: EventLog) -> None:
    subscription = everything(log, "narrow")
    waiting = asyncio.create_task(read(subscription, 3))
    for n in range(3):
        await asyncio.sleep(0.03)
        await log.append([entry(n)])
    assert [r.offset for r in await waiting] == [0, 1, 2]


async def test_an_empty_poll_ends_when_its_time_is_over(log: EventLog) -> None:
    await log.append([entry(1)])
    subscription = log.assign({("narrow", 0): 1, ("unwritten", 0): 0})
    began = time.monotonic()
    assert await subscription.poll(10, 0.1) == []
    assert 0.09 <= time.monotonic() - began < 2
    assert await subscription.poll(10, 0) == []


async def test_an_offset_ahead_of_the_end_is_waited_for(log: EventLog) -> None:
    subscription = log.assign({("narrow", 0): 5})
    for n in range(5):
        await log.append([entry(n)])
    assert await subscription.poll(10, 0.05) == []
    await log.append([entry(5), entry(6)])
    assert [r.offset for r in await read(subscription, 2)] == [5, 6]


async def test_seek_goes_back_and_forth(log: EventLog) -> None:
    await log.append([entry(n) for n in range(30)])
    subscription = everything(log, "narrow")
    await read(subscription, 10, 10)
    for offset in (3, 29, 0):
        subscription.seek(("narrow", 0), offset)
        assert (await read(subscription, 1, 1))[0].offset == offset


async def test_no_partition_starves_another(log: EventLog) -> None:
    await log.append([entry(n, b"agent %d" % n, "wide") for n in range(200)])
    subscription = everything(log, "wide")
    seen: set[int] = set()
    for _ in range(9):
        seen |= {r.partition for r in await subscription.poll(20, 1.0)}
    assert seen == {0, 1, 2, 3}


async def test_the_end_is_the_next_offset_of_each_partition(log: EventLog) -> None:
    assert log.end_offsets("wide") == log.begin_offsets("wide") == {("wide", n): 0 for n in range(4)}
    positions = await log.append([entry(n, b"agent %d" % n, "wide") for n in range(50)])
    ends: dict[Partition, int] = {("wide", n): 0 for n in range(4)}
    for p in positions:
        ends[(p.topic, p.partition)] = p.offset + 1
    assert log.end_offsets("wide") == await log.offsets("wide") == ends
    assert set(log.begin_offsets("wide").values()) == {0}


async def test_the_end_now_is_told_of_what_another_process_appended(opener: Open, log: EventLog) -> None:
    assert await log.offsets("narrow") == {("narrow", 0): 0}
    reader = await opener()
    for n in range(1, 6):
        await log.append([entry(n)])
        assert await reader.offsets("narrow") == {("narrow", 0): n}
    async with asyncio.timeout(30):
        while reader.end_offsets("narrow") != {("narrow", 0): 5}:
            await asyncio.sleep(0.01)
    await reader.close()


async def test_a_cancelled_poll_has_taken_nothing(log: EventLog) -> None:
    subscription = everything(log, "narrow")
    for n in range(20):
        polling = asyncio.create_task(subscription.poll(10, 1.0))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        appending = asyncio.create_task(log.append([entry(n)]))
        polling.cancel()
        done: Sequence[Record] = []
        try:
            done = await polling
        except asyncio.CancelledError:
            pass
        await appending
        found = list(done) or await read(subscription, 1)
        assert [r.offset for r in found] == [n]


async def test_an_empty_append_is_nothing(log: EventLog) -> None:
    assert list(await log.append([])) == []
    assert log.end_offsets("narrow") == {("narrow", 0): 0}


async def test_empty_keys_and_values_are_records_too(log: EventLog) -> None:
    await log.append([Entry("narrow", b"", b"")] * 3)
    assert [(r.key, r.value) for r in await read(everything(log, "narrow"), 3)] == [(b"", b"")] * 3


async def test_a_large_record_comes_back_whole(log: EventLog) -> None:
    value = bytes(range(256)) * 20_000
    await log.append([entry(1), Entry("narrow", b"large", value), entry(2)])
    assert [len(r.value) for r in await read(everything(log, "narrow"), 3)] == [
        len(entry(1).value),
        len(value),
        len(entry(2).value),
    ]


async def test_a_closed_log_takes_nothing_more(log: EventLog) -> None:
    await log.append([entry(1)])
    await log.close()
    with pytest.raises(LogUnavailable):
        await log.append([entry(2)])
    await log.close()


# -- appending without waiting ----------------------------------------------------------------------------------------------------


async def test_flush_returns_once_what_was_appended_without_waiting_is_durable(log: EventLog) -> None:
    for n in range(50):
        log.append_nowait([entry(n)])
    await log.flush()
    assert await log.offsets("narrow") == {("narrow", 0): 50}
    assert [r.value for r in await read(everything(log, "narrow"), 50)] == [entry(n).value for n in range(50)]
    await log.flush()


async def test_what_was_appended_without_waiting_keeps_its_place_among_the_others(log: EventLog) -> None:
    appending = []
    for n in range(0, 40, 4):
        log.append_nowait([entry(n)])
        appending.append(asyncio.create_task(log.append([entry(n + 1)])))
        await asyncio.sleep(0)
        log.append_nowait([entry(n + 2), entry(n + 3)])
    await asyncio.gather(*appending)
    await log.flush()
    assert [r.value for r in await read(everything(log, "narrow"), 40)] == [entry(n).value for n in range(40)]


async def test_the_buffer_of_what_waits_is_bounded_and_takes_all_or_nothing(log: EventLog) -> None:
    taken = 0
    with pytest.raises(LogUnavailable, match="wait"):
        while taken < 100:
            log.append_nowait([Entry("narrow", b"k", bytes(2**20)), Entry("other", b"k", b"")])
            taken += 1
    assert 1 <= taken <= 8
    await log.flush()
    assert await log.offsets("narrow") == {("narrow", 0): taken}
    assert await log.offsets("other") == {("other", 0): taken}
    log.append_nowait([entry(1)])
    await log.flush()


async def test_a_record_that_is_too_large_is_refused_with_all_that_came_with_it(log: EventLog) -> None:
    too_large = Entry("narrow", b"key", bytes(RECORD_BYTES_MAX - 2))
    with pytest.raises(ValueError, match=str(RECORD_BYTES_MAX)):
        await log.append([entry(1), too_large])
    with pytest.raises(ValueError, match=str(RECORD_BYTES_MAX)):
        log.append_nowait([entry(1), too_large])
    await log.flush()
    assert await log.offsets("narrow") == {("narrow", 0): 0}
    await log.append([Entry("narrow", b"key", bytes(RECORD_BYTES_MAX - 3))])


async def test_a_closed_log_takes_nothing_without_waiting_either(log: EventLog) -> None:
    log.append_nowait([entry(1)])
    await log.close()
    with pytest.raises(LogUnavailable):
        log.append_nowait([entry(2)])


# -- groups ------------------------------------------------------------------------------------------------------------------------


def ends(records: Sequence[Record]) -> dict[Partition, int]:
    return {(r.topic, r.partition): r.offset + 1 for r in records}


async def read_all(members: Sequence[GroupSubscription], count: int) -> list[list[Record]]:
    """What each got, once they have `count` records of different places together."""
    found: list[list[Record]] = [[] for _ in members]
    async with asyncio.timeout(60):
        while len({(r.topic, r.partition, r.offset) for some in found for r in some}) < count:
            for own, some in zip(found, await asyncio.gather(*(m.poll(1000, 0.2) for m in members)), strict=True):
                own += some
    return found


async def test_a_group_begins_where_it_committed_last(log: EventLog) -> None:
    await log.append([entry(n) for n in range(30)])
    member = log.subscribe(["narrow"], "workers")
    assert await member.committed() == {("narrow", 0): 0}
    first = await read(member, 10, 10)
    await member.commit({("narrow", 0): 10})
    assert await member.committed() == {("narrow", 0): 10}
    await read(member, 5, 5)
    member.close()
    successor = log.subscribe(["narrow"], "workers")
    assert [r.offset for r in first] == list(range(10))
    assert [r.offset for r in await read(successor, 20)] == list(range(10, 30))
    successor.close()


async def test_what_a_member_read_and_did_not_commit_is_read_by_the_next(log: EventLog) -> None:
    await log.append([entry(n) for n in range(5)])
    member = log.subscribe(["narrow"], "workers")
    assert len(await read(member, 5)) == 5
    member.close()
    successor = log.subscribe(["narrow"], "workers")
    assert [r.offset for r in await read(successor, 5)] == [0, 1, 2, 3, 4]
    successor.close()


async def test_two_groups_stand_where_each_of_them_is(log: EventLog) -> None:
    await log.append([entry(n) for n in range(10)])
    one, other = log.subscribe(["narrow"], "one"), log.subscribe(["narrow"], "other")
    await one.commit(ends(await read(one, 10)))
    await other.commit(ends(await read(other, 3, 3)))
    assert await one.committed() == {("narrow", 0): 10}
    assert await other.committed() == {("narrow", 0): 3}
    assert [r.offset for r in await read(other, 7)] == list(range(3, 10))
    one.close()
    other.close()


async def test_members_of_a_group_share_the_partitions_and_each_record_is_read(log: EventLog) -> None:
    await log.append([entry(n, b"agent %d" % n, "wide") for n in range(100)])
    members = [log.subscribe(["wide", "narrow"], "workers") for _ in range(2)]
    await log.append([entry(n) for n in range(10)])
    found = await read_all(members, 110)
    offsets = ends([r for some in found for r in some])
    assert sum(offsets.values()) == 110
    assert set(await members[0].committed()) == {("wide", n) for n in range(4)} | {("narrow", 0)}
    for member in members:
        member.close()


async def test_a_waiting_member_takes_over_when_the_one_that_has_the_partitions_closes(log: EventLog) -> None:
    await log.append([entry(n) for n in range(10)])
    first = log.subscribe(["narrow"], "workers")
    await first.commit(ends(await read(first, 4, 4)))
    second = log.subscribe(["narrow"], "workers")
    waiting = asyncio.create_task(read(second, 6))
    await asyncio.sleep(0.2)
    first.close()
    assert [r.offset for r in await waiting] == list(range(4, 10))
    await second.commit({("narrow", 0): 10})
    second.close()


async def test_only_who_has_a_partition_moves_its_group(log: EventLog) -> None:
    await log.append([entry(n) for n in range(10)])
    first = log.subscribe(["narrow"], "workers")
    assert len(await read(first, 10)) == 10
    await first.commit({("narrow", 0): 7})
    second = log.subscribe(["narrow"], "workers")
    with pytest.raises(LogUnavailable):
        await second.commit({("narrow", 0): 2})
    first.close()
    assert [r.offset for r in await read(second, 3)] == [7, 8, 9]
    with pytest.raises(LogUnavailable):
        await first.commit({("narrow", 0): 10})
    await second.commit({("narrow", 0): 10})
    assert await second.committed() == {("narrow", 0): 10}
    second.close()


async def test_a_member_may_read_again_what_is_its_own(log: EventLog) -> None:
    await log.append([entry(n) for n in range(10)])
    member = log.subscribe(["narrow"], "workers")
    await read(member, 10)
    member.seek(("narrow", 0), 4)
    assert [r.offset for r in await read(member, 6)] == list(range(4, 10))
    await member.commit({("narrow", 0): 6})
    assert await member.committed() == {("narrow", 0): 6}
    member.close()


async def test_a_member_gets_what_comes_and_waits_no_longer_than_it_says(log: EventLog) -> None:
    member = log.subscribe(["narrow"], "workers")
    began = time.monotonic()
    assert await member.poll(10, 0.3) == []
    assert 0.25 <= time.monotonic() - began < 5
    waiting = asyncio.create_task(read(member, 3))
    for n in range(3):
        await log.append([entry(n)])
        await asyncio.sleep(0.03)
    assert [r.offset for r in await waiting] == [0, 1, 2]
    member.close()


async def test_a_closed_subscription_says_so(log: EventLog) -> None:
    await log.append([entry(1)])
    member = log.subscribe(["narrow"], "workers")
    await read(member, 1)
    member.close()
    member.close()
    with pytest.raises(LogUnavailable):
        await member.commit({("narrow", 0): 1})
