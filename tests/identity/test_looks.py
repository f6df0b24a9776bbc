"""Every look becomes one event at once, its repeats one more when their time is over, and what is on no disk is not answered."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from identity.api import THROUGH_HEADER, Looked, guarded, looked
from identity.look_recorder import LookRecorder, LooksRecorded
from identity.looks import Look, Looks, bounded, event
from identity.looks_settings import LooksSettings
from identity.operators import Operator
from identity.refusal import Refusal
from identity.roles import needs
from ingest.events import RecordRead
from ingest.follow import Follower
from ingest.log.segments import Disk, SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

LOOK = Look("alice", "statements", '{"agent": "reporter"}', "api")
SECOND = 1_000_000


# -- which are recorded ------------------------------------------------------------------------------------------------------------


def told(looks: Looks, look: Look, rows: int, at_us: int) -> tuple[RecordRead, ...]:
    """What is recorded because of one look."""
    if looks.window(look, rows, at_us) is not None:
        return ()
    return (event(look, rows, at_us), *looks.opened(look, 1, at_us))


def test_the_first_look_is_told_at_once_and_its_repeats_together_when_the_window_is_over() -> None:
    looks = Looks(LooksSettings(repeat_seconds=60))
    assert told(looks, LOOK, 7, 1 * SECOND) == (RecordRead(1 * SECOND, "alice", "statements", LOOK.parameters, 7, "api"),)
    assert told(looks, LOOK, 8, 3 * SECOND) == told(looks, LOOK, 9, 59 * SECOND) == looks.over(60 * SECOND) == ()
    (repeats,) = looks.over(61 * SECOND)
    assert (repeats.times, repeats.rows, repeats.since_us, repeats.at_us) == (2, 17, 3 * SECOND, 59 * SECOND)
    assert len(told(looks, LOOK, 7, 62 * SECOND)) == 1


@pytest.mark.parametrize("change", [{"operator": "bob"}, {"question": "sql"}, {"parameters": "{}"}, {"through": "dashboard"}])
def test_another_operator_question_parameter_or_way_is_another_look(change: dict[str, str]) -> None:
    looks = Looks(LooksSettings())
    told(looks, LOOK, 1, SECOND)
    assert len(told(looks, replace(LOOK, **change), 1, SECOND)) == 1  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 90 * SECOND)), max_size=40), st.integers(1, 3))
def test_no_look_is_lost_however_they_come(story: list[tuple[str, int]], repeats_max: int) -> None:
    looks = Looks(LooksSettings(repeat_seconds=10, repeats_max=repeats_max))
    recorded: list[RecordRead] = []
    now_us = SECOND
    for question, wait_us in story:
        now_us += wait_us
        recorded += looks.over(now_us)
        recorded += told(looks, replace(LOOK, question=question), 1, now_us)
    recorded += looks.close()
    for question in "abcd":
        mine = [look for look in recorded if look.question == question]
        assert sum(look.times for look in mine) == sum(asked == question for asked, _ in story)
        assert sum(look.rows for look in mine) == sum(look.times for look in mine)


@given(st.text(max_size=300), st.integers(64, 2000))
def test_what_is_asked_is_kept_up_to_a_bound_and_stays_json(text: str, bytes_max: int) -> None:
    whole = json.dumps({"sql": text}, ensure_ascii=False)
    kept = bounded(whole, bytes_max)
    assert len(kept.encode("utf-8", "replace")) <= bytes_max
    said = json.loads(kept)
    assert said == {"sql": text} if "cut" not in said else whole.startswith(said["cut"])


# -- no audit, no look -------------------------------------------------------------------------------------------------------------


class BreakableDisk(Disk):
    full = False

    def fdatasync(self, fd: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().fdatasync(fd)


@dataclass
class House:
    directory: Path
    disk: BreakableDisk
    recorder: Recorder
    client: httpx.AsyncClient
    clock: list[int]

    async def recorded(self) -> list[RecordRead]:
        reader = SegmentLog(self.directory, LogSettings())
        follower = Follower(reader, ("looks",), {})
        found: list[RecordRead] = []
        ends = reader.end_offsets("looks")
        while any(follower.offsets[place] < end for place, end in ends.items()):
            for _, frame in await follower.poll(timeout_seconds=1):
                found += [told for _, told in frame.events if isinstance(told, RecordRead)]
        follower.close()
        await reader.close()
        return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    disk = BreakableDisk()
    log = SegmentLog(tmp_path / "log", LogSettings(), disk=disk)
    recorder = Recorder(log, "api", 1, RecorderSettings(retry_ms=20))
    clock = [SECOND]
    looks = LookRecorder(recorder, lambda: clock[0], LooksSettings(record_seconds_max=0.3))

    async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
        return Operator("alice", "alice", "key", "viewer", "")

    routes = APIRouter(route_class=guarded(authenticate))

    @routes.get("/statements/{session}")
    @needs("viewer")
    async def statements(request: Request, session: str) -> JSONResponse:
        if session == "none":
            raise HTTPException(404, "there is none")
        return JSONResponse(["a secret"])

    @routes.get("/health")
    @needs("viewer", look=False)
    async def health() -> JSONResponse:
        return JSONResponse("well")

    @routes.post("/sql")
    @needs("viewer", look=True)
    async def sql(request: Request, body: dict[str, str]) -> JSONResponse:
        looked(request, Looked(0, "sql", body))
        if body["sql"] == "wrong":
            raise HTTPException(422, "Could not convert 'a secret' to a number")
        looked(request, Looked(3, "sql", body))
        return JSONResponse([])

    app = FastAPI()
    app.include_router(routes)
    app.add_middleware(LooksRecorded, recorder=looks)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        yield House(tmp_path / "log", disk, recorder, client, clock)
    disk.full = False
    looks.close()
    await recorder.close()
    await log.close()


async def test_an_answer_goes_out_after_its_look_is_on_disk_with_what_was_asked_and_through_what(house: House) -> None:
    answer = await house.client.get("/statements/s-1?agent=a", headers={THROUGH_HEADER: "dashboard"})
    assert answer.json() == ["a secret"]
    assert await house.recorded() == [
        RecordRead(SECOND, "alice", "statements", '{"agent": "a", "session": "s-1"}', -1, "dashboard"),
    ]


async def test_sql_is_recorded_with_its_text_also_where_it_fails_since_an_error_may_repeat_a_value(house: House) -> None:
    assert (await house.client.post("/sql", json={"sql": "select 1"})).status_code == 200
    assert (await house.client.post("/sql", json={"sql": "wrong"})).status_code == 422
    assert [(look.parameters, look.rows) for look in await house.recorded()] == [
        ('{"sql": "select 1"}', 3),
        ('{"sql": "wrong"}', 0),
    ]


async def test_what_shows_nothing_of_the_record_is_no_look(house: House) -> None:
    assert (await house.client.get("/health")).status_code == 200
    assert (await house.client.get("/statements/none")).status_code == 404
    assert (await house.client.get("/nothing")).status_code == 404
    assert await house.recorded() == []


async def test_while_looks_cannot_be_recorded_there_are_no_answers_but_health(house: House) -> None:
    house.disk.full = True
    for _ in range(2):
        answer = await house.client.get("/statements/s-1")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "this one cannot be now" in answer.json()["error"]
        assert "secret" not in answer.text
    assert (await house.client.get("/health")).json() == "well"
    house.disk.full = False
    async with asyncio.timeout(10):
        while (await house.client.get("/statements/s-1")).status_code != 200:
            await asyncio.sleep(0.02)
    assert len(await house.recorded()) == 1


async def test_a_repeat_is_not_answered_before_the_look_that_it_repeats_is_on_disk(house: House) -> None:
    house.disk.full = True
    first = asyncio.create_task(house.client.get("/statements/s-1"))
    await asyncio.sleep(0.05)
    assert (await house.client.get("/statements/s-1")).status_code == 503
    assert (await first).status_code == 503


async def test_a_caller_that_says_it_is_something_unheard_of_is_told_what_it_may_be(house: House) -> None:
    answer = await house.client.get("/statements/s-1", headers={THROUGH_HEADER: "browser"})
    assert answer.status_code == 422
    assert "api, dashboard, command line, metrics" in answer.json()["error"]
    assert await house.recorded() == []
