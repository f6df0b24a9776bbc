"""`agent_events`: what was decided about each agent, once each. `agents`: where that leaves them.

The fold is that of `identity.registry`, in SQL; tests/analytics/test_projections.py holds one against the other. The verifier of a
key is not projected: whoever may ask questions need not be able to try passwords.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import AgentKeyReplaced, AgentRegistered, AgentReinstated, AgentRetired, AgentRevoked, Frame
from ingest.log import Record

_KIND: Final[dict[type, str]] = {
    AgentRegistered: "registered",
    AgentKeyReplaced: "key replaced",
    AgentRevoked: "revoked",
    AgentReinstated: "reinstated",
    AgentRetired: "retired",
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case AgentRegistered():
                yield (
                    "stage_agents",
                    {
                        "place": place(record, index),
                        "kind": "registered",
                        "agent": event.agent,
                        "at_us": event.at_us,
                        "operator": event.operator,
                        "description": event.description,
                        "owner": event.owner,
                        "issuer": event.issuer,
                        "client": event.client,
                        "subject": event.subject,
                        "key_id": event.key_id,
                    },
                )
            case AgentKeyReplaced():
                yield (
                    "stage_agents",
                    {
                        "place": place(record, index),
                        "kind": "key replaced",
                        "agent": event.agent,
                        "at_us": event.at_us,
                        "operator": event.operator,
                        "key_id": event.key_id,
                    },
                )
            case AgentRevoked() | AgentReinstated() | AgentRetired():
                yield (
                    "stage_agents",
                    {
                        "place": place(record, index),
                        "kind": _KIND[type(event)],
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
        "agent_events": """place BIGINT, kind VARCHAR, agent VARCHAR, decided_at TIMESTAMP, operator VARCHAR, reason VARCHAR,
            description VARCHAR, owner VARCHAR, issuer VARCHAR, client VARCHAR, subject VARCHAR, key_id VARCHAR"""
    },
    stages=(
        Stage(
            "stage_agents",
            {
                "place": "BIGINT",
                "kind": "VARCHAR",
                "agent": "VARCHAR",
                "at_us": "BIGINT",
                "operator": "VARCHAR",
                "reason": "VARCHAR",
                "description": "VARCHAR",
                "owner": "VARCHAR",
                "issuer": "VARCHAR",
                "client": "VARCHAR",
                "subject": "VARCHAR",
                "key_id": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_agents",),
            """insert into agent_events
            select place, kind, agent, instant(at_us), operator, reason, description, owner, issuer, client, subject, key_id
            from stage_agents""",
        ),
    ),
    views={
        "agents": """
            with firsts as (
                select agent, min(place) filter (kind = 'registered') as registered_place,
                    min(place) filter (kind = 'retired') as retired_place,
                    max(decided_at) filter (kind in ('revoked', 'retired')) as revoked_at
                from agent_events group by agent
            ), turns as (
                select agent, kind, place from (
                    select agent, kind, place, lag(kind) over (partition by agent order by place) as before
                    from agent_events where kind in ('revoked', 'reinstated')
                ) where kind = 'revoked' or before = 'revoked'  -- who is active cannot be reinstated
            ), lasts as (
                select agent, arg_max(kind, place) as last_kind, max(place) as last_place from turns group by agent
            ), ends as (
                select f.*, l.last_kind,
                    case when l.last_kind = 'revoked' or l.last_place > f.registered_place then l.last_place end as last_place
                from firsts f left join lasts l using (agent)
            ), keys as (
                select agent, arg_max(key_id, place) as key_id from agent_events join ends using (agent)
                where kind = 'key replaced' and place > registered_place
                    and (retired_place is null or place < retired_place)
                group by agent
            )
            select r.agent,
                case when e.retired_place is not null then 'retired'
                    when e.last_kind = 'revoked' then 'revoked' else 'active' end as state,
                r.description, r.owner, r.issuer, r.client, r.subject,
                coalesce(k.key_id, r.key_id) as key_id,
                r.decided_at as registered_at, r.operator as registered_by,
                coalesce(s.decided_at, r.decided_at) as state_at, coalesce(s.operator, r.operator) as state_by,
                coalesce(s.reason, '') as state_reason,
                e.revoked_at
            from ends e
            join agent_events r on r.agent = e.agent and r.place = e.registered_place
            left join agent_events s on s.agent = e.agent and s.place = coalesce(e.retired_place, e.last_place)
            left join keys k on k.agent = e.agent"""
    },
)
