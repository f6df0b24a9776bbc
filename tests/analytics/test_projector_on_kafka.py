"""The projector on a real Kafka, killed again and again: rows, offsets and roll-ups are of one transaction or of none."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.events import TOPICS
from ingest.frames import Framer
from ingest.log.kafka import KafkaLog
from ingest.log.partitioner import partition
from ingest.settings import KafkaSettings
from tests.analytics.scenario import MINUTE, START_US, Writer, stamp

EXECUTIONS = 14  # of each session
PROJECTOR = """
import asyncio, json, sys
from pathlib import Path
from analytics.runner import Runner
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.log.kafka import KafkaLog
from ingest.settings import KafkaSettings

async def order(event): raise AssertionError("workers enforce")

async def main():
    bootstrap, prefix, partitions, folder = sys.argv[1:]
    where = KafkaSettings((bootstrap,), False, topic_prefix=prefix, partitions=json.loads(partitions), replication=1, in_sync_min=1)
    log = await KafkaLog.open(where)
    settings = AnalyticsSettings(Path(folder), commit_interval_ms=1, batch_events_max=50, poll_records_max=3)
    store = Store.open(settings)
    runner = Runner(log, store, order, settings, enforce=False)
    task = asyncio.create_task(runner.run())
    caught_up = asyncio.create_task(runner.caught_up())
    told = 0
    while not caught_up.done():
        if store.commits > told:
            told = store.commits
            print(told, flush=True)
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    store.close()
    await log.close()
    print("done", flush=True)

asyncio.run(main())
"""


async def write(log: KafkaLog, sessions: int) -> None:
    """One frame a session in `sessions`, and one in `statements`, of several gateways and over all partitions."""
    writers = []
    for number in range(3):
        gateway = Writer(log, f"gw-{number}", 1, START_US + number * MINUTE)
        gateway.framer = Framer(
            gateway.name,
            1,
            events_max=100,
            bytes_max=64 * 1024,
            partition=lambda topic, key: partition(key, log.partitions(topic)),
        )
        writers.append(gateway)
    for number in range(sessions):
        gateway = writers[number % 3]
        under = stamp(f"k{number}", f"agent-{number % 40}")
        gateway.opened(under)
        gateway.defined(under, 1, "select 1")
        for execution in range(1, EXECUTIONS + 1):
            gateway.began(under, execution, 1)
            if execution % 7:
                gateway.finished(under, execution)
        await gateway.write()


def hold_together(store: Store) -> int:
    """Each frame that was read has its rows, in every table, and no other has; return how many were read."""
    offsets = store.offsets()
    read = {topic: sum(offset for place, offset in offsets.items() if place[0] == topic) for topic in ("sessions", "statements")}
    ((rows, distinct),) = store.read("select count(*), count(distinct (session, execution)) from executions_all", {}).rows
    ((counted,),) = store.read("select coalesce(sum(statements), 0)::bigint from rates", {}).rows
    ((by_text,),) = store.read("select coalesce(sum(statements), 0)::bigint from statement_counts", {}).rows
    counts = store.counts()
    assert rows == distinct == counted == by_text == EXECUTIONS * read["statements"]
    assert counts["session_records"] == read["sessions"]
    assert counts["missing_frames"] == 0
    return sum(read.values())


@pytest.mark.kafka
@pytest.mark.timeout(600)
@pytest.mark.slow
async def test_a_projector_of_kafka_that_is_killed_again_and_again_keeps_rows_and_offsets_together(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    settings = kafka_settings
    log = await KafkaLog.open(settings)
    try:
        await write(log, 600)
        ends = {place: end for topic in TOPICS for place, end in (await log.offsets(topic)).items()}
        in_all = sum(ends.values())
        assert sum(end > 0 for end in ends.values()) > 4  # over many partitions
        chance = random.Random(7)
        kills = midway = 0
        for _ in range(60):
            projector = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROJECTOR, *settings.bootstrap, settings.topic_prefix),
                *(json.dumps(dict(settings.partitions)), str(tmp_path / "live")),
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            assert projector.stdout is not None
            killed = kills < 6
            if killed:
                commits = chance.randrange(1, 12)
                while int(await projector.stdout.readline()) < commits:
                    pass
                await asyncio.sleep(chance.uniform(0.0, 0.02))  # somewhere in the next ones
                projector.kill()
                kills += 1
            last = await projector.stdout.read()
            await projector.wait()
            store = Store.open(AnalyticsSettings(tmp_path / "live"))
            try:
                read = hold_together(store)
                checksum, notice = store.checksum(), store.notice
            finally:
                store.close()
            if b"done" in last:
                break
            midway += 0 < read < in_all
        else:
            pytest.fail("the projector never came to the end")
        assert (read, notice) == (in_all, "")
        assert midway == kills == 6
        rebuilt = await rebuild(log, AnalyticsSettings(tmp_path / "again"))
        assert rebuilt.checksum == checksum
        by_workers = replace(AnalyticsSettings(tmp_path / "workers"), rebuild_alone_records_max=0, rebuild_chunk_records=50)
        assert (await rebuild(log, by_workers)).checksum == checksum
    finally:
        await log.close()
