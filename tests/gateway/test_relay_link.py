"""The gateway's end of the socket, and a peer at the other end that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from gateway.relay_link import RelayLink
from ingest import relay_lines
from ingest.clock import mono_us
from ingest.events import AgentRevoked, GatewayReported
from ingest.log import LogUnavailable
from ingest.log.memory import MemoryLog
from ingest.recorder import Recorder
from ingest.relay_lines import RelayState
from ingest.settings import RecorderSettings, RelaySettings

SETTINGS = RelaySettings(backlog_bytes_max=10_000, stale_seconds_max=0.5, report_ms=50)


class Peer:
    """Says a state to whoever connects, and hears reports."""

    def __init__(self) -> None:
        self.reports: list[GatewayReported] = []
        self.needed: dict[str, int] = {}
        self.connections = 0
        self._writer: asyncio.StreamWriter | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writer = writer
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                word = relay_lines.word(line)
                self.reports.append(word.report)
                self.needed = word.needed
        writer.close()

    def say(self, state: RelayState | bytes) -> None:
        assert self._writer is not None
        self._writer.write(state if isinstance(state, bytes) else relay_lines.line(state))

    def hang_up(self) -> None:
        assert self._writer is not None
        self._writer.close()


class Room:
    """`said_current` says a fresh word each time that it is asked: on a slow machine the one before may be old by now."""

    def __init__(self, link: RelayLink, recorder: Recorder, peer: Peer) -> None:
        self.link = link
        self.recorder = recorder
        self.peer = peer
        self.identity_at_us = 7

    def said_current(self, offset: int) -> bool:
        self.peer.say(current(offset))
        return self.link.why_stale() == ""


@pytest.fixture
async def room(tmp_path: Path, await_for: Callable[..., Awaitable[object]]) -> AsyncIterator[Room]:
    path = tmp_path / "relay.sock"
    peer = Peer()
    server = await asyncio.start_unix_server(peer.answer, path)
    recorder = Recorder(MemoryLog(), "gateway-1", 1, RecorderSettings(linger_ms=1))

    def report(backlog_bytes: int) -> GatewayReported:
        return GatewayReported(1, "gateway-1", 1, 2, True, 0, "", 0, 0, backlog_bytes, made.identity_at_us, 0, 0, 0, 0, 0, 0)

    made = Room(
        RelayLink(path, recorder, SETTINGS, report, lambda: made.identity_at_us, lambda: {("sessions", 0): 5}), recorder, peer
    )
    running = asyncio.create_task(made.link.run())
    await await_for(lambda: peer.connections)
    yield made
    running.cancel()
    await asyncio.wait({running})
    server.close()
    await recorder.close()


def current(offset: int, **more: object) -> RelayState:
    return RelayState(1, mono_us(), offset, **{"backlog_bytes": 0, "backlog_records": 0, **more})  # type: ignore[arg-type]


def event(size: int = 1) -> AgentRevoked:
    return AgentRevoked(1, "a", "r" * size, "o")


async def test_nobody_is_let_in_before_the_brokers_were_heard_and_all_that_they_had_is_read(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    assert "nothing was heard of the brokers yet" in room.link.why_stale()
    room.peer.say(current(12))
    assert await room.link.mirrored(5)
    assert "nothing was heard" in room.link.why_stale(), "the registry does not exist yet"
    read = 11
    room.link.identity_offset = lambda: read
    assert "nothing was heard" in room.link.why_stale(), "mirrored is not read"
    read = 12
    await await_for(lambda: room.said_current(12))


async def test_word_of_the_brokers_grows_old(room: Room, await_for: Callable[..., Awaitable[object]]) -> None:
    room.link.identity_offset = lambda: 0
    await await_for(lambda: room.said_current(0))
    room.peer.say(RelayState(1, error="asking: no answer"))
    await await_for(lambda: "s: asking: no answer" in room.link.why_stale())
    await await_for(lambda: room.said_current(0))


async def test_word_that_the_gateway_has_not_read_up_to_does_not_make_it_current(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    room.link.identity_offset = lambda: 5
    await await_for(lambda: room.said_current(5))
    until = asyncio.get_running_loop().time() + 5
    while not room.link.why_stale():
        assert asyncio.get_running_loop().time() < until
        room.peer.say(current(6))
        await asyncio.sleep(0.02)
    room.link.identity_offset = lambda: 6
    await await_for(lambda: room.said_current(6))


async def test_a_relay_that_is_gone_is_looked_for_and_what_it_said_last_counts_for_a_while(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    room.link.identity_offset = lambda: 0
    await await_for(lambda: room.said_current(0))
    room.peer.hang_up()
    await await_for(lambda: room.peer.connections == 2)
    await await_for(lambda: "the relay does not answer" in room.link.why_stale())
    room.peer.say(b"no JSON\n")
    await await_for(lambda: room.peer.connections == 3)
    await await_for(lambda: room.said_current(0))


async def test_a_backlog_beyond_its_bound_blocks_until_it_is_well_below(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    room.peer.say(current(0, backlog_bytes=10_001, error="shipping: no"))
    await await_for(lambda: not room.recorder.available)
    assert (
        room.recorder.state().reason == "10001 bytes of the record wait for Kafka, and log.backlog_bytes_max is 10000: shipping: no"
    )
    room.recorder.record("identity", "a", event())  # an end of a session
    room.peer.say(current(0, backlog_bytes=9_500))
    await await_for(lambda: room.link.facts()["backlog_bytes"] == 9_500)
    assert not room.recorder.available
    room.peer.say(current(0, backlog_bytes=8_000))
    await await_for(lambda: room.recorder.available)


async def test_what_is_written_while_the_relay_says_nothing_counts_too_and_beyond_the_room_for_ends_nothing_is_taken(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    room.peer.say(current(0, backlog_bytes=4_000))
    await await_for(lambda: room.link.facts()["backlog_bytes"] == 4_000)
    room.peer.hang_up()
    await room.recorder.recorded(room.recorder.record("identity", "a", event(6_500)))
    await await_for(lambda: not room.recorder.available)
    assert "the relay does not answer" in room.recorder.state().reason or room.peer.connections == 2
    await room.recorder.recorded(room.recorder.record("identity", "a", event(3_000)))

    def refused() -> bool:
        try:
            room.recorder.record("identity", "a", event())
        except LogUnavailable:
            return True
        return False

    await await_for(refused)
    await await_for(lambda: room.peer.connections == 2)
    room.peer.say(RelayState(12))  # a new one, which has not counted yet: no reason to go on
    await await_for(lambda: room.link.facts()["pid"] == 12)
    assert not room.recorder.available
    room.peer.say(current(0, backlog_bytes=0))
    await await_for(lambda: room.recorder.available)


async def test_what_the_brokers_have_is_told_to_those_who_wait(room: Room, await_for: Callable[..., Awaitable[object]]) -> None:
    ticket = room.recorder.record("identity", "a", event())
    waiting = asyncio.ensure_future(room.recorder.brokers.passed(ticket))
    await room.recorder.recorded(ticket)
    room.peer.say(current(0, shipped={"identity": 0}))
    await await_for(lambda: room.link.facts()["shipped"] == {"identity": 0})
    assert not waiting.done()
    room.peer.say(current(0, shipped={"identity": 1}))
    await asyncio.wait_for(waiting, 30)


async def test_a_gateway_reports_now_and_then_and_at_once_when_it_acts_on_a_newer_identity(
    room: Room, await_for: Callable[..., Awaitable[object]]
) -> None:
    await await_for(lambda: len(room.peer.reports) >= 3)
    assert room.peer.needed == {"sessions": 5}
    room.identity_at_us = 8
    await await_for(lambda: room.peer.reports[-1].identity_at_us == 8)
    room.peer.say(current(0, backlog_bytes=123))
    await await_for(lambda: room.peer.reports[-1].backlog_bytes == 123)
