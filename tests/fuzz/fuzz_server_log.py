"""Any bytes are records or refused, in both formats, whatever they say; folded, they give observations that can be recorded."""

from __future__ import annotations

from ingest.collectors.log_lines import LogLine, cut, parse, resume
from ingest.collectors.log_sessions import LogSessions
from ingest.collectors.settings import LogSettings, TextPolicy
from ingest.frames import Framer


def one_input(data: bytes) -> None:
    for kind in ("jsonlog", "csvlog"):
        resume(kind, data)
        sessions = LogSessions("pglog", "main", TextPolicy(bytes_max=64), LogSettings(sessions_max=4), 0)
        records, taken = cut(kind, data)
        assert taken <= len(data)
        assert sum(len(record) + 1 for record in records) == taken
        for place, record in enumerate(records):
            line = parse(kind, record)
            if isinstance(line, LogLine):
                sessions.see(line, (1, place))
        sessions.settle(2**60)
        framer = Framer("w", 1, events_max=100, bytes_max=1000)
        for event in sessions.out:
            framer.add("witness", "main", event)
