"""The collector for managed databases: looks at pg_stat_activity. It sees sessions, and of statements next to none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final, LiteralString

import psycopg

from ingest.clock import now_us
from ingest.collectors.canary import CanaryFailed, Connect, Session, microseconds, opened
from ingest.collectors.collector import CollectorState, Kind, Observation, Outlet, Sees, session_id
from ingest.collectors.settings import ActivitySettings
from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, WitnessConnected

APPLICATION_NAME: Final = "pgwarden/activity/"  # and the collector's name
# Without pg_monitor or pg_read_all_stats the server shows that others are there, and not since when.
_SESSIONS: LiteralString = (
    "SELECT pid, backend_start, usename::pg_catalog.text, datname::pg_catalog.text, client_addr::pg_catalog.text, client_port,"
    " client_hostname, application_name, backend_type FROM pg_catalog.pg_stat_activity"
    " WHERE backend_type IS NULL OR backend_type OPERATOR(pg_catalog.=) ANY ('{client backend,walsender}'::pg_catalog.text[])"
)
HIDDEN: Final = "this role does not see the sessions of others: run GRANT pg_monitor TO that role"
FULL: Final = "more sessions are open than are kept in sight: raise ActivitySettings.sessions_max"


class ActivityCollector:
    """A `collector.Collector`. A session that begins and ends between two looks is not seen."""

    def __init__(self, name: str, server: str, connect: Connect, settings: ActivitySettings | None = None) -> None:
        self.name = name
        self.kind: Kind = "activity"
        self.server = server
        self.sees: Sees = "sessions"
        self.resumed_us = 0
        self._connect = connect
        self._settings = settings or ActivitySettings()
        self._open: dict[str, None] = {}
        self._reason = "it has not looked yet"
        self._complete_us = 0
        self._observed = 0
        self._lag_us = -1

    def state(self) -> CollectorState:
        return CollectorState(not self._reason, self._reason, self._complete_us, self._observed, 0, self._lag_us)

    async def run(self, outlet: Outlet) -> None:
        while True:
            try:
                async with opened(self._connect, APPLICATION_NAME + self.name) as (connection, session):
                    await outlet.record([self._own(session)])
                    await self._look(connection, outlet)
            except CanaryFailed as error:
                self._reason = f"the server does not answer: {error}"
            await asyncio.sleep(self._settings.sample_ms / 1000)

    def _own(self, session: Session) -> WitnessConnected:
        return WitnessConnected(
            now_us(), self.name, self.server, session.session_id, session.backend_pid, session.user, "activity", ""
        )

    async def _look(self, connection: psycopg.AsyncConnection[Any], outlet: Outlet) -> None:
        """Raises CanaryFailed."""
        while True:
            looked_us = now_us()
            try:
                async with asyncio.timeout(self._settings.answer_seconds_max):
                    cursor = await connection.execute(_SESSIONS)
                    rows = [tuple(row) for row in await cursor.fetchall()]
            except (psycopg.Error, OSError, TimeoutError) as error:
                raise CanaryFailed(type(error).__name__) from error
            out = self._told(rows, looked_us)
            if self._complete_us and looked_us - self._complete_us > 10 * self._settings.sample_ms * 1000:
                reason = "it did not look for so long: sessions that began and ended meanwhile were not seen"
                out.insert(0, ObservationGap(looked_us, self.name, self.server, "", self._complete_us, looked_us, 0, reason))
            if out:
                await outlet.record(out)
                self._observed += len(out)
                self._lag_us = now_us() - looked_us
            self._complete_us = looked_us
            await asyncio.sleep(self._settings.sample_ms / 1000)

    def _told(self, rows: Sequence[tuple[Any, ...]], looked_us: int) -> list[Observation]:
        out: list[Observation] = []
        there: dict[str, None] = {}
        self._reason = ""
        for pid, start, user, database, address, port, host, application_name, backend_type in rows:
            if not isinstance(start, datetime):
                self._reason = HIDDEN
                continue
            if len(there) >= self._settings.sessions_max:
                self._reason = FULL
                break
            start_us = microseconds(start)
            name = session_id(start_us, pid)
            there[name] = None
            if name in self._open:
                continue
            out.append(
                SessionObserved(
                    at_us=start_us,
                    witness=self.name,
                    server=self.server,
                    session_id=name,
                    backend_pid=pid,
                    user=user or "",
                    database=database or "",
                    client=_client(address or host or "", port or 0),
                    application_name=application_name or "",
                    backend_type="" if backend_type in (None, "client backend") else backend_type,
                )
            )
        if self._reason != FULL:
            out += [
                SessionUnobserved(looked_us, self.name, self.server, name, "it is no longer in pg_stat_activity")
                for name in self._open
                if name not in there
            ]
        self._open = there
        return out


def _client(address: str, port: int) -> str:
    if port <= 0:
        return "local"
    host = address.partition("/")[0]
    try:
        return f"[{host}]:{port}" if ip_address(host).version == 6 else f"{host}:{port}"
    except ValueError:
        return f"{host}:{port}"
