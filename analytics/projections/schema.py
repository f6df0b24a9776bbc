"""Every projection, in the order in which a batch is merged, and the version that follows from what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from analytics.projections import (
    agents,
    attempts,
    findings,
    gateways,
    grants,
    kills,
    looks,
    mutes,
    observed_sessions,
    observed_statements,
    rates,
    resolutions,
    revocations,
    session_counts,
    sessions,
    sources,
    statement_counts,
    statements,
    texts,
    witnesses,
)
from analytics.projections.projection import Projection, Stage

PROJECTIONS: Final[tuple[Projection, ...]] = (
    agents.PROJECTION,
    grants.PROJECTION,
    gateways.PROJECTION,
    kills.PROJECTION,
    sessions.PROJECTION,  # its view reads gateways and kills
    revocations.PROJECTION,  # its view reads agents and sessions
    attempts.PROJECTION,
    texts.PROJECTION,
    resolutions.PROJECTION,
    statements.PROJECTION,  # its views read sessions and resolutions
    rates.PROJECTION,  # counts what statements has staged
    session_counts.PROJECTION,  # likewise
    statement_counts.PROJECTION,  # likewise
    sources.PROJECTION,
    witnesses.PROJECTION,
    observed_sessions.PROJECTION,
    observed_statements.PROJECTION,
    mutes.PROJECTION,
    findings.PROJECTION,  # its view reads mutes
    looks.PROJECTION,
)

STAGES: Final[Mapping[str, Stage]] = {stage.name: stage for p in PROJECTIONS for stage in p.stages}

BOOKKEEPING: Final[Mapping[str, str]] = {
    "offsets": "topic VARCHAR, partition BIGINT, next_offset BIGINT, recorded_at TIMESTAMP",
    "writers": "writer VARCHAR, topic VARCHAR, partition BIGINT, boot BIGINT, seq BIGINT",
    "missing_frames": """topic VARCHAR, partition BIGINT, log_offset BIGINT, writer VARCHAR, boot BIGINT, after_seq BIGINT,
        seq BIGINT, noticed_at TIMESTAMP""",
}
"""What the store itself keeps, in the transaction of the rows: how far it has read, each writer's newest frame, and the holes."""

TABLES: Final[Mapping[str, str]] = {name: columns for p in PROJECTIONS for name, columns in p.tables.items()} | dict(BOOKKEEPING)
VIEWS: Final[Mapping[str, str]] = {name: query for p in PROJECTIONS for name, query in (p.views or {}).items()} | {
    "recording_gaps": """
        select 'recording stopped' as kind, writer, since_at, until_at, refused, reason from outages
        union all
        select 'frames missing', writer, null, noticed_at, null,
            case when writer = '' then 'records between offsets ' || after_seq || ' and ' || seq || ' of topic ' || topic
                || ', partition ' || partition || ', were no longer kept when they were to be read'
            else 'frames between ' || after_seq || ' and ' || seq || ' of boot ' || boot || ' are not in topic ' || topic end
        from missing_frames"""
}


REVISION: Final = 1
"""Raise it when a `rows` function comes to mean something else while the SQL stays as it is."""


def version() -> str:
    """Changes with every table, view, stage and merge: tables of another version are rebuilt, never migrated."""
    parts = [
        str(REVISION),
        *(f"{name} ({columns})" for name, columns in TABLES.items()),
        *(f"{name}: {query}" for name, query in VIEWS.items()),
    ]
    for projection in PROJECTIONS:
        parts += [f"{stage.name} {sorted(stage.columns.items())}" for stage in projection.stages]
        parts += [f"{merge.when} {merge.fills} {merge.sql}" for merge in projection.merge]
    return hashlib.sha256("\n".join(" ".join(part.split()) for part in parts).encode()).hexdigest()[:16]
