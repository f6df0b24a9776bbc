"""What an earlier boot of this gateway left behind when it crashed: its sessions' backends end, and what is known is recorded.

Appended, never edited: StatementFinished(outcome="unknown") for each execution without an end; then, once its backend is proven
gone, OutcomeResolved where gateway/outcomes.py is certain, SessionKilled where a revocation was due, and SessionClosed. Whatever of
it an earlier attempt recorded is read first and not recorded again, so that a crash in the middle of a recovery is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from gateway.control import Backend
from gateway.kill import Ender
from gateway.outcomes import SessionLedger
from gateway.settings import GatewaySettings
from gateway.upstream import Target
from identity.registry import Registry, Standing
from ingest.clock import now_us
from ingest.events import (
    Frame,
    OutcomeResolved,
    SessionClosed,
    SessionKilled,
    SessionOpened,
    StatementEvent,
    StatementFinished,
)
from ingest.frames import FrameInvalid, decode
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition
from ingest.recorder import Recorder

_log = logging.getLogger(__name__)

CLOSED: Final = "gateway crashed"
_TOPICS: Final = ("sessions", "statements")
_POLL_RECORDS: Final = 500

Offsets: TypeAlias = dict[Partition, int]


class _Mark(msgspec.Struct, frozen=True):
    topic: str
    partition: int
    offset: int
    before: str  # SHA-256 of the record before it, "" where it is the first


class _Bookmark(msgspec.Struct, frozen=True):
    gateway: str
    marks: tuple[_Mark, ...]


@dataclass(slots=True)
class Abandoned:
    """A session of an earlier boot that has no SessionClosed."""

    opened: SessionOpened
    ledger: SessionLedger = field(default_factory=SessionLedger)
    killed: bool = False  # SessionKilled is recorded

    @property
    def session(self) -> str:
        return self.opened.stamp.session


class Aftermath:
    """`read`, `begin`, then `keep` as long as the gateway runs, with `opening` and `over` around each session of its own."""

    def __init__(
        self,
        log: EventLog,
        recorder: Recorder,
        registry: Registry,
        enders: Mapping[str, Ender],
        targets: Mapping[str, Target],
        settings: GatewaySettings,
        boot: int,
        bookmark: Path,
    ) -> None:
        self._log = log
        self._recorder = recorder
        self._registry = registry
        self._enders = enders
        self._targets = targets
        self._settings = settings
        self._boot = boot
        self._bookmark = bookmark
        self._damaged = False  # the record of an earlier boot cannot be read to its end
        self._written: Offsets = {}
        # Where reading must begin so that each session that has no recorded end is read from its opening on.
        self._pins: dict[str, Offsets] = {}
        self._leaving: list[tuple[int, str]] = []  # the ticket of a session's end, and the session
        self.abandoned: dict[str, Abandoned] = {}

    # -- reading -----------------------------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Find what was left behind.

        Raises:
            LogUnavailable: The log cannot be read now.
        """
        began = time.monotonic()
        offsets = await self._start()
        found: dict[str, Abandoned] = {}
        frames = 0
        async for frame in self._frames("sessions", offsets):
            frames += 1
            for _, event in frame.events:
                match event:
                    case SessionOpened() if frame.boot < self._boot:
                        found[event.stamp.session] = Abandoned(event)
                    case SessionKilled() if event.session in found:
                        found[event.session].killed = True
                    case SessionClosed():
                        found.pop(event.session, None)
                    case _:
                        pass
        if found:
            async for frame in self._frames("statements", offsets):
                frames += 1
                of = [found.get(stamp.session) for stamp in frame.stamps]
                if not any(of):
                    continue
                for index, event in frame.events:
                    left = of[index] if index >= 0 else None
                    if left is not None and isinstance(event, StatementEvent):
                        left.ledger.apply(event)
        if self._damaged:
            for left in found.values():
                left.ledger.lose()
        self.abandoned = found
        self._pins = {session: dict(offsets) for session in found}
        if found:
            _log.warning(
                "%d sessions of an earlier boot have no end: read %d frames in %.2f s", len(found), frames, time.monotonic() - began
            )

    async def _frames(self, topic: str, offsets: Offsets) -> AsyncIterator[Frame]:
        """This gateway's frames, each once. A damaged log is read as far as it goes: what is not known is not claimed."""
        ends = self._log.end_offsets(topic)
        begins = self._log.begin_offsets(topic)
        at = {place: max(offsets.get(place, 0), begins[place]) for place in ends}
        # (boot, partition) -> seq. Not Follower's check: with Kafka `step` is another log's.
        newest: dict[tuple[int, int], int] = {}
        subscription = self._log.assign(dict(at))
        try:
            while any(at[place] < end for place, end in ends.items()):
                for record in await subscription.poll(_POLL_RECORDS, 1.0):
                    place = (record.topic, record.partition)
                    at[place] = record.offset + 1
                    if record.offset >= ends[place]:
                        continue
                    frame = decode(record.value)
                    if frame.writer != self._settings.gateway:
                        continue
                    last = newest.get((frame.boot, record.partition))
                    if last is not None and frame.seq <= last:
                        continue
                    if last is not None and len(ends) == 1 and frame.seq != last + 1:
                        self._damage(f"{topic}: frames {last + 1} to {frame.seq - 1} of boot {frame.boot} are missing")
                    newest[frame.boot, record.partition] = frame.seq
                    yield frame
                await asyncio.sleep(0)
        except (FrameInvalid, LogCorrupt) as error:
            self._damage(f"{topic}: {error}")
        finally:
            subscription.close()

    def _damage(self, reason: str) -> None:
        self._damaged = True
        _log.error("the record of an earlier boot is not whole, so nothing is claimed of what it left open: %s", reason)

    async def _start(self) -> Offsets:
        """Where to begin: as the bookmark says, if the log still is the one that it was made for; else at the beginning."""
        nothing: Offsets = {}
        try:
            bookmark = msgspec.json.decode(self._bookmark.read_bytes(), type=_Bookmark)
        except (OSError, msgspec.DecodeError):
            return nothing
        marks = {(mark.topic, mark.partition): mark for mark in bookmark.marks}
        wanted = {place for topic in _TOPICS for place in self._log.end_offsets(topic)}
        if bookmark.gateway != self._settings.gateway or marks.keys() != wanted:
            return nothing
        for place, mark in marks.items():
            if mark.offset < 0 or mark.before != await self._before(place, mark.offset):
                _log.warning("the bookmark %s does not fit this log, which is read from its beginning", self._bookmark)
                return nothing
        return {place: mark.offset for place, mark in marks.items()}

    async def _before(self, place: Partition, offset: int) -> str | None:
        """SHA-256 of the record before this offset, "" where none is kept, None where the log is shorter or cannot be read."""
        if offset > self._log.end_offsets(place[0])[place]:
            return None
        if offset <= self._log.begin_offsets(place[0])[place]:
            return ""
        subscription = self._log.assign({place: offset - 1})
        try:
            for record in await subscription.poll(1, 5.0):
                if record.offset == offset - 1:
                    return hashlib.sha256(record.value).hexdigest()
        except (LogCorrupt, LogUnavailable):
            pass
        finally:
            subscription.close()
        return None

    # -- ending ------------------------------------------------------------------------------------------------------------------

    async def begin(self, proven: Callable[[str], None]) -> set[asyncio.Task[None]]:
        """Record what is unknown, and end the backends, all at once. `proven(session)` is called as each is over and recorded.

        Return after `kill_seconds_max` at the latest, with what goes on: a database that does not answer is asked until it does.

        Raises:
            LogUnavailable: Nothing can be recorded.
        """
        ticket = 0
        for left in self.abandoned.values():
            ticket = self._unknown(left) or ticket
        await self._recorder.recorded(ticket)
        work = {asyncio.create_task(self._finish(left, proven)) for left in list(self.abandoned.values())}
        if not work:
            return set()
        _, pending = await asyncio.wait(work, timeout=self._settings.kill_seconds_max)
        if pending:
            waiting = Counter(left.opened.stamp.connection for left in self.abandoned.values())
            _log.error("backends of an earlier boot cannot be proven gone yet: %s", dict(waiting))
        return pending

    def _unknown(self, left: Abandoned) -> int:
        ticket = 0
        for execution in left.ledger.left(left.opened.durability):
            if not execution.finished:
                event = StatementFinished(execution.execution, "unknown", "", "", 0, 0, 0, 0)
                ticket = self._record(left, event)
        return ticket

    def _record(self, left: Abandoned, event: StatementFinished | OutcomeResolved) -> int:
        """Raises LogUnavailable; then the ledger does not know of it either, and another attempt records it."""
        stamp = left.opened.stamp
        ticket = self._recorder.record("statements", stamp.agent, event, stamp)
        left.ledger.apply(event)
        return ticket

    async def _finish(self, left: Abandoned, proven: Callable[[str], None]) -> None:
        stamp = left.opened.stamp
        target = self._targets.get(stamp.connection)
        gone_us = 0
        # A role sees when backends began that are its own: of another's it would find none, and that proves nothing.
        if target is not None and (target.database, target.role) == (stamp.database, stamp.role):
            ender = self._enders[stamp.connection]
            backend = Backend(stamp.backend_pid, stamp.backend_start_us)
            gone_us = await ender.end(backend)
            while not gone_us:
                await asyncio.sleep(self._settings.prove_again_seconds)
                gone_us = await ender.end(backend)
        else:
            _log.error("session %s was left open on connection %s, which is another one now", stamp.session, stamp.connection)
        while True:
            try:
                await self._close(left, gone_us)
                break
            except LogUnavailable:
                await asyncio.sleep(self._settings.prove_again_seconds)
        del self.abandoned[stamp.session]
        proven(stamp.session)

    async def _close(self, left: Abandoned, gone_us: int) -> None:
        stamp = left.opened.stamp
        ticket = self._unknown(left)
        if gone_us:
            for execution in left.ledger.left(left.opened.durability):
                if execution.resolution is not None:
                    event = OutcomeResolved(now_us(), execution.execution, execution.resolution, execution.evidence)
                    ticket = self._record(left, event)
        # First on disk what is certain of its executions, then its end: a session that has one is not looked at again.
        await self._recorder.recorded(ticket)
        at_us = now_us()
        ending = self._registry.ending(Standing.of(left.opened), at_us)
        if ending is not None and not left.killed:
            killed = SessionKilled(
                at_us,
                stamp.session,
                stamp.agent,
                ending.cause,
                ending.at_us,
                at_us,
                at_us,  # its client's connection ended with the gateway, so at the latest now
                gone_us,
                stamp.backend_pid,
                ending.reason,
            )
            self._recorder.record("sessions", stamp.agent, killed)
            left.killed = True
        lasted_us = max(0, at_us - left.opened.at_us)
        closed = SessionClosed(at_us, stamp.session, stamp.agent, CLOSED, "", 0, 0, left.ledger.executions, lasted_us)
        self._leaving.append((self._recorder.record("sessions", stamp.agent, closed), stamp.session))

    # -- where the next boot begins to read ----------------------------------------------------------------------------------------

    def opening(self, session: str) -> None:
        """To be called before anything of this session is recorded."""
        self._pins[session] = {place: end for topic in _TOPICS for place, end in self._log.end_offsets(topic).items()}

    def over(self, session: str, *, recorded: bool) -> None:
        """`recorded`: its SessionClosed was taken. One whose end could not be recorded is found again at the next start."""
        if recorded:
            state = self._recorder.state()
            self._leaving.append((self._recorder.durable + state.pending_events, session))

    def needed(self) -> Offsets:
        """What stands before these offsets belongs to sessions whose end is on disk."""
        durable = self._recorder.durable
        for ticket, session in self._leaving:
            if ticket <= durable:
                self._pins.pop(session, None)
        self._leaving = [(ticket, session) for ticket, session in self._leaving if ticket > durable]
        least: Offsets = {place: end for topic in _TOPICS for place, end in self._log.end_offsets(topic).items()}
        for pinned in self._pins.values():
            for place in least:
                least[place] = min(least[place], pinned.get(place, 0))
        return least

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await self.mark()
            await asyncio.sleep(self._settings.bookmark_seconds)

    async def mark(self) -> None:
        """Write the bookmark. Without it, or with one that does not fit, the next start takes longer and knows the same."""
        offsets = self.needed()
        if offsets == self._written:
            return
        marks: list[_Mark] = []
        for (topic, partition), offset in offsets.items():
            before = await self._before((topic, partition), offset)
            if before is None:
                return
            marks.append(_Mark(topic, partition, offset, before))
        with contextlib.suppress(OSError):
            self._bookmark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self._bookmark.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(_Bookmark(self._settings.gateway, tuple(marks))))
            os.replace(new, self._bookmark)
            self._written = offsets
