"""Each look at the record becomes one event; the same look again within a while is counted, and told when the while is over."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from identity.looks_settings import LooksSettings
from ingest.events import RecordRead

Through: TypeAlias = Literal["api", "dashboard", "command line", "metrics"]

THROUGH: Final[tuple[Through, ...]] = ("api", "dashboard", "command line", "metrics")


@dataclass(frozen=True, slots=True)
class Look:
    """What is the same when one operator looks at the same thing again."""

    operator: str
    question: str
    parameters: str  # JSON
    through: Through


@dataclass(slots=True)
class Window:
    """Since a look was recorded."""

    until_us: int
    ticket: int = 0  # of the event, once it was handed to the recorder
    times: int = 0  # again, since then
    rows: int = 0  # that those showed
    since_us: int = 0
    last_us: int = 0


class Looks:
    """Which looks are to be recorded now. No clock, no log: the caller has both."""

    def __init__(self, settings: LooksSettings) -> None:
        self._settings = settings
        self._windows: OrderedDict[Look, Window] = OrderedDict()  # by their begin

    def window(self, look: Look, rows: int, now_us: int) -> Window | None:
        """The window that this look falls into, in which it is counted now; None: it is to be recorded, by `opened`."""
        window = self._windows.get(look)
        if window is None or now_us >= window.until_us:
            return None
        window.times += 1
        window.rows += max(rows, 0)
        window.since_us = window.since_us or now_us
        window.last_us = now_us
        return window

    def opened(self, look: Look, ticket: int, now_us: int) -> tuple[RecordRead, ...]:
        """Remember a look whose event was taken. Returns the repeats that are to be told because of it."""
        told = self._told(look)
        self._windows[look] = Window(now_us + int(self._settings.repeat_seconds * 1e6), ticket)
        if len(self._windows) > self._settings.repeats_max:
            told += self._told(next(iter(self._windows)))
        return told

    def over(self, now_us: int) -> tuple[RecordRead, ...]:
        """The repeats of all windows that have ended."""
        told: tuple[RecordRead, ...] = ()
        for look in [look for look, window in self._windows.items() if now_us >= window.until_us]:
            told += self._told(look)
        return told

    def close(self) -> tuple[RecordRead, ...]:
        told: tuple[RecordRead, ...] = ()
        for look in list(self._windows):
            told += self._told(look)
        return told

    def _told(self, look: Look) -> tuple[RecordRead, ...]:
        window = self._windows.pop(look, None)
        if window is None or not window.times:
            return ()
        return (event(look, window.rows, window.last_us, window.times, window.since_us),)


def event(look: Look, rows: int, at_us: int, times: int = 1, since_us: int = 0) -> RecordRead:
    return RecordRead(at_us, look.operator, look.question, look.parameters, rows, look.through, times, since_us)


def bounded(parameters: str, bytes_max: int) -> str:
    """The same JSON, or {"cut": its beginning}."""
    if len(parameters.encode("utf-8", "replace")) <= bytes_max:
        return parameters
    return json.dumps({"cut": parameters[: bytes_max // 8]}, ensure_ascii=False)  # no character takes more than six bytes as JSON
