from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from analytics.enforcer import Enforcer, EnforcerSettings, Floor, Unreadable
from ingest.events import (
    AgentRevoked,
    GatewayReported,
    GatewayStarted,
    SessionClosed,
    SessionEndOrdered,
    SessionOpened,
    SessionReaped,
)
from ingest.log import Entry, LogUnavailable, Record
from ingest.log.memory import MemoryLog, MemorySubscription
from ingest.log.partitioner import partition
from tests.analytics.histories import History, wanted
from tests.analytics.scenario import START_US, Writer, stamp

SESSIONS = 4
QUICK = EnforcerSettings(tick_interval_ms=5, behind_seconds_max=0.05)
Never = EnforcerSettings(tick_interval_ms=5, behind_seconds_max=60.0)


@dataclass
class Orders:
    """Takes orders as the log does; can be made to fail first."""

    failures: int = 0
    taken: list[SessionEndOrdered] = field(default_factory=list)

    async def __call__(self, order: SessionEndOrdered) -> None:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("no broker answers")
        await asyncio.sleep(0)
        self.taken.append(order)

    @property
    def sessions(self) -> list[str]:
        return [order.session for order in self.taken]


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog({"sessions": SESSIONS, "observations": 2})


@contextlib.asynccontextmanager
async def running(
    log: MemoryLog, orders: Orders, settings: EnforcerSettings = Never, now_us: Callable[[], int] = lambda: START_US
) -> AsyncIterator[Enforcer]:
    enforcer = Enforcer(log, orders, settings, now_us)
    task = asyncio.create_task(enforcer.run())
    try:
        yield enforcer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], what: str = "") -> None:
    try:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(what or "it never came") from None


async def given(enforcer: Enforcer, partitions: Iterable[int] = range(SESSIONS), floors: dict[int, bytes] | None = None) -> None:
    """The partitions are this process's, and their past is known."""
    enforcer.give(partitions, (floors or {}).get)
    await until(lambda: not enforcer.status().reading)


async def records(log: MemoryLog, topic: str = "sessions") -> list[Record]:
    subscription = log.assign({(topic, number): 0 for number in range(log.partitions(topic))})
    found: list[Record] = []
    while more := await subscription.poll(1000, 0):
        found += more
    subscription.close()
    return found


async def hand(enforcer: Enforcer, found: Iterable[Record]) -> None:
    for record in found:
        await enforcer.take(record.partition, record.offset, record.value)


async def revoke(log: MemoryLog, agent: str, at_us: int = START_US + 1) -> None:
    api = Writer(log, f"api-{at_us}")  # type: ignore[arg-type]
    api.add(agent, AgentRevoked(at_us, agent, "leaked", "op"))
    await api.write()


async def opened(log: MemoryLog, *sessions: tuple[str, str], boot: int = 1, **more: int) -> None:
    gateway = Writer(log, "gw", boot)  # type: ignore[arg-type]
    gateway.framer._next_seq["sessions"] = sum(log.end_offsets("sessions").values())
    for session, agent in sessions:
        gateway.opened(stamp(session, agent), **more)
        await gateway.write()


async def test_a_revocation_ends_the_agents_sessions_and_no_others(log: MemoryLog) -> None:
    orders = Orders()
    async with running(log, orders) as enforcer:
        await given(enforcer)
        await opened(log, ("a", "reporter"), ("b", "loader"))
        await hand(enforcer, await records(log))
        await revoke(log, "reporter")
        await until(lambda: bool(orders.taken))
        assert [(order.session, order.cause, order.reason) for order in orders.taken] == [("a", "agent revoked", "leaked")]
        assert enforcer.status().orders_pending == 0


async def test_records_that_come_twice_or_late_or_not_at_all_change_nothing(log: MemoryLog) -> None:
    await opened(log, *((f"s{n}", "reporter") for n in range(40)))
    found = await records(log)
    place = partition(b"reporter", SESSIONS)
    async with running(log, Orders()) as enforcer:
        enforcer.give([place], lambda _: None)
        await until(lambda: not enforcer.status().reading)
        chance = random.Random(7)
        await opened(log, *((f"t{n}", "reporter") for n in range(40)))
        later = (await records(log))[len(found) :]
        handed = [record for record in later if chance.random() < 0.5] + found[:3] + [later[-1]]
        chance.shuffle(handed)
        await hand(enforcer, [*handed, later[-1]])
        assert set(enforcer.live()) == {f"s{n}" for n in range(40)} | {f"t{n}" for n in range(40)}
        assert enforcer.status().records == 0


async def test_what_nobody_hands_over_is_read_from_the_log(log: MemoryLog) -> None:
    orders = Orders()
    async with running(log, orders, QUICK) as enforcer:
        await given(enforcer)
        await opened(log, ("a", "reporter"))
        await revoke(log, "reporter")
        await until(lambda: orders.sessions == ["a"], "a consumer that stands still holds a revocation back")


class Gate:
    """Holds a reader of `sessions` after its first record, until it is opened."""

    def __init__(self, log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = asyncio.Event()
        self.reached = asyncio.Event()
        assign = log.assign

        def held(offsets: dict[tuple[str, int], int]) -> MemorySubscription:
            subscription = assign(offsets)
            if any(topic == "sessions" for topic, _ in offsets):
                poll = subscription.poll
                records = 0

                async def wait(records_max: int, timeout_seconds: float) -> Sequence[Record]:
                    nonlocal records
                    records += 1
                    if records == 2:
                        self.reached.set()
                        await self.opened.wait()
                    return await poll(1 if records == 1 else records_max, timeout_seconds)

                monkeypatch.setattr(subscription, "poll", wait)
            return subscription

        monkeypatch.setattr(log, "assign", held)


async def test_what_is_handed_over_while_the_past_is_read_is_not_lost(log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened(log, ("a", "reporter"), ("b", "reporter"))
    gate = Gate(log, monkeypatch)
    async with running(log, Orders()) as enforcer:
        enforcer.give([partition(b"reporter", SESSIONS)], lambda _: None)
        await gate.reached.wait()
        await opened(log, ("last", "reporter"))
        monkeypatch.undo()
        await hand(enforcer, (await records(log))[-1:])
        gate.opened.set()
        await until(lambda: not enforcer.status().reading)
        assert set(enforcer.live()) == {"a", "b", "last"}


async def test_no_order_goes_out_before_all_of_the_past_is_known(log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened(log, ("over", "reporter"))
    gateway = Writer(log, "gw")  # type: ignore[arg-type]
    gateway.framer._next_seq["sessions"] = 1
    gateway.closed(stamp("over", "reporter"))
    await gateway.write()
    orders = Orders()
    gate = Gate(log, monkeypatch)
    async with running(log, orders, QUICK) as enforcer:
        enforcer.give([partition(b"reporter", SESSIONS)], lambda _: None)
        await gate.reached.wait()
        await revoke(log, "reporter")
        await until(lambda: enforcer.status().orders_pending == 1)
        enforcer._news.set()
        await asyncio.sleep(0.05)
        gate.opened.set()
        await until(lambda: not enforcer.status().reading and not enforcer.status().orders_pending)
        assert (orders.taken, enforcer.live()) == ([], {})


async def test_of_the_past_only_sessions_that_still_live_are_ended(log: MemoryLog) -> None:
    await opened(log, ("over", "reporter"), ("lives", "reporter"))
    await revoke(log, "reporter")
    gateway = Writer(log, "gw")  # type: ignore[arg-type]
    gateway.framer._next_seq["sessions"] = 2
    gateway.closed(stamp("over", "reporter"))
    await gateway.write()
    orders = Orders()
    async with running(log, orders) as enforcer:
        await given(enforcer)
        await until(lambda: orders.sessions == ["lives"])


async def test_a_partition_begins_at_its_floor_and_knows_the_same(log: MemoryLog) -> None:
    place = partition(b"reporter", SESSIONS)
    await opened(log, *((f"s{n}", "reporter") for n in range(50)))
    gateway = Writer(log, "gw")  # type: ignore[arg-type]
    gateway.framer._next_seq["sessions"] = 50
    for n in range(45):
        gateway.closed(stamp(f"s{n}", "reporter"))
    await gateway.write()
    async with running(log, Orders()) as first:
        await given(first, [place])
        kept = first.floor(place)
        live = first.live()
    assert kept is not None
    orders = Orders()
    read: list[int] = []
    assign = log.assign

    def counted(offsets: dict[tuple[str, int], int]):  # type: ignore[no-untyped-def]
        if ("sessions", place) in offsets:
            read.append(offsets["sessions", place])
        return assign(offsets)

    log.assign = counted  # type: ignore[method-assign]
    async with running(log, orders) as second:
        await given(second, [place], {place: kept})
        assert second.live() == live == {f"s{n}": "reporter" for n in range(45, 50)}
        await revoke(log, "reporter")
        await until(lambda: len(orders.taken) == 5)
    assert read == [45]


@pytest.mark.parametrize("kept", [b"", b"\xc1", b"\x90", b"\x93\x01\x02\x03"])
async def test_a_floor_that_cannot_be_read_costs_time_only(log: MemoryLog, kept: bytes) -> None:
    await opened(log, ("a", "reporter"))
    async with running(log, Orders()) as enforcer:
        await given(enforcer, floors=dict.fromkeys(range(SESSIONS), kept))
        assert enforcer.live() == {"a": "reporter"}


async def test_an_earlier_boots_session_that_is_sent_again_behind_the_floor_does_not_come_back(log: MemoryLog) -> None:
    place = partition(b"reporter", SESSIONS)
    async with running(log, Orders()) as enforcer:
        await given(enforcer, [place])
        await opened(log, ("new", "reporter"), boot=2)
        gateway = Writer(log, "gw", 2)  # type: ignore[arg-type]
        gateway.framer._next_seq["sessions"] = 1
        gateway.closed(stamp("new", "reporter"))
        await gateway.write()
        await hand(enforcer, await records(log))
        kept = enforcer.floor(place)
    assert kept is not None
    await opened(log, ("old", "reporter"), boot=1)
    async with running(log, Orders()) as enforcer:
        await given(enforcer, [place], {place: kept})
        assert enforcer.live() == {}


async def test_two_that_both_believe_to_have_a_partition_make_the_same_orders(log: MemoryLog) -> None:
    one, two = Orders(), Orders()
    await opened(log, ("a", "reporter"), ("b", "reporter"))
    async with running(log, one) as first, running(log, two, now_us=lambda: START_US + 99) as second:
        await given(first)
        await given(second)
        await revoke(log, "reporter")
        await until(lambda: len(one.taken) == len(two.taken) == 2)
    assert {order.order for order in one.taken} == {order.order for order in two.taken}


async def test_orders_of_a_partition_that_went_are_its_next_owners(log: MemoryLog) -> None:
    stuck = Orders(failures=10**9)
    await opened(log, ("a", "reporter"))
    async with running(log, stuck) as enforcer:
        await given(enforcer)
        await revoke(log, "reporter")
        await until(lambda: enforcer.status().orders_pending == 1)
        enforcer.give([], lambda _: None)
        standing = enforcer.status()
        assert (standing.orders_pending, standing.partitions, standing.live_sessions) == (0, (), 0)
        assert enforcer.live() == {}


async def test_an_order_is_given_again_until_it_is_recorded(log: MemoryLog) -> None:
    orders = Orders(failures=2)
    await opened(log, ("a", "reporter"))
    async with running(log, orders) as enforcer:
        await given(enforcer)
        await revoke(log, "reporter")
        await until(lambda: orders.sessions == ["a"])


async def test_expiries_are_ordered_by_the_clock(log: MemoryLog) -> None:
    now_us = START_US
    orders = Orders()
    await opened(log, ("a", "reporter"), expires_at_us=START_US + 1000)
    async with running(log, orders, now_us=lambda: now_us) as enforcer:
        await given(enforcer)
        await asyncio.sleep(0.05)
        assert orders.taken == []
        now_us += 1000
        await until(lambda: [order.cause for order in orders.taken] == ["token expired"])


async def test_a_gateway_that_reports_a_later_boot_has_no_session_of_an_earlier_one(log: MemoryLog) -> None:
    agents = [f"agent-{n}" for n in range(12)]
    assert {partition(agent.encode(), SESSIONS) for agent in agents} == set(range(SESSIONS))
    await opened(log, *((f"s-{agent}", agent) for agent in agents))
    gateway = Writer(log, "gw", 2)  # type: ignore[arg-type]
    gateway.add("gw", GatewayStarted(START_US, "gw", 2, "1"))  # in one of the partitions only
    await gateway.write()
    async with running(log, Orders()) as enforcer:
        await given(enforcer)
        assert enforcer.live()
        relay = Writer(log, "gw-relay", 2)  # type: ignore[arg-type]
        relay.add("gw", GatewayReported(START_US, "gw", 2, 1, True, 0, "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        await relay.write()
        await until(lambda: enforcer.live() == {})


async def test_a_session_that_the_watchdog_ended_does_not_live_in_whatever_order_that_is_read(log: MemoryLog) -> None:
    async def reap(session: str) -> None:
        watchdog = Writer(log, f"watchdog-{session}")  # type: ignore[arg-type]
        event = SessionReaped(START_US, session, "reporter", "gw", 1, "agent revoked", 0, 0, 1, 7, "x", "w")
        watchdog.add("reporter", event)
        await watchdog.write()

    await opened(log, ("before", "reporter"), ("after", "reporter"))
    await reap("before")
    async with running(log, Orders()) as enforcer:
        await until(lambda: "before" in enforcer._reaped)
        await given(enforcer)
        assert set(enforcer.live()) == {"after"}
        await reap("after")
        await until(lambda: enforcer.live() == {})
        await reap("late")
        await until(lambda: "late" in enforcer._reaped)
        await opened(log, ("late", "reporter"))
        await hand(enforcer, await records(log))
        assert (enforcer.live(), enforcer.status().records) == ({}, 0)


async def test_a_record_that_cannot_be_read_is_told_and_the_other_partitions_go_on(log: MemoryLog) -> None:
    orders = Orders()
    bad = partition(b"reporter", SESSIONS)
    other = next(f"agent-{n}" for n in range(99) if partition(f"agent-{n}".encode(), SESSIONS) != bad)
    async with running(log, orders) as enforcer:
        await given(enforcer)
        await opened(log, ("known", "reporter"), ("b", other))
        await hand(enforcer, await records(log))
        await log.append([Entry("sessions", b"reporter", b"no frame")])
        (damaged,) = [record for record in await records(log) if record.value == b"no frame"]
        for _ in range(2):
            with pytest.raises(Unreadable, match=f"partition {bad} of sessions"):
                await enforcer.take(damaged.partition, damaged.offset, damaged.value)
        assert f"record {damaged.offset}" in enforcer.status().error
        await revoke(log, other)
        await revoke(log, "reporter", START_US + 2)
        await until(lambda: sorted(orders.sessions) == ["b", "known"])


async def test_the_log_may_be_away_when_a_partition_comes(log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened(log, ("a", "reporter"))
    offsets, failures = log.offsets, [LogUnavailable("no broker answers")] * 2

    async def away(topic: str) -> dict[tuple[str, int], int]:
        if topic == "sessions" and failures:
            raise failures.pop()
        return await offsets(topic)

    monkeypatch.setattr(log, "offsets", away)
    async with running(log, Orders()) as enforcer:
        await given(enforcer)
        assert (set(enforcer.live()), enforcer.status().error) == ({"a"}, "")


def test_a_floor_is_what_it_was_when_it_comes_back() -> None:
    import msgspec

    floor = Floor(7, {"gw": 3})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(floor), type=Floor) == floor


@pytest.mark.parametrize("seed", range(12))
async def test_random_histories_shared_by_two_at_random_end_as_the_plainest_fold_has_it(seed: int) -> None:
    """Partitions move to and fro, floors are kept or lost, records come twice or not at all, and a process begins anew."""
    chance = random.Random(seed)
    history = History(seed, f"h{seed}", steps=120, everybody=True)
    log = MemoryLog({"sessions": SESSIONS, "observations": 2})
    due = wanted([history], START_US)
    orders = Orders()
    kept: dict[int, bytes] = {}
    async with contextlib.AsyncExitStack() as processes:
        two = [await processes.enter_async_context(running(log, orders, QUICK)) for _ in range(2)]
        owners = [chance.randrange(2) for _ in range(SESSIONS)]
        handed: dict[int, int] = {}
        for write in history.writes:
            await log.append(write)
            if chance.random() < 0.1:
                for number in range(SESSIONS):
                    floor = two[owners[number]].floor(number)
                    if floor is not None and chance.random() < 0.7:
                        kept[number] = floor
                owners = [chance.randrange(2) for _ in range(SESSIONS)]
                for n, enforcer in enumerate(two):
                    enforcer.give([number for number in range(SESSIONS) if owners[number] == n], kept.get)
            for record in await records(log):
                again = chance.random() < 0.02
                if (record.offset >= handed.get(record.partition, 0) or again) and chance.random() < 0.8:
                    handed[record.partition] = max(handed.get(record.partition, 0), record.offset + 1)
                    await two[owners[record.partition]].take(record.partition, record.offset, record.value)
            await asyncio.sleep(0)
        for n, enforcer in enumerate(two):
            enforcer.give([number for number in range(SESSIONS) if owners[number] == n], kept.get)

        def over() -> bool:
            standings = [enforcer.status() for enforcer in two]
            return (
                not any(one.reading or one.records or one.identity_records or one.orders_pending for one in standings)
                and {session for enforcer in two for session in enforcer.live()} == due.live
                and due.due <= {order.order for order in orders.taken}
            )

        try:
            await until(over)
        except AssertionError:
            live = {session for enforcer in two for session in enforcer.live()}
            assert live == due.live
            assert due.due <= {order.order for order in orders.taken}
            raise
    assert {order.order for order in orders.taken} <= due.possible
    assert SessionClosed in {type(event) for event in _events(history)}
    assert due.due, "a history in which nothing ends shows nothing"


def _events(history: History) -> list[object]:
    from ingest.frames import decode

    return [event for write in history.writes for entry in write for _, event in decode(entry.value).events]


async def test_a_session_that_was_let_in_after_a_reinstatement_goes_on(log: MemoryLog) -> None:
    orders = Orders()
    await opened(log, ("old", "reporter"))
    async with running(log, orders) as enforcer:
        await given(enforcer)
        gateway = Writer(log, "gw")  # type: ignore[arg-type]
        gateway.framer._next_seq["sessions"] = 1
        event = SessionOpened(START_US, stamp("new", "reporter"), "token", "c", 0, "", "", "3.0", "group", (), START_US + 2)
        gateway.add("reporter", event)
        await gateway.write()
        await hand(enforcer, await records(log))
        await revoke(log, "reporter")  # read only now: the gateway knew of it, and that it was taken back
        await until(lambda: orders.sessions == ["old"])
        await asyncio.sleep(0.05)
        assert orders.sessions == ["old"]
