"""pgbench against one address; what its own log of transactions says about a window in which all its clients were at work."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.servers import CannotMeasure, program

SAMPLE_SECONDS: Final = 0.02
LOGIN_SECONDS_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    port: int
    database: str
    user: str
    password: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    protocol: str  # pgbench's -M
    clients: int
    seconds: int
    script: str = ""  # "" = pgbench's own -S: one row by its key


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the window from the last client's first answer to the first client's last: no login, no half-empty server."""

    transactions: int  # of the whole run
    tps: float
    p50_us: float
    p99_us: float
    cpu_us: float  # of the clock that was watched, for each transaction


def initialise(address: Address, scale: int) -> None:
    """Make and fill pgbench's tables."""
    _run(address, ["-i", "-q", "-s", str(scale)]).check_returncode()


def run(address: Address, load: Load, clock_ns: Callable[[], int]) -> Measured:
    """Raises CannotMeasure when pgbench fails, or when no window was left."""
    with tempfile.TemporaryDirectory(prefix="pgbench-") as name:
        folder = Path(name)
        what = ["-S"]
        if load.script:
            (folder / "script.sql").write_text(load.script)
            what = ["-f", str(folder / "script.sql")]
        arguments = [
            *("-n", *what, "-M", load.protocol, "-T", str(load.seconds)),
            *("-c", str(load.clients), "-j", str(min(2, load.clients))),
            *("--log", f"--log-prefix={folder}/transactions"),
        ]
        samples: list[tuple[float, int]] = []

        def sample() -> None:
            samples.append((time.time(), clock_ns()))

        done = _run(address, arguments, sample, load.seconds + LOGIN_SECONDS_MAX)
        if done.returncode != 0:
            raise CannotMeasure(f"pgbench: {done.stderr.strip()}")
        logs = [file.read_text() for file in folder.glob("transactions.*")]
    return measured(logs, samples)


def _run(
    address: Address, arguments: Sequence[str], sample: Callable[[], None] | None = None, seconds_max: float = 300.0
) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [program("pgbench"), "-h", "127.0.0.1", "-p", str(address.port), "-U", address.user, *arguments, address.database],
        env={**os.environ, "PGPASSWORD": address.password, "PGSSLMODE": "require" if address.tls else "disable"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + seconds_max
    try:
        while process.poll() is None:
            if time.monotonic() > until:
                raise CannotMeasure(f"pgbench has not ended after {seconds_max:g} s")
            if sample is not None:
                sample()
            time.sleep(SAMPLE_SECONDS)
        out, err = process.communicate()  # a page at most, far below what a pipe holds
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def measured(logs: Sequence[str], samples: Sequence[tuple[float, int]]) -> Measured:
    """A line of the log: client, number, latency in us, script, end as seconds and microseconds since 1970."""
    ends: list[tuple[float, int]] = []
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in "".join(logs).splitlines():
        client, _, latency_us, _, seconds, microseconds = line.split()[:6]
        at = int(seconds) + int(microseconds) / 1e6
        ends.append((at, int(latency_us)))
        first[client] = min(at, first.get(client, at))
        last[client] = max(at, last.get(client, at))
    begin, end = max(first.values(), default=0.0), min(last.values(), default=0.0)
    within = [(at, ns) for at, ns in samples if begin <= at <= end]
    if len(within) < 2:
        raise CannotMeasure("pgbench's clients were never all at work: give it more --seconds")
    (begin, begin_ns), (end, end_ns) = within[0], within[-1]
    latencies = sorted(latency_us for at, latency_us in ends if begin <= at < end)
    return Measured(
        len(ends),
        len(latencies) / (end - begin),
        _percentile(latencies, 0.5),
        _percentile(latencies, 0.99),
        (end_ns - begin_ns) / 1e3 / len(latencies),
    )


def _percentile(ordered: Sequence[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
