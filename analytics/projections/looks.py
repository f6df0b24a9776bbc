"""`looks`: who read the record, and what they asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, RecordRead
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        if isinstance(event, RecordRead):
            yield (
                "stage_looks",
                {
                    "partition": record.partition,
                    "place": place(record, index),
                    "at_us": event.at_us,
                    "since_us": event.since_us,
                    "operator": event.operator,
                    "question": event.question,
                    "parameters": event.parameters,
                    "rows": event.rows,
                    "times": event.times,
                    "through": event.through,
                },
            )


PROJECTION: Final = Projection(
    topics=("looks",),
    tables={
        "looks": """partition BIGINT, place BIGINT, read_at TIMESTAMP, since_at TIMESTAMP, operator VARCHAR, question VARCHAR,
            parameters VARCHAR, rows BIGINT, times BIGINT, through VARCHAR"""
    },
    stages=(
        Stage(
            "stage_looks",
            {
                "partition": "BIGINT",
                "place": "BIGINT",
                "at_us": "BIGINT",
                "since_us": "BIGINT",
                "operator": "VARCHAR",
                "question": "VARCHAR",
                "parameters": "VARCHAR",
                "rows": "BIGINT",
                "times": "BIGINT",
                "through": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_looks",),
            """insert into looks
            select partition, place, instant(at_us), coalesce(instant(since_us), instant(at_us)), operator, question, parameters,
                case when rows >= 0 then rows end, times, through
            from stage_looks""",
        ),
    ),
)
