from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from analytics.findings_api import router
from analytics.triager import Triager
from identity.operators import Operator
from identity.refusal import Refusal
from ingest.events import FindingRaised
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from tests.analytics.scenario import START_US, Writer


async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
    if authorization == "Bearer right":
        return Operator("alice", "Alice", "key", "responder", "")
    return Refusal("wrong key")


@pytest.fixture
async def api(log: SegmentLog) -> AsyncIterator[httpx.AsyncClient]:
    writer = Writer(log, "inspector")
    writer.add("a", FindingRaised(START_US, "f-1", "hot loop", "a", "s1", "warning", "a loop", ()))
    writer.add("", FindingRaised(START_US, "shadow-1", "shadow", "", "", "critical", "no gateway opened a session", ()))
    await writer.write()
    recorder = Recorder(log, "api", 1, RecorderSettings())
    triager = Triager(log, recorder, {"hot loop", "shadow"}, lambda: START_US)
    app = FastAPI()
    app.include_router(router(triager, authenticate))
    task = asyncio.create_task(triager.run())
    headers = {"Authorization": "Bearer right"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", headers=headers) as client:
        yield client
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await recorder.close()


async def test_a_finding_is_acknowledged_once_and_a_repeated_call_says_the_same(api: httpx.AsyncClient) -> None:
    for replayed in (False, True):
        answer = await api.post("/v1/findings/f-1/acknowledge", json={"note": "mine"}, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
        assert answer.json()["state"] == "acknowledged"
        assert ("Idempotency-Replayed" in answer.headers) is replayed
    assert (await api.post("/v1/findings/f-1/acknowledge", json={})).status_code == 409
    assert (await api.post("/v1/findings/f-1/confirm", json={})).json()["operator"] == "alice"


async def test_a_mute_comes_and_goes(api: httpx.AsyncClient) -> None:
    muted = await api.post("/v1/mutes", json={"finding": "f-1", "seconds": 3600, "reason": "a test"})
    assert (muted.status_code, muted.json()["agent"], muted.json()["detector"]) == (201, "a", "hot loop")
    assert (await api.post("/v1/mutes/remove", json={"detector": "hot loop", "agent": "a"})).json()["state"] == "unmuted"
    assert (await api.post("/v1/mutes/remove", json={"detector": "hot loop", "agent": "a"})).status_code == 409


async def test_a_session_round_the_gateway_is_not_muted_and_the_answer_says_what_to_do(api: httpx.AsyncClient) -> None:
    for whose in ({"finding": "shadow-1"}, {"finding": "shadow-1", "agent": "*"}, {"detector": "shadow", "agent": "*"}):
        answer = await api.post("/v1/mutes", json={**whose, "seconds": 604_800, "reason": "an old job"})
        assert answer.status_code == 422
        assert answer.json()["error"] == (
            "a session that goes round the gateway cannot be muted, for that would hide every other one; acknowledge the finding,"
            " or declare its source with pgwarden sources declare"
        )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/findings/f-9/acknowledge", {}, 404),
        ("/v1/findings/f-1/acknowledge", {"notes": "x"}, 422),
        ("/v1/mutes", {"finding": "f-1", "reason": "x"}, 422),
        ("/v1/mutes", {"finding": "f-1", "seconds": 5, "reason": "x"}, 422),
        ("/v1/mutes", {"detector": "hot loop", "agent": "a", "seconds": "3600", "reason": "x"}, 422),
    ],
)
async def test_what_cannot_be_done_says_why(api: httpx.AsyncClient, path: str, body: dict[str, object], status: int) -> None:
    answer = await api.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]


async def test_nobody_says_anything_without_a_key(api: httpx.AsyncClient) -> None:
    for path in ("/v1/findings/f-1/acknowledge", "/v1/findings/f-1/confirm", "/v1/mutes", "/v1/mutes/remove"):
        assert (await api.post(path, json={}, headers={"Authorization": "Bearer wrong"})).status_code == 401
