"""What one record of the log tells, over HTTP: whoever is given the place of a finding's evidence can read it there."""

from __future__ import annotations

import time
from typing import Final, get_args

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from analytics.follow_api import whole
from analytics.following import Line, Texts, Wanted, lines
from analytics.queries import Queries
from identity.api import Authenticate, Looked, guarded, looked
from identity.roles import needs
from ingest.events import Topic
from ingest.follow import Follower
from ingest.frames import event_id
from ingest.log import EventLog, LogCorrupt, LogUnavailable

SECONDS_MAX: Final = 5.0  # that the log may take to give one record
PARTITIONS_MAX: Final = 100_000
OFFSET_MAX: Final = 2**63 - 1


def router(log: EventLog, queries: Queries, authenticate: Authenticate) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    @routes.get("/records/{topic}/{partition}/{offset}", summary="What one record of the log tells of sessions and statements")
    @needs("viewer")
    async def record(request: Request, topic: str, partition: str, offset: str) -> Response:
        if topic not in get_args(Topic) or not (_number(partition, PARTITIONS_MAX) and _number(offset, OFFSET_MAX)):
            raise HTTPException(404, "there is no such place: write topic, partition and offset, as a finding names them")
        looked(request, Looked(0, "record", {"place": f"{topic}/{partition}/{offset}"}))
        try:
            found = await _lines(log, topic, int(partition), int(offset))
        except LogUnavailable as error:
            raise HTTPException(503, f"the log cannot be read now: {error}") from error
        except LogCorrupt as error:
            raise HTTPException(503, f"the log is damaged, see pgwarden log: {error}") from error
        if found is None:
            raise HTTPException(404, f"the log has no record at {topic}/{partition}/{offset}, or does not keep it any more")
        return JSONResponse({"items": await whole(queries, found, Texts()), "next": None})

    return routes


def _number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most


async def _lines(log: EventLog, topic: str, partition: int, offset: int) -> list[Line] | None:
    """None where there is no such record."""
    ends = dict(log.end_offsets(topic))
    if offset >= ends.get((topic, partition), 0):
        return None
    follower = Follower(log, (topic,), ends | {(topic, partition): offset}, on_gap=lambda _: None)
    try:
        until = time.monotonic() + SECONDS_MAX
        while (left := until - time.monotonic()) > 0:
            for record, frame in await follower.poll(1, left):
                if record.partition == partition and record.offset >= offset:
                    if record.offset > offset:
                        return None
                    ids = {f"{topic}/{partition}/{offset}/{index}": event_id(frame, index) for index in range(len(frame.events))}
                    return [line | {"event": ids[str(line["offset"])]} for line in lines(record, frame, Wanted(), Texts())]
        raise LogUnavailable(f"it did not give the record within {SECONDS_MAX:g} s")
    finally:
        follower.close()
