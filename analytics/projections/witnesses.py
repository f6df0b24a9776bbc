"""`witness_runs`: each run of each collector, with its newest word on itself. `blindnesses`: when one could not see.

`observation_gap_records`: what a collector knows that it did not see. `observation_gaps` is both, and the times between two runs
that nobody can tell of.
"""

# ruff: noqa: S608 - the SQL is made of constants of this file

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Cell, Merge, Projection, Stage, Staged, place
from ingest.events import (
    Frame,
    ObservationGap,
    WitnessBlinded,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        at: dict[str, Cell] = {"place": place(record, index)}
        run: dict[str, Cell] = {**at, "writer": frame.writer, "boot": frame.boot}
        match event:
            case WitnessStarted():
                yield (
                    "stage_witness_starts",
                    {
                        **run,
                        "witness": event.witness,
                        "server": event.server,
                        "kind": event.kind,
                        "connections": event.connections,
                        "sees": event.sees,
                        "version": event.version,
                        "started_us": event.at_us,
                        "resumed_us": event.resumed_us,
                    },
                )
            case WitnessStopped():
                yield (
                    "stage_witness_stops",
                    {**run, "witness": event.witness, "server": event.server, "stopped_us": event.at_us},
                )
            case WitnessReported():
                yield (
                    "stage_witness_reports",
                    {
                        **run,
                        "witness": event.witness,
                        "server": event.server,
                        "kind": event.kind,
                        "reported_us": event.at_us,
                        "seeing": int(event.seeing),
                        "reason": event.reason,
                        "complete_us": event.complete_us,
                        "canary_us": event.canary_us,
                        "observed": event.observed,
                        "lost": event.lost,
                        "lag_us": event.lag_us,
                    },
                )
            case WitnessBlinded():
                yield (
                    "stage_blindnesses",
                    {
                        **at,
                        "witness": event.witness,
                        "server": event.server,
                        "since_us": event.since_us,
                        "until_us": 0,
                        "reason": event.reason,
                    },
                )
            case WitnessRestored():
                yield (
                    "stage_blindnesses",
                    {
                        **at,
                        "witness": event.witness,
                        "server": event.server,
                        "since_us": event.blind_since_us,
                        "until_us": event.at_us,
                        "reason": "",
                    },
                )
            case ObservationGap():
                yield (
                    "stage_observation_gaps",
                    {
                        **at,
                        "at_us": event.at_us,
                        "witness": event.witness,
                        "server": event.server,
                        "session_id": event.session_id,
                        "from_us": event.from_us,
                        "until_us": event.until_us,
                        "lost": event.lost,
                        "reason": event.reason,
                    },
                )
            case _:
                pass


_RUN: Final = {"place": "BIGINT", "writer": "VARCHAR", "boot": "BIGINT", "witness": "VARCHAR", "server": "VARCHAR"}
_SAME_RUN: Final = "r.witness = n.witness and r.server = n.server and r.writer = n.writer and r.boot = n.boot"

PROJECTION: Final = Projection(
    topics=("witness",),
    tables={
        "witness_runs": """witness VARCHAR, server VARCHAR, writer VARCHAR, boot BIGINT, kind VARCHAR, connections VARCHAR[],
            sees VARCHAR, version VARCHAR, started_at TIMESTAMP, resumed_at TIMESTAMP, stopped_at TIMESTAMP, report_place BIGINT,
            reported_at TIMESTAMP, seeing BOOLEAN, reason VARCHAR, complete_at TIMESTAMP, canary_at TIMESTAMP, observed BIGINT,
            lost BIGINT, lag_us BIGINT""",
        "blindnesses": "place BIGINT, witness VARCHAR, server VARCHAR, since_at TIMESTAMP, until_at TIMESTAMP, reason VARCHAR",
        "observation_gap_records": """place BIGINT, noticed_at TIMESTAMP, witness VARCHAR, server VARCHAR, session_id VARCHAR,
            from_at TIMESTAMP, until_at TIMESTAMP, lost BIGINT, reason VARCHAR""",
    },
    stages=(
        Stage(
            "stage_witness_starts",
            {
                **_RUN,
                "kind": "VARCHAR",
                "connections": "VARCHAR[]",
                "sees": "VARCHAR",
                "version": "VARCHAR",
                "started_us": "BIGINT",
                "resumed_us": "BIGINT",
            },
        ),
        Stage("stage_witness_stops", {**_RUN, "stopped_us": "BIGINT"}),
        Stage(
            "stage_witness_reports",
            {
                **_RUN,
                "kind": "VARCHAR",
                "reported_us": "BIGINT",
                "seeing": "BIGINT",
                "reason": "VARCHAR",
                "complete_us": "BIGINT",
                "canary_us": "BIGINT",
                "observed": "BIGINT",
                "lost": "BIGINT",
                "lag_us": "BIGINT",
            },
        ),
        Stage(
            "stage_blindnesses",
            {
                "place": "BIGINT",
                "witness": "VARCHAR",
                "server": "VARCHAR",
                "since_us": "BIGINT",
                "until_us": "BIGINT",
                "reason": "VARCHAR",
            },
        ),
        Stage(
            "stage_observation_gaps",
            {
                "place": "BIGINT",
                "at_us": "BIGINT",
                "witness": "VARCHAR",
                "server": "VARCHAR",
                "session_id": "VARCHAR",
                "from_us": "BIGINT",
                "until_us": "BIGINT",
                "lost": "BIGINT",
                "reason": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        # A run has one beginning; the events of one server stand in one partition, so theirs is an order.
        Merge(
            ("stage_witness_starts",),
            f"""merge into witness_runs r using (
                select * from stage_witness_starts
                qualify row_number() over (partition by witness, server, writer, boot order by place) = 1
            ) n on {_SAME_RUN}
            when matched then update set kind = coalesce(r.kind, n.kind), connections = coalesce(r.connections, n.connections),
                sees = coalesce(r.sees, n.sees), version = coalesce(r.version, n.version),
                started_at = coalesce(r.started_at, instant(n.started_us)),
                resumed_at = coalesce(r.resumed_at, instant(n.resumed_us))
            when not matched then insert
                (witness, server, writer, boot, kind, connections, sees, version, started_at, resumed_at)
                values (n.witness, n.server, n.writer, n.boot, n.kind, n.connections, n.sees, n.version, instant(n.started_us),
                    instant(n.resumed_us))""",
        ),
        Merge(
            ("stage_witness_reports",),
            f"""merge into witness_runs r using (
                select * from stage_witness_reports
                qualify row_number() over (partition by witness, server, writer, boot order by place desc) = 1
            ) n on {_SAME_RUN}
            when matched and coalesce(r.report_place, -1) < n.place then update set report_place = n.place,
                reported_at = instant(n.reported_us), seeing = n.seeing = 1, reason = n.reason,
                complete_at = instant(n.complete_us), canary_at = instant(n.canary_us), observed = n.observed, lost = n.lost,
                lag_us = n.lag_us
            when not matched then insert
                (witness, server, writer, boot, kind, report_place, reported_at, seeing, reason, complete_at, canary_at, observed,
                    lost, lag_us)
                values (n.witness, n.server, n.writer, n.boot, n.kind, n.place, instant(n.reported_us), n.seeing = 1, n.reason,
                    instant(n.complete_us), instant(n.canary_us), n.observed, n.lost, n.lag_us)""",
        ),
        Merge(
            ("stage_witness_stops",),
            f"""merge into witness_runs r using (
                select * from stage_witness_stops
                qualify row_number() over (partition by witness, server, writer, boot order by place) = 1
            ) n on {_SAME_RUN}
            when matched then update set stopped_at = coalesce(r.stopped_at, instant(n.stopped_us))
            when not matched then insert (witness, server, writer, boot, stopped_at)
                values (n.witness, n.server, n.writer, n.boot, instant(n.stopped_us))""",
        ),
        # One row a blindness, by when it began; its end may come in a later batch, or alone.
        Merge(
            ("stage_blindnesses",),
            """merge into blindnesses b using (
                select witness, server, since_us, min(place) as place, max(until_us) as until_us,
                    coalesce(max(reason) filter (reason <> ''), '') as reason
                from stage_blindnesses group by witness, server, since_us
            ) n on b.witness = n.witness and b.server = n.server and b.since_at is not distinct from instant(n.since_us)
            when matched then update set until_at = coalesce(greatest(b.until_at, instant(n.until_us)), b.until_at),
                reason = greatest(b.reason, n.reason)
            when not matched then insert (place, witness, server, since_at, until_at, reason)
                values (n.place, n.witness, n.server, instant(n.since_us), instant(n.until_us), n.reason)""",
        ),
        Merge(
            ("stage_observation_gaps",),
            """insert into observation_gap_records
            select place, instant(at_us), witness, server, session_id, instant(from_us), instant(until_us), lost, reason
            from stage_observation_gaps""",
        ),
    ),
    views={
        "witnesses": """
            select witness, server, kind, connections, sees,
                case when stopped_at is not null then 'stopped'
                    when reported_at is null then 'starting'
                    when reported_at < current_localtimestamp() - interval 10 seconds then 'silent'
                    when seeing then 'seeing'
                    else 'blind' end as state,
                case when stopped_at is not null then ''
                    when reported_at < current_localtimestamp() - interval 10 seconds then 'it says nothing any more'
                    else coalesce(reason, '') end as reason,
                b.blind_since_at, started_at, resumed_at, stopped_at, reported_at, complete_at, canary_at, observed, lost, lag_us,
                version
            from (
                select * from witness_runs qualify row_number() over (partition by witness, server order by boot desc, writer) = 1
            )
            left join (
                select witness, server, max(since_at) as blind_since_at from blindnesses where until_at is null
                group by witness, server
            ) b using (witness, server)""",
        "observation_gaps": """
            with runs as (
                select witness, server, started_at, resumed_at,
                    lag(coalesce(stopped_at, complete_at, reported_at, started_at)) over (
                        partition by witness, server order by boot, writer
                    ) as until_then_at
                from witness_runs
            )
            select 'lost' as kind, noticed_at, witness, server, session_id, from_at, until_at, lost, reason
            from observation_gap_records
            union all
            select 'blind', coalesce(until_at, since_at), witness, server, '', since_at, until_at, 0, reason from blindnesses
            union all
            select 'not looking', started_at, witness, server, '', until_then_at, coalesce(resumed_at, started_at), 0,
                'the collector did not run'
            from runs where until_then_at < coalesce(resumed_at, started_at)""",
    },
)
