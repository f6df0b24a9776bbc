"""The gateway's end of the socket to its relay: how far the record is with the brokers, and how old what they told us is."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ingest import relay_lines
from ingest.events import GatewayReported
from ingest.log import Partition
from ingest.recorder import Recorder
from ingest.relay_lines import GatewayWord, RelayState
from ingest.settings import RelaySettings

_RECONNECT_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 0.25  # between two looks at what grows while the relay says nothing
_REPORT_SECONDS_MIN: Final = 0.02  # between two reports, however fast identities change: somebody may wait for this word
_UNSENT_BYTES_MAX: Final = 64 * 1024  # of reports that the relay does not take
_CONTACTS_MAX: Final = 256  # that wait for the gateway to read what was mirrored; more is a gateway that reads nothing
_ROOM: Final = 1.25  # of the bound: beyond it statements are refused, and in the rest sessions record their end
_LOWER: Final = 0.875  # of the bound: below it statements are forwarded again


class RelayLink:
    """`run` until cancelled, on the recorder's loop. The relay may come, go and hang: what it said last grows old."""

    def __init__(
        self,
        path: Path,
        recorder: Recorder,
        settings: RelaySettings,
        report: Callable[[int], GatewayReported],
        identity_at_us: Callable[[], int],
        needed: Callable[[], Mapping[Partition, int]],
    ) -> None:
        """`report` is asked with the backlog's bytes; also when `identity_at_us` has changed. `needed`: what must not go yet."""
        self._path = path
        self._recorder = recorder
        self._settings = settings
        self._report = report
        self._identity_at_us = identity_at_us
        self._needed = needed
        self._state = RelayState(0)
        self._backlog_counted = -1  # bytes, by the relay that counted last; -1 = none has
        self._written_bytes = 0  # by the recorder, when it said so
        self._contacts: deque[tuple[int, int]] = deque(maxlen=_CONTACTS_MAX)
        self._contact_mono_us = 0  # of which the gateway has read all
        self._blocked = False
        self._heard = asyncio.Event()
        self._connected = False
        self.identity_offset: Callable[[], int] | None = None
        """How far the gateway has read `identity`. Until it is set nothing counts as known."""

    async def run(self) -> None:
        looking = asyncio.create_task(self._look())
        try:
            while True:
                with contextlib.suppress(OSError, ValueError):  # it will say the rest to the next connection
                    await self._talk()
                self._connected = False
                await asyncio.sleep(_RECONNECT_SECONDS)
        finally:
            looking.cancel()

    async def mirrored(self, seconds: float) -> bool:
        """Whether the relay has, before so much time was over, mirrored all identities that the brokers have."""
        try:
            async with asyncio.timeout(seconds):
                while not self._state.contact_mono_us:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            return False
        return True

    def why_stale(self) -> str:
        """Why nobody may be let in: what the brokers hold may not be known here. "" while it is."""
        self._look_at_contacts()
        if not self._contact_mono_us:
            return f"nothing was heard of the brokers yet{self.trouble()}"
        if self._backlog_counted < 0:
            return f"what waits for the brokers was not counted yet{self.trouble()}"
        seconds = time.monotonic() - self._contact_mono_us / 1e6
        if seconds <= self._settings.stale_seconds_max:
            return ""
        return f"nothing was heard of the brokers for {seconds:.0f} s{self.trouble()}"

    def silent_seconds(self) -> float:
        """Since the brokers were last heard, of whose word the gateway acts on all; infinite where that was never."""
        self._look_at_contacts()
        return time.monotonic() - self._contact_mono_us / 1e6 if self._contact_mono_us else math.inf

    def facts(self) -> Mapping[str, object]:
        state = self._state
        self._look_at_contacts()
        silent = time.monotonic() - self._contact_mono_us / 1e6 if self._contact_mono_us else -1.0
        return {
            "connected": self._connected,
            "pid": state.pid,
            "silent_seconds": round(silent, 3),
            "stale": self.why_stale(),
            "backlog_bytes": self._backlog_bytes(),
            "backlog_records": state.backlog_records,
            "shipped": dict(state.shipped),
            "identity_offset": state.identity_offset,
            "error": state.error,
        }

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=relay_lines.LINE_BYTES_MAX)
        reporting = asyncio.create_task(self._send_reports(writer))
        try:
            while line := await reader.readline():
                self._take(relay_lines.state(line))
        finally:
            reporting.cancel()
            writer.close()

    def _take(self, state: RelayState) -> None:
        self._connected = True
        self._state = state
        if state.backlog_bytes >= 0:
            self._backlog_counted, self._written_bytes = state.backlog_bytes, self._recorder.written_bytes
        if state.contact_mono_us > (self._contacts[-1][0] if self._contacts else self._contact_mono_us):
            self._contacts.append((state.contact_mono_us, state.identity_offset))
            self._heard.set()
        if state.shipped:
            self._recorder.replicated_to({(topic, 0): offset for topic, offset in state.shipped.items()})
        self._look_at_backlog()

    def _look_at_contacts(self) -> None:
        """Mirrored is not yet read: a word counts once the gateway acts on all that stood before it."""
        if self.identity_offset is None:
            return
        read = self.identity_offset()
        while self._contacts and self._contacts[0][1] <= read:
            self._contact_mono_us = self._contacts.popleft()[0]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look_at_contacts()
            self._look_at_backlog()

    def _backlog_bytes(self) -> int:
        """What the relay counted, and what was written since: it holds also for a relay that is gone."""
        return max(0, self._backlog_counted) + self._recorder.written_bytes - self._written_bytes

    def _look_at_backlog(self) -> None:
        bound, waiting = self._settings.backlog_bytes_max, self._backlog_bytes()
        if waiting > bound or (self._blocked and waiting > bound * _LOWER):
            self._blocked = True
            sentence = f"{waiting} bytes of the record wait for Kafka, and log.backlog_bytes_max is {bound}"
            self._recorder.block(f"{sentence}{self.trouble()}", full=waiting > bound * _ROOM)
        elif self._blocked:
            self._blocked = False
            self._recorder.block("")

    def trouble(self) -> str:
        if not self._connected:
            return ": the relay does not answer"
        return f": {self._state.error}" if self._state.error else ""

    def _word(self) -> GatewayWord:
        needed = {topic: offset for (topic, _), offset in self._needed().items()}
        return GatewayWord(self._report(self._backlog_bytes()), needed)

    async def _send_reports(self, writer: asyncio.StreamWriter) -> None:
        told_us, due = -1, 0.0
        while True:
            identity_at_us = self._identity_at_us()
            if identity_at_us != told_us or time.monotonic() >= due:
                told_us, due = identity_at_us, time.monotonic() + self._settings.report_ms / 1000
                if writer.transport.get_write_buffer_size() < _UNSENT_BYTES_MAX:
                    writer.write(relay_lines.line(self._word()))
            await asyncio.sleep(_REPORT_SECONDS_MIN)
