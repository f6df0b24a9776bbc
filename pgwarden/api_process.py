"""`pgwarden api`: takes commands, orders the end of sessions, keeps the tables, answers. Writes four topics: WRITTEN."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import uvicorn
import uvloop
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from analytics import api as analytics_api
from analytics import export_api, findings_api, follow_api, record_api, snapshot_api
from analytics.exports import Exports
from analytics.guarded_sql import GuardedSql
from analytics.inspector import Inspector
from analytics.nobody import UNANSWERED
from analytics.queries import Queries, QuestionFailed, QuestionInvalid
from analytics.runner import Runner
from analytics.settings import AnalyticsSettings
from analytics.snapshots import Snapshots
from analytics.store import Store, TablesBusy
from analytics.triager import Triager
from identity import api as identity_api
from identity import authentication, restraints_api
from identity.api import AgentOf, Applied, Authenticate, guarded, operator_of
from identity.claims import OperatorClaims
from identity.commands import Known
from identity.keys import JwksCache
from identity.look_recorder import LookRecorder, LooksRecorded
from identity.operators import Holder, Operator, Operators
from identity.refusal import Refusal
from identity.registrar import Registrar, Unrecorded
from identity.registry import Registry
from identity.roles import MAY, needs
from ingest.clock import now_us
from ingest.events import IdentityEvent
from ingest.follow import Follower
from ingest.log import EventLog, LogCorrupt, LogLocked, LogUnavailable, Partition
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from pgwarden import first_agents, http_server
from pgwarden.api_figures import Figures
from pgwarden.config import ApiConfig, Config
from pgwarden.gateways import Reports
from pgwarden.http_server import CannotStart, SecurityHeaders, Server, bound
from pgwarden.inspections import DETECTORS, acting, inspections
from pgwarden.logs import open_log, tables_folder
from pgwarden.metrics import render
from pgwarden.neighbours import asked, wrong
from pgwarden.ordering import ordering
from pgwarden.settings import API_SOCKET_FILE, SOCKET_FILE
from pgwarden.status_socket import read_status, serve_status

WRITER: Final = "api"
REPORTING: Final = ("worker", "watchdog")  # themselves, where the log is Kafka
WRITTEN: Final = ("identity", "commands", "findings", "looks")
FIRST_AGENTS_RETRY_SECONDS: Final = 1.0
ALONE_RETRY_SECONDS: Final = 0.25  # after the log was not available
CONNECTIONS_MAX: Final = 256  # people, their scripts and one dashboard
SHUTDOWN_SECONDS_MAX: Final = 3  # for answers that are under way; the supervisor kills after 8
LAST_WORDS_SECONDS_MAX: Final = 3  # for the tables to hold what was recorded until then
STATUS_SECONDS_MAX: Final = 1.5  # for a gateway's answer; the health of the others must not wait longer
APPLIED_SECONDS_MAX: Final = 0.4  # for its word on identities; whoever revokes waits for an answer
AGENT_OF_SECONDS_MAX: Final = 1.0  # for the tables to say whose a session is; a revocation must not wait for them
ACCEPT_CHARACTERS_MAX: Final = 1_000
HEADER_BYTES_MAX: Final = 24 * 2**10  # a token of 16 KB is the largest that a row may allow

_IDENTITY_EVENTS: Final = get_args(IdentityEvent)
_log: Final = logging.getLogger("pgwarden.api")


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    try:
        return uvloop.run(_run(config))
    except (CannotStart, OSError, LogCorrupt, LogLocked, LogUnavailable, TablesBusy) as error:
        sys.stderr.write(f"pgwarden api: {error}\n")
        return 1


async def _run(config: Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.closing(listener(config.api)) as listening:
        async with contextlib.AsyncExitStack() as closing:
            config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = await open_log(config)
            closing.push_async_callback(log.close)
            if isinstance(log, SegmentLog):
                await log.claim(WRITTEN)  # a second API on this log ends here
            boot = now_us()
            recorder = Recorder(log, WRITER, boot, RecorderSettings())
            closing.push_async_callback(recorder.close)
            looks = LookRecorder(recorder, now_us, config.looks)
            registrar = Registrar(Registry(), recorder, known(config), now_us)
            read = await catch_up(log, registrar)
            keys = JwksCache()
            closing.push_async_callback(keys.close)
            settings = AnalyticsSettings(tables_folder(config))
            store = await asyncio.to_thread(Store.open, settings)
            closing.push_async_callback(asyncio.to_thread, store.close)
            runner = Runner(log, store, ordering(recorder), settings, enforce=config.kafka is None)
            queries = Queries(store, settings)
            closing.callback(queries.close)
            guarded_sql = GuardedSql(store, settings)
            closing.push_async_callback(guarded_sql.close)

            snapshots = Snapshots(store, settings)
            inspector = Inspector(log, recorder, inspections(config), acting(registrar), settings)

            triager = Triager(log, recorder, DETECTORS, now_us)
            tasks = {
                loop.create_task(runner.run(), name="runner"),
                loop.create_task(triager.run(), name="triage"),
                loop.create_task(inspector.run(), name="inspector"),
                loop.create_task(snapshots.run(), name="snapshots"),
                loop.create_task(looks.run(), name="looks"),
            }
            gateways: analytics_api.GatewayStatuses = _asked_gateway(config)
            applied: Applied = _applied(config.state / SOCKET_FILE, config.gateway.name)
            reports = Reports(log) if config.kafka is not None else None
            if reports is not None:
                gateways, applied = reports.statuses, reports.waiting_for
                tasks.add(loop.create_task(reports.run(), name="reports"))
                tasks.add(loop.create_task(alone(log, boot, read), name="the only API"))
            authenticate = authenticating(config, keys)
            answers = analytics_api.router(
                queries,
                guarded_sql,
                authenticate,
                gateways,
                runner.lag,
                inspector.status,
                runner.positions,
                _other_processes(config.state, reports),
            )
            exported = export_api.router(Exports(queries, settings), authenticate)
            copied = snapshot_api.router(snapshots, authenticate)
            followed = follow_api.router(log, queries, authenticate, stop.is_set)
            one_record = record_api.router(log, queries, authenticate)
            metrics = _metrics(config.state, authenticate)
            triaged = findings_api.router(triager, authenticate)
            restrained = restraints_api.router(registrar.registry, authenticate)
            routers = (answers, exported, copied, followed, one_record, triaged, restrained, metrics)
            app = application(registrar, authenticate, routers, applied, _agent_of(queries), looks)
            server = Server(http_server.settings(app, CONNECTIONS_MAX, HEADER_BYTES_MAX, SHUTDOWN_SECONDS_MAX))
            # Before the first answer: whoever finds the API up finds the agents of the file registered.
            unrecorded = await first_agents.register(registrar, config.agents)
            if unrecorded is not None:
                # It is wanted most when the log is in trouble: so it answers all the same, and goes on trying.
                tasks.add(loop.create_task(_first_agents(registrar, config, unrecorded), name="first agents"))
            tasks.add(loop.create_task(server.serve([listening]), name="server"))
            figures = Figures(boot, runner, inspector, recorder, queries)
            tasks.add(loop.create_task(figures.run(), name="figures"))
            status = await serve_status(config.state / API_SOCKET_FILE, figures.status)
            closing.callback(status.close)
            _log.info("the API is at http://%s:%s", *listening.getsockname()[:2])

            async def last_words() -> None:
                looks.close()
                await recorder.close()
                await runner.caught_up()

            return await _until(stop, tasks, server, last_words)


async def _until(
    stop: asyncio.Event, tasks: set[asyncio.Task[None]], server: uvicorn.Server, last_words: Callable[[], Awaitable[None]]
) -> int:
    """Wait for a signal, or for the first part that fails; then end the server, the rest, and the runner when the last is told."""
    stopping = asyncio.get_running_loop().create_task(stop.wait(), name="signal")
    running = set(tasks)
    status = 0
    while running and not stopping.done():
        done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & running:
            running.discard(task)
            if (error := task.exception()) is not None or task.get_name() != "first agents":
                _log.critical("%s ended: %r", task.get_name(), error)
                status = 1
        if status:
            break
    server.should_exit = True
    runners = {task for task in running if task.get_name() == "runner"}
    for task in running - runners:
        if task.get_name() != "server":
            task.cancel()
    stopping.cancel()
    await asyncio.wait({stopping, *tasks} - runners, timeout=SHUTDOWN_SECONDS_MAX + 1)
    if runners:
        with contextlib.suppress(TimeoutError, LogUnavailable):
            async with asyncio.timeout(LAST_WORDS_SECONDS_MAX):
                await last_words()
    for task in runners:
        task.cancel()
    await asyncio.wait(tasks, timeout=1)
    return status


# -- what it is made of ----------------------------------------------------------------------------------------------------------


def known(config: Config) -> Known:
    issuers = {name: row.issuer for name, row in config.issuers.items()}
    return Known(frozenset(config.connections), issuers, DETECTORS, UNANSWERED)


async def catch_up(log: EventLog, registrar: Registrar) -> Mapping[Partition, int]:
    """Take in all that this log says of identities, and return the offsets behind it.

    Raises:
        LogCorrupt, LogUnavailable: It cannot be known who may do what, so nothing is decided.
    """
    ends = await log.offsets("identity")
    follower = Follower(log, ("identity",), {})
    try:
        while any(follower.offsets.get(place, 0) < end for place, end in ends.items()):
            for _, frame in await follower.poll(timeout_seconds=0.2):
                for _, event in frame.events:
                    if isinstance(event, _IDENTITY_EVENTS):
                        registrar.apply(event)
        return dict(follower.offsets)
    finally:
        follower.close()


async def alone(log: EventLog, boot: int, offsets: Mapping[Partition, int]) -> None:
    """Return once another API writes identities: what is decided here then rests on half of the truth. Where the log is Kafka
    nothing else sees to it that there is one.
    """
    while True:
        try:
            follower = Follower(log, ("identity",), offsets)
            try:
                while True:
                    for record, frame in await follower.poll():
                        if (frame.writer, frame.boot) != (WRITER, boot):
                            _log.critical("record %d of identity is another API's: run one, which starts anew", record.offset)
                            return
            finally:
                follower.close()
        except LogUnavailable:
            await asyncio.sleep(ALONE_RETRY_SECONDS)


def authenticating(config: Config, keys: JwksCache) -> Authenticate:
    rows = tuple(config.issuers.values())

    async def person(token: str, now_us: int) -> OperatorClaims | Refusal:
        return await authentication.operator(token, rows, keys, now_us)

    holders = {name: Holder(operator.key_sha256, operator.role) for name, operator in config.operators.items()}
    operators = Operators(holders, person)

    async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
        return await operators.authenticate(authorization, peer, now_us())

    return authenticate


def _metrics(state: Path, authenticate: Authenticate) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    @routes.get("/metrics", summary="Metrics of the processes of the API's machine, for Prometheus")
    @needs("viewer", look=False)
    async def metrics(request: Request) -> Response:
        body, content_type = render(await asked(state), request.headers.get("accept", "")[:ACCEPT_CHARACTERS_MAX])
        return Response(body, headers={"content-type": content_type})

    return routes


def _asked_gateway(config: Config) -> analytics_api.GatewayStatuses:
    async def asked() -> Sequence[Mapping[str, object]]:
        return (await gateway_status(config.state / SOCKET_FILE, config.gateway.name),)

    return asked


async def gateway_status(path: Path, name: str) -> Mapping[str, object]:
    """What the gateway of this machine says of itself, or why it says nothing."""
    silent = {"gateway": name, "reachable": False}
    try:
        return await read_status(path, STATUS_SECONDS_MAX)
    except (FileNotFoundError, ConnectionRefusedError):  # the second: one that was killed leaves its socket behind
        return {**silent, "reason": "it does not run: start it with pgwarden gateway"}
    except TimeoutError:
        return {**silent, "reason": f"no answer within {STATUS_SECONDS_MAX:g} s"}
    except (OSError, ValueError) as error:
        return {**silent, "reason": f"its status cannot be read: {error}"}


def _other_processes(state: Path, reports: Reports | None) -> analytics_api.ProcessStates:
    """Of this machine, and those of others that report themselves. Gateways speak for themselves, and for their relays."""

    async def others() -> Sequence[Mapping[str, object]]:
        here = [
            {
                "process": one.process,
                "name": one.name,
                "up": one.status is not None,
                "reason": wrong(one.status) if one.status is not None else one.silence,
            }
            for one in await asked(state, without=("gateway", "relay", "api", *(REPORTING if reports is not None else ())))
        ]
        return here if reports is None else [*here, *reports.processes()]

    return others


def _applied(path: Path, name: str) -> Applied:
    """Whether the gateway of this machine acts on an identity event. One that does not run is not waited for: it lets nobody in."""

    async def applied(at_us: int) -> Sequence[str]:
        try:
            said = await read_status(path, APPLIED_SECONDS_MAX)
        except (FileNotFoundError, ConnectionRefusedError):
            return ()
        except (TimeoutError, OSError, ValueError):
            return (name,)
        knows = said.get("identity_at_us")
        return () if isinstance(knows, int) and knows >= at_us else (name,)

    return applied


def _agent_of(queries: Queries) -> AgentOf:
    async def agent_of(session: str) -> str:
        try:
            async with asyncio.timeout(AGENT_OF_SECONDS_MAX):
                found = (await queries.ask("sessions", {"session": session})).items
        except (TimeoutError, QuestionInvalid, QuestionFailed):
            return ""
        return str(found[0]["agent"]) if found else ""

    return agent_of


def application(
    registrar: Registrar,
    authenticate: Authenticate,
    answers: Sequence[APIRouter],
    applied: Applied,
    agent_of: AgentOf,
    looks: LookRecorder,
) -> FastAPI:
    """Every route asks who calls; there are no pages, and nothing at other paths."""
    app = FastAPI(title="pgwarden", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(identity_api.router(registrar, authenticate, applied, agent_of))
    for answering in answers:
        app.include_router(answering)
    described = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    @described.get("/openapi.json", summary="This API, described for programs")
    @needs("viewer", look=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @described.get("/me", summary="Who calls, and what they may do")
    @needs("viewer", look=False)
    async def me(request: Request) -> JSONResponse:
        caller = operator_of(request)
        answer = {"operator": caller.id, "name": caller.name, "role": caller.role, "may": MAY[caller.role], "issuer": caller.issuer}
        return JSONResponse(answer)

    app.include_router(described)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        sentences = {
            400: "The body cannot be read; send JSON that is nested less deeply.",
            404: "There is nothing at this path; docs/api.md names all there is.",
            405: "This path takes another method.",
        }
        return JSONResponse({"error": sentences.get(error.status_code, str(error.detail))}, error.status_code, error.headers)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The API made a mistake; its log says which. Nothing more was changed."}, 500)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)
    app.add_middleware(LooksRecorded, recorder=looks)
    app.add_middleware(SecurityHeaders)
    return app


def listener(api: ApiConfig) -> socket.socket:
    """As bound()."""
    return bound(api.listen, api.allow_remote, "api")


async def _first_agents(registrar: Registrar, config: Config, unrecorded: Unrecorded | None) -> None:
    while unrecorded is not None:
        _log.error("agents of the configuration are not registered yet: %s", unrecorded.reason)
        await asyncio.sleep(FIRST_AGENTS_RETRY_SECONDS)
        unrecorded = await first_agents.register(registrar, config.agents)
