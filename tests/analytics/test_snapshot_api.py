from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import duckdb
import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from analytics.settings import AnalyticsSettings
from analytics.snapshot_api import router
from analytics.snapshots import FOLDER, Busy, Snapshots
from analytics.store import Store
from tests.analytics.test_analytics_api import authenticate


@pytest.fixture
def snapshots(store: Store, told: AnalyticsSettings) -> Snapshots:
    return Snapshots(store, told)


def application(snapshots: Snapshots) -> FastAPI:
    app = FastAPI()
    app.include_router(router(snapshots, authenticate))
    return app


@pytest.fixture
async def api(snapshots: Snapshots) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application(snapshots))
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers={"Authorization": "Bearer right"}) as client:
        yield client


def agents(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        ((found,),) = connection.execute("select count(*) from agents").fetchall()
    return int(found)


async def test_a_snapshot_is_taken_listed_and_downloaded_whole(
    api: httpx.AsyncClient, told: AnalyticsSettings, tmp_path: Path
) -> None:
    assert (await api.get("/v1/snapshots")).json() == {"items": [], "next": None}
    taken = [(await api.post("/v1/snapshots")).json() for _ in range(2)]
    assert taken[0]["path"] == str(told.directory / FOLDER / f"{taken[0]['snapshot']}.duckdb")
    there = (await api.get("/v1/snapshots")).json()["items"]
    assert there == [{name: one[name] for name in ("snapshot", "bytes", "taken_at")} for one in reversed(taken)]
    answer = await api.get(f"/v1/snapshots/{taken[0]['snapshot']}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.duckdb")
    assert answer.headers["content-disposition"] == f'attachment; filename="pgwarden-{taken[0]["snapshot"]}.duckdb"'
    assert len(answer.content) == int(answer.headers["content-length"]) == taken[0]["bytes"]
    (tmp_path / "mine.duckdb").write_bytes(answer.content)
    assert agents(tmp_path / "mine.duckdb") > 0
    assert (await api.get("/v1/snapshots/latest")).headers["pgwarden-snapshot"] == taken[1]["snapshot"]


@pytest.mark.parametrize("call", [("POST", ""), ("GET", ""), ("GET", "/latest")])
async def test_nothing_of_them_is_for_who_is_not_known(api: httpx.AsyncClient, call: tuple[str, str]) -> None:
    assert (await api.request(call[0], f"/v1/snapshots{call[1]}", headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize(
    "name", ["latest", "20261130T000000.000000Z", "..%2Ftables", "%2E%2E%2Ftables.duckdb", "latest.duckdb", "%00", "x" * 300]
)
async def test_only_the_name_of_a_snapshot_opens_a_file(api: httpx.AsyncClient, told: AnalyticsSettings, name: str) -> None:
    assert (told.directory / "tables.duckdb").exists()
    answer = await api.get(f"/v1/snapshots/{name}")
    assert answer.status_code == 404


async def test_a_link_that_bears_a_snapshots_name_is_not_followed(api: httpx.AsyncClient, told: AnalyticsSettings) -> None:
    await api.post("/v1/snapshots")
    (told.directory / FOLDER / "20261130T000000.000000Z.duckdb").symlink_to("/etc/passwd")
    assert len((await api.get("/v1/snapshots")).json()["items"]) == 1
    answer = await api.get("/v1/snapshots/20261130T000000.000000Z")
    assert (answer.status_code, "cannot be read" in answer.text) == (503, True)


async def test_why_no_snapshot_could_be_taken_is_said(api: httpx.AsyncClient, told: AnalyticsSettings) -> None:
    (told.directory / FOLDER).write_text("in the way")
    answer = await api.post("/v1/snapshots")
    assert (answer.status_code, "no snapshot was taken" in answer.text) == (503, True)


async def test_so_many_are_read_at_once_and_who_forgets_to_close_one_keeps_no_place(snapshots: Snapshots) -> None:
    await snapshots.take()
    first, second = snapshots.hand_out("latest"), snapshots.hand_out("latest")
    assert first is not None
    assert second is not None
    with pytest.raises(Busy, match="2 snapshots are being read"):
        snapshots.hand_out("latest")
    first.close()
    third = snapshots.hand_out("latest")
    assert third is not None
    third.close()
    del second
    assert [snapshots.hand_out("latest") is not None for _ in range(2)] == [True, True]


async def test_one_that_is_removed_while_it_is_read_is_read_to_its_end(snapshots: Snapshots, told: AnalyticsSettings) -> None:
    taken = await snapshots.take()
    out = snapshots.hand_out(taken.name)
    assert out is not None
    for _ in range(told.snapshots_kept):
        await snapshots.take()
    assert not taken.path.exists()
    assert sum(map(len, out.chunks())) == taken.size_bytes
    out.close()


async def test_a_reader_that_stands_still_is_cut_off_and_gives_its_place_back(store: Store, told: AnalyticsSettings) -> None:
    snapshots = Snapshots(store, replace(told, snapshot_downloads_max=1, snapshot_download_seconds_max=0.2))
    await snapshots.take()
    sent: list[Message] = []
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(asked, None) or await asyncio.Future()  # then it only waits

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Future()  # it takes the first piece and no more

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "GET",
        "path": "/v1/snapshots/latest",
        "raw_path": b"/v1/snapshots/latest",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer right")],
        "client": ("127.0.0.1", 1),
        "server": ("api", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    async with asyncio.timeout(20):
        await application(snapshots)(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    out = snapshots.hand_out("latest")
    assert out is not None
    out.close()
