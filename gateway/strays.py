"""Ends backends that no gateway opened, where that was ordered, and proves it: a watchdog's third task.

An order names a backend by its pid and the second of its start, as PostgreSQL names a session. What runs under that name on the
server is ended, and nothing else: not a gateway's session, whatever the order says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.control import Backend, Control, ControlFailed, MayNot
from ingest.clock import now_us
from ingest.events import BackendEndOrdered, BackendReaped
from ingest.log import LogUnavailable
from ingest.recorder import Recorder

ORDERS_MAX: Final = 10_000  # that are not carried out yet; the oldest go first
DONE_MAX: Final = 100_000  # whose end is recorded, remembered by name
RETRY_SECONDS: Final = 0.25
MAY_NOT_SECONDS: Final = 30.0  # before it is tried again where the role has no leave
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Work:
    order: BackendEndOrdered
    decided_us: int
    begun: float  # monotonic
    backend: Backend | None = None  # once it was found, and told to end
    recorded_unproven: bool = False
    not_before: float = 0.0  # monotonic


class Strays:
    """`take` orders and proofs as they are read, in any order; `run` until cancelled. Owned by the watchdog's loop."""

    def __init__(
        self,
        controls: Mapping[str, Control],
        recorder: Recorder,
        watchdog: str,
        gateways: Callable[[str], frozenset[tuple[int, int]]],
        caught_up: Callable[[], bool],
        unproven_seconds: float,
    ) -> None:
        """`gateways`: pid and start in whole seconds of the live sessions of a connection, which are never ended here. `caught_up`:
        whether all that stood in the log has been read, proofs included."""
        self._controls = controls
        self._recorder = recorder
        self._watchdog = watchdog
        self._gateways = gateways
        self._caught_up = caught_up
        self._unproven_seconds = unproven_seconds
        self._work: dict[str, _Work] = {}
        self._done: dict[str, None] = {}
        self._news = asyncio.Event()
        self.hindrance = ""  # why the last one could not be ended, and what to do; "" when it could
        self.reaped = 0

    def take(self, event: BackendEndOrdered | BackendReaped) -> None:
        if isinstance(event, BackendReaped):
            if event.backend_gone_us:
                self._done[event.order] = None
                self._work.pop(event.order, None)
                if len(self._done) > DONE_MAX:
                    del self._done[next(iter(self._done))]
            return
        if event.order in self._done or event.order in self._work:
            return
        self._work[event.order] = _Work(event, now_us(), time.monotonic())
        if len(self._work) > ORDERS_MAX:
            del self._work[next(iter(self._work))]
        self._news.set()

    @property
    def pending(self) -> int:
        return len(self._work)

    async def run(self) -> None:
        while True:
            if not self._work:
                self._news.clear()
                await self._news.wait()
            for work in list(self._work.values()) if self._caught_up() else ():
                if work.not_before <= time.monotonic():
                    await self._carry_out(work)
            await asyncio.sleep(0.02 if any(work.backend is not None for work in self._work.values()) else RETRY_SECONDS)

    async def _carry_out(self, work: _Work) -> None:
        order = work.order
        control = self._controls.get(order.connection)
        second = order.backend_start_us // 1_000_000
        if control is None or (order.backend_pid, second) in self._gateways(order.connection):
            known = "is a gateway's session" if control is not None else "is on a connection that this configuration does not know"
            self._refuse(work, f"session {order.session_id} on server {order.server} {known}")
            return
        try:
            backend = await control.stray(order.backend_pid, second)
            if backend is None:
                self._gone(work)
                return
            await control.end_stray(backend)
            work.backend = backend
            self.hindrance = ""
        except MayNot as failed:
            self._refuse(work, str(failed))
        except ControlFailed as failed:
            work.not_before = time.monotonic() + RETRY_SECONDS
            self.hindrance = str(failed)
        if time.monotonic() - work.begun > self._unproven_seconds and not work.recorded_unproven:
            work.recorded_unproven = self._record(work, 0, f"{order.reason}; it is not proven to have ended: {self.hindrance}")

    def _refuse(self, work: _Work, reason: str) -> None:
        if self.hindrance != reason:
            _log.error("session %s of server %s must end, and cannot: %s", work.order.session_id, work.order.server, reason)
        self.hindrance = reason
        work.not_before = time.monotonic() + MAY_NOT_SECONDS

    def _gone(self, work: _Work) -> None:
        reason = work.order.reason if work.backend is not None else f"{work.order.reason}; its backend was gone already"
        if not self._record(work, now_us(), reason):
            return  # tried again: an end that is not in the record is not done
        self._done[work.order.order] = None
        del self._work[work.order.order]
        if work.backend is not None:
            self.reaped += 1
            _log.warning("ended session %s of server %s: %s", work.order.session_id, work.order.server, work.order.cause)

    def _record(self, work: _Work, gone_us: int, reason: str) -> bool:
        order = work.order
        event = BackendReaped(
            at_us=now_us(),
            order=order.order,
            server=order.server,
            session_id=order.session_id,
            backend_pid=order.backend_pid,
            requested_us=order.at_us,
            decided_us=work.decided_us,
            backend_gone_us=gone_us,
            reason=reason,
            finding=order.finding,
            watchdog=self._watchdog,
        )
        try:
            self._recorder.record("observations", order.session_id, event)
        except LogUnavailable:
            return False
        return True
