"""`texts`: each statement's text once a session, with what the parser found in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged
from ingest.events import Frame, StatementDefined
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    del record
    for stamp, event in frame.events:
        if isinstance(event, StatementDefined) and stamp >= 0:
            yield (
                "stage_texts",
                {
                    "session": frame.stamps[stamp].session,
                    "statement": event.statement,
                    "text": event.text,
                    "text_mode": event.text_mode,
                    "text_bytes": event.text_bytes,
                    "fingerprint": event.fingerprint,
                    "verbs": event.verbs,
                    "relations": event.relations,
                    "functions": event.functions,
                },
            )


PROJECTION: Final = Projection(
    topics=("statements",),
    tables={
        "texts": """session VARCHAR, statement BIGINT, text VARCHAR, text_mode VARCHAR, text_bytes BIGINT, fingerprint VARCHAR,
            verbs VARCHAR[], relations VARCHAR[], functions VARCHAR[]"""
    },
    stages=(
        Stage(
            "stage_texts",
            {
                "session": "VARCHAR",
                "statement": "BIGINT",
                "text": "VARCHAR",
                "text_mode": "VARCHAR",
                "text_bytes": "BIGINT",
                "fingerprint": "VARCHAR",
                "verbs": "VARCHAR[]",
                "relations": "VARCHAR[]",
                "functions": "VARCHAR[]",
            },
        ),
    ),
    rows=rows,
    merge=(Merge(("stage_texts",), "insert into texts by name select * from stage_texts"),),
)
