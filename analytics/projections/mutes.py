"""`mute_events`: what was muted and unmuted. `mutes`: the newest of each detector and agent that was not taken back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Row, Stage, Staged, columns, place
from ingest.events import FindingsMuted, FindingsUnmuted, Frame
from ingest.log import Record

_EVENTS: Final = {
    "place": "BIGINT",
    "at_us": "BIGINT",
    "detector": "VARCHAR",
    "agent": "VARCHAR",
    "until_us": "BIGINT",
    "operator": "VARCHAR",
    "reason": "VARCHAR",
    "finding": "VARCHAR",
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case FindingsMuted():
                of: Row = {"until_us": event.until_us, "finding": event.finding}
            case FindingsUnmuted():
                of = {"until_us": 0, "finding": ""}
            case _:
                continue
        said: Row = {"operator": event.operator, "reason": event.reason}
        whose: Row = {"at_us": event.at_us, "detector": event.detector, "agent": event.agent}
        yield "stage_mutes", {"place": place(record, index), **whose, **of, **said}


PROJECTION: Final = Projection(
    topics=("findings",),
    tables={"mute_events": columns(_EVENTS)},
    stages=(Stage("stage_mutes", _EVENTS),),
    rows=rows,
    merge=(Merge(("stage_mutes",), "insert into mute_events select * from stage_mutes"),),
    views={
        # All events of one detector and agent stand in one partition, so `place` orders them.
        "mutes": """
            select detector, agent, instant(at_us) as muted_at, instant(until_us) as until_at, operator, reason, finding from (
                select *, row_number() over (partition by detector, agent order by place desc) as newest from mute_events
            ) where newest = 1 and until_us > 0"""
    },
)
