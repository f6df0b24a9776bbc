"""What a worker does in a second, and how long a revocation takes through it. Part `worker` of `bench.backbone`.

The configuration has its log in Kafka, its topics are made, and they are a benchmark's own: what is written stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.servers import CannotMeasure
from ingest.events import AgentRevoked, SessionOpened, Stamp, StatementDefined, StatementFinished, StatementStarted
from ingest.follow import Follower
from ingest.frames import Framer
from ingest.log import EventLog
from ingest.log.partitioner import partition
from pgwarden.config import Config, load
from pgwarden.logs import open_log

AGENTS: Final = 200
EXECUTIONS_OF_FRAME: Final = 50
REVOCATIONS: Final = 200
SECONDS_MAX: Final = 300.0
NAME: Final = "bench"
TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figures:
    statements: int
    statements_per_second: float  # one worker that has a backlog
    worker_us: float  # CPU of the worker's process for each statement
    frames_per_second: float
    ready_seconds: float  # from the start of the process until it has its partitions
    order_p50_ms: float  # from before a revocation is appended until its order is read
    order_p99_ms: float

    def __str__(self) -> str:
        return (
            f"{self.statements} statements at {self.statements_per_second:,.0f}/s, {self.frames_per_second:,.0f} frames/s,"
            f" {self.worker_us:.1f} us of CPU each; ready after {self.ready_seconds:.1f} s;"
            f" revocation to order p50 {self.order_p50_ms:.1f} ms, p99 {self.order_p99_ms:.1f} ms"
        )


async def measure(config_file: Path, statements: int = 500_000) -> Figures:
    """Writes the statements, starts one worker, lets it count them all, and then revokes agents one by one.

    Raises:
        CannotMeasure: The worker did not start, or did not get there in time.
    """
    config = load(config_file)
    log = await open_log(config)
    try:
        stamps = [_stamp(number) for number in range(AGENTS)]
        framer = _framer(log, "gateway")
        for stamp in stamps:
            opened = SessionOpened(time.time_ns() // 1000, stamp, "token", "c", 0, "", "", "3.0", "group")
            framer.add("sessions", stamp.agent, opened)
        await log.append(framer.cut())
        await _write(log, framer, stamps, statements)
        began = time.monotonic()
        process = _start(config_file)
        try:
            said = await _until(config, process, ready=True)
            ready = time.monotonic()
            cpu, counted = _cpu_seconds(process.pid), _number(said, "statements", "frames")
            said = await _until(config, process, ready=False)
            seconds, frames = time.monotonic() - ready, _number(said, "statements", "frames") - counted
            used = _cpu_seconds(process.pid) - cpu
            delays = sorted(await _revocations(log))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 15)
            process.kill()
            process.wait()
    finally:
        await log.close()
    done = frames * EXECUTIONS_OF_FRAME
    return Figures(
        statements=done,
        statements_per_second=done / seconds,
        worker_us=used * 1e6 / done,
        frames_per_second=frames / seconds,
        ready_seconds=ready - began,
        order_p50_ms=delays[len(delays) // 2] * 1000,
        order_p99_ms=delays[len(delays) * 99 // 100] * 1000,
    )


def _stamp(number: int) -> Stamp:
    agent = f"bench-{number}"
    names = (
        f"s-{time.time_ns()}-{number}",
        agent,
        f"sub-{agent}",
        "https://idp.example",
        "alice",
        ("bench",),
        "run-7",
        "nightly",
        (),
    )
    return Stamp(*names, (f"g-{agent}",), ("bob",), "shop", "shop", "warden", "127.0.0.1:50000", 4711, 1, 41000)


def _framer(log: EventLog, name: str) -> Framer:
    def place(topic: str, key: bytes) -> int:
        return partition(key, log.partitions(topic))

    return Framer(name, time.time_ns() // 1000, events_max=2 * EXECUTIONS_OF_FRAME, bytes_max=64 * 2**10, partition=place)


async def _write(log: EventLog, framer: Framer, stamps: list[Stamp], statements: int) -> None:
    at_us = time.time_ns() // 1000
    for number in range(statements // EXECUTIONS_OF_FRAME):
        stamp = stamps[number % AGENTS]
        if number < AGENTS:
            text = "SELECT id, customer, amount FROM orders WHERE customer = $1"
            defined = StatementDefined(1, text, "full", len(text), "a" * 16, ("SELECT",), ("public.orders",), ())
            framer.add("statements", stamp.agent, defined, stamp)
        for each in range(EXECUTIONS_OF_FRAME):
            execution = number // AGENTS * EXECUTIONS_OF_FRAME + each
            at_us += 100
            framer.add("statements", stamp.agent, StatementStarted(at_us, execution, 1, "g-1 select on public.orders"), stamp)
            framer.add("statements", stamp.agent, StatementFinished(execution, "ok", "", "SELECT 3", 3, 12, 180, 800), stamp)
        if number % 200 == 199:
            await log.append(framer.cut())
    await log.append(framer.cut())


def _start(config_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pgwarden", "worker", "-c", str(config_file), "--name", NAME]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _until(config: Config, process: subprocess.Popen[bytes], *, ready: bool) -> Mapping[str, object]:
    until = time.monotonic() + SECONDS_MAX
    while time.monotonic() < until and process.poll() is None:
        said = _said(config.state / "run" / f"worker-{NAME}.sock")
        if said and _number(said, "statements", "frames") and (ready or not _number(said, "statements", "records_behind")):
            return said
        await asyncio.sleep(0.02)
    raise CannotMeasure(f"the worker ended with {process.poll()}" if process.poll() is not None else "the worker takes too long")


def _said(path: Path) -> dict[str, object]:
    said = b""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.settimeout(5)
        peer.connect(str(path))
        while more := peer.recv(65536):
            said += more
    return json.loads(said) if said else {}


def _number(said: Mapping[str, object], part: str, name: str) -> int:
    held = said[part]
    assert isinstance(held, dict)
    return int(held[name])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime: proc(5)


async def _revocations(log: EventLog) -> list[float]:
    follower = Follower(log, ("commands",), dict(await log.offsets("commands")), on_gap=lambda _: None)
    framer = _framer(log, "bench-api")
    delays = []
    try:
        await follower.poll(1, 0.5)
        for number in range(min(REVOCATIONS, AGENTS)):
            began = time.monotonic()
            event = AgentRevoked(time.time_ns() // 1000, f"bench-{number}", "benchmark", "bench")
            framer.add("identity", event.agent, event)
            await log.append(framer.cut())
            if not await follower.poll(100, 30.0):
                raise CannotMeasure("a revocation led to no order")
            delays.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
    finally:
        follower.close()
    return delays
