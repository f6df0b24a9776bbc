"""`executions`: one row an execution that is over or was denied. `executions_open`: those that are not. `statements`: both.

An execution moves from the one to the other, so that the large table is only ever added to. One that lost its gateway, or its
session, before its end was recorded is `unknown` in the view: the log is not edited, and an end that is read later still counts.

Leaves behind for `rates`, in the same transaction: `stage_begun`, `stage_denied` and `stage_completed`.
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
from ingest.events import Frame, StatementDenied, StatementFinished, StatementParameters, StatementStarted
from ingest.log import Record

_BEGUN: Final = {
    **STAMP_TYPES,
    "place": "BIGINT",
    "writer": "VARCHAR",
    "boot": "BIGINT",
    "execution": "BIGINT",
    "statement": "BIGINT",
    "decision": "VARCHAR",
    "rule": "VARCHAR",
    "started_at": "TIMESTAMP",
}
_OVER: Final = {
    "reason": "VARCHAR",
    "finished_at": "TIMESTAMP",
    "outcome": "VARCHAR",
    "sqlstate": "VARCHAR",
    "tag": "VARCHAR",
    "rows": "BIGINT",
    "bytes_in": "BIGINT",
    "bytes_out": "BIGINT",
    "duration_us": "BIGINT",
}
_FINISHED: Final = {
    "stamp": "VARCHAR",
    "place": "BIGINT",
    "writer": "VARCHAR",
    "boot": "BIGINT",
    "recorded_us": "BIGINT",
    "session": "VARCHAR",
    "execution": "BIGINT",
    "outcome": "VARCHAR",
    "sqlstate": "VARCHAR",
    "tag": "VARCHAR",
    "rows": "BIGINT",
    "bytes_in": "BIGINT",
    "bytes_out": "BIGINT",
    "duration_us": "BIGINT",
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    used: set[int] = set()
    for index, (stamp, event) in enumerate(frame.events):
        if stamp < 0:
            continue
        key = f"{record.topic}/{record.partition}/{record.offset}/{stamp}"
        match event:
            case StatementStarted():
                used.add(stamp)
                yield (
                    "stage_started",
                    {
                        "stamp": key,
                        "place": place(record, index),
                        "writer": frame.writer,
                        "boot": frame.boot,
                        "execution": event.execution,
                        "statement": event.statement,
                        "started_us": event.at_us,
                        "rule": event.rule,
                    },
                )
            case StatementDenied():
                used.add(stamp)
                yield (
                    "stage_denied",
                    {
                        "stamp": key,
                        "place": place(record, index),
                        "writer": frame.writer,
                        "boot": frame.boot,
                        "execution": event.execution,
                        "statement": event.statement,
                        "started_us": event.at_us,
                        "rule": event.rule,
                        "sqlstate": event.sqlstate,
                        "reason": event.reason,
                    },
                )
            case StatementFinished():
                used.add(stamp)
                yield (
                    "stage_finished",
                    {
                        "stamp": key,
                        "place": place(record, index),
                        "writer": frame.writer,
                        "boot": frame.boot,
                        "recorded_us": record.at_us,
                        "session": frame.stamps[stamp].session,
                        "execution": event.execution,
                        "outcome": event.outcome,
                        "sqlstate": event.sqlstate,
                        "tag": event.tag,
                        "rows": event.rows,
                        "bytes_in": event.bytes_in,
                        "bytes_out": event.bytes_out,
                        "duration_us": event.duration_us,
                    },
                )
            case StatementParameters():
                yield (
                    "stage_parameters",
                    {"session": frame.stamps[stamp].session, "execution": event.execution, "values": event.values},
                )
            case _:
                pass
    for stamp in sorted(used):
        yield (
            "stage_stamps",
            {"stamp": f"{record.topic}/{record.partition}/{record.offset}/{stamp}", **stamp_row(frame.stamps[stamp])},
        )


PROJECTION: Final = Projection(
    topics=("statements",),
    tables={
        "executions_open": columns(_BEGUN),
        "executions": columns({**_BEGUN, **_OVER}),
        "parameters": "session VARCHAR, execution BIGINT, values VARCHAR[]",
    },
    stages=(
        Stage("stage_stamps", {"stamp": "VARCHAR", **STAMP_COLUMNS}),
        Stage(
            "stage_started",
            {
                "stamp": "VARCHAR",
                "place": "BIGINT",
                "writer": "VARCHAR",
                "boot": "BIGINT",
                "execution": "BIGINT",
                "statement": "BIGINT",
                "started_us": "BIGINT",
                "rule": "VARCHAR",
            },
        ),
        Stage(
            "stage_denied",
            {
                "stamp": "VARCHAR",
                "place": "BIGINT",
                "writer": "VARCHAR",
                "boot": "BIGINT",
                "execution": "BIGINT",
                "statement": "BIGINT",
                "started_us": "BIGINT",
                "rule": "VARCHAR",
                "sqlstate": "VARCHAR",
                "reason": "VARCHAR",
            },
        ),
        Stage("stage_finished", _FINISHED),
        Stage("stage_parameters", {"session": "VARCHAR", "execution": "BIGINT", "values": "VARCHAR[]"}),
        Stage("stage_begun", _BEGUN),
        Stage("stage_ends", _FINISHED),
        Stage("stage_completed", {**_BEGUN, **_OVER}),
        Stage("stage_orphans", {**_BEGUN, **_OVER}),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_started",),
            """insert into stage_begun by name
                select p.* exclude (stamp, backend_start_us), instant(p.backend_start_us) as backend_start, t.place, t.writer,
                    t.boot, t.execution, t.statement, 'allow' as decision, t.rule, instant(t.started_us) as started_at
                from stage_started t join stage_stamps p using (stamp)""",
            fills="stage_begun",
        ),
        # An execution ends once; were two ends recorded, the first stands.
        Merge(
            ("stage_finished",),
            """insert into stage_ends by name
                select * from stage_finished qualify row_number() over (partition by session, execution order by place) = 1""",
            fills="stage_ends",
        ),
        Merge(
            ("stage_ends",),
            """insert into stage_completed by name
                select b.*, '' as reason, b.started_at + to_microseconds(e.duration_us) as finished_at, e.outcome, e.sqlstate,
                    e.tag, e.rows, e.bytes_in, e.bytes_out, e.duration_us
                from (select * from executions_open union all by name select * from stage_begun) b
                join stage_ends e on b.session = e.session and b.execution = e.execution""",
            fills="stage_completed",
        ),
        # An end whose beginning is not in the log: the frame that held it is missing, but the execution was real.
        Merge(
            ("stage_ends",),
            """insert into stage_orphans by name
                select p.* exclude (stamp, backend_start_us), instant(p.backend_start_us) as backend_start, e.place, e.writer,
                    e.boot, e.execution, 'allow' as decision, '' as rule, instant(e.recorded_us - e.duration_us) as started_at,
                    '' as reason, instant(e.recorded_us) as finished_at, e.outcome, e.sqlstate, e.tag, e.rows, e.bytes_in,
                    e.bytes_out, e.duration_us
                from stage_ends e join stage_stamps p using (stamp)
                where not exists (from stage_completed c where c.session = e.session and c.execution = e.execution)""",
            fills="stage_orphans",
        ),
        Merge(
            ("stage_orphans",),
            """insert into executions by name
                select * from stage_orphans o
                where not exists (from executions x where x.session = o.session and x.execution = o.execution)""",
        ),
        Merge(("stage_completed",), "insert into executions by name select * from stage_completed"),
        Merge(
            ("stage_denied",),
            """insert into executions by name
                select p.* exclude (stamp, backend_start_us), instant(p.backend_start_us) as backend_start, d.place, d.writer,
                    d.boot, d.execution, d.statement, 'deny' as decision, d.rule, instant(d.started_us) as started_at,
                    d.reason, instant(d.started_us) as finished_at, 'denied' as outcome, d.sqlstate, '' as tag, 0 as rows,
                    0 as bytes_in, 0 as bytes_out, 0 as duration_us
                from stage_denied d join stage_stamps p using (stamp)""",
        ),
        Merge(
            ("stage_completed",),
            """delete from executions_open o using stage_completed c
                where o.session = c.session and o.execution = c.execution""",
        ),
        Merge(
            ("stage_begun",),
            """insert into executions_open by name
                select * from stage_begun b
                where not exists (from stage_completed c where c.session = b.session and c.execution = b.execution)""",
        ),
        Merge(
            ("stage_parameters",),
            "insert into parameters by name select * from stage_parameters",
        ),
    ),
    views={
        "running": """
            with boots as (select writer, max(boot) as boot from gateways group by writer)
            select o.*, '' as reason, null::timestamp as finished_at,
                case when b.boot > o.boot or s.session is not null then 'unknown' end as outcome,
                '' as sqlstate, '' as tag, null::bigint as rows, null::bigint as bytes_in, null::bigint as bytes_out,
                null::bigint as duration_us
            from executions_open o
            left join boots b on b.writer = o.writer
            left join (
                select session from sessions where state <> 'live' and session in (select session from executions_open)
            ) s on s.session = o.session""",
        "executions_all": "select * from executions union all by name select * from running",
        "statements": """
            select e.* exclude (place, writer), e.writer as gateway, x.text, x.text_mode, x.text_bytes, x.fingerprint, x.verbs,
                x.relations, x.functions
            from executions_all e
            left join texts x on x.session = e.session and x.statement = e.statement""",
    },
)
