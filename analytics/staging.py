"""Frames come in; out come the rows that they add to each projection's stages, to be merged by the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from analytics.projections.projection import Row
from analytics.projections.schema import PROJECTIONS
from ingest.events import Frame
from ingest.log import Record


def staged(frames: Iterable[tuple[Record, Frame]]) -> dict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for record, frame in frames:
        for projection in PROJECTIONS:
            if record.topic in projection.topics:
                for stage, row in projection.rows(record, frame):
                    found[stage].append(row)
    return found
