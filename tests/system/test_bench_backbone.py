"""Each part of the backbone's benchmark runs and says what it measured. No figure is judged: the machine of a test is shared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.history import Past, entries
from ingest.frames import decode

if TYPE_CHECKING:
    from tests.broker import Broker

ROOT = Path(__file__).parents[2]


def _bench(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench.backbone", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_parts_are_listed_by_name() -> None:
    assert [line.split()[0] for line in _bench("--list").splitlines()][:5] == ["append", "record", "rebuild", "questions", "revoke"]


def test_the_same_seed_makes_the_same_past_and_another_seed_another() -> None:
    small = Past(2_000, agents=20, live_sessions=5, days=1)
    assert list(entries(small)) == list(entries(small))
    assert list(entries(small)) != list(entries(Past(2_000, agents=20, live_sessions=5, days=1, seed=2)))
    started = sum(type(event).__name__ == "StatementStarted" for entry in entries(small) for _, event in decode(entry.value).events)
    assert 1_900 < started < 2_000


@pytest.mark.slow
def test_tables_are_rebuilt_and_every_question_is_asked_of_them(tmp_path: Path) -> None:
    said = _bench("rebuild", "questions", "--executions", "30000", "--keep", str(tmp_path))
    assert re.search(r"30000 executions, 6\d{4} events in \d+ frames: [\d.]+ s", said), said
    assert len(re.findall(r"^ +[\d.]+ +[\d.]+ +\d+  statements ", said, re.MULTILINE)) > 10
    again = _bench("questions", "--executions", "30000", "--keep", str(tmp_path))
    assert "of log, in" not in again


@pytest.mark.slow
def test_appends_stand_beside_their_peers_and_recording_tells_the_loops_time() -> None:
    said = _bench("append", "record")
    rows = re.findall(r"^ +(\d+)  (segments|SQLite|fdatasync) +(\d+) ", said, re.MULTILINE)
    assert [row[0] for row in rows] == [waiting for waiting in ("1", "16", "128", "1024") for _ in range(3)]
    assert all(int(row[2]) > 0 for row in rows)
    assert len(re.findall(r"^ +\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", said, re.MULTILINE)) == 3


@pytest.mark.slow
def test_every_backend_of_a_revoked_agent_is_seen_to_be_gone() -> None:
    said = _bench("revoke", "--sessions", "40")
    assert "40 sessions of 4 agents are open" in said
    assert said.count("20 sessions, 0 without proof") == 2, said


@pytest.mark.slow
@pytest.mark.kafka
def test_on_kafka_backends_are_seen_to_be_gone_and_a_worker_counts(broker: Broker) -> None:
    said = _bench("revoke-kafka", "worker", "--sessions", "20", "--executions", "20000", "--kafka", broker.bootstrap)
    assert said.count("10 sessions, 0 without proof") == 2, said
    assert re.search(r"\d+ statements at [\d,]+/s", said), said
