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
            ("stage_counted",),
            """merge into session_counts c using (
                select session, sum(statements)::bigint as statements, sum(denied)::bigint as denied,
                    sum(errors)::bigint as errors, sum(rows)::bigint as rows, max(last_at) as last_at
                from stage_counted group by session
            ) n on c.session = n.session
            when matched then update set statements = c.statements + n.statements, denied = c.denied + n.denied,
                errors = c.errors + n.errors, rows = c.rows + n.rows, last_at = greatest(c.last_at, n.last_at)
            when not matched then insert (session, statements, denied, errors, rows, last_at)
                values (n.session, n.statements, n.denied, n.errors, n.rows, n.last_at)""",
        ),
    ),
)
