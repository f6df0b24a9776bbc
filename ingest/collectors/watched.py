"""One collector, run and recorded: what it hands out, whether it sees, and its canaries. The shell around `sight.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ingest.clock import now_us
from ingest.collectors.canary import CanaryFailed, Connect, Server, canary
from ingest.collectors.collector import Collector, CollectorState, Observation, key
from ingest.collectors.log_lines import Format
from ingest.collectors.server_settings import shortcomings
from ingest.collectors.sight import Blinded, Restored, Sight
from ingest.events import (
    WitnessBlinded,
    WitnessConnected,
    WitnessEvent,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.log import LogUnavailable
from ingest.recorder import Recorder

_log = logging.getLogger("pgwarden.collector")


@dataclass(frozen=True, slots=True)
class WatchSettings:
    canary_seconds: float = 60.0  # between two
    canary_seconds_max: float = 5.0  # from sending one until it is seen; a log is read ten times a second
    canary_retry_seconds: float = 5.0  # after one that could not be sent
    report_ms: float = 1_000.0
    restart_seconds: float = 5.0  # after a collector has ended by itself
    pending_bytes_max: int = 8 * 2**20  # recorded and not yet on disk; beyond it the source waits: half of the recorder's own


class Watched:
    """`run` until cancelled, then `stopped`. One recorder serves several, on one loop."""

    def __init__(
        self,
        collector: Collector,
        connections: Sequence[str],
        connect: Connect,
        recorder: Recorder,
        version: str,
        settings: WatchSettings,
        log_format: Format | None = None,
    ) -> None:
        self.collector: Final = collector
        self._connections = tuple(connections)
        self._connect = connect
        self._recorder = recorder
        self._version = version
        self._settings = settings
        self._log_format = log_format
        self._sight = Sight(collector.sees, now_us(), settings.canary_seconds_max)
        self._started = False
        self._ended = ""  # why the collector ended by itself
        self._ticket = 0
        self._dim: Sequence[str] = ()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._collect(), name=f"collect {self.collector.name}")
            tasks.create_task(self._report(), name=f"report {self.collector.name}")
            tasks.create_task(self._canaries(), name=f"canaries {self.collector.name}")

    def stopped(self) -> None:
        """Record the end, as far as there is room."""
        if self._started:
            one = self.collector
            with contextlib.suppress(LogUnavailable):
                self._take(self._reported(now_us(), one.state(), self._reason()))  # up to when its word is whole, to the last
                self._take(WitnessStopped(now_us(), one.name, one.kind, one.server))

    def status(self) -> Mapping[str, object]:
        one = self.collector
        state = one.state()
        return {
            "name": one.name,
            "kind": one.kind,
            "server": one.server,
            "sees": one.sees,
            "reason": self._reason(),
            "dim": list(self._dim),
            "complete_us": state.complete_us,
            "canary_us": self._sight.canary_us,
            "observed": state.observed,
            "lost": state.lost,
            "lag_us": state.lag_us,
            **({"witness": dict(state.witness)} if state.witness is not None else {}),
        }

    # -- as its outlet ---------------------------------------------------------------------------------------------------------

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        self._start()
        self._sight.told(observations)
        recorder, bytes_max = self._recorder, self._settings.pending_bytes_max
        for observation in observations:
            if recorder.pending_bytes > bytes_max:
                await self._room()
            self._take(observation, flush=False)
        return self._ticket

    async def recorded(self, ticket: int) -> None:
        await self._recorder.recorded(ticket)

    async def _room(self) -> None:
        if self._recorder.pending_bytes > self._settings.pending_bytes_max:
            await self._recorder.recorded(self._ticket)

    def _take(self, event: WitnessEvent, *, flush: bool = True) -> None:
        """Raises LogUnavailable."""
        self._ticket = self._recorder.record("witness", key(event), event, flush=flush)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            one = self.collector
            self._take(
                WitnessStarted(now_us(), one.name, one.kind, one.server, self._connections, one.sees, self._version, one.resumed_us)
            )

    # -- what runs beside one another ------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        while True:
            try:
                await self.collector.run(self)
                self._ended = "it ended by itself; it is begun again"
            except (OSError, LogUnavailable) as error:
                self._ended = f"it ended: {error}"
            _log.error("%s: %s", self.collector.name, self._ended)
            await asyncio.sleep(self._settings.restart_seconds)
            self._ended = ""

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.report_ms / 1000)
            one, state, at_us = self.collector, self.collector.state(), now_us()
            await self._room()
            self._start()
            match self._sight.change(self._state(), at_us):
                case Blinded(since_us, reason):
                    _log.error("%s does not see: %s", one.name, reason)
                    self._take(WitnessBlinded(at_us, one.name, one.kind, one.server, since_us, reason))
                case Restored(blind_since_us):
                    _log.info("%s sees again", one.name)
                    self._take(WitnessRestored(at_us, one.name, one.kind, one.server, blind_since_us))
                case None:
                    pass
            self._take(self._reported(at_us, state, self._reason()))

    def _reported(self, at_us: int, state: CollectorState, reason: str) -> WitnessReported:
        one = self.collector
        return WitnessReported(
            at_us,
            one.name,
            one.kind,
            one.server,
            not reason,
            reason,
            state.complete_us,
            self._sight.canary_us,
            state.observed,
            state.lost,
            max(0, state.lag_us),
        )

    async def _canaries(self) -> None:
        one = self.collector
        while True:
            pause = self._settings.canary_seconds
            try:
                async with canary(self._connect, one.name) as bird:
                    session = bird.session
                    await self._room()
                    self._start()
                    self._take(
                        WitnessConnected(
                            now_us(),
                            one.name,
                            one.server,
                            session.session_id,
                            session.backend_pid,
                            session.user,
                            "canary",
                            bird.digest,
                        )
                    )
                    self._sight.sent(now_us(), session.session_id, bird.digest)
                    await bird.send()
                    self._judge(await bird.server())
                    await self._until_seen()
            except CanaryFailed as error:
                self._sight.not_sent(str(error))
                pause = self._settings.canary_retry_seconds
            await asyncio.sleep(pause)

    async def _until_seen(self) -> None:
        """The canary's session is open meanwhile, so that a look at pg_stat_activity finds it."""
        for _ in range(int(self._settings.canary_seconds_max / 0.1) + 1):
            if not self._sight.waits:
                return
            await asyncio.sleep(0.1)

    def _judge(self, server: Server) -> None:
        if self._log_format is None:
            return
        found = shortcomings(self._log_format, server.settings, server.overrides)
        self._sight.hidden([str(one) for one in found if one.blinds])
        self._dim = [str(one) for one in found if not one.blinds]

    def _state(self) -> CollectorState:
        state = self.collector.state()
        return replace(state, seeing=False, reason=self._ended) if self._ended else state

    def _reason(self) -> str:
        return self._sight.reason(self._state(), now_us())
