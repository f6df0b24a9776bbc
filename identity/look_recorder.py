"""No audit, no look: an answer from the record goes out once the look itself is on disk. Health and who-am-I show no record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from identity.looks import Look, Looks, bounded, event
from identity.looks_settings import LooksSettings
from ingest.events import RecordRead
from ingest.log import LogUnavailable
from ingest.recorder import Recorder

OVER_SECONDS: Final = 1.0  # between two looks for windows that have ended


class LookRecorder:
    """Writes topic `looks`. One a process, on the recorder's loop; calls may overlap."""

    def __init__(self, recorder: Recorder, now_us: Callable[[], int], settings: LooksSettings) -> None:
        self._recorder = recorder
        self._now_us = now_us
        self._settings = settings
        self._looks = Looks(settings)

    async def record(self, look: Look, rows: int) -> str:
        """Return "" once this look, or the one that it repeats, is on disk; else why it is not."""
        now_us = self._now_us()
        look = Look(look.operator, look.question, bounded(look.parameters, self._settings.parameters_bytes_max), look.through)
        window = self._looks.window(look, rows, now_us)
        if window is not None:
            ticket = window.ticket
        elif not self._recorder.available:
            return self._recorder.state().reason
        else:
            first = event(look, rows, now_us)
            try:
                ticket = self._recorder.record("looks", look.operator, first)
            except LogUnavailable as error:
                return str(error)
            self._tell(self._looks.opened(look, ticket, now_us))
        try:
            async with asyncio.timeout(self._settings.record_seconds_max):
                await self._recorder.recorded(ticket)
        except TimeoutError:
            return f"the log did not take it within {self._settings.record_seconds_max:g} s"
        except LogUnavailable as error:
            return str(error)
        return ""

    async def run(self) -> None:
        """Tell of repeats when their time is over. Until cancelled."""
        while True:
            await asyncio.sleep(OVER_SECONDS)
            self._tell(self._looks.over(self._now_us()))

    def close(self) -> None:
        """Tell of all repeats; before the recorder is closed."""
        self._tell(self._looks.close())

    def _tell(self, events: tuple[RecordRead, ...]) -> None:
        for told in events:
            try:
                self._recorder.record("looks", told.operator, told, flush=False)
            except LogUnavailable:
                return  # each of them repeats a look that is on disk; how often it was repeated is all that is lost


class LooksRecorded:
    """Lets no answer out that shows something of the record before the look is recorded."""

    def __init__(self, app: ASGIApp, recorder: LookRecorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        withheld = False

        async def sending(message: Message) -> None:
            nonlocal withheld
            if message["type"] == "http.response.start" and (look := state.get("look")) is not None:
                reason = await self._recorder.record(look, state.get("look_rows", -1))
                if reason:
                    withheld = True
                    sentence = f"Each look at the record is recorded, and this one cannot be now ({reason}); try again in a moment."
                    await JSONResponse({"error": sentence}, 503, {"Retry-After": "2"})(scope, receive, send)
            if not withheld:
                await send(message)

        await self._app(scope, receive, sending)
