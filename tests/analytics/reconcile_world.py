"""A history of gateways, servers and collectors as each of them would record it, honest or with violations of known kinds.

Each process writes its own stream of frames, in order; the streams are read side by side, each as late as a chance decides.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from analytics.inspection import Effect
from analytics.reconcile import Reconcile
from analytics.settings import ReconcileSettings
from ingest.collectors.collector import digest, session_id
from ingest.events import (
    BackendOpened,
    Event,
    Frame,
    ObservationGap,
    OutcomeResolved,
    SessionClosed,
    SessionObserved,
    SessionOpened,
    SessionUnobserved,
    SourceDeclared,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementStarted,
    WatchdogConnected,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
)
from ingest.frames import TOPIC_OF, Framer, decode
from ingest.log import Record
from tests.analytics.scenario import START_US, stamp

SECOND: Final = 1_000_000
SERVER: Final = "main"
CONNECTION: Final = "shop"
ROLE: Final = "pgwarden"
GATEWAY_PROCESS: Final = (700, START_US - 9 * SECOND)
USUAL: Final = ReconcileSettings()
KINDS: Final = ("shadow", "hijacked", "unaudited", "phantom", "miscounted")


@dataclass
class Violation:
    kind: str
    session_id: str
    what: str  # a digest, an execution's number, or ""


@dataclass
class _Stream:
    """One writer's events of one topic, each with the time at which it is recorded."""

    events: list[tuple[int, str, Event, Stamp | None]] = field(default_factory=list)


def called(agent: str, at_us: int, number: int) -> str:
    """As a gateway calls the session of an agent that it begins at that time."""
    return f"pgwarden/{agent}/{at_us // 1_000:012x}{number:08x}"


class World:
    """One seed, one history. `collectors` see the same server, in their own ways."""

    def __init__(
        self,
        seed: int,
        *,
        sessions: int = 12,
        violations: int = 0,
        collectors: Sequence[str] = ("log", "ebpf"),
        texts: bool = True,
        recorded_texts: bool = True,
        late_us: int = 900_000,
        gaps: bool = True,
    ) -> None:
        self.chance = random.Random(seed)
        self.now_us = START_US
        self.collectors = collectors
        self.texts = texts
        self.recorded_texts = recorded_texts
        self.late_us = late_us
        self.violations: list[Violation] = []
        self.pids = iter(range(1_000, 60_000))
        self.streams: dict[tuple[str, str], _Stream] = {}
        self.sequences: dict[tuple[str, str], int] = {}
        self.gaps = gaps
        self.said(
            "api",
            START_US - SECOND,
            SourceDeclared(START_US - SECOND, "nightly", "backup", "", ("backup",), "local", "", "", "r", "op"),
        )
        for collector in collectors:
            started = WitnessStarted(START_US, collector, collector, SERVER, (CONNECTION,), "statements", "1")
            self.said(collector, START_US, started, SERVER)
        self._ours()
        kinds = [KINDS[number % len(KINDS)] for number in range(violations)]
        self.chance.shuffle(kinds)
        share = [kinds[number::sessions] for number in range(sessions)]
        for number in range(sessions):
            self.now_us += self.chance.randrange(1, 2 * SECOND)
            self._session(number, share[number])
        self.end_us = self.now_us + 200 * SECOND
        self._reports()

    def name_of(self, violation: Violation) -> str:
        """The finding's id, as everybody can derive it."""
        if violation.kind in ("shadow", "hijacked"):
            what = f"{SERVER}/{violation.session_id}"
        else:
            number = f"{violation.what}/1" if violation.kind == "unaudited" else violation.what
            what = f"{CONNECTION}/{violation.session_id}/{number}"
        return f"{violation.kind}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    # -- who says what ---------------------------------------------------------------------------------------------------------

    def said(self, writer: str, at_us: int, event: Event, key: str = "k", under: Stamp | None = None) -> None:
        topic = TOPIC_OF[type(event)]
        self.streams.setdefault((writer, topic), _Stream()).events.append((at_us, key, event, under))

    def _observed(self, at_us: int, make: Event, key: str) -> None:
        collector = make.witness  # type: ignore[union-attr]
        self.said(collector, at_us, make, key)

    def _ours(self) -> None:
        """What pgwarden itself opens: nobody's shadow."""
        for number, (writer, what) in enumerate((("gw-1", "control"), ("gw-1", "refused"), ("dog", "watchdog"), ("log", "canary"))):
            pid, at_us = next(self.pids), self.now_us + number * SECOND
            port = 30_000 + pid
            name = session_id(at_us, pid)
            process = GATEWAY_PROCESS if writer == "gw-1" else (701 + number, at_us)
            self._session_seen(name, pid, at_us, ROLE, f"127.0.0.1:{port}", "pgwarden/control/x/1", process)
            if what == "watchdog":
                self.said(writer, at_us + 5_000, WatchdogConnected(at_us, "dog", CONNECTION, ROLE, pid, at_us, port))
            elif what == "canary":
                said = WitnessConnected(at_us, "log", SERVER, name, pid, ROLE, "canary", "")
                self.said("log", at_us + 5_000, said, f"{SERVER}/{name}")
            else:
                start_us = at_us if what == "control" else 0
                self.said(writer, at_us + 5_000, BackendOpened(at_us, "gw-1", 1, what, CONNECTION, ROLE, pid, start_us, port))
        pid, at_us = next(self.pids), self.now_us + 5 * SECOND
        self._session_seen(session_id(at_us, pid), pid, at_us, "backup", "local", "pg_dump", (900, at_us))
        self.now_us += 10 * SECOND

    def _session_seen(self, name: str, pid: int, at_us: int, role: str, client: str, calls: str, process: tuple[int, int]) -> None:
        for collector in self.collectors:
            sees = process if collector == "ebpf" else (0, 0)
            event = SessionObserved(
                at_us, collector, SERVER, name, pid, role, "shop", client, calls, "", sees[0], sees[1], 1000, "/usr/bin/psql"
            )
            self._observed(at_us + 20_000, event, f"{SERVER}/{name}")

    # -- sessions --------------------------------------------------------------------------------------------------------------

    def _session(self, number: int, kinds: Sequence[str]) -> None:
        agent = f"agent-{number % 5}"
        pid = next(self.pids)
        begin_us = self.now_us
        name = session_id(begin_us, pid)
        port = 20_000 + pid
        under = stamp(f"s{number}", agent, backend_pid=pid, backend_start_us=begin_us, upstream_port=port, role=ROLE)
        if "shadow" in kinds:
            for _ in range(kinds.count("shadow")):
                self._shadow()
        port_seen, process = port, GATEWAY_PROCESS
        hijacks = kinds.count("hijacked")
        if hijacks:
            self.violations.append(Violation("hijacked", name, ""))
            if self.chance.random() < 0.5 and "ebpf" in self.collectors:
                process = (4_321, begin_us)
            else:
                port_seen += 1
            for _ in range(hijacks - 1):
                self._elsewhere()
        self._session_seen(name, pid, begin_us, ROLE, f"127.0.0.1:{port_seen}", called(agent, begin_us, number), process)
        self.said("gw-1", begin_us + 3_000, SessionOpened(begin_us, under, "scram", "k", 0, "psql", "", "3.0", "group"), agent)
        _Work(self, under, name, [kind for kind in kinds if kind in ("unaudited", "phantom", "miscounted")]).run()
        end_us = self.now_us
        closed = SessionClosed(end_us, under.session, agent, "client", "", 1, 1, 1, 1)
        self.said("gw-1", end_us + 3_000, closed, agent)
        for collector in self.collectors:
            self._observed(end_us + 30_000, SessionUnobserved(end_us, collector, SERVER, name), f"{SERVER}/{name}")

    def _shadow(self) -> None:
        pid, at_us = next(self.pids), self.now_us + self.chance.randrange(SECOND)
        name = session_id(at_us, pid)
        calls = self.chance.choice(("psql", called("agent-1", at_us, 99)))  # which anybody can choose
        self._session_seen(name, pid, at_us, "intruder", "10.9.9.9:5555", calls, (5_000, at_us))
        self.violations.append(Violation("shadow", name, ""))
        for collector in self.collectors:
            self._observed(at_us + 60_000, self.ran(collector, name, at_us + 1, "select 'mine'"), f"{SERVER}/{name}")

    def _elsewhere(self) -> None:
        """The gateway's own role, from somewhere else."""
        pid, at_us = next(self.pids), self.now_us + self.chance.randrange(SECOND)
        name = session_id(at_us, pid)
        self._session_seen(name, pid, at_us, ROLE, "10.8.8.8:4444", called("agent-1", at_us, 98), (6_000, at_us))
        self.violations.append(Violation("hijacked", name, ""))

    def ran(
        self,
        collector: str,
        name: str,
        at_us: int,
        text: str,
        *,
        rows: int = -1,
        sqlstate: str = "",
        known: bool = True,
        source: str = "statement",
    ) -> StatementObserved:
        sequence = self.sequences[collector, name] = self.sequences.get((collector, name), 0) + self.chance.randrange(1, 4)
        shown = text if self.texts else ""
        return StatementObserved(
            at_us,
            collector,
            SERVER,
            name,
            sequence,
            source,
            shown,
            len(text.encode()),
            digest(text.encode()),
            0,
            rows if collector == "ebpf" else -1,
            sqlstate,
            5,
            ROLE,
            "shop",
            "",
            known,
        )

    def _reports(self) -> None:
        for collector in self.collectors:
            for at_us in range(START_US, self.end_us, 2 * SECOND):
                complete_us = at_us - self.late_us - SECOND
                report = WitnessReported(at_us, collector, collector, SERVER, True, "", complete_us, at_us, 1, 0, 1)
                self.said(collector, at_us, report, SERVER)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def frames(self) -> Iterator[tuple[int, Record, Frame]]:
        """In the order of recording, the streams side by side; each frame a chance later than it could be."""
        dated: list[tuple[int, int, str, str, list[tuple[str, Event, Stamp | None]]]] = []
        for (writer, topic), stream in self.streams.items():
            events = sorted(stream.events, key=lambda one: one[0]) if topic in ("witness", "statements") else stream.events
            events = sorted(events, key=lambda one: one[0])
            at, newest_us = 0, 0
            while at < len(events):
                count = self.chance.randrange(1, 12)
                cut = [one for one in events[at : at + count] if one[0] <= events[at][0] + 50_000]  # a frame waits for no longer
                at += len(cut)
                newest_us = max(newest_us, cut[-1][0] + self.chance.randrange(self.late_us))
                dated.append((newest_us, len(dated), writer, topic, [one[1:] for one in cut]))
        framers: dict[tuple[str, str], Framer] = {}
        offsets: dict[str, int] = {}
        for at_us, _, writer, topic, some in sorted(dated, key=lambda one: one[:2]):
            framer = framers.setdefault((writer, topic), Framer(writer, 1, events_max=1_000, bytes_max=2**20))
            for _, event, under in some:
                framer.add(topic, "k", event, under)  # type: ignore[arg-type]
            for entry in framer.cut():
                offset = offsets[topic] = offsets.get(topic, -1) + 1
                yield at_us, Record(entry.topic, 0, offset, at_us, entry.key, entry.value), decode(entry.value)


class _Work:
    """What one session does: as its gateway records it, and as each collector sees it."""

    def __init__(self, world: World, under: Stamp, name: str, kinds: Sequence[str]) -> None:
        self.world, self.under, self.name = world, under, name
        self.kinds = list(kinds)
        self.execution = self.statement = self.refused = 0
        self.numbers: dict[tuple[str, ...], int] = {}

    def run(self) -> None:
        steps = self.world.chance.randrange(4, 25) + 3 * len(self.kinds)
        places = sorted(self.world.chance.sample(range(steps), len(self.kinds)))
        for step in range(steps):
            kind = self.kinds[places.index(step)] if step in places else ""
            if kind and self.world.gaps:  # what is near a gap is not claimed
                self.world.now_us += 3 * SECOND
            self._step(kind)
            if kind and self.world.gaps:
                self.world.now_us += 3 * SECOND
            self.world.now_us += self.world.chance.randrange(2_000, SECOND)
        if self.world.chance.random() < 0.3:  # in flight when the session ended, or its gateway: it may have run
            for text in ("select pg_sleep(9)", "select 'behind it'"):
                self._execution(self._defined(text)[0], "unknown")
            if self.world.chance.random() < 0.5:
                self._seen("select pg_sleep(9)", known=False)

    def _gateway(self, event: Event, at_us: int) -> None:
        self.world.said("gw-1", at_us, event, self.under.agent, self.under)

    def _seen(self, text: str, *, collectors: Sequence[str] = (), **fields: object) -> None:
        for collector in collectors or self.world.collectors:
            event = self.world.ran(collector, self.name, self.world.now_us, text, **fields)  # type: ignore[arg-type]
            self.world._observed(self.world.now_us + 10_000, event, f"{SERVER}/{self.name}")

    def _defined(self, *parts: str) -> list[int]:
        """The numbers of a string's statements, told once."""
        first = self.numbers.get(parts)
        if first is None:
            first = self.numbers[parts] = self.statement + 1
            whole = digest("; ".join(parts).encode()) if len(parts) > 1 else ""
            for part in parts:
                self.statement += 1
                text = part if self.world.recorded_texts else ""
                mode = "full" if self.world.recorded_texts else "fingerprint"
                verb = part.split(" ", 1)[0]
                event = StatementDefined(
                    self.statement,
                    text,
                    mode,
                    len(part.encode()),
                    "f",
                    (verb,),
                    (),
                    (),
                    digest=digest(part.encode()),
                    whole=whole,
                )
                self._gateway(event, self.world.now_us)
        return [first + number for number in range(len(parts))]

    def _execution(
        self, statement: int, outcome: str, sqlstate: str = "", rows: int = 0, continues: int = 0, rule: str = "r"
    ) -> int:
        self.execution += 1
        now_us = self.world.now_us
        self._gateway(StatementStarted(now_us, self.execution, statement, rule, continues), now_us)
        tag = f"SELECT {rows}" if outcome == "ok" else ""
        ended = StatementFinished(self.execution, outcome, sqlstate, tag, rows, 0, 0, 900)  # type: ignore[arg-type]
        self._gateway(ended, now_us + 1_000)
        return self.execution

    def _step(self, kind: str) -> None:
        chance = self.world.chance
        text = chance.choice(("select a from t", "update t set a = 1", f"select {chance.randrange(9)} -- ü", "select a from t"))
        rows = chance.randrange(5)
        if kind == "unaudited":
            hidden = f"drop table t{chance.randrange(10**9)}"
            self._seen(hidden, rows=0)
            self.world.violations.append(Violation(kind, self.name, digest(hidden.encode())))
            return
        if kind == "phantom":
            made_up = f"select 'never {chance.randrange(10**9)}'"
            number = self._execution(self._defined(made_up)[0], "ok", rows=rows)
            self.world.violations.append(Violation(kind, self.name, str(number)))
            return
        if kind == "miscounted":
            (statement,) = self._defined(text)
            if chance.random() < 0.5 and "ebpf" in self.world.collectors:
                number = self._execution(statement, "ok", rows=rows + 1)
                self._seen(text, rows=rows)
            else:
                number = self._execution(statement, "ok", rows=rows)
                self._seen(text, sqlstate="22012")
            self.world.violations.append(Violation(kind, self.name, str(number)))
            return
        self._honest(text, rows)

    def _honest(self, text: str, rows: int) -> None:
        chance, world = self.world.chance, self.world
        match chance.randrange(13):
            case 0:  # an error as it runs
                self._execution(self._defined(text)[0], "error", "22012")
                self._seen(text, sqlstate="22012")
            case 1:  # a refusal: a message that fails by itself takes its place
                self.refused += 1
                self.execution += 1
                (statement,) = self._defined("select secret")
                self._gateway(StatementDenied(world.now_us, self.execution, statement, "42501", "d", "no"), world.now_us)
                self._seen(f"pgwarden_refused_{self.refused}", sqlstate="42601")
            case 2:  # a pipeline: what stands behind an error is passed over
                self._execution(self._defined("select 1/0")[0], "error", "22012")
                self._seen("select 1/0", sqlstate="22012")
                self._execution(self._defined(text)[0], "skipped")
            case 3:  # several in one string: the log has one line, the probe each of them
                parts = ("select 1", "update t set a = 2", "select 3")
                self._string(parts, failing=chance.choice((None, None, 1)))
            case 4:  # prepared, failed, and never run
                self._defined("select nothing from t")
                self._seen("select nothing from t", sqlstate="42703")
            case 5:  # a portal that is asked again after its end
                number = self._execution(self._defined(text)[0], "ok", rows=rows)
                self._seen(text, rows=rows)
                self._execution(self._defined(text)[0], "ok", rows=0, continues=number)
            case 6:  # an empty query: the log has a line, the probe has none
                blank = chance.choice(("", " ; ", "-- nothing"))
                self._execution(self._defined(blank)[0], "ok", rule="empty")
                self._seen(blank, collectors=[one for one in world.collectors if one == "log"] or ["none"])
            case 8:  # completed, and undone by a deferred constraint
                number = self._execution(self._defined(text)[0], "ok", rows=rows)
                self._gateway(OutcomeResolved(world.now_us, number, "aborted", "r"), world.now_us + 2_000)
                self._seen(text, sqlstate="23503")
            case 9:  # begun only, and told again with its error
                self._execution(self._defined(text)[0], "error", "57014")
                for collector in world.collectors:
                    begun = world.ran(collector, self.name, world.now_us, text, known=False)
                    world._observed(world.now_us + 10_000, begun, f"{SERVER}/{self.name}")
                    told = world.ran(collector, self.name, world.now_us, text, sqlstate="57014")
                    told = type(told)(**{**{f: getattr(told, f) for f in told.__struct_fields__}, "sequence": begun.sequence})
                    world._observed(world.now_us + 400_000, told, f"{SERVER}/{self.name}")
            case 10 if world.gaps:  # a collector that saw nothing for a moment, and says so
                self._execution(self._defined(text)[0], "ok", rows=rows)
                blind, *others = chance.sample(list(world.collectors), len(world.collectors))
                at_us = world.now_us
                if others:
                    self._seen(text, collectors=others, rows=rows)
                if chance.random() < 0.5:
                    gap = ObservationGap(at_us + 9_000, blind, SERVER, self.name, at_us - 1000, at_us + 9000, 1, "r")
                    world._observed(at_us + 9_000, gap, f"{SERVER}/{self.name}")
                else:
                    blinded = WitnessBlinded(at_us + 1, blind, blind, SERVER, at_us - 1000, "r")
                    world.said(blind, at_us + 1, blinded, SERVER)
                    world.said(blind, at_us + 9_000, WitnessRestored(at_us + 9_000, blind, blind, SERVER, at_us - 1000), SERVER)
            case _:
                for _ in range(chance.randrange(1, 4)):
                    self._execution(self._defined(text)[0], chance.choice(("ok", "ok", "suspended")), rows=rows)
                    self._seen(text, rows=rows if self.execution else -1)
                    world.now_us += 2_000

    def _string(self, parts: Sequence[str], failing: int | None) -> None:
        numbers = self._defined(*parts)
        for place, statement in enumerate(numbers):
            if failing is None or place < failing:
                self._execution(statement, "ok", rows=1)
            else:
                self._execution(statement, "error" if place == failing else "skipped", "22012" if place == failing else "")
        for collector in self.world.collectors:
            if collector == "log":
                self._seen("; ".join(parts), collectors=[collector], sqlstate="" if failing is None else "22012")
                continue
            for place, part in enumerate(parts):
                if failing is None or place <= failing:
                    self._seen(part, collectors=[collector], rows=1, sqlstate="22012" if place == failing else "")


def run(world: World, settings: ReconcileSettings = USUAL, *, restart_every: int = 0) -> tuple[list[Effect], Reconcile]:
    """All effects of a step that reads it, with a tick every quarter of a second."""
    step = Reconcile(settings)
    effects: list[Effect] = []
    tick_us = 0
    at_us = START_US
    for number, (at_us, record, frame) in enumerate(world.frames()):
        tick_us = tick_us or at_us
        while tick_us < at_us:
            effects += step.tick(tick_us)
            tick_us += 250_000
        effects += step.step(record, frame, at_us)
        if restart_every and number % restart_every == restart_every - 1:
            again = Reconcile(settings)
            again.restore(step.encode())
            step = again
    effects += step.tick(at_us + 1_000 * SECOND)
    return effects, step
