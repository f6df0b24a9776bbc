"""A past that never was: agents at work for a month, in a log as gateways would have written it. The same seed, the same log.

`python -m bench.history FOLDER [EXECUTIONS]`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ingest.events import (
    AgentRegistered,
    Event,
    Frame,
    GatewayStarted,
    GrantApproved,
    GrantRequested,
    Outcome,
    Rule,
    Scope,
    SessionClosed,
    SessionDenied,
    SessionKilled,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
)
from ingest.frames import TOPIC_OF, VERSION, encode
from ingest.log import Entry, EventLog
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

END_US: Final = 1_795_000_000_000_000  # November 2026: the newest execution began a moment before
DAY_US: Final = 86_400_000_000
GATEWAY: Final = "gateway-1"
BOOT: Final = 1
ENTRIES_OF_APPEND: Final = 200
TEXTS_OF_SESSION: Final = 8
_VERBS: Final = ("SELECT", "SELECT", "SELECT", "SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True, slots=True)
class Past:
    """Its shape. A session of 500 executions and 1 in 100 denied are guesses; nobody has seen a fleet of agents for a month."""

    executions: int = 10_000_000
    agents: int = 1_000
    tables: int = 400
    shapes: int = 5_000  # different statements
    live_sessions: int = 500  # at any time
    frames_of_session: int = 10
    executions_of_frame: int = 50  # 1: agents so many that nobody's next statement comes within the linger
    days: int = 30
    denied_share: float = 0.01
    error_share: float = 0.015
    seed: int = 1


@dataclass(slots=True)
class _Session:
    stamp: Stamp
    shapes: Sequence[int]
    opened_us: int
    frames_left: int
    executions: int = 0
    open: list[int] = field(default_factory=list)  # begun in an earlier frame


class _Scribe:
    """Numbers frames as a recorder does, in a log whose topics have one partition each."""

    def __init__(self) -> None:
        self._seq: dict[str, int] = {}

    def entry(self, key: str, events: Sequence[Event], stamp: Stamp | None = None) -> Entry:
        topic = TOPIC_OF[type(events[0])]
        seq = self._seq.get(topic, 0)
        self._seq[topic] = seq + 1
        place = -1 if stamp is None else 0
        stamps = () if stamp is None else (stamp,)
        frame = Frame(VERSION, GATEWAY, BOOT, seq, stamps, tuple((place, event) for event in events))
        return Entry(topic, key.encode(), encode(frame))


def entries(past: Past) -> Iterator[Entry]:
    chance = random.Random(past.seed)
    scribe = _Scribe()
    frames = -(-past.executions // past.executions_of_frame)
    begin_us = END_US - past.days * DAY_US
    frame_us = past.days * DAY_US // frames
    yield from _identity(scribe, past, begin_us)
    yield scribe.entry(GATEWAY, [GatewayStarted(begin_us, GATEWAY, BOOT, "0.1")])
    shapes = [_shape(chance, past, number) for number in range(past.shapes)]
    live: list[_Session] = []
    number = 0
    left = past.executions
    for index in range(frames):
        at_us = begin_us + index * frame_us
        if len(live) < past.live_sessions:
            number += 1
            session = _session(chance, past, number, at_us)
            live.append(session)
            opened = SessionOpened(at_us, session.stamp, "scram", "key-1", 0, "psycopg", "TLSv1.3", "3.0", "fast")
            yield scribe.entry(session.stamp.agent, [opened])
            yield scribe.entry(
                session.stamp.agent,
                [StatementDefined(place, *shapes[shape]) for place, shape in enumerate(session.shapes)],
                session.stamp,
            )
        place = chance.randrange(len(live))
        session = live[place]
        count = min(past.executions_of_frame, left)
        left -= count
        yield scribe.entry(session.stamp.agent, _work(chance, past, session, at_us, frame_us, count), session.stamp)
        session.frames_left -= 1
        if session.frames_left <= 0:
            live.pop(place)
            yield from _end(chance, scribe, session, at_us + frame_us)


def _identity(scribe: _Scribe, past: Past, at_us: int) -> Iterator[Entry]:
    for number in range(past.agents):
        agent = f"agent-{number:05}"
        scope = Scope("shop", (Rule("public", ("*",), ("select", "insert", "update", "delete")),))
        yield scribe.entry(
            agent,
            [
                AgentRegistered(at_us, agent, f"agent {number}", f"team-{number % 40}", "idp", "", agent, "", "", "op"),
                GrantRequested(at_us, f"grant-{number:05}", agent, scope, 0, "monthly report", "op"),
                GrantApproved(at_us, f"grant-{number:05}", agent, "bob", 0),
            ],
        )


def _shape(
    chance: random.Random, past: Past, number: int
) -> tuple[str, str, int, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What StatementDefined says after the statement's number."""
    verb = chance.choice(_VERBS)
    table = f"public.table_{int(past.tables * chance.random() ** 2)}"
    other = f"public.table_{int(past.tables * chance.random() ** 2)}"
    text = {
        "SELECT": f"SELECT a.id, a.name, b.total FROM {table} a JOIN {other} b USING (id) WHERE a.c{number} = $1 LIMIT 20",
        "INSERT": f"INSERT INTO {table} (id, name, c{number}) VALUES ($1, $2, $3)",
        "UPDATE": f"UPDATE {table} SET c{number} = $1 WHERE id = $2",
        "DELETE": f"DELETE FROM {table} WHERE c{number} = $1",
    }[verb]
    relations = tuple(dict.fromkeys((table, other))) if verb == "SELECT" else (table,)
    return text, "full", len(text), f"{chance.getrandbits(64):016x}", (verb,), relations, ()


def _session(chance: random.Random, past: Past, number: int, at_us: int) -> _Session:
    agent = int(past.agents * chance.random() ** 3)  # a few do most of the work
    own = random.Random(f"{past.seed}/{agent}")  # an agent says much the same in each of its sessions
    stamp = Stamp(
        session=f"{at_us // 1000:012x}{number:08x}",
        agent=f"agent-{agent:05}",
        subject=f"sub-{agent:05}",
        issuer="https://idp.example/realms/agents",
        on_behalf_of=f"person-{chance.randrange(300)}@example.com",
        actors=(f"agent-{agent:05}",),
        invocation=f"run-{number:010x}",
        task=f"task {agent % 17}",
        unverified=("task",),
        grants=(f"grant-{agent:05}",),
        approvers=("bob",),
        connection="shop",
        database="shop",
        role="pgwarden",
        client=f"10.0.{agent % 250}.{chance.randrange(250)}:{40_000 + number % 20_000}",
        backend_pid=1_000 + number % 30_000,
        backend_start_us=at_us - 10_000,
        upstream_port=20_000 + number % 40_000,
    )
    return _Session(stamp, [own.randrange(past.shapes) for _ in range(TEXTS_OF_SESSION)], at_us, past.frames_of_session)


def _work(chance: random.Random, past: Past, session: _Session, at_us: int, frame_us: int, count: int) -> list[Event]:
    """One frame: the end of what the one before left open, and `count` beginnings, the last of which may stay open."""
    events: list[Event] = [_finished(chance, past, execution) for execution in session.open]
    session.open.clear()
    for number in range(count):
        session.executions += 1
        execution, statement = session.executions, chance.randrange(TEXTS_OF_SESSION)
        began_us = at_us + number * frame_us // (count + 1)
        if chance.random() < past.denied_share:
            reason = f"your grants do not allow delete on public.table_{statement}"
            events.append(StatementDenied(began_us, execution, statement, "42501", "default", reason))
            continue
        events.append(StatementStarted(began_us, execution, statement, "grant covers public.*"))
        if number == count - 1 and chance.random() < 0.5:
            session.open.append(execution)
        else:
            events.append(_finished(chance, past, execution))
    return events


def _finished(chance: random.Random, past: Past, execution: int) -> StatementFinished:
    x = chance.random()
    duration_us = 200 + int(2_000 * x**8 * 100)
    if x < past.error_share:
        return StatementFinished(execution, "error", "23505", "", 0, 24, 90, duration_us)
    rows = int(400 * (1 - x) ** 6)
    outcome: Outcome = "ok"
    return StatementFinished(execution, outcome, "", f"SELECT {rows}", rows, 24, 40 + 60 * rows, duration_us)


def _end(chance: random.Random, scribe: _Scribe, session: _Session, at_us: int) -> Iterator[Entry]:
    stamp = session.stamp
    last: list[Event] = []
    killed = chance.random() < 0.01
    if killed:
        last.append(
            SessionKilled(
                at_us, stamp.session, stamp.agent, "agent revoked", at_us - 90_000, at_us - 80_000, at_us - 50_000, at_us - 10_000,
                stamp.backend_pid, "leaked",
            )
        )  # fmt: skip
    duration_us = at_us - session.opened_us
    reason = "killed" if killed else "client"
    last.append(SessionClosed(at_us, stamp.session, stamp.agent, reason, "", 1_000, 90_000, session.executions, duration_us))
    if chance.random() < 0.05:
        last.append(SessionDenied(at_us, stamp.agent, stamp.agent, "shop", stamp.client, "28000", "the token has expired", "token"))
    yield scribe.entry(stamp.agent, last)


async def write(log: EventLog, past: Past) -> None:
    some: list[Entry] = []
    for entry in entries(past):
        some.append(entry)
        if len(some) == ENTRIES_OF_APPEND:
            await log.append(some)
            some = []
    if some:
        await log.append(some)


async def main(folder: Path, past: Past) -> None:
    began = time.monotonic()
    log = SegmentLog(folder, LogSettings(segment_bytes_max=2**28))
    try:
        await write(log, past)
    finally:
        await log.close()
    size = sum(file.stat().st_size for file in folder.rglob("*.seg"))
    print(f"{past.executions} executions, {size / 1e6:.0f} MB of log, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Past(int(sys.argv[2]) if len(sys.argv) > 2 else Past().executions)))
