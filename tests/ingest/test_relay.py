"""A gateway's log on this machine, and a log that plays the brokers: what comes where, and in which order, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.clock import mono_us
from ingest.events import AgentRevoked, Event, GatewayReported, SessionDenied, StatementStarted
from ingest.follow import Follower, Gap
from ingest.log import Entry, EventLog, LogUnavailable, Position
from ingest.log.memory import MemoryLog, MemorySubscription
from ingest.log.partitioner import partition
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.relay import Relay
from ingest.relay_lines import GatewayWord
from ingest.settings import LogSettings, RecorderSettings, RelaySettings

PARTITIONS = {"identity": 1, "commands": 1, "sessions": 2, "statements": 4, "observations": 2}
SMALL = LogSettings(segment_bytes_max=16 * 1024, preallocate_bytes=4096, poll_interval_max_ms=2.0)
SETTINGS = RelaySettings(batch_records_max=7, stale_seconds_max=0.4)


class Brokers(MemoryLog):
    """Honest partitions; may be away, or show nothing new."""

    def __init__(self) -> None:
        super().__init__(PARTITIONS)
        self.away = False
        self.silent = False  # to those who read
        self.looks = 0  # in vain, since they were asked how many records there are
        self.unanswered = 0  # of such questions
        self.appends = 0
        self.on_append: Callable[[], None] = lambda: None

    async def append(self, entries: Sequence[Entry]) -> Sequence[Position]:
        self.appends += 1
        self.on_append()
        if self.away:
            raise LogUnavailable("the brokers do not answer")
        return await super().append(entries)

    async def offsets(self, topic: str) -> dict[tuple[str, int], int]:
        if self.away:
            self.unanswered += 1
            raise LogUnavailable("the brokers do not answer")
        self.looks = 0
        return await super().offsets(topic)

    def assign(self, offsets: dict[tuple[str, int], int]) -> MemorySubscription:
        subscription = super().assign(offsets)
        poll = subscription.poll

        async def quiet(records_max: int, timeout_seconds: float) -> Sequence[object]:
            if self.silent:
                self.looks += 1
                await asyncio.sleep(min(timeout_seconds, 0.01))
                return []
            return await poll(records_max, timeout_seconds)

        subscription.poll = quiet  # type: ignore[method-assign,assignment]
        return subscription


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "log"
        self.brokers = Brokers()
        self.refused = 0

    @contextlib.asynccontextmanager
    async def relay(self, settings: RelaySettings = SETTINGS) -> AsyncIterator[Relay]:
        async def connect() -> EventLog:
            if self.refused:
                self.refused -= 1
                raise LogUnavailable("nobody listens there")
            return Kept(self.brokers)

        relay = Relay(SegmentLog(self.folder, SMALL), connect, "gateway-1", settings, lambda: None)
        running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            assert not running.done(), running
            running.cancel()
            await asyncio.wait({running})
            await relay.close()

    @contextlib.asynccontextmanager
    async def recorder(self, boot: int = 1) -> AsyncIterator[Recorder]:
        log = SegmentLog(self.folder, SMALL)
        recorder = Recorder(log, "gateway-1", boot, RecorderSettings(linger_ms=1), partitions=PARTITIONS)
        try:
            yield recorder
        finally:
            await recorder.close()
            await log.close()

    async def there(self, *topics: str) -> list[Event]:
        """Everything that a reader of the brokers' log finds, once; a gap fails the test."""
        gaps: list[Gap] = []
        follower = Follower(self.brokers, topics, {}, on_gap=gaps.append)
        found: list[Event] = []
        while some := await follower.poll(timeout_seconds=0):
            found += [event for _, frame in some for _, event in frame.events]
        assert gaps == []
        return found

    def local(self, topic: str) -> list[tuple[bytes, bytes]]:
        async def read() -> list[tuple[bytes, bytes]]:
            log = SegmentLog(self.folder, SMALL)
            end = log.end_offsets(topic)[(topic, 0)]
            subscription = log.assign({(topic, 0): 0})
            found: list[tuple[bytes, bytes]] = []
            while len(found) < end:
                found += [(record.key, record.value) for record in await subscription.poll(100, 1)]
            await log.close()
            return found

        return asyncio.run(read())

    async def read_local(self, topic: str) -> list[tuple[bytes, bytes]]:
        return await asyncio.to_thread(self.local, topic)


class Kept:
    """The brokers outlive every relay that closes its connection to them."""

    def __init__(self, log: Brokers) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    async def close(self) -> None:
        pass


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def denied(agent: int, n: int) -> SessionDenied:
    return SessionDenied(n, f"agent {agent}", f"agent {agent}", "shop", "127.0.0.1:1", "28000", "no", "scram")


def started(n: int) -> StatementStarted:
    return StatementStarted(n, n, 1, "rule")


def revoked(n: int) -> AgentRevoked:
    return AgentRevoked(n, "a", "r", "o")


async def shipped(bench: Bench, recorder: Recorder, relay: Relay) -> None:
    ends = {topic: sum(recorder._log.end_offsets(topic).values()) for topic in ("sessions", "statements")}
    async with asyncio.timeout(20):
        while any(relay.state().shipped.get(topic, 0) < end for topic, end in ends.items()):
            await asyncio.sleep(0.005)


def by_agent(events: Sequence[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        assert isinstance(event, SessionDenied)
        found.setdefault(event.agent, []).append(event.at_us)
    return found


async def test_a_record_reaches_the_brokers_in_its_order_and_its_bytes(bench: Bench) -> None:
    async with bench.recorder() as recorder, bench.relay() as relay:
        for n in range(300):
            recorder.record("sessions", f"agent {n % 5}", denied(n % 5, n))
            ticket = recorder.record("statements", f"agent {n % 5}", started(n))
            if n % 3 == 0:
                await recorder.recorded(ticket)
        await recorder.recorded(ticket)
        await shipped(bench, recorder, relay)
        there = by_agent(await bench.there("sessions"))
        assert there == {f"agent {agent}": list(range(agent, 300, 5)) for agent in range(5)}
        assert len(await bench.there("statements")) == 300
        values = {value for _, value in await bench.read_local("statements")}
        assert values == {
            record.value for place, some in bench.brokers._records.items() if place[0] == "statements" for record in some
        }
        assert len({place for place in bench.brokers._records if place[0] == "sessions"}) == 2
        assert relay.state().backlog_records == 0
        assert relay.state().backlog_bytes == 0


@pytest.mark.parametrize("fault", ["not stored", "stored"])
async def test_what_the_brokers_do_not_acknowledge_is_sent_again_until_they_do(bench: Bench, fault: str) -> None:
    async with bench.recorder() as recorder, bench.relay() as relay:
        bench.brokers.fault = fault  # type: ignore[assignment]
        for n in range(40):
            await recorder.recorded(recorder.record("sessions", f"agent {n % 3}", denied(n % 3, n)))
        async with asyncio.timeout(30):
            while bench.brokers.appends < 3:
                await asyncio.sleep(0.005)
        assert relay.state().shipped["sessions"] == 0, "nothing counts that was not acknowledged"
        assert "shipping: sessions/0, from record 0: the disk" in relay.state().error
        bench.brokers.fault = None
        await shipped(bench, recorder, relay)
        assert by_agent(await bench.there("sessions")) == {f"agent {a}": list(range(a, 40, 3)) for a in range(3)}
        assert relay.state().error == ""


async def test_relays_and_gateways_that_end_at_any_moment_lose_nothing_and_repeat_nothing(bench: Bench) -> None:
    """Twelve boots of the gateway, relays that end in the middle of an append or behind it, and brokers that say no at times."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    told = 0
    for boot in range(1, 13):
        async with bench.recorder(boot) as recorder:
            cut = asyncio.Event()
            bench.brokers.appends = 0
            last = chance.randint(1, 6)
            bench.brokers.on_append = lambda cut=cut, last=last: cut.set() if bench.brokers.appends >= last else None  # type: ignore[misc]
            bench.brokers.fault = chance.choice(["stored", "stored", "not stored", None, None, None])  # type: ignore[assignment]
            async with bench.relay(replace(SETTINGS, batch_records_max=chance.choice([1, 3, 50]))):
                for _ in range(chance.randint(5, 40)):
                    ticket = recorder.record("sessions", f"agent {told % 3}", denied(told % 3, told))
                    told += 1
                    if chance.random() < 0.7:
                        await recorder.recorded(ticket)
                await recorder.recorded(ticket)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(cut.wait(), 0.3)
            bench.brokers.fault = None
    bench.brokers.on_append = lambda: None
    async with bench.recorder(13) as recorder, bench.relay() as relay:
        await shipped(bench, recorder, relay)
    assert by_agent(await bench.there("sessions")) == {f"agent {a}": list(range(a, told, 3)) for a in range(3)}, f"seed {seed}"


async def test_a_batch_never_holds_frames_of_two_boots(bench: Bench) -> None:
    """Sent again behind the second boot, those of the first would be taken for new ones."""
    for boot in (1, 2, 3):
        async with bench.recorder(boot) as recorder:
            for n in range(3):
                await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 10 * boot + n)))
    bench.brokers.fault = "stored"
    async with bench.relay(replace(SETTINGS, batch_records_max=100)) as relay:
        async with asyncio.timeout(30):
            while bench.brokers.appends < 3:
                await asyncio.sleep(0.005)
        bench.brokers.fault = None
        async with asyncio.timeout(30):
            while relay.state().shipped["sessions"] < 9:
                await asyncio.sleep(0.005)
    assert by_agent(await bench.there("sessions")) == {"agent 0": [10, 11, 12, 20, 21, 22, 30, 31, 32]}


async def test_identities_stand_here_at_the_offsets_that_they_have_there(bench: Bench) -> None:
    recorder = Recorder(bench.brokers, "api", 1, RecorderSettings())
    for n in range(10):
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))
    for end in (10, 30):
        async with bench.relay() as relay:
            for n in range(10, end):
                await recorder.recorded(recorder.record("identity", "a", revoked(n)))
            async with asyncio.timeout(30):
                while relay.state().identity_offset < end:
                    await asyncio.sleep(0.005)
        there = [(record.key, record.value) for record in bench.brokers._records[("identity", 0)]]
        assert await bench.read_local("identity") == there
    await recorder.close()


async def test_a_copy_of_which_nothing_is_kept_goes_on_where_it_ended(bench: Bench) -> None:
    """Killed between two segments, and the older one was given up since: there is no last record to compare."""
    await bench.brokers.append([Entry("commands", b"s", b"%d" % n) for n in range(5)])

    def stored() -> int:
        return log.end_offsets("commands")[("commands", 0)]

    log = SegmentLog(bench.folder, SMALL)
    async with bench.relay(), asyncio.timeout(30):
        while stored() < 5:
            await asyncio.sleep(0.005)
    (bench.folder / "commands" / "0" / f"{5:020}.seg").touch()
    assert log.trim("commands", 0, 5) > 0
    await bench.brokers.append([Entry("commands", b"s", b"5")])
    async with bench.relay() as relay, asyncio.timeout(30):
        while stored() < 6:
            await asyncio.sleep(0.005)
        assert relay.state().error == ""
    await log.close()


async def test_a_machine_counts_as_current_only_once_it_has_what_the_brokers_had_when_they_were_asked(bench: Bench) -> None:
    recorder = Recorder(bench.brokers, "api", 1, RecorderSettings())
    await recorder.recorded(recorder.record("identity", "a", revoked(0)))
    bench.brokers.silent = True
    began = mono_us()
    async with bench.relay() as relay:
        async with asyncio.timeout(20):
            while bench.brokers.looks < 5:
                await asyncio.sleep(0.005)
        assert relay.state().contact_mono_us == 0, "they answer questions, but show nothing"
        bench.brokers.silent = False
        async with asyncio.timeout(20):
            while not relay.state().contact_mono_us:
                await asyncio.sleep(0.005)
        assert began < relay.state().contact_mono_us < mono_us()
        assert relay.state().identity_offset == 1
        bench.brokers.away = True
        async with asyncio.timeout(30):
            while "asking: the brokers do not answer" not in relay.state().error:
                await asyncio.sleep(0.005)
        silent_since = relay.state().contact_mono_us
        unanswered = bench.brokers.unanswered
        async with asyncio.timeout(20):
            while bench.brokers.unanswered < unanswered + 2:
                await asyncio.sleep(0.005)
        assert relay.state().contact_mono_us == silent_since
        bench.brokers.away = False
        async with asyncio.timeout(20):
            while relay.state().contact_mono_us == silent_since:
                await asyncio.sleep(0.005)
        assert relay.state().error == ""
    await recorder.close()


@pytest.mark.parametrize("records", [1, 5])
async def test_another_log_behind_the_same_name_is_not_obeyed(bench: Bench, records: int) -> None:
    recorder = Recorder(bench.brokers, "api", 1, RecorderSettings())
    for n in range(3):
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))
    async with bench.relay() as relay:
        async with asyncio.timeout(30):
            while relay.state().identity_offset < 3:
                await asyncio.sleep(0.005)
    await recorder.close()
    before = await bench.read_local("identity")
    bench.brokers = Brokers()
    recorder = Recorder(bench.brokers, "another api", 1, RecorderSettings())
    for n in range(records):
        await recorder.recorded(recorder.record("identity", "a", revoked(n)))
    async with bench.relay() as relay:
        async with asyncio.timeout(30):
            while "these are two logs" not in relay.state().error:
                await asyncio.sleep(0.005)
        assert relay.state().contact_mono_us == 0
    assert await bench.read_local("identity") == before
    await recorder.close()


async def test_what_waits_for_the_brokers_is_counted_and_what_they_took_is_not(bench: Bench) -> None:
    async with bench.recorder() as recorder, bench.relay() as relay:
        async with asyncio.timeout(30):
            while not relay.state().contact_mono_us:
                await asyncio.sleep(0.005)
        bench.brokers.away = True
        for n in range(200):
            await recorder.recorded(recorder.record("statements", f"agent {n % 5}", started(n)))
        async with asyncio.timeout(30):
            while relay.state().backlog_bytes < recorder.written_bytes:
                await asyncio.sleep(0.005)
        assert relay.state().backlog_bytes == recorder.written_bytes
        waiting = relay.state().backlog_records
        assert waiting == recorder._log.end_offsets("statements")[("statements", 0)]
    async with bench.recorder(2) as recorder, bench.relay() as relay:  # a new process counts what the old one left
        async with asyncio.timeout(30):
            while relay.state().backlog_records < waiting:
                await asyncio.sleep(0.005)
        bench.brokers.away = False
        await shipped(bench, recorder, relay)
        async with asyncio.timeout(30):
            while relay.state().backlog_bytes or relay.state().backlog_records:
                await asyncio.sleep(0.005)
    assert len(await bench.there("statements")) == 200


def report(n: int) -> GatewayReported:
    return GatewayReported(n, "gateway-1", 1, 2, True, 0, "", 0, 0, 0, n, 0, 0, 0, 0, 0, 0)


async def test_the_newest_report_of_a_gateway_is_published_and_older_ones_that_wait_are_not(bench: Bench) -> None:
    async with bench.relay() as relay:
        async with asyncio.timeout(30):
            while not relay.state().contact_mono_us:
                await asyncio.sleep(0.005)
        for n in range(1, 101):
            relay.heard(GatewayWord(report(n)))
        async with asyncio.timeout(30):
            while report(100) not in (events := await bench.there("observations")):
                await asyncio.sleep(0.005)
        assert len(events) <= 3
        (place,) = (place for place, some in bench.brokers._records.items() if place[0] == "observations" and some)
        assert place[1] == partition(b"gateway-1", 2)


async def test_old_segments_go_once_the_brokers_have_them_and_the_gateway_needs_them_no_more_and_identities_stay(
    bench: Bench,
) -> None:
    api = Recorder(bench.brokers, "api", 1, RecorderSettings())
    for n in range(300):
        await api.recorded(api.record("identity", "a", revoked(n)))
    async with bench.recorder() as recorder:
        for n in range(300):
            await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, n)))
        bench.brokers.away = True
        async with bench.relay(replace(SETTINGS, keep_seconds=0.05)) as relay:
            await asyncio.sleep(0.3)
            assert recorder._log.begin_offsets("sessions") == {("sessions", 0): 0}, "they have nothing yet"
            bench.brokers.away = False
            await shipped(bench, recorder, relay)
            await asyncio.sleep(0.3)
            assert recorder._log.begin_offsets("sessions") == {("sessions", 0): 0}, "the gateway may need it"
            relay.heard(GatewayWord(report(1), {"sessions": 250, "statements": 0}))
            async with asyncio.timeout(20):
                while recorder._log.begin_offsets("sessions")[("sessions", 0)] < 100:
                    await asyncio.sleep(0.01)
                assert recorder._log.begin_offsets("sessions")[("sessions", 0)] <= 250
                while relay.state().identity_offset < 300:
                    await asyncio.sleep(0.01)
            await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 300)))
            await shipped(bench, recorder, relay)
            assert relay.state().error == ""
        assert recorder._log.begin_offsets("identity") == {("identity", 0): 0}
    assert by_agent(await bench.there("sessions")) == {"agent 0": list(range(301))}
    await api.close()


async def test_segments_that_are_young_stay(bench: Bench) -> None:
    async with bench.recorder() as recorder, bench.relay(replace(SETTINGS, keep_seconds=2.0)) as relay:
        began = asyncio.get_running_loop().time()
        relay.heard(GatewayWord(report(1), {"sessions": 300}))
        for n in range(300):
            await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, n)))
        await shipped(bench, recorder, relay)
        await asyncio.sleep(0.7)  # behind the first look for old ones
        if asyncio.get_running_loop().time() - began < 1.9:
            assert recorder._log.begin_offsets("sessions") == {("sessions", 0): 0}


async def test_brokers_that_cannot_be_reached_at_first_are_tried_again(bench: Bench) -> None:
    bench.refused = 3
    async with bench.recorder() as recorder:
        await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 0)))
        async with bench.relay() as relay:
            async with asyncio.timeout(30):
                while relay.state().error != "connecting: nobody listens there":
                    await asyncio.sleep(0.005)
            await shipped(bench, recorder, relay)
            assert relay.state().error == ""


async def test_a_relay_that_is_asked_to_end_ships_what_is_there_first_but_not_for_ever(bench: Bench) -> None:
    async def connect() -> EventLog:
        return bench.brokers

    async with bench.recorder() as recorder:
        relay = Relay(SegmentLog(bench.folder, SMALL), connect, "gateway-1", SETTINGS, lambda: None)
        running = asyncio.create_task(relay.run())
        await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 0)))
        await shipped(bench, recorder, relay)
        bench.brokers.away = True
        await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 1)))
        running.cancel()
        await asyncio.wait({running})
        assert not await relay.finish(0.05)
        bench.brokers.away = False
        assert await relay.finish(20)
        await relay.close()
    assert by_agent(await bench.there("sessions")) == {"agent 0": [0, 1]}


async def test_a_second_relay_waits_until_the_first_has_ended(bench: Bench) -> None:
    async with bench.recorder() as recorder, bench.relay() as first:
        await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 0)))
        await shipped(bench, recorder, first)
        async with bench.relay() as second:
            async with asyncio.timeout(30):
                while "another process" not in second.state().error:
                    await asyncio.sleep(0.005)
            await recorder.recorded(recorder.record("sessions", "agent 0", denied(0, 1)))
            await shipped(bench, recorder, first)
            assert second.state().shipped == {}
    assert by_agent(await bench.there("sessions")) == {"agent 0": [0, 1]}
