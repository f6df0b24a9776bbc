"""The event API: commands come in over HTTP, and are answered once what they lead to is recorded. docs/api.md describes each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeAlias, assert_never

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message, Receive

from identity import commands
from identity.commands import Command, Rejected
from identity.looks import THROUGH, Look, Through
from identity.operators import Operator, Throttled
from identity.refusal import Refusal
from identity.registrar import Done, Registrar, Unrecorded
from identity.roles import Role, allows, is_look, needed_by, needs
from ingest.events import (
    AgentHeld,
    AgentKeyReplaced,
    AgentRegistered,
    AgentReinstated,
    AgentReleased,
    AgentRetired,
    AgentRevoked,
    AgentThrottled,
    AgentUnthrottled,
    AllReinstated,
    AllRevoked,
    GrantApproved,
    GrantDenied,
    GrantNarrowed,
    GrantRequested,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    IdentityEvent,
    ResponseChosen,
    Rule,
    Scope,
    SessionRevoked,
    SourceDeclared,
    SourceWithdrawn,
    SubjectReinstated,
    SubjectRevoked,
)

BODY_BYTES_MAX: Final = 64 * 2**10  # a scope of a thousand tables takes about 30 kB
PROBLEMS_MAX: Final = 100  # told of one body
CONFIG_KEY_PREFIX: Final = "config:"  # Idempotency-Keys of the configuration file, which no caller may use up beforehand

Authenticate: TypeAlias = Callable[[str, str], Awaitable[Operator | Refusal]]
"""(the Authorization header or "", the peer's address) to the operator: `Operators.authenticate` with the time of now."""

Applied: TypeAlias = Callable[[int], Awaitable[Sequence[str]]]
"""The names of the living gateways that do not act yet on all that was recorded of identities up to this `at_us`. Never raises."""

AgentOf: TypeAlias = Callable[[str], Awaitable[str]]
"""The agent of a session; "" where that is not known, or not known in time. Never raises."""

IdempotencyKey: TypeAlias = Annotated[
    str, Header(alias="Idempotency-Key", description="Repeating a call with the same key and the same body changes nothing.")
]

APPLIED_SECONDS_MAX: Final = 1.0  # that an answer waits for the gateways; they follow the log by milliseconds
APPLIED_INTERVAL_SECONDS: Final = 0.01  # between the first two looks; twice as long each time, since a look costs a gateway work

Answer: TypeAlias = dict[str, "str | int | bool | list[str] | None"]

_FOLLOWED: Final = (
    AgentRevoked,
    AgentRetired,
    AllRevoked,
    SubjectRevoked,
    GroupRevoked,
    SessionRevoked,
    GrantRevoked,
    GrantNarrowed,
    AgentThrottled,
    AgentHeld,
    AgentUnthrottled,
    AgentReleased,
)
"""Takes something away, or lets go of what is held back. The answer says whether every gateway knows."""

_STATUS_OF: Final = {"invalid": 422, "missing": 404, "forbidden": 403, "conflict": 409}
THROUGH_HEADER: Final = "Pgwarden-Through"
ROLE_IN_OPENAPI: Final = "x-pgwarden-role"  # of each route, for programs that read what the API says of itself
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_JSON: Final = re.compile(r"application/json\s*(;.*)?", re.IGNORECASE)
_log: Final = logging.getLogger(__name__)


# -- bodies ----------------------------------------------------------------------------------------------------------------------


class _Body(BaseModel):
    # A misspelt field is an error, not a grant that is wider than was meant; "5" is no number.
    model_config = ConfigDict(extra="forbid", strict=True)


class AgentBody(_Body):
    agent: str
    description: str = ""
    owner: str
    issuer: str = ""
    client: str = ""
    subject: str = ""
    key: bool = False


class ReasonBody(_Body):
    reason: str


class ReinstateBody(_Body):
    reason: str = ""


class ThrottleBody(_Body):
    per_minute: int
    reason: str


class ResponseBody(_Body):
    detector: str
    agent: str = "*"
    response: str


class SessionBody(_Body):
    reason: str
    agent: str = ""


class SubjectBody(_Body):
    issuer: str
    subject: str
    reason: str


class ReinstateSubjectBody(_Body):
    issuer: str
    subject: str
    reason: str = ""


class GroupBody(_Body):
    issuer: str
    group: str
    reason: str


class ReinstateGroupBody(_Body):
    issuer: str
    group: str
    reason: str = ""


class RuleBody(_Body):
    schema_: str = Field(alias="schema")
    tables: list[str]
    operations: list[str]


class ScopeBody(_Body):
    connection: str
    rules: list[RuleBody] = []
    functions: list[str] = []
    channels: list[str] = []
    introspection: bool = False


class GrantBody(_Body):
    agent: str
    scope: ScopeBody
    seconds: int = 0
    reason: str


class NarrowBody(_Body):
    scope: ScopeBody
    reason: str


class SourceBody(_Body):
    source: str
    kind: str
    roles: list[str]
    reason: str
    server: str = ""
    client: str = ""
    executable: str = ""
    application_name: str = ""


# -- routes ----------------------------------------------------------------------------------------------------------------------


def router(registrar: Registrar, authenticate: Authenticate, applied: Applied, agent_of: AgentOf) -> APIRouter:
    """The commands. Each call is authenticated before its body is read."""
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    async def answered(request: Request, command: Command, key: str, status: int) -> JSONResponse:
        if key and (commands.IDEMPOTENCY_KEY.fullmatch(key) is None or key.startswith((CONFIG_KEY_PREFIX, commands.OURS))):
            reserved = f"neither {CONFIG_KEY_PREFIX} nor {commands.OURS} first"
            raise HTTPException(422, f"Idempotency-Key: write 1 to 128 visible ASCII characters, {reserved}")
        outcome = await registrar.carry_out(command, key, operator_of(request).id)
        match outcome:
            case Done(event, repeated, new_key):
                headers = {"Idempotency-Replayed": "true"} if repeated else {}
                answer = _answer(event, new_key)
                if isinstance(event, _FOLLOWED):
                    waiting_for = await _waiting_for(applied, event.at_us)
                    answer |= {"applied": not waiting_for, "waiting_for": sorted(waiting_for)}
                return JSONResponse(answer, status, headers)
            case Rejected(kind, error, problems):
                return _error(_STATUS_OF[kind], error, problems)
            case Unrecorded(reason, may_follow):
                _log.error("a command was not recorded: %s", reason)
                if may_follow:
                    wait = "The log is slow to record this; it may still take effect. Repeat it with the same Idempotency-Key."
                else:
                    wait = "The log takes no records now, so nothing was changed. Try again when GET /v1/health says that it does."
                return _error(503, wait, headers={"Retry-After": "2"})
            case _:
                assert_never(outcome)

    @routes.post("/agents", status_code=201, summary="Register an agent")
    @needs("administrator")
    async def register(request: Request, body: AgentBody, idempotency_key: IdempotencyKey = "") -> Response:
        command = commands.RegisterAgent(body.agent, body.description, body.owner, body.issuer, body.client, body.subject, body.key)
        return await answered(request, command, idempotency_key, 201)

    @routes.post("/agents/{agent}/key", status_code=201, summary="Give an agent a new key; the old one opens nothing any more")
    @needs("administrator")
    async def replace_key(request: Request, agent: str, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReplaceKey(agent), idempotency_key, 201)

    @routes.post("/agents/{agent}/revoke", summary="Stop an agent now: its sessions end, and it can open none")
    @needs("responder")
    async def revoke(request: Request, agent: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RevokeAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/agents/{agent}/reinstate", summary="Take a revocation back")
    @needs("responder")
    async def reinstate(request: Request, agent: str, body: ReinstateBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReinstateAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/agents/{agent}/throttle", summary="Let an agent send so many statements a minute at each gateway, and no more")
    @needs("responder")
    async def throttle(request: Request, agent: str, body: ThrottleBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ThrottleAgent(agent, body.per_minute, body.reason), idempotency_key, 200)

    @routes.post("/agents/{agent}/unthrottle", summary="Take that back")
    @needs("responder")
    async def unthrottle(request: Request, agent: str, body: ReinstateBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.UnthrottleAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/agents/{agent}/hold", summary="Refuse an agent's statements until it is released; its sessions stay")
    @needs("responder")
    async def hold(request: Request, agent: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.HoldAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/agents/{agent}/release", summary="Release an agent that is held")
    @needs("responder")
    async def release(request: Request, agent: str, body: ReinstateBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReleaseAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/responses", summary="Choose what a detector's findings of an agent lead to by themselves")
    @needs("administrator")
    async def choose(request: Request, body: ResponseBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ChooseResponse(body.detector, body.agent, body.response), idempotency_key, 200)

    @routes.post("/agents/{agent}/retire", summary="Offboard an agent for good")
    @needs("administrator")
    async def retire(request: Request, agent: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RetireAgent(agent, body.reason), idempotency_key, 200)

    @routes.post("/grants", status_code=201, summary="Ask for a grant")
    @needs("administrator")
    async def request_grant(request: Request, body: GrantBody, idempotency_key: IdempotencyKey = "") -> Response:
        command = commands.RequestGrant(body.agent, _scope(body.scope), body.seconds, body.reason)
        return await answered(request, command, idempotency_key, 201)

    @routes.post("/grants/{grant}/approve", summary="Approve a grant that somebody else asked for")
    @needs("administrator")
    async def approve(request: Request, grant: str, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ApproveGrant(grant), idempotency_key, 200)

    @routes.post("/grants/{grant}/deny", summary="Deny a grant that somebody else asked for")
    @needs("administrator")
    async def deny(request: Request, grant: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.DenyGrant(grant, body.reason), idempotency_key, 200)

    @routes.post("/grants/{grant}/revoke", summary="Take a grant back: sessions that rest on it end")
    @needs("responder")
    async def revoke_grant(request: Request, grant: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RevokeGrant(grant, body.reason), idempotency_key, 200)

    @routes.post("/grants/{grant}/narrow", summary="Leave a grant only a part of what it allows, in open sessions too")
    @needs("responder")
    async def narrow(request: Request, grant: str, body: NarrowBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.NarrowGrant(grant, _scope(body.scope), body.reason), idempotency_key, 200)

    @routes.post("/sessions/{session}/revoke", summary="End one session; its agent may open another")
    @needs("responder")
    async def revoke_session(request: Request, session: str, body: SessionBody, idempotency_key: IdempotencyKey = "") -> Response:
        agent = await agent_of(session)
        if agent and body.agent and agent != body.agent:
            raise HTTPException(422, "agent: this session is another agent's; write that, or leave it out")
        if not (agent or body.agent):
            missing = "this session is not in the tables (yet); if you know that it is open, write whose it is as agent"
            raise HTTPException(404, missing)
        return await answered(request, commands.RevokeSession(session, agent or body.agent, body.reason), idempotency_key, 200)

    @routes.post("/subjects/revoke", summary="Stop whoever acts as this subject of an issuer, or on behalf of it")
    @needs("responder")
    async def revoke_subject(request: Request, body: SubjectBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RevokeSubject(body.issuer, body.subject, body.reason), idempotency_key, 200)

    @routes.post("/subjects/reinstate", summary="Take the revocation of a subject back")
    @needs("responder")
    async def reinstate_subject(request: Request, body: ReinstateSubjectBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReinstateSubject(body.issuer, body.subject, body.reason), idempotency_key, 200)

    @routes.post("/groups/revoke", summary="Stop whoever acts with a token that names this group of an issuer")
    @needs("responder")
    async def revoke_group(request: Request, body: GroupBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RevokeGroup(body.issuer, body.group, body.reason), idempotency_key, 200)

    @routes.post("/groups/reinstate", summary="Take the revocation of a group back")
    @needs("responder")
    async def reinstate_group(request: Request, body: ReinstateGroupBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReinstateGroup(body.issuer, body.group, body.reason), idempotency_key, 200)

    @routes.post("/all/revoke", summary="Stop everything: every session ends, and none is opened")
    @needs("administrator")
    async def revoke_all(request: Request, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.RevokeAll(body.reason), idempotency_key, 200)

    @routes.post("/all/reinstate", summary="Let those act again who are not revoked one by one")
    @needs("administrator")
    async def reinstate_all(request: Request, body: ReinstateBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.ReinstateAll(body.reason), idempotency_key, 200)

    @routes.post("/sources", status_code=201, summary="Declare connections round the gateway that are meant to be")
    @needs("administrator")
    async def declare_source(request: Request, body: SourceBody, idempotency_key: IdempotencyKey = "") -> Response:
        command = commands.DeclareSource(
            body.source,
            body.kind,
            tuple(body.roles),
            body.reason,
            body.server,
            body.client,
            body.executable,
            body.application_name,
        )
        return await answered(request, command, idempotency_key, 201)

    @routes.post("/sources/{source}/withdraw", summary="Take the declaration of a source back")
    @needs("administrator")
    async def withdraw_source(request: Request, source: str, body: ReasonBody, idempotency_key: IdempotencyKey = "") -> Response:
        return await answered(request, commands.WithdrawSource(source, body.reason), idempotency_key, 200)

    return routes


async def _waiting_for(applied: Applied, at_us: int) -> Sequence[str]:
    """Which gateways do not act on it yet, when all do or when the time is up."""
    waiting: Sequence[str] = ("unknown",)  # whoever cannot even be asked in time
    interval = APPLIED_INTERVAL_SECONDS
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(APPLIED_SECONDS_MAX):
            while waiting := await applied(at_us):
                await asyncio.sleep(interval)
                interval *= 2
    return waiting


def guarded(authenticate: Authenticate) -> type[APIRoute]:
    """A route that knows its operator, and whether their role allows it, before it looks at anything else, and whose errors are
    `{"error": one sentence}`. Its function says `@needs(role)`; without that it is shut to everybody."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[None, None, Response]]:
            needed = needed_by(self.endpoint)
            self.openapi_extra = {**(self.openapi_extra or {}), ROLE_IN_OPENAPI: needed}
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                peer = request.client.host if request.client is not None else ""
                operator = await authenticate(request.headers.get("authorization", ""), peer)
                if isinstance(operator, Refusal):
                    _log.warning("%s %s refused to %s: %s", request.method, self.path, peer, operator.reason)
                    return _unauthenticated(operator)
                if needed is None or not allows(operator.role, needed):
                    _log.warning("%s %s refused to %s, a %s", request.method, self.path, operator.id, operator.role)
                    return _error(403, _forbidden(operator.role, needed))
                request.state.operator = operator
                through = request.headers.get(THROUGH_HEADER, "api")
                if through not in THROUGH:
                    return _error(422, f"{THROUGH_HEADER}: write one of {', '.join(THROUGH)}, or leave the header out")
                if _has_body(request) and _JSON.fullmatch(request.headers.get("content-type", "")) is None:
                    return _error(415, "Send the body as JSON, with Content-Type: application/json.")
                try:
                    answer = await handle(Request(request.scope, _limited(request)))
                except RequestValidationError as error:
                    answer = _invalid_body(error)
                except HTTPException as error:
                    answer = _error(error.status_code, str(error.detail))
                looked = getattr(request.state, "looked", None)
                if is_look(self.endpoint, request.method) and (answer.status_code < 400 or looked is not None):
                    request.state.look = _look(request, looked or Looked(), self.name, operator, through)
                return answer

            return guard

    return Guarded


def _forbidden(role: Role, needed: Role | None) -> str:
    if needed is None:
        return "No role may call this route: it declares none, which is a mistake in pgwarden."
    return f"This wants the role {needed}, and yours is {role}: ask an administrator, or sign in as somebody who has it."


def _limited(request: Request) -> Receive:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > BODY_BYTES_MAX:
            raise HTTPException(413, f"The body is larger than {BODY_BYTES_MAX} bytes; send less at a time.")
        return message

    return receive


def operator_of(request: Request) -> Operator:
    """Who called a guarded route."""
    operator = request.state.operator
    assert isinstance(operator, Operator)
    return operator


@dataclass(frozen=True, slots=True)
class Looked:
    """What a route showed of the record. A route that does not say it is recorded under its own name and with all it was given."""

    rows: int = -1  # -1 = not counted
    question: str = ""  # "" = the route's name
    parameters: Mapping[str, object] | None = None  # None = those of the path and of the query


def looked(request: Request, what: Looked) -> None:
    """Say what the answer shows; a refusal is then recorded as well, for it may repeat a value that it stumbled over."""
    request.state.looked = what


def _look(request: Request, what: Looked, route: str, operator: Operator, through: Through) -> Look:
    given = {**request.query_params, **request.path_params} if what.parameters is None else what.parameters
    request.state.look_rows = what.rows
    return Look(operator.id, what.question or route, json.dumps(given, ensure_ascii=False, sort_keys=True), through)


def iso(at_us: int) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _scope(body: ScopeBody) -> Scope:
    rules = tuple(Rule(rule.schema_, tuple(rule.tables), tuple(rule.operations)) for rule in body.rules)
    return Scope(body.connection, rules, tuple(body.functions), tuple(body.channels), body.introspection)


# -- answers ---------------------------------------------------------------------------------------------------------------------


def _answer(event: IdentityEvent, new_key: str) -> Answer:
    """The same for the same event, whether it was recorded now or by an earlier call; only a new key is never shown again."""
    match event:
        case AgentRegistered():
            answer: Answer = {"agent": event.agent, "state": "active", "registered_at": iso(event.at_us)}
            return answer | ({"key_id": event.key_id, "key": new_key or None} if event.key_id else {})
        case AgentKeyReplaced():
            return {"agent": event.agent, "replaced_at": iso(event.at_us), "key_id": event.key_id, "key": new_key or None}
        case AgentRevoked():
            return {"agent": event.agent, "state": "revoked", "revoked_at": iso(event.at_us), "reason": event.reason}
        case AgentReinstated():
            return {"agent": event.agent, "state": "active", "reinstated_at": iso(event.at_us), "reason": event.reason}
        case AgentRetired():
            return {"agent": event.agent, "state": "retired", "retired_at": iso(event.at_us), "reason": event.reason}
        case GrantRequested():
            asked: Answer = {"grant": event.grant, "agent": event.agent, "state": "requested", "requested_by": event.requested_by}
            return asked | {"requested_at": iso(event.at_us)}
        case GrantApproved():
            approved: Answer = {"grant": event.grant, "agent": event.agent, "state": "approved", "approver": event.approver}
            expires_at = iso(event.expires_at_us) if event.expires_at_us else None
            return approved | {"approved_at": iso(event.at_us), "expires_at": expires_at}
        case GrantDenied():
            denied: Answer = {"grant": event.grant, "agent": event.agent, "state": "denied", "reason": event.reason}
            return denied | {"denied_at": iso(event.at_us)}
        case GrantRevoked():
            revoked: Answer = {"grant": event.grant, "agent": event.agent, "state": "revoked", "reason": event.reason}
            return revoked | {"revoked_at": iso(event.at_us)}
        case GrantNarrowed():
            narrowed: Answer = {"grant": event.grant, "agent": event.agent, "state": "approved", "reason": event.reason}
            return narrowed | {"narrowed_at": iso(event.at_us)}
        case SessionRevoked():
            ended: Answer = {"session": event.session, "agent": event.agent, "state": "revoked", "reason": event.reason}
            return ended | {"revoked_at": iso(event.at_us)}
        case SubjectRevoked() | SubjectReinstated():
            return {"issuer": event.issuer, "subject": event.subject} | _turned(event, isinstance(event, SubjectRevoked))
        case GroupRevoked() | GroupReinstated():
            return {"issuer": event.issuer, "group": event.group} | _turned(event, isinstance(event, GroupRevoked))
        case AllRevoked() | AllReinstated():
            return _turned(event, isinstance(event, AllRevoked))
        case AgentThrottled():
            throttled: Answer = {"agent": event.agent, "state": "throttled", "per_minute": event.per_minute}
            return throttled | {"throttled_at": iso(event.at_us), "reason": event.reason}
        case AgentUnthrottled():
            return {"agent": event.agent, "state": "unthrottled", "unthrottled_at": iso(event.at_us), "reason": event.reason}
        case AgentHeld():
            return {"agent": event.agent, "state": "held", "held_at": iso(event.at_us), "reason": event.reason}
        case AgentReleased():
            return {"agent": event.agent, "state": "released", "released_at": iso(event.at_us), "reason": event.reason}
        case ResponseChosen():
            chosen: Answer = {"detector": event.detector, "agent": event.agent, "response": event.response}
            return chosen | {"operator": event.operator, "chosen_at": iso(event.at_us)}
        case SourceDeclared():
            declared: Answer = {"source": event.source, "kind": event.kind, "state": "declared", "reason": event.reason}
            return declared | {"declared_at": iso(event.at_us)}
        case SourceWithdrawn():
            withdrawn: Answer = {"source": event.source, "state": "withdrawn", "reason": event.reason}
            return withdrawn | {"withdrawn_at": iso(event.at_us)}
        case _:
            assert_never(event)


def _turned(
    event: AllRevoked | AllReinstated | SubjectRevoked | SubjectReinstated | GroupRevoked | GroupReinstated, revoked: bool
) -> Answer:
    if revoked:
        return {"state": "revoked", "revoked_at": iso(event.at_us), "reason": event.reason}
    return {"state": "active", "reinstated_at": iso(event.at_us), "reason": event.reason}


def _error(status: int, sentence: str, problems: tuple[str, ...] = (), headers: dict[str, str] | None = None) -> JSONResponse:
    content: dict[str, object] = {"error": sentence}
    if problems:
        content["problems"] = list(problems[:PROBLEMS_MAX])
    return JSONResponse(content, status, headers)


def _unauthenticated(refusal: Refusal) -> JSONResponse:
    # What exactly was wrong is for the log: it would help whoever tries.
    if isinstance(refusal, Throttled):
        sentence = f"Too many failed attempts from this address; wait {refusal.retry_after_seconds} s."
        return _error(429, sentence, headers={"Retry-After": str(refusal.retry_after_seconds)})
    sentence = "Send Authorization: Bearer with an operator key, or with the access token of a person in an operator group."
    return _error(401, sentence, headers={"WWW-Authenticate": 'Bearer realm="pgwarden"'})  # RFC 9110 §11.6.1


def _invalid_body(error: RequestValidationError) -> JSONResponse:
    problems: list[str] = []
    for problem in error.errors()[:PROBLEMS_MAX]:
        where = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
        # Names and positions only: the value is the caller's, and may be a secret in the wrong place.
        problems.append(f"{where[:120].encode('unicode_escape').decode('ascii')}: {problem['msg']}")
    sentence = problems[0] if len(problems) == 1 else f"the body has {len(problems)} problems: {problems[0]}"
    return _error(422, sentence, tuple(problems))


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
