"""`grant_events`: what was asked for and decided, once each. `grants`: where that leaves them.

The fold is that of `identity.registry`, in SQL; tests/analytics/test_projections.py holds one against the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, GrantApproved, GrantDenied, GrantNarrowed, GrantRequested, GrantRevoked, Scope
from ingest.log import Record


def scope_json(scope: Scope) -> str:
    return msgspec.json.encode(
        {
            "connection": scope.connection,
            "rules": [{"schema": rule.schema, "tables": rule.tables, "operations": rule.operations} for rule in scope.rules],
            "functions": scope.functions,
            "channels": scope.channels,
            "introspection": scope.introspection,
        }
    ).decode()


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case GrantRequested():
                yield (
                    "stage_grants",
                    {
                        "place": place(record, index),
                        "kind": "requested",
                        "grant_id": event.grant,
                        "agent": event.agent,
                        "at_us": event.at_us,
                        "operator": event.requested_by,
                        "reason": event.reason,
                        "connection": event.scope.connection,
                        "scope": scope_json(event.scope),
                        "seconds": event.seconds,
                    },
                )
            case GrantApproved():
                yield (
                    "stage_grants",
                    {
                        "place": place(record, index),
                        "kind": "approved",
                        "grant_id": event.grant,
                        "agent": event.agent,
                        "at_us": event.at_us,
                        "operator": event.approver,
                        "expires_at_us": event.expires_at_us,
                    },
                )
            case GrantNarrowed():
                yield (
                    "stage_grants",
                    {
                        "place": place(record, index),
                        "kind": "narrowed",
                        "grant_id": event.grant,
                        "agent": event.agent,
                        "at_us": event.at_us,
                        "operator": event.operator,
                        "reason": event.reason,
                        "connection": event.scope.connection,
                        "scope": scope_json(event.scope),
                    },
                )
            case GrantDenied() | GrantRevoked():
                yield (
                    "stage_grants",
                    {
                        "place": place(record, index),
                        "kind": "denied" if isinstance(event, GrantDenied) else "revoked",
                        "grant_id": event.grant,
                        "agent": event.agent,
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
        "grant_events": """place BIGINT, kind VARCHAR, grant_id VARCHAR, agent VARCHAR, decided_at TIMESTAMP, operator VARCHAR,
            reason VARCHAR, connection VARCHAR, scope VARCHAR, seconds BIGINT, expires_at TIMESTAMP"""
    },
    stages=(
        Stage(
            "stage_grants",
            {
                "place": "BIGINT",
                "kind": "VARCHAR",
                "grant_id": "VARCHAR",
                "agent": "VARCHAR",
                "at_us": "BIGINT",
                "operator": "VARCHAR",
                "reason": "VARCHAR",
                "connection": "VARCHAR",
                "scope": "VARCHAR",
                "seconds": "BIGINT",
                "expires_at_us": "BIGINT",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_grants",),
            """insert into grant_events
            select place, kind, grant_id, agent, instant(at_us), operator, reason, connection, scope, seconds,
                instant(expires_at_us)
            from stage_grants""",
        ),
    ),
    views={
        # An approval counts only of a grant that was asked for and not ended before; an end is final.
        "grants": """
            with asked as (
                select grant_id, agent, min(place) as requested_place from grant_events where kind = 'requested'
                group by grant_id, agent
            ), marks as (
                select grant_id, agent, requested_place,
                    min(place) filter (kind = 'approved') as approved_place,
                    min(place) filter (kind in ('denied', 'revoked')) as ended_place,
                    max(place) filter (kind = 'narrowed') as narrowed_place
                from asked left join grant_events using (grant_id, agent)
                where place >= requested_place
                group by grant_id, agent, requested_place
            )
            select r.grant_id as "grant", r.agent,
                case when e.kind is not null then e.kind
                    when a.kind is null then 'requested'
                    when a.expires_at <= current_localtimestamp() then 'expired'
                    else 'approved' end as state,
                r.connection, coalesce(n.scope, r.scope) as scope, r.seconds, r.reason,
                r.operator as requested_by, r.decided_at as requested_at,
                a.operator as approver, a.decided_at as approved_at, a.expires_at,
                e.operator as ended_by, e.decided_at as ended_at, e.reason as ended_reason,
                n.operator as narrowed_by, n.decided_at as narrowed_at, n.reason as narrowed_reason
            from marks m
            join grant_events r on r.grant_id = m.grant_id and r.agent = m.agent and r.place = m.requested_place
            left join grant_events a on a.grant_id = m.grant_id and a.agent = m.agent and a.place = m.approved_place
                and (m.ended_place is null or a.place < m.ended_place)
            left join grant_events e on e.grant_id = m.grant_id and e.agent = m.agent and e.place = m.ended_place
            left join grant_events n on n.grant_id = m.grant_id and n.agent = m.agent and n.place = m.narrowed_place"""
    },
)
