"""`findings`: what detectors raised, each once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import FindingRaised, Frame
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        if isinstance(event, FindingRaised):
            yield (
                "stage_findings",
                {
                    "place": place(record, index),
                    "at_us": event.at_us,
                    "finding": event.finding,
                    "detector": event.detector,
                    "agent": event.agent,
                    "session": event.session,
                    "severity": event.severity,
                    "summary": event.summary,
                    "evidence": event.evidence,
                },
            )


PROJECTION: Final = Projection(
    topics=("findings",),
    tables={
        "findings": """place BIGINT, raised_at TIMESTAMP, finding VARCHAR, detector VARCHAR, agent VARCHAR, session VARCHAR,
            severity VARCHAR, summary VARCHAR, evidence VARCHAR[]"""
    },
    stages=(
        Stage(
            "stage_findings",
            {
                "place": "BIGINT",
                "at_us": "BIGINT",
                "finding": "VARCHAR",
                "detector": "VARCHAR",
                "agent": "VARCHAR",
                "session": "VARCHAR",
                "severity": "VARCHAR",
                "summary": "VARCHAR",
                "evidence": "VARCHAR[]",
            },
        ),
    ),
    rows=rows,
    merge=(
        # Detectors may raise the same finding again after a restart; its id says that it is the same. The first stands.
        Merge(
            ("stage_findings",),
            """insert into findings
            select place, instant(at_us), finding, detector, agent, session, severity, summary, evidence
            from (select * from stage_findings qualify row_number() over (partition by finding order by place) = 1)
            where finding not in (select finding from findings)""",
        ),
    ),
)
