"""The pure step, against histories of which it is known what is honest in them and what is not."""

from __future__ import annotations

from collections import Counter

import pytest

from analytics.inspection import Effect
from analytics.reconcile import Reconcile
from analytics.settings import ReconcileSettings
from ingest.collectors.collector import digest
from ingest.events import (
    BackendEndOrdered,
    BackendOpened,
    Event,
    FindingRaised,
    GatewayReported,
    SessionJudged,
    SessionObserved,
    SessionOpened,
    SourceDeclared,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementStarted,
    WitnessReported,
    WitnessStarted,
    WitnessStopped,
)
from ingest.frames import TOPIC_OF, Framer, decode
from ingest.log import Record
from tests.analytics.reconcile_world import SERVER, USUAL, World, called, run
from tests.analytics.scenario import SECOND, START_US, stamp

POLICIES = [
    {"collectors": ("log", "ebpf")},
    {"collectors": ("log",), "gaps": False},
    {"collectors": ("ebpf",), "gaps": False},
    {"collectors": ("log", "ebpf"), "texts": False, "recorded_texts": False},
    {"collectors": ("log", "ebpf"), "gaps": False, "late_us": 5_000},
]


@pytest.mark.parametrize("policy", [*POLICIES, {"collectors": ("log",)}, {"collectors": ("ebpf",)}], ids=str)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_an_honest_history_raises_nothing_however_late_its_parts_come(seed: int, policy: dict[str, object]) -> None:
    effects, step = run(World(seed, **policy))  # type: ignore[arg-type]
    assert [effect.summary for effect in effects if isinstance(effect, FindingRaised)] == []
    verdicts = Counter(effect.verdict for effect in effects if isinstance(effect, SessionJudged))
    assert verdicts == {"audited": 12, "ours": 4, "declared": 1}
    assert step.status()["statements_matched"] > 30


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_of_200_violations_of_five_kinds_all_are_found_and_none_is_invented(policy: dict[str, object]) -> None:
    world = World(200, sessions=40, violations=200, **policy)  # type: ignore[arg-type]
    effects, _ = run(world)
    wanted = Counter(violation.kind for violation in world.violations)
    assert wanted == dict.fromkeys(("shadow", "hijacked", "unaudited", "phantom", "miscounted"), 40)
    findings = [effect for effect in effects if isinstance(effect, FindingRaised)]
    assert Counter(finding.detector for finding in findings) == wanted
    assert len({finding.finding for finding in findings}) == len(findings) == 200
    # And each is the one that was seeded: by its execution, by the digest of what ran, by the server's name for the session.
    names = {finding.finding for finding in findings}
    for violation in world.violations:
        assert world.name_of(violation) in names, violation
    unnamed = [finding for finding in findings if not finding.evidence or not finding.offsets]
    assert unnamed == []


@pytest.mark.slow
def test_an_interrupted_reading_that_goes_on_from_its_state_finds_the_same() -> None:
    whole, _ = run(World(7, sessions=20, violations=60))
    pieces, _ = run(World(7, sessions=20, violations=60), restart_every=25)
    assert [effect for effect in pieces if isinstance(effect, FindingRaised)] == [
        effect for effect in whole if isinstance(effect, FindingRaised)
    ]


def test_of_a_few_violations_each_is_found_and_none_is_invented() -> None:
    world = World(20, sessions=8, violations=20)
    effects, _ = run(world)
    names = {effect.finding for effect in effects if isinstance(effect, FindingRaised)}
    assert names == {world.name_of(violation) for violation in world.violations}


def test_the_same_history_gives_the_same_effects() -> None:
    assert run(World(3, violations=30))[0] == run(World(3, violations=30))[0]


# -- one session, step by step ---------------------------------------------------------------------------------------------------


class Desk:
    """Hands events to the step as they are recorded, and lets time pass."""

    def __init__(self, **settings: object) -> None:
        self.now_us = START_US
        self.step = Reconcile(ReconcileSettings(**settings))  # type: ignore[arg-type]
        self.effects: list[Effect] = []
        self.offset = 0
        self.boot = 1  # of the gateway
        self.record(WitnessStarted(START_US, "log", "log", SERVER, ("shop",), "statements", "1"))
        self.now_us += 10 * SECOND

    def record(self, *events: Event, under: Stamp | None = None) -> None:
        framer = Framer("gw-1", self.boot, events_max=1_000, bytes_max=2**20)
        for event in events:
            framer.add(TOPIC_OF[type(event)], "k", event, under)
        for entry in framer.cut():
            self.offset += 1
            record = Record(entry.topic, 0, self.offset, self.now_us, entry.key, entry.value)
            self.effects += self.step.step(record, decode(entry.value), self.now_us)

    def wait(self, seconds: float) -> None:
        until_us = self.now_us + int(seconds * SECOND)
        while self.now_us < until_us:
            self.now_us += 250_000
            self.effects += self.step.tick(self.now_us)

    def seen(self, pid: int = 7, **changes: object) -> SessionObserved:
        fields: dict[str, object] = {
            "at_us": self.now_us,
            "witness": "log",
            "server": SERVER,
            "session_id": f"{self.now_us // SECOND:x}.{pid:x}",
            "backend_pid": pid,
            "user": "pgwarden",
            "database": "shop",
            "client": "10.9.9.9:5555",
            "application_name": "psql",
        }
        event = SessionObserved(**(fields | changes))  # type: ignore[arg-type]
        self.record(event)
        return event

    def opened(self, pid: int, port: int, session: str) -> None:
        """By the gateway, now."""
        under = stamp(session, "reporting", backend_pid=pid, backend_start_us=self.now_us, upstream_port=port)
        self.record(SessionOpened(self.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))

    def told(self) -> list[str]:
        return [effect.detector for effect in self.effects if isinstance(effect, FindingRaised)]

    def verdicts(self) -> list[str]:
        return [effect.verdict for effect in self.effects if isinstance(effect, SessionJudged)]

    def orders(self) -> list[BackendEndOrdered]:
        return [effect for effect in self.effects if isinstance(effect, BackendEndOrdered)]


def statement_seen(session_id: str, sequence: int, at_us: int, text: str = "select 1") -> StatementObserved:
    name = digest(text.encode())
    return StatementObserved(
        at_us, "log", SERVER, session_id, sequence, "statement", text, len(text), name, 0, -1, "", 5, "", "", "", True
    )


def test_a_shadow_session_is_told_within_a_second_with_who_it_is() -> None:
    desk = Desk()
    desk.seen(client_pid=4711, client_exe="/usr/bin/psql", client_uid=1000, user="reporting")
    desk.wait(1)
    (finding,) = [effect for effect in desk.effects if isinstance(effect, FindingRaised)]
    assert finding.severity == "critical"
    assert "role reporting on database shop from 10.9.9.9:5555, process 4711 (/usr/bin/psql) of user id 1000" in finding.summary
    assert desk.orders() == []  # nothing is ended unless that was asked for


def test_a_session_that_bears_a_gateways_name_is_waited_for_and_then_told_all_the_same() -> None:
    desk = Desk()
    desk.seen(application_name=called("reporting", desk.now_us, 1))
    desk.wait(3)
    assert desk.told() == []
    desk.wait(3)
    assert desk.told() == ["shadow"]


@pytest.mark.parametrize("name", ["of another time", "of a session that has its backend", "of no form that ours have"])
def test_a_gateways_name_that_cannot_be_buys_no_time(name: str) -> None:
    desk = Desk()
    taken = called("reporting", desk.now_us, 1)
    desk.opened(7, 5555, taken.rpartition("/")[2])
    desk.seen(7)
    desk.wait(10)
    forged = {
        "of another time": called("reporting", desk.now_us - 3_600 * SECOND, 2),
        "of a session that has its backend": taken,
        "of no form that ours have": "pgwarden/reporting/1",
    }[name]
    desk.seen(8, client="10.9.9.9:5556", user="reporting", application_name=forged)
    desk.wait(1)
    assert desk.told() == ["shadow"]


def test_a_gateways_word_that_comes_late_is_in_time() -> None:
    desk = Desk()
    under = stamp("s1", "reporting", backend_pid=7, backend_start_us=desk.now_us, upstream_port=5555)
    desk.seen(application_name=called("reporting", desk.now_us, 1))
    desk.wait(2)
    desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
    desk.wait(10)
    assert (desk.told(), desk.verdicts()) == ([], ["audited"])


def test_a_shadow_is_ordered_to_end_where_that_is_wanted_and_once() -> None:
    desk = Desk(kill_shadow=True)
    seen = desk.seen()
    desk.wait(3)
    desk.record(seen)
    desk.wait(3)
    (order,) = desk.orders()
    assert (order.connection, order.server, order.session_id, order.backend_pid) == ("shop", SERVER, seen.session_id, 7)
    assert order.backend_start_us == seen.at_us // SECOND * SECOND
    assert order.finding in [effect.finding for effect in desk.effects if isinstance(effect, FindingRaised)]


def test_what_is_declared_or_our_own_is_never_ordered_to_end() -> None:
    desk = Desk(kill_shadow=True)
    desk.record(SourceDeclared(desk.now_us, "nightly", "backup", "", ("backup",), "10.0.0.0/8", "", "", "r", "op"))
    desk.seen(8, user="backup", client="10.0.0.7:5000")
    desk.seen(9, client="127.0.0.1:6000", application_name="x")
    desk.record(BackendOpened(desk.now_us, "gw-1", 1, "control", "shop", "pgwarden", 9, desk.now_us, 6000))
    desk.seen(10, client="127.0.0.1:6001", application_name="x")
    desk.record(BackendOpened(desk.now_us, "gw-1", 1, "refused", "shop", "pgwarden", 10, 0, 6001))
    desk.seen(11, backend_type="autovacuum worker")
    desk.wait(20)
    assert (desk.told(), desk.orders(), sorted(desk.verdicts())) == ([], [], ["declared", "ours", "ours", "ours"])


def test_a_name_alone_makes_nobody_ours() -> None:
    desk = Desk()
    desk.record(BackendOpened(desk.now_us, "gw-1", 1, "control", "shop", "pgwarden", 9, desk.now_us, 6000))
    desk.seen(12, application_name="pgwarden/control/gw-1/1")
    desk.wait(10)
    assert desk.told() == ["shadow"]


def test_a_gateways_session_that_another_port_holds_is_hijacked_and_not_ended() -> None:
    desk = Desk(kill_shadow=True)
    under = stamp("s1", "reporting", backend_pid=7, backend_start_us=desk.now_us, upstream_port=5554)
    desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
    desk.seen()
    desk.wait(10)
    assert (desk.told(), desk.orders()) == (["hijacked"], [])
    (finding,) = [effect for effect in desk.effects if isinstance(effect, FindingRaised)]
    assert (finding.agent, finding.session) == ("reporting", "s1")


def test_a_gateway_that_began_before_its_collector_is_known_by_the_port_that_it_connects_from() -> None:
    desk = Desk()
    desk.opened(7, 5555, "s1")
    desk.seen(7, client_pid=700, client_start_us=START_US, client_exe="/usr/bin/python3.11")
    desk.wait(1)
    desk.seen(8, client="10.9.9.9:5556", client_pid=4711, client_start_us=START_US, client_exe="/usr/bin/psql")
    desk.wait(10)
    assert desk.told() == ["hijacked"]
    assert desk.verdicts() == ["audited", "hijacked"]
    desk.opened(9, 5557, "s2")  # its name and its port, in the hands of another process
    desk.seen(9, client="10.9.9.9:5557", client_pid=4712, client_start_us=START_US, client_exe="/usr/bin/psql")
    desk.wait(10)
    assert desk.told() == ["hijacked", "hijacked"]


@pytest.mark.parametrize("seen_first", [False, True])
def test_a_gateway_that_began_anew_is_another_process_and_no_thief(seen_first: bool) -> None:
    desk = Desk()
    desk.record(BackendOpened(desk.now_us, "gw-1", 1, "control", "shop", "pgwarden", 9, desk.now_us, 6000))
    desk.seen(9, client="10.9.9.9:6000", client_pid=700, client_start_us=START_US)
    desk.wait(10)
    desk.boot = 2  # whose control connection no collector saw
    if seen_first:
        desk.seen(7, client_pid=900, client_start_us=desk.now_us)
    desk.opened(7, 5555, "s1")
    if not seen_first:
        desk.seen(7, client_pid=900, client_start_us=desk.now_us)
    desk.wait(10)
    assert (desk.told(), desk.verdicts()) == ([], ["ours", "audited"])


def test_a_process_that_is_told_late_is_held_against_the_gateways() -> None:
    desk = Desk()
    desk.record(BackendOpened(desk.now_us, "gw-1", 1, "control", "shop", "pgwarden", 9, desk.now_us, 6000))
    desk.seen(9, client="10.9.9.9:6000", client_pid=700, client_start_us=START_US)
    under = stamp("s1", "reporting", backend_pid=7, backend_start_us=desk.now_us, upstream_port=5555)
    desk.seen(7, client_pid=4711, client_start_us=START_US)
    # What ran stands in another partition than the opening.
    desk.record(StatementDefined(1, "SELECT 1", "full", 8, "", (), (), ()), under=under)
    desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
    desk.wait(10)
    assert desk.told() == ["hijacked"]


def test_where_ports_are_rewritten_they_are_not_compared() -> None:
    desk = Desk(compare_addresses=False)
    under = stamp("s1", "reporting", backend_pid=7, backend_start_us=desk.now_us, upstream_port=5554)
    desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
    desk.seen()
    desk.wait(10)
    assert (desk.told(), desk.verdicts()) == ([], ["audited"])


def test_nothing_is_ended_on_a_guess_while_a_gateways_record_is_late() -> None:
    desk = Desk(kill_shadow=True)

    def reported(backlog_bytes: int) -> GatewayReported:
        t = desk.now_us
        return GatewayReported(t, "gw-2", 1, 1, True, t, "", 0, 0, backlog_bytes, t, 1, 0, 0, 0, 0, 0)

    desk.record(reported(0))
    desk.wait(1)
    desk.seen()
    for _ in range(30):
        desk.record(reported(1_000))
        desk.wait(1)
    assert (desk.told(), desk.orders()) == ([], [])
    for _ in range(40):
        desk.record(reported(1_000))
        desk.wait(1)
    assert (desk.told(), desk.orders()) == (["shadow"], [])  # told, and left alone
    assert "is late" in next(effect.summary for effect in desk.effects if isinstance(effect, FindingRaised))


def test_what_began_before_the_record_is_not_explained() -> None:
    desk = Desk()
    desk.seen(at_us=START_US - 60 * SECOND)
    desk.wait(10)
    assert (desk.told(), desk.verdicts()) == ([], ["unexplained"])


def test_what_is_beyond_the_limits_is_counted_and_claimed_of_nobody() -> None:
    world = World(11, sessions=6)
    effects, step = run(world, ReconcileSettings(statements_max=5, texts_max=3, sessions_max=3))
    assert {effect.detector for effect in effects if isinstance(effect, FindingRaised)} == {"unreconciled"}
    assert step.status()["statements_beyond_the_limit"] > 0


def test_a_session_of_which_too_many_statements_wait_is_let_go_of_and_that_is_told() -> None:
    session = Session(statements_max=10)
    for number in range(55):  # four times beyond the limit, and told at the first, the second and the fourth
        session.executed(f"SELECT {number}")
        session.now_us += SECOND
    findings = [effect for effect in session.effects if isinstance(effect, FindingRaised)]
    assert [(finding.detector, finding.agent, finding.session) for finding in findings] == [("unreconciled", "reporting", "s1")] * 3
    assert "more than 10 statements of session s1 of agent reporting waited for their counterpart" in findings[0].summary
    assert [dict(finding.numbers)["reached"] for finding in findings] == [1, 2, 4]


def test_of_what_was_not_kept_of_a_session_before_its_gateways_word_nothing_is_claimed() -> None:
    desk = Desk(statements_max=8, lateness_seconds=60.0)
    under = stamp("s1", "reporting", backend_pid=7, backend_start_us=desk.now_us, upstream_port=5555)
    name = desk.seen(client="10.9.9.9:5555", application_name=called("reporting", desk.now_us, 1)).session_id
    ran = [desk.now_us + number * SECOND for number in range(1, 11)]
    desk.now_us = ran[-1] + SECOND
    for number, at_us in enumerate(ran, 1):  # two more than are kept
        desk.record(statement_seen(name, number, at_us, f"select {number}"))
    desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
    for number, at_us in enumerate(ran, 1):
        text = f"select {number}"
        desk.record(StatementDefined(number, text, "full", len(text), "f", ("select",), (), ()), under=under)
        desk.record(StatementStarted(at_us, number, number, "r"), under=under)
        desk.record(StatementFinished(number, "ok", "", "SELECT 1", 1, 0, 9, 5), under=under)
        desk.record(WitnessReported(desk.now_us, "log", "log", SERVER, True, "", at_us + 3 * SECOND, desk.now_us, 10, 0, 1))
        desk.wait(0.5)
    desk.wait(200)
    status = desk.step.status()
    told = ["unreconciled"]  # that some were not kept
    assert (desk.told(), status["statements_beyond_the_limit"], status["statements_matched"]) == (told, 2, 8)


def test_where_too_many_statements_wait_over_all_sessions_the_largest_are_let_go_of_and_that_is_told() -> None:
    desk = Desk(waiting_max=100, lateness_seconds=60.0)
    names = []
    for pid, count in ((7, 20), (8, 90)):
        under = stamp(f"s{pid}", f"agent-{pid}", backend_pid=pid, backend_start_us=desk.now_us, upstream_port=5555)
        names.append(desk.seen(pid).session_id)
        desk.record(SessionOpened(desk.now_us, under, "scram", "k", 0, "", "", "3.0", "group"))
        for number in range(1, count + 1):  # none of them is on record
            desk.record(statement_seen(names[-1], number, desk.now_us))
    (finding,) = [effect for effect in desk.effects if isinstance(effect, FindingRaised)]
    assert (finding.detector, finding.agent, finding.session) == ("unreconciled", "agent-8", "s8")
    assert "more than 100 statements waited for their counterpart: 81 of 1 sessions are not compared" in finding.summary
    status = desk.step.status()
    assert (status["waiting_limit_reached"], status["statements_beyond_the_limit"], status["statements_waiting"]) == (1, 81, 20)
    assert status["statements_passed_over"] == 9  # of the same moment
    desk.wait(120)
    told = Counter(
        effect.session for effect in desk.effects if isinstance(effect, FindingRaised) and effect.detector == "unaudited"
    )
    assert told == {"s7": 20}  # the small session is compared all the same


@pytest.mark.parametrize(
    "settings", [USUAL, ReconcileSettings(statements_max=4, waiting_max=30, sessions_max=6)], ids=["usual", "small"]
)
def test_what_waits_is_counted_as_it_is_kept(settings: ReconcileSettings) -> None:
    step, tick_us = Reconcile(settings), START_US
    most = 0
    for at_us, record, frame in World(5, sessions=10, violations=10).frames():
        step.step(record, frame, at_us)
        if at_us > tick_us + 250_000:
            step.tick(at_us)
            tick_us = at_us
        again = Reconcile(settings)
        again.restore(step.encode())  # which counts anew
        waiting = step.status()["statements_waiting"]
        assert again.status()["statements_waiting"] == waiting
        most = max(most, waiting)
    step.tick(tick_us + 1_000 * SECOND)
    assert most > 10
    assert most <= settings.waiting_max
    assert step.status()["statements_waiting"] == 0


# -- one session's statements ----------------------------------------------------------------------------------------------------

MANY = 100  # more than alignment looks at together


class Session(Desk):
    """A gateway's session that a log collector sees."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.under = stamp("s1", "reporting", backend_pid=7, backend_start_us=self.now_us, upstream_port=5555)
        self.record(SessionOpened(self.now_us, self.under, "scram", "k", 0, "", "", "3.0", "group"))
        self.session_id = self.seen().session_id
        self._sequence = 0
        self._number = 0

    def defined(self, text: str) -> int:
        self._number += 1
        whole = digest(text.encode())
        self.record(
            StatementDefined(self._number, text, "full", len(text), "f", ("SELECT",), (), (), digest=whole), under=self.under
        )
        return self._number

    def refused(self, text: str) -> None:
        number = self.defined(text)
        self.record(StatementDenied(self.now_us, number, number, "42501", "never", "no"), under=self.under)

    def executed(self, text: str, outcome: str = "ok") -> None:
        number = self.defined(text)
        self.record(
            StatementStarted(self.now_us, number, number, "r"),
            StatementFinished(number, outcome, "", "SELECT 1", 1, 0, 0, 10),
            under=self.under,
        )

    def observed(
        self, text: str, sqlstate: str = "", source: str = "statement", *, keeps_text: bool = True, at_us: int = 0
    ) -> None:
        self._sequence += 1
        whole = digest(text.encode())
        at = (at_us or self.now_us, "log", SERVER, self.session_id, self._sequence, source)
        kept = text if keeps_text else ""
        self.record(StatementObserved(*at, kept, len(text), whole, 0, -1, sqlstate, -1, "pgwarden", "shop", ""))

    def complete(self) -> None:
        now_us = self.now_us
        self.record(WitnessReported(now_us, "log", "log", SERVER, True, "", now_us, now_us, 1, 0, 0))


def test_what_ran_while_a_collector_was_started_anew_is_compared() -> None:
    desk = Session()
    desk.executed("select 1")
    desk.observed("select 1")
    desk.complete()
    stopped_us = desk.now_us
    desk.record(WitnessStopped(stopped_us, "log", "log", SERVER))
    desk.wait(5)
    meanwhile_us = desk.now_us
    desk.executed("select 2")
    desk.executed("select 'never'")
    desk.wait(20)
    desk.record(WitnessStarted(desk.now_us, "log", "log", SERVER, ("shop",), "statements", "1", stopped_us))
    desk.observed("select 2", at_us=meanwhile_us)
    desk.observed("drop table t", at_us=meanwhile_us)
    desk.complete()
    desk.wait(20)
    desk.complete()
    desk.wait(20)
    assert sorted(desk.told()) == ["phantom", "unaudited"]
    assert desk.step.status()["statements_matched"] == 2


def test_a_collector_that_does_not_come_back_is_no_longer_waited_for() -> None:
    desk = Session()
    desk.complete()
    desk.record(WitnessStopped(desk.now_us, "log", "log", SERVER))
    desk.executed("select 1")
    desk.wait(desk.step._held.settings.restart_seconds - 1)
    assert desk.step.status()["statements_waiting"] == 1
    desk.wait(2)
    assert (desk.told(), desk.step.status()["statements_waiting"]) == ([], 0)
    desk.executed("select 2")
    assert desk.step.status()["statements_waiting"] == 0


@pytest.mark.parametrize(("source", "told"), [("audit", ["unaudited"]), ("statement", ["phantom", "unaudited", "unaudited"])])
def test_where_pgaudit_alone_writes_its_silence_proves_nothing_and_its_word_does(source: str, told: list[str]) -> None:
    session = Session()
    session.executed("SELECT 1")
    session.observed("SELECT 1", source=source)
    session.executed("ROLLBACK")  # of a failed transaction: pgaudit writes nothing of it
    session.observed("SELECT 'round the gateway'", source=source)
    session.defined("SELECT 'bound and not executed'")
    session.observed("SELECT 'bound and not executed'", source=source)
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert (sorted(session.told()), session.step.status()["statements_matched"]) == (told, 1)


def test_what_ran_behind_many_refusals_is_found_with_its_counterpart() -> None:
    session = Session()
    for number in range(1, MANY + 1):
        session.refused(f"DROP TABLE t{number}")
        session.observed(f"pgwarden_refused_{number}", "42601")
    session.executed("SELECT 1")
    session.observed("SELECT 1")
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert (session.told(), session.step.status()["statements_matched"]) == ([], 1)


def test_what_ran_behind_many_errors_of_what_never_began_is_found_with_its_counterpart() -> None:
    session = Session()
    session.defined("SELECT $1::int")
    for _ in range(MANY):
        session.observed("SELECT $1::int", "22P02")  # at its Bind
    session.executed("SELECT 1")
    session.observed("SELECT 1")
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert (session.told(), session.step.status()["statements_matched"]) == ([], 1)


def test_what_ran_behind_many_that_were_skipped_is_waited_for_while_its_collector_is_late() -> None:
    session = Session()
    for number in range(MANY):
        session.executed(f"SELECT {number}", "skipped")
    session.executed("SELECT 'behind'")
    session.observed("SELECT 'behind'")
    session.wait(20)
    assert session.told() == []
    session.complete()
    session.wait(20)
    assert (session.told(), session.step.status()["statements_matched"]) == ([], 1)


@pytest.mark.parametrize("kind", ["phantom", "unaudited"])
def test_a_violation_behind_many_refusals_is_told(kind: str) -> None:
    session = Session()
    for number in range(1, MANY + 1):
        session.refused(f"DROP TABLE t{number}")
        session.observed(f"pgwarden_refused_{number}", "42601")
    if kind == "phantom":
        session.executed("SELECT 1")
    else:
        session.observed("SELECT 1")
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert session.told() == [kind]


def test_more_refusals_than_the_gateway_recorded_are_told() -> None:
    session = Session()
    session.refused("DROP TABLE t")
    session.observed("pgwarden_refused_1", "42601")
    session.observed("pgwarden_refused_2", "42601")
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert session.told() == ["unaudited"]


@pytest.mark.parametrize("number", [1, 999, 1_000, 1_001, 9_999, 10_000, 12_345])
def test_a_refusal_of_which_only_a_digest_is_known_is_never_told_however_many_there_were(number: int) -> None:
    session = Session()
    text = session.defined("DROP TABLE t")
    denied = [StatementDenied(session.now_us, one, text, "42501", "never", "no") for one in range(1, number + 1)]
    for begin in range(0, number, 1_000):
        session.record(*denied[begin : begin + 1_000], under=session.under)
    session.observed(f"pgwarden_refused_{number}", "42601", keeps_text=False)
    session.observed("SELECT 1 FROM", "42601", keeps_text=False)  # and what fails alike is
    for _ in range(20):
        session.wait(1)
        session.complete()
    assert session.told() == ["unaudited"]
    assert session.step.status()["unaudited"] == 1


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x81\xa7sources\x01", b"[]"])
def test_a_state_that_cannot_be_read_is_said_to_be_so(state: bytes) -> None:
    with pytest.raises(ValueError, match="reconcile"):
        Reconcile(ReconcileSettings()).restore(state)
