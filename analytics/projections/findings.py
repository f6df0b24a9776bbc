"""`raised_findings`: what detectors raised, each once. `finding_events`: what became of each. `findings`: both, with its state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Row, Stage, Staged, columns, place
from ingest.events import FindingAcknowledged, FindingConfirmed, FindingRaised, FindingRecurred, Frame
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case FindingRaised():
                raised: Row = {
                    "place": place(record, index),
                    "at_us": event.at_us,
                    "finding": event.finding,
                    "detector": event.detector,
                    "agent": event.agent,
                    "session": event.session,
                    "severity": event.severity,
                    "summary": event.summary,
                    "evidence": event.evidence,
                    "numbers": _numbers(event.numbers),
                    "offsets": event.offsets,
                }
                yield "stage_findings", raised
            case FindingRecurred():
                of: Row = {"kind": "recurred", "times": event.times, "last_us": event.last_us, "said": event.summary}
                told: Row = {"numbers": _numbers(event.numbers), "offsets": event.offsets}
                yield "stage_finding_events", {**_event(record, index, event), **of, **told}
            case FindingAcknowledged() | FindingConfirmed():
                kind = "acknowledged" if isinstance(event, FindingAcknowledged) else "confirmed"
                yield (
                    "stage_finding_events",
                    {**_event(record, index, event), "kind": kind, "operator": event.operator, "said": event.note},
                )
            case _:
                pass


def _event(record: Record, index: int, event: FindingRecurred | FindingAcknowledged | FindingConfirmed) -> Row:
    nothing: Row = {"times": 0, "last_us": 0, "operator": "", "numbers": "{}", "offsets": ()}
    return {"place": place(record, index), "at_us": event.at_us, "finding": event.finding, "agent": event.agent, **nothing}


def _numbers(numbers: tuple[tuple[str, float], ...]) -> str:
    # What no JSON can say is left out: a detector that divides by nothing must not stop the tables.
    return json.dumps({name: value for name, value in numbers if abs(value) < 1e300})


_RAISED: Final = {
    "place": "BIGINT",
    "at_us": "BIGINT",
    "finding": "VARCHAR",
    "detector": "VARCHAR",
    "agent": "VARCHAR",
    "session": "VARCHAR",
    "severity": "VARCHAR",
    "summary": "VARCHAR",
    "evidence": "VARCHAR[]",
    "numbers": "VARCHAR",
    "offsets": "VARCHAR[]",
}
_EVENTS: Final = {
    "place": "BIGINT",
    "at_us": "BIGINT",
    "finding": "VARCHAR",
    "agent": "VARCHAR",
    "kind": "VARCHAR",
    "times": "BIGINT",
    "last_us": "BIGINT",
    "operator": "VARCHAR",
    "said": "VARCHAR",
    "numbers": "VARCHAR",
    "offsets": "VARCHAR[]",
}

PROJECTION: Final = Projection(
    topics=("findings",),
    tables={"raised_findings": columns(_RAISED), "finding_events": columns(_EVENTS)},
    stages=(Stage("stage_findings", _RAISED), Stage("stage_finding_events", _EVENTS)),
    rows=rows,
    merge=(
        # Detectors may raise the same finding again after a restart; its id says that it is the same. The first stands.
        Merge(
            ("stage_findings",),
            """insert into raised_findings
            select * from stage_findings where finding not in (select finding from raised_findings)
            qualify row_number() over (partition by finding order by place) = 1""",
        ),
        Merge(
            ("stage_finding_events",),
            """insert into finding_events
            select * from stage_finding_events
            where kind <> 'recurred'
                or (finding, times) not in (select (finding, times) from finding_events where kind = 'recurred')
            qualify kind <> 'recurred' or row_number() over (partition by finding, kind, times order by place) = 1""",
        ),
    ),
    views={
        "findings": """
            with became as (
                select finding, max(times) as times, max(last_us) as last_us,
                    arg_max(said, times) filter (kind = 'recurred') as summary,
                    arg_max(numbers, times) filter (kind = 'recurred') as numbers,
                    bool_or(kind = 'confirmed') as confirmed,
                    count(*) filter (kind in ('acknowledged', 'confirmed')) > 0 as seen,
                    arg_max(operator, place) filter (kind in ('acknowledged', 'confirmed')) as triaged_by,
                    arg_max(said, place) filter (kind in ('acknowledged', 'confirmed')) as note,
                    max(at_us) filter (kind in ('acknowledged', 'confirmed')) as triaged_us
                from finding_events group by finding
            )
            select r.finding, instant(r.at_us) as raised_at, r.detector, r.agent, r.session, r.severity,
                case when b.confirmed then 'confirmed' when b.seen then 'acknowledged'
                    when r.agent <> '' and exists (from mutes m where m.detector = r.detector and m.agent in (r.agent, '*')
                        and m.until_at > instant(greatest(r.at_us, coalesce(b.last_us, 0)))) then 'muted'
                    else 'open' end as state,
                coalesce(b.summary, r.summary) as summary,
                greatest(1, coalesce(b.times, 1)) as times,
                instant(greatest(r.at_us, coalesce(b.last_us, 0))) as last_at,
                coalesce(b.numbers, r.numbers) as numbers, r.evidence, r.offsets,
                coalesce(b.triaged_by, '') as triaged_by, instant(b.triaged_us) as triaged_at, coalesce(b.note, '') as note
            from raised_findings r left join became b on b.finding = r.finding"""
    },
)
