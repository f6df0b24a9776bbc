"""`statement_counts`: how often each text of a session ran on each day, so that who touched what need not read every execution."""

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
        "statement_counts": """session VARCHAR, statement BIGINT, day TIMESTAMP, agent VARCHAR, statements BIGINT, denied BIGINT,
            rows BIGINT, first_at TIMESTAMP, last_at TIMESTAMP"""
    },
    stages=(),
    rows=rows,
    merge=(
        Merge(
            ("stage_counted",),
            """merge into statement_counts c using (
                select session, statement, date_trunc('day', minute) as day, min(agent) as agent,
                    sum(statements)::bigint as statements, sum(denied)::bigint as denied, sum(rows)::bigint as rows,
                    min(first_at) as first_at, max(last_at) as last_at
                from stage_counted group by session, statement, day
            ) n on c.session = n.session and c.statement = n.statement and c.day = n.day
            when matched then update set statements = c.statements + n.statements, denied = c.denied + n.denied,
                rows = c.rows + n.rows, first_at = least(c.first_at, n.first_at), last_at = greatest(c.last_at, n.last_at)
            when not matched then insert (session, statement, day, agent, statements, denied, rows, first_at, last_at)
                values (n.session, n.statement, n.day, n.agent, n.statements, n.denied, n.rows, n.first_at, n.last_at)""",
        ),
    ),
)
