"""`revocation_events`: what was revoked and reinstated beyond one agent or grant, once each. `revocations`: what is revoked now.

The fold is that of `identity.registry`, in SQL; tests/analytics/test_projections.py holds one against the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Row, Stage, Staged, place
from ingest.events import (
    AllReinstated,
    AllRevoked,
    Frame,
    GroupReinstated,
    GroupRevoked,
    SessionRevoked,
    SubjectReinstated,
    SubjectRevoked,
)
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        of: Row
        match event:
            case AllRevoked() | AllReinstated():
                of = {"kind": "all", "revoked": int(isinstance(event, AllRevoked))}
            case SubjectRevoked() | SubjectReinstated():
                of = {"kind": "subject", "revoked": int(isinstance(event, SubjectRevoked)), "issuer": event.issuer}
                of = {**of, "name": event.subject}
            case GroupRevoked() | GroupReinstated():
                of = {"kind": "group", "revoked": int(isinstance(event, GroupRevoked)), "issuer": event.issuer, "name": event.group}
            case SessionRevoked():
                of = {"kind": "session", "revoked": 1, "name": event.session, "agent": event.agent}
            case _:
                continue
        said: Row = {"place": place(record, index), "at_us": event.at_us, "operator": event.operator, "reason": event.reason}
        yield "stage_revocations", {"issuer": "", "name": "", "agent": "", **of, **said}


PROJECTION: Final = Projection(
    topics=("identity",),
    tables={
        "revocation_events": """place BIGINT, kind VARCHAR, revoked BOOLEAN, issuer VARCHAR, name VARCHAR, agent VARCHAR,
            decided_at TIMESTAMP, operator VARCHAR, reason VARCHAR"""
    },
    stages=(
        Stage(
            "stage_revocations",
            {
                "place": "BIGINT",
                "kind": "VARCHAR",
                "revoked": "BIGINT",
                "issuer": "VARCHAR",
                "name": "VARCHAR",
                "agent": "VARCHAR",
                "at_us": "BIGINT",
                "operator": "VARCHAR",
                "reason": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_revocations",),
            """insert into revocation_events
            select place, kind, revoked = 1, issuer, name, agent, instant(at_us), operator, reason from stage_revocations""",
        ),
    ),
    views={
        # A session that has ended rests on nothing any more; an agent that was retired is gone for good, and `agents` says so.
        "revocations": """
            select kind, issuer, name, agent, decided_at as revoked_at, operator, reason from (
                select *, row_number() over (partition by kind, issuer, name order by place desc) as newest from revocation_events
            ) where newest = 1 and revoked
                and (kind <> 'session' or name not in (select session from sessions where state <> 'live'))
            union all
            select 'agent', '', agent, agent, revoked_at, state_by, state_reason from agents where state = 'revoked'"""
    },
)
