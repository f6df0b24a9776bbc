from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analytics.projections.schema import STAGES
from analytics.rebuild import WorkerDied, rebuild
from analytics.rebuild_lines import Task
from analytics.rebuild_worker import stage
from analytics.settings import AnalyticsSettings
from analytics.staging import staged
from analytics.store import Store, TablesBusy
from bench import history
from ingest.events import TOPICS, StatementFinished, StatementParameters
from ingest.frames import decode
from ingest.log import Entry, LogCorrupt
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.analytics.scenario import MINUTE, START_US, STORY_EVENTS, Writer, stamp, story

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
    assert (rebuilt.checksum, rebuilt.events) == (before, STORY_EVENTS)
    store = Store.open(told)
    try:
        assert store.checksum() == before
    finally:
        store.close()


async def test_a_rebuild_waits_for_nobody_who_holds_the_tables(log: SegmentLog, store: Store, told: AnalyticsSettings) -> None:
    with pytest.raises(TablesBusy):
        await rebuild(log, told)


def by_workers(settings: AnalyticsSettings, directory: Path, **changes: int) -> AnalyticsSettings:
    """Chunks and transactions so small that every seam between them is met."""
    small = {"rebuild_alone_records_max": 0, "rebuild_chunk_records": 3, "rebuild_batch_events": 40}
    return replace(settings, directory=directory, **(small | changes))


@pytest.mark.slow
async def test_workers_make_the_tables_that_one_process_makes(tmp_path: Path, log: SegmentLog, settings: AnalyticsSettings) -> None:
    await history.write(log, history.Past(3_000, agents=5, live_sessions=4, frames_of_session=3, days=1))
    await story(log)
    hostile = stamp("s'; drop table texts; --", 'a"b\\', backend_start_us=2**62, task="\u0000\U0001f600", unverified=())
    gateway = Writer(log, "gw-2", 5)
    gateway.opened(hostile)
    gateway.defined(hostile, 2**62, "select '\"\\\u0000\n", relations=("weird.'x", ""))
    gateway.began(hostile, 2**63 + 5, 2**62)
    wild = StatementFinished(2**63 + 5, "ok", "", "SELECT", 2**64 - 1, 0, 0, 500)
    gateway.add(hostile.agent, wild, hostile)
    gateway.add(hostile.agent, StatementParameters(1, ("a", None, "it's \u0000 \u2028")), hostile)
    gateway.add(hostile.agent, StatementParameters(2, ()), hostile)
    await gateway.write()
    # The names of frames that are there already, as after an append whose answer was lost; and a hole before what follows.
    again = Writer(log, "gw-2", 5)
    again.opened(hostile)
    await again.write()
    gateway.began(hostile, 7, 1)
    gateway.framer.cut()
    gateway.finished(hostile, 7)
    await gateway.write()
    alone = await rebuild(log, settings)
    together = await rebuild(log, by_workers(settings, tmp_path / "other"))
    assert (together.checksum, together.frames, together.events) == (alone.checksum, alone.frames, alone.events)
    assert together.sums["missing_frames"].rows == 1
    assert together.sums["executions"].rows > 2_900
    assert not (tmp_path / "other" / "staged").exists()


async def test_a_worker_stages_every_row_that_one_process_stages(tmp_path: Path, log: SegmentLog) -> None:
    await story(log)
    subscription = log.assign({(topic, 0): 0 for topic in TOPICS})
    records = list(await subscription.poll(10_000, 1.0))
    subscription.close()
    told = stage(Task(str(tmp_path), 1, [(r.topic, r.partition, r.offset, r.at_us, r.value) for r in records]))
    assert told.invalid == ""
    rows = staged((record, decode(record.value, record.topic)) for record in records)
    assert told.files.keys() == rows.keys()
    for name, path in told.files.items():
        alone = [{column: row.get(column) for column in STAGES[name].columns} for row in rows[name]]
        assert json.loads(json.dumps(pq.read_table(path).to_pylist())) == json.loads(json.dumps(alone)), name


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a record that is no frame", "a worker that dies"])
async def test_a_rebuild_by_workers_that_fails_leaves_the_old_tables(
    log: SegmentLog, told: AnalyticsSettings, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    store = Store.open(told)
    before = store.checksum()
    store.close()
    if fault == "a worker that dies":
        # One that was never there to answer is as good as one that was killed.
        monkeypatch.setattr(sys, "executable", "/bin/true")
        with pytest.raises(WorkerDied, match="status 0"):
            await rebuild(log, by_workers(told, told.directory))
    else:
        await log.append([Entry("statements", b"reporter", b"no frame")])
        with pytest.raises(LogCorrupt, match="statements/0, record 5: Expected"):
            await rebuild(log, by_workers(told, told.directory))
    store = Store.open(told)
    try:
        assert (store.checksum(), store.notice) == (before, "")
    finally:
        store.close()
    assert {path.name for path in told.directory.iterdir()} == {"tables.duckdb", "tables.lock"}


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
    assert rebuilt.events == STORY_EVENTS


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
