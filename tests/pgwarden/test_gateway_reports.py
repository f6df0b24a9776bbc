"""What gateways say of themselves in the log: who acts on a change, and who was silent for too long to be waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from ingest.events import GatewayReported, ProcessReported
from ingest.log import Entry
from ingest.log.memory import MemoryLog
from pgwarden.gateways import (
    GATEWAYS_MAX,
    MISSED_SECONDS_MAX,
    NAMESAKE_SECONDS,
    PROCESS_MISSED_SECONDS_MAX,
    SHOWN_SECONDS_MAX,
    SILENT_SECONDS_MAX,
    UNKNOWN,
    WHOLE_SECONDS_MAX,
    Reports,
)
from tests.analytics.scenario import Writer

NOW_US = 1_700_000_000_000_000  # by the gateways' clocks


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def word(gateway: str, identity_at_us: int, *, boot: int = 1, at_us: int = NOW_US) -> GatewayReported:
    return GatewayReported(at_us, gateway, boot, 1, True, 0, "", 0, 0, 0, identity_at_us, 0, 0, 0, 0, 0, 0)


class Relays:
    """Each gateway's words, as its relay records them."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._writers: dict[str, Writer] = {}

    async def say(self, *words: GatewayReported) -> None:
        for one in words:
            writer = self._writers.setdefault(one.gateway, Writer(self._log, f"{one.gateway}-relay"))
            writer.add(one.gateway, one)
            await writer.write()


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog({"observations": 4})


@contextlib.asynccontextmanager
async def following(
    log: MemoryLog, clock: Clock, now_us: Callable[[], int] = lambda: time.time_ns() // 1000
) -> AsyncIterator[Reports]:
    reports = Reports(log, clock, now_us)
    task = asyncio.create_task(reports.run())
    try:
        yield reports
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def waits_for(reports: Reports, at_us: int, names: list[str]) -> None:
    """Once it has looked again."""
    async with asyncio.timeout(10):
        while await reports.waiting_for(at_us) != names:
            await asyncio.sleep(0.01)


async def test_a_gateway_is_waited_for_until_it_says_that_it_acts_on_the_change(log: MemoryLog) -> None:
    relays = Relays(log)
    await relays.say(word("gateway-1", 500), word("gateway-2", 400))
    async with following(log, Clock()) as reports:
        await until(lambda: len(reports.newest()) == 2)
        await waits_for(reports, 400, [])
        assert await reports.waiting_for(500) == ["gateway-2"]
        assert await reports.waiting_for(501) == ["gateway-1", "gateway-2"]
        await relays.say(word("gateway-2", 501, at_us=NOW_US + 1))
        await until(lambda: reports.newest()[1].identity_at_us == 501)
        assert await reports.waiting_for(501) == ["gateway-1"]


async def test_a_gateway_that_was_silent_for_too_long_holds_nobody_up(log: MemoryLog) -> None:
    clock = Clock()
    await Relays(log).say(word("gateway-1", 1))
    async with following(log, clock) as reports:
        await until(lambda: reports.newest())
        clock.seconds += SILENT_SECONDS_MAX - 1
        await waits_for(reports, 2, ["gateway-1"])
        clock.seconds += 2
        await waits_for(reports, 2, [])


async def test_a_gateway_whose_clock_is_far_behind_is_waited_for_all_the_same(log: MemoryLog) -> None:
    relays = Relays(log)
    async with following(log, Clock(), lambda: time.time_ns() // 1000 + 3_600_000_000) as reports, asyncio.timeout(10):
        while not reports.newest():  # what was said before it followed is an hour old to it
            await relays.say(word("gateway-1", 1))
            await asyncio.sleep(0.02)
        await waits_for(reports, 2, ["gateway-1"])


async def test_the_word_of_the_newer_boot_counts(log: MemoryLog) -> None:
    relays = Relays(log)
    await relays.say(
        word("gateway-1", 900, boot=1, at_us=NOW_US + 9), word("gateway-1", 100, boot=2), word("gateway-1", 950, boot=1)
    )
    async with following(log, Clock()) as reports:
        await until(lambda: [one.boot for one in reports.newest()] == [2])
        await relays.say(word("zz", 1))
        await until(lambda: len(reports.newest()) == 2)
        assert reports.newest()[0].identity_at_us == 100


async def test_nothing_is_said_to_be_acted_on_before_the_reports_were_read(log: MemoryLog) -> None:
    await Relays(log).say(word("gateway-1", 1))
    reports = Reports(log, Clock())
    assert await reports.waiting_for(2) == [UNKNOWN]


async def test_nothing_is_said_to_be_acted_on_while_reports_cannot_be_read(log: MemoryLog) -> None:
    """One record that is no frame: a gateway whose reports stand behind it grows silent, and acts on nothing that we know of."""
    clock = Clock()
    await Relays(log).say(word("gateway-1", 1))
    async with following(log, clock) as reports:
        await waits_for(reports, 2, ["gateway-1"])
        await log.append([Entry("observations", b"gateway-1", b"no frame")])
        clock.seconds += SILENT_SECONDS_MAX + 1
        assert await reports.waiting_for(2) == [UNKNOWN]
        await asyncio.sleep(1.5)
        clock.seconds += WHOLE_SECONDS_MAX + 1
        assert await reports.waiting_for(2) == [UNKNOWN]


async def test_a_gateway_whose_clock_steps_back_is_heard(log: MemoryLog) -> None:
    relays = Relays(log)
    await relays.say(word("gateway-1", 1, at_us=NOW_US), word("gateway-1", 7, at_us=NOW_US - 3_600_000_000))
    async with following(log, Clock()) as reports:
        await until(lambda: [one.identity_at_us for one in reports.newest()] == [7])


async def test_two_gateways_of_one_name_are_both_waited_for_and_told(log: MemoryLog, caplog: pytest.LogCaptureFixture) -> None:
    clock, relays = Clock(), Relays(log)
    async with following(log, clock) as reports:
        await relays.say(word("gateway-1", 5, boot=2))
        await waits_for(reports, 5, [])
        await relays.say(word("gateway-1", 4, boot=1))  # its last words
        clock.seconds += NAMESAKE_SECONDS + 1
        await relays.say(word("gateway-1", 5, boot=2))
        await waits_for(reports, 5, [])
        await relays.say(word("gateway-1", 4, boot=1))  # and its next
        await waits_for(reports, 5, ["gateway-1"])
        await relays.say(word("gateway-1", 5, boot=1))
        await waits_for(reports, 5, [])
    assert sum("two gateways bear the name gateway-1" in message for message in caplog.messages) == 1


async def test_names_that_were_made_up_do_not_pile_up_without_end(log: MemoryLog) -> None:
    relays = Relays(log)
    async with following(log, Clock()) as reports:
        await relays.say(*(word(f"gateway-{n}", 1) for n in range(GATEWAYS_MAX + 50)))
        await until(lambda: reports.newest() and max(int(one.gateway[8:]) for one in reports.newest()) == GATEWAYS_MAX + 49)
        await asyncio.sleep(0.05)
        assert len(reports.newest()) <= GATEWAYS_MAX


async def test_a_gateways_status_is_its_report_then_its_silence_and_then_nothing(log: MemoryLog) -> None:
    clock = Clock()
    report = GatewayReported(NOW_US, "gateway-1", 7, 99, False, 5, "the disk is full", 3, 10, 4_000, 1, 2, 12, 1, 4, 2, 1)
    await Relays(log).say(report)
    async with following(log, clock) as reports:
        await until(lambda: reports.newest())
        (status,) = await reports.statuses()
        assert status["log"] == {
            "available": False,
            "since_us": 5,
            "reason": "the disk is full",
            "refused": 3,
            "pending_bytes": 10,
            "backlog_bytes": 4_000,
        }
        assert (status["gateway"], status["boot"], status["pid"], status["sessions"]) == ("gateway-1", 7, 99, 2)
        assert "reachable" not in status
        clock.seconds += MISSED_SECONDS_MAX + 1
        async with asyncio.timeout(10):
            while not str((status := (await reports.statuses())[0])["reason"]).startswith("it has not reported for 6 s: "):
                await asyncio.sleep(0.01)
        assert status["reachable"] is False
        clock.seconds += SHOWN_SECONDS_MAX
        assert await reports.statuses() == []


async def test_an_api_that_reads_nothing_does_not_lay_it_to_a_gateway(log: MemoryLog) -> None:
    clock = Clock()
    await Relays(log).say(word("gateway-1", 1))
    async with following(log, clock) as reports:
        await waits_for(reports, 1, [])
    clock.seconds += MISSED_SECONDS_MAX + 1
    (status,) = await reports.statuses()
    assert status["reachable"] is False
    assert status["reason"] == "for 6 s this API has read nothing from the brokers; the gateway may be well"


# -- workers and watchdogs -----------------------------------------------------------------------------------------------------------


def of_process(process: str, name: str, *, boot: int = 1, reason: str = "", stopping: bool = False) -> ProcessReported:
    return ProcessReported(NOW_US, process, name, boot, 7, reason, stopping)


class Others:
    """Their words, as each records them."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._writers: dict[tuple[str, int], Writer] = {}

    async def say(self, *words: ProcessReported) -> None:
        for one in words:
            writer = self._writers.setdefault((one.name, one.boot), Writer(self._log, one.name, one.boot))
            writer.add(one.name, one)
            await writer.write()


async def test_workers_and_watchdogs_are_known_by_their_own_word(log: MemoryLog) -> None:
    clock = Clock()
    async with following(log, clock) as reports:
        await Others(log).say(of_process("worker", "worker-a", reason="behind for 31 s"), of_process("watchdog", "watchdog-host-7"))
        await until(lambda: len(reports.processes()) == 2)
        assert reports.processes() == [
            {"process": "watchdog", "name": "host-7", "up": True, "reason": ""},
            {"process": "worker", "name": "a", "up": True, "reason": "behind for 31 s"},
        ]
        clock.seconds += PROCESS_MISSED_SECONDS_MAX + 1
        await until(lambda: reports.processes() and not any(one["up"] for one in reports.processes()))
        assert all("it has not reported for 16 s" in str(one["reason"]) for one in reports.processes())
        clock.seconds += SHOWN_SECONDS_MAX
        await until(lambda: reports.processes() == [])


async def test_a_worker_that_was_told_to_end_is_not_missed_and_an_old_ones_word_counts_for_nothing(log: MemoryLog) -> None:
    others = Others(log)
    async with following(log, Clock()) as reports:
        await others.say(of_process("worker", "worker-a", boot=2), of_process("worker", "worker-b"))
        await until(lambda: len(reports.processes()) == 2)
        await others.say(of_process("worker", "worker-a", boot=1, stopping=True), of_process("worker", "worker-b", stopping=True))
        await until(lambda: len(reports.processes()) == 1)
        assert [one["name"] for one in reports.processes()] == ["a"]
