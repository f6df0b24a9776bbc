"""`gateways`: when each boot began and ended. `outages`: when nothing could be recorded, and so nothing was let through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, GatewayStarted, GatewayStopped, RecordingStopped
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case GatewayStarted():
                yield (
                    "stage_gateways",
                    {
                        "writer": frame.writer,
                        "gateway": event.gateway,
                        "boot": event.boot,
                        "started_us": event.at_us,
                        "version": event.version,
                    },
                )
            case GatewayStopped():
                yield (
                    "stage_gateways",
                    {"writer": frame.writer, "gateway": event.gateway, "boot": event.boot, "stopped_us": event.at_us},
                )
            case RecordingStopped():
                yield (
                    "stage_outages",
                    {
                        "place": place(record, index),
                        "writer": event.writer,
                        "since_us": event.since_us,
                        "until_us": event.at_us,
                        "refused": event.refused,
                        "reason": event.reason,
                    },
                )
            case _:
                pass


PROJECTION: Final = Projection(
    topics=("sessions",),
    tables={
        "gateways": """writer VARCHAR, gateway VARCHAR, boot BIGINT, started_at TIMESTAMP, stopped_at TIMESTAMP,
            version VARCHAR""",
        "outages": """place BIGINT, writer VARCHAR, since_at TIMESTAMP, until_at TIMESTAMP, refused BIGINT,
            reason VARCHAR""",
    },
    stages=(
        Stage(
            "stage_gateways",
            {
                "writer": "VARCHAR",
                "gateway": "VARCHAR",
                "boot": "BIGINT",
                "started_us": "BIGINT",
                "stopped_us": "BIGINT",
                "version": "VARCHAR",
            },
        ),
        Stage(
            "stage_outages",
            {
                "place": "BIGINT",
                "writer": "VARCHAR",
                "since_us": "BIGINT",
                "until_us": "BIGINT",
                "refused": "BIGINT",
                "reason": "VARCHAR",
            },
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_gateways",),
            """merge into gateways g using (
                select writer, boot, min(gateway) as gateway, instant(min(started_us)) as started_at,
                    instant(min(stopped_us)) as stopped_at, max(version) as version
                from stage_gateways group by writer, boot
            ) n on g.writer = n.writer and g.boot = n.boot
            when matched then update set started_at = coalesce(g.started_at, n.started_at),
                stopped_at = coalesce(g.stopped_at, n.stopped_at), version = coalesce(g.version, n.version)
            when not matched then insert (writer, gateway, boot, started_at, stopped_at, version)
                values (n.writer, n.gateway, n.boot, n.started_at, n.stopped_at, n.version)""",
        ),
        Merge(
            ("stage_outages",),
            """insert into outages
            select place, writer, instant(since_us), instant(until_us), refused, reason from stage_outages""",
        ),
    ),
)
