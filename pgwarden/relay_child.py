"""Keeps the gateway's relay: starts it, starts it again when it ends, and ends it with the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Final

from pgwarden.settings import RELAY_FINISH_SECONDS_MAX, RELAY_PARENT

_RESTART_SECONDS_MIN: Final = 0.1
_RESTART_SECONDS_MAX: Final = 5.0
_ENDING_SECONDS: Final = 3.0  # beyond the time that it takes to finish: for closing

_log = logging.getLogger("pgwarden.gateway")


class RelayChild:
    """`keep` until cancelled, then `end`. The relay writes to this process's own stderr."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: Process | None = None

    async def keep(self) -> None:
        pause = _RESTART_SECONDS_MIN
        while True:
            began = time.monotonic()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "pgwarden",
                    "relay",
                    "-c",
                    str(self._config),
                    stdin=DEVNULL,
                    env={**os.environ, RELAY_PARENT: str(os.getpid())},
                    start_new_session=True,  # Ctrl-C is for the gateway
                )
                _log.warning("the relay ended with status %s", await self._process.wait())
            except OSError as error:
                _log.error("the relay could not be started: %s", error)
            if time.monotonic() - began > 2 * _RESTART_SECONDS_MAX:
                pause = _RESTART_SECONDS_MIN
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RESTART_SECONDS_MAX)

    async def end(self) -> None:
        """Let it finish for a moment. Call once the gateway's log is closed."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(RELAY_FINISH_SECONDS_MAX + _ENDING_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
