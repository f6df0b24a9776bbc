"""Runs the inspection steps beside the projector: each reads the log for itself, and its findings are recorded.

A step's state and its place in the log stand together in one file, `inspections/<name>.state` beside the tables. It is written only
once all that the step gave out before is on disk: after a crash some effects are given out again, and known by their ids. A file
that is broken, of another version or of another log is passed over, and the state is made anew from the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from analytics.checkpoints import Checkpoint, read, write
from analytics.inspection import Effect, Inspection, Respond
from analytics.merged import Merged
from analytics.settings import AnalyticsSettings
from ingest.clock import now_us
from ingest.events import BackendEndOrdered, FindingRaised, FindingRecurred, SessionJudged
from ingest.follow import Follower
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition
from ingest.recorder import Recorder

FRAMES_AT_ONCE: Final = 100  # before other tasks have their turn
RETRY_SECONDS: Final = 0.25  # after the log was not available
BROKEN_RETRY_SECONDS: Final = 5.0  # after it was corrupt: a person must act
FOLDER: Final = "inspections"

_log: Final = logging.getLogger(__name__)

_Recorded: TypeAlias = FindingRaised | FindingRecurred | SessionJudged | BackendEndOrdered

Act: TypeAlias = Callable[[Respond], Awaitable[bool]]
"""Carry this command out as an operator's, once. False: not now; it is asked for again."""


@dataclass(frozen=True, slots=True)
class InspectionStatus:
    name: str
    records: int  # in the log and not seen by the step
    current: bool  # it has seen all that was in the log when the API started
    recorded: int  # effects, since then
    error: str  # why it stands still; "" when all is well
    figures: Mapping[str, int] = field(default_factory=dict)  # its own, see Inspection.status


class Inspector:
    """One a process, on the recorder's loop; the only writer of findings that steps make. It closes neither log nor recorder."""

    def __init__(
        self,
        log: EventLog,
        recorder: Recorder,
        steps: Sequence[Callable[[], Inspection]],
        act: Act,
        settings: AnalyticsSettings,
        now_us: Callable[[], int] = now_us,
    ) -> None:
        """`steps` make each an Inspection that knows nothing yet."""
        self._log = log
        self._recorder = recorder
        self._act = act
        self._settings = settings
        self._now_us = now_us
        self._known = _Known(settings.inspection_ids_max)
        self._unreadable = ""
        self._progress = asyncio.Condition()
        self._running = [_Running(begin, begin().name) for begin in steps]

    async def run(self) -> None:
        """Until cancelled. What a step or the log does wrong is told by `status`; only our own mistakes are raised."""
        await self._read_known()
        async with asyncio.TaskGroup() as tasks:
            for running in self._running:
                tasks.create_task(self._inspect(running), name=f"inspect {running.name}")
        await asyncio.Event().wait()  # steps that all stand still are told of in health; the API goes on

    def status(self) -> Sequence[InspectionStatus]:
        return [
            InspectionStatus(
                running.name,
                running.merged.behind() if running.merged is not None else 0,
                running.current,
                running.recorded,
                running.error or self._unreadable or (running.merged.unavailable if running.merged is not None else ""),
                running.step.status() if running.step is not None else {},
            )
            for running in self._running
        ]

    async def caught_up(self) -> None:
        """Return once every step that still runs has seen what the log holds, what came of that on disk and seen too."""

        def reached() -> bool:
            return all(
                running.error or (running.merged is not None and running.settled and not running.merged.behind())
                for running in self._running
            )

        while True:
            async with self._progress:
                await self._progress.wait_for(reached)
            await self._recorder.recorded(max((running.ticket for running in self._running), default=0))
            if reached():
                return

    # -- what is recorded already ----------------------------------------------------------------------------------------------

    async def _read_known(self) -> None:
        while True:
            try:
                ends = {place: end for topic in ("findings", "commands") for place, end in (await self._log.offsets(topic)).items()}
                follower = Follower(self._log, ("findings", "commands"), {}, on_gap=lambda _: None)
                try:
                    while any(follower.offsets.get(place, 0) < end for place, end in ends.items()):
                        for _, frame in await follower.poll(timeout_seconds=0.2):
                            for _, event in frame.events:
                                if isinstance(event, _Recorded):
                                    self._known.add(_id(event))
                    self._unreadable = ""
                    return
                finally:
                    follower.close()
            except (LogUnavailable, LogCorrupt) as error:
                self._unreadable = f"the log cannot be read: {error}"
                await asyncio.sleep(RETRY_SECONDS if isinstance(error, LogUnavailable) else BROKEN_RETRY_SECONDS)

    # -- one step --------------------------------------------------------------------------------------------------------------

    async def _inspect(self, running: _Running) -> None:
        step, merged = await self._begin(running)
        running.step, running.merged = step, merged
        ends = {place: end for topic in step.topics for place, end in self._log.end_offsets(topic).items()}
        interval_us = self._settings.inspection_tick_ms * 1000
        ticked_us = clock_us = 0
        kept_at = time.monotonic()
        try:
            while True:
                frames = await merged.take(FRAMES_AT_ONCE, interval_us / 1_000_000)
                running.settled = False
                if not running.current:
                    running.current = all(merged.offsets.get(place, 0) >= end for place, end in ends.items())
                for record, frame in frames:
                    clock_us = max(clock_us, self._now_us() if running.current else record.at_us)
                    await self._carry_out(running, step.step(record, frame, clock_us))
                if running.current:
                    clock_us = max(clock_us, self._now_us())
                if clock_us - ticked_us >= interval_us:
                    ticked_us = clock_us
                    await self._carry_out(running, step.tick(clock_us))
                running.settled = True
                async with self._progress:
                    self._progress.notify_all()
                if time.monotonic() - kept_at >= self._settings.inspection_checkpoint_seconds:
                    await self._keep(running, step, merged)
                    kept_at = time.monotonic()
                await asyncio.sleep(0)
        except LogCorrupt as error:
            running.error = f"the log is damaged: {error}"
            _log.critical("inspection %s stopped: %s", running.name, error)
        except asyncio.CancelledError:
            if running.settled and self._recorder.durable >= running.ticket:
                write(self._path(running), self._checkpoint(step, merged))
            raise
        except Exception as error:  # a step's own mistake, of whatever kind, must hurt nothing but this step
            running.error = f"it made a mistake: {error!r}; what it finds is no longer recorded until pgwarden api is started anew"
            _log.critical("inspection %s stopped", running.name, exc_info=error)
        finally:
            await merged.close()
            async with self._progress:
                self._progress.notify_all()

    async def _begin(self, running: _Running) -> tuple[Inspection, Merged]:
        step = running.begin()
        found = await asyncio.to_thread(read, self._path(running))
        if isinstance(found, Checkpoint):
            problem = ""
            if found.version != step.version:
                problem = f"version {found.version}, and this program has {step.version}"
            elif self._beyond(step, found):
                problem = "it is of another log"
            else:
                try:
                    step.restore(found.state)
                    return step, self._merged(step, found)
                except ValueError as error:
                    problem = str(error)
            step = running.begin()
            found = problem
        if found:
            _log.warning("inspection %s is made anew from the log: %s", running.name, found)
        return step, self._merged(step, Checkpoint(step.version, {}, {}, b""))

    def _beyond(self, step: Inspection, kept: Checkpoint) -> bool:
        ends = {place: end for topic in step.topics for place, end in self._log.end_offsets(topic).items()}
        return any(offset > ends.get(place, 0) for place, offset in kept.offsets.items())

    def _merged(self, step: Inspection, kept: Checkpoint) -> Merged:
        return Merged(self._log, step.topics, kept.offsets, kept.seen, self._settings.inspection_frames_ahead_max)

    def _path(self, running: _Running) -> str:
        return str(self._settings.directory / FOLDER / f"{running.name}.state")

    def _checkpoint(self, step: Inspection, merged: Merged) -> Checkpoint:
        return Checkpoint(step.version, dict(merged.offsets), dict(merged.seen), step.encode())

    async def _keep(self, running: _Running, step: Inspection, merged: Merged) -> None:
        if merged.offsets == running.kept:
            return
        kept = self._checkpoint(step, merged)
        try:
            await self._recorder.recorded(running.ticket)
            await asyncio.to_thread(write, self._path(running), kept)
        except (OSError, LogUnavailable) as error:
            # The older one stands: more will be read again.
            _log.error("the state of inspection %s was not kept: %s", running.name, error)
            return
        running.kept = kept.offsets

    # -- effects ---------------------------------------------------------------------------------------------------------------

    async def _carry_out(self, running: _Running, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case FindingRaised() | FindingRecurred():
                    await self._record(running, "findings", effect.agent, effect)
                case SessionJudged():
                    await self._record(running, "findings", f"{effect.server}/{effect.session_id}", effect)
                case BackendEndOrdered():
                    await self._record(running, "commands", effect.session_id, effect)
                case Respond():
                    await self._respond(effect)
                    running.recorded += 1
                case _:
                    assert_never(effect)

    async def _respond(self, response: Respond) -> None:
        while True:
            if await self._act(response):
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _record(self, running: _Running, topic: Literal["findings", "commands"], key: str, event: _Recorded) -> None:
        name = _id(event)
        if name in self._known:
            return
        while True:
            try:
                running.ticket = self._recorder.record(topic, key, event)
                break
            except LogUnavailable:
                await asyncio.sleep(RETRY_SECONDS)  # the step waits: it reads no further than what can be recorded
        self._known.add(name)
        running.recorded += 1


class _Running:
    def __init__(self, begin: Callable[[], Inspection], name: str) -> None:
        self.begin = begin
        self.name = name
        self.step: Inspection | None = None
        self.merged: Merged | None = None
        self.current = False
        self.settled = False  # all that was handed out has been stepped over, and its effects are with the recorder
        self.error = ""
        self.recorded = 0
        self.ticket = 0  # of the newest effect
        self.kept: dict[Partition, int] = {}  # the offsets of the newest checkpoint


class _Known:
    """Names of effects that are recorded, the newest: what is older lies behind every checkpoint."""

    def __init__(self, names_max: int) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._names_max = names_max

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        self._names[name] = None
        if len(self._names) > self._names_max:
            self._names.popitem(last=False)


def _id(event: _Recorded) -> str:
    match event:
        case FindingRaised():
            return event.finding
        case FindingRecurred():
            return f"{event.finding} {event.times}"
        case SessionJudged():
            return f"{event.server}/{event.session_id} {event.verdict}"
        case BackendEndOrdered():
            return event.order
        case _:
            assert_never(event)
