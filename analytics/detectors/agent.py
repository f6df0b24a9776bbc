"""What is known of one agent, and of the role that it plays: the state that the detectors share. Bounded, and encoded whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from analytics.detectors.statistics import Habit, Level

MINUTE_US: Final = 60_000_000
WINDOW_US: Final = 10 * MINUTE_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Settings:
    warm_up_days: int = 3  # on which an agent was active, before its own history judges it
    hours_days: int = 5  # the same, for unusual hours
    peers_min: int = 2  # of its role who do the same make it nothing to tell
    names_max: int = 2_000  # tables, shapes: of one agent; a role holds four times as many
    forget_days: int = 90  # a name that was not used for so long is new again
    sessions_max: int = 64  # of one agent, the newest
    statements_max: int = 500  # texts of one session, the newest
    running_max: int = 500  # executions of one session, the newest
    shapes_a_minute_max: int = 500
    targets_max: int = 64
    agents_max: int = 20_000
    roles_max: int = 2_000
    cooldown_seconds: int = 3_600  # the same within so long of the last time is the same finding
    finding_seconds_max: int = 86_400  # but no longer than this
    unused_grant_days: int = 30


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """What a text is, its values left out."""

    fingerprint: str
    operation: str
    relations: tuple[str, ...]
    unbounded: bool


UNKNOWN: Final = Shape("", "", (), False)


class Session(msgspec.Struct, array_like=True):
    host: str
    task: str
    invocation: str
    statements: dict[int, Shape] = msgspec.field(default_factory=dict)
    running: dict[int, Shape] = msgspec.field(default_factory=dict)
    fresh: dict[int, None] = msgspec.field(default_factory=dict)  # texts that were defined and never executed
    over: bool = False  # its last events may still come
    strange: int = 0  # kinds of statements that only other tasks had sent


class Window(msgspec.Struct, array_like=True):
    """Ten minutes of one agent."""

    begin_us: int = 0
    offset: str = ""  # where its first record stands in the log
    statements: int = 0
    rows: int = 0
    bytes: int = 0
    errors: int = 0


class Invocation(msgspec.Struct, array_like=True):
    live: int = 0  # sessions
    over_us: int = 0  # when the last of them ended
    reused: int = 0  # how often it came back after a pause


class Agent(msgspec.Struct, array_like=True):
    role: str = ""
    first_us: int = 0
    newest_us: int = 0
    days: int = 0  # on which it was active
    day: int = 0  # the newest
    minute_us: int = 0  # its begin
    in_minute: dict[str, int] = msgspec.field(default_factory=dict)  # executions by fingerprint
    failed: dict[str, int] = msgspec.field(default_factory=dict)  # in this minute
    window: Window = msgspec.field(default_factory=Window)
    sessions: dict[str, Session] = msgspec.field(default_factory=dict)
    tables: Habit = msgspec.field(default_factory=Habit)
    shapes: Habit = msgspec.field(default_factory=Habit)
    new_shapes: int = 0  # in this hour
    new_tables: int = 0  # today
    refused: int = 0  # in this hour, by the gateway or the server, for want of a right or of the thing
    targets: dict[str, None] = msgspec.field(default_factory=dict)  # of those
    hour: int = 0  # since 1970
    operations: dict[str, int] = msgspec.field(default_factory=dict)
    unbounded: dict[str, int] = msgspec.field(default_factory=dict)
    repeats: Level = msgspec.field(default_factory=Level)  # of the most frequent shape, a minute
    failures: Level = msgspec.field(default_factory=Level)  # the same of failing ones
    rate: Level = msgspec.field(default_factory=Level)  # statements a window
    rows: Level = msgspec.field(default_factory=Level)  # log1p of rows a window
    rows_peak: float = 0.0  # a window, forgotten slowly
    read_peak: float = 0.0  # rows of one execution, forgotten slowly
    errors: Level = msgspec.field(default_factory=Level)  # a window
    refusals: Level = msgspec.field(default_factory=Level)  # an hour
    hours: list[float] = msgspec.field(
        default_factory=lambda: [0.0] * 48
    )  # working days, then weekends: days on which it worked then
    weekdays: list[int] = msgspec.field(default_factory=lambda: [0, 0])  # days of either kind on which it worked
    new_hours: float = 0.0  # hours that were new to it, forgotten over a week
    new_hours_day: int = 0
    hosts: Habit = msgspec.field(default_factory=Habit)
    invocations: dict[str, Invocation] = msgspec.field(default_factory=dict)
    tasks: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # tables by task, each with the newest day
    task_days: dict[str, int] = msgspec.field(default_factory=dict)  # days on which a task was worked on
    task_day: dict[str, int] = msgspec.field(default_factory=dict)  # the newest of them
    task_new: dict[str, int] = msgspec.field(default_factory=dict)  # the day on which a task took up a table last
    daily: list[tuple[float, float]] = msgspec.field(default_factory=list)  # log1p of statements and of rows, by active day
    today_statements: int = 0
    today_rows: int = 0
    rules: dict[str, int] = msgspec.field(default_factory=dict)  # that let statements through, each with the newest day
    loop_us: int = 0  # when a loop was last seen
    task_shapes: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # kinds of statements by task, each with its day
    task_shape_new: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # the last two days on which it took one up

    def ripe(self, settings: Settings) -> bool:
        return self.days > settings.warm_up_days


class Role(msgspec.Struct, array_like=True):
    """What the agents of one owner do on one connection: how many of them use a name. A new agent is held against it."""

    tables: dict[str, int] = msgspec.field(default_factory=dict)
    shapes: dict[str, int] = msgspec.field(default_factory=dict)
    operations: dict[str, int] = msgspec.field(default_factory=dict)
    rate: Level = msgspec.field(default_factory=Level)
    agents: int = 0  # ripe ones

    def knows(self, names: dict[str, int], name: str, settings: Settings) -> bool:
        return names.get(name, 0) >= settings.peers_min


def count(names: dict[str, int], name: str, names_max: int) -> None:
    if name in names or len(names) < names_max:
        names[name] = names.get(name, 0) + 1
