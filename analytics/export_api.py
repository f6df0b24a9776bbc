"""Exports over HTTP. docs/api.md describes them."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from analytics.answer_formats import MEDIA_TYPES
from analytics.api import given_once
from analytics.exports import EXPORT_FORMATS, Exports
from analytics.queries import QuestionFailed, QuestionInvalid
from identity.api import Authenticate, Looked, guarded, looked
from identity.roles import needs


def router(exports: Exports, authenticate: Authenticate) -> APIRouter:
    routes = APIRouter(prefix="/v1/export", route_class=guarded(authenticate))

    @routes.get("/statements", summary="Executions as a file: CSV for a spreadsheet, Parquet for a program")
    @needs("viewer")
    async def export_statements(request: Request) -> Response:
        given = given_once(request)
        wanted = given.pop("format", "csv")
        kind = next((kind for kind in EXPORT_FORMATS if kind == wanted), None)
        if kind is None:
            raise HTTPException(422, f"format: write one of {', '.join(EXPORT_FORMATS)}")
        try:
            made = await exports.write("statements", given, kind)
        except QuestionInvalid as error:
            raise HTTPException(422, str(error)) from error
        except QuestionFailed as error:
            raise HTTPException(503, str(error)) from error
        looked(request, Looked(made.rows, "export statements", {**given, "format": kind}))
        headers = {
            "Content-Disposition": f'attachment; filename="statements-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{kind}"',
            "Content-Length": str(made.size_bytes),
            "Pgwarden-Rows": str(made.rows),
        }
        if made.next is not None:
            headers |= {"Pgwarden-Notice": made.notice, "Pgwarden-Next": made.next}
        return StreamingResponse(made.chunks(), media_type=MEDIA_TYPES[kind], headers=headers)

    return routes
