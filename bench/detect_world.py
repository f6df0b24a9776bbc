"""A made-up company of agents for two weeks, as frames of the log, with labelled incidents among its work.

The roles are modelled on TPC-H, TPC-DS, the star schema benchmark and a web shop: their tables, how often they are asked, how much
comes back, and when. No text of theirs is used: a statement is a fingerprint, an operation and its tables, all that detectors see.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ingest.events import (
    AgentRegistered,
    Frame,
    Outcome,
    SessionClosed,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementEvent,
    StatementFinished,
    StatementStarted,
)
from ingest.log import Record

START_US: Final = 1_794_787_200_000_000  # a Monday, 16 November 2026, 00:00 UTC
SECOND: Final = 1_000_000
HOUR: Final = 3_600 * SECOND
DAY: Final = 24 * HOUR

Hours: TypeAlias = Literal["office", "night", "always"]

_H: Final = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")
_DS: Final = [
    "call_center",
    "catalog_page",
    "catalog_returns",
    "catalog_sales",
    "customer_address",
    "customer_demographics",
    "date_dim",
    "household_demographics",
    "income_band",
    "inventory",
    "item",
    "promotion",
    "reason",
    "ship_mode",
    "store",
    "store_returns",
    "store_sales",
    "time_dim",
    "warehouse",
    "web_page",
    "web_returns",
    "web_sales",
    "web_site",
]
_SSB: Final = ("lineorder", "ssb_customer", "ssb_date", "ssb_part", "ssb_supplier")
_SHOP: Final = [
    "account",
    "address",
    "basket",
    "basket_item",
    "coupon",
    "invoice",
    "payment",
    "product",
    "product_image",
    "refund",
    "review",
    "shipment",
    "stock",
]


@dataclass(frozen=True, slots=True)
class RoleKind:
    name: str
    tables: Sequence[str]
    operations: Sequence[str]  # of its shapes, drawn from these
    shapes: tuple[int, int]  # of one agent
    an_hour: tuple[float, float]  # statements, of one agent
    rows: float  # median of a result
    hours: Hours
    adhoc: float  # of its statements are of a new shape
    tasks: int = 1


ROLES: Final = (
    RoleKind("reporting", _H, ("SELECT",), (8, 22), (4, 40), 60, "office", 0.0, 3),
    RoleKind("planner", _H[:5], ("SELECT",), (6, 14), (10, 60), 300, "night", 0.0),
    RoleKind("analyst", _DS, ("SELECT",), (15, 60), (3, 25), 100, "office", 0.12, 2),
    RoleKind("forecast", _DS[2:12], ("SELECT", "SELECT", "INSERT"), (8, 20), (20, 90), 500, "night", 0.0),
    RoleKind("board", _SSB, ("SELECT",), (5, 13), (30, 150), 20, "always", 0.0),
    RoleKind("clerk", _SHOP[:8], ("SELECT", "SELECT", "INSERT", "UPDATE"), (12, 30), (40, 200), 3, "always", 0.0, 2),
    RoleKind("support", _SHOP[4:], ("SELECT", "SELECT", "UPDATE"), (10, 25), (5, 30), 5, "office", 0.04),
    RoleKind("loader", _SHOP[2:9], ("INSERT", "UPDATE", "DELETE", "COPY"), (6, 12), (60, 150), 800, "night", 0.0),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """An incident, and the detectors any of which is right about it."""

    name: str
    detectors: frozenset[str]
    hours: float  # that it lasts


INCIDENTS: Final = (
    Kind("hot loop", frozenset({"hot loop", "rate"}), 0.5),
    Kind("failing loop", frozenset({"hot loop", "errors"}), 0.5),
    Kind("exfiltration", frozenset({"volume", "unbounded statement"}), 1.0),
    Kind("masquerade", frozenset({"new table", "new statements", "outside its task"}), 2.0),
    Kind("probing", frozenset({"probing"}), 0.5),
    Kind("error burst", frozenset({"errors"}), 0.3),
    Kind("unusual hours", frozenset({"unusual hours"}), 1.0),
    Kind("two places", frozenset({"two places"}), 1.0),
    Kind("destructive", frozenset({"unbounded statement", "new operation"}), 0.2),
    Kind("new operation", frozenset({"new operation"}), 0.5),
    Kind("outside its task", frozenset({"outside its task"}), 0.5),
    Kind("ended run", frozenset({"ended invocation"}), 0.5),
    Kind("slow drift", frozenset({"drift"}), 144.0),
)


@dataclass(frozen=True, slots=True)
class Label:
    agent: str
    kind: Kind
    begin_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class ShapeOf:
    fingerprint: str
    verb: str
    relations: tuple[str, ...]
    rows: float
    unbounded: bool = False


@dataclass(slots=True)
class Actor:
    name: str
    role: RoleKind
    random: random.Random
    first_day: int
    an_hour: float
    shapes: list[ShapeOf]
    by_task: dict[str, list[ShapeOf]]
    hours: tuple[int, int]
    weekends: bool
    host: str
    hosts: int = 1
    fresh: int = 0  # ad-hoc shapes so far
    sessions: int = 0
    executions: int = 0
    drift_from: int = 1000  # the day on which its slow drift begins
    runs: list[tuple[str, int]] = field(default_factory=list)  # runs and when each was over


class World:
    """Iterate over `frames`: all of the log, in its order. `labels` are complete before the first frame."""

    def __init__(self, seed: int, agents: int = 300, days: int = 14, incidents: int = 130) -> None:
        self._random = random.Random(seed)
        self.days = days
        self._seq = 0
        self._offset = 0
        self.actors = [self._actor(number) for number in range(agents)]
        self.labels = self._labels(incidents)

    def _actor(self, number: int) -> Actor:
        draw = random.Random(self._random.getrandbits(64))
        role = ROLES[number % len(ROLES)]
        tables = [f"{role.name[0]}.{table}" if role.name in ("board",) else f"public.{table}" for table in role.tables]
        own = draw.sample(tables, max(2, int(len(tables) * draw.uniform(0.4, 0.9))))
        shapes = [self._shape(draw, role, own, f"{role.name}{draw.randrange(80)}") for _ in range(draw.randint(*role.shapes))]
        tasks = [f"task-{n}" for n in range(role.tasks)] if role.tasks > 1 else [""]
        by_task = {task: [shape for n, shape in enumerate(shapes) if n % len(tasks) == k] for k, task in enumerate(tasks)}
        begin = draw.randint(6, 9)
        night = draw.randint(0, 3)
        hours = {"office": (begin, begin + 9), "night": (night, night + 3), "always": (0, 24)}[role.hours]
        first = draw.randint(4, 7) if draw.random() < 0.1 else 0
        rate = draw.uniform(*role.an_hour)
        weekends = role.hours != "office" or draw.random() < 0.1
        return Actor(f"{role.name}-{number}", role, draw, first, rate, shapes, by_task, hours, weekends, f"10.0.{number % 250}.1")

    @staticmethod
    def _shape(draw: random.Random, role: RoleKind, tables: Sequence[str], name: str) -> ShapeOf:
        verb = draw.choice(role.operations)
        count = 1 if verb != "SELECT" else min(len(tables), draw.choice((1, 1, 2, 2, 3, 4)))
        rows = role.rows * draw.lognormvariate(0, 1.2) if verb == "SELECT" else draw.choice((1, 1, 10))
        if verb == "COPY":
            rows = role.rows * draw.lognormvariate(0, 0.5)
        sweeping = verb == "DELETE" and draw.random() < 0.2  # a loader that empties its staging table every night
        return ShapeOf(name, verb, tuple(draw.sample(tables, count)), rows, sweeping)

    def _labels(self, count: int) -> list[Label]:
        grown = [actor for actor in self.actors if actor.first_day == 0]
        chosen = self._random.sample(grown, min(count, len(grown)))
        labels = []
        for number in range(len(chosen)):
            kind = INCIDENTS[number % len(INCIDENTS)]
            actor = next((actor for actor in chosen if _suits(actor, kind)), None)
            if actor is None:
                continue
            chosen.remove(actor)
            day = 8 if kind.name == "slow drift" else self._random.randint(8, self.days - 1)
            weekday = day % 7
            if not actor.weekends and weekday >= 5:
                day += 2 if day + 2 < self.days else -2
            low, high = actor.hours
            hour = low + self._random.random() * max(0.5, high - low - 1.5)
            if kind.name == "unusual hours":
                hour = (high + 3 + self._random.random() * (24 - (high - low) - 7)) % 24
            if kind.name == "slow drift":
                hour, actor.drift_from = 0, day
            begin = START_US + day * DAY + int(hour * HOUR)
            labels.append(Label(actor.name, kind, begin, begin + int(kind.hours * HOUR)))
        return labels

    # -- frames ----------------------------------------------------------------------------------------------------------------

    def frames(self) -> Iterator[tuple[Record, Frame]]:
        for actor in self.actors:
            event = AgentRegistered(START_US, actor.name, "", actor.role.name, "", "", "", "", "", "op")
            yield self._framed("identity", START_US, (), ((-1, event),))
        by_day: dict[int, list[Label]] = {}
        for label in self.labels:
            by_day.setdefault((label.begin_us - START_US) // DAY, []).append(label)
        actor_of = {actor.name: actor for actor in self.actors}
        for day in range(self.days):
            work: list[_Piece] = []
            for actor in self.actors:
                if day >= actor.first_day:
                    work += _day_of(actor, day)
            for label in by_day.get(day, ()):
                work += _incident(actor_of[label.agent], label, self.actors)
            work.sort(key=lambda piece: piece.at_us)
            for piece in work:
                yield self._framed(piece.topic, piece.at_us, piece.stamps, piece.events)

    def _framed(
        self, topic: str, at_us: int, stamps: tuple[Stamp, ...], events: tuple[tuple[int, object], ...]
    ) -> tuple[Record, Frame]:
        self._seq += 1
        self._offset += 1
        frame = Frame(1, "bench", 1, self._seq, stamps, events)  # type: ignore[arg-type]
        return Record(topic, 0, self._offset, at_us, b"", b""), frame


@dataclass(frozen=True, slots=True)
class _Piece:
    at_us: int
    topic: str
    stamps: tuple[Stamp, ...]
    events: tuple[tuple[int, object], ...]


@dataclass(slots=True)
class _Work:
    """One session while it is written."""

    actor: Actor
    at_us: int
    task: str
    host: str
    run: str
    pieces: list[_Piece] = field(default_factory=list)
    events: list[tuple[int, StatementEvent]] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    stamp: Stamp = field(init=False)
    began_us: int = 0

    def __post_init__(self) -> None:
        actor = self.actor
        actor.sessions += 1
        name = f"{actor.name}/{actor.sessions}"
        at_us, client = self.at_us, f"{self.host}:{40_000 + actor.sessions % 20_000}"
        self.stamp = Stamp(
            name, actor.name, "", "", "", (), self.run, self.task, (), (), (), "shop", "shop", "pgwarden", client, 1, 1, 1
        )
        opened = SessionOpened(at_us, self.stamp, "scram", "k", 0, "app", "TLSv1.3", "3.0", "group")
        self.pieces.append(_Piece(at_us, "sessions", (), ((-1, opened),)))

    def run_one(
        self, shape: ShapeOf, at_us: int, rows: int, outcome: Outcome = "ok", sqlstate: str = "", *, denied: bool = False
    ) -> None:
        if not self.events:
            self.began_us = at_us
        number = self.numbers.get(shape.fingerprint)
        if number is None:
            number = self.numbers[shape.fingerprint] = len(self.numbers) + 1
            defined = StatementDefined(
                number, "", "fingerprint", 10, shape.fingerprint, (shape.verb,), shape.relations, (), shape.unbounded
            )
            self.events.append((0, defined))
        self.actor.executions += 1
        execution = self.actor.executions
        if denied:
            self.events.append((0, StatementDenied(at_us, execution, number, "42501", "relation", "no")))
        else:
            self.events.append((0, StatementStarted(at_us, execution, number, "select public.x by g-1")))
            self.events.append((0, StatementFinished(execution, outcome, sqlstate, "", rows, 0, rows * 40, 900)))
        if len(self.events) >= 90 or at_us - self.began_us > 20 * SECOND:
            self.cut()

    def cut(self) -> None:
        if self.events:
            self.pieces.append(_Piece(self.began_us, "statements", (self.stamp,), tuple(self.events)))
            self.events.clear()

    def close(self, at_us: int) -> list[_Piece]:
        self.cut()
        closed = SessionClosed(at_us, self.stamp.session, self.actor.name, "client", "", 1, 1, 1, 1)
        self.pieces.append(_Piece(at_us, "sessions", (), ((-1, closed),)))
        return self.pieces


def _day_of(actor: Actor, day: int) -> list[_Piece]:
    draw = actor.random
    if day % 7 >= 5 and not actor.weekends:
        return []
    if draw.random() < 0.01:  # rolled out anew elsewhere
        actor.hosts += 1
        actor.host = f"{actor.host.rpartition('.')[0]}.{actor.hosts}"
    low, high = actor.hours
    if actor.role.hours == "office" and draw.random() < 0.05:
        low, high = (low - 1, high) if draw.random() < 0.5 else (low, high + 1)
    busy = draw.lognormvariate(0, 0.25) * (1.6 if draw.random() < 0.02 else 1.0)
    if day >= actor.drift_from:
        busy *= 1.45 ** (day - actor.drift_from + 1)
    pieces: list[_Piece] = []
    outage = draw.random() < 0.01
    for hour in range(low, high):
        begin = START_US + day * DAY + (hour % 24) * HOUR
        count = _poisson(draw, actor.an_hour * busy * draw.lognormvariate(0, 0.3))
        if not count:
            continue
        task = draw.choice(list(actor.by_task))
        run = f"{actor.name}-{day}-{hour}"
        work = _Work(actor, begin + int(draw.random() * 60 * SECOND), task, actor.host, run)
        times = sorted(draw.random() for _ in range(count))
        if draw.random() < 0.3:  # work that comes in one go
            burst = draw.random() * 0.8
            times = sorted(burst + draw.random() * 0.1 for _ in range(count))
        for place in times:
            at_us = begin + 60 * SECOND + int(place * (HOUR - 120 * SECOND))
            shape = _usual(actor, task)
            failing = draw.random() < (0.25 if outage and hour == low else 0.012)
            if failing:
                state = draw.choice(("22012", "23505", "40001", "57014", "42703"))
                work.run_one(shape, at_us, 0, "error", state)
            else:
                work.run_one(shape, at_us, int(shape.rows * draw.lognormvariate(0, 0.5)))
        over = begin + HOUR - 30 * SECOND
        pieces += work.close(over)
        actor.runs.append((run, over))
    return pieces


def _usual(actor: Actor, task: str) -> ShapeOf:
    draw = actor.random
    shapes = actor.by_task[task]
    if actor.role.adhoc and draw.random() < actor.role.adhoc:
        actor.fresh += 1
        like = draw.choice(shapes)
        return ShapeOf(f"{actor.name}~{actor.fresh}", like.verb, like.relations, like.rows)
    return shapes[min(len(shapes) - 1, int(draw.paretovariate(1.1)) - 1)]


def _poisson(draw: random.Random, mean: float) -> int:
    return max(0, round(draw.gauss(mean, mean**0.5)))


def _suits(actor: Actor, kind: Kind) -> bool:
    """Whether it would be an incident of this agent."""
    match kind.name:
        case "unusual hours":
            return actor.role.hours != "always"
        case "outside its task":
            return actor.role.tasks > 1 and not actor.role.adhoc
        case "new operation":
            return actor.role.name not in ("loader", "clerk")
        case _:
            return True


# -- incidents -------------------------------------------------------------------------------------------------------------------


def _incident(actor: Actor, label: Label, actors: Sequence[Actor]) -> list[_Piece]:
    draw = actor.random
    if label.kind.name == "slow drift":
        return []  # its days are busier
    task = draw.choice(list(actor.by_task))
    host = f"203.0.113.{draw.randint(1, 250)}" if label.kind.name == "two places" else actor.host
    begin, end = label.begin_us, label.end_us
    run = f"{actor.name}-i"
    if label.kind.name == "ended run":
        old = [run for run, over in actor.runs if begin - over > 5 * HOUR]
        run = draw.choice(old)
    usual = _usual(actor, task)
    work = _Work(actor, begin, task, host, run)

    def spread(count: int) -> list[int]:
        return sorted(begin + 1 * SECOND + int(draw.random() * (end - begin - 2 * SECOND)) for _ in range(count))

    match label.kind.name:
        case "hot loop":
            speed = draw.choice((5, 10, 30, 100))  # a second
            for number in range(min(6_000, speed * 400)):
                work.run_one(usual, begin + number * SECOND // speed, int(usual.rows))
        case "failing loop":
            for number in range(600):
                work.run_one(usual, begin + number * SECOND * 2 // 3, 0, "error", "23503")
        case "exfiltration":
            largest = max(shape.rows for shape in actor.shapes)
            factor = draw.choice((20, 50, 200))
            for at_us in spread(draw.choice((3, 10, 40))):
                work.run_one(usual, at_us, int(max(2_000, largest * factor * draw.uniform(0.7, 1.3))))
        case "masquerade":
            others = [other for other in actors if not set(other.role.tables) & set(actor.role.tables)]
            other = draw.choice(others)
            for at_us in spread(draw.choice((6, 12, 30))):
                work.run_one(draw.choice(other.shapes), at_us, 20)
        case "probing":
            for number, at_us in enumerate(spread(draw.choice((8, 15, 40)))):
                shape = ShapeOf(f"p{number}", "SELECT", (f"public.secret_{number}",), 0)
                work.run_one(shape, at_us, 0, "error", "42P01", denied=draw.random() < 0.6)
        case "error burst":
            for at_us in spread(draw.choice((20, 40, 80))):
                work.run_one(_usual(actor, task), at_us, 0, "error", draw.choice(("22P02", "23505", "22012")))
        case "destructive":
            table = draw.choice(actor.shapes).relations[0]
            verb = draw.choice(("DELETE", "UPDATE"))
            work.run_one(ShapeOf(f"{actor.name}!", verb, (table,), 0, unbounded=True), begin + 5 * SECOND, draw.choice((50, 5_000)))
        case "new operation":
            verb = draw.choice(("CREATE TABLE", "DROP TABLE", "TRUNCATE", "MERGE"))
            work.run_one(ShapeOf(f"{actor.name}+", verb, (actor.shapes[0].relations[0],), 0), begin + 5 * SECOND, 0)
        case "outside its task":
            other_task = draw.choice([name for name in actor.by_task if name != task])
            own = {name for shape in actor.by_task[task] for name in shape.relations}
            odd = [shape for shape in actor.by_task[other_task] if set(shape.relations) - own] or actor.by_task[other_task]
            for at_us in spread(5):
                work.run_one(draw.choice(odd), at_us, 5)
        case _:  # unusual hours, two places, ended run: usual work, where or when it is not
            for at_us in spread(12):
                work.run_one(_usual(actor, task), at_us, int(usual.rows))
    return work.close(end)
