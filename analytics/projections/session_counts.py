"""`session_counts`: what each session did, so that a list of sessions need not read every execution."""

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
        "session_counts": """session VARCHAR, statements BIGINT, denied BIGINT, errors BIGINT, rows BIGINT, last_at TIMESTAMP"""
    },
    stages=(),
    rows=rows,
    merge=(
        Merge(
            ("stage_begun", "stage_denied", "stage_completed"),
            """merge into session_counts c using (
                select session, sum(statements)::bigint as statements, sum(denied)::bigint as denied,
                    sum(errors)::bigint as errors, sum(rows)::bigint as rows, max(started_at) as last_at
                from (
                    select session, started_at, 1 as statements, 0 as denied, 0 as errors, 0 as rows from stage_begun
                    union all
                    select p.session, instant(d.started_us), 0, 1, 0, 0
                    from stage_denied d join stage_stamps p using (stamp)
                    union all
                    select session, started_at, 0, 0, (outcome = 'error')::int, rows from stage_completed
                ) group by session
            ) n on c.session = n.session
            when matched then update set statements = c.statements + n.statements, denied = c.denied + n.denied,
                errors = c.errors + n.errors, rows = c.rows + n.rows, last_at = greatest(c.last_at, n.last_at)
            when not matched then insert (session, statements, denied, errors, rows, last_at)
                values (n.session, n.statements, n.denied, n.errors, n.rows, n.last_at)""",
        ),
    ),
)
