from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store, TablesBusy
from ingest.events import TOPICS
from ingest.log import LogCorrupt
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.analytics.scenario import MINUTE, START_US, Writer, stamp, story

PROJECTOR = """
import asyncio, sys
from pathlib import Path
from analytics.runner import Runner
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

async def order(event): pass

async def main():
    settings = AnalyticsSettings(Path(sys.argv[2]), commit_interval_ms=1, batch_events_max=50, poll_records_max=3)
    store = Store.open(settings)
    runner = Runner(SegmentLog(Path(sys.argv[1]), LogSettings()), store, order, settings)
    task = asyncio.create_task(runner.run())
    print("open", flush=True)
    await runner.caught_up()
    task.cancel()
    await asyncio.wait({task})
    store.close()
    print("done", flush=True)

asyncio.run(main())
"""


async def test_a_rebuild_gives_the_same_tables(log: SegmentLog, told: AnalyticsSettings) -> None:
    store = Store.open(told)
    before = store.checksum()
    store.close()
    rebuilt = await rebuild(log, told)
    assert (rebuilt.checksum, rebuilt.events) == (before, 32)
    store = Store.open(told)
    try:
        assert store.checksum() == before
    finally:
        store.close()


async def test_a_rebuild_waits_for_nobody_who_holds_the_tables(log: SegmentLog, store: Store, told: AnalyticsSettings) -> None:
    with pytest.raises(TablesBusy):
        await rebuild(log, told)


async def test_a_rebuild_that_fails_leaves_the_old_tables(tmp_path: Path, log: SegmentLog, told: AnalyticsSettings) -> None:
    store = Store.open(told)
    before = store.checksum()
    store.close()
    await log.close()
    (segment,) = (tmp_path / "log" / "statements" / "0").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"SELECT * FROM orders")] ^= 1
    segment.write_bytes(data)
    damaged = SegmentLog(tmp_path / "log", LogSettings())
    with pytest.raises(LogCorrupt):
        await rebuild(damaged, told)
    await damaged.close()
    store = Store.open(told)
    try:
        assert store.checksum() == before
    finally:
        store.close()
    assert not list(told.directory.glob("tables.new*"))


async def test_a_frame_that_was_appended_twice_counts_once(log: SegmentLog, told: AnalyticsSettings) -> None:
    store = Store.open(told)
    before = store.counts()
    store.close()
    gateway = Writer(log, "gw-1", 2)
    under = stamp("s3", "loader")
    gateway.now_us = START_US
    gateway.started()
    gateway.began(under, 1, 1)
    # Frames that bear the names of frames that are there already, as after an append whose answer was lost.
    await gateway.write()
    rebuilt = await rebuild(log, told)
    store = Store.open(told)
    try:
        assert store.counts() == before
    finally:
        store.close()
    assert rebuilt.events == 32


@pytest.mark.slow
async def test_a_projector_that_is_killed_again_and_again_makes_the_tables_of_a_rebuild(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "log", LogSettings())
    await story(log)
    for boot in range(10, 14):
        gateway = Writer(log, "gw-1", boot, START_US + boot * MINUTE)
        gateway.started()
        for number in range(40):
            under = stamp(f"k{boot}-{number}", f"agent-{number % 5}")
            gateway.opened(under)
            gateway.defined(under, 1, "select 1")
            for execution in range(1, 15):
                gateway.began(under, execution, 1)
                if execution % 7:
                    gateway.finished(under, execution)
            await gateway.write()
    chance = random.Random(7)
    kills = midway = 0
    in_all = sum(end for topic in TOPICS for end in log.end_offsets(topic).values())
    for _ in range(60):
        # Ended by its own pid; between the first row and the last, at whatever instant.
        projector = subprocess.Popen(
            [sys.executable, "-c", PROJECTOR, str(tmp_path / "log"), str(tmp_path / "live")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert projector.stdout is not None
        opened = await asyncio.to_thread(projector.stdout.readline)
        assert opened == "open\n"
        killed = False
        if kills < 6:
            time.sleep(chance.uniform(0.0, 0.35))
            projector.kill()
            kills += 1
            killed = True
        last = await asyncio.to_thread(projector.stdout.read)
        projector.wait()
        projector.stdout.close()
        if killed and "done" not in last:
            between = Store.open(AnalyticsSettings(tmp_path / "live"))
            read = sum(between.offsets().values())
            midway += 0 < read < in_all
            between.close()
        if "done" in last and kills == 6:
            break
    else:
        pytest.fail("the projector never came to the end")
    live = Store.open(AnalyticsSettings(tmp_path / "live"))
    try:
        checksum, notice = live.checksum(), live.notice
    finally:
        live.close()
    rebuilt = await rebuild(log, AnalyticsSettings(tmp_path / "again"))
    await log.close()
    assert (checksum, notice) == (rebuilt.checksum, "")
    assert midway >= 3
