"""`observed_statements`: each execution that a collector saw, as the database ran it.

A frame becomes one row a collector, with lists in it, as in `statements`. A collector that starts again may tell again what it told
last, and one that told a begin may tell the end later: an observation is named by its collector, session, source and sequence, and
the first word that knows the end stands, else the first.
"""

# ruff: noqa: S608 - the SQL is made of constants of this file

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, columns, lists, place, unnested
from ingest.events import Frame, StatementObserved
from ingest.log import Record

_OBSERVED: Final = {
    "place": "BIGINT",
    "session_id": "VARCHAR",
    "sequence": "BIGINT",
    "source": "VARCHAR",
    "began_us": "BIGINT",
    "text": "VARCHAR",
    "text_bytes": "BIGINT",
    "digest": "VARCHAR",
    "query_id": "BIGINT",
    "rows": "BIGINT",
    "sqlstate": "VARCHAR",
    "duration_us": "BIGINT",
    "user_name": "VARCHAR",
    "database": "VARCHAR",
    "client": "VARCHAR",
    "outcome_known": "BOOLEAN",
}
_OF: Final = {"witness": "VARCHAR", "server": "VARCHAR"}
_NAME: Final = {**_OF, "session_id": "VARCHAR", "source": "VARCHAR", "sequence": "BIGINT"}
_KEY: Final = ", ".join(_NAME)
_TABLE: Final = {
    **_OF,
    **{"began_at" if name == "began_us" else name: "TIMESTAMP" if name == "began_us" else kind for name, kind in _OBSERVED.items()},
}


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    found: dict[tuple[str, str], list[tuple[int | str, ...]]] = {}
    at = place(record, 0) - 1
    for _, event in frame.events:
        at += 1
        if isinstance(event, StatementObserved):
            found.setdefault((event.witness, event.server), []).append(
                (
                    at,
                    event.session_id,
                    event.sequence,
                    event.source,
                    event.at_us,
                    event.text,
                    event.text_bytes,
                    event.digest,
                    event.query_id,
                    event.rows,
                    event.sqlstate,
                    event.duration_us,
                    event.user,
                    event.database,
                    event.client,
                    event.outcome_known,
                )
            )
    for (witness, server), some in found.items():
        yield (
            "stage_observed_statements",
            {"witness": witness, "server": server, **dict(zip(_OBSERVED, zip(*some, strict=True), strict=True))},
        )


PROJECTION: Final = Projection(
    topics=("witness",),
    tables={"observed_statements": columns(_TABLE)},
    stages=(
        Stage("stage_observed_statements", {**_OF, **lists(_OBSERVED)}),
        Stage("stage_observed_once", _TABLE),
        Stage("stage_observed_before", {**_NAME, "began_at": "TIMESTAMP", "better": "BOOLEAN"}),
        Stage("stage_observed_better", {**_NAME, "began_at": "TIMESTAMP"}),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_observed_statements",),
            f"""insert into stage_observed_once by name
                select * exclude (began_us), instant(began_us) as began_at
                from ({unnested("stage_observed_statements", _OF, _OBSERVED)})
                qualify row_number() over (partition by {_KEY} order by outcome_known desc, place) = 1""",
            fills="stage_observed_once",
        ),
        # By an inner join, with the time in it: DuckDB then passes over what is older than this batch, which is nearly everything.
        Merge(
            ("stage_observed_once",),
            """insert into stage_observed_before by name
                select n.witness, n.server, n.session_id, n.source, n.sequence, n.began_at,
                    n.outcome_known and not o.outcome_known as better
                from stage_observed_once n
                join observed_statements o on o.began_at = n.began_at and o.session_id = n.session_id and o.sequence = n.sequence
                    and o.source = n.source and o.witness = n.witness and o.server = n.server""",
            fills="stage_observed_before",
        ),
        Merge(
            ("stage_observed_before",),
            "insert into stage_observed_better by name select * exclude (better) from stage_observed_before where better",
            fills="stage_observed_better",
        ),
        Merge(
            ("stage_observed_better",),
            """delete from observed_statements o using stage_observed_better b
                where o.began_at = b.began_at and o.session_id = b.session_id and o.sequence = b.sequence
                    and o.source = b.source and o.witness = b.witness and o.server = b.server""",
        ),
        Merge(
            ("stage_observed_once",),
            """insert into observed_statements by name
                select * from stage_observed_once n where not exists (
                    from stage_observed_before b where not b.better and b.witness = n.witness and b.server = n.server
                        and b.session_id = n.session_id and b.source = n.source and b.sequence = n.sequence
                )""",
        ),
    ),
)
