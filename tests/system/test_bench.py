"""The benchmark runs and says what it measured. No figure is judged: the machine of a test is shared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import pgbench
from bench.servers import CannotMeasure

ROOT = Path(__file__).parents[2]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_every_way_to_the_database_is_measured_and_the_record_told_its_size(needs: Callable[[str, bool], None]) -> None:
    needs("pgbench", shutil.which("pgbench") is not None)
    needs("pgbouncer", shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") is not None)
    done = _bench("--rounds", "1", "--scale", "1", "--protocols", "prepared", "--clients", "2", "--levels", "group")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("PgBouncer 1." in line and "PostgreSQL 18" in line for line in lines), done.stdout
    assert any("cores" in line and "load average" in line for line in lines), done.stdout
    rows = [line.split() for line in lines if line.startswith("prepared ")]
    assert [row[2] for row in rows] == ["direct", "PgBouncer", "group"]
    direct, bouncer, gateway = rows
    assert float(direct[3].removeprefix("[")) > 0  # transactions a second
    assert float(bouncer[3]) > 0  # CPU of a transaction
    assert float(gateway[3]) > 0
    assert int(gateway[-1]) > 20, "an execution is two events of the log"
    in_tls = [line.split() for line in lines if line.startswith("prepared, TLS ")]
    assert [row[3] for row in in_tls] == ["PgBouncer", "group"]


def test_the_benchmarks_are_listed_by_name() -> None:
    done = _bench("--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["proxies", "log"]


def test_only_what_all_clients_did_together_is_counted() -> None:
    log = "0 1 100 0 10 0\n0 2 300 0 11 0\n0 3 300 0 12 0\n1 1 500 0 10 500000\n1 2 700 0 11 500000\n1 3 900 0 12 500000\n"
    # Both are at work from 10.5 to 12 s; the samples within are those at 10.6 and 11.6.
    samples = [(9.0, 0), (10.6, 1_000_000), (11.6, 1_400_000), (12.2, 9_000_000)]
    found = pgbench.measured([log], samples)
    assert found.transactions == 6
    assert found.tps == pytest.approx(2.0)
    assert found.cpu_us == pytest.approx(200.0)
    assert (found.p50_us, found.p99_us) == (700, 700)


def test_a_run_without_a_moment_of_all_clients_together_measures_nothing() -> None:
    with pytest.raises(CannotMeasure, match="--seconds"):
        pgbench.measured(["0 1 100 0 10 0\n1 1 100 0 11 0\n"], [(9.0, 0), (12.0, 5)])
