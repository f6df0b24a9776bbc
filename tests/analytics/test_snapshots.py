from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from analytics.settings import AnalyticsSettings
from analytics.snapshots import FOLDER, LATEST, Snapshots
from analytics.store import Batch, Store
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from tests.analytics.scenario import Writer, stamp

ROOT = Path(__file__).parents[2]
READER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print(connection.execute("select count(*) from sessions").fetchall()[0][0], flush=True)
sys.stdin.readline()
print(connection.execute("select count(*), max(task) from sessions").fetchall()[0][0], flush=True)
"""
TAKER = """
import asyncio, sys
from pathlib import Path
from analytics.settings import AnalyticsSettings
from analytics.snapshots import Snapshots
from analytics.store import Store

async def main():
    settings = AnalyticsSettings(Path(sys.argv[1]), snapshot_free_bytes_min=0)
    store = Store.open(settings)
    snapshots = Snapshots(store, settings)
    while True:
        print((await snapshots.take()).path, flush=True)

asyncio.run(main())
"""


async def more(store: Store, gateway: Writer, follower: Follower, sessions: int) -> None:
    for _ in range(sessions):
        gateway.opened(stamp(f"s{gateway.at(1)}", "reporter", task="t" * 200))
    await gateway.write()
    store.ingest(Batch(await follower.poll(100, 1.0), follower.offsets, follower.seen))


def count(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        ((found,),) = connection.execute("select count(*) from sessions").fetchall()
    return int(found)


def names(settings: AnalyticsSettings) -> Sequence[str]:
    return sorted(path.name for path in (settings.directory / FOLDER).iterdir())


async def test_a_snapshot_is_one_private_file_that_opens_while_the_projector_writes(
    log: SegmentLog, settings: AnalyticsSettings
) -> None:
    store = Store.open(settings)
    snapshots = Snapshots(store, settings)
    gateway, follower = Writer(log), Follower(log, ("sessions",), {})
    try:
        await more(store, gateway, follower, 40)
        taken = await snapshots.take()
        assert names(settings) == [taken.path.name, LATEST]
        assert stat.S_IMODE(taken.path.stat().st_mode) == 0o600
        assert taken.size_bytes == taken.path.stat().st_size
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READER, str(taken.path.with_name(LATEST))), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"40\n"
        for _ in range(4):  # until the one that is being read is no longer kept
            await more(store, gateway, follower, 40)
            newest = await snapshots.take()
        assert not taken.path.exists()
        reader.stdin.write(b"\n")
        assert await reader.stdout.readline() == b"40\n"
        assert await reader.wait() == 0
        assert len(names(settings)) == settings.snapshots_kept + 1
        assert count(newest.path.with_name(LATEST)) == 200
    finally:
        follower.close()
        store.close()


async def test_what_is_still_in_the_write_ahead_log_is_in_the_snapshot(log: SegmentLog, settings: AnalyticsSettings) -> None:
    store = Store.open(settings)
    snapshots = Snapshots(store, settings)
    gateway, follower = Writer(log), Follower(log, ("sessions",), {})
    try:
        await more(store, gateway, follower, 10)
        held = store._root.cursor()
        held.execute("begin").fetchall()
        held.execute("select * from session_records").fetchall()  # a transaction that is open: no checkpoint is to be had
        await more(store, gateway, follower, 10)
        assert (settings.directory / "tables.duckdb.wal").stat().st_size > 0
        taken = await snapshots.take()
        assert count(taken.path) == 20
        assert names(settings) == [taken.path.name, LATEST]
        held.close()
    finally:
        follower.close()
        store.close()


async def test_a_disk_that_is_nearly_full_keeps_its_room_for_the_log(store: Store, told: AnalyticsSettings) -> None:
    snapshots = Snapshots(store, replace(told, snapshot_free_bytes_min=2**62))
    with pytest.raises(OSError, match="bytes left"):
        await snapshots.take()
    assert names(told) == []


async def test_one_is_taken_every_so_often_if_anything_was_committed(log: SegmentLog, settings: AnalyticsSettings) -> None:
    often = replace(settings, snapshot_interval_seconds=0.02, snapshot_rest_factor=0, snapshots_kept=50)
    store = Store.open(often)
    snapshots = Snapshots(store, often)
    gateway, follower = Writer(log), Follower(log, ("sessions",), {})
    task = asyncio.create_task(snapshots.run())

    def there() -> list[Path]:
        return sorted(path for path in (often.directory / FOLDER).glob("*.duckdb") if path.name != LATEST)

    async def taken(number: int) -> None:
        async with asyncio.timeout(30):
            while len(there()) < number:
                await asyncio.sleep(0.01)

    try:
        await taken(1)
        await more(store, gateway, follower, 5)
        await taken(2)
        await more(store, gateway, follower, 5)
        await taken(3)
        assert [count(path) for path in there()] == [0, 5, 10], "each holds what was committed since the one before"
    finally:
        task.cancel()
        await asyncio.wait({task})
        follower.close()
        store.close()


@pytest.mark.slow
async def test_a_kill_while_one_is_taken_leaves_the_older_ones_whole(log: SegmentLog, settings: AnalyticsSettings) -> None:
    store = Store.open(settings)
    gateway, follower = Writer(log), Follower(log, ("sessions",), {})
    for _ in range(20):
        await more(store, gateway, follower, 100)
    follower.close()
    store.close()
    chance = random.Random(3)
    drafts = 0
    for _ in range(12):
        taker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TAKER, str(settings.directory)),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert taker.stdout is not None
        for _ in range(chance.randrange(1, 4)):
            assert (await taker.stdout.readline()).endswith(b".duckdb\n")
        await asyncio.sleep(chance.uniform(0, 0.02))
        taker.kill()
        await taker.stdout.read()
        await taker.wait()
        found = names(settings)
        drafts += any(".draft" in name for name in found)
        whole = [name for name in found if ".draft" not in name]
        assert LATEST in whole
        for name in whole:
            assert count(settings.directory / FOLDER / name) == 2_000, name
    assert drafts  # else no kill met a copy half made
