from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from analytics.detection import DETECTORS, Detection
from analytics.detectors.agent import Settings
from analytics.inspection import Effect
from bench.detect import run
from ingest.events import (
    AgentRegistered,
    AgentRetired,
    Event,
    FindingRaised,
    FindingRecurred,
    Frame,
    GrantApproved,
    Outcome,
    SessionClosed,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
)
from ingest.log import Record
from tests.analytics.scenario import stamp

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MONDAY_US = 1_794_787_200_000_000  # 16 November 2026, 00:00 UTC


class Life:
    """One agent, told as a gateway would record it; what is found stands in `found`."""

    def __init__(self, detection: Detection | None = None, agent: str = "a") -> None:
        self.detection = detection or Detection()
        self.agent = agent
        self.us = MONDAY_US
        self.found: list[Effect] = []
        self.seq = 0
        self.session = stamp("s0", agent)
        self.sessions = 0
        self.numbers: dict[str, int] = {}
        self.executions = 0

    def tell(self, topic: str, *events: Event, under: Stamp | None = None) -> None:
        self.seq += 1
        stamps = (under,) if under is not None else ()
        frame = Frame(1, "gw", 1, self.seq, stamps, tuple((0 if under is not None else -1, event) for event in events))
        self.found += self.detection.step(Record(topic, 0, self.seq, self.us, b"", b""), frame, self.us)

    def opens(self, host: str = "10.0.0.1", task: str = "", run: str = "", *, keep: bool = False) -> None:
        if not keep and self.sessions:
            self.tell("sessions", SessionClosed(self.us, self.session.session, self.agent, "client", "", 1, 1, 1, 1))
        self.sessions += 1
        self.numbers = {}
        self.session = stamp(
            f"s{self.sessions}", self.agent, client=f"{host}:5", task=task, invocation=run or f"run-{self.sessions}"
        )
        self.tell("sessions", SessionOpened(self.us, self.session, "scram", "k", 0, "app", "", "3.0", "group"))

    def does(
        self,
        shape: str,
        table: str = "public.orders",
        verb: str = "SELECT",
        rows: int = 10,
        outcome: Outcome = "ok",
        sqlstate: str = "",
        *,
        denied: bool = False,
        unbounded: bool = False,
        wait: int = SECOND,
    ) -> None:
        self.us += wait
        events: list[Event] = []
        if shape not in self.numbers:
            number = self.numbers[shape] = len(self.numbers) + 1
            relations = tuple(table.split()) if table else ()
            events.append(StatementDefined(number, "", "fingerprint", 1, shape, (verb,), relations, (), unbounded))
        self.executions += 1
        if denied:
            events.append(StatementDenied(self.us, self.executions, self.numbers[shape], "42501", "relation", "no"))
        else:
            events.append(StatementStarted(self.us, self.executions, self.numbers[shape], "select public.orders by g-a"))
            events.append(StatementFinished(self.executions, outcome, sqlstate, "", rows, 0, rows * 20, 500))
        self.tell("statements", *events, under=self.session)

    def works(self, days: int = 9, an_hour: int = 12, tasks: Sequence[str] = ("",), shared: str = "") -> Life:
        """Days of office work, from 8 to 16, five shapes on two tables; ends on the next morning."""
        for _ in range(days):
            midnight = self.us - self.us % DAY
            if (midnight // DAY + 3) % 7 < 5:
                for hour in range(8, 16):
                    self.us = midnight + hour * HOUR
                    task = tasks[hour % len(tasks)]
                    self.opens(task=task)
                    for n in range(an_hour):
                        table = shared or ("public.orders" if not task else f"public.{task}")
                        self.does(f"shape{n % 5}{task}", table, rows=20 + n % 7, wait=3 * MINUTE)
            self.us = midnight + DAY
        self.us += 9 * HOUR
        self.opens(task=tasks[0])
        return self

    def says(self) -> list[str]:
        return [effect.detector for effect in self.found if isinstance(effect, FindingRaised)]


def settled(**changes: object) -> Life:
    life = Life()
    life.works(**changes)  # type: ignore[arg-type]
    assert life.says() == []  # honest work
    return life


def many(life: Life, count: int, shape: str = "shape1", **how: object) -> None:
    for _ in range(count):
        life.does(shape, **how)  # type: ignore[arg-type]


def new_tables(life: Life) -> None:
    life.does("x1", "public.salaries public.bonuses")


def new_statements(life: Life) -> None:
    for number in range(9):
        life.does(f"adhoc{number}")


def new_operation(life: Life) -> None:
    life.does("x", verb="DROP TABLE", rows=0)


def rate(life: Life) -> None:
    for number in range(600):
        life.does(f"shape{number % 5}", wait=SECOND)


def volume(life: Life) -> None:
    life.does("shape1", rows=50_000)


def errors(life: Life) -> None:
    for number in range(20):
        life.does(f"shape{number % 5}", rows=0, outcome="error", sqlstate="22012", wait=5 * SECOND)


def probing(life: Life) -> None:
    for number in range(5):
        life.does(f"p{number}", f"public.secret{number}", denied=True)


def catalogs(life: Life) -> None:
    for name in ("pg_class", "pg_roles", "pg_shadow", "pg_settings", "pg_database"):
        life.does(name, f"pg_catalog.{name}")


def hot_loop(life: Life) -> None:
    many(life, 500, wait=SECOND // 10)


def failing_loop(life: Life) -> None:
    many(life, 60, wait=SECOND // 2, rows=0, outcome="error", sqlstate="40001")


def unusual_hours(life: Life) -> None:
    life.us += 13 * HOUR
    life.does("shape1")


def two_places(life: Life) -> None:
    life.opens("203.0.113.9", keep=True)


def ended_run(life: Life) -> None:
    life.opens(run="run-3")


def unbounded_delete(life: Life) -> None:
    life.does("d", verb="DELETE", rows=40, unbounded=True)


def whole_table(life: Life) -> None:
    life.does("whole", rows=30_000, unbounded=True)


@pytest.mark.parametrize(
    ("behave", "detector"),
    [
        (new_tables, "new table"),
        (new_statements, "new statements"),
        (new_operation, "new operation"),
        (rate, "rate"),
        (volume, "volume"),
        (errors, "errors"),
        (probing, "probing"),
        (catalogs, "probing"),
        (hot_loop, "hot loop"),
        (failing_loop, "hot loop"),
        (unusual_hours, "unusual hours"),
        (two_places, "two places"),
        (ended_run, "ended invocation"),
        (unbounded_delete, "unbounded statement"),
        (whole_table, "unbounded statement"),
    ],
)
def test_each_detector_finds_its_behaviour(behave: Callable[[Life], None], detector: str) -> None:
    life = settled()
    behave(life)
    assert detector in life.says()
    raised = next(effect for effect in life.found if isinstance(effect, FindingRaised) and effect.detector == detector)
    assert raised.evidence
    assert raised.offsets
    assert raised.numbers
    assert raised.agent == "a"


def test_what_stays_within_what_is_usual_raises_nothing() -> None:
    life = settled()
    many(life, 15, wait=20 * SECOND)  # a little faster
    life.does("shape1", rows=60)  # a little more
    for _ in range(3):
        life.does("shape2", rows=0, outcome="error", sqlstate="22012")  # some that fail
    life.does("adhoc")  # a new one
    life.does("p", denied=True)  # one refusal
    life.does("bounded", verb="SELECT", rows=30)
    life.us += 5 * HOUR
    life.opens()  # from the host that it always has
    life.does("shape3")
    assert life.says() == []


def test_a_task_that_does_what_only_another_does_is_told() -> None:
    life = settled(tasks=("billing", "stock"))
    life.opens(task="billing")
    life.does("odd", "public.billing")
    assert life.says() == []
    life.does("odder", "public.stock")
    assert life.says() == ["outside its task"]


def test_tasks_that_share_their_tables_are_told_apart_by_their_statements() -> None:
    life = settled(tasks=("billing", "stock"), shared="public.orders")
    life.opens(task="billing")
    life.does("shape1stock", "public.orders")
    assert life.says() == []  # one may be what both need
    life.does("shape2stock", "public.orders")
    assert life.says() == ["outside its task"]


def test_a_task_whose_statements_change_daily_has_no_bounds_to_leave() -> None:
    life = settled(tasks=("billing", "stock"), days=0)
    for day in range(9):
        life.works(1, tasks=("billing", "stock"))
        life.opens(task="billing")
        life.does(f"adhoc{day}", "public.billing")
        life.us += DAY - life.us % DAY
    life.opens(task="billing")
    life.does("odder", "public.stock")
    assert "outside its task" not in life.says()


def test_days_that_grow_are_drift_and_one_busy_day_is_none() -> None:
    life = settled()
    busy = settled()
    busy.us += 0
    many(busy, 300, wait=90 * SECOND)
    busy.works(3)
    assert "drift" not in busy.says()
    for factor in (2, 3, 4, 5):
        life.us -= life.us % DAY
        life.works(1, an_hour=min(19, 12 * factor // 2))
        many(life, 60 * factor, wait=70 * SECOND)
        life.us += DAY - life.us % DAY
    life.works(1)
    assert "drift" in life.says()


def test_a_grant_that_nobody_uses_is_told_once_and_one_that_is_used_is_not() -> None:
    life = settled()
    approved_us = life.us
    life.tell("identity", GrantApproved(approved_us, "g-unused", "a", "op", 0), GrantApproved(approved_us, "g-a", "a", "op", 0))
    for day in range(1, 40):
        life.us = approved_us + day * DAY
        if day % 10 == 1:
            life.opens()
            life.does("shape1", wait=0)
        life.found += life.detection.tick(life.us)
        life.found += life.detection.tick(life.us)
    told = [effect for effect in life.found if isinstance(effect, FindingRaised) and effect.detector == "unused grant"]
    assert [("g-unused" in finding.summary, finding.agent) for finding in told] == [(True, "a")]


def test_what_peers_of_its_role_do_is_nothing_new() -> None:
    detection = Detection()
    life = Life(detection)
    for name in ("a", "b", "c"):
        life.tell("identity", AgentRegistered(MONDAY_US, name, "", "team", "", "", "", "", "", "op"))
    for name in ("b", "c"):
        peer = Life(detection, name)
        peer.works(9)
        peer.does("x1", "public.salaries public.bonuses")
    life.works(9)
    life.found.clear()
    life.does("x1", "public.salaries public.bonuses")
    assert life.says() == []


def test_a_new_agent_is_held_against_its_role() -> None:
    detection = Detection()
    for name in ("p", "q", "r", "s", "new"):
        Life(detection).tell("identity", AgentRegistered(MONDAY_US, name, "", "team", "", "", "", "", "", "op"))
    for name in ("p", "q", "r", "s"):
        Life(detection, name).works(9)
    newcomer = Life(detection, "new")
    newcomer.us += 10 * DAY
    newcomer.opens()
    newcomer.does("shape1")
    assert newcomer.says() == []
    newcomer.does("x1", "public.salaries public.bonuses")
    assert newcomer.says() == ["new table"]


def test_the_same_again_recurs_and_is_told_as_the_count_doubles() -> None:
    life = settled()
    life.does("q1", "public.t1 public.t2")
    for number in range(2, 10):
        life.does(f"q{number}", f"public.t{number}a public.t{number}b")
    raised = [effect for effect in life.found if isinstance(effect, FindingRaised) and effect.detector == "new table"]
    recurred = [
        effect.times for effect in life.found if isinstance(effect, FindingRecurred) and effect.finding == raised[0].finding
    ]
    assert len(raised) == 1
    assert recurred == [2, 4, 8]
    told = [effect for effect in life.found if isinstance(effect, FindingRecurred) and effect.finding == raised[0].finding]
    assert {effect.severity for effect in told} == {raised[0].severity}
    found = life.detection.tick(life.us + 2 * HOUR)  # the cooldown is over: the ninth is told
    assert 9 in [effect.times for effect in found if isinstance(effect, FindingRecurred)]


def test_a_restart_changes_nothing() -> None:
    """The same log in one piece, and with the state taken down and up again every few hundred frames."""

    def told(every: int) -> list[Effect]:
        life = Life()
        step = life.detection.step
        count = 0

        def stepped(record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
            nonlocal step, count
            count += 1
            if every and count % every == 0:
                again = Detection()
                again.restore(before.encode())
                before.__init__()  # type: ignore[misc]
                before.restore(again.encode())
            return step(record, frame, now_us)

        before = life.detection
        life.detection.step = stepped  # type: ignore[method-assign]
        life.works(9)
        for behave in (new_tables, hot_loop, probing, volume, two_places):
            behave(life)
        return life.found

    whole = told(0)
    assert len(whole) > 4
    assert told(97) == whole


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not what this version keeps"):
        Detection().restore(msgspec.msgpack.encode(["nonsense"]))


def test_names_of_an_agent_are_shown_escaped_and_short() -> None:
    life = settled()
    life.does("x", "public.\x1b[2J\u202evil public." + "y" * 500)
    (raised,) = (effect for effect in life.found if isinstance(effect, FindingRaised))
    assert raised.summary.isascii()
    assert raised.summary.isprintable()
    assert len(raised.summary) < 400


def test_a_retired_agent_is_forgotten() -> None:
    life = settled()
    with_it = len(life.detection.encode())
    life.tell("identity", AgentRetired(life.us, "a", "gone", "op"))
    assert len(life.detection.encode()) < with_it / 2


def test_the_state_of_an_agent_is_bounded() -> None:
    detection = Detection(Settings(names_max=50, sessions_max=4, statements_max=20, running_max=10, shapes_a_minute_max=20))
    life = Life(detection)
    life.works(2)
    for number in range(3_000):
        if number % 10 == 0:
            life.opens(f"10.0.{number % 200}.1", keep=True)
        life.does(f"n{number}", f"public.t{number}", denied=number % 7 == 0, outcome="error" if number % 3 else "ok", wait=1000)
    assert len(detection.encode()) < 200_000


def test_every_detector_has_a_heading_in_the_documentation() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    for name in DETECTORS:
        assert f"\n### {name}\n" in text


@pytest.mark.slow
def test_a_small_company_is_watched_as_well_as_is_promised() -> None:
    """The bench in small. Its figures are in docs/benchmarks.md; these are bounds that a broken detector passes under."""
    result = run((7,), agents=40, incidents=26)
    assert result.recall >= 0.75
    assert result.false_a_day <= 0.04
    assert result.us_an_event < 50  # a loaded machine's; the promise is measured by make bench-detect
