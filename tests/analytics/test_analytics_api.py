from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from analytics.api import router
from analytics.guarded_sql import GuardedSql
from analytics.inspector import InspectionStatus
from analytics.queries import QUESTIONS, Queries
from analytics.reconcile import Reconcile
from analytics.reconciliation.state import COUNTED
from analytics.runner import Lag, Position
from analytics.settings import AnalyticsSettings, ReconcileSettings
from analytics.store import Store
from identity.operators import Operator
from identity.refusal import Refusal
from ingest.events import AllReinstated, AllRevoked
from ingest.log.segments import SegmentLog
from tests.analytics.reconcile_world import World as History
from tests.analytics.scenario import MINUTE, OBSERVED, START_US, Writer
from tests.analytics.test_projections import ingest_all

IDLE_LAG = Lag(0, 0.0, 0, 0, 1, True, "", "")
GATEWAY: Mapping[str, object] = {
    "gateway": "gw-1",
    "boot": 2,
    "pid": 42,
    "started_us": START_US,
    "log": {"available": True, "since_us": 0, "reason": "", "refused": 0, "pending_bytes": 7},
    "sessions": [{"session": "s3", "agent": "loader", "state": "in transaction"}],
    "counters": {"statements": 5, "denied": 1},
}


class World:
    """What the API is told by others; a test changes it."""

    def __init__(self) -> None:
        self.gateways: list[Mapping[str, object]] = [GATEWAY]
        self.asked = 0
        self.lag = IDLE_LAG
        self.positions = [Position("witness", 0, 9, 7)]
        self.inspections: list[InspectionStatus] = []

    async def statuses(self) -> Sequence[Mapping[str, object]]:
        self.asked += 1
        return self.gateways


async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
    if authorization == "Bearer right":
        return Operator("alice", "alice", "key", "administrator", "")
    return Refusal("no such key")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def api(store: Store, told: AnalyticsSettings, world: World) -> AsyncIterator[httpx.AsyncClient]:
    queries = Queries(store, told, lambda: START_US + 10 * MINUTE)
    guarded = GuardedSql(store, told)
    app = FastAPI()
    app.include_router(
        router(
            queries,
            guarded,
            authenticate,
            world.statuses,
            lambda: world.lag,
            inspections=lambda: world.inspections,
            positions=lambda: world.positions,
        )
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers={"Authorization": "Bearer right"}) as client:
        yield client
    queries.close()
    await guarded.close()


async def items(api: httpx.AsyncClient, path: str) -> list[dict[str, object]]:
    answer = await api.get(path)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"items", "next"}
    found = body["items"]
    assert isinstance(found, list)
    return found


PATHS = [
    "/v1/health",
    "/v1/agents",
    "/v1/agents/unused",
    "/v1/agents/reporter",
    "/v1/grants",
    "/v1/sessions",
    "/v1/sessions/s1",
    "/v1/sessions/s1/timeline",
    "/v1/statements",
    "/v1/statements/s1/1",
    "/v1/rates",
    "/v1/findings",
    "/v1/findings/f-1",
    "/v1/mutes",
    "/v1/questions",
    "/v1/questions/kills",
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_wants_an_operator(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).status_code == 200
    refused = await api.get(path, headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401
    assert set(refused.json()) == {"error"}


async def test_sql_wants_an_operator(api: httpx.AsyncClient) -> None:
    assert (await api.post("/v1/sql", json={"sql": "select 1"}, headers={"Authorization": ""})).status_code == 401


async def test_agents_and_one_of_them_with_its_grants(api: httpx.AsyncClient) -> None:
    assert [item["agent"] for item in await items(api, "/v1/agents")] == ["idle", "loader", "reporter"]
    assert [item["agent"] for item in await items(api, "/v1/agents/unused?days=3")] == ["idle"]
    one = (await api.get("/v1/agents/reporter")).json()
    assert (one["agent"], one["denied"], [grant["grant"] for grant in one["grants"]]) == ("reporter", 1, ["g-reporter"])


@pytest.mark.parametrize("path", ["/v1/agents/nobody", "/v1/sessions/nothing", "/v1/findings/f-9", "/v1/statements/s1/99"])
async def test_what_is_not_there_is_404(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)
    assert answer.status_code == 404
    assert "there is no" in answer.json()["error"]


async def test_sessions_live_and_all(api: httpx.AsyncClient) -> None:
    assert [item["session"] for item in await items(api, "/v1/sessions?live=true")] == ["s3"]
    assert [item["session"] for item in await items(api, "/v1/sessions?live=false")] == ["s3", "s2", "s1"]
    assert [item["session"] for item in await items(api, "/v1/sessions?agent=reporter&live=true")] == []
    assert [item["state"] for item in await items(api, "/v1/sessions?agent=reporter")] == ["killed"]


async def test_a_live_sessions_state_is_its_gateways_word(api: httpx.AsyncClient, world: World) -> None:
    assert (await api.get("/v1/sessions/s3")).json()["state"] == "in transaction"


async def test_a_live_session_that_no_gateway_knows_is_just_live(api: httpx.AsyncClient, world: World) -> None:
    world.gateways = []
    assert (await api.get("/v1/sessions/s3")).json()["state"] == "live"


async def test_gateways_are_not_asked_for_each_call(api: httpx.AsyncClient, world: World) -> None:
    for _ in range(3):
        await api.get("/v1/sessions?live=true")
    assert world.asked == 1


async def test_statements_in_pages(api: httpx.AsyncClient) -> None:
    first = (await api.get("/v1/statements?limit=4")).json()
    second = (await api.get("/v1/statements", params={"limit": 4, "before": first["next"]})).json()
    assert (len(first["items"]), len(second["items"]), second["next"]) == (4, 2, None)
    assert (await items(api, "/v1/statements?decision=deny&agent=reporter"))[0]["reason"] == "secrets is not in your scope"


async def test_an_empty_parameter_is_none(api: httpx.AsyncClient) -> None:
    assert len(await items(api, "/v1/statements?agent=&decision=&before=")) == 6


@pytest.mark.parametrize(
    "path",
    [
        "/v1/statements?agnet=reporter",
        "/v1/statements?agent=a&agent=b",
        "/v1/statements?limit=1001",
        "/v1/sessions?live=yes",
        "/v1/agents/unused?days=soon",
        "/v1/questions/nonsense",
    ],
)
async def test_a_wrong_parameter_is_an_error_and_no_wider_answer(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error"}


async def test_a_timeline_and_one_statement(api: httpx.AsyncClient) -> None:
    timeline = await items(api, "/v1/sessions/s1/timeline")
    assert {"at", "kind", "text"} <= set(timeline[0])
    assert (await api.get("/v1/statements/s1/2")).json()["text"] == "SELECT * FROM secrets"


async def test_questions_name_themselves_and_answer(api: httpx.AsyncClient) -> None:
    named = await items(api, "/v1/questions")
    assert [item["name"] for item in named] == list(QUESTIONS)
    assert (await items(api, "/v1/questions/kills?agent=reporter"))[0]["backend_gone_after_us"] == 80_000


async def test_sql_is_answered_or_refused_with_a_sentence(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/sql", json={"sql": "select count(*) as n from statements"})
    assert (answer.status_code, answer.json()["rows"], answer.json()["truncated"]) == (200, [[6]], False)
    for sql in ("delete from texts", "select 1; select 2", "select * from read_text('/etc/passwd')"):
        refused = await api.post("/v1/sql", json={"sql": sql})
        assert (refused.status_code, set(refused.json())) == (422, {"error"})
    assert (await api.post("/v1/sql", json={"sql": 1})).status_code == 422
    assert (await api.post("/v1/sql", json={"sql": "select 1", "as": "root"})).status_code == 422


async def test_health_is_ok_when_all_is_recorded_enforced_and_projected(api: httpx.AsyncClient) -> None:
    health = (await api.get("/v1/health")).json()
    assert (health["status"], health["problems"], health["gaps"]) == ("ok", [], 0)
    assert health["log"] == {
        "available": True,
        "since_at": None,
        "reason": "",
        "refused": 0,
        "pending_bytes": 7,
        "backlog_bytes": 0,
    }
    assert health["gateways"][0]["sessions"] == 1
    assert health["projection"] == {"lag_records": 0, "lag_us": 0, "error": ""}
    assert health["enforcement"]["live_sessions"] == 1


async def test_health_tells_that_nothing_can_be_recorded(api: httpx.AsyncClient, world: World) -> None:
    log = {"available": False, "since_us": START_US, "reason": "the disk is full", "refused": 3, "pending_bytes": 0}
    world.gateways = [{**GATEWAY, "log": log}]
    health = (await api.get("/v1/health")).json()
    assert health["status"] == "degraded"
    assert health["log"]["available"] is False
    assert (health["log"]["since_at"], health["log"]["refused"]) == ("2026-11-18T11:06:40.000000Z", 3)
    assert "the disk is full" in health["problems"][0]


async def test_health_tells_of_a_gateway_that_does_not_answer(api: httpx.AsyncClient, world: World) -> None:
    world.gateways = [{"gateway": "gw-1", "reachable": False, "reason": "no socket"}]
    health = (await api.get("/v1/health")).json()
    assert (health["status"], health["log"]) == ("degraded", None)
    assert "no socket" in health["problems"][0]


async def test_health_tells_for_as_long_as_everything_is_revoked(api: httpx.AsyncClient, store: Store, log: SegmentLog) -> None:
    operators = Writer(log, "api", 2, START_US + 10 * MINUTE)
    operators.add("*", AllRevoked(operators.at(), "break glass", "alice"))
    await operators.write()
    await ingest_all(log, store)
    health = (await api.get("/v1/health")).json()
    assert health["status"] == "degraded"
    assert health["problems"] == [
        "everything is revoked since 2026-11-18 11:16:40 by alice (break glass): nobody can open a session until pgwarden reinstate --all"
    ]
    operators.add("*", AllReinstated(operators.at(1), "over", "alice"))
    await operators.write()
    await ingest_all(log, store)
    assert (await api.get("/v1/health")).json()["problems"] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seconds": 61.0}, "61 s behind"),
        ({"projection_error": "the log is damaged"}, "stand still"),
        ({"enforcement_error": "the log is damaged"}, "enforcement"),
    ],
)
async def test_health_tells_of_a_runner_in_trouble(
    api: httpx.AsyncClient, world: World, change: dict[str, str | float], word: str
) -> None:
    world.lag = replace(IDLE_LAG, **change)  # type: ignore[arg-type]
    health = (await api.get("/v1/health")).json()
    assert health["status"] == "degraded"
    assert word in health["problems"][0]


async def test_a_store_that_does_not_answer_is_503_and_shows_in_health(api: httpx.AsyncClient, store: Store) -> None:
    store.close()
    answer = await api.get("/v1/agents")
    assert answer.status_code == 503
    assert set(answer.json()) == {"error"}
    assert (await api.get("/v1/health")).json()["status"] == "degraded"


async def test_coverage_tells_what_reconciliation_has_compared_and_every_figure_has_a_line_in_the_documents(
    api: httpx.AsyncClient, world: World
) -> None:
    step = Reconcile(ReconcileSettings())
    for at_us, record, frame in History(1, sessions=3).frames():
        step.step(record, frame, at_us)
        step.tick(at_us)
    world.inspections = [InspectionStatus("detectors", 0, True, 0, "", {"agents": 2})]
    world.inspections += [InspectionStatus(step.name, 0, True, 0, "", step.status())]
    figures = (await api.get("/v1/coverage")).json()["reconciliation"]
    assert figures["statements_matched"] > 10
    assert (figures["gateway_sessions"], figures["sessions_audited"], figures["sessions_shadow"]) == (3, 3, 0)
    documented = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
    assert [name for name in figures if f"| `{name}` |" not in documented] == []
    assert set(COUNTED) < set(figures)


async def test_coverage_tells_how_far_log_and_tables_are(api: httpx.AsyncClient) -> None:
    answer = (await api.get("/v1/coverage")).json()
    assert answer == {
        "items": [],
        "next": None,
        "topics": [{"topic": "witness", "partition": 0, "log_offset": 9, "table_offset": 7, "behind": 2}],
        "reconciliation": {},
    }
    for path in ("/v1/coverage/gaps", "/v1/observations/statements?session_id=1.1"):
        assert (await api.get(path)).json() == {"items": [], "next": None}, path


async def test_what_a_collector_saw_and_what_may_go_round_the_gateway_is_listed(api: httpx.AsyncClient) -> None:
    (session,) = (await api.get("/v1/observations/sessions")).json()["items"]
    assert (session["session_id"], session["witnesses"], session["verdict"]) == (OBSERVED, ["shop-log"], "pending")
    statements = (await api.get(f"/v1/observations/statements?session_id={OBSERVED}")).json()["items"]
    assert [statement["text"] for statement in statements] == ["SELECT 1", "SELECT * FROM orders"]
    (source,) = (await api.get("/v1/sources")).json()["items"]
    assert (source["source"], source["state"]) == ("nightly-backup", "declared")


async def test_what_sql_may_ask_is_told_without_asking_by_sql(api: httpx.AsyncClient) -> None:
    told = [
        (column["table_name"], column["column_name"], column["data_type"]) for column in await items(api, "/v1/questions/columns")
    ]
    sql = """select table_name, column_name, data_type from information_schema.columns
        where table_schema = 'main' order by table_name, ordinal_position"""
    by_sql = (await api.post("/v1/sql", json={"sql": sql})).json()
    assert "rows" in by_sql, by_sql
    assert told == [tuple(row) for row in by_sql["rows"]]
    assert ("statements", "text", "VARCHAR") in told
