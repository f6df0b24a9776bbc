"""A session at work: carries out what its core asks for, on two channels, one recorder and one control connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import assert_never

import msgspec

from gateway.channel import Channel
from gateway.control import Backend
from gateway.kill import Ender
from gateway.pace import Pace
from gateway.session import Analyze, Close, Command, Kill, Record, Session, ToClient, ToServer
from gateway.settings import Durability, GatewaySettings
from gateway.upstream import Target, Upstream, cancel
from gateway.wire import messages
from gateway.wire.messages import Error
from identity.principal import Principal
from identity.scope import Authority
from ingest.clock import mono_us, now_us
from ingest.events import SessionClosed, SessionKilled, Stamp, StatementFinished
from ingest.histogram import Histogram
from ingest.log import LogUnavailable
from ingest.recorder import Horizon, Recorder
from ingest.sql import Script, Unparsable

_TURNS_A_TIMING = 16  # the one that is timed pays 0.3 us more, the others 0.03


def horizon(recorder: Recorder, durability: Durability) -> Horizon:
    """How far the record of a session must have come before something may happen."""
    return recorder.brokers if durability == "replicated" else recorder.disk


class _Held:
    """Bytes towards one side, some of which wait for a record: in order, and written as soon as the record is safe."""

    def __init__(self, channel: Channel, safe: Horizon) -> None:
        self._channel = channel
        self._safe = safe
        self._queue: deque[tuple[int, bytes, bool]] = deque()
        self.whole = True  # what was written so far ends with the end of a message
        self.bytes = 0
        self.since = 0.0  # when the oldest began to wait; 0.0 = nothing waits
        self.on_released: Callable[[], None] | None = None

    def write(self, data: bytes, ticket: int, whole: bool = True) -> None:
        """`ticket` 0: nothing to wait for but what waits already. `whole`: `data` ends with the end of a message."""
        if not self._queue and ticket <= self._safe.reached:
            self._channel.write(data)
            self.whole = whole
            return
        if not self._queue:
            self.since = time.monotonic()
        self._queue.append((ticket, data, whole))
        self.bytes += len(data)
        if ticket > self._safe.reached:
            self._safe.when(ticket, self._release)

    def drop(self) -> None:
        self._queue.clear()
        self.bytes = 0
        self.since = 0.0

    def _release(self) -> None:
        released = False
        while self._queue and self._queue[0][0] <= self._safe.reached:
            _, data, self.whole = self._queue.popleft()
            self.bytes -= len(data)
            self._channel.write(data)
            released = True
        self.since = time.monotonic() if self._queue else 0.0
        if released and self.on_released is not None:
            self.on_released()


class Conversation:
    """From the first ReadyForQuery to the end. `kill` may be called at any time and more than once; `finished` tells the end."""

    def __init__(
        self,
        client: Channel,
        upstream: Upstream,
        target: Target,
        ender: Ender,
        recorder: Recorder,
        stamp: Stamp,
        principal: Principal,
        core: Session,
        analyze_elsewhere: Callable[[str], Awaitable[Script | Unparsable]],
        settings: GatewaySettings,
        decisions: Histogram,
    ) -> None:
        self.stamp = stamp
        self.principal = principal
        self.opened_us = now_us()
        self.identity_at_us = 0  # the newest identity event that was known when it was let in
        self.core = core
        self.killed: SessionKilled | None = None
        self.end_recorded = False  # SessionClosed was taken
        self._client = client
        self.upstream = upstream
        self._target = target
        self._ender = ender
        self._recorder = recorder
        self._settings = settings
        self._analyze_elsewhere = analyze_elsewhere
        self._safe = horizon(recorder, target.durability)
        self._to_client = _Held(client, self._safe)
        self._to_server = _Held(upstream.channel, self._safe)
        self._to_client.on_released = self._balance
        self._to_server.on_released = self._balance
        self._ticket = 0
        self._finished_ticket = 0  # of the newest StatementFinished
        self._decisions = decisions
        self._turns_until_timed = _TURNS_A_TIMING
        self._turn: asyncio.TimerHandle | None = None  # of a throttled agent's statement that waits
        self._stalled = False
        self._waited = False
        self._ending = False
        self._killing = False
        self._muted = False  # nothing more goes to the client: its end is being arranged
        self._opened_mono_us = mono_us()
        self._last_active = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server_quiet = asyncio.Event()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        self.upstream.channel.begin(self._from_server, self._server_gone, lambda _: self._balance())
        self._client.begin(self._from_client, self._client_gone, lambda _: self._balance())

    # -- the two directions ----------------------------------------------------------------------------------------------------

    def _from_client(self, data: bytes) -> None:
        if self._ending:
            return
        self._last_active = began = time.monotonic()
        commands = self.core.from_client(data, now_us(), mono_us())
        self._turns_until_timed -= 1
        if not self._turns_until_timed:
            self._turns_until_timed = _TURNS_A_TIMING
            self._decisions.observe(time.monotonic() - began)
        self._carry_out(commands)

    def _from_server(self, data: bytes) -> None:
        self._carry_out(self.core.from_server(data, now_us(), mono_us()))
        if self._ending and not self.core.tracker.busy:
            self._server_quiet.set()

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Record():
                    if not self._record(command):
                        return
                case ToServer():
                    ticket = self._ticket if command.held else self._finished_ticket if command.settles else 0
                    self._to_server.write(command.data, ticket)
                case ToClient():
                    if not self._muted:
                        whole = self.core.at_message_boundary()
                        self._to_client.write(command.data, self._ticket if command.held else 0, whole)
                case Analyze():
                    self._stalled = True
                    self._spawn(self._analyze(command.text))
                case Close():
                    self._spawn(self._close(command.error, command.reason))
                case Kill():
                    self.kill(command.cause, now_us(), command.reason)
                case _:
                    assert_never(command)
        if self.core.paced_until_us:
            self._wait_for_turn()
        if self._to_client.since or self._to_server.since or self._stalled or self.core.waits != self._waited:
            self._waited = self.core.waits
            self._balance()

    def _record(self, command: Record) -> bool:
        try:
            self._ticket = self._recorder.record("statements", self.stamp.agent, command.event, self.stamp, flush=command.urgent)
            if isinstance(command.event, StatementFinished):
                self._finished_ticket = self._ticket
        except LogUnavailable:
            # The buffer's last quarter is kept for sessions to end in; with even that gone nothing may run on.
            self.kill("record lost", now_us(), "statements of this session can no longer be recorded")
            return False
        return True

    async def _analyze(self, text: str) -> None:
        script = await self._analyze_elsewhere(text)
        self._stalled = False
        if not self._ending:
            self._carry_out(self.core.analyzed(script, now_us(), mono_us()))
        self._balance()

    def _balance(self) -> None:
        """Back-pressure: a side is read only while the other takes what comes from it."""
        if self._ending:
            return
        bound = self._settings.held_bytes_max
        self._client.read_on(
            not self._stalled
            and not self.core.waits
            and not self.core.paced_until_us
            and not self.upstream.channel.congested
            and self._to_server.bytes <= bound
        )
        self.upstream.channel.read_on(not self._client.congested and self._to_client.bytes <= bound)

    # -- time ------------------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called every second."""
        now = time.monotonic()
        held = min((since for since in (self._to_client.since, self._to_server.since) if since), default=0.0)
        if held and now - held > self._settings.held_seconds_max:
            where = "the brokers" if self._target.durability == "replicated" else "the disk"
            reason = f"the record of this session does not reach {where}"
            self._to_server.drop()  # what waits so long is not executed behind a client that was told of its failure
            self._spawn(self._close(Error("58030", f"{reason}: try again later", fatal=True), "record stalled"))
        elif self.core.paced_until_us:
            self._last_active = now  # it waits for its turn, not for its client
        elif now - self._last_active > self._settings.idle_seconds_max and self.core.state != "active":
            limit = f"nothing was asked for {self._settings.idle_seconds_max:g} seconds"
            self._spawn(self._close(Error("57P05", f"terminating connection: {limit}", fatal=True), "idle"))

    def recording(self, reason: str) -> None:
        """`reason` why statements cannot be recorded now; "" when they can."""
        self.core.recording_reason = reason

    def restrain(self, hold: str, pace: Pace | None) -> None:
        """What holds its agent back, from now on: see Session.restrain."""
        waited = self.core.paced_until_us
        self.core.restrain(hold, pace)
        if waited and pace is None:
            self._take_turn()

    def _wait_for_turn(self) -> None:
        if self._turn is None:
            seconds = max(0, self.core.paced_until_us - mono_us()) / 1_000_000
            self._turn = asyncio.get_running_loop().call_later(seconds, self._take_turn)
            self._balance()

    def _take_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if not self._ending:
            self._carry_out(self.core.resume(now_us(), mono_us()))
            self._balance()

    def authorize(self, authority: Authority, epoch: int) -> str:
        """Return why the session cannot go on within it: what it has under way now is no longer allowed. "" when it can."""
        self.stamp = _with_grants(self.stamp, authority)
        return self.core.authorize(authority, epoch)

    @property
    def killing(self) -> bool:
        return self._killing

    # -- ends ------------------------------------------------------------------------------------------------------------------

    async def cancel(self) -> None:
        """Pass on a CancelRequest for this session."""
        await cancel(self._target, self.upstream.pid, self.upstream.key, self._settings)

    def stop(self, error: Error, reason: str) -> None:
        self._spawn(self._close(error, reason))

    def kill(self, cause: str, requested_us: int, reason: str) -> None:
        """End the backend, tell the client, and record the proof. The first cause counts.

        A session whose client has gone is ended too: what it left behind may still run, and commit.
        """
        if not self._killing and not self.finished.done():
            self._killing = True
            told, self._ending = self._ending, True
            self._spawn(self._kill(cause, requested_us, reason, told))

    async def _kill(self, cause: str, requested_us: int, reason: str, told: bool) -> None:
        decided_us = now_us()
        self._to_server.drop()
        self.upstream.channel.read_on(True)  # a backend that waits for us to read must be able to end, and its last words count
        gone = asyncio.create_task(self._end_backend())
        if not told:
            await self._say(Error("57P01", f"terminating connection due to administrator command: {reason}", fatal=True))
        await self._client.finish(self._settings.drain_seconds_max if not self._client.lost else 0)
        client_closed_us = now_us()
        gone_us = await gone
        self.upstream.channel.abort()
        self._lose_server()
        self.killed = SessionKilled(
            now_us(),
            self.stamp.session,
            self.stamp.agent,
            cause,
            requested_us,
            decided_us,
            client_closed_us,
            gone_us,
            self.stamp.backend_pid,
            reason,
        )
        self._record_session(self.killed)
        self._over("killed", "57P01")

    async def _end_backend(self) -> int:
        return await self._ender.end(Backend(self.stamp.backend_pid, self.stamp.backend_start_us))

    async def _close(self, error: Error | None, reason: str) -> None:
        if self._ending:
            return
        self._ending = True
        if error is not None:
            await self._say(error)
        self._muted = True
        await self._let_server_finish()
        if self._killing:
            return
        if not self.upstream.channel.lost:
            if self.core.tracker.busy:  # a pipeline that goes on behind the cancelled statement would run unwatched
                await self._end_backend()
            self.upstream.channel.write(messages.TERMINATE)
        await self._client.finish(self._settings.drain_seconds_max)
        await self.upstream.channel.finish(0.5)
        if self._killing:
            return
        self._lose_server()
        self._over(reason, error.sqlstate if error is not None else "")

    def _client_gone(self) -> None:
        self._spawn(self._close(None, "client"))

    def _server_gone(self) -> None:
        self._server_quiet.set()
        if not self._ending:
            self._spawn(self._server_closed())

    async def _server_closed(self) -> None:
        if self._ending:
            return
        self._ending = True
        self._lose_server()  # recorded before the client learns of it
        if self._recorder.available:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.held_seconds_max):
                    await self._safe.passed(self._ticket)
        await self._client.finish(self._settings.drain_seconds_max)
        self._over("server", "")

    async def _let_server_finish(self) -> None:
        """What a client left behind runs to its end for a moment, then it is cancelled: either way its outcome is known."""
        self.upstream.channel.read_on(True)
        for attempt in (1, 2):
            if not self.core.tracker.busy or self.upstream.channel.lost:
                return
            self._server_quiet.clear()
            try:
                async with asyncio.timeout(1.0):
                    await self._server_quiet.wait()
            except TimeoutError:
                if attempt == 1:
                    await self.cancel()

    async def _say(self, error: Error) -> None:
        """The last word to the client: behind what its record lets go in time, on a message's boundary, or not at all."""
        self._muted = True
        if self._to_client.bytes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._safe.passed(self._ticket)
        self._to_client.drop()
        if self._to_client.whole:
            self._client.write(messages.error_response(error))

    def _lose_server(self) -> None:
        self._carry_out(self.core.server_lost(now_us(), mono_us()))

    def _over(self, reason: str, sqlstate: str) -> None:
        if self.finished.done():
            return
        if self._turn is not None:
            self._turn.cancel()
        self._record_session(
            SessionClosed(
                now_us(),
                self.stamp.session,
                self.stamp.agent,
                reason,
                sqlstate,
                self._client.bytes_read,
                self._client.bytes_written,
                self.core.executions,
                mono_us() - self._opened_mono_us,
            )
        )
        self.finished.set_result(None)

    def _record_session(self, event: SessionKilled | SessionClosed) -> None:
        with contextlib.suppress(LogUnavailable):  # its loss is seen: a session without an end, until the gateway's next start
            self._recorder.record("sessions", self.stamp.agent, event)
            self.end_recorded = isinstance(event, SessionClosed)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # What we did not expect ends the session, and is seen.
            asyncio.get_running_loop().call_exception_handler({"message": "a session failed", "exception": error})
            self._client.abort()
            self.upstream.channel.abort()
            self._over("error", "58000")


def _with_grants(stamp: Stamp, authority: Authority) -> Stamp:
    return msgspec.structs.replace(
        stamp,
        grants=tuple(grant.id for grant in authority.grants),
        approvers=tuple(grant.approver for grant in authority.grants),
    )
