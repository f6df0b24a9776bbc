from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from analytics.activity import MINUTE_US, OTHER, Activity, ActivitySettings, Window, decode, encode, step
from ingest.events import Event, Frame, Outcome, StatementDefined, StatementDenied, StatementFinished, StatementStarted
from tests.analytics.scenario import stamp

BASE_US = 1_795_000_020_000_000 // MINUTE_US * MINUTE_US
SETTINGS = ActivitySettings()
UNDER = stamp("s1", "reporter")


def started(at_us: int, execution: int) -> Event:
    return StatementStarted(at_us, execution, 1, "r")


def denied(at_us: int, execution: int) -> Event:
    return StatementDenied(at_us, execution, 1, "42501", "r", "no")


def finished(execution: int, rows: int = 1, outcome: Outcome = "ok", sqlstate: str = "", bytes_out: int = 10) -> Event:
    return StatementFinished(execution, outcome, sqlstate, "", rows, 1, bytes_out, 5)


def defined(*relations: str) -> Event:
    return StatementDefined(1, "", "full", 0, "", ("SELECT",), relations, ())


def frame(*events: Event, seq: int, writer: str = "gw", boot: int = 1) -> Frame:
    return Frame(1, writer, boot, seq, (UNDER,), tuple((0, event) for event in events))


def fold(
    frames: Iterable[Frame], state: Activity | None = None, settings: ActivitySettings = SETTINGS
) -> tuple[Activity, list[Window]]:
    state = state or Activity()
    closed: list[Window] = []
    for one in frames:
        state, more = step(state, one, "reporter", settings)
        closed += more
    return state, closed


def test_a_minute_counts_what_was_begun_denied_and_what_came_of_it() -> None:
    state, closed = fold(
        [
            frame(
                defined("public.orders", "public.lines"),
                started(BASE_US + 5, 1),
                finished(1, rows=7),
                started(BASE_US + 9, 2),
                finished(2, 0, "error", "42P01"),
                denied(BASE_US + 12, 3),
                seq=0,
            )
        ]
    )
    assert closed == []
    assert state.open == (
        Window(
            "reporter",
            BASE_US,
            executions=2,
            denied=1,
            errors={"42P01": 1},
            rows=7,
            bytes=22,
            relations=("public.lines", "public.orders"),
            first_us=BASE_US + 5,
            last_us=BASE_US + 12,
        ),
    )


def test_a_minute_is_given_out_once_whole_when_the_agent_is_past_it_and_its_lateness() -> None:
    frames = [
        frame(started(BASE_US, 1), seq=0),
        frame(started(BASE_US + MINUTE_US + SETTINGS.lateness_us - 1, 2), seq=1),
        frame(started(BASE_US + 1, 3), seq=0, writer="gw-2"),  # late, and in time
        frame(started(BASE_US + MINUTE_US + SETTINGS.lateness_us, 4), seq=2),
        frame(started(BASE_US + 3 * MINUTE_US, 5), seq=3),
    ]
    state, closed = fold(frames[:3])
    assert closed == []
    state, closed = fold(frames[3:], state)
    assert [(window.minute_us, window.executions) for window in closed] == [(BASE_US, 2), (BASE_US + MINUTE_US, 1)]
    assert len({window.id for window in closed}) == 2
    assert state.closed == tuple(closed)


def test_what_comes_after_its_minute_was_given_out_still_counts() -> None:
    state, closed = fold([frame(started(BASE_US, 1), seq=0), frame(started(BASE_US + 10 * MINUTE_US, 2), seq=1)])
    assert [window.minute_us for window in closed] == [BASE_US]
    state, closed = fold([frame(denied(BASE_US + 1, 3), seq=2)], state)
    assert (closed, state.late) == ([], 1)
    assert sum(window.denied for window in state.open) == 1
    assert min(window.minute_us for window in state.open) == BASE_US + 9 * MINUTE_US


def test_the_end_of_a_long_execution_counts_where_it_began_or_else_in_the_newest_minute() -> None:
    state, _ = fold([frame(started(BASE_US, 1), started(BASE_US, 2), seq=0), frame(started(BASE_US + MINUTE_US, 3), seq=1)])
    state, _ = fold([frame(finished(1, rows=5), seq=2)], state)
    assert [window.rows for window in state.open] == [5, 0]
    state, closed = fold([frame(started(BASE_US + 5 * MINUTE_US, 4), finished(2, rows=100), seq=3)], state)
    assert [window.rows for window in closed] == [5, 0]
    assert [window.rows for window in state.open] == [100]


def test_a_frame_that_comes_twice_counts_once() -> None:
    frames = [frame(started(BASE_US + n, n), finished(n), seq=n) for n in range(5)]
    once, _ = fold(frames)
    twice, _ = fold([*frames, *frames, frames[3]])
    assert once == twice


def test_an_earlier_boots_frame_that_is_sent_again_counts_once() -> None:
    old, new = frame(started(BASE_US, 1), seq=9, boot=1), frame(started(BASE_US, 1), seq=0, boot=2)
    assert fold([old, new])[0] == fold([old, new, old, new])[0]


def test_an_end_without_a_beginning_is_told() -> None:
    state, _ = fold([frame(finished(1), seq=0)])
    assert (state.open, state.orphans) == ((), 1)


def test_what_it_holds_is_bounded() -> None:
    settings = replace(SETTINGS, relations_max=3, sqlstates_max=2, running_max=4, writers_max=2, closed_max=3)
    frames = []
    for minute in range(10):
        events = [event for n in range(9) for event in (started(BASE_US + minute * MINUTE_US, minute * 100 + n),)]
        ends = [finished(minute * 100 + n, 1, "error", f"0000{n}") for n in range(5)]
        frames.append(frame(defined(*(f"t{n}" for n in range(6))), *events, *ends, seq=minute, writer=f"gw-{minute}"))
    state, closed = fold(frames, settings=settings)
    assert len(state.seen) == 2
    assert len(state.running) <= settings.running_max
    assert state.closed == tuple(closed[-3:])
    for window in closed:
        assert (len(window.relations), window.relations_full) == (3, True)
        assert sum(window.errors.values()) == 5
        assert set(window.errors) == {"00000", "00001", OTHER}
    assert len(encode(state)) < 2000


def test_a_state_is_what_it_was_when_it_comes_back() -> None:
    state, _ = fold([frame(defined("a"), started(BASE_US, 1), finished(1, 0, "error", "42501"), seq=0)])
    assert decode(encode(state)) == state
    assert decode(None) == decode(b"of another version") == Activity()


def test_counts_equal_those_of_a_simple_count_however_the_events_are_framed_and_repeated() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        events: list[Event] = []
        wanted: dict[int, list[int]] = {}
        at_us = BASE_US
        for execution in range(chance.randrange(1, 120)):
            at_us += chance.randrange(20_000_000)
            counts = wanted.setdefault(at_us // MINUTE_US * MINUTE_US, [0, 0, 0])
            if chance.random() < 0.2:
                events.append(denied(at_us, execution))
                counts[1] += 1
            else:
                rows = chance.randrange(9)
                events += [started(at_us, execution), finished(execution, rows)]
                counts[0] += 1
                counts[2] += rows
        frames = []
        while events:
            size = chance.randrange(1, 12)
            frames.append(frame(*events[:size], seq=len(frames)))
            events = events[size:]
        sent = []
        for n, one in enumerate(frames):
            sent.append(one)
            if chance.random() < 0.2:
                sent += frames[max(0, n - chance.randrange(4)) : n + 1]
        state, closed = fold(sent)
        counted = {window.minute_us: [window.executions, window.denied, window.rows] for window in (*closed, *state.open)}
        assert counted == wanted, seed
