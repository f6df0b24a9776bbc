"""`observed_session_records` and `observed_session_ends`: what each collector saw of each session of a server, once.

`session_verdicts`: what reconciliation made of them. `reaped_backends`: the proof that one was ended. `observed_sessions`: all
of it, one row a session. `own_backends`: what gateways, watchdogs and collectors say that they opened themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import (
    BackendOpened,
    BackendReaped,
    Frame,
    SessionJudged,
    SessionObserved,
    SessionUnobserved,
    WatchdogConnected,
    WitnessConnected,
)
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case SessionObserved():
                yield (
                    "stage_observed_sessions",
                    {
                        "place": place(record, index),
                        "witness": event.witness,
                        "server": event.server,
                        "session_id": event.session_id,
                        "began_us": event.at_us,
                        "backend_pid": event.backend_pid,
                        "user_name": event.user,
                        "database": event.database,
                        "client": event.client,
                        "application_name": event.application_name,
                        "backend_type": event.backend_type,
                        "client_pid": event.client_pid,
                        "client_start_us": event.client_start_us,
                        "client_uid": event.client_uid,
                        "client_exe": event.client_exe,
                        "client_cgroup": event.client_cgroup,
                        "client_cgroup_path": event.client_cgroup_path,
                    },
                )
            case SessionUnobserved():
                yield (
                    "stage_unobserved_sessions",
                    {
                        "place": place(record, index),
                        "witness": event.witness,
                        "server": event.server,
                        "session_id": event.session_id,
                        "ended_us": event.at_us,
                        "reason": event.reason,
                    },
                )
            case SessionJudged():
                yield (
                    "stage_verdicts",
                    {
                        "place": place(record, index),
                        "server": event.server,
                        "session_id": event.session_id,
                        "judged_us": event.at_us,
                        "verdict": event.verdict,
                        "session": event.session,
                        "agent": event.agent,
                        "source": event.source,
                        "reason": event.reason,
                    },
                )
            case BackendReaped():
                yield (
                    "stage_reaped",
                    {
                        "place": place(record, index),
                        "server": event.server,
                        "session_id": event.session_id,
                        "recorded_us": event.at_us,
                        "order_id": event.order,
                        "requested_us": event.requested_us,
                        "decided_us": event.decided_us,
                        "backend_gone_us": event.backend_gone_us,
                        "backend_pid": event.backend_pid,
                        "reason": event.reason,
                        "finding": event.finding,
                        "watchdog": event.watchdog,
                    },
                )
            case BackendOpened():
                yield _own(record, index, event, "gateway", event.gateway, event.purpose)
            case WatchdogConnected():
                yield _own(record, index, event, "watchdog", event.watchdog, "control")
            case WitnessConnected():
                yield (
                    "stage_own_backends",
                    {
                        "place": place(record, index),
                        "opened_us": event.at_us,
                        "kind": "collector",
                        "name": event.witness,
                        "purpose": event.purpose,
                        "connection": "",
                        "role": event.user,
                        "backend_pid": event.backend_pid,
                        "backend_start_us": 0,
                        "session_id": event.session_id,
                    },
                )
            case _:
                pass


def _own(record: Record, index: int, event: BackendOpened | WatchdogConnected, kind: str, name: str, purpose: str) -> Staged:
    return (
        "stage_own_backends",
        {
            "place": place(record, index),
            "opened_us": event.at_us,
            "kind": kind,
            "name": name,
            "purpose": purpose,
            "connection": event.connection,
            "role": event.role,
            "backend_pid": event.backend_pid,
            "backend_start_us": event.backend_start_us,
            "session_id": f"{event.backend_start_us // 1_000_000:x}.{event.backend_pid:x}" if event.backend_start_us else "",
        },
    )


_OF: Final = {"place": "BIGINT", "server": "VARCHAR", "session_id": "VARCHAR"}

PROJECTION: Final = Projection(
    topics=("sessions", "witness", "findings", "observations"),
    tables={
        "observed_session_records": """place BIGINT, witness VARCHAR, server VARCHAR, session_id VARCHAR, began_at TIMESTAMP,
            backend_pid BIGINT, user_name VARCHAR, database VARCHAR, client VARCHAR, application_name VARCHAR,
            backend_type VARCHAR, client_pid BIGINT, client_start_at TIMESTAMP, client_uid BIGINT, client_exe VARCHAR,
            client_cgroup BIGINT, client_cgroup_path VARCHAR""",
        "observed_session_ends": """place BIGINT, witness VARCHAR, server VARCHAR, session_id VARCHAR, ended_at TIMESTAMP,
            reason VARCHAR""",
        "session_verdicts": """place BIGINT, server VARCHAR, session_id VARCHAR, judged_at TIMESTAMP, verdict VARCHAR,
            session VARCHAR, agent VARCHAR, source VARCHAR, reason VARCHAR""",
        "reaped_backends": """place BIGINT, server VARCHAR, session_id VARCHAR, recorded_at TIMESTAMP, order_id VARCHAR,
            requested_at TIMESTAMP, decided_at TIMESTAMP, backend_gone_at TIMESTAMP, backend_pid BIGINT, reason VARCHAR,
            finding VARCHAR, watchdog VARCHAR""",
        "own_backends": """place BIGINT, opened_at TIMESTAMP, kind VARCHAR, name VARCHAR, purpose VARCHAR, connection VARCHAR,
            role VARCHAR, backend_pid BIGINT, backend_start TIMESTAMP, session_id VARCHAR""",
    },
    stages=(
        Stage(
            "stage_observed_sessions",
            {
                **_OF,
                "witness": "VARCHAR",
                "began_us": "BIGINT",
                "backend_pid": "BIGINT",
                "user_name": "VARCHAR",
                "database": "VARCHAR",
                "client": "VARCHAR",
                "application_name": "VARCHAR",
                "backend_type": "VARCHAR",
                "client_pid": "BIGINT",
                "client_start_us": "BIGINT",
                "client_uid": "BIGINT",
                "client_exe": "VARCHAR",
                "client_cgroup": "BIGINT",
                "client_cgroup_path": "VARCHAR",
            },
        ),
        Stage("stage_unobserved_sessions", {**_OF, "witness": "VARCHAR", "ended_us": "BIGINT", "reason": "VARCHAR"}),
        Stage(
            "stage_verdicts",
            {
                **_OF,
                "judged_us": "BIGINT",
                "verdict": "VARCHAR",
                "session": "VARCHAR",
                "agent": "VARCHAR",
                "source": "VARCHAR",
                "reason": "VARCHAR",
            },
        ),
        Stage(
            "stage_reaped",
            {
                **_OF,
                "recorded_us": "BIGINT",
                "order_id": "VARCHAR",
                "requested_us": "BIGINT",
                "decided_us": "BIGINT",
                "backend_gone_us": "BIGINT",
                "backend_pid": "BIGINT",
                "reason": "VARCHAR",
                "finding": "VARCHAR",
                "watchdog": "VARCHAR",
            },
        ),
        Stage(
            "stage_own_backends",
            {
                "place": "BIGINT",
                "opened_us": "BIGINT",
                "kind": "VARCHAR",
                "name": "VARCHAR",
                "purpose": "VARCHAR",
                "connection": "VARCHAR",
                "role": "VARCHAR",
                "backend_pid": "BIGINT",
                "backend_start_us": "BIGINT",
                "session_id": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        # A collector that starts again tells what it finds open once more. The first word stands, of each collector.
        Merge(
            ("stage_observed_sessions",),
            """insert into observed_session_records by name
                select * exclude (began_us, client_start_us), instant(began_us) as began_at,
                    instant(client_start_us) as client_start_at
                from (
                    select * from stage_observed_sessions
                    qualify row_number() over (partition by witness, server, session_id order by place) = 1
                ) n
                where not exists (
                    from observed_session_records o
                    where o.witness = n.witness and o.server = n.server and o.session_id = n.session_id
                )""",
        ),
        Merge(
            ("stage_unobserved_sessions",),
            """insert into observed_session_ends by name
                select * exclude (ended_us), instant(ended_us) as ended_at
                from (
                    select * from stage_unobserved_sessions
                    qualify row_number() over (partition by witness, server, session_id order by place) = 1
                ) n
                where not exists (
                    from observed_session_ends o
                    where o.witness = n.witness and o.server = n.server and o.session_id = n.session_id
                )""",
        ),
        # The latest stands: a session that is late in the gateway's record is judged again.
        Merge(
            ("stage_verdicts",),
            """merge into session_verdicts v using (
                select * exclude (judged_us), instant(judged_us) as judged_at from stage_verdicts
                qualify row_number() over (partition by server, session_id order by place desc) = 1
            ) n on v.server = n.server and v.session_id = n.session_id
            when matched and v.place < n.place then update set place = n.place, judged_at = n.judged_at, verdict = n.verdict,
                session = n.session, agent = n.agent, source = n.source, reason = n.reason
            when not matched then insert (place, server, session_id, judged_at, verdict, session, agent, source, reason)
                values (n.place, n.server, n.session_id, n.judged_at, n.verdict, n.session, n.agent, n.source, n.reason)""",
        ),
        Merge(
            ("stage_reaped",),
            """insert into reaped_backends
            select place, server, session_id, instant(recorded_us), order_id, instant(requested_us), instant(decided_us),
                instant(backend_gone_us), backend_pid, reason, finding, watchdog
            from stage_reaped""",
        ),
        Merge(
            ("stage_own_backends",),
            """insert into own_backends
            select place, instant(opened_us), kind, name, purpose, connection, role, backend_pid, instant(backend_start_us),
                session_id
            from stage_own_backends""",
        ),
    ),
    views={
        # Where collectors tell apart, the one that can say more stands; a name that sorts first breaks a tie.
        "observed_sessions": """
            with seen as (
                select server, session_id, min(began_at) as began_at, list(distinct witness order by witness) as witnesses,
                    max(backend_pid) as backend_pid, coalesce(min(nullif(user_name, '')), '') as user_name,
                    coalesce(min(nullif(database, '')), '') as database, coalesce(min(nullif(client, '')), '') as client,
                    coalesce(min(nullif(application_name, '')), '') as application_name,
                    coalesce(min(nullif(backend_type, '')), '') as backend_type,
                    coalesce(arg_max(client_pid, (client_pid, witness)), 0) as client_pid,
                    arg_max(client_start_at, (client_pid, witness)) as client_start_at,
                    coalesce(arg_max(client_uid, (client_pid, witness)), -1) as client_uid,
                    coalesce(arg_max(client_exe, (client_pid, witness)), '') as client_exe,
                    coalesce(arg_max(client_cgroup_path, (client_pid, witness)), '') as client_cgroup_path
                from observed_session_records group by server, session_id
            ), ends as (
                select server, session_id, min(ended_at) as ended_at, min(reason) as end_reason
                from observed_session_ends group by server, session_id
            ), reaped as (
                select * from reaped_backends
                qualify row_number() over (
                    partition by server, session_id order by backend_gone_at nulls last, recorded_at, watchdog, decided_at
                ) = 1
            )
            select s.server, s.session_id, s.began_at, coalesce(e.ended_at, r.backend_gone_at) as ended_at,
                coalesce(e.end_reason, '') as end_reason, s.backend_pid, s.user_name, s.database, s.client, s.application_name,
                s.backend_type, s.client_pid, s.client_start_at, s.client_uid, s.client_exe, s.client_cgroup_path, s.witnesses,
                coalesce(v.verdict, 'pending') as verdict, coalesce(v.session, '') as session, coalesce(v.agent, '') as agent,
                coalesce(v.source, '') as source, coalesce(v.reason, '') as verdict_reason, v.judged_at,
                r.requested_at as kill_requested_at, r.decided_at as kill_decided_at, r.backend_gone_at as kill_backend_gone_at,
                coalesce(r.watchdog, '') as killed_by
            from seen s
            left join ends e on e.server = s.server and e.session_id = s.session_id
            left join session_verdicts v on v.server = s.server and v.session_id = s.session_id
            left join reaped r on r.server = s.server and r.session_id = s.session_id"""
    },
)
