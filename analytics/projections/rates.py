"""`rates`: a roll-up by agent and minute, so that a screen need not read every execution.

All counts of an execution stand in the minute in which it began. `statements` are those that were let through, `denied` those that
were not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Staged
from ingest.events import Frame
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    """None of its own: it counts what `statements` has staged."""
    del record, frame
    return iter(())


PROJECTION: Final = Projection(
    topics=(),
    tables={
        "rates": """minute TIMESTAMP, agent VARCHAR, statements BIGINT, denied BIGINT, finished BIGINT, errors BIGINT,
            rows BIGINT, bytes_in BIGINT, bytes_out BIGINT, duration_us BIGINT, last_at TIMESTAMP"""
    },
    stages=(),
    rows=rows,
    merge=(
        Merge(
            ("stage_counted",),
            """merge into rates r using (
                select minute, agent, sum(statements)::bigint as statements, sum(denied)::bigint as denied,
                    sum(finished)::bigint as finished, sum(errors)::bigint as errors, sum(rows)::bigint as rows,
                    sum(bytes_in)::bigint as bytes_in, sum(bytes_out)::bigint as bytes_out,
                    sum(duration_us)::bigint as duration_us, max(last_at) as last_at
                from stage_counted group by minute, agent
            ) n on r.minute = n.minute and r.agent = n.agent
            when matched then update set statements = r.statements + n.statements, denied = r.denied + n.denied,
                finished = r.finished + n.finished, errors = r.errors + n.errors, rows = r.rows + n.rows,
                bytes_in = r.bytes_in + n.bytes_in, bytes_out = r.bytes_out + n.bytes_out,
                duration_us = r.duration_us + n.duration_us, last_at = greatest(r.last_at, n.last_at)
            when not matched then insert (minute, agent, statements, denied, finished, errors, rows, bytes_in, bytes_out,
                    duration_us, last_at)
                values (n.minute, n.agent, n.statements, n.denied, n.finished, n.errors, n.rows, n.bytes_in, n.bytes_out,
                    n.duration_us, n.last_at)""",
        ),
    ),
)
