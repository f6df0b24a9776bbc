from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.log import Entry, LogCorrupt, LogLocked, LogUnavailable, Record, Subscription, batches
from ingest.log.segments import Disk, SegmentLog
from ingest.settings import LogSettings
from tests.fuzz.fuzz_segments import one_input

PLACE = ("t", 0)
SMALL = LogSettings(segment_bytes_max=1000, preallocate_bytes=512, batch_bytes_max=200, read_bytes=300)


def entry(n: int) -> Entry:
    return Entry("t", b"key", b"%d:" % n + bytes([n % 251]) * (n * 13 % 90))


def opened(directory: Path, disk: Disk | None = None, settings: LogSettings = SMALL) -> SegmentLog:
    return SegmentLog(directory / "log", settings, disk=disk)


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "log" / "t" / "0").glob("*.seg"))


async def contents(directory: Path) -> list[bytes]:
    """The values that a reader in another process sees, whose offsets must be dense."""
    log = opened(directory)
    subscription = log.assign({PLACE: 0})
    found: list[bytes] = []
    while some := await subscription.poll(1000, 0):
        assert [r.offset for r in some] == list(range(len(found), len(found) + len(some)))
        found += [r.value for r in some]
    assert log.end_offsets("t") == {PLACE: len(found)}
    await log.close()
    return found


async def write(directory: Path, count: int, each: int = 1) -> list[bytes]:
    log = opened(directory)
    for n in range(0, count, each):
        await log.append([entry(m) for m in range(n, n + each)])
    await log.close()
    return [entry(n).value for n in range(count)]


# -- files -----------------------------------------------------------------------------------------------------------------------


async def test_nobody_else_may_read_the_files(tmp_path: Path) -> None:
    await write(tmp_path, 60)
    assert len(segments(tmp_path)) > 2
    for folder in (tmp_path / "log", tmp_path / "log" / "t", tmp_path / "log" / "t" / "0"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in segments(tmp_path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_segment_is_named_by_its_first_offset_and_sealed_without_spare_room(tmp_path: Path) -> None:
    await write(tmp_path, 60)
    for file in segments(tmp_path)[:-1]:
        data = file.read_bytes()
        assert batches.header(data, 0).base_offset == int(file.stem)
        assert batches.survey(data, int(file.stem)).length == len(data)
        assert data[0] == batches.DURABLE


async def test_room_is_made_ahead_in_chunks_of_zeros(tmp_path: Path) -> None:
    log = opened(tmp_path, settings=LogSettings(preallocate_bytes=100_000))
    await log.append([entry(1)])
    assert segments(tmp_path)[0].stat().st_size == 100_000
    await log.close()


async def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    await first.append([entry(1)])
    with pytest.raises(LogLocked, match="written by another process"):
        await second.append([entry(2)])
    with pytest.raises(LogLocked):
        await second.claim(["t"])
    await first.append([entry(3)])
    await first.close()
    await second.append([entry(4)])
    await second.close()
    assert await contents(tmp_path) == [entry(n).value for n in (1, 3, 4)]


@pytest.mark.parametrize("topic", ["", "..", "../x", "a/b", "a\x00b", "A", ".hidden"])
async def test_a_topic_cannot_leave_the_directory(tmp_path: Path, topic: str) -> None:
    log = opened(tmp_path)
    with pytest.raises(ValueError, match="name of a topic"):
        await log.append([Entry(topic, b"k", b"v")])
    with pytest.raises(ValueError, match="name of a topic"):
        log.assign({(topic, 0): 0})
    await log.close()


async def test_a_record_that_is_too_large_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = opened(tmp_path, settings=LogSettings(record_bytes_max=1000))
    with pytest.raises(ValueError, match="1000"):
        await log.append([entry(1), Entry("t", b"key", bytes(998))])
    await log.append([Entry("t", b"key", bytes(997))])
    await log.close()
    assert await contents(tmp_path) == [bytes(997)]


async def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = opened(tmp_path, disk, LogSettings(waiting_bytes_max=1000))
    first = asyncio.create_task(log.append([Entry("t", b"", bytes(5000))]))  # alone, whatever its size
    await asyncio.sleep(0.05)
    with pytest.raises(LogUnavailable, match="wait"):
        await log.append([entry(1)])
    disk.go_on.set()
    await first
    await log.append([entry(1)])
    await log.close()


async def test_what_waits_together_is_made_durable_together(tmp_path: Path) -> None:
    disk = CountingDisk()
    log = opened(tmp_path, disk, LogSettings())
    await log.append([entry(0)])
    before = disk.syncs
    await asyncio.gather(*(log.append([entry(n)]) for n in range(500)))
    assert disk.syncs - before < 50
    await log.close()


async def test_close_makes_durable_what_was_appended(tmp_path: Path) -> None:
    log = opened(tmp_path)
    appending = [asyncio.create_task(log.append([entry(n)])) for n in range(50)]
    await asyncio.sleep(0)
    await log.close()
    await asyncio.gather(*appending)
    assert await contents(tmp_path) == [entry(n).value for n in range(50)]


async def test_a_caller_that_gives_up_does_not_undo_the_write(tmp_path: Path) -> None:
    log = opened(tmp_path)
    appending = asyncio.create_task(log.append([entry(1)]))
    await asyncio.sleep(0)
    appending.cancel()
    with suppress(asyncio.CancelledError):
        await appending
    await log.append([entry(2)])
    await log.close()
    assert await contents(tmp_path) == [entry(1).value, entry(2).value]


# -- both kinds of failed write --------------------------------------------------------------------------------------------------


class CountingDisk(Disk):
    def __init__(self) -> None:
        self.syncs = 0

    def fdatasync(self, fd: int) -> None:
        self.syncs += 1
        super().fdatasync(fd)


class SlowDisk(Disk):
    def __init__(self) -> None:
        self.go_on = threading.Event()

    def fdatasync(self, fd: int) -> None:
        self.go_on.wait(10)
        super().fdatasync(fd)


class FaultyDisk(Disk):
    """Fails the operations whose number `fails` names, before or after it has done them."""

    def __init__(self, fails: Callable[[int, str], bool] = lambda _number, _name: False, *, after: bool = False) -> None:
        self.fails = fails
        self.after = after
        self.operations: list[str] = []

    def _fault(self, name: str) -> bool:
        self.operations.append(name)
        return self.fails(len(self.operations) - 1, name)

    def open(self, path: Path, flags: int) -> int:
        if self._fault("open"):
            raise OSError(errno.EIO, "no open")
        return super().open(path, flags)

    def pwrite(self, fd: int, data: bytes | memoryview, place: int) -> int:
        if self._fault("pwrite"):
            if self.after and len(data) > 1:
                super().pwrite(fd, data[: len(data) // 2 + 1], place)
            raise OSError(errno.ENOSPC, "no space")
        return super().pwrite(fd, data[: max(1, len(data) // 2)], place)  # short, as a write may be

    def fdatasync(self, fd: int) -> None:
        fault = self._fault("fdatasync")
        if not fault or self.after:
            super().fdatasync(fd)
        if fault:
            raise OSError(errno.EIO, "no sync")

    def fsync(self, fd: int) -> None:
        if self._fault("fsync"):
            raise OSError(errno.EIO, "no sync")
        super().fsync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        if self._fault("ftruncate"):
            raise OSError(errno.EIO, "no truncate")
        super().ftruncate(fd, length)

    def mkdir(self, path: Path) -> None:
        if self._fault("mkdir"):
            raise OSError(errno.ENOSPC, "no space")
        super().mkdir(path)

    def rename(self, path: Path, to: Path) -> None:
        fault = self._fault("rename")
        if not fault or self.after:
            super().rename(path, to)
        if fault:
            raise OSError(errno.EIO, "no rename")

    def unlink(self, path: Path) -> None:
        fault = self._fault("unlink")
        if not fault or self.after:
            super().unlink(path)
        if fault:
            raise OSError(errno.EIO, "no unlink")


async def test_a_write_that_was_not_stored_is_not_acknowledged_and_the_next_succeeds(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = opened(tmp_path, disk)
    await log.append([entry(1)])
    disk.fails = lambda _, name: name == "pwrite"
    for _ in range(3):
        with pytest.raises(LogUnavailable, match="No space|no space"):
            await log.append([entry(2)])
    assert await contents(tmp_path) == [entry(1).value]
    disk.fails = lambda _number, _name: False
    assert (await log.append([entry(2)]))[0].offset == 1
    await log.close()
    assert await contents(tmp_path) == [entry(1).value, entry(2).value]


@pytest.mark.parametrize("after", [False, True], ids=["sync failed", "sync failed though all was stored"])
async def test_a_write_that_was_stored_but_not_synced_is_neither_acknowledged_nor_seen(tmp_path: Path, after: bool) -> None:
    disk = FaultyDisk(after=after)
    log = opened(tmp_path, disk)
    await log.append([entry(1)])
    disk.fails = lambda _, name: name == "fdatasync"
    for _ in range(3):
        with pytest.raises(LogUnavailable, match="no sync"):
            await log.append([entry(2)])
    assert await contents(tmp_path) == [entry(1).value]
    disk.fails = lambda _number, _name: False
    assert (await log.append([entry(2)]))[0].offset == 1
    await log.close()
    assert await contents(tmp_path) == [entry(1).value, entry(2).value]
    first, second = segments(tmp_path)  # nothing is written behind a failed sync, nor anything synced again through it
    assert batches.survey(first.read_bytes(), 0).next_offset == int(second.stem) == 1


async def test_one_sick_partition_does_not_fail_another(tmp_path: Path) -> None:
    log = opened(tmp_path)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "sick").write_text("not a folder")
    results = await asyncio.gather(log.append([Entry("sick", b"", b"")]), log.append([entry(1)]), return_exceptions=True)
    assert isinstance(results[0], LogUnavailable)
    assert not isinstance(results[1], BaseException)
    await log.close()


class BrokenDisk(Disk):
    def fdatasync(self, fd: int) -> None:
        raise ZeroDivisionError


async def test_a_fault_of_our_own_ends_the_writer_aloud_and_nobody_waits_for_it(tmp_path: Path) -> None:
    log = opened(tmp_path, BrokenDisk())
    with pytest.raises(ZeroDivisionError):
        await log.append([entry(1)])
    with pytest.raises(LogUnavailable, match="ZeroDivisionError"):
        await log.append([entry(1)])
    with pytest.raises(LogUnavailable, match="ZeroDivisionError"):
        await log.claim(["t"])
    await log.close()
    assert await contents(tmp_path) == []


async def test_close_does_not_wait_for_ever_for_a_disk_that_hangs(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = opened(tmp_path, disk, LogSettings(close_seconds_max=0.05))
    appending = asyncio.create_task(log.append([entry(1)]))
    await asyncio.sleep(0.02)
    with pytest.raises(LogUnavailable, match="has not answered"):
        await log.close()
    disk.go_on.set()
    await appending


async def run(log: SegmentLog, count: int, tries: int) -> list[bytes]:
    """Append one after the other, each again until it is acknowledged; return what was."""
    acknowledged: list[bytes] = []
    for n in range(count):
        for _ in range(tries):
            try:
                await log.append([entry(n), entry(1000 + n)])
            except LogUnavailable:
                continue
            acknowledged += [entry(n).value, entry(1000 + n).value]
            break
        else:
            break
    return acknowledged


async def operations_of_a_run(directory: Path) -> int:
    disk = FaultyDisk()
    log = opened(directory, disk)
    await run(log, 12, 1)
    await log.close()
    assert len(segments(directory)) > 1
    return len(disk.operations)


def without_repetitions(found: list[bytes], pair: int = 2) -> list[bytes]:
    """What a reader keeps of appends that were repeated."""
    kept: list[bytes] = []
    for at in range(0, len(found), pair):
        if found[at : at + pair] != kept[-pair:]:
            kept += found[at : at + pair]
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored"])
async def test_whichever_disk_operation_fails_nothing_acknowledged_is_lost(tmp_path: Path, after: bool) -> None:
    for k in range(await operations_of_a_run(tmp_path / "whole")):
        for length in (1, 3):
            directory = tmp_path / f"{k}-{length}"
            log = opened(directory, FaultyDisk(lambda n, _, k=k, length=length: k <= n < k + length, after=after))  # type: ignore[misc]
            acknowledged = await run(log, 12, 8)
            assert len(acknowledged) == 24
            assert await contents(directory) == acknowledged, (k, length)
            await log.close()
            again = opened(directory)
            await again.append([entry(5000)])
            await again.close()
            assert await contents(directory) == [*acknowledged, entry(5000).value], (k, length)
            shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored"])
async def test_wherever_the_disk_dies_for_good_the_log_opens_with_all_that_was_acknowledged(tmp_path: Path, after: bool) -> None:
    for k in range(await operations_of_a_run(tmp_path / "whole")):
        directory = tmp_path / str(k)
        log = opened(directory, FaultyDisk(lambda n, _, k=k: n >= k, after=after))  # type: ignore[misc]
        acknowledged = await run(log, 12, 2)
        if (directory / "log").exists():
            assert await contents(directory) == acknowledged
        await log.close()
        again = opened(directory)
        await again.append([entry(5000), entry(5001)])
        await again.close()
        found = without_repetitions(await contents(directory))
        everything = [v for n in range(12) for v in (entry(n).value, entry(1000 + n).value)]
        assert found[: len(acknowledged)] == acknowledged
        assert found[-2:] == [entry(5000).value, entry(5001).value]
        assert found[:-2] == everything[: len(found) - 2]
        shutil.rmtree(directory)


class AmnesiacDisk(Disk):
    """Forgets, on power_cut(), any of the sectors that were written since the file's last sync, and files not synced into their folder."""

    SECTOR = 64

    def __init__(self) -> None:
        self.before: dict[tuple[str, int], bytes] = {}  # the sector as the last sync left it
        self.new_files: set[str] = set()
        self.operations = 0
        self.last_operation = 10**9

    def _step(self) -> None:
        self.operations += 1
        if self.operations > self.last_operation:
            raise OSError(errno.EIO, "the power is off")

    @staticmethod
    def _path(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def open(self, path: Path, flags: int) -> int:
        self._step()
        if flags & os.O_CREAT and not path.exists():
            self.new_files.add(str(path))
        return super().open(path, flags)

    def pwrite(self, fd: int, data: bytes | memoryview, place: int) -> int:
        self._step()
        path = self._path(fd)
        for sector in range(place // self.SECTOR, (place + len(data) - 1) // self.SECTOR + 1):
            old = os.pread(fd, self.SECTOR, sector * self.SECTOR)
            self.before.setdefault((path, sector), old.ljust(self.SECTOR, b"\x00"))
        return super().pwrite(fd, data, place)

    def fdatasync(self, fd: int) -> None:
        self._step()
        path = self._path(fd)
        self.before = {name: old for name, old in self.before.items() if name[0] != path}

    def fsync(self, fd: int) -> None:
        self._step()
        folder = self._path(fd)
        self.new_files = {file for file in self.new_files if os.path.dirname(file) != folder}

    def power_cut(self, chance: random.Random) -> None:
        for (path, sector), old in self.before.items():
            if chance.random() < 0.5 and os.path.exists(path):
                size = os.path.getsize(path)
                with open(path, "r+b") as file:
                    file.seek(sector * self.SECTOR)
                    file.write(old[: max(0, size - sector * self.SECTOR)])
        for file in self.new_files:
            os.unlink(file)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
async def test_a_power_cut_takes_nothing_that_was_acknowledged_or_read(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: list[bytes] = []
    attempted: list[bytes] = []
    for _ in range(4):  # each life ends in a power cut, and the next begins with what it left
        disk = AmnesiacDisk()
        disk.last_operation = chance.randrange(5, 120)
        log = opened(tmp_path, disk)
        with suppress(LogUnavailable):
            while True:
                values = [entry(n) for n in range(len(attempted), len(attempted) + chance.randrange(1, 6))]
                attempted += [e.value for e in values]
                await log.append(values)
                acknowledged = list(attempted)
        read = await contents(tmp_path)
        await log.close()
        disk.power_cut(chance)
        with suppress(FileNotFoundError):
            os.chmod(tmp_path / "log", 0o700)
        after = opened(tmp_path)
        await after.claim(["t"])
        await after.close()
        found = await contents(tmp_path)
        assert found[: len(acknowledged)] == acknowledged
        assert found[: len(read)] == read
        assert found == attempted[: len(found)]
        acknowledged = attempted = found


# -- a real full disk, and a real kill -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_stops_the_log_and_room_starts_it_again(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    log = opened(small_disk, settings=LogSettings(preallocate_bytes=65536))
    acknowledged: list[bytes] = []
    with pytest.raises(LogUnavailable, match="No space left"):
        for n in range(1000):
            value = b"%d" % n + bytes(5000)
            await log.append([Entry("t", b"", value)])
            acknowledged.append(value)
    assert len(acknowledged) > 20
    with pytest.raises(LogUnavailable, match="No space left"):
        await log.append([Entry("t", b"", bytes(100_000))])
    assert await contents(small_disk) == acknowledged
    ballast.unlink()
    await log.append([Entry("t", b"", b"again")])
    await log.close()
    assert await contents(small_disk) == [*acknowledged, b"again"]


WRITER = """
import asyncio, sys
from pathlib import Path
from ingest.log import Entry
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

async def main():
    log = SegmentLog(Path(sys.argv[1]) / "log", LogSettings(segment_bytes_max=200_000, preallocate_bytes=65536))
    [recovery] = await log.claim(["t"])
    next = recovery.next_offset
    async def append(n):
        [position] = await log.append([Entry("t", b"key", b"%d:" % n + b"x" * (n % 900))])
        assert position.offset == n
        print(n, flush=True)
    while True:
        await asyncio.gather(*(append(n) for n in range(next, next + 7)))
        next += 7

asyncio.run(main())
"""


@pytest.mark.slow
async def test_kill_9_of_the_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(9)
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert writer.stdout is not None
        first = writer.stdout.readline()
        await asyncio.sleep(chance.random() * 0.4)
        writer.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in (first + writer.stdout.read()).split(b"\n")[:-1]]
        writer.wait()
        writer.stdout.close()
        assert acknowledged
        log = opened(tmp_path)
        [recovery] = await log.claim(["t"])
        await log.close()
        assert recovery.next_offset > max(acknowledged)
        found = await contents(tmp_path)
        assert found == [b"%d:" % n + b"x" * (n % 900) for n in range(recovery.next_offset)]
    assert len(segments(tmp_path)) > 1


async def test_flush_tells_once_what_became_of_what_nobody_waited_for(tmp_path: Path) -> None:
    disk = FaultyDisk()
    log = opened(tmp_path, disk)
    await log.append([entry(1)])
    disk.fails = lambda _, name: name == "fdatasync"
    log.append_nowait([entry(2)])
    log.append_nowait([entry(3)])
    with pytest.raises(LogUnavailable, match="no sync"):
        await log.flush()
    disk.fails = lambda _number, _name: False
    await log.flush()
    log.append_nowait([entry(4)])
    await log.flush()
    assert await contents(tmp_path) == [entry(1).value, entry(4).value]
    await log.close()


# -- giving up the beginning -----------------------------------------------------------------------------------------------------


async def everything(log: SegmentLog, offset: int = 0) -> list[Record]:
    subscription = log.assign({PLACE: offset})
    found: list[Record] = []
    while some := await subscription.poll(1000, 0):
        found += some
    subscription.close()
    return found


async def test_whole_sealed_segments_below_the_offset_go_the_oldest_first_and_the_last_stays(tmp_path: Path) -> None:
    await write(tmp_path, 100)
    files = segments(tmp_path)
    bases = [int(file.stem) for file in files]
    sizes = [file.stat().st_size for file in files]
    assert len(files) > 5
    log = opened(tmp_path)
    assert log.trim("t", 0, bases[1] - 1) == 0
    assert log.trim("t", 0, bases[3] - 1) == sum(sizes[:2])
    assert segments(tmp_path) == files[2:]
    assert log.begin_offsets("t") == {PLACE: bases[2]}
    assert log.trim("t", 0, 10**6) == sum(sizes[2:-1])
    assert segments(tmp_path) == files[-1:]
    assert log.begin_offsets("t") == {PLACE: bases[-1]}
    assert log.trim("t", 0, 10**6) == 0
    assert log.trim("nothing", 0, 10**6) == 0
    assert log.end_offsets("t") == {PLACE: 100}
    assert (await log.append([entry(100)]))[0].offset == 100
    assert [r.offset for r in await everything(log)] == list(range(bases[-1], 101))
    await log.close()


async def test_a_reader_from_before_the_beginning_begins_there_and_sees_it_by_the_offset(tmp_path: Path) -> None:
    written = await write(tmp_path, 100)
    log = opened(tmp_path)
    early = log.assign({PLACE: 0})
    await early.poll(3, 0)
    base = int(segments(tmp_path)[4].stem)
    log.trim("t", 0, base)
    for offset in (0, base - 1, base, base + 1):
        found = await everything(log, offset)
        assert [r.offset for r in found] == list(range(max(offset, base), 100))
        assert [r.value for r in found] == written[max(offset, base) :]
    # One that was on its way there has read its segment to the end, and passes what is gone.
    rest = await read_on(early)
    assert [r.offset for r in rest] == [*range(3, rest[-(100 - base) - 1].offset + 1), *range(base, 100)]
    assert rest[-(100 - base) - 1].offset < base - 1
    await log.close()


async def read_on(subscription: Subscription) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(20):
        while not found or found[-1].offset < 99:
            found += await subscription.poll(1000, 0.1)
    return found


async def test_the_end_is_found_though_all_between_was_given_up(tmp_path: Path) -> None:
    log, watcher = opened(tmp_path), opened(tmp_path)
    await log.append([entry(0)])
    assert watcher.end_offsets("t") == {PLACE: 1}
    for n in range(1, 100):
        await log.append([entry(n)])
    log.trim("t", 0, 100)
    async with asyncio.timeout(20):
        while watcher.end_offsets("t") != {PLACE: 100}:
            await asyncio.sleep(0.05)
    await log.close()
    await watcher.close()


async def test_what_is_missing_and_was_not_given_up_is_damage(tmp_path: Path) -> None:
    await write(tmp_path, 100)
    log = opened(tmp_path)
    log.trim("t", 0, int(segments(tmp_path)[2].stem))
    segments(tmp_path)[0].unlink()
    with pytest.raises(LogCorrupt, match="missing"):
        await everything(log)
    with pytest.raises(LogCorrupt, match="missing"):
        log.trim("t", 0, 100)
    await log.close()


async def test_a_segment_that_is_missing_in_the_middle_is_damage_though_the_beginning_was_given_up(tmp_path: Path) -> None:
    await write(tmp_path, 100)
    log = opened(tmp_path)
    log.trim("t", 0, int(segments(tmp_path)[2].stem))
    segments(tmp_path)[1].unlink()
    subscription = log.assign({PLACE: 0})
    with pytest.raises(LogCorrupt, match="missing"):
        while await subscription.poll(100, 3):
            pass
    await log.close()


async def test_a_writer_does_not_begin_anew_where_all_is_missing(tmp_path: Path) -> None:
    await write(tmp_path, 100)
    log = opened(tmp_path)
    log.trim("t", 0, 100)
    for file in segments(tmp_path):
        file.unlink()
    with pytest.raises(LogCorrupt, match="missing"):
        await log.append([entry(1)])
    await log.close()


async def test_a_beginning_that_is_no_number_is_damage(tmp_path: Path) -> None:
    await write(tmp_path, 100)
    log = opened(tmp_path)
    log.trim("t", 0, int(segments(tmp_path)[2].stem))
    (tmp_path / "log" / "t" / "0" / "begin").write_bytes(b"")
    with pytest.raises(LogCorrupt, match="no offset"):
        await everything(log)
    with pytest.raises(LogCorrupt, match="no offset"):
        log.begin_offsets("t")
    await log.close()


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done, and reported as failed"])
async def test_whichever_operation_of_giving_up_fails_nothing_else_is_missing_and_the_next_call_finishes(
    tmp_path: Path, after: bool
) -> None:
    for number in range(100):
        directory = tmp_path / str(number)
        written = await write(directory, 60)
        base = int(segments(directory)[3].stem)
        disk = FaultyDisk(lambda n, _name, number=number: n == number, after=after)
        log = opened(directory, disk)
        try:
            log.trim("t", 0, base)
            whole = True
        except LogUnavailable:
            whole = False
        disk.fails = lambda _number, _name: False
        begin = log.begin_offsets("t")[PLACE]
        assert begin in (0, base)
        found = await everything(log)
        assert [r.value for r in found] == written[found[0].offset :]
        assert found[0].offset <= begin
        assert (await log.append([entry(60)]))[0].offset == 60
        log.trim("t", 0, base)
        assert int(segments(directory)[0].stem) == base
        assert [r.offset for r in await everything(log)] == list(range(base, 61))
        await log.close()
        if whole:
            assert number > 5  # else nothing failed
            break
    else:
        pytest.fail("giving up has no end")


async def test_giving_up_disturbs_no_writer_no_reader_and_no_other_that_gives_up(tmp_path: Path) -> None:
    log, other = opened(tmp_path), opened(tmp_path)
    subscription = other.assign({PLACE: 0})
    seen: list[int] = []

    async def append() -> None:
        for n in range(400):
            await log.append([entry(n)])

    async def trim(one: SegmentLog) -> None:
        while not appending.done():
            await asyncio.to_thread(one.trim, "t", 0, seen[-1] if seen else 0)

    async def follow() -> None:
        while not seen or seen[-1] < 399:
            seen.extend(r.offset for r in await subscription.poll(20, 0.5))

    async with asyncio.timeout(60):
        appending = asyncio.create_task(append())
        await asyncio.gather(appending, trim(log), trim(other), follow())
    assert seen == list(range(400))
    assert log.begin_offsets("t")[PLACE] > 0
    await log.close()
    await other.close()


# -- groups ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["", "..", "../x", "a/b", "A", "groups"])
async def test_a_group_cannot_leave_its_folder(tmp_path: Path, group: str) -> None:
    log = opened(tmp_path)
    with pytest.raises(ValueError, match="name"):
        log.subscribe(["t"], group)
    with pytest.raises(ValueError, match="name"):
        await log.append([Entry("groups", b"", b"")])
    await log.close()


async def test_where_a_group_stands_is_a_file_that_nobody_else_may_read_and_no_part_of_a_topic(tmp_path: Path) -> None:
    await write(tmp_path, 10)
    log = opened(tmp_path)
    member = log.subscribe(["t"], "workers")
    await member.poll(5, 0)
    await member.commit({PLACE: 5})
    file = tmp_path / "log" / "groups" / "workers"
    assert file.read_text() == "t 0 5\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert all(path.suffix == ".seg" for path in (tmp_path / "log" / "t" / "0").iterdir())
    await log.close()


@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored, and reported as failed"])
async def test_whichever_operation_of_a_commit_fails_the_group_stands_before_it_or_behind_it(tmp_path: Path, after: bool) -> None:
    await write(tmp_path, 10)
    for number in range(100):
        disk = FaultyDisk(after=after)
        log = opened(tmp_path, disk)
        member = log.subscribe(["t"], f"group-{number}")
        await member.poll(9, 0)
        await member.commit({PLACE: 3})
        from_here = len(disk.operations)
        disk.fails = lambda n, _name, at=from_here + number: n == at
        try:
            await member.commit({PLACE: 7})
            whole = True
        except LogUnavailable:
            whole = False
        assert (await member.committed())[PLACE] in ((7,) if whole else (3, 7))
        disk.fails = lambda _number, _name: False
        await member.commit({PLACE: 8})
        await log.close()
        again = opened(tmp_path)
        successor = again.subscribe(["t"], f"group-{number}")
        assert [r.offset for r in await successor.poll(9, 0)] == [8, 9]
        await again.close()
        if whole:
            assert number > 3  # else nothing failed
            break
    else:
        pytest.fail("a commit has no end")


@pytest.mark.parametrize("text", [b"t 0\n", b"\x00\x00", b"t 0 -5\n", b"t zero 5\n"])
async def test_a_group_whose_file_was_damaged_does_not_begin_anew(tmp_path: Path, text: bytes) -> None:
    await write(tmp_path, 10)
    log = opened(tmp_path)
    (tmp_path / "log" / "groups").mkdir()
    (tmp_path / "log" / "groups" / "workers").write_bytes(text)
    member = log.subscribe(["t"], "workers")
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="workers"):
            await member.poll(10, 0)
    with pytest.raises(LogCorrupt, match="workers"):
        await member.commit({PLACE: 1})
    await log.close()


MEMBER = """
import asyncio, sys
from pathlib import Path
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

async def main():
    member = SegmentLog(Path(sys.argv[1]) / "log", LogSettings()).subscribe(["t"], "workers")
    assert len(await member.poll(7, 10)) == 7
    await member.commit({("t", 0): 4})
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_member_that_was_killed_is_followed_at_once_by_another_which_reads_what_it_had_not_committed(
    tmp_path: Path,
) -> None:
    await write(tmp_path, 10)
    log = opened(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", MEMBER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        member = log.subscribe(["t"], "workers")
        assert await member.poll(10, 0.3) == []
        with pytest.raises(LogUnavailable, match="another member"):
            await member.commit({PLACE: 1})
        process.kill()
        assert [r.offset for r in await member.poll(10, 20)] == list(range(4, 10))
        await member.commit({PLACE: 10})
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    await log.close()


# -- reading while another process writes ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_reader_in_another_process_sees_only_whole_records_and_follows_the_segments(tmp_path: Path) -> None:
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 0})
    assert await subscription.poll(10, 0.01) == []
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    try:
        next_offset = 0
        until = time.monotonic() + 20
        while (next_offset < 3000 or len(segments(tmp_path)) < 3) and time.monotonic() < until:
            for record in await subscription.poll(500, 1.0):
                assert record.offset == next_offset
                assert record.value == b"%d:" % next_offset + b"x" * (next_offset % 900)
                next_offset += 1
            assert log.end_offsets("t")[PLACE] >= next_offset
        assert next_offset >= 3000
    finally:
        writer.kill()
        writer.wait()
    await log.close()


async def test_a_pending_batch_is_not_seen_until_it_is_durable(tmp_path: Path) -> None:
    disk = SlowDisk()
    disk.go_on.set()
    log = opened(tmp_path, disk, LogSettings())
    await log.append([entry(1)])
    disk.go_on.clear()
    appending = asyncio.create_task(log.append([entry(2)]))
    file = segments(tmp_path)[0]
    while entry(2).value not in file.read_bytes():
        await asyncio.sleep(0.005)
    assert await contents(tmp_path) == [entry(1).value]
    disk.go_on.set()
    await appending
    assert await contents(tmp_path) == [entry(1).value, entry(2).value]
    await log.close()


async def test_an_idle_reader_looks_ever_more_seldom_but_at_least_every_20_ms(tmp_path: Path) -> None:
    await write(tmp_path, 1)
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 1})
    looks = 0
    look = subscription._look

    def counting(records_max: int, until: float) -> object:
        nonlocal looks
        looks += 1
        return look(records_max, until)

    subscription._look = counting  # type: ignore[method-assign,assignment]
    await subscription.poll(10, 0.5)
    assert 0.5 / 0.020 / 2 < looks < 40
    await log.close()


async def test_reading_a_long_log_gives_the_loop_its_turns(tmp_path: Path) -> None:
    log = opened(tmp_path, settings=LogSettings())
    for _ in range(8):
        await log.append([Entry("t", b"", b"x" * 300) for _ in range(20_000)])
        await log.append([entry(1)])
    subscription = log.assign({PLACE: 8 * 20_001 - 1})
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not done:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    watching = asyncio.create_task(watch())
    [last] = await subscription.poll(10, 0)  # an empty answer would say that there is none
    done = True
    await watching
    assert last.value == entry(1).value
    assert longest < 0.2  # a slice is 5 ms; the rest is for a busy machine
    await log.close()


# -- recovery --------------------------------------------------------------------------------------------------------------------


def damaged(directory: Path, data: bytes) -> None:
    [file] = segments(directory)
    file.write_bytes(data)


async def recovered(directory: Path) -> list[bytes] | None:
    """What the log holds after it was opened for writing; None when it refuses to."""
    log = opened(directory)
    try:
        await log.claim(["t"])
        await log.append([entry(77)])
    except LogCorrupt:
        return None
    finally:
        await log.close()
    found = await contents(directory)
    assert found[-1] == entry(77).value
    return found[:-1]


async def one_segment(directory: Path, *, pending: int) -> tuple[list[bytes], bytes]:
    """Eight batches, of which the last ones are pending."""
    written = await write(directory, 16, each=2)
    [file] = segments(directory)
    data = bytearray(file.read_bytes())
    starts = [0]
    for _ in range(7):
        starts.append(starts[-1] + batches.HEADER_BYTES + batches.header(data, starts[-1]).length)  # type: ignore[arg-type]
    for start in starts[8 - pending :]:
        data[start] = batches.PENDING
    return written, bytes(data)


async def test_a_torn_tail_is_cut_off_and_reported(tmp_path: Path) -> None:
    written, data = await one_segment(tmp_path, pending=1)
    whole = batches.survey(data, 0).length
    damaged(tmp_path, data[: whole - 1] + bytes(500))
    log = opened(tmp_path)
    [recovery] = await log.claim(["t"])
    assert recovery == log.recoveries[0]
    assert (recovery.next_offset, recovery.confirmed_batches) == (14, 0)
    assert recovery.dropped_bytes > batches.HEADER_BYTES
    assert recovery.file == str(segments(tmp_path)[0])
    await log.close()
    assert await contents(tmp_path) == written[:14]


async def test_whole_batches_that_nobody_confirmed_are_kept_and_confirmed(tmp_path: Path) -> None:
    written, data = await one_segment(tmp_path, pending=3)
    damaged(tmp_path, data)
    assert await contents(tmp_path) == written[:10]
    log = opened(tmp_path)
    [recovery] = await log.claim(["t"])
    assert (recovery.next_offset, recovery.confirmed_batches, recovery.dropped_bytes) == (16, 3, 0)
    await log.close()
    assert await contents(tmp_path) == written


async def test_a_clean_log_opens_without_a_word(tmp_path: Path) -> None:
    await write(tmp_path, 5)
    log = opened(tmp_path)
    [recovery] = await log.claim(["t"])
    assert (recovery.next_offset, recovery.dropped_bytes, recovery.confirmed_batches) == (5, 0, 0)
    await log.close()


@pytest.mark.slow
@pytest.mark.parametrize("pending", [0, 8])
async def test_a_segment_cut_anywhere_gives_a_beginning_of_it_or_is_refused(tmp_path: Path, pending: int) -> None:
    written, data = await one_segment(tmp_path, pending=pending)
    length = batches.survey(data, 0).length
    for size in range(length + 1):
        damaged(tmp_path, data[:size])
        found = await recovered(tmp_path)
        if pending:  # as a crash of the writer leaves it: never a reason to refuse
            assert found is not None
        if found is not None:
            assert found == written[: len(found)]
            assert size == length or len(found) < len(written)
        for file in segments(tmp_path)[1:]:
            file.unlink()


async def test_a_durable_batch_that_was_cut_short_is_damage_and_no_torn_tail(tmp_path: Path) -> None:
    _, data = await one_segment(tmp_path, pending=0)
    damaged(tmp_path, data[: batches.survey(data, 0).length - 1])
    assert await recovered(tmp_path) is None


@pytest.mark.parametrize("size", [1, batches.HEADER_BYTES, 100])
async def test_a_hole_of_zeros_before_a_durable_batch_is_damage_and_no_end(tmp_path: Path, size: int) -> None:
    _, data = await one_segment(tmp_path, pending=0)
    second = batches.HEADER_BYTES + batches.header(data, 0).length
    damaged(tmp_path, data[:second] + bytes(size) + data[second + size :])
    log = opened(tmp_path)
    with pytest.raises(LogCorrupt, match=rf"nothing at byte {second} \(record 2\), but a durable batch follows at byte \d+"):
        await log.claim(["t"])
    await log.close()


@pytest.mark.slow
async def test_flipped_bits_give_a_beginning_or_are_refused_and_never_garbage(tmp_path: Path) -> None:
    chance = random.Random(5)
    written, data = await one_segment(tmp_path, pending=2)
    length = batches.survey(data, 0).length
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 2, 8])):
            changed[chance.randrange(length)] ^= 1 << chance.randrange(8)
        damaged(tmp_path, bytes(changed))
        with suppress(LogCorrupt):
            read = await contents(tmp_path)
            assert read == written[: len(read)]
        found = await recovered(tmp_path)
        refused += found is None
        assert found is None or found == written[: len(found)]
        for file in segments(tmp_path)[1:]:
            file.unlink()
    assert refused > 200  # six of eight batches were durable: damage to them is not cut off in silence


async def test_a_reader_names_the_file_and_the_place_of_damage_and_gives_what_stands_before_it(tmp_path: Path) -> None:
    written, data = await one_segment(tmp_path, pending=0)
    place = data.index(entry(9).value) + 1
    damaged(tmp_path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 0})
    assert [r.value for r in await subscription.poll(100, 1)] == written[:8]
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=rf"{segments(tmp_path)[0]}: at byte \d+: the checksum"):
            await subscription.poll(100, 1)
    await log.close()


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_lost_segment_is_noticed_and_not_waited_for(tmp_path: Path, lost: int) -> None:
    await write(tmp_path, 60)
    segments(tmp_path)[lost].unlink()
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 0})
    with pytest.raises(LogCorrupt, match="missing"):
        while await subscription.poll(100, 3):
            pass
    await log.close()


async def test_a_sealed_segment_that_lost_its_end_is_noticed_and_not_waited_for(tmp_path: Path) -> None:
    await write(tmp_path, 60)
    first = segments(tmp_path)[0]
    data = first.read_bytes()
    first.write_bytes(data[: batches.HEADER_BYTES + batches.header(data, 0).length])
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 0})
    with pytest.raises(LogCorrupt, match="missing"):
        while await subscription.poll(100, 3):
            pass
    await log.close()


async def test_a_log_that_was_removed_under_its_reader_is_noticed(tmp_path: Path) -> None:
    await write(tmp_path, 3)
    log = opened(tmp_path)
    subscription = log.assign({PLACE: 0})
    await subscription.poll(100, 1)
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(LogCorrupt, match="removed"):
        while True:
            await subscription.poll(100, 3)
    await log.close()


async def test_the_documented_reader_reads_what_was_written(tmp_path: Path) -> None:
    written = await write(tmp_path, 60)
    document = (Path(__file__).parents[2] / "docs/log-format.md").read_text()
    program = document.split("```python\n")[1].split("```")[0]
    folder = segments(tmp_path)[0].parent
    run = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"{n} key {len(value)}" for n, value in enumerate(written)]


# -- batches ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        (batches.DURABLE, 0, 0, 0, 0, 0, 0),  # no records
        (batches.DURABLE, 0, 1, 0, 0, 2**32 - 1, 0),  # 4 GiB
        (batches.DURABLE, 0, 65535, 0, 0, 100, 0),  # more records than bytes
        (batches.DURABLE, 1, 1, 0, 0, 6, 0),  # a flag of a later version
        (0x77, 0, 1, 0, 0, 6, 0),
    ],
)
def test_an_absurd_header_is_refused(head: tuple[int, ...]) -> None:
    with pytest.raises(batches.BatchInvalid):
        batches.header(batches._HEADER.pack(*head), 0)


@pytest.mark.parametrize("lengths", [(0, 2**32 - 1), (65535, 0), (1, 1), (0, 0)])
def test_records_that_do_not_fill_their_batch_are_refused(lengths: tuple[int, int]) -> None:
    good = batches.encode(0, 0, [(b"k", b"value")])
    body = batches._RECORD.pack(*lengths) + good[batches.HEADER_BYTES + 6 :]
    forged = batches.encode(0, 0, [(b"", b"")])
    bare = batches._HEADER.pack(batches.PENDING, 0, 1, 0, 0, len(body), 0)
    checksum = batches.zlib.crc32(body, batches.zlib.crc32(bare[1:-4]))
    forged = bare[:-4] + checksum.to_bytes(4, "big") + body
    with pytest.raises(batches.BatchInvalid, match="record"):
        batches.records(forged, 0, batches.header(forged, 0))


@settings(max_examples=400, deadline=None)
@given(st.binary(min_size=4, max_size=60))
def test_damaged_segments_survey_as_a_beginning_or_as_damage(data: bytes) -> None:
    one_input(data)
