"""What operators say of findings, over HTTP. docs/api.md describes each route."""

from __future__ import annotations

import logging
from typing import Annotated, Final, TypeAlias, assert_never

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from analytics.triage import Acknowledge, Confirm, Mute, Triage, TriageEvent, Unmute
from analytics.triager import Done, Triager, Unrecorded
from identity.api import Authenticate, guarded, iso, operator_of
from identity.commands import IDEMPOTENCY_KEY, Rejected
from identity.roles import needs
from ingest.events import FindingAcknowledged, FindingConfirmed, FindingsMuted, FindingsUnmuted

IdempotencyKey: TypeAlias = Annotated[str, Header(alias="Idempotency-Key")]

_STATUS_OF: Final = {"invalid": 422, "missing": 404, "forbidden": 403, "conflict": 409}
_log: Final = logging.getLogger(__name__)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NoteBody(_Body):
    note: str = ""


class MuteBody(_Body):
    finding: str = ""
    detector: str = ""
    agent: str = ""
    seconds: int
    reason: str


class UnmuteBody(_Body):
    detector: str
    agent: str
    reason: str = ""


def router(triager: Triager, authenticate: Authenticate) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    async def answered(request: Request, command: Triage, key: str, status: int) -> Response:
        if key and IDEMPOTENCY_KEY.fullmatch(key) is None:
            raise HTTPException(422, "Idempotency-Key: write 1 to 128 visible ASCII characters")
        outcome = await triager.carry_out(command, key, operator_of(request).id)
        match outcome:
            case Done(event, repeated):
                return JSONResponse(_answer(event), status, {"Idempotency-Replayed": "true"} if repeated else {})
            case Rejected(kind, error, problems):
                return JSONResponse({"error": error} | ({"problems": list(problems)} if problems else {}), _STATUS_OF[kind])
            case Unrecorded(reason):
                _log.error("what was said of a finding was not recorded: %s", reason)
                wait = "The log is slow to record this; it may still take effect. Repeat it with the same Idempotency-Key."
                return JSONResponse({"error": wait}, 503, {"Retry-After": "2"})
            case _:
                assert_never(outcome)

    @routes.post("/findings/{finding}/acknowledge", summary="Say that somebody looks after a finding")
    @needs("responder")
    async def acknowledge(request: Request, finding: str, body: NoteBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, Acknowledge(finding, body.note), idempotency_key, 200)

    @routes.post("/findings/{finding}/confirm", summary="Say that a finding was what it said")
    @needs("responder")
    async def confirm(request: Request, finding: str, body: NoteBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, Confirm(finding, body.note), idempotency_key, 200)

    @routes.post("/mutes", status_code=201, summary="Let a detector's findings of an agent ask nobody for attention for a time")
    @needs("responder")
    async def mute(request: Request, body: MuteBody, idempotency_key: IdempotencyKey = "") -> Response:
        command = Mute(body.detector, body.agent, body.seconds, body.reason, body.finding)
        return await answered(request, command, idempotency_key, 201)

    @routes.post("/mutes/remove", summary="Take a mute back before its time")
    @needs("responder")
    async def unmute(request: Request, body: UnmuteBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, Unmute(body.detector, body.agent, body.reason), idempotency_key, 200)

    return routes


def _answer(event: TriageEvent) -> dict[str, str]:
    match event:
        case FindingAcknowledged():
            said = {"finding": event.finding, "agent": event.agent, "state": "acknowledged", "operator": event.operator}
            return said | {"acknowledged_at": iso(event.at_us), "note": event.note}
        case FindingConfirmed():
            said = {"finding": event.finding, "agent": event.agent, "state": "confirmed", "operator": event.operator}
            return said | {"confirmed_at": iso(event.at_us), "note": event.note}
        case FindingsMuted():
            muted = {"detector": event.detector, "agent": event.agent, "state": "muted", "operator": event.operator}
            return muted | {"muted_at": iso(event.at_us), "until_at": iso(event.until_us), "reason": event.reason}
        case FindingsUnmuted():
            unmuted = {"detector": event.detector, "agent": event.agent, "state": "unmuted", "operator": event.operator}
            return unmuted | {"unmuted_at": iso(event.at_us), "reason": event.reason}
        case _:
            assert_never(event)
