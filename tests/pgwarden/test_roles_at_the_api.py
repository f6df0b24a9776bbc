"""Each role on each route of the API as it runs: the table below says what each route wants, and no route is missing in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from identity.agent_keys import create_operator_key
from identity.api import ROLE_IN_OPENAPI
from identity.roles import ROLES, Role, allows
from tests.broker import port
from tests.pgwarden.test_api_process import CONFIG, Process, recorded, running, write_key

WANTS: dict[str, Role] = {
    "GET /v1/me": "viewer",
    "GET /v1/health": "viewer",
    "GET /v1/metrics": "viewer",
    "GET /v1/agents": "viewer",
    "GET /v1/agents/unused": "viewer",
    "GET /v1/agents/{agent}": "viewer",
    "GET /v1/grants": "viewer",
    "GET /v1/revocations": "viewer",
    "GET /v1/sessions": "viewer",
    "GET /v1/sessions/{session}": "viewer",
    "GET /v1/sessions/{session}/timeline": "viewer",
    "GET /v1/statements": "viewer",
    "GET /v1/statements/{session}/{execution}": "viewer",
    "GET /v1/rates": "viewer",
    "GET /v1/findings": "viewer",
    "GET /v1/coverage": "viewer",
    "GET /v1/coverage/gaps": "viewer",
    "GET /v1/observations/sessions": "viewer",
    "GET /v1/observations/statements": "viewer",
    "GET /v1/sources": "viewer",
    "GET /v1/looks": "administrator",
    "GET /v1/follow": "viewer",
    "GET /v1/records/{topic}/{partition}/{offset}": "viewer",
    "GET /v1/export/statements": "viewer",
    "GET /v1/findings/{finding}": "viewer",
    "POST /v1/findings/{finding}/acknowledge": "responder",
    "POST /v1/findings/{finding}/confirm": "responder",
    "GET /v1/mutes": "viewer",
    "POST /v1/mutes": "responder",
    "POST /v1/mutes/remove": "responder",
    "GET /v1/questions": "viewer",
    "GET /v1/questions/{name}": "viewer",
    "POST /v1/sql": "viewer",
    "GET /v1/openapi.json": "viewer",
    "GET /v1/responses": "viewer",
    "POST /v1/responses": "administrator",
    "POST /v1/agents/{agent}/throttle": "responder",
    "POST /v1/agents/{agent}/unthrottle": "responder",
    "POST /v1/agents/{agent}/hold": "responder",
    "POST /v1/agents/{agent}/release": "responder",
    "POST /v1/agents/{agent}/revoke": "responder",
    "POST /v1/agents/{agent}/reinstate": "responder",
    "POST /v1/sessions/{session}/revoke": "responder",
    "POST /v1/subjects/revoke": "responder",
    "POST /v1/subjects/reinstate": "responder",
    "POST /v1/groups/revoke": "responder",
    "POST /v1/groups/reinstate": "responder",
    "POST /v1/grants/{grant}/revoke": "responder",
    "POST /v1/grants/{grant}/narrow": "responder",
    "POST /v1/agents": "administrator",
    "POST /v1/agents/{agent}/key": "administrator",
    "POST /v1/agents/{agent}/retire": "administrator",
    "POST /v1/grants": "administrator",
    "POST /v1/grants/{grant}/approve": "administrator",
    "POST /v1/grants/{grant}/deny": "administrator",
    "POST /v1/all/revoke": "administrator",
    "POST /v1/all/reinstate": "administrator",
    "POST /v1/sources": "administrator",
    "POST /v1/sources/{source}/withdraw": "administrator",
    "POST /v1/snapshots": "administrator",
    "GET /v1/snapshots": "administrator",
    "GET /v1/snapshots/{snapshot}": "administrator",
}
"""Whoever adds a route decides here, a second time, what it wants."""

KEYS = {role: create_operator_key() for role in ROLES}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    folder = tmp_path_factory.mktemp("roles")
    operators = "".join(f'[operators.{role}-1]\nkey_sha256 = "{digest}"\nrole = "{role}"\n' for role, (_, digest) in KEYS.items())
    (folder / "pgwarden.toml").write_text(CONFIG + operators, encoding="utf-8")
    write_key(folder)
    with running(folder, port()) as process:
        yield process, folder


@pytest.mark.slow
def test_every_route_declares_the_role_that_the_table_says(api: tuple[Process, Path]) -> None:
    described = api[0].get("/v1/openapi.json").json()["paths"]
    declared = {
        f"{method.upper()} {path}": what[ROLE_IN_OPENAPI] for path, methods in described.items() for method, what in methods.items()
    }
    assert declared == WANTS


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_route_opens_to_its_role_and_wider_ones_alone(api: tuple[Process, Path], role: Role) -> None:
    process, folder = api
    before = recorded(folder)
    wrong: list[str] = []
    with httpx.Client(
        base_url=process.url, headers={"Authorization": f"Bearer {KEYS[role][0]}"}, timeout=10, trust_env=False
    ) as client:
        for route, wanted in WANTS.items():
            method, path = route.split(" ")
            # An empty body is wrong for every command, so that whoever may call one changes nothing either.
            path += "?wait_seconds=0" * path.endswith("/follow")
            answer = client.request(method, path, json={} if method == "POST" else None)
            if allows(role, wanted):
                right = answer.status_code not in (401, 403, 500)
            else:
                right = answer.status_code == 403 and f"wants the role {wanted}, and yours is {role}" in answer.json()["error"]
            if not right:
                wrong.append(f"{route}: {answer.status_code} {answer.text[:200]}")
    assert wrong == []
    assert recorded(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_whoever_calls_is_told_who_they_are(api: tuple[Process, Path], role: Role) -> None:
    told = api[0].get("/v1/me", KEYS[role][0]).json()
    assert (told["operator"], told["role"], told["issuer"]) == (f"{role}-1", role, "")


@pytest.mark.slow
def test_an_operator_of_a_file_that_names_no_role_is_an_administrator_as_before(api: tuple[Process, Path]) -> None:
    assert api[0].get("/v1/me").json()["role"] == "administrator"
