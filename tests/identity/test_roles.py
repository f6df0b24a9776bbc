"""A role opens what it and the narrower ones may do, and a route that declares none is shut to everybody."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from identity.api import guarded
from identity.operators import Operator
from identity.refusal import Refusal
from identity.roles import ROLES, Role, allows, is_look, needs, widest


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("needed", ROLES)
async def test_a_route_answers_its_role_and_wider_ones_and_tells_the_others_which_it_wants(role: Role, needed: Role) -> None:
    answer = await called(needed, role, {})
    if ROLES.index(role) >= ROLES.index(needed):
        assert (answer.status_code, answer.json()) == (200, {"by": "olga"})
    else:
        assert answer.status_code == 403
        assert answer.json()["error"].startswith(f"This wants the role {needed}, and yours is {role}:")


@pytest.mark.parametrize("role", ROLES)
async def test_a_route_that_declares_no_role_answers_nobody(role: Role) -> None:
    answer = await called(None, role, {})
    assert answer.status_code == 403
    assert "it declares none" in answer.json()["error"]


async def test_the_body_of_whoever_may_not_is_not_even_read() -> None:
    assert (await called("administrator", "viewer", {"a": "b" * 100_000})).status_code == 403


async def called(needed: Role | None, role: Role, body: dict[str, str]) -> httpx.Response:
    async def authenticate(authorization: str, peer: str) -> Operator | Refusal:
        return Operator("olga", "olga", "key", role, "")

    async def act(request: Request, body: dict[str, str]) -> JSONResponse:
        return JSONResponse({"by": request.state.operator.id})

    routes = APIRouter(route_class=guarded(authenticate))
    routes.post("/act")(needs(needed)(act) if needed else act)
    app = FastAPI()
    app.include_router(routes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        return await client.post("/act", json=body)


def test_the_widest_of_several_roles_counts_and_of_none_there_is_none() -> None:
    assert widest(["viewer", "administrator", "responder"]) == "administrator"
    assert widest(["viewer", "viewer"]) == "viewer"
    assert widest([]) is None


def test_each_role_allows_all_that_the_narrower_ones_allow() -> None:
    assert [[allows(role, needed) for needed in ROLES] for role in ROLES] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_what_get_answers_is_a_look_unless_the_route_says_otherwise() -> None:
    def answers() -> None: ...

    def health() -> None: ...

    def sql() -> None: ...

    assert is_look(answers, "GET")
    assert not is_look(answers, "POST")
    assert not is_look(needs("viewer", look=False)(health), "GET")
    assert is_look(needs("viewer", look=True)(sql), "POST")
