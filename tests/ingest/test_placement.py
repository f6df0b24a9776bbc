"""Frames that move from one partition to several: a reader there sees what it saw, in each key's order, with the same gaps."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.events import AgentRevoked, Frame
from ingest.follow import Follower, Gap
from ingest.frames import FrameInvalid, Framer, decode, encode, event_id
from ingest.log import Entry, Record
from ingest.log.memory import MemoryLog
from ingest.log.partitioner import partition
from ingest.placement import Placement

KEYS = [f"agent-{number}" for number in range(12)]


def written(boots: list[list[str]], writer: str = "api", partitions: int = 1) -> list[Entry]:
    """One frame for each key of each boot, as a recorder writes them."""
    entries: list[Entry] = []
    for boot, keys in enumerate(boots):
        framer = Framer(writer, boot, events_max=1, bytes_max=10_000, partition=lambda _t, key: partition(key, partitions))
        for number, key in enumerate(keys):
            framer.add("identity", key, AgentRevoked(number, key, "r", "o"))
            entries += framer.cut()
    return entries


def placed(entries: list[Entry], partitions: int, placement: Placement | None = None) -> list[Record]:
    placement = placement or Placement(partitions, whole=True)
    nexts: dict[int, int] = defaultdict(int)
    records = []
    for entry in entries:
        if (found := placement.place(entry.key, entry.value)) is not None:
            records.append(Record("identity", found.partition, nexts[found.partition], 0, entry.key, found.value))
            nexts[found.partition] += 1
    return records


class Read:
    """What a Follower makes of these records, read partition by partition."""

    def __init__(self, records: list[Record], partitions: int) -> None:
        self.gaps: list[Gap] = []
        self.frames: list[tuple[bytes, Frame]] = []
        follower = Follower(MemoryLog({"identity": partitions}), ("identity",), {}, on_gap=self.gaps.append)
        for number in range(partitions):
            of_one = [record for record in records if record.partition == number]
            self.frames += [(record.key, frame) for record, frame in follower._frames(of_one)]
        follower.close()


@given(st.lists(st.lists(st.sampled_from(KEYS), max_size=30), max_size=4), st.integers(1, 6))
def test_what_was_whole_is_whole_in_each_partition(boots: list[list[str]], partitions: int) -> None:
    entries = written(boots)
    read = Read(placed(entries, partitions), partitions)
    assert read.gaps == []
    of_key = lambda pairs, key: [event_id(frame, 0) for found, frame in pairs if found == key.encode()]  # noqa: E731
    before = [(entry.key, decode(entry.value)) for entry in entries]
    assert all(of_key(read.frames, key) == of_key(before, key) for key in KEYS)


@given(st.lists(st.sampled_from(KEYS), min_size=2, max_size=30), st.integers(1, 6))
def test_it_is_what_the_recorder_would_have_written_there(keys: list[str], partitions: int) -> None:
    directly = written([keys], partitions=partitions)
    moved = placed(written([keys]), partitions)
    assert [(entry.key, entry.value) for entry in directly] == [(record.key, record.value) for record in moved]


@given(st.lists(st.sampled_from(KEYS), min_size=3, max_size=30), st.integers(1, 6), st.data())
def test_a_frame_that_is_missing_is_missed_after_the_move_too(keys: list[str], partitions: int, data: st.DataObject) -> None:
    entries = written([keys])
    lost = data.draw(st.integers(0, len(entries) - 2))
    kept = entries[:lost] + entries[lost + 1 :]
    placement = Placement(partitions, whole=True)
    read = Read(placed(kept, partitions, placement), partitions)
    assert len(read.frames) == len(kept)
    assert placement.gaps == 1
    assert len(read.gaps) >= 1


def test_a_log_whose_beginning_was_given_up_begins_without_a_gap() -> None:
    entries = written([KEYS])[4:]
    read = Read(placed(entries, 3, Placement(3, whole=False)), 3)
    assert read.gaps == []
    assert len(read.frames) == len(entries)


def test_a_frame_that_stands_twice_comes_out_once() -> None:
    entries = written([KEYS[:4], KEYS[:2]])
    placement = Placement(2, whole=True)
    again = placed([*entries[:4], *entries[2:4], *entries[4:], entries[4], entries[5]], 2, placement)
    assert [decode(record.value).seq for record in again] == [0, 1, 2, 3, 0, 1]
    assert placement.repeated == 4
    assert Read(again, 2).gaps == []


def test_nothing_but_the_step_changes_not_even_what_a_later_version_added() -> None:
    (entry,) = written([["a"]])
    fields = msgspec.msgpack.decode(entry.value)
    longer = msgspec.msgpack.encode([*fields, {"later": [1, 2]}])
    second = msgspec.msgpack.encode([fields[0], fields[1], fields[2], 5, *fields[4:6], 5, "later"])
    placement = Placement(3, whole=True)
    first = placement.place(b"a", longer)
    assert first is not None
    assert msgspec.msgpack.decode(first.value) == [*fields, {"later": [1, 2]}]
    moved = placement.place(b"a", second)
    assert moved is not None
    assert msgspec.msgpack.decode(moved.value) == [*fields[:3], 5, *fields[4:6], 5, "later"]


@pytest.mark.parametrize("wrong", [b"", b"\xc0", b"\x90", encode(Frame(2, "w", 0, 0, (), ())), b"\x96\x01\xa1w\x00\xa1x\x90\x90"])
def test_what_is_no_frame_is_refused(wrong: bytes) -> None:
    with pytest.raises(FrameInvalid):
        Placement(1, whole=True).place(b"k", wrong)
