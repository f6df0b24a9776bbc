"""What ends backends that no gateway opened, with a real PostgreSQL: whose it may end, whose it must not, and what it says of that."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from gateway import strays
from gateway.control import Control
from gateway.settings import GatewaySettings
from gateway.strays import Strays
from gateway.upstream import Target
from ingest.collectors.collector import session_id
from ingest.events import BackendEndOrdered, BackendReaped
from ingest.follow import Follower
from ingest.log.memory import MemoryLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from tests.conftest import Database

pytestmark = pytest.mark.slow
Until = Callable[..., Awaitable[object]]


@dataclass
class Dog:
    strays: Strays
    log: MemoryLog
    gateways: set[tuple[int, int]]

    async def proofs(self) -> list[BackendReaped]:
        follower = Follower(self.log, ("observations",), {})
        found = [event for _, frame in await follower.poll(timeout_seconds=0.02) for _, event in frame.events]
        follower.close()
        return [event for event in found if isinstance(event, BackendReaped)]


@pytest.fixture
async def dog(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dog]:
    """As the connection's role, which is no superuser; what it has no leave for it tries again a moment later."""
    monkeypatch.setattr(strays, "MAY_NOT_SECONDS", 0.1)
    target = Target(
        "shop", database.host, database.port, database.name, database.role, lambda: database.password, None, (), "group"
    )
    control = Control(target, "disable", "", GatewaySettings(), "pgwarden/watchdog/w")
    log, gateways = MemoryLog(), set[tuple[int, int]]()
    recorder = Recorder(log, "w", 1, RecorderSettings())
    made = Strays({"shop": control}, recorder, "w", lambda _: frozenset(gateways), lambda: True, unproven_seconds=0.5)
    task = asyncio.create_task(made.run())
    yield Dog(made, log, gateways)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await control.close()
    await recorder.close()


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """Another ordinary role of the server, which may log in to the same database."""
    made = replace(database, role=f"other_{secrets.token_hex(4)}", password=secrets.token_urlsafe(18))
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(made.role), sql.Literal(made.password)))
    yield made
    with psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (made.role,))
        superuser.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(made.role)))


def opened(whose: Database) -> psycopg.Connection[Any]:
    return psycopg.connect(whose.dsn, autocommit=True)


def order(database: Database, session: psycopg.Connection[Any], *, connection: str = "shop") -> BackendEndOrdered:
    """That this session ends, as reconciliation orders it."""
    pid = session.info.backend_pid
    with psycopg.connect(database.superuser_dsn) as superuser:
        row = superuser.execute(
            "SELECT trunc(extract(epoch FROM backend_start))::bigint FROM pg_stat_activity WHERE pid = %s", (pid,)
        ).fetchone()
    assert row is not None
    start_us = row[0] * 1_000_000
    name = session_id(start_us, pid)
    return BackendEndOrdered(1, f"shadow main/{name}", connection, "main", name, pid, start_us, "shadow", "nobody's", "f-1")


def lives(session: psycopg.Connection[Any]) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


async def test_a_stray_of_its_own_role_ends_once_and_its_end_is_proven(dog: Dog, database: Database, await_for: Until) -> None:
    with opened(database) as session:
        wanted = order(database, session)
        dog.strays.take(wanted)
        dog.strays.take(wanted)
        await await_for(lambda: dog.strays.reaped, 20)
        assert not lives(session)
    (proof,) = await dog.proofs()
    assert (proof.order, proof.backend_pid, proof.finding, bool(proof.backend_gone_us)) == (
        wanted.order,
        wanted.backend_pid,
        "f-1",
        True,
    )
    dog.strays.take(wanted)  # read once more
    assert dog.strays.pending == 0


async def test_what_the_role_may_not_end_stands_with_what_to_grant_and_ends_once_that_is_granted(
    dog: Dog, database: Database, other: Database, await_for: Until
) -> None:
    with opened(other) as session, psycopg.connect(database.superuser_dsn, autocommit=True) as superuser:
        dog.strays.take(order(database, session))
        for leave in ("pg_read_all_stats", "pg_signal_backend"):
            await await_for(lambda leave=leave: f"GRANT {leave} TO it" in dog.strays.hindrance, 20)
            assert lives(session)
            assert (dog.strays.pending, dog.strays.reaped) == (1, 0)
            superuser.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(leave), sql.Identifier(database.role)))
        await await_for(lambda: dog.strays.reaped, 20)
        assert not lives(session)
    assert dog.strays.hindrance == ""


async def test_what_cannot_be_ended_in_time_is_recorded_as_unproven_once(
    dog: Dog, database: Database, other: Database, await_for: Until
) -> None:
    with opened(other) as session:
        dog.strays.take(order(database, session))
        await await_for(dog.proofs, 20)
        await asyncio.sleep(0.5)
        (said,) = await dog.proofs()
        assert (said.backend_gone_us, "it is not proven to have ended: role" in said.reason) == (0, True)
        assert lives(session)


async def test_a_gateways_session_is_never_ended_whatever_an_order_says(dog: Dog, database: Database, await_for: Until) -> None:
    with opened(database) as session:
        wanted = order(database, session)
        dog.gateways.add((wanted.backend_pid, wanted.backend_start_us // 1_000_000))
        dog.strays.take(wanted)
        await await_for(lambda: "is a gateway's session" in dog.strays.hindrance, 20)
        await asyncio.sleep(0.3)
        assert lives(session)


async def test_another_backend_that_has_the_pid_since_is_left_alone(dog: Dog, database: Database, await_for: Until) -> None:
    with opened(database) as session:
        wanted = order(database, session)
        dog.strays.take(msgspec.structs.replace(wanted, backend_start_us=wanted.backend_start_us - 5_000_000))
        await await_for(lambda: dog.strays.pending == 0, 20)
        assert lives(session)
    (proof,) = await dog.proofs()
    assert (bool(proof.backend_gone_us), "its backend was gone already" in proof.reason, dog.strays.reaped) == (True, True, 0)
