"""Copies of the tables over HTTP: take one, say which there are, hand one out. docs/api.md describes it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from analytics.snapshots import LATEST_NAME, Busy, HandedOut, Snapshots
from identity.api import Authenticate, Looked, guarded, looked
from identity.roles import needs

MEDIA_TYPE: Final = "application/vnd.duckdb"

_log: Final = logging.getLogger(__name__)


def router(snapshots: Snapshots, authenticate: Authenticate) -> APIRouter:
    """Administrators' alone: a copy holds every table, also who looked at what."""
    routes = APIRouter(prefix="/v1/snapshots", route_class=guarded(authenticate))

    @routes.post("", summary="A copy of the tables as a file on the API's machine")
    @needs("administrator", look=True)
    async def snapshot(request: Request) -> Response:
        looked(request, Looked(question="snapshot", parameters={}))
        try:
            taken = await snapshots.take()
        except OSError as error:
            raise HTTPException(503, f"no snapshot was taken: {error}") from error
        answer = {
            "snapshot": taken.name,
            "path": str(taken.path),
            "bytes": taken.size_bytes,
            "taken_at": taken.taken_at,
            "seconds": round(taken.seconds, 3),
        }
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @routes.get("", summary="The copies of the tables that are there, newest first")
    @needs("administrator")
    async def there(request: Request) -> Response:
        kept = await asyncio.to_thread(snapshots.kept)
        looked(request, Looked(len(kept), "snapshots", {}))
        items = [{"snapshot": one.name, "bytes": one.size_bytes, "taken_at": one.taken_at} for one in kept]
        return Response(msgspec.json.encode({"items": items, "next": None}), media_type="application/json")

    @routes.get("/{snapshot}", summary="One copy of the tables, whole, as a DuckDB file")
    @needs("administrator")
    async def download(request: Request, snapshot: str) -> Response:
        looked(request, Looked(question="snapshot download", parameters={"snapshot": snapshot}))  # also where there is none
        try:
            out = await asyncio.to_thread(snapshots.hand_out, snapshot)
        except Busy as error:
            raise HTTPException(429, str(error)) from error
        except OSError as error:
            raise HTTPException(503, f"the snapshot cannot be read: {error}") from error
        if out is None:
            remedy = f"GET /v1/snapshots says which there are, {LATEST_NAME} is the newest, and POST /v1/snapshots takes one"
            raise HTTPException(404, f"there is no snapshot {snapshot[:100]!r}: {remedy}")
        looked(request, Looked(question="snapshot download", parameters={"snapshot": out.name}))
        return _Download(out, snapshots.download_seconds_max)

    return routes


class _Download(StreamingResponse):
    """Ends with its time: a reader that stands still keeps a file on the disk that may be removed already."""

    def __init__(self, out: HandedOut, seconds_max: float) -> None:
        headers = {
            "Content-Disposition": f'attachment; filename="pgwarden-{out.name}.duckdb"',
            "Content-Length": str(out.size_bytes),
            "Pgwarden-Snapshot": out.name,
        }
        super().__init__(out.chunks(), media_type=MEDIA_TYPE, headers=headers)
        self._out = out
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds_max):
                await super().__call__(scope, receive, send)
        except TimeoutError:  # the connection ends short of Content-Length, so its reader knows
            _log.warning("the download of snapshot %s was cut after %g s", self._out.name, self._seconds_max)
        finally:
            self._out.close()
