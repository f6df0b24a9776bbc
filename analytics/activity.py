"""Frames of one agent's statements in; out come counts per minute: what the agent did, how often it was refused, what it touched.

One state an agent. All of an agent's frames stand in one partition, in order, so the counts are the same in whatever process they
are folded, and however the agents are spread over partitions. A frame that comes twice counts once: the state holds its name.

Time is the agent's own: the newest time among its events. A minute is over once an event is `lateness_us` past its end, and is then
given out, whole, under its `id`. What comes later still counts in the oldest minute that is open: nothing is left out. The newest
minute stays open until the agent does something else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from ingest.events import (
    Frame,
    OutcomeResolved,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementParameters,
    StatementStarted,
)

MINUTE_US: Final = 60_000_000
OTHER: Final = "other"  # what is beyond a limit is counted under this name


@dataclass(frozen=True, slots=True)
class ActivitySettings:
    lateness_us: int = 60_000_000  # two gateways' relays may be this far apart before a minute's counts go to its successor
    relations_max: int = 200  # names a minute; beyond it `relations_full`
    sqlstates_max: int = 32  # a minute; PostgreSQL has some 260, a working agent meets two or three
    running_max: int = 1_000  # executions begun in an open minute and not finished; the rest count where they finish
    writers_max: int = 64  # gateways that record this agent; beyond it the longest silent is forgotten, and a repetition counts
    closed_max: int = 10  # minutes kept in the state after they were given out


class Window(msgspec.Struct, frozen=True, array_like=True):
    agent: str
    minute_us: int  # its begin
    executions: int = 0  # allowed and begun
    denied: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=dict)  # by SQLSTATE, of executions that ended in this window's reach
    rows: int = 0
    bytes: int = 0  # both ways
    relations: tuple[str, ...] = ()  # of the texts defined in this minute, sorted; a text is defined once a session
    relations_full: bool = False  # there were more
    first_us: int = 0
    last_us: int = 0

    @property
    def id(self) -> str:
        return hashlib.sha256(f"Window\0{self.agent}\0{self.minute_us}".encode()).hexdigest()[:32]


class Activity(msgspec.Struct, frozen=True, array_like=True):
    """All that is known of one agent. Encoded, it is a value of the worker's table: new fields stand at the end, with a default."""

    newest_us: int = 0
    seen: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # writer -> (boot, seq), the longest silent first
    open: tuple[Window, ...] = ()  # oldest first
    running: dict[str, int] = msgspec.field(default_factory=dict)  # "session/execution" -> its minute, where that is open
    closed: tuple[Window, ...] = ()  # given out, newest last
    late: int = 0  # events whose own minute was over
    orphans: int = 0  # ends of executions before any beginning: what stood before is no longer in the log


Effects: TypeAlias = tuple[Window, ...]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Activity)


def encode(state: Activity) -> bytes:
    return _encoder.encode(state)


def decode(value: bytes | None) -> Activity:
    """None: nothing is known of this agent yet. What another version kept and this one cannot read is not known either."""
    try:
        return _decoder.decode(value) if value is not None else Activity()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Activity()


class _Counts:
    """A window while a frame is counted."""

    __slots__ = ("bytes", "denied", "errors", "executions", "first_us", "full", "last_us", "relations", "rows")

    def __init__(self, window: Window) -> None:
        self.executions, self.denied = window.executions, window.denied
        self.errors, self.relations = dict(window.errors), set(window.relations)
        self.rows, self.bytes, self.full = window.rows, window.bytes, window.relations_full
        self.first_us, self.last_us = window.first_us, window.last_us

    def at(self, at_us: int) -> None:
        self.first_us = min(self.first_us or at_us, at_us)
        self.last_us = max(self.last_us, at_us)

    def window(self, agent: str, minute_us: int) -> Window:
        return Window(
            agent,
            minute_us,
            self.executions,
            self.denied,
            self.errors,
            self.rows,
            self.bytes,
            tuple(sorted(self.relations)),
            self.full,
            self.first_us,
            self.last_us,
        )


def step(state: Activity, frame: Frame, agent: str, settings: ActivitySettings) -> tuple[Activity, Effects]:
    """Count one frame of this agent. Returns the minutes that are over by it."""
    name = (frame.boot, frame.seq)
    if name <= state.seen.get(frame.writer, (-1, -1)):
        return state, ()
    seen = {writer: newest for writer, newest in state.seen.items() if writer != frame.writer}
    while len(seen) >= settings.writers_max:
        del seen[next(iter(seen))]
    seen[frame.writer] = name
    counting = _Frame(state, agent, settings)
    for place, event in frame.events:
        session = frame.stamps[place].session if place >= 0 else ""
        match event:
            case StatementStarted():
                counts = counting.at(event.at_us)
                counts.executions += 1
                if len(counting.running) < settings.running_max:
                    counting.running[f"{session}/{event.execution}"] = counting.minute_us
            case StatementDenied():
                counting.at(event.at_us).denied += 1
            case StatementFinished():
                counting.finished(f"{session}/{event.execution}", event)
            case StatementDefined():
                counting.defined(event.relations)
            case StatementParameters() | OutcomeResolved():
                pass  # neither says that the agent did anything
            case _:
                pass  # of another topic
    return counting.state(seen)


class _Frame:
    def __init__(self, state: Activity, agent: str, settings: ActivitySettings) -> None:
        self._agent = agent
        self._settings = settings
        self._before = state
        self._newest_us = state.newest_us
        self._counts = {window.minute_us: _Counts(window) for window in state.open}
        self._oldest_us = _oldest_us(state.newest_us, settings)
        self._closed: list[Window] = []
        self._late = state.late
        self._orphans = state.orphans
        self._named: set[str] = set()  # of texts that were defined before any event that has a time
        self.running = dict(state.running)
        self.minute_us = max(self._counts, default=0)  # of the event that was counted last, or the newest

    def at(self, at_us: int) -> _Counts:
        if at_us > self._newest_us:
            self._newest_us = at_us
            self._close()
        minute_us = at_us - at_us % MINUTE_US
        if minute_us < self._oldest_us:
            self._late += 1
            minute_us = self._oldest_us
        counts = self._counts.get(minute_us)
        if counts is None:
            counts = self._counts[minute_us] = _Counts(Window(self._agent, minute_us))
        self.minute_us = minute_us
        counts.at(at_us)
        if self._named:
            named, self._named = self._named, set()
            self._name(counts, named)
        return counts

    def finished(self, execution: str, event: StatementFinished) -> None:
        minute_us = self.running.pop(execution, -1)
        if not self._counts:
            self._orphans += 1
            return
        counts = self._counts.get(minute_us) or self._counts[max(self._counts)]
        counts.rows += event.rows
        counts.bytes += event.bytes_in + event.bytes_out
        if event.outcome == "error":
            known = event.sqlstate in counts.errors or len(counts.errors) < self._settings.sqlstates_max
            name = event.sqlstate if known else OTHER
            counts.errors[name] = counts.errors.get(name, 0) + 1

    def defined(self, relations: tuple[str, ...]) -> None:
        # A text has no time of its own: it is defined just before it is begun or denied, and belongs to that minute.
        if len(self._named) < self._settings.relations_max:
            self._named.update(relations)

    def state(self, seen: dict[str, tuple[int, int]]) -> tuple[Activity, Effects]:
        if self._named and self._counts:
            self._name(self._counts[max(self._counts)], self._named)
        closed = tuple(self._closed)
        state = Activity(
            self._newest_us,
            seen,
            tuple(self._counts[minute_us].window(self._agent, minute_us) for minute_us in sorted(self._counts)),
            self.running,
            (self._before.closed + closed)[-self._settings.closed_max :] if closed else self._before.closed,
            self._late,
            self._orphans,
        )
        return state, closed

    def _name(self, counts: _Counts, names: set[str]) -> None:
        new = names - counts.relations
        room = self._settings.relations_max - len(counts.relations)
        counts.relations.update(sorted(new)[:room])
        counts.full = counts.full or len(new) > room

    def _close(self) -> None:
        """The minutes that nothing can belong to any more. What comes for them counts in the oldest that is left."""
        first = _oldest_us(self._newest_us, self._settings)
        if first <= self._oldest_us:
            return
        for minute_us in sorted(self._counts):
            if minute_us < first:
                self._closed.append(self._counts.pop(minute_us).window(self._agent, minute_us))
        if self._closed:
            self.running = {execution: minute_us for execution, minute_us in self.running.items() if minute_us >= first}
        self._oldest_us = first


def _oldest_us(newest_us: int, settings: ActivitySettings) -> int:
    """The oldest minute that can be open."""
    over = newest_us - settings.lateness_us
    return max(0, over - over % MINUTE_US)
