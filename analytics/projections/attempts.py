"""`attempts`: connections that did not become sessions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, SessionDenied
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        if isinstance(event, SessionDenied):
            yield (
                "stage_attempts",
                {
                    "place": place(record, index),
                    "at_us": event.at_us,
                    "claimed": event.claimed,
                    "agent": event.agent,
                    "connection": event.connection,
                    "client": event.client,
                    "sqlstate": event.sqlstate,
                    "reason": event.reason,
                    "method": event.method,
                },
            )


PROJECTION: Final = Projection(
    topics=("sessions",),
    tables={
        "attempts": """place BIGINT, attempted_at TIMESTAMP, claimed VARCHAR, agent VARCHAR, connection VARCHAR, client VARCHAR,
            sqlstate VARCHAR, reason VARCHAR, method VARCHAR"""
    },
    stages=(
        Stage(
            "stage_attempts",
            {
                "place": "BIGINT",
                "at_us": "BIGINT",
                "claimed": "VARCHAR",
                "agent": "VARCHAR",
                "connection": "VARCHAR",
                "client": "VARCHAR",
                "sqlstate": "VARCHAR",
                "reason": "VARCHAR",
                "method": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_attempts",),
            """insert into attempts
            select place, instant(at_us), claimed, agent, connection, client, sqlstate, reason, method from stage_attempts""",
        ),
    ),
)
