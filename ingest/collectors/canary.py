"""A statement with a random mark, run by a connection of our own: a collector that sees tells of it. Asks for settings too."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, TypeAlias

import psycopg

from ingest.clock import now_us
from ingest.collectors.collector import digest, session_id
from ingest.collectors.server_settings import NAMES, Override

Connect: TypeAlias = Callable[[str], Awaitable[psycopg.AsyncConnection[Any]]]
"""Opens a connection with this application_name. Raises psycopg.Error, OSError."""

APPLICATION_NAME: Final = "pgwarden/canary/"  # and the collector's name: for people; anybody may say so
ANSWER_SECONDS_MAX: Final = 10.0
# Each is one statement of the simple protocol, qualified: a search_path must not decide what it means.
_WHO: LiteralString = (
    "SELECT pid, backend_start, usename FROM pg_catalog.pg_stat_activity"
    " WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()"
)
_SETTINGS: LiteralString = "SELECT name, setting FROM pg_catalog.pg_settings"
_OVERRIDES: LiteralString = (
    "SELECT COALESCE(r.rolname, ''), COALESCE(d.datname, ''), pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s"
    " LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) s.setrole"
    " LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.setdatabase"
)


class CanaryFailed(Exception):
    """It could not be sent. Says why, without a credential."""


@dataclass(frozen=True, slots=True)
class Session:
    """A connection of ours, as the server knows it."""

    session_id: str
    backend_pid: int
    user: str


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says of itself."""

    version: int  # server_version_num
    settings: Mapping[str, str]  # those of `server_settings.NAMES` that this role may see
    overrides: tuple[Override, ...]


class Canary:
    """One that is about to be sent. `session` and `digest` are what a collector must tell of."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], session: Session) -> None:
        self._connection = connection
        self._text = f"SELECT 'pgwarden canary {secrets.token_hex(16)}'"
        self.session = session
        self.digest = digest(self._text.encode())
        self.sent_us = 0

    async def send(self) -> None:
        """Raises CanaryFailed."""
        self.sent_us = now_us()
        await _rows(self._connection, self._text)

    async def server(self) -> Server:
        """Raises CanaryFailed."""
        settings = {str(name): str(value) for name, value in await _rows(self._connection, _SETTINGS) if name in NAMES}
        overrides = []
        for role, database, assignment in await _rows(self._connection, _OVERRIDES):
            name, _, value = str(assignment).partition("=")
            if name in NAMES:
                overrides.append(Override(str(role), str(database), name, value))
        return Server(self._connection.info.server_version, settings, tuple(overrides))


@asynccontextmanager
async def canary(connect: Connect, name: str) -> AsyncIterator[Canary]:
    """The connection is open until the block ends: what only shows sessions must see it meanwhile.

    Raises:
        CanaryFailed
    """
    async with opened(connect, APPLICATION_NAME + name) as (connection, session):
        yield Canary(connection, session)


@asynccontextmanager
async def opened(connect: Connect, application_name: str) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], Session]]:
    """Raises CanaryFailed."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            connection = await connect(application_name)
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise CanaryFailed(_reason(error)) from error
    try:
        ((pid, start, user),) = await _rows(connection, _WHO)
        if not isinstance(start, datetime):
            raise CanaryFailed("pg_stat_activity does not show this role its own session")
        yield connection, Session(session_id(microseconds(start), int(str(pid))), int(str(pid)), str(user))
    finally:
        await asyncio.shield(connection.close())


def microseconds(moment: datetime) -> int:
    whole = moment.astimezone(UTC)
    return int(whole.replace(microsecond=0).timestamp()) * 1_000_000 + whole.microsecond


async def _rows(connection: psycopg.AsyncConnection[Any], text: str) -> list[tuple[object, ...]]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            cursor = psycopg.AsyncClientCursor(connection)
            await cursor.execute(text.encode())
            return [tuple(row) for row in await cursor.fetchall()]
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise CanaryFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    """One line, without the connection's parameters."""
    first = (str(error) or type(error).__name__).strip().splitlines()[0]
    return first[:200]
