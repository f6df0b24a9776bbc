"""Metrics of a real gateway, watchdog and API, as Prometheus would scrape them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import psycopg
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from identity.agent_keys import create_operator_key
from ingest.events import AgentRevoked
from pgwarden.metrics import METRICS
from tests import broker
from tests.gateway.conftest import REPOSITORY, Warden
from tests.pgwarden.metric_expressions import metrics_of, panels, rules

Scraped = dict[tuple[str, tuple[tuple[str, str], ...]], float]
# What only a log in Kafka has.
OF_KAFKA = ("pgwarden_worker_", "pgwarden_relay_")
OPERATOR, OPERATOR_SHA256 = create_operator_key()


@contextmanager
def part(warden: Warden, name: str) -> Iterator[None]:
    with (warden.folder / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", name, "-c", str(warden.folder / "pgwarden.toml")],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        assert process.poll() is None, (warden.folder / f"{name}.out").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (warden.folder / f"{name}.out").read_text()


def scrape(url: str, *, opened: bool = False, key: str = "") -> Scraped:
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"} if opened else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    answer = httpx.get(url, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/openmetrics-text" if opened else "text/plain")
    families = (openmetrics if opened else text_format)(answer.text)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def tried(url: str) -> Scraped:
    try:
        return scrape(url)
    except httpx.TransportError:
        return {}


def up(scraped: Scraped) -> dict[str, float]:
    return {dict(labels)["process"]: value for (name, labels), value in scraped.items() if name == "pgwarden_process_up"}


@pytest.mark.slow
def test_what_real_processes_did_is_scraped_and_no_alert_or_panel_asks_for_more(
    make_warden: Callable[..., Warden], wait_for: Callable[..., object]
) -> None:
    port, api_port = broker.port(), broker.port()
    more = f'[metrics]\nlisten = "127.0.0.1:{port}"\n[api]\nlisten = "127.0.0.1:{api_port}"\n'
    more += f'[operators.olga]\nkey_sha256 = "{OPERATOR_SHA256}"\n'
    warden = make_warden(more=more)
    url, api = f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{api_port}/v1/metrics"
    warden.agent("reader")
    with ExitStack() as running:
        for name in ("watchdog", "metrics"):
            running.enter_context(part(warden, name))
        wait_for(lambda: up(tried(url)).get("watchdog") == 1, 60)
        with warden.connect("reader") as connection:
            for _ in range(40):
                connection.execute("SELECT count(*) FROM orders")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM secrets")
            said = scrape(url)
            assert said[("pgwarden_gateway_sessions", (("agent", "reader"),))] == 1
            assert said[("pgwarden_gateway_statements_total", ())] == 41
            assert said[("pgwarden_gateway_statements_denied_total", ())] == 1
            assert said[("pgwarden_gateway_decision_seconds_count", ())] >= 2
            assert 0 < said[("pgwarden_gateway_decision_seconds_sum", ())] < 10
            assert said[("pgwarden_gateway_connection_ready", (("connection", "shop"),))] == 1
            warden.record(AgentRevoked(time.time_ns() // 1000, "reader", "odd", "olga"))
            wait_for(lambda: scrape(url).get(("pgwarden_gateway_kill_seconds_count", ())) == 1)
        said = scrape(url)
        assert said[("pgwarden_gateway_sessions_killed_total", ())] == 1
        assert said[("pgwarden_gateway_kills_unproven_total", ())] == said[("pgwarden_gateway_sessions_unproven", ())] == 0
        assert said[("pgwarden_gateway_kill_seconds_sum", ())] > 0
        assert said[("pgwarden_record_append_seconds_count", (("name", ""), ("process", "gateway")))] > 10
        assert httpx.get(url.removesuffix("/metrics"), trust_env=False).status_code == 404
        assert httpx.post(url, trust_env=False).status_code == 405

        running.enter_context(part(warden, "api"))  # after the test's own writing of `identity`
        wait_for(lambda: up(scrape(url)).get("api") == 1, 90)
        wait_for(lambda: scrape(url).get(("pgwarden_log_gaps", ())) == 0)
        wait_for(lambda: scrape(url)[("pgwarden_projection_lag_records", ())] == 0)
        text, opened, through_api = scrape(url), scrape(url, opened=True), scrape(api, key=OPERATOR)
        assert {name for name, _ in text} == {name for name, _ in opened} == {name for name, _ in through_api}
        assert httpx.get(api, trust_env=False).status_code == 401
        assert up(text) == {"gateway": 1, "watchdog": 1, "api": 1}

        names = {name for name, _ in text}
        bare = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names}
        quiet = {one.name for one in METRICS if one.each and not one.name.endswith("ready")} | {
            "pgwarden_gateway_sessions"
        }  # nothing to have one of here
        missing = {one.name for one in METRICS if not one.name.startswith(OF_KAFKA)} - bare - quiet
        assert missing == set()
        asked = {name for expression, _ in rules().values() for name in metrics_of(expression)}
        asked |= {name for targets in panels().values() for expression, _ in targets for name in metrics_of(expression)}
        assert {name for name in asked - names - quiet if not name.startswith(OF_KAFKA)} == set()

        warden.kill9()
        wait_for(lambda: up(scrape(url))["gateway"] == 0)
