"""`executions`: one row an execution that is over or was denied. `executions_open`: those that are not. `statements`: both.

An execution moves from the one to the other, so that the large table is only ever added to. One that lost its gateway, or its
session, before its end was recorded is `unknown` in the view: the log is not edited, and an end that is read later still counts.

A frame becomes one row a kind of event and stamp, with lists in it: what 50 executions share is staged once (measured: a row an
event costs the projector 2.4 times as much). An execution that begins and ends in one frame, as most do, is put together here.

Leaves behind for the roll-ups, in the same transaction: `stage_counted`.
"""

# ruff: noqa: S608 - the SQL is made of constants of this file

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
    lists,
    place,
    stamp_row,
    unnested,
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
_END: Final = {
    "outcome": "VARCHAR",
    "sqlstate": "VARCHAR",
    "tag": "VARCHAR",
    "rows": "BIGINT",
    "bytes_in": "BIGINT",
    "bytes_out": "BIGINT",
    "duration_us": "BIGINT",
}
_OVER: Final = {"reason": "VARCHAR", "finished_at": "TIMESTAMP", **_END}

# What is staged in lists, an element an execution, beside what the frame and the stamp say of them all.
_STARTED: Final = {
    "place": "BIGINT",
    "execution": "BIGINT",
    "statement": "BIGINT",
    "started_us": "BIGINT",
    "rule": "VARCHAR",
}
_DENIED: Final = {**_STARTED, "sqlstate": "VARCHAR", "reason": "VARCHAR"}
_FINISHED: Final = {"place": "BIGINT", "execution": "BIGINT", **_END}
_WHOLE: Final = {**_STARTED, **_END}
_OF_FRAME: Final = {**STAMP_COLUMNS, "writer": "VARCHAR", "boot": "BIGINT", "recorded_us": "BIGINT"}

COUNTED: Final = {
    "session": "VARCHAR",
    "statement": "BIGINT",
    "agent": "VARCHAR",
    "minute": "TIMESTAMP",
    "statements": "BIGINT",
    "denied": "BIGINT",
    "finished": "BIGINT",
    "errors": "BIGINT",
    "rows": "BIGINT",
    "bytes_in": "BIGINT",
    "bytes_out": "BIGINT",
    "duration_us": "BIGINT",
    "first_at": "TIMESTAMP",
    "last_at": "TIMESTAMP",
}
"""What a batch adds to the roll-ups, by statement and minute. All counts of an execution stand in the minute in which it began."""


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    begun: dict[tuple[int, int], tuple[int, StatementStarted]] = {}  # (stamp, execution) -> its place
    whole: dict[int, list[tuple[int | str, ...]]] = {}
    denied: dict[int, list[tuple[int | str, ...]]] = {}
    finished: dict[int, list[tuple[int | str, ...]]] = {}
    at = place(record, 0) - 1
    for stamp, event in frame.events:
        at += 1
        if stamp < 0:
            continue
        match event:
            case StatementStarted():
                begun[stamp, event.execution] = (at, event)
            case StatementFinished():
                end = (
                    event.outcome,
                    event.sqlstate,
                    event.tag,
                    event.rows,
                    event.bytes_in,
                    event.bytes_out,
                    event.duration_us,
                )
                beginning = begun.pop((stamp, event.execution), None)
                if beginning is None:
                    finished.setdefault(stamp, []).append((at, event.execution, *end))
                else:
                    began, start = beginning
                    whole.setdefault(stamp, []).append((began, start.execution, start.statement, start.at_us, start.rule, *end))
            case StatementDenied():
                denied.setdefault(stamp, []).append(
                    (at, event.execution, event.statement, event.at_us, event.rule, event.sqlstate, event.reason)
                )
            case StatementParameters():
                yield (
                    "stage_parameters",
                    {"session": frame.stamps[stamp].session, "execution": event.execution, "values": event.values},
                )
            case _:
                pass
    started: dict[int, list[tuple[int | str, ...]]] = {}
    for (stamp, _), (began, start) in begun.items():
        started.setdefault(stamp, []).append((began, start.execution, start.statement, start.at_us, start.rule))
    for stage, names, found in (
        ("stage_whole", _WHOLE, whole),
        ("stage_started", _STARTED, started),
        ("stage_denied", _DENIED, denied),
        ("stage_finished", _FINISHED, finished),
    ):
        for stamp, some in found.items():
            yield (
                stage,
                {
                    **stamp_row(frame.stamps[stamp]),
                    "writer": frame.writer,
                    "boot": frame.boot,
                    "recorded_us": record.at_us,
                    **dict(zip(names, zip(*some, strict=True), strict=True)),
                },
            )


# The columns of a stage's rows, one an execution. `backend_start` and `started_at` are instants from here on.
_BEGUN_OF: Final = """* exclude (backend_start_us, recorded_us, started_us), instant(backend_start_us) as backend_start,
    instant(started_us) as started_at"""

PROJECTION: Final = Projection(
    topics=("statements",),
    tables={
        "executions_open": columns(_BEGUN),
        "executions": columns({**_BEGUN, **_OVER}),
        "parameters": "session VARCHAR, execution BIGINT, values VARCHAR[]",
    },
    stages=(
        Stage("stage_whole", {**_OF_FRAME, **lists(_WHOLE)}),
        Stage("stage_started", {**_OF_FRAME, **lists(_STARTED)}),
        Stage("stage_denied", {**_OF_FRAME, **lists(_DENIED)}),
        Stage("stage_finished", {**_OF_FRAME, **lists(_FINISHED)}),
        Stage("stage_parameters", {"session": "VARCHAR", "execution": "BIGINT", "values": "VARCHAR[]"}),
        Stage("stage_begun", _BEGUN),
        Stage("stage_ends", {**_OF_FRAME, **_FINISHED}),
        Stage("stage_completed", {**_BEGUN, **_OVER}),
        Stage("stage_orphans", {**_BEGUN, **_OVER}),
        Stage("stage_counted", COUNTED),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_whole",),
            f"""insert into executions by name
                select {_BEGUN_OF}, 'allow' as decision, '' as reason,
                    instant(started_us) + to_microseconds(duration_us) as finished_at
                from ({unnested("stage_whole", _OF_FRAME, _WHOLE)})""",
        ),
        Merge(
            ("stage_started",),
            f"""insert into stage_begun by name
                select {_BEGUN_OF}, 'allow' as decision from ({unnested("stage_started", _OF_FRAME, _STARTED)})""",
            fills="stage_begun",
        ),
        # An execution ends once; were two ends recorded, the first stands.
        Merge(
            ("stage_finished",),
            f"""insert into stage_ends by name
                select * from ({unnested("stage_finished", _OF_FRAME, _FINISHED)})
                qualify row_number() over (partition by session, execution order by place) = 1""",
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
                select e.* exclude (backend_start_us, recorded_us), instant(e.backend_start_us) as backend_start,
                    'allow' as decision, '' as rule, instant(e.recorded_us - e.duration_us) as started_at,
                    '' as reason, instant(e.recorded_us) as finished_at
                from stage_ends e
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
            f"""insert into executions by name
                select {_BEGUN_OF}, 'deny' as decision, instant(started_us) as finished_at, 'denied' as outcome, '' as tag,
                    0 as rows, 0 as bytes_in, 0 as bytes_out, 0 as duration_us
                from ({unnested("stage_denied", _OF_FRAME, _DENIED)})""",
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
        Merge(
            ("stage_whole", "stage_begun", "stage_denied", "stage_completed"),
            f"""insert into stage_counted by name
                select session, statement, agent, date_trunc('minute', started_at) as minute,
                    sum(statements)::bigint as statements, sum(denied)::bigint as denied, sum(finished)::bigint as finished,
                    sum(errors)::bigint as errors, sum(rows)::bigint as rows, sum(bytes_in)::bigint as bytes_in,
                    sum(bytes_out)::bigint as bytes_out, sum(duration_us)::bigint as duration_us,
                    min(started_at) as first_at, max(started_at) as last_at
                from (
                    select session, statement, agent, instant(started_us) as started_at, 1 as statements, 0 as denied,
                        1 as finished, (outcome = 'error')::int as errors, rows, bytes_in, bytes_out, duration_us
                    from ({unnested("stage_whole", ["session", "agent"], _WHOLE)})
                    union all
                    select session, statement, agent, started_at, 1, 0, 0, 0, 0, 0, 0, 0 from stage_begun
                    union all
                    select session, statement, agent, instant(started_us), 0, 1, 0, 0, 0, 0, 0, 0
                    from ({unnested("stage_denied", ["session", "agent"], _DENIED)})
                    union all
                    select session, statement, agent, started_at, 0, 0, 1, (outcome = 'error')::int, rows, bytes_in, bytes_out,
                        duration_us
                    from stage_completed
                ) group by session, statement, agent, minute""",
            fills="stage_counted",
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
                x.relations, x.functions, r.resolution, r.evidence as resolution_evidence
            from executions_all e
            left join texts x on x.session = e.session and x.statement = e.statement
            left join resolutions r on r.session = e.session and r.execution = e.execution""",
    },
)
