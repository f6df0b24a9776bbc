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
            ("stage_begun", "stage_denied", "stage_completed"),
            """merge into rates r using (
                select date_trunc('minute', started_at) as minute, agent, sum(statements)::bigint as statements,
                    sum(denied)::bigint as denied, sum(finished)::bigint as finished, sum(errors)::bigint as errors,
                    sum(rows)::bigint as rows, sum(bytes_in)::bigint as bytes_in, sum(bytes_out)::bigint as bytes_out,
                    sum(duration_us)::bigint as duration_us, max(started_at) as last_at
                from (
                    select started_at, agent, 1 as statements, 0 as denied, 0 as finished, 0 as errors, 0 as rows,
                        0 as bytes_in, 0 as bytes_out, 0 as duration_us
                    from stage_begun
                    union all
                    select instant(d.started_us), p.agent, 0, 1, 0, 0, 0, 0, 0, 0
                    from stage_denied d join stage_stamps p using (stamp)
                    union all
                    select started_at, agent, 0, 0, 1, (outcome = 'error')::int, rows, bytes_in, bytes_out, duration_us
                    from stage_completed
                ) group by all
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
