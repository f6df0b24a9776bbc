"""Workers as they run: processes of their own, on a real Apache Kafka, held against the plainest fold there is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaProducer

from analytics import activity
from analytics.activity import Activity
from analytics.runner import Runner
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.events import AgentRevoked, SessionEndOrdered
from ingest.follow import Follower
from ingest.frames import Framer
from ingest.log import EventLog, LogUnavailable
from ingest.log import topics as log_topics
from ingest.log.kafka import KafkaLog
from ingest.log.kafka_client import connection
from ingest.log.partitioner import partition
from ingest.log.segments import SegmentLog
from ingest.settings import TABLES, KafkaSettings, LogSettings
from tests import broker as brokers
from tests.analytics.histories import History, wanted
from tests.analytics.scenario import START_US, Writer, stamp
from tests.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

READY_SECONDS_MAX = 90.0  # 3 to 6 s on a quiet machine
SETTLED_SECONDS_MAX = 90.0


def configuration(folder: Path, kafka: KafkaSettings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    password = folder / "password"
    password.write_text(kafka.password())
    password.chmod(0o600)
    secure = f"""
sasl = "{kafka.sasl}"
user = "{kafka.user}"
password = "file:{password}"
ca_file = "{kafka.ca_file}"
"""
    file = folder / "pgwarden.toml"
    file.write_text(
        f"""
state = "state"
[gateway]
name = "gw"
[log]
backend = "kafka"
[kafka]
bootstrap = {json.dumps(list(kafka.bootstrap))}
tls = {json.dumps(kafka.tls)}
topic_prefix = "{kafka.topic_prefix}"
replication = 1
in_sync_min = 1
sessions_partitions = {kafka.partitions["sessions"]}
statements_partitions = {kafka.partitions["statements"]}
findings_partitions = {kafka.partitions["findings"]}
observations_partitions = {kafka.partitions["observations"]}
witness_partitions = {kafka.partitions["witness"]}
looks_partitions = {kafka.partitions["looks"]}
{secure if kafka.sasl else ""}"""
    )
    return file


@dataclass
class Worker:
    config: Path
    name: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, config: Path, name: str) -> Worker:
        output = (config.parent / f"{name}.log").open("ab")
        python = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning"]  # kafka-python's and Faust's own
        with output:
            process = subprocess.Popen(
                [*python, "-m", "pgwarden", "worker", "-c", str(config), "--name", name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return cls(config, name, process)

    def status(self) -> dict[str, object]:
        """Empty while it does not answer."""
        said = b""
        with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
            peer.settimeout(5)
            peer.connect(str(self.config.parent / "state" / "run" / f"worker-{self.name}.sock"))
            while more := peer.recv(65536):
                said += more
        return json.loads(said) if said else {}

    def said(self) -> str:
        return (self.config.parent / f"{self.name}.log").read_text()

    def part(self, name: str) -> dict[str, object]:
        part = self.status().get(name, {})
        assert isinstance(part, dict)
        return part

    def stop(self) -> tuple[int, float]:
        """SIGTERM. Exit status and seconds."""
        began = time.monotonic()
        self.process.terminate()
        return self.process.wait(30), time.monotonic() - began

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Unix socket's path takes 107 bytes."""
    return tmp_path_factory.mktemp("w")


@pytest.fixture
def start(short: Path, kafka_settings: KafkaSettings) -> Iterator[Callable[[str], Worker]]:
    config = configuration(short, kafka_settings)
    workers: list[Worker] = []

    def begin(name: str) -> Worker:
        workers.append(Worker.start(config, name))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill9()


@pytest.fixture
async def log(kafka_settings: KafkaSettings) -> AsyncIterator[KafkaLog]:
    log = await KafkaLog.open(kafka_settings)
    yield log
    await log.close()


async def until(condition: Callable[[], bool], what: str, seconds: float = SETTLED_SECONDS_MAX) -> float:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def shared(workers: list[Worker]) -> bool:
    """Each has a part, together they have every partition once, and have read its past."""
    standings = [worker.part("sessions") for worker in workers]
    if not all(one.get("partitions") for one in standings):
        return False
    numbers = [number for one in standings for number in one.get("partitions", ())]  # type: ignore[attr-defined]
    reading = any(one.get("reading", True) for one in standings)
    return sorted(numbers) == list(range(brokers.PARTITIONS["sessions"])) and not reading


def idle(workers: list[Worker]) -> bool:
    for worker in workers:
        said = worker.status()
        if not said:
            return False
        sessions, identity, orders, statements = (worker.part(name) for name in ("sessions", "identity", "orders", "statements"))
        if sessions["reading"] or sessions["records_behind"] or identity["records_behind"] or orders["pending"]:
            return False
        if statements["records_behind"]:
            return False
    return True


async def ordered(log: EventLog) -> dict[str, SessionEndOrdered]:
    follower = Follower(log, ("commands",), {})
    orders: dict[str, SessionEndOrdered] = {}
    try:
        while any(follower.offsets[place] < end for place, end in (await log.offsets("commands")).items()):
            for _, frame in await follower.poll(500, 1.0):
                for _, event in frame.events:
                    assert isinstance(event, SessionEndOrdered)
                    orders[event.order] = event
    finally:
        follower.close()
    return orders


def activities(kafka: KafkaSettings) -> dict[str, Activity]:
    """What the workers keep: the newest value of each key."""
    from kafka import KafkaConsumer, TopicPartition

    name = kafka.topic_prefix + "worker-activity"
    consumer = KafkaConsumer(bootstrap_servers=list(kafka.bootstrap), enable_auto_commit=False, auto_offset_reset="earliest")
    found: dict[str, Activity] = {}
    try:
        places = [TopicPartition(name, number) for number in range(kafka.partitions["statements"])]
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        until = time.monotonic() + 30
        while any(consumer.position(place) < ends[place] for place in places):
            assert time.monotonic() < until
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    found[record.key.decode()] = activity.decode(record.value)
    finally:
        consumer.close()
    return found


async def by_the_runner(histories: list[History], folder: Path) -> dict[str, SessionEndOrdered]:
    """The orders of the in-process runner, on segments of one machine."""
    log = SegmentLog(folder / "segments", LogSettings())
    store = await asyncio.to_thread(Store.open, AnalyticsSettings(folder / "tables"))
    taken: dict[str, SessionEndOrdered] = {}

    async def order(event: SessionEndOrdered) -> None:
        taken[event.order] = event

    runner = Runner(log, store, order, AnalyticsSettings(folder / "tables"))
    for history in histories:
        for write in history.writes:
            await log.append(write)
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(60):
            await runner.caught_up()
            await asyncio.sleep(0.3)  # one tick more, for what expires
            while runner.lag().orders_pending:
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(store.close)
        await log.close()
    return taken


def listening_ports(pid: int) -> set[int]:
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd)):
                inodes.add(found[1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def partitioned(log: EventLog) -> Callable[[str, bytes], int]:
    return lambda topic, key: partition(key, log.partitions(topic))


def writer(log: EventLog, name: str, boot: int = 1) -> Writer:
    made = Writer(log, name, boot)
    made.framer = Framer(name, boot, events_max=100, bytes_max=64 * 1024, partition=partitioned(log))
    return made


async def test_one_worker_and_two_come_to_what_the_runner_and_the_plainest_fold_come_to(
    start: Callable[[str], Worker], log: KafkaLog, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    seed = secrets.randbelow(10**6)
    print("seed", seed)
    histories = [History(seed + n, f"h{n}", steps=80) for n in range(9)]
    histories.append(History(seed + 9, "h9", steps=80, everybody=True, at_us=START_US + 10**12))
    for history in histories[:3]:
        for write in history.writes:
            await log.append(write)
    workers = [start("one")]
    await until(lambda: shared(workers), "one worker has all partitions", READY_SECONDS_MAX)
    assert listening_ports(workers[0].process.pid) == set()
    for history in histories[3:6]:
        for write in history.writes:
            await log.append(write)
    workers.append(start("two"))
    rest = [write for history in histories[6:] for write in history.writes]
    for n, write in enumerate(rest):
        await log.append(write)
        if n % 20 == 0:
            await asyncio.sleep(0.1)  # so that some of it falls into the rebalance, and some behind it
    await until(lambda: shared(workers), "two workers share the partitions", READY_SECONDS_MAX)
    due = wanted(histories, time.time_ns() // 1000)
    try:
        await until(
            lambda: idle(workers) and sum(int(str(w.part("sessions")["live"])) for w in workers) == len(due.live), "all is weighed"
        )
    except AssertionError as error:
        raise AssertionError(f"{error}: {len(due.live)} live; {[worker.status() for worker in workers]}") from None

    orders = await ordered(log)
    assert due.due <= set(orders) <= due.possible
    assert len(due.due) >= 10
    assert {type(one).__name__ for one in orders.values()} == {"SessionEndOrdered"}
    assert len({one.cause for one in orders.values()}) >= 6
    runner = await by_the_runner(histories, tmp_path)
    assert due.due <= set(runner) <= due.possible
    assert {name for name, one in runner.items() if one.session in due.live} == due.due
    assert {name for name, one in orders.items() if one.session in due.live} == due.due

    found = activities(kafka_settings)
    assert found == due.activities
    assert sum(len(each.closed) for each in found.values()) > 50
    for worker in workers:
        code, seconds = worker.stop()
        assert (code, seconds < 10) == (0, True), worker.said()
        assert "Traceback" not in worker.said()


@pytest.mark.faults
async def test_a_worker_that_is_killed_is_succeeded_and_no_order_is_missing(
    start: Callable[[str], Worker], log: KafkaLog, record_property: Callable[[str, object], None]
) -> None:
    """One of two is killed while agents are revoked, and a third joins."""
    gateway, api = writer(log, "gw"), writer(log, "api")
    agents = [f"agent-{n}" for n in range(240)]
    for agent in agents:
        gateway.opened(stamp(f"s-{agent}", agent))
    await gateway.write()
    workers = [start("one"), start("two")]
    await until(lambda: shared(workers), "two workers share the partitions", READY_SECONDS_MAX)
    revoked: dict[str, float] = {}
    seen: dict[str, float] = {}
    follower = Follower(log, ("commands",), {}, on_gap=lambda _: None)

    async def watch() -> None:
        while len(seen) < len(agents):
            for _, frame in await follower.poll(100, 1.0):
                for _, event in frame.events:
                    assert isinstance(event, SessionEndOrdered)
                    seen.setdefault(event.agent, time.monotonic())

    watching = asyncio.create_task(watch())
    killed_at = 0.0
    for n, agent in enumerate(agents):
        api.add(agent, AgentRevoked(START_US + n + 1, agent, "leaked", "op"))
        revoked[agent] = time.monotonic()
        await api.write()
        if n == 80:
            workers[0].kill9()
            killed_at = time.monotonic()
        if n == 120:
            workers[0] = start("three")
        await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(SETTLED_SECONDS_MAX):
            await watching
    except TimeoutError:
        pytest.fail(f"{len(agents) - len(seen)} revoked agents have no order: {workers[1].said()[-2000:]}")
    finally:
        follower.close()
    delays = {agent: seen[agent] - revoked[agent] for agent in agents}
    before = sorted(delays[agent] for agent in agents[:80])
    longest = max(delays.values())
    said = f"p50 {before[40] * 1000:.0f} ms, p99 {before[78] * 1000:.0f} ms; with a kill at most {longest:.1f} s"
    record_property("revocation to order", said)
    print(said, f"(killed {time.monotonic() - killed_at:.1f} s ago)")
    assert longest < 45  # the dead member's session is 10 s, a rebalance 2 to 3
    await until(lambda: shared([workers[0], workers[1]]), "the third has its share", READY_SECONDS_MAX)


async def test_a_worker_that_stops_in_good_order_hands_over_at_once(start: Callable[[str], Worker], log: KafkaLog) -> None:
    gateway, api = writer(log, "gw"), writer(log, "api")
    agents = [f"agent-{n}" for n in range(40)]
    for agent in agents:
        gateway.opened(stamp(f"s-{agent}", agent))
    await gateway.write()
    workers = [start("one"), start("two")]
    await until(lambda: shared(workers), "two workers share the partitions", READY_SECONDS_MAX)
    code, seconds = workers[0].stop()
    assert code == 0, workers[0].said()
    assert seconds < 10
    for n, agent in enumerate(agents):
        api.add(agent, AgentRevoked(START_US + n + 1, agent, "leaked", "op"))
    await api.write()
    await until(lambda: workers[1].part("orders")["recorded"] >= len(agents), "the other took over", 30)  # type: ignore[operator]
    assert {order.agent for order in (await ordered(log)).values()} == set(agents)
    assert workers[1].status()["healthy"] is True


async def test_records_that_anybody_may_have_written_stop_no_counting_and_are_told(
    start: Callable[[str], Worker], log: KafkaLog, kafka_settings: KafkaSettings
) -> None:
    """Without a key, without a value, with a key that is no name, no frame at all, or another topic's events."""
    gateway, api = writer(log, "gw"), writer(log, "api")
    gateway.opened(stamp("s-1", "agent-1"))
    await gateway.write()
    worker = start("one")
    await until(lambda: shared([worker]), "it has all partitions", READY_SECONDS_MAX)
    framer = Framer("gw", 9, events_max=1, bytes_max=1000)
    framer.add("identity", "agent-1", AgentRevoked(START_US + 1, "agent-1", "forged", "nobody"))
    (forged,) = framer.cut()
    records: list[tuple[bytes | None, bytes | None]] = [
        (None, b"x"),
        (b"agent-1", None),
        (b"\xff", forged.value),
        (b"agent-1", b"no frame"),
        (b"agent-1", forged.value),
    ]
    producer = await asyncio.to_thread(KafkaProducer, **connection(kafka_settings))
    try:
        for key, value in records:
            sent = producer.send(kafka_settings.topic_prefix + "statements", key=key, value=value, partition=0)
            await asyncio.to_thread(sent.get, 30)
    finally:
        await asyncio.to_thread(producer.close)
    await until(lambda: "5 records of statements could not be read" in str(worker.status().get("reason")), "they are told", 30)
    api.add("agent-1", AgentRevoked(START_US + 2, "agent-1", "leaked", "op"))
    await api.write()
    await until(lambda: worker.part("orders")["recorded"] == 1, "it orders on", 30)
    assert worker.process.poll() is None
    (order,) = (await ordered(log)).values()
    assert order.reason == "leaked"


@pytest.mark.faults
async def test_a_worker_that_is_told_to_end_while_it_joins_its_group_ends_in_seconds(start: Callable[[str], Worker]) -> None:
    first = start("one")
    await until(lambda: shared([first]), "the first has all partitions", READY_SECONDS_MAX)
    for n, seconds in enumerate((0.0, 0.2, 0.6, 1.2)):
        joining = start(f"joining-{n}")
        await until(lambda joining=joining: bool(joining.status()), "it answers", READY_SECONDS_MAX)
        await asyncio.sleep(seconds)
        code, took = joining.stop()
        assert (code, took < 15) == (0, True), f"{took:.1f} s: {joining.said()}"
    await until(lambda: shared([first]), "the first has all of them again", READY_SECONDS_MAX)


async def test_a_second_worker_of_one_name_is_refused(start: Callable[[str], Worker]) -> None:
    first = start("one")
    await until(lambda: bool(first.status()), "the first answers", READY_SECONDS_MAX)
    second = start("one")
    assert await asyncio.to_thread(second.process.wait, 60) == 1
    assert "give this one another with --name" in second.said()


async def test_over_tls_with_a_password_the_same_and_the_password_is_nowhere(broker: Broker, short: Path) -> None:
    kafka = brokers.settings(broker, f"test-{secrets.token_hex(4)}.", "sasl")
    await asyncio.to_thread(log_topics.apply, kafka)
    worker = Worker.start(configuration(short, kafka), "tls")
    try:
        log = await KafkaLog.open(kafka)
        try:
            gateway, api = writer(log, "gw"), writer(log, "api")
            gateway.opened(stamp("s", "reporter"))
            await gateway.write()
            await until(lambda: shared([worker]), "it has all partitions", READY_SECONDS_MAX)
            api.add("reporter", AgentRevoked(START_US + 1, "reporter", "leaked", "op"))
            await api.write()
            await until(lambda: worker.part("orders")["recorded"] == 1, "the order is made", 30)
        finally:
            await log.close()
        assert worker.stop()[0] == 0
        arguments = b" ".join(os.fsencode(argument) for argument in worker.process.args)  # type: ignore[union-attr]
        assert brokers.PASSWORD not in worker.said()
        assert brokers.PASSWORD.encode() not in arguments
    finally:
        if worker.process.poll() is None:
            worker.kill9()
        await asyncio.to_thread(brokers.remove_topics, kafka)


async def test_without_its_topics_it_says_what_to_do(broker: Broker, short: Path) -> None:
    kafka = brokers.settings(broker, f"test-{secrets.token_hex(4)}.")
    worker = Worker.start(configuration(short, kafka), "one")
    assert await asyncio.to_thread(worker.process.wait, 60) == 1
    assert "pgwarden topics apply" in worker.said()


@pytest.mark.faults
async def test_a_stopped_process_that_comes_back_does_no_harm(start: Callable[[str], Worker], log: KafkaLog) -> None:
    """SIGSTOP for longer than its session: the others took over, and it wakes up believing that nothing happened."""
    gateway, api = writer(log, "gw"), writer(log, "api")
    agents = [f"agent-{n}" for n in range(60)]
    for agent in agents:
        gateway.opened(stamp(f"s-{agent}", agent))
    await gateway.write()
    workers = [start("one"), start("two")]
    await until(lambda: shared(workers), "two workers share the partitions", READY_SECONDS_MAX)
    workers[0].process.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: shared(workers[1:]), "the other takes over", 60)
        for n, agent in enumerate(agents[:30]):
            api.add(agent, AgentRevoked(START_US + n + 1, agent, "leaked", "op"))
        gateway.opened(stamp("late", agents[45]))
        await asyncio.gather(api.write(), gateway.write())
        await until(lambda: workers[1].part("orders")["recorded"] >= 30, "all are ordered", 30)  # type: ignore[operator]
    finally:
        workers[0].process.send_signal(signal.SIGCONT)
    for n, agent in enumerate(agents[30:]):
        api.add(agent, AgentRevoked(START_US + 1000 + n, agent, "leaked", "op"))
    await api.write()

    async def all_ordered() -> bool:
        return {order.session for order in (await ordered(log)).values()} == {f"s-{agent}" for agent in agents} | {"late"}

    async with asyncio.timeout(60):
        while not await all_ordered():
            await asyncio.sleep(0.2)
    await until(lambda: shared(workers), "they share again", 60)


@pytest.mark.faults
async def test_brokers_that_are_away_for_a_while_are_waited_for(own_broker: Broker, short: Path) -> None:
    kafka = brokers.settings(own_broker, f"test-{secrets.token_hex(4)}.")
    await asyncio.to_thread(log_topics.apply, kafka)
    config = configuration(short, kafka)
    worker = Worker.start(config, "one")
    try:
        log = await KafkaLog.open(kafka)
        try:
            gateway, api = writer(log, "gw"), writer(log, "api")
            for n in range(3):
                gateway.opened(stamp(f"s{n}", f"agent-{n}"))
            await gateway.write()
            await until(lambda: shared([worker]), "it has all partitions", READY_SECONDS_MAX)
            for n, away in enumerate((own_broker.restart, lambda: (own_broker.kill9(), time.sleep(12), own_broker.start()))):
                await asyncio.to_thread(away)
                api.add(f"agent-{n}", AgentRevoked(START_US + n + 1, f"agent-{n}", "leaked", "op"))
                frames = api.framer.cut()
                async with asyncio.timeout(60):
                    while True:
                        with contextlib.suppress(LogUnavailable):
                            await log.append(frames)
                            break
                await until(lambda n=n: worker.part("orders").get("recorded", 0) > n, f"order {n}: {worker.said()[-1500:]}")
            assert worker.process.poll() is None
        finally:
            await log.close()
        assert worker.stop()[0] == 0
        assert len(worker.said().splitlines()) < 80, "an outage of seconds fills its log"
    finally:
        if worker.process.poll() is None:
            worker.kill9()


@pytest.mark.faults
async def test_a_worker_that_hears_nothing_of_the_brokers_says_so(own_broker: Broker, short: Path) -> None:
    kafka = brokers.settings(own_broker, f"test-{secrets.token_hex(4)}.")
    await asyncio.to_thread(log_topics.apply, kafka)
    worker = Worker.start(configuration(short, kafka), "one")
    try:
        await until(lambda: shared([worker]), "it has all partitions", READY_SECONDS_MAX)
        with own_broker.paused():
            await until(lambda: "the brokers have not answered for" in str(worker.status().get("reason")), "it says so", 60)
            assert worker.status()["healthy"] is False
        await until(lambda: worker.status().get("healthy") is True, "all is well again", 90)
    finally:
        worker.kill9()


def test_the_tables_topics_are_those_that_the_worker_asks_for(kafka_settings: KafkaSettings) -> None:
    from analytics.streams import ACTIVITY, FLOORS

    assert TABLES == {FLOORS: "sessions", ACTIVITY: "statements"}
