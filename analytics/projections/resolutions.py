"""`resolutions`: what evidence says of executions whose outcome is `unknown`. The outcome itself stays as it was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, columns, place
from ingest.events import Frame, OutcomeResolved
from ingest.log import Record

_COLUMNS: Final = {
    "place": "BIGINT",
    "session": "VARCHAR",
    "agent": "VARCHAR",
    "execution": "BIGINT",
    "resolution": "VARCHAR",
    "evidence": "VARCHAR",
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (stamp, event) in enumerate(frame.events):
        if isinstance(event, OutcomeResolved) and stamp >= 0:
            yield (
                "stage_resolutions",
                {
                    "place": place(record, index),
                    "session": frame.stamps[stamp].session,
                    "agent": frame.stamps[stamp].agent,
                    "execution": event.execution,
                    "resolution": event.resolution,
                    "evidence": event.evidence,
                    "resolved_us": event.at_us,
                },
            )


PROJECTION: Final = Projection(
    topics=("statements",),
    tables={"resolutions": columns({**_COLUMNS, "resolved_at": "TIMESTAMP"})},
    stages=(Stage("stage_resolutions", {**_COLUMNS, "resolved_us": "BIGINT"}),),
    rows=rows,
    merge=(
        # An execution is resolved once; a gateway that died before it knew that it had been may say so again. The first stands.
        Merge(
            ("stage_resolutions",),
            """insert into resolutions by name
                select * exclude (resolved_us), instant(resolved_us) as resolved_at
                from stage_resolutions
                where (session, execution) not in (select (session, execution) from resolutions)
                qualify row_number() over (partition by session, execution order by place) = 1""",
        ),
    ),
)
