"""Ring bytes that a real server made, decoded without any privilege; and bytes that none would make."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.collectors.collector import Observation
from ingest.collectors.ebpf import layout
from ingest.collectors.ebpf.decode import DecodeSettings, Decoding, RingInvalid, split
from ingest.events import ObservationGap, SessionObserved, StatementObserved
from tests.fuzz.fuzz_ebpf import one_input

HERE = Path(__file__).parent
RECORDED = (HERE / "recorded.ring").read_bytes()
WALL_US = 1_700_000_000_000_000


def framed(*records: bytes) -> bytes:
    return b"".join(layout.RING_HEADER.pack(len(one), 0) + one + bytes(-len(one) % 8) for one in records)


def statements(told: list[Observation]) -> list[StatementObserved]:
    return [one for one in told if isinstance(one, StatementObserved)]


def test_recorded_bytes_decode_to_what_the_server_ran() -> None:
    told = Decoding("ebpf", "main").records(RECORDED, WALL_US)
    assert "".join(f"{one!r}\n" for one in told) == (HERE / "recorded.txt").read_text(encoding="utf-8")


def test_each_split_of_the_ring_tells_the_same() -> None:
    whole = Decoding("ebpf", "main").records(RECORDED, WALL_US)
    records = list(split(RECORDED))
    for size in (1, 2, 7):
        decoding = Decoding("ebpf", "main")
        told: list[Observation] = []
        for at in range(0, len(records), size):
            told += decoding.records(framed(*records[at : at + size]), WALL_US)
        assert told == whole


def test_what_is_read_twice_is_told_once() -> None:
    decoding = Decoding("ebpf", "main")
    records = list(split(RECORDED))
    first = decoding.records(framed(*records[:12]), WALL_US)
    assert statements(first)
    assert decoding.records(framed(*records[:12]), WALL_US) == []


@pytest.mark.parametrize("at", range(1, 60, 7))
def test_a_ring_that_is_cut_short_is_refused(at: int) -> None:
    with pytest.raises(RingInvalid):
        Decoding("ebpf", "main").records(RECORDED[:-at], WALL_US)


def test_each_record_that_is_missing_is_a_gap_of_its_session() -> None:
    """Whatever is left out: all that was made is read or lost, and only of the session that made it."""
    records = list(split(RECORDED))
    chance = random.Random(5)
    for _ in range(50):
        kept = [
            one for one in records if chance.random() < 0.7 or layout.HEADER.unpack_from(one)[4] in (layout.SESSION, layout.EXIT)
        ]
        decoding = Decoding("ebpf", "main")
        told = decoding.records(framed(*kept), WALL_US)
        connections = sum(layout.HEADER.unpack_from(one)[4] == layout.CONNECTED for one in records)
        kept_connections = sum(layout.HEADER.unpack_from(one)[4] == layout.CONNECTED for one in kept)
        assert len(kept) - kept_connections + decoding.lost == len(records) - connections
        known = {one.session_id for one in told if isinstance(one, SessionObserved)}
        gaps = [one for one in told if isinstance(one, ObservationGap)]
        assert sum(gap.lost for gap in gaps) == decoding.lost
        assert {gap.session_id for gap in gaps} <= known


def test_a_header_in_the_spill_ring_is_counted_once_with_the_number_that_is_missing() -> None:
    records = list(split(RECORDED))
    sessions = [one for one in records if layout.HEADER.unpack_from(one)[3] == layout.HEADER.unpack_from(records[1])[3]]
    lost = [one[:32] for one in sessions[3:6]]
    decoding = Decoding("ebpf", "main")
    told = decoding.records(framed(*sessions[:3], *sessions[6:-1]), WALL_US)
    assert decoding.spilled(framed(*lost), WALL_US) == []
    assert decoding.lost == 3
    late = decoding.spilled(framed(sessions[-1][:32]), WALL_US)  # its end, which nothing follows
    assert decoding.lost == 4
    assert [type(one).__name__ for one in late] == ["ObservationGap", "SessionUnobserved"]
    assert [one.lost for one in told if isinstance(one, ObservationGap)] == [3]


def test_a_header_in_the_spill_ring_is_not_counted_again_behind_its_sessions_end() -> None:
    backend, decoding = Backend(), Decoding("ebpf", "main")
    kept = framed(backend.session)
    lost = [one[:32] for one in split(backend.ran(1, b"select 1", layout.STATEMENT, layout.OK))]
    told = decoding.records(kept + framed(backend._record(layout.EXIT, b"")), WALL_US)
    assert [one.lost for one in told if isinstance(one, ObservationGap)] == [2]
    assert decoding.spilled(framed(*lost), WALL_US) == []
    assert decoding.lost == 2


def test_records_of_a_session_that_was_announced_elsewhere_wait_for_it() -> None:
    records = list(split(RECORDED))
    announced = next(one for one in records if layout.HEADER.unpack_from(one)[4] == layout.SESSION)
    pid = layout.HEADER.unpack_from(announced)[3]
    others = [one for one in records if layout.HEADER.unpack_from(one)[3] == pid and one is not announced][:4]
    decoding = Decoding("ebpf", "main")
    assert decoding.records(framed(*others), WALL_US) == []
    assert [type(one).__name__ for one in decoding.known(announced, WALL_US)] == ["SessionObserved", *["StatementObserved"] * 2]
    assert decoding.lost == 0


class Backend:
    """Records as the program makes them for one session, numbered as it numbers them."""

    def __init__(self) -> None:
        self.session = next(one for one in split(RECORDED) if layout.HEADER.unpack_from(one)[4] == layout.SESSION)
        self.time_ns, self.start_ns, self.sequence, self.pid, _, _ = layout.HEADER.unpack_from(self.session)

    def _record(self, kind: int, rest: bytes) -> bytes:
        self.sequence += 1
        self.time_ns += 1000
        return layout.HEADER.pack(self.time_ns, self.start_ns, self.sequence, self.pid, kind, 0) + rest

    def ran(self, portal: int, text: bytes, what: int, outcome: int, *, rows: int = 0, given: int = 0, sqlstate: int = 0) -> bytes:
        statement = self.sequence + 1
        fields = struct.pack("<QQQiiIIHHI", statement, given, portal, 0, 0, 1, len(text), what, 0, 0)
        begin = self._record(layout.START, fields + text)
        ended = struct.pack("<QQQIHH", statement, 500_000, rows, sqlstate, outcome, what)
        return framed(begin, self._record(layout.END, ended))


def test_a_portal_that_goes_on_is_told_again_under_its_name_with_all_its_rows_or_its_error() -> None:
    backend, decoding = Backend(), Decoding("ebpf", "main")
    pieces = [
        framed(backend.session),
        backend.ran(0xA0, b"select a", layout.STATEMENT, layout.SUSPENDED),
        backend.ran(0xB0, b"select b", layout.STATEMENT, layout.SUSPENDED),
        backend.ran(0xA0, b"", layout.RESUMED, layout.SUSPENDED, given=3),
        backend.ran(0xA0, b"", layout.RESUMED, layout.OK, given=6, rows=4),
        backend.ran(0xB0, b"", layout.RESUMED, layout.ERROR, given=3, sqlstate=33816706),
        backend.ran(0xA0, b"", layout.RESUMED, layout.OK, given=10, rows=0),  # asked again after its end
        backend.ran(0xC0, b"select c", layout.STATEMENT, layout.SUSPENDED),
        backend.ran(0xC0, b"select d", layout.STATEMENT, layout.OK, rows=1),  # another portal where that one was
        backend.ran(0xC0, b"", layout.RESUMED, layout.OK, given=1, rows=0),
    ]
    told = statements(decoding.records(b"".join(pieces), WALL_US))
    assert [(one.text, one.rows, one.sqlstate, one.outcome_known, one.duration_us) for one in told] == [
        ("select a", -1, "", False, 500),
        ("select b", -1, "", False, 500),
        ("select a", 10, "", True, 1500),
        ("select b", -1, "22012", True, 1000),
        ("select c", -1, "", False, 500),
        ("select d", 1, "", True, 500),
    ]
    assert [one.sequence for one in told[2:4]] == [one.sequence for one in told[:2]]
    assert decoding.resumed == 5


def test_portals_that_are_left_are_remembered_up_to_a_bound_and_forgotten_with_their_session() -> None:
    backend, decoding = Backend(), Decoding("ebpf", "main", DecodeSettings(portals_max=2))
    decoding.records(framed(backend.session), WALL_US)
    for portal in (1, 2, 3):
        decoding.records(backend.ran(portal, b"select", layout.STATEMENT, layout.SUSPENDED), WALL_US)
    resumed = [backend.ran(portal, b"", layout.RESUMED, layout.OK, rows=1) for portal in (1, 2)]
    assert [len(decoding.records(one, WALL_US)) for one in resumed] == [0, 1]
    decoding.records(framed(backend._record(layout.EXIT, b"")), WALL_US)
    assert not decoding._left


def test_what_it_remembers_has_a_bound() -> None:
    decoding = Decoding("ebpf", "main", DecodeSettings(homeless_max=10))
    header = struct.pack("<QQQIHH", 1, 1, 0, 7, layout.END, 0) + bytes(32)
    for number in range(100):
        decoding.records(framed(header.replace(struct.pack("<I", 7), struct.pack("<I", 1000 + number))), 0)
    assert decoding.lost == 90


def test_the_layout_is_the_programs() -> None:
    """Names and numbers of source/records.h stand in layout.py as they are."""
    text = (HERE.parents[3] / "ingest/collectors/ebpf/source/records.h").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^\t([A-Z]+) = (\d+)", text, re.MULTILINE))
    assert len(numbers) > 15
    assert {name: getattr(layout, name) for name in numbers} == {name: int(number) for name, number in numbers.items()}
    probes = re.search(r"enum probe \{(.*?)PROBES", text, re.DOTALL)
    assert probes is not None
    short = {"AT_ABORT": "abort_transaction"}
    assert [short.get(name, name[3:].lower()) for name in re.findall(r"AT_\w+", probes[1])] == list(layout.PROBES)
    counters = re.search(r"enum counter \{ (.*), COUNTERS", text)
    assert counters is not None
    assert counters[1].lower().split(", ") == list(layout.COUNTERS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    one_input(data)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RECORDED) - 1), st.integers(0, 255)), max_size=8))
def test_recorded_bytes_that_were_changed_are_decoded_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RECORDED)
    for at, byte in changes:
        data[at] = byte
    one_input(bytes(data))
