"""The event API over HTTP, on a log of segment files: what is answered is recorded, and what is recorded is who did what."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from identity import agent_keys
from identity.agent_keys import create_operator_key
from identity.api import BODY_BYTES_MAX, router
from identity.claims import OperatorClaims
from identity.commands import Known
from identity.operators import Holder, Operator, Operators
from identity.operators import Settings as OperatorSettings
from identity.refusal import Refusal
from identity.registrar import Registrar, Settings
from identity.registry import Registry
from ingest.events import AgentRegistered, Event, GrantApproved, GrantRequested
from ingest.follow import Follower
from ingest.log.segments import Disk, SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

ALICE, ALICE_SHA256 = create_operator_key()
BOB, BOB_SHA256 = create_operator_key()
VERA, VERA_SHA256 = create_operator_key()
HOLDERS = {
    "alice": Holder(ALICE_SHA256, "administrator"),
    "bob": Holder(BOB_SHA256, "administrator"),
    "vera": Holder(VERA_SHA256, "viewer"),
}
NARROW: dict[str, object] = {
    "connection": "shop",
    "rules": [{"schema": "public", "tables": ["orders"], "operations": ["select"]}],
}
WIDE: dict[str, object] = {
    "connection": "shop",
    "rules": [{"schema": "public", "tables": ["*"], "operations": ["select", "insert"]}],
}
SCOPE: dict[str, object] = {"connection": "shop", "rules": [{"schema": "public", "tables": ["orders"], "operations": ["select"]}]}
PATIENT = Settings()
HASTY = Settings(record_seconds_max=0.2)
DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


class BreakableDisk(Disk):
    """Full while `full`, as a disk is: what was written does not become durable."""

    full = False

    def fdatasync(self, fd: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().fdatasync(fd)


async def no_tokens(token: str, now_us: int) -> OperatorClaims | Refusal:
    return Refusal("no issuer is configured")


@dataclass
class Gateways:
    """What the gateways know, and whose the sessions are that the tables know."""

    knows: dict[str, int] = field(default_factory=dict)  # gateway -> newest identity event; one that is not here knows all
    agents: dict[str, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    follow: bool = False  # all know it by the third look

    async def applied(self, at_us: int) -> Sequence[str]:
        self.asked.append(at_us)
        if self.follow and len(self.asked) >= 3:
            self.knows = dict.fromkeys(self.knows, at_us)
        return [gateway for gateway, known_us in self.knows.items() if known_us < at_us]

    async def agent_of(self, session: str) -> str:
        return self.agents.get(session, "")


@dataclass
class House:
    directory: Path
    log: SegmentLog
    recorder: Recorder
    registry: Registry
    disk: BreakableDisk
    app: FastAPI
    client: httpx.AsyncClient
    gateways: Gateways

    async def post(
        self, path: str, body: object = None, *, by: str = ALICE, key: str = "", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        sent = {"Authorization": f"Bearer {by}"} | ({"Idempotency-Key": key} if key else {}) | (headers or {})
        return (
            await self.client.post(path, json=body, headers=sent)
            if body is not None
            else await self.client.post(path, headers=sent)
        )

    async def agent(self, name: str = "reporter", **fields: object) -> dict[str, str]:
        answer = await self.post("/v1/agents", {"agent": name, "owner": "finance"} | fields)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def grant(self, agent: str = "reporter", *, by: str = ALICE, scope: dict[str, object] = SCOPE) -> str:
        answer = await self.post("/v1/grants", {"agent": agent, "scope": scope, "seconds": 60, "reason": "work"}, by=by)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["grant"])

    async def events(self) -> list[Event]:
        return await recorded(self.directory)


async def recorded(directory: Path) -> list[Event]:
    """What another process reads in the log."""
    reader = SegmentLog(directory, LogSettings())
    found: list[Event] = []
    follower = Follower(reader, ("identity",), {})
    ends = reader.end_offsets("identity")
    while any(follower.offsets[place] < end for place, end in ends.items()):
        for _, frame in await follower.poll(timeout_seconds=1):
            found.extend(event for _, event in frame.events)
    follower.close()
    await reader.close()
    return found


@asynccontextmanager
async def house(directory: Path, boot: int = 1, settings: Settings = PATIENT, failures: int = 1000) -> AsyncIterator[House]:
    disk = BreakableDisk()
    past = await recorded(directory) if directory.exists() else []
    log = SegmentLog(directory, LogSettings(), disk=disk)
    recorder = Recorder(log, "api", boot, RecorderSettings(retry_ms=20))
    known = Known(frozenset({"shop"}), {"keycloak": "https://idp.example"})
    registry = Registry()
    registrar = Registrar(registry, recorder, known, now_us, settings)
    for event in past:
        registrar.apply(event)  # type: ignore[arg-type]
    operators = Operators(HOLDERS, no_tokens, OperatorSettings(failures_burst=failures))

    async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
        return await operators.authenticate(authorization, peer, now_us())

    app = FastAPI()
    gateways = Gateways()
    app.include_router(router(registrar, authenticate, gateways.applied, gateways.agent_of))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield House(directory, log, recorder, registry, disk, app, client, gateways)
    disk.full = False
    await recorder.close()
    await log.close()


def now_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "log") as made:
        yield made


# -- the life of an agent ----------------------------------------------------------------------------------------------------------


async def test_an_agents_whole_life_is_in_the_record_with_who_did_what(api: House) -> None:
    await api.agent(description="reads orders", key=True)
    grant = await api.grant()
    approved = (await api.post(f"/v1/grants/{grant}/approve", by=BOB)).json()
    revoked = (await api.post("/v1/agents/reporter/revoke", {"reason": "odd queries"}, by=BOB)).json()
    reinstated = (await api.post("/v1/agents/reporter/reinstate", {"reason": "explained"})).json()
    replaced = (await api.post("/v1/agents/reporter/key")).json()
    taken = (await api.post(f"/v1/grants/{grant}/revoke", {"reason": "not needed"})).json()
    retired = (await api.post("/v1/agents/reporter/retire", {"reason": "project over"})).json()

    assert (approved["state"], approved["approver"]) == ("approved", "bob")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", approved["expires_at"])
    assert (revoked["state"], reinstated["state"], taken["state"], retired["state"]) == ("revoked", "active", "revoked", "retired")
    assert agent_keys.key_id(replaced["key"]) == replaced["key_id"]
    told = [(type(event).__name__, event.agent) for event in await api.events()]  # type: ignore[union-attr]
    assert told == [
        (name, "reporter")
        for name in (
            "AgentRegistered",
            "GrantRequested",
            "GrantApproved",
            "AgentRevoked",
            "AgentReinstated",
            "AgentKeyReplaced",
            "GrantRevoked",
            "AgentRetired",
        )
    ]
    assert [event.operator for event in await api.events() if hasattr(event, "operator")] == [
        "alice",
        "bob",
        "alice",
        "alice",
        "alice",
        "alice",
    ]


async def test_a_call_is_answered_after_another_process_can_read_its_event(api: House) -> None:
    for number in range(5):
        await api.agent(f"agent-{number}")
        events = await api.events()
        assert isinstance(events[-1], AgentRegistered)
        assert events[-1].agent == f"agent-{number}"


async def test_what_a_call_recorded_the_next_one_sees(api: House) -> None:
    await api.agent()
    assert (await api.post("/v1/agents", {"agent": "reporter", "owner": "x"})).status_code == 409
    grant = await api.grant()
    await api.post(f"/v1/grants/{grant}/approve", by=BOB)
    assert api.registry.grants[grant].live(now_us())


async def test_a_denied_grant_says_who_denied_it_and_why(api: House) -> None:
    await api.agent()
    grant = await api.grant()
    answer = await api.post(f"/v1/grants/{grant}/deny", {"reason": "too wide"}, by=BOB)
    assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "denied", "too wide")
    assert api.registry.grants[grant].ended_by == "bob"


# -- more than one agent, and less -------------------------------------------------------------------------------------------------


async def test_a_revoked_subject_is_recorded_by_its_issuers_url_and_can_be_reinstated(api: House) -> None:
    body = {"issuer": "keycloak", "subject": "ada"}
    revoked = (await api.post("/v1/subjects/revoke", body | {"reason": "left"}, by=BOB)).json()
    assert (revoked["issuer"], revoked["subject"], revoked["state"]) == ("https://idp.example", "ada", "revoked")
    reinstated = (await api.post("/v1/subjects/reinstate", body)).json()
    assert reinstated["state"] == "active"
    events = await api.events()
    assert [type(event).__name__ for event in events] == ["SubjectRevoked", "SubjectReinstated"]
    assert [event.operator for event in events] == ["bob", "alice"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/subjects/revoke", {"issuer": "keyclaok", "subject": "ada", "reason": "x"}, 422, "is not configured; configured are"),
        ("/v1/subjects/revoke", {"issuer": "", "subject": "key:1", "reason": "x"}, 422, "is not configured"),
        ("/v1/subjects/revoke", {"issuer": "keycloak", "subject": "", "reason": "x"}, 422, "subject: missing"),
        ("/v1/groups/revoke", {"issuer": "keycloak", "group": "g" * 513, "reason": "x"}, 422, "at most 512 characters"),
        ("/v1/groups/revoke", {"issuer": "keycloak", "group": "g", "reason": " "}, 422, "reason: missing"),
        ("/v1/groups/reinstate", {"issuer": "keycloak", "group": "g"}, 409, "is not revoked; there is nothing to reinstate"),
        ("/v1/subjects/reinstate", {"issuer": "keycloak", "subject": "s"}, 409, "is not revoked; there is nothing to reinstate"),
        ("/v1/all/reinstate", {}, 409, "what is revoked one by one is reinstated one by one"),
        ("/v1/all/revoke", {}, 422, "reason: Field required"),
        ("/v1/sessions/s-1/revoke", {"reason": "odd"}, 404, "write whose it is as agent"),
        ("/v1/sessions/s-1/revoke", {"reason": "odd", "agent": "ghost"}, 404, "is not registered"),
        ("/v1/sessions/known/revoke", {"reason": "odd", "agent": "ghost"}, 422, "another agent's"),
    ],
)
async def test_a_revocation_that_would_stop_nobody_is_refused_with_a_remedy(
    api: House, path: str, body: object, status: int, error: str
) -> None:
    api.gateways.agents["known"] = "reporter"
    answer = await api.post(path, body)
    assert (answer.status_code, error in answer.json()["error"]) == (status, True), answer.text
    assert await api.events() == []


async def test_whose_a_session_is_need_not_be_said_where_the_tables_know_it(api: House) -> None:
    await api.agent()
    api.gateways.agents["s-1"] = "reporter"
    answer = (await api.post("/v1/sessions/s-1/revoke", {"reason": "odd"})).json()
    assert (answer["session"], answer["agent"], answer["state"]) == ("s-1", "reporter", "revoked")


async def test_a_grant_is_narrowed_to_a_part_of_itself_and_never_widened(api: House) -> None:
    await api.agent()
    grant = await api.grant(scope=WIDE)
    assert (await api.post(f"/v1/grants/{grant}/narrow", {"scope": NARROW, "reason": "less"})).status_code == 409
    await api.post(f"/v1/grants/{grant}/approve", by=BOB)
    answer = await api.post(f"/v1/grants/{grant}/narrow", {"scope": NARROW, "reason": "less"})
    assert (answer.status_code, answer.json()["narrowed_at"] > "2026", answer.json()["applied"]) == (200, True, True)
    assert api.registry.grants[grant].scope.rules[0].tables == ("orders",)
    wider = await api.post(f"/v1/grants/{grant}/narrow", {"scope": WIDE, "reason": "more"})
    assert wider.status_code == 422
    assert len(wider.json()["problems"]) == 2
    same = await api.post(f"/v1/grants/{grant}/narrow", {"scope": NARROW, "reason": "again"})
    assert (same.status_code, "nothing to narrow" in same.json()["error"]) == (409, True)


async def test_the_times_of_all_events_rise_even_where_many_come_at_once(api: House) -> None:
    await asyncio.gather(*(api.agent(f"agent-{number}") for number in range(20)))
    await asyncio.gather(
        *(api.post("/v1/all/revoke", {"reason": "x"}) for _ in range(5)),
        *(api.post("/v1/groups/revoke", {"issuer": "keycloak", "group": f"g-{n}", "reason": "x"}) for n in range(5)),
    )
    times = [event.at_us for event in await api.events()]  # type: ignore[union-attr]
    assert times == sorted(set(times))


# -- who knows of it ---------------------------------------------------------------------------------------------------------------


async def test_a_revocation_is_answered_once_every_gateway_acts_on_it(api: House) -> None:
    await api.agent()
    api.gateways.knows = {"gateway-1": 0, "gateway-2": 0}
    api.gateways.follow = True
    answer = (await api.post("/v1/agents/reporter/revoke", {"reason": "odd"})).json()
    assert (answer["applied"], answer["waiting_for"], len(api.gateways.asked)) == (True, [], 3)
    revoked = (await api.events())[-1]
    assert set(api.gateways.asked) == {revoked.at_us}  # type: ignore[union-attr]


async def test_a_gateway_that_does_not_follow_is_named_after_a_second(api: House) -> None:
    api.gateways.knows = {"gateway-2": 1, "gateway-1": 1, "gateway-3": 2**62}
    began = time.monotonic()
    answer = (await api.post("/v1/all/revoke", {"reason": "attack"})).json()
    assert (answer["applied"], answer["waiting_for"]) == (False, ["gateway-1", "gateway-2"])
    assert 0.9 < time.monotonic() - began < 3
    assert len(api.gateways.asked) < 12


@pytest.mark.parametrize(("back", "forth"), [("hold", "release"), ("throttle", "unthrottle")])
async def test_the_answer_says_whether_every_gateway_lets_go_of_an_agent(api: House, back: str, forth: str) -> None:
    await api.agent()
    await api.post(f"/v1/agents/reporter/{back}", {"reason": "odd", **({"per_minute": 30} if back == "throttle" else {})})
    api.gateways.knows = {"gateway-1": 2**62, "gateway-2": 1}
    answer = (await api.post(f"/v1/agents/reporter/{forth}", {"reason": "explained"})).json()
    assert (answer["applied"], answer["waiting_for"]) == (False, ["gateway-2"])


async def test_what_takes_nothing_away_waits_for_nobody(api: House) -> None:
    api.gateways.knows = {"gateway-1": 1}
    await api.agent()
    assert "applied" not in (await api.post("/v1/agents/reporter/key")).json()
    assert api.gateways.asked == []


# -- keys --------------------------------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_stored_nowhere(api: House) -> None:
    key = (await api.agent(key=True))["key"]
    stored = b"".join(path.read_bytes() for path in api.directory.rglob("*") if path.is_file())
    assert b"reporter" in stored
    assert key.rsplit("_", 1)[1].encode() not in stored
    assert api.registry.agents["reporter"].scram_verifier.startswith("SCRAM-SHA-256$4096:")


async def test_an_agent_registered_without_a_key_has_none(api: House) -> None:
    assert "key" not in await api.agent()
    assert api.registry.agents["reporter"].scram_verifier == ""


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/agents/reporter/key"])
async def test_a_repeated_call_does_not_show_the_key_again(api: House, path: str) -> None:
    body = {"agent": "reporter", "owner": "finance", "key": True} if path == "/v1/agents" else None
    if body is None:
        await api.agent()
    first = await api.post(path, body, key="once")
    second = await api.post(path, body, key="once")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["key"].startswith("pgw_")
    assert second.json() == first.json() | {"key": None}
    assert api.registry.agents["reporter"].key_id == first.json()["key_id"]


# -- repetition --------------------------------------------------------------------------------------------------------------------


async def test_a_repeated_call_gives_the_same_answer_and_records_nothing(api: House) -> None:
    await api.agent()
    body = {"agent": "reporter", "scope": SCOPE, "seconds": 60, "reason": "work"}
    first, second = [await api.post("/v1/grants", body, key="once") for _ in range(2)]
    assert (second.status_code, second.json()) == (201, first.json())
    assert (first.headers.get("idempotency-replayed"), second.headers.get("idempotency-replayed")) == (None, "true")
    assert len(await api.events()) == 2


async def test_a_repeated_call_is_known_after_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path / "log", boot=1) as before:
        await before.agent()
        first = await before.post("/v1/agents/reporter/revoke", {"reason": "odd"}, key="once")
        await before.post("/v1/agents/reporter/reinstate", {})
    async with house(tmp_path / "log", boot=2) as after:
        second = await after.post("/v1/agents/reporter/revoke", {"reason": "odd"}, key="once")
        assert second.json() == first.json()
        assert after.registry.agents["reporter"].state == "active"
        assert (await after.post("/v1/agents/reporter/revoke", {"reason": "other"}, key="once")).status_code == 409


async def test_the_same_call_made_many_times_at_once_is_carried_out_once(api: House) -> None:
    await api.agent()
    body = {"agent": "reporter", "scope": SCOPE, "seconds": 60, "reason": "work"}
    answers = await asyncio.gather(*(api.post("/v1/grants", body, key="once") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["grant"] for answer in answers}) == 1
    assert sum(isinstance(event, GrantRequested) for event in await api.events()) == 1


async def test_of_many_approvals_at_once_one_is_recorded(api: House) -> None:
    await api.agent()
    grant = await api.grant()
    answers = await asyncio.gather(*(api.post(f"/v1/grants/{grant}/approve", by=BOB) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert sum(isinstance(event, GrantApproved) for event in await api.events()) == 1


@pytest.mark.parametrize("key", ["config:first", "k" * 129, "two words"])
async def test_an_idempotency_key_that_cannot_be_kept_is_refused(api: House, key: str) -> None:
    answer = await api.post("/v1/agents", {"agent": "reporter", "owner": "finance"}, key=key)
    assert (answer.status_code, "Idempotency-Key" in answer.json()["error"]) == (422, True)


# -- who may -----------------------------------------------------------------------------------------------------------------------


async def test_nobody_approves_or_denies_what_they_asked_for(api: House) -> None:
    await api.agent()
    grant = await api.grant(by=ALICE)
    for path, body in ((f"/v1/grants/{grant}/approve", None), (f"/v1/grants/{grant}/deny", {"reason": "no"})):
        answer = await api.post(path, body, by=ALICE)
        assert (answer.status_code, "another operator" in answer.json()["error"]) == (403, True)
    assert api.registry.grants[grant].state == "requested"


ROUTES: dict[str, object] = {
    "/v1/agents": {"agent": "new", "owner": "finance"},
    "/v1/agents/{agent}/key": None,
    "/v1/agents/{agent}/revoke": {"reason": "odd"},
    "/v1/agents/{agent}/reinstate": {"reason": "explained"},
    "/v1/agents/{agent}/throttle": {"per_minute": 30, "reason": "fast"},
    "/v1/agents/{agent}/unthrottle": {"reason": "explained"},
    "/v1/agents/{agent}/hold": {"reason": "odd"},
    "/v1/agents/{agent}/release": {"reason": "explained"},
    "/v1/agents/{agent}/retire": {"reason": "over"},
    "/v1/grants": {"agent": "reporter", "scope": SCOPE, "seconds": 0, "reason": "work"},
    "/v1/grants/{grant}/approve": None,
    "/v1/grants/{grant}/deny": {"reason": "no"},
    "/v1/grants/{grant}/revoke": {"reason": "no"},
    "/v1/grants/{grant}/narrow": {"scope": NARROW, "reason": "less"},
    "/v1/sessions/{session}/revoke": {"reason": "odd", "agent": "reporter"},
    "/v1/subjects/revoke": {"issuer": "keycloak", "subject": "ada", "reason": "left"},
    "/v1/subjects/reinstate": {"issuer": "keycloak", "subject": "ada", "reason": "back"},
    "/v1/groups/revoke": {"issuer": "keycloak", "group": "contractors", "reason": "leak"},
    "/v1/groups/reinstate": {"issuer": "keycloak", "group": "contractors"},
    "/v1/sources": {"source": "other", "kind": "backup", "roles": ["backup"], "client": "local", "reason": "nightly"},
    "/v1/sources/{source}/withdraw": {"reason": "moved"},
    "/v1/responses": {"detector": "*", "agent": "reporter", "response": "throttle"},
    "/v1/all/revoke": {"reason": "attack"},
    "/v1/all/reinstate": {"reason": "over"},
}
AGENT_KEY = agent_keys.create()[0]
WRONG: dict[str, dict[str, str]] = {
    "nothing": {},
    "an empty one": {"Authorization": "Bearer "},
    "somebody's unknown key": {"Authorization": f"Bearer {create_operator_key()[0]}"},
    "an agent's key": {"Authorization": f"Bearer {AGENT_KEY}"},
    "the key's hash": {"Authorization": f"Bearer {ALICE_SHA256}"},
    "the key by another scheme": {"Authorization": f"Basic {ALICE}"},
    "the key in a cookie": {"Cookie": f"Authorization=Bearer {ALICE}"},
    "a token without a signature": {"Authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
}


def routes_of(api: House) -> list[APIRoute]:
    """FastAPI keeps included routers as they are; the application's own pages are no APIRoutes."""
    found: list[APIRoute] = []
    waiting: list[object] = list(api.app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            found.append(route)
        else:
            inner = getattr(route, "original_router", None)
            waiting.extend(getattr(inner, "routes", ()))
    return found


async def test_the_matrix_below_holds_every_route(api: House) -> None:
    assert {f"{route.path}" for route in routes_of(api)} == set(ROUTES)
    assert {method for route in routes_of(api) for method in route.methods} == {"POST"}


@pytest.mark.parametrize("credential", WRONG)
async def test_no_route_does_anything_for_a_wrong_credential(api: House, credential: str) -> None:
    await api.agent()
    grant = await api.grant()
    await api.post("/v1/agents/reporter/revoke", {"reason": "odd"})
    before = await api.events()
    for path, body in ROUTES.items():
        url = path.format(agent="reporter", grant=grant, session="s-1", source="nightly")
        answer = await api.client.post(url, json=body, headers=WRONG[credential])
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="pgwarden"'), url
        assert set(answer.json()) == {"error"}
    assert await api.events() == before


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_does_its_work_for_an_operator(api: House, path: str) -> None:
    await api.agent()
    grant = await api.grant(by=ALICE, scope=WIDE)
    if path.endswith("reinstate"):
        undone = path.replace("reinstate", "revoke")
        assert (await api.post(undone.format(agent="reporter"), ROUTES[undone])).status_code == 200
    if path.endswith(("unthrottle", "release")):
        undone = path.replace("unthrottle", "throttle").replace("release", "hold")
        assert (await api.post(undone.format(agent="reporter"), ROUTES[undone])).status_code == 200
    if path.endswith("narrow"):
        await api.post(f"/v1/grants/{grant}/approve", by=BOB)
    if path.endswith("withdraw"):
        assert (await api.post("/v1/sources", {**ROUTES["/v1/sources"], "source": "nightly"})).status_code == 201
    before = len(await api.events())
    answer = await api.post(path.format(agent="reporter", grant=grant, session="s-1", source="nightly"), ROUTES[path], by=BOB)
    assert answer.status_code in (200, 201), answer.text
    assert len(await api.events()) == before + 1


async def test_a_wrong_credential_is_refused_before_the_body_is_looked_at(api: House) -> None:
    answer = await api.client.post("/v1/agents", content=b"{" * 200_000, headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


async def test_who_fails_often_is_told_to_wait(tmp_path: Path) -> None:
    async with house(tmp_path / "log", failures=3) as api:
        answers = [await api.post("/v1/agents", {}, by="a.b.c") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert int(answers[-1].headers["retry-after"]) > 0


# -- bodies ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "agent: Field required"),
        ([], "body: Input should be"),
        ("reporter", "body: Input should be"),
        ({"agent": 5, "owner": "x"}, "agent: Input should be a valid string"),
        ({"agent": "reporter", "owner": "x", "key": "yes"}, "key: Input should be a valid boolean"),
        ({"agent": "reporter", "owner": "x", "admin": True}, "admin: Extra inputs are not permitted"),
        ({"agent": "reporter", "owner": "x", "\u202e\n": True}, "\\u202e\\n: Extra inputs"),
        ({"agent": "reporter", "owner": ""}, "owner: missing"),
    ],
)
async def test_a_body_that_is_wrong_is_told_why(api: House, body: object, problem: str) -> None:
    answer = await api.client.post(
        "/v1/agents",
        content=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert any(found.startswith(problem) for found in answer.json()["problems"]), answer.json()


async def test_all_problems_of_a_grant_are_told_at_once(api: House) -> None:
    rule = {"schema": "public", "tables": [], "operations": ["drop"]}
    scope = {"connection": "nowhere", "rules": [rule]}
    answer = await api.post("/v1/grants", {"agent": "ghost", "scope": scope, "seconds": -1, "reason": ""})
    assert answer.status_code == 422
    assert len(answer.json()["problems"]) == 6


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_body_is_json_and_says_so(api: House, content_type: str) -> None:
    # What a web page can send without asking (a form, text/plain) is not taken.
    headers = {"Authorization": f"Bearer {ALICE}"} | ({"Content-Type": content_type} if content_type else {})
    answer = await api.client.post("/v1/agents", content=b'{"agent": "reporter", "owner": "x"}', headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_has_a_limit(api: House, chunked: bool) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1024 + 1):
            yield b" " * 1024

    content = stream() if chunked else b" " * (BODY_BYTES_MAX + 1)
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    answer = await api.client.post("/v1/agents", content=content, headers=headers)
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


async def test_a_body_that_is_nested_deeply_is_refused_without_harm(api: House) -> None:
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    answer = await api.client.post("/v1/agents", content=b"[" * BODY_BYTES_MAX, headers=headers)
    assert answer.status_code in (400, 422)
    await api.agent()


@pytest.mark.parametrize("path", ["/v1/agents/ghost/revoke", "/v1/agents/%00%0a/revoke", "/v1/grants/ghost/revoke"])
async def test_what_is_not_there_is_missing(api: House, path: str) -> None:
    answer = await api.post(path, {"reason": "odd"})
    assert answer.status_code == 404
    assert answer.json()["error"].isprintable()


# -- a log that takes no records ---------------------------------------------------------------------------------------------------


async def test_what_the_log_does_not_take_is_not_true_and_says_so(tmp_path: Path) -> None:
    async with house(tmp_path / "log", settings=HASTY) as api:
        await api.agent()
        api.disk.full = True
        first = await api.post("/v1/agents/reporter/revoke", {"reason": "odd"})
        assert (first.status_code, "may still take effect" in first.json()["error"]) == (503, True)
        assert api.registry.agents["reporter"].state == "active"
        second = await api.post("/v1/agents", {"agent": "other", "owner": "x"})
        assert (second.status_code, "nothing was changed" in second.json()["error"]) == (503, True)
        assert len(await api.events()) == 1


async def test_what_was_handed_over_becomes_true_when_the_log_recovers(tmp_path: Path, await_for: Callable[..., object]) -> None:
    async with house(tmp_path / "log", settings=HASTY) as api:
        await api.agent()
        api.disk.full = True
        await api.post("/v1/agents/reporter/revoke", {"reason": "odd"}, key="once")
        api.disk.full = False
        await await_for(lambda: api.registry.agents["reporter"].state == "revoked")  # type: ignore[misc]
        repeated = await api.post("/v1/agents/reporter/revoke", {"reason": "odd"}, key="once")
        assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
        assert [type(event).__name__ for event in await api.events()] == ["AgentRegistered", "AgentRevoked"]


async def test_commands_do_not_pile_up_without_end(tmp_path: Path) -> None:
    async with house(tmp_path / "log", settings=Settings(record_seconds_max=0.5, waiting_max=3)) as api:
        api.disk.full = True
        bodies = [{"agent": f"agent-{number}", "owner": "x"} for number in range(10)]
        answers = await asyncio.gather(*(api.post("/v1/agents", body) for body in bodies))
        assert {answer.status_code for answer in answers} == {503}
        assert sum("may still" in answer.json()["error"] for answer in answers) == 1


# -- the document ------------------------------------------------------------------------------------------------------------------


async def test_every_command_has_a_heading_in_the_document(api: House) -> None:
    headings = set(re.findall(r"^### `(\w+ /\S*)`$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {f"POST {re.sub('{.*?}', '{id}', route.path)}" for route in routes_of(api)} <= headings


async def test_the_routes_are_described_for_programs(api: House) -> None:
    described = (await api.client.get("/openapi.json")).json()
    assert set(described["paths"]) == set(ROUTES)
    assert "requestBody" in described["paths"]["/v1/grants"]["post"]
