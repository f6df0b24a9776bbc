"""Webhooks against real receivers on loopback: who is told of what, when nobody listens, when it is killed, over TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ingest.events import AgentRevoked, Event, FindingRaised, SessionKilled
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden.cli import main
from pgwarden.config import WebhookConfig
from pgwarden.references import Secret
from pgwarden.webhooks import Sender, SenderSettings
from tests.broker import make_certificates
from tests.conftest import fill
from tests.pgwarden.receiver import Answer, Receiver

REPOSITORY = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(b"canary-of-a-webhook-secret").decode()
BEFORE = "whsec_" + base64.b64encode(b"the one that was before it").decode()
FAST = SenderSettings(pause_seconds_min=0.02, pause_seconds_max=0.1, place_seconds=0.05)


def killed(session: str, agent: str = "reporter") -> SessionKilled:
    return SessionKilled(time.time_ns() // 1000, session, agent, "agent revoked", 1, 2, 3, 4, 77, "odd")


@dataclass
class House:
    """A log, what is written to it, and the senders that follow it."""

    state: Path
    log: SegmentLog
    recorder: Recorder
    running: dict[str, tuple[Sender, asyncio.Task[None]]] = field(default_factory=dict)

    async def record(self, *events: Event, topic: str = "sessions") -> None:
        for event in events:
            ticket = self.recorder.record(topic, getattr(event, "agent", ""), event)  # type: ignore[arg-type]
        await self.recorder.recorded(ticket)

    def start(self, webhook: WebhookConfig, settings: SenderSettings = FAST, log_name: str = "segments") -> Sender:
        sender = Sender(self.log, log_name, webhook, self.state, settings)
        self.running[webhook.name] = sender, asyncio.create_task(sender.run())
        return sender

    async def stop(self, name: str) -> None:
        _, task = self.running.pop(name)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    async def begun(self, name: str = "hook") -> None:
        """Its place is kept: it tells of all that comes from now on."""
        while not (self.state / "webhooks" / f"{name}.place").exists():
            await asyncio.sleep(0.01)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    log = SegmentLog(tmp_path / "log", LogSettings(poll_interval_max_ms=10))
    made = House(tmp_path, log, Recorder(log, "gateway-1", time.time_ns() // 1000, RecorderSettings()))
    yield made
    for name in list(made.running):
        await made.stop(name)
    await made.recorder.close()
    await log.close()


def hook(receiver: Receiver, name: str = "hook", **more: object) -> WebhookConfig:
    made = WebhookConfig(
        name,
        receiver.url,
        Secret(SECRET, "env:S"),
        None,
        ("kills", "findings", "revocations"),
        "warning",
        5.0,
        0,
        "/pgwarden",
        None,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def sessions(receiver: Receiver) -> list[str]:
    """Whose ends it was told of, repeats dropped by id."""
    first = {delivery.id: delivery.event for delivery in reversed(receiver.deliveries)}
    told = [first[name]["data"] for name in receiver.taken()]
    return [data["session"] for data in told if "session" in data]


async def test_what_is_recorded_is_told_signed_and_in_order(house: House, await_for: Callable[..., object]) -> None:
    with Receiver() as receiver:
        sender = house.start(hook(receiver, secret_previous=Secret(BEFORE, "env:B")))
        await house.begun()
        await house.record(*(killed(f"s{n}") for n in range(20)))
        await await_for(lambda: len(receiver.deliveries) == 20)
        await house.record(AgentRevoked(1, "reporter", "odd", "op"), topic="identity")
        await await_for(lambda: sender.status()["delivered"] == 21)
    assert sessions(receiver) == [f"s{n}" for n in range(20)]
    assert receiver.deliveries[20].event["type"] == "pgwarden.AgentRevoked"
    assert len(set(receiver.ids)) == 21
    for delivery in receiver.deliveries:
        assert delivery.is_signed_with(SECRET)
        assert delivery.is_signed_with(BEFORE)
        assert not delivery.is_signed_with("whsec_" + base64.b64encode(b"somebody else's secret, I am sure").decode())
        assert delivery.headers["content-type"] == "application/cloudevents+json"
        assert delivery.headers["webhook-id"] == delivery.id
    assert (sender.status()["delivered"], sender.status()["failed"], sender.status()["error"]) == (21, 0, "")


async def test_findings_are_told_by_severity(house: House, await_for: Callable[..., object]) -> None:
    found = [
        FindingRaised(1, f"f-{n}", "d", "a", "", severity, "s", ()) for n, severity in enumerate(("info", "critical", "warning"))
    ]
    with Receiver() as all_of_them, Receiver() as worst:
        house.start(hook(all_of_them, severity="info"))
        house.start(hook(worst, "worst", severity="critical"))
        await house.begun()
        await house.begun("worst")
        await house.record(*found, topic="findings")
        await await_for(lambda: len(all_of_them.deliveries) == 3 and worst.deliveries)
    assert [one.event["data"]["finding"] for one in worst.deliveries] == ["f-1"]


async def test_a_receiver_that_was_away_is_told_everything_once_it_is_back(house: House, await_for: Callable[..., object]) -> None:
    with Receiver() as receiver, Receiver() as other:
        receiver.down()
        sender = house.start(hook(receiver))
        house.start(hook(other, "other"))
        await house.begun()
        await house.begun("other")
        for n in range(30):
            await house.record(killed(f"a{n}", "a"), killed(f"b{n}", "b"))
        await await_for(lambda: len(other.deliveries) == 60)  # one that is dead holds nobody back
        await await_for(lambda: sender.status()["failed"])
        assert "nobody listens there" in str(sender.status()["error"])
        assert float(str(sender.status()["waiting_seconds"])) > 0
        receiver.up()
        await await_for(lambda: len(receiver.taken()) == 60)
    told = sessions(receiver)
    assert told == sessions(other)
    for agent in "ab":
        assert [session for session in told if session.startswith(agent)] == [f"{agent}{n}" for n in range(30)]
    assert sender.status()["error"] == ""


async def test_what_is_answered_badly_is_sent_again_and_a_redirect_goes_nowhere(
    house: House, await_for: Callable[..., object]
) -> None:
    with Receiver() as elsewhere:
        moved = Answer(307, (("location", elsewhere.url),))
        with Receiver(
            Answer(500), Answer(404), moved, Answer(429, (("retry-after", "1"),)), Answer(200, body=b"x" * 100_000)
        ) as receiver:
            house.start(hook(receiver), replace(FAST, pause_seconds_max=5.0))
            await house.begun()
            await house.record(killed("s1"), killed("s2"))
            await await_for(lambda: len(receiver.deliveries) == 6)
        assert elsewhere.deliveries == []
    assert sessions(receiver) == ["s1", "s2"]
    assert len(set(receiver.ids[:5])) == 1
    assert receiver.deliveries[4].arrived - receiver.deliveries[3].arrived >= 0.99  # as it had asked


async def test_a_slow_receiver_holds_back_itself_alone(house: House, await_for: Callable[..., object]) -> None:
    let_go = threading.Event()
    with Receiver(Answer(wait=lambda: let_go.wait(20)), Answer()) as slow, Receiver() as quick:
        sender = house.start(hook(slow, timeout_seconds=0.3))
        house.start(hook(quick, "quick"))
        await house.begun()
        await house.begun("quick")
        await house.record(killed("s1"), killed("s2"))
        await await_for(lambda: len(quick.deliveries) == 2)
        assert len(slow.deliveries) <= 1
        await await_for(lambda: sender.status()["delivered"] == 2)
        let_go.set()
    assert sessions(slow) == ["s1", "s2"]


async def test_an_answer_without_an_end_is_not_read_to_it(house: House, await_for: Callable[..., object]) -> None:
    with Receiver(Answer(200, trickle=0.01)) as receiver:
        sender = house.start(hook(receiver, timeout_seconds=0.3))
        await house.begun()
        await house.record(killed("s1"), killed("s2"))
        await await_for(lambda: sender.status()["delivered"] == 2)
    assert (len(receiver.deliveries), sender.status()["failed"]) == (2, 0)


async def test_beyond_its_attempts_an_event_is_given_up_aloud_and_the_next_is_told(
    house: House, await_for: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(Answer(500), Answer(500), Answer(500), Answer(200)) as receiver:
        sender = house.start(hook(receiver, attempts=3))
        await house.begun()
        await house.record(killed("s1"), killed("s2"))
        await await_for(lambda: sender.status()["delivered"] == 1)
    assert sender.status()["given_up"] == 1
    assert sessions(receiver) == ["s1", "s2"]
    assert [r.levelno for r in caplog.records if "given up after 3 attempts" in r.message] == [logging.ERROR]


# -- its place in the log ------------------------------------------------------------------------------------------------------------


async def test_a_new_webhook_is_told_of_what_comes_and_an_old_one_goes_on_where_it_was(
    house: House, await_for: Callable[..., object]
) -> None:
    with Receiver() as receiver:
        await house.record(killed("long ago"))
        house.start(hook(receiver))
        await house.begun()
        await house.record(killed("s1"))
        await await_for(lambda: len(receiver.deliveries) == 1)
        await house.stop("hook")
        await house.record(killed("s2"), killed("s3"))
        house.start(hook(receiver))
        await await_for(lambda: len(receiver.taken()) == 3)
        await asyncio.sleep(0.1)
    assert sessions(receiver) == ["s1", "s2", "s3"]
    assert len(receiver.deliveries) <= 4  # it may have been stopped before its place was kept


async def test_in_the_middle_of_a_frame_it_goes_on_behind_what_was_taken(house: House, await_for: Callable[..., object]) -> None:
    with Receiver(Answer(), Answer(500)) as receiver:
        house.start(hook(receiver))
        await house.begun()
        await house.record(*(killed(f"s{n}") for n in range(5)))  # one frame
        await await_for(lambda: len(receiver.deliveries) >= 3)
        await house.stop("hook")
        receiver.down()
        with Receiver(port=receiver.port) as again:
            house.start(hook(again))
            await await_for(lambda: len(again.deliveries) >= 4)
            await asyncio.sleep(0.1)
    assert sessions(again) == ["s1", "s2", "s3", "s4"]
    assert again.ids[0] == receiver.ids[1]


@pytest.mark.parametrize("broken", ["torn", "of another log"])
async def test_a_place_that_cannot_be_used_is_said_and_begun_anew(
    house: House, broken: str, await_for: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver() as receiver:
        house.start(hook(receiver))
        await house.begun()
        await house.stop("hook")
        place = house.state / "webhooks" / "hook.place"
        if broken == "torn":
            place.write_bytes(place.read_bytes()[:-3])
        await house.record(killed("not told"))
        house.start(hook(receiver), log_name="segments" if broken == "torn" else "kafka pgwarden.")
        await await_for(lambda: any("its place cannot be used" in r.message for r in caplog.records))
        await asyncio.sleep(0.05)
        await house.record(killed("s1"))
        await await_for(lambda: receiver.deliveries)
    assert sessions(receiver) == ["s1"]


# -- TLS -----------------------------------------------------------------------------------------------------------------------------


async def test_a_certificate_is_checked_before_anything_is_sent(
    house: House, tmp_path: Path, await_for: Callable[..., object]
) -> None:
    made = make_certificates(tmp_path / "certificates")
    with Receiver(tls=made.broker) as receiver:
        distrusts = house.start(hook(receiver, "distrusts"))
        named_otherwise = house.start(hook(receiver, "named", url=receiver.url.replace("127.0.0.1", "127.0.0.2"), ca_file=made.ca))
        trusts = house.start(hook(receiver, ca_file=made.ca))
        for name in ("distrusts", "named", "hook"):
            await house.begun(name)
        await house.record(killed("s1"))
        await await_for(
            lambda: trusts.status()["delivered"] == 1 and distrusts.status()["failed"] and named_otherwise.status()["failed"]
        )
    assert "its certificate is not trusted" in str(distrusts.status()["error"])
    assert len(receiver.deliveries) == 1


# -- the process ---------------------------------------------------------------------------------------------------------------------

CONFIG = """
state = "state"
[webhooks.hook]
url = "{url}"
secret = "env:HOOK_SECRET"
"""


@contextlib.contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "webhooks.out").open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", "webhooks", "-c", str(folder / "pgwarden.toml")],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HOOK_SECRET": SECRET},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()


def recorded(folder: Path, *events: Event) -> None:
    async def write() -> None:
        log = SegmentLog(folder / "state" / "log", LogSettings())
        recorder = Recorder(log, "gateway-1", time.time_ns() // 1000, RecorderSettings())
        for event in events:
            recorder.record("sessions", "reporter", event)
        await recorder.close()
        await log.close()

    asyncio.run(write())


@pytest.mark.slow
def test_one_that_is_killed_between_sending_and_keeping_its_place_sends_again_under_the_same_id(
    tmp_path: Path, wait_for: Callable[..., object]
) -> None:
    let_go = threading.Event()
    with Receiver(Answer(), Answer(wait=lambda: let_go.wait(60)), Answer()) as receiver:
        (tmp_path / "pgwarden.toml").write_text(CONFIG.format(url=receiver.url))
        with process(tmp_path) as first:
            wait_for(lambda: (tmp_path / "state/webhooks/hook.place").exists(), 20)
            recorded(tmp_path, killed("s1"))
            wait_for(lambda: len(receiver.deliveries) == 1)
            recorded(tmp_path, killed("s2"))
            wait_for(lambda: len(receiver.deliveries) == 2)  # taken in, and not answered
            first.kill()
            first.wait()
        recorded(tmp_path, killed("s3"))
        with process(tmp_path) as second:
            wait_for(lambda: len(receiver.deliveries) >= 4, 20)
            second.send_signal(signal.SIGTERM)
            assert second.wait(20) == 0
        let_go.set()
    assert sessions(receiver) == ["s1", "s2", "s3"]
    assert receiver.ids[1] == receiver.ids[2] != receiver.ids[3]
    assert receiver.ids.count(receiver.ids[0]) == 1
    said = (tmp_path / "webhooks.out").read_text()
    assert "telling hook" in said
    assert SECRET not in said
    assert receiver.url not in said


@pytest.mark.slow
def test_a_second_process_on_the_same_state_does_not_start(tmp_path: Path, wait_for: Callable[..., object]) -> None:
    (tmp_path / "pgwarden.toml").write_text(CONFIG.format(url="http://127.0.0.1:9/hook?token=canary"))
    with process(tmp_path):
        wait_for(lambda: (tmp_path / "state/run/webhooks.sock").exists(), 20)
        with process(tmp_path) as second:
            assert second.wait(20) == 1
    assert "another one runs on" in (tmp_path / "webhooks.out").read_text()


def test_a_test_says_whether_it_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    config = tmp_path / "pgwarden.toml"
    with Receiver(Answer(), Answer(500)) as receiver:
        config.write_text(CONFIG.format(url=f"{receiver.url}?token=canary"))
        assert main(["webhooks", "test", "hook", "-c", str(config)]) == 0
        assert capsys.readouterr().out.startswith("hook: taken after ")
        assert main(["webhooks", "test", "hook", "-c", str(config)]) == 1
        assert main(["webhooks", "test", "other", "-c", str(config)]) == 2
        assert main(["webhooks", "test", "hook", "--json", "-c", str(config)]) == 1
        printed = capsys.readouterr()
    assert "hook: it answered 500" in printed.err
    assert "there is no [webhooks.other]; there is hook" in printed.err
    assert json.loads(printed.out)["reason"] == "it answered 500"
    assert "canary" not in printed.err + printed.out
    assert SECRET not in printed.err + printed.out
    (delivery, *_) = receiver.deliveries
    assert delivery.is_signed_with(SECRET)
    assert (delivery.event["type"], delivery.path) == ("pgwarden.Test", "/hook?token=canary")
    assert not (tmp_path / "state").exists()


@pytest.mark.faults
async def test_a_disk_that_cannot_keep_the_place_is_told_and_leaves_nothing_out(
    house: House, small_disk: Path, await_for: Callable[..., object]
) -> None:
    house.state = small_disk
    with Receiver() as receiver:
        sender = house.start(hook(receiver), replace(FAST, log_broken_seconds=0.05))
        await house.begun()
        ballast = fill(small_disk)
        await house.record(*(killed(f"s{n}") for n in range(5)))
        await await_for(lambda: "its place in the log cannot be written: No space left" in str(sender.status()["error"]))
        ballast.unlink()
        await await_for(lambda: sessions(receiver) == [f"s{n}" for n in range(5)] and not sender.status()["error"])
    assert house.running["hook"][1].done() is False
