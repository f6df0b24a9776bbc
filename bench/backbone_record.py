"""What recording costs the gateway's loop: the CPU time of its thread, and of the whole process, for each event.

Sessions end one statement after the other and wait for none of them, as at level `fast`; frames hold what gathers in the linger, up
to 50 executions. The loop does nothing else, so that all of its thread's time beyond an idle run is recording.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Final

from bench.log_append import STAMP
from ingest.events import StatementFinished, StatementStarted
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

RATES: Final = (5_000, 20_000, 100_000)  # events a second
ROUNDS: Final = 3
SECONDS: Final = 1.0
TICK_SECONDS: Final = 0.002


async def main(folder: Path) -> None:
    log = SegmentLog(folder, LogSettings())
    try:
        print(f"{ROUNDS} rounds of {SECONDS:g} s; medians")
        print(f"{'events/s':>9} {'of it record() us':>18} {'loop us/event':>14} {'process us/event':>17} {'events a frame':>15}")
        for rate in RATES:
            runs = [await _run(log, rate) for _ in range(ROUNDS)]
            record, loop, process, frame = (statistics.median(figures) for figures in zip(*runs, strict=True))
            print(f"{rate:9} {record:18.2f} {loop:14.2f} {process:17.2f} {frame:15.1f}")
    finally:
        await log.close()


async def _run(log: SegmentLog, rate: int) -> tuple[float, float, float, float]:
    recorder = Recorder(log, "bench", time.time_ns() // 1000, RecorderSettings())
    first = log.end_offsets("statements")["statements", 0]
    idle = await _ticks(None, 0)
    spent, loop, process, count = await _ticks(recorder, rate)
    await recorder.recorded(count)
    await recorder.close()
    frames = log.end_offsets("statements")["statements", 0] - first
    return (
        spent / count * 1e6,
        (loop - idle[1]) / count * 1e6,
        (process - idle[2]) / count * 1e6,
        count / frames,
    )


async def _ticks(recorder: Recorder | None, rate: int) -> tuple[float, float, float, int]:
    """Seconds in record(), of the loop's thread, of the process; and events."""
    spent, count = 0.0, 0
    thread, process, began = time.thread_time(), time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < began + SECONDS:
        due = int((now - began) * rate) - count if recorder is not None else 0
        a = time.perf_counter()
        for n in range(count // 2, (count + due) // 2):
            assert recorder is not None
            recorder.record("statements", "reporter", StatementStarted(1, n, n % 7, "select on public.orders"), STAMP, flush=False)
            recorder.record(
                "statements", "reporter", StatementFinished(n, "ok", "", "SELECT 12", 12, 24, 1874, 742), STAMP, flush=False
            )
        spent += time.perf_counter() - a
        count = (count + due) // 2 * 2
        await asyncio.sleep(TICK_SECONDS)
    return spent, time.thread_time() - thread, time.process_time() - process, count
