"""`session_records`: one row a session, with what ended it. `sessions`: the same, and the state that follows.

A session whose gateway began a later boot, or stopped, without recording the session's end is `lost`: the log is not edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import (
    STAMP_COLUMNS,
    STAMP_TYPES,
    Merge,
    Projection,
    Stage,
    Staged,
    columns,
    place,
    stamp_row,
)
from ingest.events import Frame, SessionClosed, SessionOpened
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case SessionOpened():
                yield (
                    "stage_opened",
                    {
                        **stamp_row(event.stamp),
                        "place": place(record, index),
                        "writer": frame.writer,
                        "boot": frame.boot,
                        "opened_us": event.at_us,
                        "method": event.method,
                        "credential": event.credential,
                        "expires_us": event.expires_at_us,
                        "application_name": event.application_name,
                        "tls": event.tls,
                        "protocol": event.protocol,
                        "durability": event.durability,
                        "groups": event.groups,
                    },
                )
            case SessionClosed():
                yield (
                    "stage_closed",
                    {
                        "place": place(record, index),
                        "session": event.session,
                        "closed_us": event.at_us,
                        "close_reason": event.reason,
                        "close_sqlstate": event.sqlstate,
                        "bytes_in": event.bytes_in,
                        "bytes_out": event.bytes_out,
                        "executions": event.executions,
                        "duration_us": event.duration_us,
                    },
                )
            case _:
                pass


PROJECTION: Final = Projection(
    topics=("sessions",),
    tables={
        "session_records": columns(
            {
                **STAMP_TYPES,
                "place": "BIGINT",
                "writer": "VARCHAR",
                "boot": "BIGINT",
                "opened_at": "TIMESTAMP",
                "method": "VARCHAR",
                "credential": "VARCHAR",
                "expires_at": "TIMESTAMP",
                "application_name": "VARCHAR",
                "tls": "VARCHAR",
                "protocol": "VARCHAR",
                "durability": "VARCHAR",
                "groups": "VARCHAR[]",  # of the token
                "closed_at": "TIMESTAMP",
                "close_reason": "VARCHAR",
                "close_sqlstate": "VARCHAR",
                "bytes_in": "BIGINT",
                "bytes_out": "BIGINT",
                "executions": "BIGINT",
                "duration_us": "BIGINT",
            }
        )
    },
    stages=(
        Stage(
            "stage_opened",
            {
                **STAMP_COLUMNS,
                "place": "BIGINT",
                "writer": "VARCHAR",
                "boot": "BIGINT",
                "opened_us": "BIGINT",
                "method": "VARCHAR",
                "credential": "VARCHAR",
                "expires_us": "BIGINT",
                "application_name": "VARCHAR",
                "tls": "VARCHAR",
                "protocol": "VARCHAR",
                "durability": "VARCHAR",
                "groups": "VARCHAR[]",  # of the token
            },
        ),
        Stage(
            "stage_closed",
            {
                "place": "BIGINT",
                "session": "VARCHAR",
                "closed_us": "BIGINT",
                "close_reason": "VARCHAR",
                "close_sqlstate": "VARCHAR",
                "bytes_in": "BIGINT",
                "bytes_out": "BIGINT",
                "executions": "BIGINT",
                "duration_us": "BIGINT",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_opened",),
            """insert into session_records by name
                select * exclude (backend_start_us, opened_us, expires_us), instant(backend_start_us) as backend_start,
                    instant(opened_us) as opened_at, instant(expires_us) as expires_at
                from stage_opened""",
        ),
        # The first end stands.
        Merge(
            ("stage_closed",),
            """update session_records set closed_at = instant(c.closed_us), close_reason = c.close_reason,
                close_sqlstate = c.close_sqlstate, bytes_in = c.bytes_in, bytes_out = c.bytes_out, executions = c.executions,
                duration_us = c.duration_us
            from (select * from stage_closed qualify row_number() over (partition by session order by place) = 1) c
            where session_records.session = c.session and session_records.closed_at is null""",
        ),
    ),
    views={
        "sessions": """
            with boots as (
                select writer, max(boot) as boot, arg_max(started_at, boot) as started_at from gateways group by writer
            )
            select s.session, s.agent,
                case when k.session is not null then 'killed'
                    when s.closed_at is not null then 'closed'
                    when b.boot > s.boot or g.stopped_at is not null then 'lost'
                    else 'live' end as state,
                s.connection, s.database, s.role, s.client, s.subject, s.issuer, s.on_behalf_of, s.actors, s.invocation,
                s.task, s.unverified, s.grants, s.approvers, s.backend_pid, s.backend_start, s.upstream_port,
                s.writer as gateway, s.boot, s.opened_at, s.method, s.credential, s.expires_at, s.application_name, s.tls,
                s.protocol, s.durability,
                coalesce(s.closed_at, k.backend_gone_at, k.client_closed_at, k.decided_at, k.recorded_at, g.stopped_at,
                    case when b.boot > s.boot then b.started_at end) as closed_at,
                coalesce(s.close_reason, case when k.session is not null then 'killed'
                    when b.boot > s.boot or g.stopped_at is not null then 'lost' end) as close_reason,
                s.close_sqlstate, k.cause as kill_cause, k.reason as kill_reason,
                k.requested_at as kill_requested_at, k.decided_at as kill_decided_at,
                k.client_closed_at as kill_client_closed_at, k.backend_gone_at as kill_backend_gone_at,
                k.ended_by as kill_ended_by,
                s.bytes_in, s.bytes_out, s.executions, s.duration_us
            from session_records s
            -- A gateway's last words may come late: what it had closed before it was missed was not ended for want of it.
            left join kills k on k.session = s.session
                and (k.cause <> 'gateway gone' or s.closed_at is null or s.closed_at >= k.requested_at)
            left join boots b on b.writer = s.writer
            left join gateways g on g.writer = s.writer and g.boot = s.boot and g.stopped_at is not null"""
    },
)
