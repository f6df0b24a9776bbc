from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.events import AgentRevoked, Event, StatementFinished, StatementStarted
from ingest.follow import Follower
from ingest.frames import decode
from ingest.log import Entry, LogCorrupt, LogUnavailable, Position
from ingest.log.memory import MemoryLog
from ingest.log.segments import Disk, SegmentLog
from ingest.recorder import Recorder, RecorderState
from ingest.settings import LogSettings, RecorderSettings

FAST = RecorderSettings(linger_ms=20, retry_ms=10, stall_seconds=0.1, close_seconds_max=0.3)


def revoked(n: int, size: int = 1) -> AgentRevoked:
    return AgentRevoked(at_us=1000 + n, agent="a", reason="r" * size, operator=str(n))


class CountedLog(MemoryLog):
    """Remembers what each append was given."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[Sequence[Entry]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        self.appends.append(entries)
        await self.open.wait()
        return await super().append(entries)


async def recorded_events(log: MemoryLog, topic: str = "identity") -> list[Event]:
    follower = Follower(log, (topic,), {})
    found: list[Event] = []
    while some := await follower.poll(timeout_seconds=0):
        found += [event for _, frame in some for _, event in frame.events]
    follower.close()
    return found


async def test_tickets_rise_by_one_and_events_are_kept_in_their_order() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    tickets = [recorder.record("identity", f"agent {n % 3}", revoked(n)) for n in range(50)]
    await recorder.recorded(50)
    assert tickets == list(range(1, 51))
    by_key: dict[bytes, list[Event]] = {}
    for entry in log.appends[0]:
        by_key.setdefault(entry.key, []).extend(event for _, event in decode(entry.value).events)
    assert by_key == {b"agent %d" % k: [revoked(n) for n in range(50) if n % 3 == k] for k in range(3)}
    await recorder.close()


async def test_all_events_of_one_round_of_the_loop_share_one_write() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)

    async def session(n: int) -> None:
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))

    await asyncio.gather(*(session(n) for n in range(40)))
    assert len(log.appends) == 1
    await recorder.close()


async def test_what_comes_during_a_write_goes_into_the_next_and_never_beside_it() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.open.clear()
    recorder.record("identity", "a", revoked(0))
    await asyncio.sleep(0.01)
    for n in range(1, 30):
        recorder.record("identity", "a", revoked(n))
        await asyncio.sleep(0)
    assert len(log.appends) == 1
    assert recorder.durable == 0
    log.open.set()
    await recorder.recorded(30)
    assert len(log.appends) == 2
    assert await recorded_events(log) == [revoked(n) for n in range(30)]
    await recorder.close()


async def test_what_may_wait_lingers_for_company() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    for n in range(4):
        ticket = recorder.record("identity", "a", revoked(n), flush=False)
        await asyncio.sleep(0.002)
    assert log.appends == []
    await asyncio.wait_for(recorder.recorded(ticket), 1)
    assert len(log.appends) == 1
    await recorder.close()


async def test_one_event_that_may_not_wait_takes_the_waiting_ones_along_in_order() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, replace(FAST, linger_ms=60_000))
    recorder.record("identity", "a", revoked(0), flush=False)
    await recorder.recorded(recorder.record("identity", "a", revoked(1)))
    assert await recorded_events(log) == [revoked(0), revoked(1)]
    await recorder.close()


async def test_callbacks_come_in_ticket_order_once_their_events_are_durable() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.open.clear()
    called: list[int] = []
    tickets = [recorder.record("identity", "a", revoked(n)) for n in range(5)]
    for ticket in reversed(tickets):
        recorder.when_durable(ticket, lambda ticket=ticket: called.append(ticket))  # type: ignore[misc]
    await asyncio.sleep(0.01)
    later = recorder.record("identity", "a", revoked(5))
    recorder.when_durable(later, lambda: called.append(later))
    assert called == []
    log.open.set()
    await recorder.recorded(later)
    assert called == [*tickets, later]
    recorder.when_durable(tickets[0], lambda: called.append(0))
    assert called[-1] == 0
    await recorder.close()


async def test_a_callback_that_fails_does_not_keep_the_others_back() -> None:
    recorder = Recorder(MemoryLog(), "w", 1, FAST)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    ticket = recorder.record("identity", "a", revoked(0))
    called: list[int] = []
    recorder.when_durable(ticket, lambda: {}[0])
    recorder.when_durable(ticket, lambda: called.append(ticket))
    await recorder.recorded(ticket)
    assert called == [ticket]
    assert [type(context["exception"]) for context in reported] == [KeyError]
    await recorder.close()


@pytest.mark.parametrize("fault", ["not stored", "stored"])
async def test_what_the_log_did_not_take_is_offered_again_the_same_frames_in_the_same_order(
    fault: Any, await_for: Callable[..., Awaitable[object]]
) -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.fault = fault
    ticket = recorder.record("identity", "a", revoked(0))
    recorder.record("identity", "b", revoked(1))
    await await_for(lambda: log.appends)
    recorder.record("identity", "a", revoked(2))
    await await_for(lambda: len(log.appends) > 2)
    assert recorder.durable == 0
    assert all(entries == log.appends[0] for entries in log.appends)
    log.fault = None
    await recorder.recorded(3)
    assert recorder.durable >= ticket
    assert await recorded_events(log) == [revoked(0), revoked(1), revoked(2)]
    await recorder.close()


async def test_availability_ends_with_the_first_failed_write_and_returns_when_the_log_has_caught_up() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    told: list[RecorderState] = []
    recorder.on_availability = told.append
    await recorder.recorded(recorder.record("identity", "a", revoked(0)))
    assert recorder.state() == RecorderState(True, 0, "", 0, 0)
    log.fault = "not stored"
    recorder.record("identity", "a", revoked(7))
    await asyncio.sleep(0.03)
    recorder.record("identity", "a", revoked(8))
    assert not recorder.available
    state = recorder.state()
    assert (state.since_us, state.reason, state.pending_events) == (1007, "the disk is full", 2)
    assert state.pending_bytes > 0
    log.fault = None
    await recorder.recorded(3)
    assert recorder.available
    assert [(s.available, s.reason) for s in told] == [(False, "the disk is full"), (True, "")]
    assert recorder.state() == RecorderState(True, 1008, "", 0, 0)
    await recorder.close()


async def test_a_log_that_does_not_answer_makes_the_recorder_unavailable_until_it_does(
    await_for: Callable[..., Awaitable[object]],
) -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.open.clear()
    ticket = recorder.record("identity", "a", revoked(0))
    assert recorder.available
    await await_for(lambda: not recorder.available)
    assert recorder.state().reason == "the log has not answered for 0.1 s"
    log.open.set()
    await recorder.recorded(ticket)
    assert recorder.available
    await recorder.close()


async def test_a_busy_log_is_not_taken_for_a_silent_one() -> None:
    recorder = Recorder(MemoryLog(), "w", 1, FAST)
    told: list[RecorderState] = []
    recorder.on_availability = told.append
    for n in range(100):  # twice as long as the time that a single write may take
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))
        await asyncio.sleep(0.002)
    assert told == []
    await recorder.close()


async def test_a_full_buffer_refuses_the_newest_event_and_keeps_all_others() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, replace(FAST, buffer_bytes_max=20_000))
    log.fault = "not stored"
    taken = 0
    with pytest.raises(LogUnavailable, match="the disk is full|more than 15000 bytes"):
        for n in range(1000):
            recorder.record("identity", "a", revoked(n, 300))
            taken += 1
            await asyncio.sleep(0)
    assert 30 < taken < 60
    log.fault = None
    await recorder.recorded(taken)
    assert await recorded_events(log) == [revoked(n, 300) for n in range(taken)]
    recorder.record("identity", "a", revoked(1))
    await recorder.close()


async def test_above_the_high_water_mark_statements_stop_while_other_facts_are_still_taken() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, replace(FAST, buffer_bytes_max=20_000, buffer_high_water=0.5, stall_seconds=60))
    log.open.clear()
    taken = 0
    while recorder.available:
        recorder.record("identity", "a", revoked(taken, 300))
        taken += 1
        await asyncio.sleep(0)
    assert 10_000 < recorder.state().pending_bytes < 11_000
    assert recorder.state().reason == "more than 10000 bytes wait for the log"
    recorder.record("identity", "a", revoked(taken))
    log.open.set()
    await recorder.recorded(taken + 1)
    assert recorder.available
    await recorder.close()


async def test_an_event_that_cannot_be_encoded_is_refused_and_takes_no_ticket() -> None:
    recorder = Recorder(MemoryLog(), "w", 1, FAST)
    with pytest.raises(ValueError, match="surrogates"):
        recorder.record("identity", "a", AgentRevoked(1, "a", "\ud800", "o"))
    with pytest.raises(ValueError, match="belongs to topic identity"):
        recorder.record("sessions", "a", revoked(0))
    assert recorder.state() == RecorderState(True, 0, "", 0, 0)
    assert recorder.record("identity", "a", revoked(0)) == 1
    await recorder.close()


async def test_close_writes_what_is_waiting_and_takes_nothing_more() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, replace(FAST, linger_ms=60_000))
    recorder.record("identity", "a", revoked(0), flush=False)
    await recorder.close()
    assert await recorded_events(log) == [revoked(0)]
    with pytest.raises(LogUnavailable, match="closed"):
        recorder.record("identity", "a", revoked(1))
    await recorder.close()


async def test_who_waits_for_a_record_that_close_gives_up_is_told() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.fault = "not stored"
    waiting = asyncio.create_task(recorder.recorded(recorder.record("identity", "a", revoked(0))))
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable):
        await recorder.close()
    with pytest.raises(LogUnavailable, match="the disk is full"):
        await waiting


async def test_close_says_how_much_it_could_not_write() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.fault = "not stored"
    for n in range(3):
        recorder.record("identity", "a", revoked(n))
    with pytest.raises(LogUnavailable, match="3 events were not recorded: the disk is full"):
        await recorder.close()


class DamagedLog(CountedLog):
    damage: Exception | None = None

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        if self.damage is not None:
            raise self.damage
        return await super().append(entries)


async def test_a_damaged_log_is_an_unavailable_one_until_it_is_mended() -> None:
    log = DamagedLog()
    recorder = Recorder(log, "w", 1, FAST)
    log.damage = LogCorrupt("segment 0: at byte 5")
    ticket = recorder.record("identity", "a", revoked(0))
    await asyncio.sleep(0.03)
    assert recorder.state().reason == "segment 0: at byte 5"
    log.damage = None
    await recorder.recorded(ticket)
    assert recorder.available
    await recorder.close()


async def test_a_log_that_breaks_its_contract_ends_the_recorder_aloud(await_for: Callable[..., Awaitable[object]]) -> None:
    log = DamagedLog()
    recorder = Recorder(log, "w", 1, FAST)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    log.damage = ZeroDivisionError()
    recorder.record("identity", "a", revoked(0))
    await await_for(lambda: not recorder.available)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]
    with pytest.raises(LogUnavailable, match="ZeroDivisionError"):
        await recorder.recorded(1)
    with pytest.raises(LogUnavailable):
        recorder.record("identity", "a", revoked(1))
    with pytest.raises(LogUnavailable, match="1 events were not recorded"):
        await recorder.close()


class FullDisk(Disk):
    full = False

    def pwrite(self, fd: int, data: bytes | memoryview, place: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        return super().pwrite(fd, data, place)


async def test_on_files_a_full_disk_loses_and_repeats_nothing(tmp_path: Path, await_for: Callable[..., Awaitable[object]]) -> None:
    disk = FullDisk()
    log = SegmentLog(tmp_path / "log", LogSettings(preallocate_bytes=4096), disk=disk)
    recorder = Recorder(log, "gateway", 1, FAST)
    recorded = 0
    for round_ in range(6):
        disk.full = round_ % 2 == 1
        for _ in range(20):
            recorder.record("statements", "a", StatementStarted(recorded, recorded, 1, "rule"))
            recorded += 1
            await asyncio.sleep(0.002)
        if disk.full:
            await await_for(lambda: not recorder.available)
    disk.full = False
    await recorder.recorded(recorded)
    await recorder.close()
    gaps: list[object] = []
    follower = Follower(log, ("statements",), {}, on_gap=gaps.append)
    found: list[Event] = []
    while some := await follower.poll(timeout_seconds=0):
        found += [event for _, frame in some for _, event in frame.events]
    assert [event.execution for event in found if isinstance(event, StatementStarted)] == list(range(recorded))
    assert gaps == []
    follower.close()
    await log.close()


class SlowDisk(Disk):
    def __init__(self) -> None:
        self.go_on = threading.Event()

    def fdatasync(self, fd: int) -> None:
        self.go_on.wait(10)
        super().fdatasync(fd)


async def test_a_disk_that_hangs_does_not_hold_the_loop(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = SegmentLog(tmp_path / "log", LogSettings(preallocate_bytes=4096), disk=disk)
    recorder = Recorder(log, "gateway", 1, FAST)
    ticket = recorder.record("statements", "a", StatementFinished(1, "ok", "", "SELECT 1", 1, 0, 0, 5))
    turns = 0
    until = asyncio.get_running_loop().time() + 0.2
    while asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 50
    assert recorder.durable < ticket
    assert not recorder.available
    disk.go_on.set()
    await recorder.recorded(ticket)
    await recorder.close()
    await log.close()


async def test_a_ticket_is_replicated_once_the_brokers_have_all_that_was_written_with_it_and_before() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    first = recorder.record("identity", "a", revoked(0))
    await recorder.recorded(first)
    second = recorder.record("identity", "a", revoked(1))
    called: list[int] = []
    for ticket in (second, first):
        recorder.brokers.when(ticket, lambda ticket=ticket: called.append(ticket))  # type: ignore[misc]
    await recorder.recorded(second)
    assert (recorder.brokers.reached, called) == (0, [])
    recorder.replicated_to({("identity", 0): 1})
    assert (recorder.brokers.reached, called) == (first, [first])
    recorder.replicated_to({("identity", 0): 2})
    assert (recorder.brokers.reached, called) == (second, [first, second])
    recorder.brokers.when(second, lambda: called.append(0))
    assert called[-1] == 0
    await recorder.close()


async def test_what_the_brokers_have_of_one_topic_says_nothing_of_another() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    recorder.record("identity", "a", revoked(0))
    ticket = recorder.record("statements", "a", StatementStarted(1, 1, 1, "rule"))
    await recorder.recorded(ticket)
    recorder.replicated_to({("statements", 0): 1})
    assert recorder.brokers.reached == 0
    recorder.replicated_to({("statements", 0): 1, ("identity", 0): 1})
    assert recorder.brokers.reached == ticket
    await recorder.close()


async def test_word_of_the_brokers_that_comes_before_word_of_the_disk_counts_too() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    ticket = recorder.record("identity", "a", revoked(0))
    recorder.replicated_to({("identity", 0): 5})
    assert recorder.brokers.reached == 0
    await asyncio.wait_for(recorder.brokers.passed(ticket), 30)
    await recorder.close()


async def test_what_nobody_waits_for_is_not_remembered_however_long_the_brokers_are_away() -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    first = recorder.record("identity", "a", revoked(0))
    recorder.brokers.when(first, lambda: None)
    await recorder.recorded(first)
    for n in range(1, 200):
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))
    assert len(recorder._unreplicated) == 1
    last = recorder.record("identity", "a", revoked(200))
    waiting = asyncio.ensure_future(recorder.brokers.passed(last))
    await recorder.recorded(last)
    recorder.replicated_to({("identity", 0): 200})
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert recorder.brokers.reached >= first
    recorder.replicated_to({("identity", 0): 201})
    await asyncio.wait_for(waiting, 30)
    await recorder.close()


async def test_a_recorder_that_ended_tells_those_who_wait_for_the_brokers_too() -> None:
    class Broken(MemoryLog):
        async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
            raise RuntimeError("not in the contract")

    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    recorder = Recorder(Broken(), "w", 1, FAST)
    ticket = recorder.record("identity", "a", revoked(0))
    with pytest.raises(LogUnavailable, match="not in the contract"):
        await asyncio.wait_for(recorder.brokers.passed(ticket), 30)
    with pytest.raises(LogUnavailable):
        await recorder.brokers.passed(ticket)


async def test_a_blocked_recorder_is_unavailable_until_it_is_told_otherwise_whatever_the_log_does_meanwhile(
    await_for: Callable[..., Awaitable[object]],
) -> None:
    log = CountedLog()
    recorder = Recorder(log, "w", 1, FAST)
    told: list[RecorderState] = []
    recorder.on_availability = told.append
    recorder.block("too much waits for Kafka")
    assert not recorder.available
    ticket = recorder.record("identity", "a", revoked(0))  # sessions record their end
    await recorder.recorded(ticket)
    log.fault = "not stored"
    recorder.record("identity", "a", revoked(1))
    await await_for(lambda: recorder.state().reason == "the disk is full")
    log.fault = None
    await recorder.recorded(ticket + 1)
    assert recorder.state().reason == "too much waits for Kafka"
    assert not recorder.available
    recorder.block("")
    assert [(state.available, state.reason) for state in told] == [(False, "too much waits for Kafka"), (True, "")]
    await recorder.close()


async def test_a_recorder_that_is_told_that_it_is_full_takes_nothing() -> None:
    recorder = Recorder(MemoryLog(), "w", 1, FAST)
    recorder.block("too much waits for Kafka", full=True)
    with pytest.raises(LogUnavailable, match="too much waits for Kafka"):
        recorder.record("identity", "a", revoked(0))
    recorder.block("too much waits for Kafka")
    await recorder.recorded(recorder.record("identity", "a", revoked(0)))
    await recorder.close()


async def test_frames_name_the_frame_before_them_in_the_log_that_readers_will_see() -> None:
    here = CountedLog()
    there = MemoryLog({"identity": 4})
    recorder = Recorder(here, "w", 1, FAST, partitions={"identity": 4})
    for n in range(60):
        await recorder.recorded(recorder.record("identity", f"agent {n % 7}", revoked(n)))
    await recorder.close()
    for entries in here.appends:
        await there.append(entries)
    gaps: list[object] = []
    follower = Follower(there, ("identity",), {}, on_gap=gaps.append)
    count = 0
    while some := await follower.poll(timeout_seconds=0):
        count += len(some)
    assert (count, gaps) == (60, [])
    assert len({place for place, end in there.end_offsets("identity").items() if end}) > 1
