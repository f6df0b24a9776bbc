"""`source_events`: what was decided about connections round the gateway, once each. `sources`: where each declaration stands.

The fold is that of `identity.sources`, in SQL; tests/analytics/test_witness_projections.py holds one against the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, SourceDeclared, SourceWithdrawn
from ingest.log import Record

_COLUMNS: Final = {
    "place": "BIGINT",
    "kind": "VARCHAR",
    "source": "VARCHAR",
    "source_kind": "VARCHAR",
    "server": "VARCHAR",
    "roles": "VARCHAR[]",
    "client": "VARCHAR",
    "executable": "VARCHAR",
    "application_name": "VARCHAR",
    "at_us": "BIGINT",
    "operator": "VARCHAR",
    "reason": "VARCHAR",
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case SourceDeclared():
                yield (
                    "stage_sources",
                    {
                        "place": place(record, index),
                        "kind": "declared",
                        "source": event.source,
                        "source_kind": event.kind,
                        "server": event.server,
                        "roles": event.roles,
                        "client": event.client,
                        "executable": event.executable,
                        "application_name": event.application_name,
                        "at_us": event.at_us,
                        "operator": event.operator,
                        "reason": event.reason,
                    },
                )
            case SourceWithdrawn():
                yield (
                    "stage_sources",
                    {
                        "place": place(record, index),
                        "kind": "withdrawn",
                        "source": event.source,
                        "source_kind": "",
                        "server": "",
                        "roles": (),
                        "client": "",
                        "executable": "",
                        "application_name": "",
                        "at_us": event.at_us,
                        "operator": event.operator,
                        "reason": event.reason,
                    },
                )
            case _:
                pass


PROJECTION: Final = Projection(
    topics=("identity",),
    tables={
        "source_events": """place BIGINT, kind VARCHAR, source VARCHAR, source_kind VARCHAR, server VARCHAR, roles VARCHAR[],
            client VARCHAR, executable VARCHAR, application_name VARCHAR, decided_at TIMESTAMP, operator VARCHAR, reason VARCHAR"""
    },
    stages=(Stage("stage_sources", _COLUMNS),),
    rows=rows,
    merge=(
        Merge(
            ("stage_sources",),
            """insert into source_events
            select place, kind, source, source_kind, server, roles, client, executable, application_name, instant(at_us), operator,
                reason
            from stage_sources""",
        ),
    ),
    views={
        # A name is declared once until it is withdrawn (identity.commands): so its last declaration, and what came after it.
        "sources": """
            select d.source, case when w.place is null then 'declared' else 'withdrawn' end as state, d.source_kind as kind,
                d.server, d.roles, d.client, d.executable, d.application_name, d.reason, d.operator as declared_by,
                d.decided_at as declared_at, w.operator as withdrawn_by, w.decided_at as withdrawn_at,
                w.reason as withdrawn_reason
            from (
                select * from source_events where kind = 'declared'
                qualify row_number() over (partition by source order by place desc) = 1
            ) d
            left join (
                select * from source_events where kind = 'withdrawn'
                qualify row_number() over (partition by source order by place desc) = 1
            ) w on w.source = d.source and w.place > d.place"""
    },
)
