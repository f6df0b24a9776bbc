"""The inspection steps on a real Kafka: what they find of what came through the brokers, and where a restart goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from analytics.inspection import Effect, Respond
from analytics.inspector import Inspector
from analytics.reconcile import Reconcile
from analytics.settings import AnalyticsSettings, ReconcileSettings
from ingest.clock import now_us
from ingest.collectors.collector import session_id
from ingest.events import FindingRaised, Frame, SessionJudged, SessionObserved, SessionOpened, WitnessStarted
from ingest.follow import Follower
from ingest.frames import Framer
from ingest.log import Record
from ingest.log.kafka import KafkaLog
from ingest.log.partitioner import partition
from ingest.recorder import Recorder
from ingest.settings import KafkaSettings, RecorderSettings
from tests.analytics.scenario import Writer, stamp

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


class Watched(Reconcile):
    """Says how many frames it was given."""

    def __init__(self) -> None:
        super().__init__(ReconcileSettings())
        self.frames = 0

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        self.frames += 1
        return super().step(record, frame, now_us)


@contextlib.asynccontextmanager
async def inspecting(log: KafkaLog, folder: Path, boot: int) -> AsyncIterator[Watched]:
    made: list[Watched] = []

    def begin() -> Watched:
        made.append(Watched())
        return made[-1]

    async def act(_: Respond) -> bool:
        raise AssertionError("nothing was chosen")

    recorder = Recorder(log, "api", boot, RecorderSettings())
    task = asyncio.create_task(Inspector(log, recorder, [begin], act, AnalyticsSettings(folder)).run())
    while len(made) < 2:  # the first is asked for its name alone
        await asyncio.sleep(0.01)
    try:
        yield made[-1]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await recorder.close()


async def recorded(log: KafkaLog) -> tuple[list[tuple[str, str]], list[str]]:
    """Findings, each with the backend that it is of, and verdicts; there is no order between partitions."""
    follower = Follower(log, ("findings",), {})
    events = []
    ends = await log.offsets("findings")
    while any(follower.offsets.get(place, 0) < end for place, end in ends.items()):
        events += [event for _, frame in await follower.poll(timeout_seconds=0.2) for _, event in frame.events]
    follower.close()
    found = [(event.detector, f"{dict(event.numbers)['backend_pid']:.0f}") for event in events if isinstance(event, FindingRaised)]
    return sorted(found), sorted(event.verdict for event in events if isinstance(event, SessionJudged))


def writer(log: KafkaLog, name: str) -> Writer:
    made = Writer(log, name, 1, now_us())
    place: Callable[[str, bytes], int] = lambda topic, key: partition(key, log.partitions(topic))  # noqa: E731
    made.framer = Framer(name, 1, events_max=100, bytes_max=64 * 1024, partition=place)
    return made


async def test_what_came_through_kafka_is_judged_and_a_restart_goes_on_from_its_state(
    kafka_settings: KafkaSettings, tmp_path: Path, await_for: Callable[..., Awaitable[object]]
) -> None:
    log = await KafkaLog.open(kafka_settings)
    collector, gateway = writer(log, "log"), writer(log, "gw-1")

    async def seen(pid: int, port: int) -> int:
        at_us = now_us()
        name = session_id(at_us, pid)
        collector.add(name, SessionObserved(at_us, "log", "main", name, pid, "pgwarden", "shop", f"10.9.9.9:{port}", "psql"))
        await collector.write()
        return at_us

    async def found(verdicts: int) -> bool:
        return len((await recorded(log))[1]) >= verdicts

    try:
        collector.add("log", WitnessStarted(now_us(), "log", "log", "main", ("shop",), "statements", "1"))
        await collector.write()
        async with inspecting(log, tmp_path, 1) as first:
            at_us = await seen(7, 5555)
            under = stamp("s1", "reporting", backend_pid=7, backend_start_us=at_us, upstream_port=5555)
            gateway.add("reporting", SessionOpened(at_us, under, "scram", "k", 0, "", "", "3.0", "group"))
            await gateway.write()
            await seen(8, 5556)
            await await_for(lambda: found(2), 60)
            assert await recorded(log) == ([("shadow", "8")], ["audited", "shadow"])
            assert first.frames == 4
        async with inspecting(log, tmp_path, 2) as again:
            await seen(9, 5557)
            await await_for(lambda: found(3), 60)
            assert await recorded(log) == ([("shadow", "8"), ("shadow", "9")], ["audited", "shadow", "shadow"])
            assert (again.frames, again.status()["server_sessions"]) == (1, 3)
    finally:
        await log.close()
