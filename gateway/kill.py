"""Ends backends and proves that they ended. Closing a socket proves nothing: a long INSERT runs on and commits."""

from __future__ import annotations

import asyncio

from gateway.control import Backend, Control, ControlFailed
from gateway.settings import GatewaySettings
from ingest.clock import now_us

_PAUSE_MIN_SECONDS = 0.002
_PAUSE_MAX_SECONDS = 0.1


class Ender:
    """One for each Postgres. What must end at the same moment is ended by the same query: a thousand cost what one costs."""

    def __init__(self, control: Control, settings: GatewaySettings) -> None:
        self._control = control
        self._settings = settings
        self._wanted: dict[Backend, set[asyncio.Future[int]]] = {}
        self._news = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def end(self, backend: Backend) -> int:
        """Cancel, terminate, and look until it is gone. Return when it was seen gone (wall clock), 0 if not in time.

        For one that is gone already, and for a pid that is another's by now, that is at once.
        """
        gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(backend, set()).add(gone)
        self._news.set()
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._settings.kill_seconds_max):
                return await gone
        except TimeoutError:
            return 0
        finally:
            waiting = self._wanted.get(backend, set())
            waiting.discard(gone)
            if not waiting:
                self._wanted.pop(backend, None)

    async def _run(self) -> None:
        pause = _PAUSE_MIN_SECONDS
        try:
            while self._wanted:
                self._news.clear()
                asked = list(self._wanted)
                try:
                    left = await self._control.terminate_all(asked)
                except ControlFailed:
                    pause = max(pause, 0.05)
                else:
                    gone_us = now_us()
                    for backend in asked:
                        if backend not in left:
                            for gone in self._wanted.pop(backend, ()):
                                if not gone.done():
                                    gone.set_result(gone_us)
                if self._wanted:
                    try:
                        async with asyncio.timeout(pause):
                            await self._news.wait()
                        pause = _PAUSE_MIN_SECONDS
                    except TimeoutError:
                        pause = min(pause * 1.5, _PAUSE_MAX_SECONDS)
        finally:
            self._work = None
