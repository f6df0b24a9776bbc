"""`pgwarden api` where the log is Kafka: the same answers as on segments, over restarts, and while the brokers are away."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from identity.agent_keys import create, create_operator_key
from ingest.events import AgentRevoked, GatewayReported
from ingest.log import topics
from ingest.log.kafka import KafkaLog
from ingest.recorder import Recorder
from ingest.settings import KafkaSettings, RecorderSettings
from tests import broker as brokers
from tests.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]  # many processes, on two noisy cores

ALICE, ALICE_SHA256 = create_operator_key()
BOB, BOB_SHA256 = create_operator_key()
REPOSITORY = Path(__file__).parents[2]

CONFIG = """
state = "state"
[gateway]
name = "gateway-1"
[api]
listen = "127.0.0.1:{port}"
[connections.shop]
host = "127.0.0.1"
database = "shop"
user = "pgwarden"
password = "env:SHOP_PASSWORD"
sslmode = "disable"
[operators.alice]
key_sha256 = "{alice}"
[operators.bob]
key_sha256 = "{bob}"
[agents.reporter]
description = "monthly figures"
owner = "finance"
key = "file:reporter.key"
[[agents.reporter.grants]]
connection = "shop"
reason = "reports"
rules = [{{ schema = "public", tables = ["orders"], operations = ["select"] }}]
"""


def log_sections(settings: KafkaSettings) -> str:
    partitions = "\n".join(
        f"{topic}_partitions = {settings.partitions[topic]}" for topic in settings.partitions if topic not in topics.KEPT_FOR_EVER
    )
    return f"""
[log]
backend = "kafka"
[kafka]
bootstrap = {json.dumps(list(settings.bootstrap))}
tls = false
topic_prefix = "{settings.topic_prefix}"
replication = 1
in_sync_min = 1
{partitions}
"""


def configuration(folder: Path, port: int, settings: KafkaSettings | None) -> Path:
    folder.mkdir(exist_ok=True)
    key_file = folder / "reporter.key"
    key_file.touch(mode=0o600)
    if not key_file.read_text():
        key_file.write_text(create()[0])
    path = folder / "pgwarden.toml"
    text = CONFIG.format(port=port, alice=ALICE_SHA256, bob=BOB_SHA256)
    path.write_text(text + (log_sections(settings) if settings is not None else ""))
    return path


@dataclass
class Process:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def post(self, path: str, body: object = None, key: str = ALICE) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=30, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {ALICE}"}, timeout=30, trust_env=False)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def running(config: Path, port: int) -> Iterator[Process]:
    with (config.parent / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", "api", "-c", str(config)],
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env={**os.environ, "SHOP_PASSWORD": "never looked at here"},
        )
    made = Process(process, f"http://127.0.0.1:{port}", config.parent / "api.log")
    try:
        until = time.monotonic() + 120
        while True:
            try:
                made.get("/v1/openapi.json")
                break
            except httpx.TransportError:
                assert process.poll() is None, made.output()
                assert time.monotonic() < until, made.output()
                time.sleep(0.05)
        yield made
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def life(api: Process) -> list[tuple[int, object]]:
    """One agent's life over HTTP, and each answer without what differs from run to run."""
    answers = []

    def told(answer: httpx.Response) -> dict[str, object]:
        body = answer.json()
        text = json.dumps(body)
        for pattern, instead in (
            (r"g-[a-z2-7]{16}", "GRANT"),
            (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
            (r'"key": "[^"]+"', '"key": "KEY"'),
            (r'"key_id": "[^"]+"', '"key_id": "ID"'),
        ):
            text = re.sub(pattern, instead, text)
        answers.append((answer.status_code, json.loads(text)))
        return dict(body)

    agent = {"agent": "loader", "description": "loads", "owner": "data", "key": True}
    told(api.post("/v1/agents", agent))
    told(api.post("/v1/agents", {**agent, "owner": "somebody else"}))
    scope = {"connection": "shop", "rules": [{"schema": "public", "tables": ["orders"], "operations": ["insert"]}]}
    grant = told(api.post("/v1/grants", {"agent": "loader", "scope": scope, "reason": "loads orders"}))["grant"]
    told(api.post(f"/v1/grants/{grant}/approve"))
    told(api.post(f"/v1/grants/{grant}/approve", key=BOB))
    told(api.post("/v1/agents/loader/revoke", {"reason": "test"}))
    told(api.post("/v1/agents/loader/reinstate", {"reason": "test"}))
    told(api.post(f"/v1/grants/{grant}/revoke", {"reason": "done"}))
    told(api.post("/v1/agents/nobody/revoke", {"reason": "test"}))
    told(api.post("/v1/agents/loader/retire", {"reason": "gone"}))
    return answers


def caught_up(api: Process) -> bool:
    return api.get("/v1/health").json()["projection"]["lag_records"] == 0


def states(api: Process) -> dict[str, str]:
    return {item["agent"]: item["state"] for item in api.get("/v1/agents").json()["items"]}


def test_the_api_answers_on_kafka_as_it_does_on_segments(
    tmp_path: Path, kafka_settings: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    segments_port, kafka_port = brokers.port(), brokers.port()
    on_segments = configuration(tmp_path / "segments", segments_port, None)
    on_kafka = configuration(tmp_path / "kafka", kafka_port, kafka_settings)
    with running(on_segments, segments_port) as api:
        expected = life(api)
        wait_for(lambda: states(api) == {"loader": "retired", "reporter": "active"}, 60)
        wait_for(lambda: caught_up(api), 60)
        expected_grants = api.get("/v1/grants").json()["items"]
    with running(on_kafka, kafka_port) as api:
        assert life(api) == expected
        wait_for(lambda: states(api) == {"loader": "retired", "reporter": "active"}, 60)
        told = [(item["agent"], item["state"]) for item in expected_grants]
        wait_for(lambda: [(item["agent"], item["state"]) for item in api.get("/v1/grants").json()["items"]] == told, 60)
        health = api.get("/v1/health").json()
        assert health["enforcement"]["by"] == "workers"
        api.process.kill()
        api.process.wait(30)
    with running(on_kafka, kafka_port) as api:  # the tables, too, go on where they were
        wait_for(lambda: caught_up(api), 60)
        assert states(api) == {"loader": "retired", "reporter": "active"}
        assert api.post("/v1/agents/loader/reinstate", {"reason": "test"}).status_code == 409
        assert api.post("/v1/agents/reporter/revoke", {"reason": "test"}).status_code == 200
        wait_for(lambda: states(api) == {"loader": "retired", "reporter": "revoked"}, 60)  # the ends alone may be a moment old
        wait_for(lambda: caught_up(api), 60)
    rebuilt = subprocess.run(
        [sys.executable, "-m", "pgwarden", "rebuild", "-c", str(on_kafka), "--json"],
        capture_output=True,
        cwd=REPOSITORY,
        env={**os.environ, "SHOP_PASSWORD": "x"},
        timeout=120,
        check=True,
    )
    assert json.loads(rebuilt.stdout)["equal"] is True


def test_while_the_brokers_are_away_a_command_is_refused_and_afterwards_it_works_again(
    tmp_path: Path, own_broker: Broker, wait_for: Callable[..., object]
) -> None:
    settings = brokers.settings(own_broker, "pgwarden.")
    topics.apply(settings)
    port = brokers.port()
    with running(configuration(tmp_path, port, settings), port) as api:
        own_broker.kill9()
        refused = api.post("/v1/agents/reporter/revoke", {"reason": "while away"})
        assert refused.status_code == 503, refused.text
        assert "log" in refused.json()["error"]
        again = api.post("/v1/agents/reporter/revoke", {"reason": "while still away"})
        assert again.status_code == 503
        own_broker.start()

        def revoked() -> bool:
            return api.post("/v1/agents/reporter/revoke", {"reason": "afterwards"}).status_code == 200

        wait_for(revoked, 90)
        wait_for(lambda: states(api) == {"reporter": "revoked"}, 60)
        assert api.process.poll() is None


def test_an_api_that_finds_another_ones_decision_ends(
    tmp_path: Path, kafka_settings: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    port = brokers.port()
    with running(configuration(tmp_path, port, kafka_settings), port) as api:

        async def decide() -> None:
            log = await KafkaLog.open(kafka_settings)
            recorder = Recorder(log, "api", time.time_ns() // 1000, RecorderSettings())
            event = AgentRevoked(time.time_ns() // 1000, "reporter", "by another API", "alice")
            await recorder.recorded(recorder.record("identity", "reporter", event))
            await recorder.close()
            await log.close()

        asyncio.run(decide())
        wait_for(lambda: api.process.poll() is not None, 60)
        assert api.process.returncode == 1
        assert "another API" in api.output()
    with running(tmp_path / "pgwarden.toml", port) as api:
        wait_for(lambda: states(api) == {"reporter": "revoked"}, 60)


def report(gateway: str, boot: int, identity_at_us: int, backlog_bytes: int = 0) -> GatewayReported:
    now_us = time.time_ns() // 1000
    return GatewayReported(now_us, gateway, boot, 99, True, 0, "", 0, 0, backlog_bytes, identity_at_us, 3, 12, 1, 4, 2, 0)


def test_health_tells_of_each_gateway_by_its_own_report_and_of_its_silence(
    tmp_path: Path, kafka_settings: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    port = brokers.port()
    with running(configuration(tmp_path, port, kafka_settings), port) as api:

        async def tell() -> None:
            log = await KafkaLog.open(kafka_settings)
            for name in ("gateway-1", "gateway-2"):
                recorder = Recorder(log, name, time.time_ns() // 1000, RecorderSettings())
                await recorder.recorded(recorder.record("observations", name, report(name, 7_000_000, 2**60, 5_000)))
                await recorder.close()
            await log.close()

        asyncio.run(tell())

        def shown() -> dict[str, dict[str, object]]:
            return {item["gateway"]: item for item in api.get("/v1/health").json()["gateways"]}

        wait_for(lambda: set(shown()) == {"gateway-1", "gateway-2"}, 30)
        first = shown()["gateway-1"]
        assert (first["sessions"], first["pid"]) == (3, 99)
        wait_for(lambda: shown()["gateway-2"]["reachable"] is False, 30)
        health = api.get("/v1/health").json()
        assert health["status"] == "degraded"
        assert any("gateway-2 does not answer: it has not reported for" in problem for problem in health["problems"])


def not_started(config: Path) -> str:
    """What an API that cannot start says."""
    done = subprocess.run(
        [sys.executable, "-m", "pgwarden", "api", "-c", str(config)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "SHOP_PASSWORD": "x"},
        timeout=120,
    )
    assert done.returncode == 1
    return done.stderr


def test_an_api_without_brokers_says_so_and_does_not_start(tmp_path: Path) -> None:
    nobody = KafkaSettings((f"127.0.0.1:{brokers.port()}",), tls=False, replication=1, in_sync_min=1)
    config = configuration(tmp_path, brokers.port(), nobody)
    said = not_started(config)
    assert said.splitlines()[-1] == f"pgwarden api: the brokers at {nobody.bootstrap[0]} do not answer: nobody listens there"


def test_an_api_without_topics_says_what_makes_them(tmp_path: Path, broker: Broker) -> None:
    config = configuration(tmp_path, brokers.port(), brokers.settings(broker, "none-yet."))
    said = not_started(config)
    assert "pgwarden topics apply" in said


@contextmanager
def elsewhere(config: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process on what might be another machine: its state folder is not the API's."""
    with (config.parent / f"{command[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", *command, "-c", str(config)],
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env={**os.environ, "SHOP_PASSWORD": "never looked at here"},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def test_health_knows_workers_and_watchdogs_of_other_machines(
    tmp_path: Path, kafka_settings: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    port = brokers.port()
    here = configuration(tmp_path / "here", port, kafka_settings)
    there = configuration(tmp_path / "there", brokers.port(), kafka_settings)
    with running(here, port) as api, elsewhere(there, "worker", "--name", "b") as worker, elsewhere(there, "watchdog"):

        def up() -> set[tuple[object, ...]]:
            found = api.get("/v1/health").json()["processes"]
            return {(one["process"], one["name"] if one["process"] == "worker" else "", one["up"]) for one in found}

        wait_for(lambda: {("worker", "b", True), ("watchdog", "", True)} <= up(), 60)
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: not any(one[0] == "worker" for one in up()), 30)
        assert ("watchdog", "", True) in up()
