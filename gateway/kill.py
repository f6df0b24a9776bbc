"""Ends a backend and proves that it ended. Closing its socket proves nothing: a long INSERT runs on and commits."""

from __future__ import annotations

import asyncio
import time

from gateway.control import Control, ControlFailed
from gateway.settings import GatewaySettings


async def end_backend(control: Control, pid: int, backend_start_us: int, settings: GatewaySettings) -> int:
    """Cancel, terminate, and look until it is gone. Return when it was seen gone (wall clock), 0 if not in time."""
    deadline = time.monotonic() + settings.kill_seconds_max
    pause = 0.002
    while time.monotonic() < deadline:
        try:
            await control.terminate(pid, backend_start_us)
            if not await control.alive(pid, backend_start_us):
                return time.time_ns() // 1_000
        except ControlFailed:
            pause = max(pause, 0.05)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return 0
