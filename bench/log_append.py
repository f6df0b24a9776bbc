"""What recording costs: `PYTHONPATH=. python bench/log_append.py [directory]`.

Prints, on the disk of the directory: the latency of durable appends with 1, 16 and 128 waiting at a time; the event loop's own time
for the two events of an execution; the bytes of an execution on disk; and the speed of reading it all back.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ingest.events import Stamp, StatementFinished, StatementStarted
from ingest.follow import Follower
from ingest.log import Entry, batches
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

STAMP = Stamp(
    session="0199b1a2c3d4e5f6",
    agent="reporter",
    subject="5b2f7c1e-93a4-4d0e-8f6b-2a7d9c1b3e55",
    issuer="https://idp.example/realms/agents",
    on_behalf_of="alice@example.com",
    actors=("reporter",),
    invocation="run-20251122-0001",
    task="monthly report",
    unverified=("task",),
    grants=("grant-000017",),
    approvers=("bob",),
    connection="shop",
    database="shop",
    role="pgwarden",
    client="127.0.0.1:51234",
    backend_pid=41234,
    backend_start_us=1_763_800_000_000_000,
    upstream_port=45678,
)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def execution(recorder: Recorder, n: int) -> int:
    started = StatementStarted(1_763_800_000_000_000 + n, n, n % 7, "select on public.orders")
    recorder.record("statements", "reporter", started, STAMP, flush=False)
    return recorder.record("statements", "reporter", StatementFinished(n, "ok", "", "SELECT 12", 12, 24, 1874, 742), STAMP)


async def appends(log: SegmentLog, waiting: int) -> None:
    latencies: list[float] = []
    until = time.perf_counter() + 1.0

    async def one() -> None:
        while (began := time.perf_counter()) < until:
            await log.append([Entry("bench", b"agent", bytes(400))])
            latencies.append(time.perf_counter() - began)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(waiting)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    print(
        f"append of 400 bytes, {waiting:4} waiting: {len(latencies) / wall:8.0f}/s, p50 {percentile(latencies, 0.5) * 1e3:.2f} ms, "
        f"p99 {percentile(latencies, 0.99) * 1e3:.2f} ms, {cpu / len(latencies) * 1e6:.1f} us CPU"
    )


async def executions(log: SegmentLog, sessions: int) -> None:
    recorder = Recorder(log, "bench", time.time_ns() // 1000 + sessions, RecorderSettings())
    offset, count = log.end_offsets("statements")["statements", 0], 0
    until = time.perf_counter() + 1.0

    async def session() -> None:
        nonlocal count
        while time.perf_counter() < until:
            count += 1
            await recorder.recorded(execution(recorder, count))

    began = time.perf_counter()
    await asyncio.gather(*(session() for _ in range(sessions)))
    wall = time.perf_counter() - began
    follower = Follower(log, ("statements",), {("statements", 0): offset})
    size = frames = 0
    while some := await follower.poll(timeout_seconds=0):
        frames += len(some)
        size += sum(len(record.key) + len(record.value) + batches.RECORD_HEADER_BYTES for record, _ in some)
    follower.close()
    await recorder.close()
    print(
        f"executions, {sessions:4} sessions: {count / wall:8.0f}/s durable, {count / frames:.1f} a frame, "
        f"{(size + frames * batches.HEADER_BYTES) / count:.0f} bytes each"
    )


async def loop_time(log: SegmentLog) -> None:
    recorder = Recorder(log, "bench", time.time_ns() // 1000, RecorderSettings())
    spent, count = 0.0, 0
    for _ in range(200):
        began = time.perf_counter()
        for _ in range(100):
            count += 1
            recorder.when_durable(execution(recorder, count), _nothing)
        spent += time.perf_counter() - began
        await recorder.recorded(count * 2)
    print(f"two record() and a when_durable(), built and taken: {spent / count * 1e6:.2f} us an execution")
    await recorder.close()


def _nothing() -> None:
    pass


async def read_back(log: SegmentLog) -> None:
    follower = Follower(log, ("statements",), {})
    events = 0
    began = time.perf_counter()
    while some := await follower.poll(timeout_seconds=0):
        events += sum(len(frame.events) for _, frame in some)
    wall = time.perf_counter() - began
    follower.close()
    print(f"read and decoded: {events / wall:8.0f} events/s")


async def main(parent: str | None) -> None:
    directory = Path(tempfile.mkdtemp(prefix="log-append-", dir=parent))
    try:
        log = SegmentLog(directory / "log", LogSettings())
        for waiting in (1, 16, 128):
            await appends(log, waiting)
        for sessions in (1, 16, 128):
            await executions(log, sessions)
        await loop_time(log)
        await read_back(log)
        await log.close()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
