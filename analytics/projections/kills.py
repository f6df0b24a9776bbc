"""`kills`: the proof that a session was ended, with its four times. `orders`: enforcement's conclusions. `cancellations`.

A gateway and a watchdog may both end a session, and both say so: `kill_records` has what each said, `kills` one row a session.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from analytics.projections.projection import Merge, Projection, Stage, Staged, place
from ingest.events import Frame, SessionEndOrdered, SessionKilled, SessionReaped, StatementCancelled
from ingest.log import Record


def rows(record: Record, frame: Frame) -> Iterator[Staged]:
    for index, (_, event) in enumerate(frame.events):
        match event:
            case SessionKilled() | SessionReaped():
                if isinstance(event, SessionKilled):
                    client_closed_us, ended_by, watchdog = event.client_closed_us, "gateway", ""
                else:
                    client_closed_us, ended_by, watchdog = 0, "watchdog", event.watchdog  # its gateway has the client
                yield (
                    "stage_kills",
                    {
                        "place": place(record, index),
                        "at_us": event.at_us,
                        "session": event.session,
                        "agent": event.agent,
                        "cause": event.cause,
                        "reason": event.reason,
                        "requested_us": event.requested_us,
                        "decided_us": event.decided_us,
                        "client_closed_us": client_closed_us,
                        "backend_gone_us": event.backend_gone_us,
                        "backend_pid": event.backend_pid,
                        "ended_by": ended_by,
                        "watchdog": watchdog,
                    },
                )
            case SessionEndOrdered():
                yield (
                    "stage_orders",
                    {
                        "place": place(record, index),
                        "at_us": event.at_us,
                        "order_id": event.order,
                        "session": event.session,
                        "agent": event.agent,
                        "cause": event.cause,
                        "cause_us": event.cause_at_us,
                        "reason": event.reason,
                    },
                )
            case StatementCancelled():
                yield (
                    "stage_cancellations",
                    {
                        "place": place(record, index),
                        "at_us": event.at_us,
                        "session": event.session,
                        "agent": event.agent,
                        "client": event.client,
                    },
                )
            case _:
                pass


PROJECTION: Final = Projection(
    topics=("sessions", "commands", "observations"),
    tables={
        "kill_records": """place BIGINT, recorded_at TIMESTAMP, session VARCHAR, agent VARCHAR, cause VARCHAR, reason VARCHAR,
            requested_at TIMESTAMP, decided_at TIMESTAMP, client_closed_at TIMESTAMP, backend_gone_at TIMESTAMP,
            backend_pid BIGINT, ended_by VARCHAR, watchdog VARCHAR""",
        "orders": """place BIGINT, ordered_at TIMESTAMP, order_id VARCHAR, session VARCHAR, agent VARCHAR, cause VARCHAR,
            cause_at TIMESTAMP, reason VARCHAR""",
        "cancellations": "place BIGINT, cancelled_at TIMESTAMP, session VARCHAR, agent VARCHAR, client VARCHAR",
    },
    stages=(
        Stage(
            "stage_kills",
            {
                "place": "BIGINT",
                "at_us": "BIGINT",
                "session": "VARCHAR",
                "agent": "VARCHAR",
                "cause": "VARCHAR",
                "reason": "VARCHAR",
                "requested_us": "BIGINT",
                "decided_us": "BIGINT",
                "client_closed_us": "BIGINT",
                "backend_gone_us": "BIGINT",
                "backend_pid": "BIGINT",
                "ended_by": "VARCHAR",
                "watchdog": "VARCHAR",
            },
        ),
        Stage(
            "stage_orders",
            {
                "place": "BIGINT",
                "at_us": "BIGINT",
                "order_id": "VARCHAR",
                "session": "VARCHAR",
                "agent": "VARCHAR",
                "cause": "VARCHAR",
                "cause_us": "BIGINT",
                "reason": "VARCHAR",
            },
        ),
        Stage(
            "stage_cancellations",
            {"place": "BIGINT", "at_us": "BIGINT", "session": "VARCHAR", "agent": "VARCHAR", "client": "VARCHAR"},
        ),
    ),
    rows=rows,
    merge=(
        Merge(
            ("stage_kills",),
            """insert into kill_records
            select place, instant(at_us), session, agent, cause, reason, instant(requested_us), instant(decided_us),
                instant(client_closed_us), instant(backend_gone_us), backend_pid, ended_by, watchdog
            from stage_kills""",
        ),
        # An order is named by its session and cause: the same one may be recorded again after a restart. The first stands.
        Merge(
            ("stage_orders",),
            """insert into orders
            select place, instant(at_us), order_id, session, agent, cause, instant(cause_us), reason
            from (select * from stage_orders qualify row_number() over (partition by order_id order by place) = 1)
            where order_id not in (select order_id from orders)""",
        ),
        Merge(
            ("stage_cancellations",),
            "insert into cancellations select place, instant(at_us), session, agent, client from stage_cancellations",
        ),
    ),
    views={
        # What was proven first counts. Places of two topics cannot be compared, so the words themselves break a tie.
        "kills": """
            select * exclude (place, client_closed_at), min(client_closed_at) over (partition by session) as client_closed_at
            from kill_records
            qualify row_number() over (
                partition by session
                order by backend_gone_at nulls last, recorded_at, ended_by, watchdog, decided_at, cause, reason
            ) = 1"""
    },
)
