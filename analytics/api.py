"""The answers over HTTP: questions by name, health, and SQL that somebody wrote, within limits. docs/audit.md describes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict

from analytics.answer_formats import MEDIA_TYPES, Format
from analytics.guarded_sql import GuardedSql, SqlAnswer, SqlRefusal
from analytics.health import Tables, dicts
from analytics.health import health as health_of
from analytics.inspector import InspectionStatus
from analytics.queries import QUESTIONS, Answer, Queries, QuestionFailed, QuestionInvalid, described
from analytics.reconcile import Reconcile
from analytics.reconciliation.state import COUNTED
from analytics.runner import Lag, Position
from identity.api import Authenticate, Looked, guarded, looked, operator_of
from identity.roles import allows, needs

GatewayStatuses: TypeAlias = Callable[[], Awaitable[Sequence[Mapping[str, object]]]]
"""What each gateway says of itself; `{"gateway": id, "reachable": false, "reason": ...}` for one that says nothing."""

ProcessStates: TypeAlias = Callable[[], Awaitable[Sequence[Mapping[str, object]]]]
"""Of each other process: `process`, `name`, `up`, and `reason`, why it is not well or does not answer; "" while it is."""

STATUS_SECONDS: Final = 0.5  # for so long a gateway's word is passed on again: a screen asks for sessions and health at once
STATUS_SECONDS_MAX: Final = 2.0  # for a gateway's answer
HEALTH_ROWS: Final = 1_000  # gaps, and collectors: more are as bad

_STATUS_OF: Final = {"invalid": 422, "limit": 422, "busy": 429, "unavailable": 503}


class SqlBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sql: str


def router(
    queries: Queries,
    guarded_sql: GuardedSql,
    authenticate: Authenticate,
    statuses: GatewayStatuses,
    lag: Callable[[], Lag],
    inspections: Callable[[], Sequence[InspectionStatus]] = tuple,
    positions: Callable[[], Sequence[Position]] = tuple,
    processes: ProcessStates | None = None,
) -> APIRouter:
    """The answers. Each call is authenticated before anything else of it is looked at."""
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))
    gateways = _Gateways(statuses)
    if processes is None:
        processes = _no_others

    async def ask(request: Request, question: str, **fixed: str) -> Answer:
        found = QUESTIONS.get(question)
        if found is not None and not allows(operator_of(request).role, found.role):
            raise HTTPException(403, f"This question wants the role {found.role}; ask somebody who has it.")
        given = given_once(request)
        try:
            asked = {**given, **fixed}
            answer = await queries.ask(question, asked)
        except QuestionInvalid as error:
            raise HTTPException(422, str(error)) from error
        except QuestionFailed as error:
            raise HTTPException(503, str(error)) from error
        if getattr(request.state, "looked", None) is None:  # else this is more on what was asked first
            looked(request, Looked(len(answer.items), question, asked))
        return answer

    async def one(request: Request, question: str, missing: str, **fixed: str) -> dict[str, object]:
        items = (await ask(request, question, **fixed)).items
        if not items:
            raise HTTPException(404, missing)
        return items[0]

    @routes.get("/health", summary="Whether all is recorded, enforced and projected")
    @needs("viewer", look=False)
    async def health() -> Response:
        known, others, tables = await asyncio.gather(gateways.known(), processes(), _tables(queries))
        return _json(health_of(known, others, lag(), inspections(), tables))

    @routes.get("/agents", summary="Agents: state, last seen, live sessions, the last 24 hours")
    @needs("viewer")
    async def agents(request: Request) -> Response:
        return _page(await ask(request, "agents"))

    @routes.get("/agents/unused", summary="Agents never seen, or not for so many days")
    @needs("viewer")
    async def unused_agents(request: Request) -> Response:
        return _page(await ask(request, "unused_agents"))

    @routes.get("/agents/{agent}", summary="One agent, and its grants")
    @needs("viewer")
    async def agent(request: Request, agent: str) -> Response:
        found = await one(request, "agents", f"there is no agent {agent[:100]!r}", agent=agent)
        grants = await ask(request, "grants", agent=agent)
        return _json({**found, "grants": grants.items})

    @routes.get("/grants", summary="Grants: scope, reason, approver, state")
    @needs("viewer")
    async def grants(request: Request) -> Response:
        return _page(await ask(request, "grants"))

    @routes.get("/revocations", summary="What is revoked now: agents, subjects, groups, sessions, everything")
    @needs("viewer")
    async def revocations(request: Request) -> Response:
        return _page(await ask(request, "revocations"))

    @routes.get("/sessions", summary="Sessions, newest first; live=true for those that are open")
    @needs("viewer")
    async def sessions(request: Request) -> Response:
        live = request.query_params.get("live", "")
        if live not in ("", "true", "false"):
            raise HTTPException(422, "live: write true or false")
        rest = Request({**request.scope, "query_string": _without(request, "live")})
        answer = await ask(rest, "live_sessions" if live == "true" else "sessions")
        return _page(Answer([await gateways.with_state(item) for item in answer.items], answer.next))

    @routes.get("/sessions/{session}", summary="One session")
    @needs("viewer")
    async def session(request: Request, session: str) -> Response:
        found = await one(request, "sessions", f"there is no session {session[:100]!r}", session=session)
        return _json(await gateways.with_state(found))

    @routes.get("/sessions/{session}/timeline", summary="One session from its opening to its end")
    @needs("viewer")
    async def timeline(request: Request, session: str) -> Response:
        return _page(await ask(request, "timeline", session=session))

    @routes.get("/statements", summary="Executions, newest first")
    @needs("viewer")
    async def statements(request: Request) -> Response:
        return _page(await ask(request, "statements"))

    @routes.get("/statements/{session}/{execution}", summary="One execution, with the whole text")
    @needs("viewer")
    async def statement(request: Request, session: str, execution: str) -> Response:
        missing = f"there is no execution {execution[:20]} in session {session[:100]!r}"
        return _json(await one(request, "statement", missing, session=session, execution=execution))

    @routes.get("/rates", summary="Per minute and agent: statements, denied, errors, rows")
    @needs("viewer")
    async def rates(request: Request) -> Response:
        return _page(await ask(request, "rates"))

    @routes.get("/findings", summary="What the detectors raised")
    @needs("viewer")
    async def findings(request: Request) -> Response:
        return _page(await ask(request, "findings"))

    @routes.get("/coverage", summary="What each collector sees, and how far log and tables are")
    @needs("viewer")
    async def coverage(request: Request) -> Response:
        answer = await ask(request, "coverage")
        topics = [
            {
                "topic": place.topic,
                "partition": place.partition,
                "log_offset": place.log_offset,
                "table_offset": place.table_offset,
                "behind": max(0, place.log_offset - place.table_offset),
            }
            for place in positions()
        ]
        figures = next((each.figures for each in inspections() if each.name == Reconcile.name), {})
        reconciliation = {**dict.fromkeys(COUNTED, 0), **figures} if figures else {}
        return _json({"items": answer.items, "next": answer.next, "topics": topics, "reconciliation": reconciliation})

    @routes.get("/coverage/gaps", summary="What collectors did not see: lost, blind, not looking")
    @needs("viewer")
    async def coverage_gaps(request: Request) -> Response:
        return _page(await ask(request, "coverage_gaps"))

    @routes.get("/observations/sessions", summary="Sessions that collectors saw, each with its verdict")
    @needs("viewer")
    async def observed_sessions(request: Request) -> Response:
        return _page(await ask(request, "observed_sessions"))

    @routes.get("/observations/statements", summary="What the database ran in one session, as collectors saw it")
    @needs("viewer")
    async def observed_statements(request: Request) -> Response:
        return _page(await ask(request, "observed_statements"))

    @routes.get("/sources", summary="Connections round the gateway that are meant to be")
    @needs("viewer")
    async def sources(request: Request) -> Response:
        return _page(await ask(request, "sources"))

    @routes.get("/findings/{finding}", summary="One finding, and what became of it")
    @needs("viewer")
    async def finding(request: Request, finding: str) -> Response:
        found = await one(request, "findings", f"there is no finding {finding[:100]!r}", finding=finding)
        history = await ask(request, "finding_history", finding=finding)
        return _json({**found, "history": history.items})

    @routes.get("/mutes", summary="What asks nobody for attention now, and until when")
    @needs("viewer")
    async def mutes(request: Request) -> Response:
        return _page(await ask(request, "mutes"))

    @routes.get("/looks", summary="Who read the record")
    @needs("administrator")
    async def looks(request: Request) -> Response:
        return _page(await ask(request, "looks"))

    @routes.get("/questions", summary="The questions that have a name, and what each takes")
    @needs("viewer", look=False)
    async def questions() -> Response:
        return _json({"items": described(), "next": None})

    @routes.get("/questions/{name}", summary="The answer to a question")
    @needs("viewer")
    async def question(request: Request, name: str) -> Response:
        return _page(await ask(request, name))

    @routes.post("/sql", summary="One SELECT on a copy of the tables")
    @needs("viewer", look=True)
    async def sql(request: Request, body: SqlBody) -> Response:
        looked(request, Looked(0, "sql", {"sql": body.sql}))  # also where it is refused: an error may repeat a value
        kind = _format(request.headers.get("accept", ""))
        answer = await guarded_sql.run(body.sql, operator_of(request).id, kind)
        match answer:
            case SqlAnswer():
                looked(request, Looked(answer.rows, "sql", {"sql": body.sql}))
                cut = f"The answer was cut after {answer.rows:,} rows; narrow the query, or say which rows you want with LIMIT."
                headers = {"Pgwarden-Rows": str(answer.rows), "Pgwarden-Snapshot-At": answer.snapshot_at}
                headers |= {"Pgwarden-Notice": cut} if answer.truncated else {}
                return Response(answer.body, media_type=MEDIA_TYPES[kind], headers=headers)
            case SqlRefusal():
                raise HTTPException(_STATUS_OF[answer.kind], answer.reason)

    return routes


def given_once(request: Request) -> dict[str, str]:
    """The parameters of the query that were given a value.

    Raises:
        HTTPException: One is given twice.
    """
    given = dict(request.query_params)
    if len(given) != len(request.query_params.multi_items()):
        raise HTTPException(422, "a parameter is given twice; write it once")
    return {name: value for name, value in given.items() if value}


def _format(accept: str) -> Format:
    """The first that the caller takes. Weights are not looked at: there is nothing to weigh, each says the same."""
    wanted = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    for media_type in wanted:
        for kind, name in MEDIA_TYPES.items():
            if media_type in (name, "*/*", "application/*"):
                return kind
    if wanted:
        raise HTTPException(406, f"Accept: write one of {', '.join(MEDIA_TYPES.values())}")
    return "json"


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _page(answer: Answer) -> Response:
    return _json({"items": answer.items, "next": answer.next})


def _without(request: Request, name: str) -> bytes:
    pairs = request.scope["query_string"].split(b"&")
    return b"&".join(pair for pair in pairs if pair.split(b"=", 1)[0] != name.encode())


# -- the gateways' own word ------------------------------------------------------------------------------------------------------


class _Gateways:
    """Asked at most every STATUS_SECONDS, whoever wants to know."""

    def __init__(self, statuses: GatewayStatuses) -> None:
        self._statuses = statuses
        self._asking = asyncio.Lock()
        self._at = -STATUS_SECONDS
        self._known: Sequence[Mapping[str, object]] = ()
        self._states: dict[str, str] = {}

    async def known(self) -> Sequence[Mapping[str, object]]:
        async with self._asking:
            if time.monotonic() - self._at >= STATUS_SECONDS:
                try:
                    async with asyncio.timeout(STATUS_SECONDS_MAX):
                        self._known = await self._statuses()
                except TimeoutError:
                    self._known = ({"gateway": "", "reachable": False, "reason": f"no answer within {STATUS_SECONDS_MAX:g} s"},)
                self._at = time.monotonic()
                self._states = {
                    str(session.get("session")): str(session.get("state", ""))
                    for status in self._known
                    for session in dicts(status.get("sessions"))
                }
        return self._known

    async def with_state(self, session: dict[str, object]) -> dict[str, object]:
        """A live session's state is what its gateway says: idle, active, in transaction. The tables know no more than `live`."""
        if session.get("state") != "live":
            return session
        await self.known()
        state = self._states.get(str(session.get("session")))
        return {**session, "state": state} if state else session


async def _no_others() -> Sequence[Mapping[str, object]]:
    return ()


async def _tables(queries: Queries) -> Tables | str:
    """Or why they do not answer."""
    try:
        gaps = await queries.ask("recording_gaps", {"limit": HEALTH_ROWS})
        all_revoked = await queries.ask("revocations", {"kind": "all", "limit": 1})
        collectors = await queries.ask("coverage", {"limit": HEALTH_ROWS})
    except QuestionFailed as error:
        return str(error)
    running = [row for row in collectors.items if row["state"] != "stopped"]
    return Tables(sum(item["kind"] == "frames missing" for item in gaps.items), all_revoked.items, running)
