"""The follower of log files against real files that grow, rotate, tear and vanish."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.collectors.log_files import Checkpoint, LogFiles, load, save
from ingest.collectors.log_lines import Format
from ingest.collectors.settings import LogSettings

WRITER = Path(__file__).with_name("log_writer.py")
READER = Path(__file__).with_name("log_reader.py")


def record(number: int, size: int = 0) -> bytes:
    at = f"2027-01-15 08:{number // 60_000 % 60:02}:{number // 1000 % 60:02}.{number % 1000:03} UTC"
    return json.dumps(
        {"timestamp": at, "session_id": "6b000000.10", "line_num": number, "message": "x" * size}, separators=(",", ":")
    ).encode()


def files(
    folder: Path, kind: Format = "jsonlog", checkpoint: Checkpoint | None = None, *, start: bool = True, **limits: float
) -> LogFiles:
    pattern = "*.json" if kind == "jsonlog" else "*.csv"
    return LogFiles(folder, pattern, kind, LogSettings(**limits), start, checkpoint)  # type: ignore[arg-type]


def numbers(log: LogFiles, now: float = 0.0) -> list[int]:
    return [json.loads(one)["line_num"] for records, _ in log.read(now) for one in records]


def kept(log: LogFiles) -> Checkpoint:
    return Checkpoint(1, 1, 1, log.offsets({}), {})


def test_whole_lines_only_each_once(tmp_path: Path) -> None:
    log = files(tmp_path)
    with (tmp_path / "postgresql.json").open("wb", buffering=0) as out:
        out.write(record(1) + b"\n" + record(2)[:20])
        assert numbers(log) == [1]
        assert numbers(log) == []
        out.write(record(2)[20:])
        assert numbers(log) == []
        out.write(b"\n")
        assert numbers(log) == [2]
    log.close()


def test_at_a_first_start_only_what_comes_is_read(tmp_path: Path) -> None:
    (tmp_path / "postgresql.json").write_bytes(record(1) + b"\n" + record(2) + b"\n" + record(3)[:10])
    log = files(tmp_path, start=False)
    assert numbers(log) == []
    with (tmp_path / "postgresql.json").open("ab") as out:
        out.write(record(3)[10:] + b"\n")
    assert numbers(log) == [3]
    log.close()


def test_a_rotation_by_rename_and_one_by_a_new_file_lose_nothing(tmp_path: Path) -> None:
    log = files(tmp_path)
    path = tmp_path / "postgresql.json"
    old = path.open("ab", buffering=0)
    old.write(record(1) + b"\n")
    assert numbers(log) == [1]
    old.write(record(2) + b"\n")
    path.rename(tmp_path / "postgresql.json.1")
    old.write(record(3) + b"\n")  # the server still has it open
    path.write_bytes(record(4) + b"\n")
    (tmp_path / "postgresql-0900.json").write_bytes(record(5) + b"\n")
    assert numbers(log) == [2, 3, 4, 5]
    (tmp_path / "postgresql.json.1").unlink()
    old.write(record(6) + b"\n")
    assert numbers(log) == [6]
    old.close()
    log.close()


def test_a_restart_goes_on_from_its_checkpoint_also_behind_a_rename(tmp_path: Path) -> None:
    path = tmp_path / "log" / "postgresql.json"
    path.parent.mkdir()
    path.write_bytes(record(1) + b"\n" + record(2) + b"\n")
    log = files(path.parent)
    assert numbers(log) == [1, 2]
    save(tmp_path / "c" / "pglog.checkpoint", kept(log))
    log.close()
    with path.open("ab") as out:
        out.write(record(3) + b"\n")
    path.rename(path.with_name("elsewhere.bak"))
    path.write_bytes(record(4) + b"\n")
    log = files(path.parent, checkpoint=load(tmp_path / "c" / "pglog.checkpoint"), start=False)
    assert numbers(log) == [3, 4]
    assert log.troubles == []
    log.close()


def test_what_was_removed_unread_while_nobody_looked_is_told(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.json"
    path.write_bytes(record(1) + b"\n")
    log = files(tmp_path)
    assert numbers(log) == [1]
    checkpoint = kept(log)
    log.close()
    other = tmp_path / "other.json"
    other.write_bytes(record(9) + b"\n")  # before the first one goes, so that it does not get its inode
    path.unlink()
    log = files(tmp_path, checkpoint=checkpoint)
    assert numbers(log) == [9]
    (trouble,) = log.troubles
    assert trouble.lost
    assert "is gone that was not read to its end" in trouble.reason
    log.close()


def test_what_was_read_to_its_end_may_be_removed(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_bytes(record(1) + b"\n")
    second.write_bytes(record(2) + b"\n")
    log = files(tmp_path)
    assert numbers(log) == [1, 2]
    checkpoint = kept(log)
    log.close()
    first.unlink()
    log = files(tmp_path, checkpoint=checkpoint)
    assert numbers(log) == []
    assert log.troubles == []
    log.close()


@pytest.mark.parametrize("how", ["shorter", "regrown", "copied"])
def test_copytruncate_is_refused_with_the_remedy_and_reading_goes_on(tmp_path: Path, how: str) -> None:
    path = tmp_path / "postgresql.json"
    path.write_bytes(b"".join(record(number, 100) + b"\n" for number in range(1, 4)))
    log = files(tmp_path)
    assert numbers(log) == [1, 2, 3]
    if how == "copied":
        (tmp_path / "postgresql.json.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)
    with path.open("ab") as out:
        for number in range(4, 14 if how == "regrown" else 5):
            out.write(record(number, 100) + b"\n")
    assert numbers(log) == list(range(4, 14 if how == "regrown" else 5))
    assert log.troubles
    for trouble in log.troubles:
        assert trouble.for_good
        assert "copytruncate" in trouble.reason
        assert "log_rotation_size" in trouble.reason
    log.close()


def test_a_record_beyond_the_limit_is_passed_over_and_told(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.json"
    path.write_bytes(record(1) + b"\n" + record(2, 5000) + b"\n" + record(3) + b"\n")
    log = files(tmp_path, read_bytes=256, record_bytes_max=1024)
    assert numbers(log) == [1, 3]
    assert ["longer than" in trouble.reason for trouble in log.troubles] == [True]
    log.close()


def test_a_record_larger_than_a_read_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "postgresql.json").write_bytes(record(1) + b"\n" + record(2, 5000) + b"\n" + record(3) + b"\n")
    log = files(tmp_path, read_bytes=256)
    assert numbers(log) == [1, 2, 3]
    assert log.troubles == []
    log.close()


def test_a_folder_that_is_not_there_or_empty_says_what_to_do(tmp_path: Path) -> None:
    log = files(tmp_path / "nowhere")
    assert numbers(log) == []
    assert "cannot be read" in log.unreadable
    log = files(tmp_path)
    assert numbers(log) == []
    assert "logging_collector" in log.unreadable
    (tmp_path / "postgresql.json").write_bytes(record(1) + b"\n")
    assert numbers(log) == [1]
    assert log.unreadable == ""
    log.close()


def test_a_file_that_was_read_to_its_end_is_closed_and_opened_again_when_it_grows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(record(1, 300) + b"\n")
    (tmp_path / "b.json").write_bytes(record(2, 300) + b"\n")
    log = files(tmp_path, idle_seconds=10)
    before = len(os.listdir("/proc/self/fd"))
    assert numbers(log, 1.0) == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    assert numbers(log, 12.0) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    with (tmp_path / "a.json").open("ab") as out:
        out.write(record(3) + b"\n")
    assert numbers(log, 13.0) == [3]
    log.close()


def test_a_checkpoint_that_is_none_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.checkpoint"
    assert load(path) is None
    assert caplog.records == []
    path.write_bytes(b'{"at_us":')
    assert load(path) is None
    assert "the log is read anew" in caplog.text


@pytest.mark.faults
@pytest.mark.parametrize("rotation", ["rename", "new file"])
def test_a_reader_that_is_killed_again_and_again_misses_no_line_of_a_log_that_rotates(tmp_path: Path, rotation: str) -> None:
    """Torn writes of 20,000 records in some thirty files; the reader is killed at random, and what it handed out is compared."""
    chance = random.Random(7)
    log = tmp_path / "log"
    log.mkdir()
    out = tmp_path / "seen"
    writer = subprocess.Popen([sys.executable, str(WRITER), str(log), rotation, "20000"])
    arguments = [sys.executable, str(READER), str(log), str(tmp_path / "state" / "x.checkpoint"), str(out)]
    kills = 0
    while writer.poll() is None or kills < 4:
        reader = subprocess.Popen(arguments)
        time.sleep(0.4 + chance.random() * 0.5)
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        kills += 1
    assert writer.returncode == 0
    reader = subprocess.Popen([*arguments, "20000"])
    assert reader.wait(60) == 0
    seen = out.read_text().split()
    assert set(map(int, seen)) == set(range(1, 20_001))
    assert kills >= 4
    assert list(itertools.islice(sorted(set(seen), key=int), 3)) == ["1", "2", "3"]
