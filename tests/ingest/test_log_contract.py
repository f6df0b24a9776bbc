"""One suite for every log. A log joins it with one function that opens it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from ingest.log import Entry, EventLog, LogUnavailable, Partition, Position, Record, Subscription
from ingest.log.memory import MemoryLog
from ingest.log.partitioner import partition
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

Open: TypeAlias = Callable[[Path], Awaitable[EventLog]]
PARTITIONS = {"wide": 4}


async def open_memory(_directory: Path) -> EventLog:
    return MemoryLog(PARTITIONS)


async def open_segments(directory: Path) -> EventLog:
    # Small segments and batches, so that the suite passes over many of their ends.
    settings = LogSettings(segment_bytes_max=2000, preallocate_bytes=512, batch_bytes_max=300, read_bytes=400)
    return SegmentLog(directory / "log", settings, partitions=PARTITIONS)


@pytest.fixture(params=[open_memory, open_segments], ids=["memory", "segments"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    opened: EventLog = await request.param(tmp_path)
    yield opened
    await opened.close()


def entry(n: int, key: bytes = b"a", topic: str = "narrow") -> Entry:
    return Entry(topic, key, b"value %d " % n + b"." * (n * 37 % 200))


async def read(subscription: Subscription, count: int, records_max: int = 1000) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(10):
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
    for offset in range(60):
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
    assert log.end_offsets("wide") == {("wide", n): 0 for n in range(4)}
    positions = await log.append([entry(n, b"agent %d" % n, "wide") for n in range(50)])
    ends: dict[Partition, int] = {("wide", n): 0 for n in range(4)}
    for p in positions:
        ends[(p.topic, p.partition)] = p.offset + 1
    assert log.end_offsets("wide") == ends


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
