"""From a revocation until the backends are gone, over many live sessions: one gateway process, one PostgreSQL, many agents.

The same on Kafka, where the revocation goes to the brokers and comes to the gateway through its relay.

The times are those of the record: `requested_us`, when the revocation was recorded, and `backend_gone_us` of SessionKilled, when
the gateway had seen in pg_stat_activity that the backend is no more. One agent after the other is revoked, and then all that is
left at once. One session in ten is in the middle of a statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg

from bench import servers
from bench.servers import DATABASE, CannotMeasure, Gateway
from identity import agent_keys
from ingest.events import AgentRegistered, AgentRevoked, GrantApproved, GrantRequested, Rule, Scope, SessionKilled
from ingest.follow import Follower
from ingest.log import EventLog
from ingest.log.kafka import KafkaLog
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden.postgres import Postgres, PostgresSettings

SESSIONS_OF_AGENT: Final = 10
ONE_BY_ONE_SHARE: Final = 0.5  # of the sessions; the others end all at once
LOGINS_AT_ONCE: Final = 16
LEVEL: Final = "group"
SECONDS_MAX: Final = 120.0  # for the proofs


async def main(folder: Path, sessions: int) -> None:
    with _servers(folder, sessions) as (server, role):
        gateway = servers.gateway(folder / "gateway", server, role, (LEVEL,))
        async with _running(gateway) as running:
            log = SegmentLog(running.state / "log", LogSettings())
            try:
                await _measure(log, running, sessions)
            finally:
                await log.close()


async def on_kafka(folder: Path, sessions: int, bootstrap: str) -> None:
    settings, tables = await asyncio.to_thread(servers.kafka, bootstrap)
    with _servers(folder, sessions) as (server, role):
        log = await KafkaLog.open(settings)
        try:
            async with _running(servers.gateway(folder / "gateway", server, role, (LEVEL,), tables)) as running:
                await _measure(log, running, sessions)
        finally:
            await log.close()


@contextlib.contextmanager
def _servers(folder: Path, sessions: int) -> Iterator[tuple[Postgres, servers.Role]]:
    folder.mkdir(mode=0o711)
    role = servers.role()
    settings = PostgresSettings(durable=False, connections_max=sessions + 50, shared_buffers_mb=256)
    with Postgres(folder / "postgres", settings) as server:
        server.execute(
            "postgres",
            f"CREATE ROLE {role.name} LOGIN NOSUPERUSER PASSWORD '{role.verifier}'",
            f"CREATE DATABASE {DATABASE} OWNER {role.name}",
        )
        yield server, role


@contextlib.asynccontextmanager
async def _running(gateway: contextlib.AbstractContextManager[Gateway]) -> AsyncIterator[Gateway]:
    """In a thread of its own: it starts and ends an event loop for what it records."""
    running = await asyncio.to_thread(gateway.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(gateway.__exit__, None, None, None)


async def _measure(log: EventLog, gateway: Gateway, sessions: int) -> None:
    agents = {f"agent-{number:04}": agent_keys.create() for number in range(sessions // SESSIONS_OF_AGENT)}
    recorder = Recorder(log, "bench-api", time.time_ns() // 1000, RecorderSettings())
    try:
        for agent, (_, key_id, verifier) in agents.items():
            now_us = time.time_ns() // 1000
            scope = Scope(LEVEL, (Rule("public", ("*",), ("select",)),), functions=("pg_catalog.pg_sleep",))
            recorder.record("identity", agent, AgentRegistered(now_us, agent, "d", "o", "", "", "", key_id, verifier, "bench"))
            recorder.record("identity", agent, GrantRequested(now_us, f"g-{agent}", agent, scope, 0, "benchmark", "bench"))
            last = recorder.record("identity", agent, GrantApproved(now_us, f"g-{agent}", agent, "other", 0))
        await recorder.recorded(last)
        await _acted_upon(gateway, now_us)
        async with _connected(gateway, [(agent, key) for agent, (key, _, _) in agents.items()]) as began:
            print(f"{began} sessions of {len(agents)} agents are open; one in ten runs a statement", flush=True)
            kills = Follower(log, ("sessions",), await log.offsets("sessions"), on_gap=lambda _: None)
            cpu = servers.ProcessClock(gateway.pid)
            names = list(agents)
            single = names[: int(len(names) * ONE_BY_ONE_SHARE)]
            cpu_ns, found = cpu.ns(), []
            for agent in single:
                await _revoke(recorder, [agent])
                found += await _killed(kills, SESSIONS_OF_AGENT)
            _print(f"one agent of {SESSIONS_OF_AGENT} sessions after the other", found, cpu.ns() - cpu_ns)
            cpu_ns = cpu.ns()
            await _revoke(recorder, names[len(single) :])
            _print("all the others at once", await _killed(kills, began - len(found)), cpu.ns() - cpu_ns)
            kills.close()
    finally:
        await recorder.close()


async def _acted_upon(gateway: Gateway, at_us: int) -> None:
    """Return once the gateway knows of what was recorded then."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            known = (await asyncio.to_thread(gateway.status)).get("identity_at_us")
            if isinstance(known, int) and known >= at_us:
                return
            await asyncio.sleep(0.05)


async def _revoke(recorder: Recorder, agents: Sequence[str]) -> None:
    for agent in agents:
        last = recorder.record("identity", agent, AgentRevoked(time.time_ns() // 1000, agent, "measured", "bench"))
    await recorder.recorded(last)


async def _killed(kills: Follower, count: int) -> list[SessionKilled]:
    found: list[SessionKilled] = []
    async with asyncio.timeout(SECONDS_MAX):
        while len(found) < count:
            for _, frame in await kills.poll():
                found += [event for _, event in frame.events if isinstance(event, SessionKilled)]
    return found


def _print(what: str, kills: Sequence[SessionKilled], cpu_ns: int) -> None:
    gone = sorted((kill.backend_gone_us - kill.requested_us) / 1e3 for kill in kills if kill.backend_gone_us)
    decided = sorted((kill.decided_us - kill.requested_us) / 1e3 for kill in kills)
    if not gone:
        raise CannotMeasure("no session's end was proven")
    print(
        f"{what}: {len(kills)} sessions, {len(kills) - len(gone)} without proof; "
        f"decided after p50 {_of(decided, 0.5):.1f} ms, p99 {_of(decided, 0.99):.1f}; "
        f"backend gone after p50 {_of(gone, 0.5):.1f} ms, p99 {_of(gone, 0.99):.1f}, at most {gone[-1]:.1f}; "
        f"gateway's CPU {cpu_ns / 1e6 / len(kills):.1f} ms a session"
    )


def _of(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@contextlib.asynccontextmanager
async def _connected(gateway: Gateway, agents: Sequence[tuple[str, str]]) -> AsyncIterator[int]:
    """How many sessions are open."""
    gate = asyncio.Semaphore(LOGINS_AT_ONCE)
    connections: list[psycopg.AsyncConnection] = []
    running: list[asyncio.Task[object]] = []

    async def connect(agent: str, key: str) -> None:
        async with gate:
            dsn = psycopg.conninfo.make_conninfo(
                host="127.0.0.1", port=gateway.port, dbname=LEVEL, user=agent, password=key, connect_timeout=60, sslmode="disable"
            )
            connections.append(await psycopg.AsyncConnection.connect(dsn, autocommit=True))

    async def run(connection: psycopg.AsyncConnection) -> None:
        with contextlib.suppress(psycopg.Error):
            await connection.execute("SELECT pg_sleep(600)")

    try:
        await asyncio.gather(*(connect(agent, key) for agent, key in agents for _ in range(SESSIONS_OF_AGENT)))
        running += [asyncio.create_task(run(connection)) for connection in connections[::10]]
        await asyncio.sleep(1.0)  # until what runs has begun, and the logins' last records are out
        yield len(connections)
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running) if running else None
        for connection in connections:
            await connection.close()
