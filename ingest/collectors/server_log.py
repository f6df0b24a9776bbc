"""The collector that reads the server's own log, jsonlog or csvlog: what was executed, by `log_statement = all` or by pgaudit."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ingest.clock import now_us
from ingest.collectors.collector import CollectorState, Kind, Outlet, Sees
from ingest.collectors.log_files import Checkpoint, LogFiles, load, save
from ingest.collectors.log_lines import Format, Unreadable, parse
from ingest.collectors.log_sessions import LogSessions
from ingest.collectors.settings import LogSettings, TextPolicy

SUFFIX: Final[dict[Format, str]] = {"jsonlog": "*.json", "csvlog": "*.csv"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogSource:
    """Where one server's log is, and how it is read."""

    folder: Path
    format: Format
    checkpoint: Path
    policy: TextPolicy = field(default_factory=TextPolicy)
    from_start: bool = False  # whether the first start reads what is there already


class LogCollector:
    """A `collector.Collector`. A kill at any moment loses nothing that is in the files: the checkpoint follows the record."""

    def __init__(self, name: str, server: str, source: LogSource, settings: LogSettings | None = None) -> None:
        self.name = name
        self.kind: Kind = "log"
        self.server = server
        self.sees: Sees = "statements"
        self.resumed_us = 0
        self._source = source
        self._settings = settings or LogSettings()
        self._reason = ""
        self._refused = ""
        self._unsaved = ""  # why the checkpoint could not be written when it was last tried
        self._complete_us = 0
        self._observed = 0
        self._lost = 0
        self._lag_us = -1

    def state(self) -> CollectorState:
        reason = self._refused or self._reason or self._unsaved
        return CollectorState(not reason, reason, self._complete_us, self._observed, self._lost, self._lag_us)

    async def run(self, outlet: Outlet) -> None:
        """As `Collector.run`. Raises OSError when the checkpoint cannot be read."""
        source, settings = self._source, self._settings
        checkpoint = load(source.checkpoint)
        begun_us = now_us()
        self.resumed_us = self._complete_us = checkpoint.complete_us if checkpoint is not None else 0
        sessions = LogSessions(
            self.name,
            self.server,
            source.policy,
            settings,
            complete_since_us=checkpoint.complete_since_us if checkpoint is not None else 0 if source.from_start else begun_us,
            kept=checkpoint.sessions if checkpoint is not None else None,
        )
        files = LogFiles(source.folder, SUFFIX[source.format], source.format, settings, source.from_start, checkpoint)
        try:
            await self._follow(files, sessions, outlet, begun_us if checkpoint is None else checkpoint.at_us)
        finally:
            files.close()

    async def _follow(self, files: LogFiles, sessions: LogSessions, outlet: Outlet, looked_us: int) -> None:
        kind = self._source.format
        ticket = 0
        saved = 0.0
        while True:
            read_us = now_us()
            for records, places in files.read(time.monotonic()):
                unreadable = 0
                for record, place in zip(records, places, strict=True):
                    line = parse(kind, record)
                    if isinstance(line, Unreadable):
                        unreadable += bool(record)
                        reason = line.reason
                    else:
                        sessions.see(line, place)
                if unreadable:
                    sessions.lose(sessions.newest_us or read_us, looked_us, unreadable, reason)
                ticket = await self._hand_out(sessions, outlet, ticket)
                await asyncio.sleep(0)
                if time.monotonic() - saved > self._settings.checkpoint_ms / 1000:
                    await self._save(files, sessions, outlet, ticket)
                    saved = time.monotonic()
            for trouble in files.troubles:
                _log.error("%s: %s", self.name, trouble.reason)
                if trouble.lost:
                    sessions.lose(read_us, looked_us, 0, trouble.reason)
                if trouble.for_good:
                    self._refused = trouble.reason
            files.troubles.clear()
            self._reason = files.unreadable or sessions.hindrance
            if not files.unreadable:
                sessions.settle(read_us)
                looked_us = read_us
            ticket = await self._hand_out(sessions, outlet, ticket)
            if not files.unreadable:
                self._complete_us = max(self._complete_us, sessions.complete_us(read_us))
            if time.monotonic() - saved > self._settings.checkpoint_ms / 1000:
                await self._save(files, sessions, outlet, ticket)
                saved = time.monotonic()
            await asyncio.sleep(self._settings.scan_ms / 1000)

    async def _hand_out(self, sessions: LogSessions, outlet: Outlet, ticket: int) -> int:
        self._lost = sessions.lost
        if not sessions.out:
            return ticket
        out, sessions.out = sessions.out, []
        ticket = await outlet.record(out)
        self._observed += len(out)
        self._lag_us = max(0, now_us() - sessions.newest_us)
        return ticket

    async def _save(self, files: LogFiles, sessions: LogSessions, outlet: Outlet, ticket: int) -> None:
        """Only what is recorded for good is behind the checkpoint: what a crash takes is read again.

        Where it cannot be written, as on a full disk, the old one stands, and reading goes on: to begin anew at the old one would
        tell the same again each time.
        """
        kept, unfinished = sessions.kept()
        checkpoint = Checkpoint(now_us(), self._complete_us, sessions.complete_since_us, files.offsets(unfinished), dict(kept))
        await outlet.recorded(ticket)
        try:
            save(self._source.checkpoint, checkpoint)
        except OSError as error:
            if not self._unsaved:
                _log.error("%s: its checkpoint cannot be written: %s", self.name, error)
            self._unsaved = f"its checkpoint cannot be written: {error}"
        else:
            self._unsaved = ""
