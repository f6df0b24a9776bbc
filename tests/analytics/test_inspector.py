from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from analytics import checkpoints
from analytics.inspection import Effect, Inspection, Respond
from analytics.inspector import FOLDER, Inspector
from analytics.settings import AnalyticsSettings
from identity.commands import RevokeAgent
from ingest.events import AgentRegistered, FindingRaised, FindingRecurred, Frame, SessionOpened, StatementStarted, Topic
from ingest.follow import Follower
from ingest.log import Record
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from tests.analytics.scenario import SECOND, START_US, Writer, stamp


class Counting:
    """Raises a finding at every third statement, and keeps the order in which it saw things."""

    name = "counting"
    version = 1
    topics: tuple[Topic, ...] = ("identity", "sessions", "statements")

    def __init__(self) -> None:
        self.count = 0
        self.order: list[str] = []
        self.stumble = False

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        if self.stumble:
            raise KeyError("a mistake")
        found: list[Effect] = []
        for _, event in frame.events:
            self.order.append(type(event).__name__)
            if isinstance(event, StatementStarted):
                self.count += 1
                if self.count % 3 == 0:
                    found.append(FindingRaised(event.at_us, f"f-{self.count}", "counting", "a", "", "info", "three", ()))
        return found

    def tick(self, now_us: int) -> Sequence[Effect]:
        return ()

    def status(self) -> dict[str, int]:
        return {"count": self.count}

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.count, self.order))

    def restore(self, data: bytes) -> None:
        try:
            self.count, self.order = msgspec.msgpack.decode(data, type=tuple[int, list[str]])
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error


class Answering(Counting):
    """Answers each finding by a command."""

    name = "answering"
    topics = ("findings",)

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        raised = [event for _, event in frame.events if isinstance(event, FindingRaised)]
        return [Respond(event.finding, RevokeAgent(event.agent, event.summary)) for event in raised]


class Acts:
    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.done: list[str] = []
        self.news = asyncio.Event()

    async def __call__(self, response: Respond) -> bool:
        if self.failures:
            self.failures -= 1
            return False
        self.done.append(response.key)
        self.news.set()
        return True


class Steps:
    """Makes steps, and keeps the newest of each for the test to look at."""

    def __init__(self, *kinds: type[Counting]) -> None:
        self.made: dict[str, Counting] = {}
        self.factories: list[Callable[[], Inspection]] = [self._factory(kind) for kind in kinds]

    def _factory(self, kind: type[Counting]) -> Callable[[], Inspection]:
        def make() -> Inspection:
            self.made[kind.name] = step = kind()
            return step

        return make


@contextlib.asynccontextmanager
async def inspecting(
    log: SegmentLog, settings: AnalyticsSettings, steps: Steps, acts: Acts | None = None, boot: int = 1
) -> AsyncIterator[Inspector]:
    recorder = Recorder(log, "api", boot, RecorderSettings())
    inspector = Inspector(log, recorder, steps.factories, acts or Acts(), settings, lambda: START_US + 3600 * SECOND)
    task = asyncio.create_task(inspector.run())
    try:
        async with asyncio.timeout(30):
            await inspector.caught_up()
        yield inspector
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await recorder.close()


def statements(gateway: Writer, count: int) -> None:
    under = stamp("s1", "a")
    for number in range(count):
        gateway.at(SECOND)
        gateway.began(under, gateway.now_us // SECOND % 10**6 + number, 1)


async def recorded(log: SegmentLog) -> list[str]:
    follower = Follower(log, ("findings",), {})
    found: list[str] = []
    while frames := await follower.poll(timeout_seconds=0.05):
        found += [
            event.finding for _, frame in frames for _, event in frame.events if isinstance(event, FindingRaised | FindingRecurred)
        ]
    follower.close()
    return found


def kept(settings: AnalyticsSettings, name: str = "counting") -> Path:
    return settings.directory / FOLDER / f"{name}.state"


async def test_what_a_step_finds_is_recorded(log: SegmentLog, settings: AnalyticsSettings) -> None:
    gateway = Writer(log)
    statements(gateway, 7)
    await gateway.write()
    async with inspecting(log, settings, Steps(Counting)) as inspector:
        assert await recorded(log) == ["f-3", "f-6"]
        (status,) = inspector.status()
        assert (status.records, status.current, status.recorded, status.error) == (0, True, 2, "")


async def test_a_restart_goes_on_where_the_state_stands(log: SegmentLog, settings: AnalyticsSettings) -> None:
    gateway = Writer(log)
    statements(gateway, 4)
    await gateway.write()
    async with inspecting(log, settings, Steps(Counting)):
        pass
    statements(gateway, 3)
    await gateway.write()
    again = Steps(Counting)
    async with inspecting(log, settings, again, boot=2):
        assert await recorded(log) == ["f-3", "f-6"]
        assert again.made["counting"].count == 7


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "version", "other log"])
async def test_a_state_that_cannot_be_used_is_made_anew_and_nothing_is_recorded_twice(
    log: SegmentLog, settings: AnalyticsSettings, damage: str
) -> None:
    gateway = Writer(log)
    statements(gateway, 7)
    await gateway.write()
    async with inspecting(log, settings, Steps(Counting)):
        pass
    path = kept(settings)
    match damage:
        case "flipped":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "gone":
            path.unlink()
        case "version":
            checkpoints.write(str(path), checkpoints.Checkpoint(2, {("statements", 0): 1}, {}, b""))
        case _:
            checkpoints.write(str(path), checkpoints.Checkpoint(1, {("statements", 0): 10**6}, {}, Counting().encode()))
    again = Steps(Counting)
    async with inspecting(log, settings, again, boot=2):
        assert again.made["counting"].count == 7
        assert await recorded(log) == ["f-3", "f-6"]


async def test_a_crash_before_the_state_was_kept_repeats_no_finding(log: SegmentLog, settings: AnalyticsSettings) -> None:
    gateway = Writer(log)
    statements(gateway, 4)
    await gateway.write()
    async with inspecting(log, settings, Steps(Counting)):
        before = kept(settings)
    statements(gateway, 3)
    await gateway.write()
    older = before.read_bytes()
    async with inspecting(log, settings, Steps(Counting), boot=2):
        pass
    before.write_bytes(older)  # as if the last state had never reached the disk
    async with inspecting(log, settings, Steps(Counting), boot=3):
        assert await recorded(log) == ["f-3", "f-6"]


async def test_a_session_is_known_before_its_statements_and_its_agent_before_both(
    log: SegmentLog, settings: AnalyticsSettings
) -> None:
    gateway, api = Writer(log), Writer(log, "api", 9)
    for number in range(40):
        under = stamp(f"s{number}", "a")
        api.add("a", AgentRegistered(START_US + number, f"a{number}", "", "o", "", "", "", "", "", "op"))
        await api.write()
        gateway.opened(under)
        gateway.began(under, 1, 1)
        await gateway.write()
    steps = Steps(Counting)
    async with inspecting(log, settings, steps):
        seen = [name for name in steps.made["counting"].order if name in ("AgentRegistered", "SessionOpened", "StatementStarted")]
        assert seen == ["AgentRegistered", SessionOpened.__name__, "StatementStarted"] * 40


async def test_a_mistake_stops_its_own_step_alone_and_is_told(log: SegmentLog, settings: AnalyticsSettings) -> None:
    class Other(Counting):
        name = "other"

    steps = Steps(Counting, Other)
    gateway = Writer(log)
    async with inspecting(log, settings, steps) as inspector:
        steps.made["counting"].stumble = True
        statements(gateway, 3)
        await gateway.write()
        async with asyncio.timeout(30):
            await inspector.caught_up()
        stopped, other = inspector.status()
        assert "a mistake" in stopped.error
        assert not other.error
        assert await recorded(log) == ["f-3"]
    again = Steps(Counting, Other)
    async with inspecting(log, settings, again, boot=2) as inspector:  # what it stumbled over, it comes back to
        assert again.made["counting"].count == 3
        assert not inspector.status()[0].error


async def test_a_finding_of_one_step_reaches_the_step_that_answers_and_an_answer_is_tried_until_it_is_done(
    log: SegmentLog, settings: AnalyticsSettings
) -> None:
    gateway, acts = Writer(log), Acts(failures=1)
    statements(gateway, 3)
    await gateway.write()
    async with inspecting(log, settings, Steps(Counting, Answering), acts):
        async with asyncio.timeout(30):
            await acts.news.wait()
    assert acts.done == ["f-3"]
