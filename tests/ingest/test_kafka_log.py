"""What only a log on real brokers can do: lose them, find them again, prove who it is. The contract has its own suite."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingest.log import Entry, EventLog, GroupSubscription, LogCorrupt, LogUnavailable, Partition, Record, Subscription, topics
from ingest.log.partitioner import partition
from ingest.settings import KafkaSettings, Sasl
from tests import broker as brokers
from tests.broker import Broker, Cluster

if TYPE_CHECKING:
    from ingest.log.kafka import KafkaLog

pytestmark = pytest.mark.kafka

FINDINGS = ("findings", 0)
COMMANDS = ("commands", 0)


def entry(n: int, topic: str = "commands", key: bytes = b"k") -> Entry:
    return Entry(topic, key, b"value %d" % n)


def number(record: Record) -> int:
    return int(record.value.split()[1])


async def open_log(settings: KafkaSettings) -> KafkaLog:
    from ingest.log.kafka import KafkaLog

    return await KafkaLog.open(settings)


@pytest.fixture
async def log(kafka_settings: KafkaSettings) -> AsyncIterator[KafkaLog]:
    opened = await open_log(kafka_settings)
    yield opened
    await opened.close()


def impatient(broker: Broker, prefix: str = "own.") -> KafkaSettings:
    """Of a broker of this test's own: short times, so that an outage's end is not waited for."""
    settings = replace(
        brokers.settings(broker, prefix),
        append_seconds_max=2.0,
        answer_seconds_max=2.0,
        connect_seconds_max=5.0,
        close_seconds_max=5.0,
        session_seconds=6.0,
    )
    topics.apply(settings)
    return settings


async def read(subscription: Subscription, count: int, seconds: float = 60) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            found += await subscription.poll(1000, 1.0)
    return found


async def append_surely(log: EventLog, entries: Sequence[Entry], seconds: float = 60) -> int:
    """Again and again until it is acknowledged; how often it was not."""
    failed = 0
    async with asyncio.timeout(seconds):
        while True:
            try:
                await log.append(entries)
                return failed
            except LogUnavailable:
                failed += 1
                await asyncio.sleep(0.05)


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """How long the event loop was ever kept from its work, in seconds."""
    worst = [0.0]

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst[0] = max(worst[0], time.monotonic() - before - 0.01)

    watching = asyncio.create_task(watch())
    try:
        yield worst
    finally:
        watching.cancel()


# -- opening ---------------------------------------------------------------------------------------------------------------------


async def test_brokers_that_nobody_reaches_are_named_within_the_time(broker: Broker) -> None:
    settings = replace(brokers.settings(broker, "x."), bootstrap=(f"127.0.0.1:{brokers.port()}",), connect_seconds_max=1.0)
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=f"{settings.bootstrap[0]} do not answer: nobody listens there"):
        await open_log(settings)
    assert time.monotonic() - began < 10


async def test_missing_topics_are_named_with_what_makes_them(broker: Broker) -> None:
    with pytest.raises(LogUnavailable, match=r"no topic missing\.identity, .*missing\.checkpoints: run pgwarden topics apply"):
        await open_log(brokers.settings(broker, "missing."))


async def test_another_number_of_partitions_is_refused_before_a_key_changes_its_place(kafka_settings: KafkaSettings) -> None:
    fewer = replace(kafka_settings, partitions={**kafka_settings.partitions, "statements": 3})
    with pytest.raises(ValueError, match=r"statements has 4 partitions and 3 are configured.*statements_partitions = 4"):
        await open_log(fewer)


async def test_a_topic_that_the_log_has_not_is_no_topic(log: KafkaLog) -> None:
    for ask in (
        lambda: log.append([entry(1, "secrets")]),
        lambda: log.offsets("secrets"),
    ):
        with pytest.raises(ValueError, match="no topic"):
            await ask()
    with pytest.raises(ValueError, match="no topic"):
        log.assign({("secrets", 0): 0})


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["kafka", "crc32c"])
def test_without_its_packages_it_says_what_to_install(lacking: str) -> None:
    program = f"import sys; sys.modules[{lacking!r}] = None; import ingest.log.kafka"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "pgwarden[kafka]" in done.stderr.splitlines()[-1]
    assert f"{lacking} is missing" in done.stderr.splitlines()[-1]


def test_whoever_does_not_ask_for_kafka_does_not_load_it() -> None:
    program = "import sys, ingest.log.segments, ingest.log.kafka_client; sys.exit('kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


# -- who we are, and who they are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sasl", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_user_is_let_in_over_tls_and_the_password_is_asked_for_at_each_connection(
    broker: Broker, kafka_settings: KafkaSettings, sasl: Sasl, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    def password() -> str:
        nonlocal asked
        asked += 1
        return brokers.PASSWORD

    secure = replace(brokers.settings(broker, kafka_settings.topic_prefix, "sasl"), sasl=sasl, password=password)
    with caplog.at_level(logging.DEBUG):
        opened = await open_log(secure)
        await opened.append([entry(n) for n in range(3)])
        opening = asked
        subscription = opened.assign({COMMANDS: 0})
        assert [number(r) for r in await read(subscription, 3)] == [0, 1, 2]
        await opened.close()
    assert asked > opening > 1
    assert brokers.PASSWORD not in caplog.text


async def test_a_client_certificate_lets_us_in(broker: Broker, kafka_settings: KafkaSettings) -> None:
    secure = brokers.settings(broker, kafka_settings.topic_prefix, "tls")
    opened = await open_log(secure)
    await opened.append([entry(1)])
    await opened.close()
    with pytest.raises(LogUnavailable, match="do not answer"):
        await open_log(replace(secure, certificate_file="", key_file="", connect_seconds_max=2.0))


async def test_a_wrong_password_is_told_as_such_and_shown_nowhere(
    broker: Broker, kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    secure = replace(
        brokers.settings(broker, kafka_settings.topic_prefix, "sasl"),
        password=lambda: "canary-of-a-wrong-password",
        connect_seconds_max=2.0,
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(LogUnavailable, match="password") as refused:
        await open_log(secure)
    assert "canary" not in caplog.text + str(refused.value)


async def test_brokers_of_another_authority_are_not_believed(broker: Broker, kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    other = brokers.make_certificates(tmp_path / "other")
    secure = replace(brokers.settings(broker, kafka_settings.topic_prefix, "sasl"), ca_file=str(other.ca), connect_seconds_max=2.0)
    with pytest.raises(LogUnavailable, match="certificate is not trusted"):
        await open_log(secure)


@pytest.mark.parametrize("secured", [False, True])
async def test_a_server_that_greets_nobody_is_not_waited_for_without_an_end(broker: Broker, secured: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        settings = replace(
            brokers.settings(broker, "x.", "sasl" if secured else "plaintext"),
            bootstrap=(f"127.0.0.1:{silent.getsockname()[1]}",),
            connect_seconds_max=1.0,
            answer_seconds_max=1.0,
        )
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match="do not answer"):
            await open_log(settings)
        assert time.monotonic() - began < 10


# -- placement -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_key_has_the_place_that_kafkas_own_producer_gives_it(
    log: KafkaLog, broker: Broker, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    keys = [b"agent-%d" % n for n in range(40)] + ["ågent-é".encode(), b"x" * 100]
    lines = b"".join(b"%s\tof java\n" % key for key in keys)
    lib = brokers.jars()
    command = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{lib}/*"]
    command += ["org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", broker.bootstrap]
    command += ["--topic", kafka_settings.topic_prefix + "statements", "--property", "parse.key=true"]
    await asyncio.to_thread(subprocess.run, command, input=lines, check=True, timeout=120, capture_output=True, cwd=tmp_path)
    await log.append([Entry("statements", key, b"of pgwarden") for key in keys])
    found = await read(log.assign({("statements", n): 0 for n in range(4)}), 2 * len(keys))
    places = {value: {r.key: r.partition for r in found if r.value == value} for value in (b"of java", b"of pgwarden")}
    assert places[b"of java"] == places[b"of pgwarden"] == {key: partition(key, 4) for key in keys}


# -- brokers that go away and come back --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.faults
async def test_a_broker_that_is_killed_and_started_again_loses_nothing_and_is_found_again(own_broker: Broker) -> None:
    log = await open_log(impatient(own_broker))
    subscription = log.assign({COMMANDS: 0})
    found: list[Record] = []
    appended = 0
    failed = 0
    going_on = True

    async def write() -> None:
        nonlocal appended, failed
        while going_on:
            failed += await append_surely(log, [entry(appended), entry(appended + 1)])
            appended += 2
            await asyncio.sleep(0.002)

    async def follow() -> None:
        while True:
            try:
                found.extend(await subscription.poll(1000, 0.5))
            except LogUnavailable:
                await asyncio.sleep(0.05)

    async with lag() as worst:
        writing, following = asyncio.create_task(write()), asyncio.create_task(follow())
        for _ in range(2):
            before = appended
            while appended < before + 100:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_broker.kill9)
            await asyncio.sleep(3.0)
            assert not writing.done()
            await asyncio.to_thread(own_broker.start)
        before = appended
        async with asyncio.timeout(60):
            while appended < before + 100:
                await asyncio.sleep(0.01)
        going_on = False
        await writing
        async with asyncio.timeout(60):
            while {number(r) for r in found} != set(range(appended)):
                await asyncio.sleep(0.05)
        following.cancel()
    assert failed > 0  # else nothing was tested
    once = list(dict.fromkeys(number(r) for r in found))
    assert once == list(range(appended))  # first seen in the order in which they were written, none lost
    assert [r.offset for r in found] == list(range(len(found)))
    assert worst[0] < 1.0
    await log.close()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_any_one_of_three_brokers_may_be_killed_while_records_come_and_go(cluster: Cluster) -> None:
    settings = replace(brokers.settings(cluster, "own."), append_seconds_max=5.0, session_seconds=6.0)
    await asyncio.to_thread(topics.apply, settings)
    log = await open_log(settings)
    subscription = log.assign({("statements", n): 0 for n in range(4)})
    member = log.subscribe(["statements"], "workers")
    found: list[Record] = []
    worked: set[tuple[int, int]] = set()
    appended = 0
    going_on = True

    async def write() -> None:
        nonlocal appended
        while going_on:
            await append_surely(log, [entry(n, "statements", b"agent %d" % (n % 7)) for n in range(appended, appended + 7)])
            appended += 7
            await asyncio.sleep(0.01)

    async def follow() -> None:
        while True:
            try:
                found.extend(await subscription.poll(1000, 0.5))
            except LogUnavailable:
                await asyncio.sleep(0.05)

    async def work() -> None:
        while True:
            try:
                records = await member.poll(1000, 0.5)
                worked.update((r.partition, r.offset) for r in records)
                await member.commit({(r.topic, r.partition): r.offset + 1 for r in records})
            except LogUnavailable:
                await asyncio.sleep(0.05)

    async with lag() as worst:
        tasks = [asyncio.create_task(one()) for one in (write, follow, work)]
        for broker in cluster.brokers:
            before = appended
            await asyncio.to_thread(broker.kill9)
            async with asyncio.timeout(60):
                while appended < before + 70:  # with one of them gone
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(60):
                while any(found_.in_sync < 3 for found_ in await asyncio.to_thread(topics.look, settings)):
                    await asyncio.sleep(0.2)
        going_on = False
        await tasks[0]
        async with asyncio.timeout(60):
            while {number(r) for r in found} != set(range(appended)) or len(worked) != len(found):
                await asyncio.sleep(0.05)
        for task in tasks[1:]:
            task.cancel()
    for key in {r.key for r in found}:
        once = list(dict.fromkeys(number(r) for r in found if r.key == key))
        assert once == sorted(once)  # a key's order is that in which it was written, whoever led its partition
    assert {(r.partition, r.offset) for r in found} == worked
    assert worst[0] < 1.0
    await log.close()


@pytest.mark.slow
@pytest.mark.faults
async def test_brokers_that_hang_are_told_in_time_and_what_waits_is_bounded(own_broker: Broker) -> None:
    settings = replace(impatient(own_broker), waiting_bytes_max=10_000)
    log = await open_log(settings)
    await log.append([entry(0)])
    subscription = log.assign({COMMANDS: 0})
    await read(subscription, 1)
    member = log.subscribe(["commands"], "workers")
    await read(member, 1)
    async with lag() as worst:
        with own_broker.paused():
            began, cpu_began = time.monotonic(), time.process_time()
            waiting = [asyncio.create_task(log.append([Entry("commands", b"k", bytes(3000))])) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(LogUnavailable, match="bytes wait"):
                await log.append([Entry("commands", b"k", bytes(3000))])
            log.append_nowait([entry(1)])
            asking = asyncio.create_task(log.offsets("commands"))
            assert await subscription.poll(10, 0.2) == []
            for one in waiting:
                with pytest.raises(LogUnavailable, match="acknowledged"):
                    await one
            with pytest.raises(LogUnavailable, match="acknowledged"):
                await log.flush()
            assert time.monotonic() - began < settings.append_seconds_max + 2
            with pytest.raises(LogUnavailable):
                await asking
            assert log.end_offsets("commands")[COMMANDS] == 1  # at once, whatever the brokers do
            assert log.heard_seconds > 1
            while time.monotonic() < began + 6:  # long enough for heartbeats to be late
                assert await member.poll(10, 0.5) == []
            assert time.process_time() - cpu_began < 0.3 * (time.monotonic() - began)
        await append_surely(log, [entry(2), entry(3)])
        found = await read(subscription, 1)
        while number_of(found[-1]) != 3:
            found += await read(subscription, 1)
        assert [n for n in map(number_of, found) if n >= 2] == [2, 3]
    assert worst[0] < 1.0
    await await_heard(log)
    await log.close()


def number_of(record: Record) -> int:
    return number(record) if record.value.startswith(b"value") else -1


async def await_heard(log: KafkaLog) -> None:
    async with asyncio.timeout(30):
        while log.heard_seconds > 2:
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.faults
async def test_closing_ends_in_time_with_the_brokers_gone(own_broker: Broker) -> None:
    settings = replace(impatient(own_broker), append_seconds_max=30.0, close_seconds_max=2.0)
    log = await open_log(settings)
    await log.append([entry(1)])
    member = log.subscribe(["commands"], "workers")
    await read(member, 1)
    subscription = log.assign({COMMANDS: 0})
    await read(subscription, 1)
    own_broker.kill9()
    waiting = asyncio.create_task(log.append([entry(2)]))
    reading = asyncio.create_task(subscription.poll(10, 30))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match="2 s"):
        await log.close()
    assert time.monotonic() - began < 12
    with pytest.raises(LogUnavailable):
        await waiting
    with pytest.raises(LogUnavailable):
        await reading
    await log.close()


@pytest.mark.slow
@pytest.mark.faults
async def test_a_log_that_was_opened_before_the_brokers_went_works_with_those_that_come_back_empty_handed(
    own_broker: Broker,
) -> None:
    """A broker's disk is lost: what was read from it cannot be taken back in silence."""
    settings = impatient(own_broker)
    log = await open_log(settings)
    await log.append([entry(n) for n in range(10)])
    subscription = log.assign({COMMANDS: 0})
    await read(subscription, 10)
    own_broker.stop()
    folder = own_broker.data / f"{settings.topic_prefix}commands-0"
    for file in folder.glob("0*"):
        file.unlink()
    own_broker.start()
    await append_surely(log, [entry(n) for n in range(3)])
    with pytest.raises(LogCorrupt, match=r"lost records|no longer have"):
        await read(subscription, 1)
    with pytest.raises(LogCorrupt):
        await subscription.poll(1, 0.1)
    await log.close()


# -- the beginning -----------------------------------------------------------------------------------------------------------------


async def test_a_reader_from_before_the_beginning_begins_there(log: KafkaLog, kafka_settings: KafkaSettings) -> None:
    await log.append([entry(n) for n in range(10)])
    delete_records(kafka_settings, "commands", 4)
    assert [r.offset for r in await read(log.assign({COMMANDS: 0}), 6)] == list(range(4, 10))
    later = await open_log(kafka_settings)
    assert later.begin_offsets("commands") == {COMMANDS: 4}
    assert later.begin_offsets("findings") == {FINDINGS: 0, ("findings", 1): 0}
    await later.close()


def delete_records(settings: KafkaSettings, topic: str, before: int) -> None:
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    from ingest.log.kafka_client import connection

    admin = KafkaAdminClient(**connection(settings))
    try:
        admin.delete_records({TopicPartition(settings.topic_prefix + topic, 0): before})
    finally:
        admin.close()


# -- groups ------------------------------------------------------------------------------------------------------------------------

MEMBER = """
import asyncio, sys
from ingest.log.kafka import KafkaLog
from ingest.settings import KafkaSettings

async def main():
    bootstrap, prefix, partitions, session = sys.argv[1:]
    settings = KafkaSettings((bootstrap,), False, topic_prefix=prefix, partitions=eval(partitions), session_seconds=float(session))
    log = await KafkaLog.open(settings)
    member = log.subscribe(["commands"], "workers")
    offset = 0
    while offset < 7:
        for record in await member.poll(7 - offset, 1.0):
            offset = record.offset + 1
        if offset >= 4:
            await member.commit({("commands", 0): 4})
    print("ready", flush=True)
    while True:
        await member.poll(1, 1.0) if offset < 7 else await asyncio.sleep(1)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.faults
async def test_a_member_that_was_killed_is_followed_by_another_which_reads_what_it_had_not_committed(
    kafka_settings: KafkaSettings,
) -> None:
    settings = replace(kafka_settings, session_seconds=6.0)
    log = await open_log(settings)
    await log.append([entry(n) for n in range(10)])
    arguments = [settings.bootstrap[0], settings.topic_prefix, repr(dict(settings.partitions)), "6.0"]
    process = subprocess.Popen([sys.executable, "-c", MEMBER, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        successor = log.subscribe(["commands"], "workers")
        assert await successor.committed() == {COMMANDS: 4}
        waiting = asyncio.create_task(read(successor, 6))
        await asyncio.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        assert [r.offset for r in await waiting] == list(range(4, 10))
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None
    await log.close()


@pytest.mark.slow
async def test_a_member_that_was_too_slow_takes_nothing_back(kafka_settings: KafkaSettings) -> None:
    settings = replace(kafka_settings, work_seconds_max=3.0)
    log = await open_log(settings)
    await log.append([entry(n) for n in range(10)])
    slow = log.subscribe(["commands"], "workers")
    assert len(await read(slow, 5)) >= 5
    other = log.subscribe(["commands"], "workers")
    found = await read(other, 10)  # once the slow one has asked for nothing for too long
    await other.commit({COMMANDS: found[-1].offset + 1})
    with pytest.raises(LogUnavailable):
        await slow.commit({COMMANDS: 5})
    assert await other.committed() == {COMMANDS: 10}
    other.close()
    # Back in the group, which has gone on without it: what it read before is still not its own to commit.
    await log.append([entry(10)])
    assert [r.offset for r in await read(slow, 1)] == [10]
    with pytest.raises(LogUnavailable, match="not this member's"):
        await slow.commit({COMMANDS: 5})
    await slow.commit({COMMANDS: 11})
    await log.close()


async def two_members(log: EventLog, topic: str) -> tuple[GroupSubscription, GroupSubscription]:
    return log.subscribe([topic], "workers"), log.subscribe([topic], "workers")


@pytest.mark.slow
async def test_no_record_that_was_committed_is_read_twice_while_members_come_and_go(log: KafkaLog) -> None:
    entries = [entry(n, "statements", b"agent %d" % n) for n in range(400)]
    members = list(await two_members(log, "statements"))
    committed: dict[tuple[Partition, int], int] = {}
    twice: list[Record] = []

    async def work(member: GroupSubscription) -> None:
        held: list[Record] = []  # read, and not known to be committed
        while True:
            try:
                records = await member.poll(10, 0.5)
                twice.extend(r for r in records if committed.get(((r.topic, r.partition), r.offset)))
                held += records
                await member.commit({(r.topic, r.partition): r.offset + 1 for r in held})
                for r in held:
                    committed[((r.topic, r.partition), r.offset)] = 1
                held = []
            except LogUnavailable as error:  # a commit that was not answered is made again: nobody reads its records anew
                if "no longer" in str(error):
                    held = []
                await asyncio.sleep(0.05)

    async def all_committed() -> bool:
        """As the brokers know it: a commit may be theirs, and its answer be lost in a rebalance."""
        try:
            return sum((await members[-1].committed()).values()) == 400
        except LogUnavailable:
            return False

    working = [asyncio.create_task(work(member)) for member in members]
    for n in range(0, 400, 40):
        await log.append(entries[n : n + 40])
        await asyncio.sleep(0.1)
        if n == 120:
            members.append(log.subscribe(["statements"], "workers"))
            working.append(asyncio.create_task(work(members[-1])))
        if n == 240:
            working.pop(0).cancel()
            members.pop(0).close()
    async with asyncio.timeout(90):
        while not await all_committed():
            await asyncio.sleep(0.05)
    for task in working:
        task.cancel()
    assert committed
    assert not twice


# -- what it leaves behind -----------------------------------------------------------------------------------------------------------


async def test_a_closed_log_leaves_no_thread_and_no_file(
    kafka_settings: KafkaSettings, await_for: Callable[..., Awaitable[object]]
) -> None:
    async def once() -> None:
        opened = await open_log(kafka_settings)
        await opened.append([entry(1)])
        await read(opened.assign({COMMANDS: 0}), 1)
        await read(opened.subscribe(["commands"], "workers"), 1)
        await opened.close()

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    others = set(threading.enumerate())  # of other tests of this process

    def threads() -> list[str]:
        return [one.name for one in set(threading.enumerate()) - others if "log" in one.name or "kafka" in one.name]

    await once()
    before = files()
    for _ in range(3):
        await once()
    await await_for(lambda: not threads(), 10, "threads of the log end")
    assert files() <= before
