"""What health makes of what all parts say: each cause once, and nobody left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.health import Tables, each_cause_once, health
from analytics.inspector import InspectionStatus
from analytics.runner import Lag

WELL = Lag(0, 0.0, 0, 0, 0, True, "", "")
GATEWAY: Mapping[str, object] = {
    "gateway": "gw-1",
    "boot": 1,
    "pid": 2,
    "started_us": 3,
    "sessions": [],
    "log": {"available": True},
}
NOTHING = Tables(0, (), ())
NO_SPACE = "[Errno 28] No space left on device"
BROKERS = "the log cannot be read: no broker answers"


def problems(
    *,
    gateways: Sequence[Mapping[str, object]] = (GATEWAY,),
    processes: Sequence[Mapping[str, object]] = (),
    lag: Lag = WELL,
    inspections: Sequence[InspectionStatus] = (),
    tables: Tables | str = NOTHING,
) -> list[str]:
    answer = health(gateways, processes, lag, inspections, tables)
    assert answer["status"] == ("degraded" if answer["problems"] else "ok")
    found: list[str] = answer["problems"]  # type: ignore[assignment]
    return found


def process(name: str, reason: str = "", *, up: bool = True, called: str = "") -> Mapping[str, object]:
    return {"process": name, "name": called, "up": up, "reason": reason}


def test_all_is_well() -> None:
    assert problems(processes=[process("watchdog"), process("worker", called="b")]) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (process("watchdog", "it does not run: start it", up=False), "watchdog does not answer: it does not run: start it"),
        (process("worker", "behind for 31 s", called="b"), "worker b is not well: behind for 31 s"),
        (process("watchdog", "cannot record: " + NO_SPACE), f"watchdog cannot record: {NO_SPACE}"),
        (process("webhooks", "pager: it answered 500"), "webhooks is not well: pager: it answered 500"),
    ],
)
def test_a_process_that_is_not_well_is_told(said: Mapping[str, object], told: str) -> None:
    assert problems(processes=[said]) == [told]


def test_a_collector_that_is_blind_is_told_of_by_its_own_word_alone() -> None:
    row = {"witness": "main-log", "kind": "log", "server": "main", "state": "blind", "reason": "no canary"}
    said = process("collector", "does not see main: main-log: no canary")
    assert len(problems(processes=[said], tables=Tables(0, (), (row,)))) == 1


def test_a_full_disk_is_told_once() -> None:
    full = {**GATEWAY, "log": {"available": False, "reason": NO_SPACE}}
    assert problems(gateways=[full], processes=[process("watchdog", "cannot record: " + NO_SPACE)]) == [
        f"gw-1 cannot record, so it lets nothing through; watchdog cannot record: {NO_SPACE}"
    ]


def test_brokers_that_are_away_are_told_once() -> None:
    deaf = [{"gateway": f"gw-{n}", "reachable": False, "deaf": True, "reason": "for 9 s this API has read nothing"} for n in (1, 2)]
    lag = replace(WELL, seconds=9.0, projection_error=BROKERS, enforcement_error=BROKERS)
    inspection = InspectionStatus("reconcile", 0, True, 0, BROKERS)
    assert problems(gateways=deaf, lag=lag, inspections=[inspection]) == [
        "gw-1 is not heard of; gw-2 is not heard of; the tables stand still; enforcement stands still;"
        f" inspection reconcile stands still: {BROKERS}"
    ]


def test_a_gateway_that_does_not_answer_is_not_hidden_by_another_cause() -> None:
    silent = {"gateway": "gw-2", "reachable": False, "reason": "it has not reported for 9 s"}
    assert problems(gateways=[GATEWAY, silent], lag=replace(WELL, projection_error=BROKERS)) == [
        "gw-2 does not answer: it has not reported for 9 s",
        f"the tables stand still: {BROKERS}",
    ]


@pytest.mark.parametrize(("state", "told"), [("seeing", 0), ("starting", 0), ("blind", 1), ("silent", 1)])
def test_a_collector_that_does_not_see_is_told(state: str, told: int) -> None:
    row = {"witness": "main-log", "kind": "log", "server": "main", "state": state, "reason": "no canary", "blind_since_at": None}
    found = problems(tables=Tables(0, (), (row,)))
    assert len(found) == told
    assert all("collector main-log does not see what server main does: no canary" in one for one in found)


def test_tables_that_do_not_answer_hide_nothing_else() -> None:
    said = process("watchdog", "hangs", up=False)
    assert problems(processes=[said], tables="too slow") == [
        "watchdog does not answer: hangs",
        "the tables do not answer: too slow",
    ]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", "x", "y"]))))
def test_no_problem_is_lost_and_no_cause_told_twice(found: list[tuple[str, str]]) -> None:
    told = each_cause_once(found)
    causes = {cause for _, cause in found if cause}
    assert len(told) == len(causes) + sum(not cause for _, cause in found)
    for what, cause in found:
        assert any(what in one.partition(": ")[0] and (not cause or one.endswith(f": {cause}")) for one in told)
