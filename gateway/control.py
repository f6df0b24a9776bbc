"""Our own connection to each Postgres: who runs there, ending a backend, and the functions that users defined."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg

from gateway.settings import GatewaySettings
from gateway.upstream import Target

_BACKEND_START: LiteralString = "SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) %s"
# The pid alone may belong to somebody else by now: together with its start it is the backend that we mean, or nobody. Many at once:
# a scan of pg_stat_activity costs as much for one as for all.
_WANTED: LiteralString = (
    " FROM pg_catalog.pg_stat_activity a,"
    " ROWS FROM (pg_catalog.unnest(%s::pg_catalog.int4[]), pg_catalog.unnest(%s::pg_catalog.timestamptz[])) AS w(pid, start)"
    " WHERE a.pid OPERATOR(pg_catalog.=) w.pid AND a.backend_start OPERATOR(pg_catalog.=) w.start"
)
_TERMINATE_ALL: LiteralString = (
    "SELECT a.pid, a.backend_start, pg_catalog.pg_cancel_backend(a.pid), pg_catalog.pg_terminate_backend(a.pid)" + _WANTED
)
_ALIVE_OF: LiteralString = "SELECT a.pid, a.backend_start" + _WANTED
# What is ours alone: agents cannot choose this name (gateway/stamp.py), nor log in as this role.
_OURS: LiteralString = (
    "SELECT pid, backend_start, application_name FROM pg_catalog.pg_stat_activity"
    " WHERE usename OPERATOR(pg_catalog.=) CURRENT_USER AND pg_catalog.starts_with(application_name, 'pgwarden/')"
)
_OWN: LiteralString = (
    "SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()"
)
# By the second of its start, which is all that its name tells. The start of another role's backend is null, but to those who have
# pg_read_all_stats.
_STRAY: LiteralString = (
    "SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) %s AND (backend_start IS NULL"
    " OR pg_catalog.trunc(EXTRACT(epoch FROM backend_start)) OPERATOR(pg_catalog.=) %s)"
)
_ANSWER: LiteralString = "SELECT 1"
# What a user or a server may have set otherwise. An idle connection of ours is no idle session; and a server whose peer's machine
# has died says so within ten seconds, not within its two hours.
_OPTIONS: LiteralString = (
    "-c search_path=pg_catalog,pg_temp -c statement_timeout=5000 -c idle_session_timeout=0"
    " -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=2"
)
# `o.f` calls f(o) where o has no column f: so may every function that takes one argument and that PostgreSQL did not bring, be it
# an extension's in pg_catalog. 16384 is FirstNormalObjectId.
_CALLABLE: LiteralString = (
    "SELECT DISTINCT p.proname::pg_catalog.text FROM pg_catalog.pg_proc p"
    " WHERE p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid"
    " AND p.pronargs OPERATOR(pg_catalog.>=) 1 AND (p.pronargs OPERATOR(pg_catalog.-) p.pronargdefaults) OPERATOR(pg_catalog.<=) 1"
)


class ControlFailed(Exception):
    """The control connection could not answer."""


class MayNot(ControlFailed):
    """The role has no leave. Says which it wants."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One server process and no other: a pid alone may be another's by now."""

    pid: int
    start_us: int


class Control:
    """One connection, used by one request at a time, made anew when it breaks. Held open, so that a kill needs no free slot.

    Its `application_name` says whose it is (`stamp.control_name`): as long as it is there, so is its gateway.
    """

    def __init__(
        self, target: Target, sslmode: str, root_certificate: str, settings: GatewaySettings, application_name: str
    ) -> None:
        self._target = target
        self._sslmode = sslmode
        self._root_certificate = root_certificate
        self._settings = settings
        self._application_name = application_name
        self._lock = asyncio.Lock()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._opened: Callable[[Backend, int], None] | None = None
        self._own: tuple[Backend, int] | None = None

    @property
    def role(self) -> str:
        return self._target.role

    def tell(self, opened: Callable[[Backend, int], None]) -> None:
        """From now on call this for each connection that is made, with its backend and our port, and for the one that stands."""
        self._opened = opened
        if self._own is not None:
            opened(*self._own)

    async def stray(self, pid: int, start_second: int) -> Backend | None:
        """The backend of this pid that began in this second, None when there is none.

        Raises:
            MayNot: There is a backend of this pid, and when it began this role may not see.
            ControlFailed: As the others.
        """
        rows = await self._rows(_STRAY, (pid, start_second))
        if rows and not isinstance(rows[0][1], datetime):
            raise MayNot(f"role {self._target.role} may not see the sessions of other roles: GRANT pg_read_all_stats TO it")
        return _backend(rows[0]) if rows else None

    async def end_stray(self, backend: Backend) -> None:
        """Cancel and terminate it, whoever's it is.

        Raises:
            MayNot: It is another role's, and this one may not end it.
            ControlFailed: As the others.
        """
        try:
            await self.terminate_all([backend])
        except ControlFailed as failed:
            if isinstance(failed.__cause__, psycopg.errors.InsufficientPrivilege):
                role = self._target.role
                raise MayNot(f"role {role} may not end the sessions of other roles: GRANT pg_signal_backend TO it") from failed
            raise

    async def backend_start_us(self, pid: int) -> int:
        """Raises ControlFailed, also when there is no such backend."""
        rows = await self._rows(_BACKEND_START, (pid,))
        if not rows or not isinstance(rows[0][0], datetime):
            raise ControlFailed(f"no backend has pid {pid}")
        return _microseconds(rows[0][0])

    async def callable_names(self) -> frozenset[str]:
        return frozenset(str(row[0]) for row in await self._rows(_CALLABLE, ()))

    async def ours(self) -> list[tuple[Backend, str]]:
        """Every backend of ours that this role may see, sessions' and controls', with its application name."""
        return [(_backend(row), str(row[2])) for row in await self._rows(_OURS, ()) if isinstance(row[1], datetime)]

    async def terminate_all(self, backends: Collection[Backend]) -> frozenset[Backend]:
        """Cancel and terminate those that are there; return them."""
        return await self._found(_TERMINATE_ALL, backends)

    async def alive_of(self, backends: Collection[Backend]) -> frozenset[Backend]:
        return await self._found(_ALIVE_OF, backends)

    async def keep(self) -> None:
        """See that the connection stands, and make it anew when it does not. Costs nothing while it does.

        Raises ControlFailed when it cannot be made.
        """
        if not self._lock.locked() and (self._connection is None or _has_news(self._connection)):
            await self._rows(_ANSWER, ())

    async def close(self) -> None:
        async with self._lock:
            await self._drop()

    async def _found(self, query: LiteralString, backends: Collection[Backend]) -> frozenset[Backend]:
        if not backends:
            return frozenset()
        wanted = ([backend.pid for backend in backends], [_timestamp(backend.start_us) for backend in backends])
        return frozenset(_backend(row) for row in await self._rows(query, wanted))

    async def _rows(self, query: LiteralString, parameters: Sequence[object]) -> list[tuple[object, ...]]:
        async with self._lock:
            for attempt in (1, 2):
                try:
                    async with asyncio.timeout(self._settings.upstream_connect_seconds_max):
                        connection = await self._connected()
                        cursor = await connection.execute(query, parameters)
                        return list(await cursor.fetchall())
                except (psycopg.Error, OSError, TimeoutError) as error:
                    await self._drop()
                    if attempt == 2:
                        raise ControlFailed(f"{self._target.name}: {type(error).__name__}") from error
        raise AssertionError

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                host=self._target.host,
                port=self._target.port,
                dbname=self._target.database,
                user=self._target.role,
                password=self._target.password(),
                sslmode=self._sslmode,
                sslrootcert=self._root_certificate or None,
                application_name=self._application_name,
                options=_OPTIONS,
                autocommit=True,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=2,
                connect_timeout=max(2, int(self._settings.upstream_connect_seconds_max)),
            )
            cursor = await self._connection.execute(_OWN)
            row = await cursor.fetchone()
            if row is not None:
                self._own = (_backend(row), _port(self._connection))
                if self._opened is not None:
                    self._opened(*self._own)
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._own = None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


def _port(connection: psycopg.AsyncConnection[Any]) -> int:
    """Ours, of this connection; 0 over a Unix socket."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        name = ours.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


def _has_news(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server has said something unasked: mostly its last word. Not to be asked while a query runs."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _backend(row: tuple[object, ...]) -> Backend:
    pid, start = row[:2]
    assert isinstance(pid, int)
    assert isinstance(start, datetime)
    return Backend(pid, _microseconds(start))


def _timestamp(us: int) -> datetime:
    seconds, rest = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _microseconds(moment: datetime) -> int:
    whole = moment.astimezone(UTC)
    return int(whole.replace(microsecond=0).timestamp()) * 1_000_000 + whole.microsecond
