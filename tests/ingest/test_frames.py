from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.events import (
    AgentRevoked,
    Event,
    Frame,
    SessionEndOrdered,
    Stamp,
    StatementDefined,
    StatementFinished,
    StatementStarted,
)
from ingest.frames import EVENT_OVERHEAD_BYTES, FrameInvalid, Framer, decode, encode, event_id
from ingest.log import Entry, batches
from ingest.log.partitioner import partition
from tests.fuzz.fuzz_frames import one_input

NOW = 1_763_800_000_000_000


def stamp(session: str = "0199b1a2c3d4e5f6") -> Stamp:
    return Stamp(
        session=session,
        agent="reporter",
        subject="5b2f7c1e-93a4-4d0e-8f6b-2a7d9c1b3e55",
        issuer="https://idp.example/realms/agents",
        on_behalf_of="alice@example.com",
        actors=("reporter",),
        invocation="run-20251122-0001",
        task="monthly report",
        unverified=("task",),
        grants=("grant-000017",),
        approvers=("bob",),
        connection="shop",
        database="shop",
        role="pgwarden",
        client="127.0.0.1:51234",
        backend_pid=41234,
        backend_start_us=NOW,
        upstream_port=45678,
    )


def started(n: int) -> Event:
    return StatementStarted(at_us=NOW + n * 900, execution=n, statement=n % 7, rule="select on public.orders")


def finished(n: int) -> Event:
    return StatementFinished(n, "ok", "", "SELECT 12", rows=12, bytes_in=24, bytes_out=1874, duration_us=742)


def revoked(n: int) -> AgentRevoked:
    return AgentRevoked(at_us=n, agent="a", reason="r", operator="o")


def framer(**limits: int) -> Framer:
    return Framer("gateway-1", 3, events_max=limits.get("events_max", 100), bytes_max=limits.get("bytes_max", 65536))


def frames(entries: list[Entry]) -> list[Frame]:
    return [decode(entry.value) for entry in entries]


def events(entries: list[Entry]) -> list[Event]:
    return [event for frame in frames(entries) for _, event in frame.events]


def a_frame() -> Frame:
    return Frame(1, "gateway-1", 3, 5, (stamp(),), ((0, started(1)), (-1, finished(1))))


def test_a_frame_comes_back_as_it_went_in() -> None:
    assert decode(encode(a_frame())) == a_frame()


def test_the_framer_writes_the_bytes_that_encode_writes() -> None:
    subject = framer()
    subject.add("statements", "reporter", started(1), stamp())
    subject.add("statements", "reporter", finished(1))
    [entry] = subject.cut()
    assert entry.value == encode(decode(entry.value))
    assert decode(entry.value) == msgspec.structs.replace(a_frame(), seq=0)
    assert (entry.topic, entry.key) == ("statements", b"reporter")


def test_a_frame_cut_short_anywhere_is_invalid() -> None:
    whole = encode(a_frame())
    for length in range(len(whole)):
        with pytest.raises(FrameInvalid):
            decode(whole[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G elements
        b"\xc6\xff\xff\xff\xff",  # 4 GiB of binary
        b"\x91" * 100_000,  # arrays in arrays
        encode(a_frame()) + b"\x00",
        encode(a_frame()).replace(b"reporter", b"report\xff\xfe"),
    ],
)
def test_absurd_bytes_are_invalid_and_no_worse(data: bytes) -> None:
    with pytest.raises(FrameInvalid):
        decode(data)


def test_a_frame_of_a_newer_version_is_refused() -> None:
    with pytest.raises(FrameInvalid, match="version 2"):
        decode(encode(msgspec.structs.replace(a_frame(), version=2)))


def test_an_event_that_this_version_does_not_know_is_refused_and_not_dropped() -> None:
    with pytest.raises(FrameInvalid):
        decode(msgspec.msgpack.encode([1, "w", 1, 0, [], [[-1, [199, 1, 2]]], 1]))


def test_fields_that_a_newer_version_added_are_passed_over() -> None:
    event = [*msgspec.to_builtins(revoked(17)), "new", 4]
    frame = decode(msgspec.msgpack.encode([1, "w", 1, 0, [], [[-1, event]], 1, "new"]))
    assert frame.events == ((-1, revoked(17)),)


def test_a_frame_without_its_later_fields_still_decodes() -> None:
    assert decode(msgspec.msgpack.encode([1, "w", 1, 0, [], []])).step == 1


@pytest.mark.parametrize("place", [1, -2, 2**40])
def test_an_event_cannot_name_a_stamp_that_the_frame_does_not_carry(place: int) -> None:
    with pytest.raises(FrameInvalid):
        decode(encode(msgspec.structs.replace(a_frame(), events=((place, started(1)),))))


def test_the_events_of_a_key_keep_their_order_over_many_frames() -> None:
    subject = framer(events_max=3)
    for n in range(10):
        subject.add("identity", "a", revoked(n))
        subject.add("identity", "b", revoked(100 + n))
    entries = subject.cut()
    assert events([e for e in entries if e.key == b"a"]) == [revoked(n) for n in range(10)]
    assert events([e for e in entries if e.key == b"b"]) == [revoked(100 + n) for n in range(10)]


def test_a_frame_holds_no_more_events_than_it_may() -> None:
    subject = framer(events_max=3)
    for n in range(10):
        subject.add("identity", "a", revoked(n))
    assert [len(frame.events) for frame in frames(subject.cut())] == [3, 3, 3, 1]


def test_a_frame_is_cut_before_it_passes_its_bytes_unless_one_event_is_larger() -> None:
    subject = framer(bytes_max=1000)
    for size in (400, 400, 400, 5000, 10):
        subject.add("statements", "a", StatementDefined(1, "x" * size, "full", size, "", (), (), ()))
    assert [len(frame.events) for frame in frames(subject.cut())] == [2, 1, 1, 1]


def test_a_stamp_stands_once_in_a_frame_and_in_every_frame() -> None:
    subject = framer(events_max=4)
    one, other = stamp("one"), stamp("other")
    for n in range(3):
        subject.add("statements", "reporter", started(n), one)
        subject.add("statements", "reporter", started(n), other)
    first, second = frames(subject.cut())
    assert first.stamps == second.stamps == (one, other)
    assert [place for place, _ in first.events] == [0, 1, 0, 1]


def test_frames_are_numbered_in_each_topic_without_a_hole() -> None:
    subject = framer()
    for _ in range(3):
        subject.add("identity", "a", revoked(1))
        subject.add("statements", "a", started(1))
        subject.add("statements", "b", started(1))
        entries = subject.cut()
    assert [(e.topic, f.seq, f.step) for e, f in zip(entries, frames(entries), strict=True)] == [
        ("identity", 2, 1),
        ("statements", 4, 1),
        ("statements", 5, 1),
    ]


def test_a_frame_says_how_far_the_one_before_it_in_its_partition_is() -> None:
    subject = Framer("w", 1, events_max=1, bytes_max=1000, partition=lambda _, key: partition(key, 4))
    last = dict.fromkeys(range(4), -1)
    for n in range(100):
        key = f"agent-{n * n % 17}"
        subject.add("identity", key, revoked(n))
    for entry in subject.cut():
        frame = decode(entry.value)
        place = partition(entry.key, 4)
        assert frame.seq - frame.step == last[place]
        last[place] = frame.seq
    assert sorted(last.values())[-1] == 99
    assert -1 not in last.values()


@pytest.mark.parametrize(
    ("topic", "key", "event", "its_stamp"),
    [
        ("sessions", "a", revoked(1), None),
        ("identity", "a", AgentRevoked(2**64, "a", "r", "o"), None),
        ("identity", "a", AgentRevoked(1, "a", "\ud800", "o"), None),
        ("identity", "\ud800", revoked(1), None),
        ("statements", "a", started(1), stamp("\ud800")),
    ],
)
def test_what_cannot_be_framed_is_refused_at_once_and_leaves_no_trace(
    topic: str, key: str, event: Event, its_stamp: Stamp | None
) -> None:
    subject = framer()
    with pytest.raises(ValueError, match=r".+"):
        subject.add(topic, key, event, its_stamp)  # type: ignore[arg-type]
    assert subject.cut() == []


def test_the_size_that_add_returns_is_what_the_event_holds() -> None:
    subject = framer()
    bare = subject.add("statements", "a", finished(1)) - EVENT_OVERHEAD_BYTES
    assert bare == len(msgspec.msgpack.encode(finished(1)))
    assert subject.add("statements", "a", finished(1), stamp()) > bare + EVENT_OVERHEAD_BYTES + 200


def test_an_event_has_one_name_in_all_the_log() -> None:
    frame = a_frame()
    ordered = msgspec.structs.replace(frame, events=((-1, SessionEndOrdered(1, "o", "s", "a", "c", 1, "r")),))
    assert event_id(frame, 0) == "gateway-1/3/statements/5/0"
    assert len({event_id(frame, 0), event_id(frame, 1), event_id(ordered, 0)}) == 3


@pytest.mark.parametrize(("executions", "bytes_max"), [(50, 90), (10, 130), (1, 560)])
def test_an_execution_takes_few_bytes_on_disk(executions: int, bytes_max: int) -> None:
    """The goal is 150 bytes, outcome, identity and rows included; a frame of one execution carries its whole stamp alone."""
    subject = framer(events_max=1000)
    its_stamp = stamp()
    for n in range(executions):
        subject.add("statements", "reporter", started(1000 + n), its_stamp)
        subject.add("statements", "reporter", finished(1000 + n), its_stamp)
    records = [(entry.key, entry.value) for entry in subject.cut()]
    assert len(batches.encode(0, NOW, records)) / executions <= bytes_max


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_bytes_are_a_frame_or_invalid(data: bytes) -> None:
    one_input(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_frames_are_a_frame_or_invalid(place: int, flip: int, other: int, value: int) -> None:
    data = bytearray(encode(a_frame()))
    data[place % len(data)] ^= flip
    data[other % len(data)] = value
    one_input(bytes(data))
