"""What is made of statuses, that it is described, and that alerts and boards name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client import parser as text_format
from prometheus_client.openmetrics import parser as openmetrics

from ingest.histogram import BOUNDS_SECONDS, Histogram
from pgwarden.metrics import AGENTS_MAX, METRICS, OTHER, label_names, render
from pgwarden.neighbours import Neighbour
from tests.pgwarden.metric_expressions import metrics_of, names, panels, problems, rules

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(*neighbours: Neighbour, accept: str = "") -> Samples:
    body, content_type = render(neighbours, accept)
    parse = openmetrics if "openmetrics" in content_type else text_format
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse.text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def gateway(**more: object) -> Neighbour:
    return Neighbour("gateway", "", {"log": {"available": True, "reason": ""}, **more})


def test_both_formats_say_the_same() -> None:
    histogram = Histogram()
    for seconds in (1e-7, 3e-4, 3e-4, 1e9):
        histogram.observe(seconds)
    one = gateway(counters={"statements": 7}, decisions=histogram.facts(), sessions=[{"agent": "a"}])
    text, opened = samples(one), samples(one, accept="application/openmetrics-text; version=1.0.0")
    assert text == opened
    assert text[("pgwarden_gateway_statements_total", ())] == 7
    assert text[("pgwarden_gateway_decision_seconds_count", ())] == 4
    assert text[("pgwarden_gateway_decision_seconds_bucket", (("le", "0.0002"),))] == 1
    assert text[("pgwarden_gateway_decision_seconds_bucket", (("le", "0.0005"),))] == 3
    assert text[("pgwarden_gateway_decision_seconds_bucket", (("le", "50.0"),))] == 3
    assert text[("pgwarden_gateway_decision_seconds_sum", ())] == pytest.approx(1e9)


def test_a_duration_is_counted_where_it_belongs() -> None:
    assert list(BOUNDS_SECONDS) == sorted(set(BOUNDS_SECONDS))
    for index, bound in enumerate(BOUNDS_SECONDS):
        for seconds, expected in ((bound, index), (bound * 1.001, index + 1)):
            histogram = Histogram()
            histogram.observe(seconds)
            counts = histogram.facts()["counts"]
            assert isinstance(counts, list)
            assert counts.index(1) == expected


def test_a_process_that_does_not_answer_is_down_and_nothing_else_is_said_of_it() -> None:
    whose = (("name", "b"), ("process", "worker"))
    assert samples(Neighbour("worker", "b", None, "it does not run")) == {
        ("pgwarden_process_up", whose): 0,
        ("pgwarden_process_well", whose): 0,
    }


def test_a_process_that_says_what_is_wrong_is_up_and_not_well() -> None:
    said = samples(gateway(log={"available": False, "reason": "no space", "pending_bytes": 9}))
    whose = (("name", ""), ("process", "gateway"))
    assert (said[("pgwarden_process_up", whose)], said[("pgwarden_process_well", whose)]) == (1, 0)
    assert (said[("pgwarden_record_available", whose)], said[("pgwarden_record_pending_bytes", whose)]) == (0, 9)


def test_agents_have_figures_of_their_own_up_to_a_limit_and_no_session_is_left_out() -> None:
    sessions = [{"agent": f"agent-{number}"} for number in range(AGENTS_MAX + 50)] + [{"agent": "busy"}] * 3
    said = samples(gateway(sessions=sessions))
    by_agent = {labels[0][1]: value for (name, labels), value in said.items() if name == "pgwarden_gateway_sessions"}
    assert len(by_agent) == AGENTS_MAX + 1
    assert (by_agent["busy"], by_agent[OTHER], sum(by_agent.values())) == (3, 51, len(sessions))


def test_what_a_status_lacks_or_holds_wrong_is_left_out() -> None:
    strange = {
        "counters": {"statements": "many", "denied": None, "killed": -1},
        "decisions": 3,
        "sessions": "all",
        "connections": [1],
    }
    assert {name for name, _ in samples(gateway(**strange))} == {
        "pgwarden_process_up",
        "pgwarden_process_well",
        "pgwarden_record_available",
    }
    assert (
        samples(gateway(decisions={"counts": ["x", 1], "sum_seconds": "y"}))[("pgwarden_gateway_decision_seconds_count", ())] == 1
    )


def test_a_label_that_is_hostile_stays_one_label() -> None:
    hostile = 'x"} 1\nevil_total{a="'
    assert samples(gateway(sessions=[{"agent": hostile}]))[("pgwarden_gateway_sessions", (("agent", hostile),))] == 1
    assert samples(gateway(sessions=[{"agent": hostile}]), accept="application/openmetrics-text")[
        ("pgwarden_gateway_sessions", (("agent", hostile),))
    ]


def test_nothing_of_a_session_but_its_agent_is_shown() -> None:
    secret = "canary-of-a-session"
    session = {"session": secret, "agent": "a", "client": secret, "connection": secret, "state": secret}
    body, _ = render([gateway(sessions=[session], log={"available": False, "reason": secret}, relay={"error": secret})], "")
    assert secret.encode() not in body


def test_what_the_witness_says_of_itself_is_told_by_its_collector_alone() -> None:
    counted = {"reached": 1, "attached": 0, "made": 90, "lost": 3, "unattributed": 1, "unreadable_texts": 2, "full_sessions": 0}
    kernel = {"name": "kernel", "kind": "ebpf", "server": "main", "witness": counted}
    found = samples(Neighbour("collector", "", {"collectors": [kernel, {"name": "log", "kind": "log", "server": "main"}]}))
    witness = {name: value for (name, _), value in found.items() if name.startswith("pgwarden_witness_")}
    assert witness == {
        "pgwarden_witness_reached": 1,
        "pgwarden_witness_attached": 0,
        "pgwarden_witness_records_total": 90,
        "pgwarden_witness_records_lost_total": 3,
        "pgwarden_witness_records_unattributed_total": 1,
        "pgwarden_witness_texts_unreadable_total": 2,
        "pgwarden_witness_sessions_unheld_total": 0,
    }
    assert {dict(labels)["collector"] for name, labels in found if name.startswith("pgwarden_witness_")} == {"kernel"}


# -- names -------------------------------------------------------------------------------------------------------------------------


def test_names_follow_the_conventions() -> None:
    assert len({one.name for one in METRICS}) == len(METRICS)
    for one in METRICS:
        assert re.fullmatch(r"pgwarden_[a-z_]+[a-z]", one.name)
        assert (one.kind == "counter") == one.name.endswith("_total")
        assert one.kind != "histogram" or one.name.endswith("_seconds")
        assert not re.search(r"_(us|ms|kb|mb|minutes)$", one.name)
        assert one.sentence.endswith(".")


def test_every_metric_is_described_and_none_that_there_is_not() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(pgwarden_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", document, re.MULTILINE)
    shown = [(one.name, one.kind, ", ".join(f"`{label}`" for label in label_names(one)), one.sentence) for one in METRICS]
    assert [tuple(cell.strip() for cell in row) for row in rows] == shown


@pytest.mark.parametrize("alert", rules())
def test_an_alert_names_metrics_and_labels_that_there_are_and_is_described(alert: str) -> None:
    assert problems(*rules()[alert]) == []
    assert metrics_of(rules()[alert][0])
    assert f"`{alert}`" in (ROOT / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize("panel", panels())
def test_a_panel_names_metrics_and_labels_that_there_are(panel: str) -> None:
    for expression, legend in panels()[panel]:
        assert problems(expression, legend) == []
        assert metrics_of(expression)


def test_the_check_sees_what_is_wrong() -> None:
    assert problems("pgwarden_nothing > 0", "") == ["there is no metric pgwarden_nothing"]
    assert problems('pgwarden_process_up{who="x"}', "") == ["pgwarden_process_up has no label who"]
    assert problems("sum by (agent) (pgwarden_process_up)", "") == ["nothing here has a label agent"]
    assert problems("pgwarden_process_up", "{{ $labels.agent }}") == ["nothing here has a label agent"]
    assert problems("pgwarden_gateway_kill_seconds", "") == ["there is no metric pgwarden_gateway_kill_seconds"]


def test_every_metric_of_a_failure_is_on_the_board_or_in_an_alert() -> None:
    used = {name for expression, _ in rules().values() for name in metrics_of(expression)}
    used |= {name for targets in panels().values() for expression, _ in targets for name in metrics_of(expression)}
    forgotten = [
        one.name for one in METRICS if re.search("unproven|blind|standing|available|untracked", one.name) and not names(one) & used
    ]
    assert forgotten == []


def test_alerts_fire_when_they_should_and_only_then(needs: Callable[[str, bool], None]) -> None:
    promtool = shutil.which("promtool")
    needs("promtool", promtool is not None)
    assert promtool is not None
    done = subprocess.run(
        [promtool, "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_both_ways() -> None:
    tried: dict[str, set[bool]] = {}
    for case in yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]:
        for one in case["alert_rule_test"]:
            tried.setdefault(one["alertname"], set()).add(bool(one.get("exp_alerts")))
    assert tried == {alert: {True, False} for alert in rules()}
