from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from identity import authentication
from identity.keys import JwksCache
from identity.principal import Principal
from identity.refusal import Refusal
from identity.settings import IssuerRules
from identity.tokens import KeySet, SignedClaims, verify
from pgwarden import dev_issuer
from pgwarden.dev_issuer import DevClient, DevIssuer, DevIssuerSettings, KeysUnusable

ROOT = Path(__file__).parents[2]
SECRET = "s3cret with spaces & signs: +%/="
REPORTING = DevClient("reporting", SECRET)
CHOOSY = DevClient("choosy", "other secret", asks=("scope", "groups", "invocation", "task"))


@dataclasses.dataclass
class Served:
    issuer: DevIssuer
    http: httpx.AsyncClient
    rules: IssuerRules
    folder: Path

    async def asked(self, client: DevClient | None = REPORTING, **form: str) -> httpx.Response:
        auth = None if client is None else _encoded(client)
        return await self.http.post("/token", data={"grant_type": "client_credentials"} | form, auth=auth)

    async def token(self, client: DevClient = REPORTING, **form: str) -> str:
        answer = await self.asked(client, **form)
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]


def _encoded(client: DevClient) -> httpx.BasicAuth:
    # RFC 6749 §2.3.1
    form = httpx.QueryParams({"s": client.secret})
    return httpx.BasicAuth(client.id, str(form).removeprefix("s="))


def now_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    settings = DevIssuerSettings(tmp_path / "dev-issuer", (REPORTING, CHOOSY), port=0)
    listening = dev_issuer.listener(settings)
    issuer = DevIssuer(settings, dev_issuer.url_of(settings, listening))
    server = dev_issuer.server(issuer, settings)
    task = asyncio.create_task(server.serve([listening]))
    rules = IssuerRules("development", issuer.url, "pgwarden", insecure_http=True, invocation=("invocation",), task=("task",))
    async with httpx.AsyncClient(base_url=issuer.url, trust_env=False) as http:
        for _ in range(500):
            if server.started:
                break
            await asyncio.sleep(0.01)
        yield Served(issuer, http, rules, settings.folder)
    server.should_exit = True
    await task
    listening.close()


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[Served]:
    """The same application without a socket, for the many requests that it refuses."""
    settings = DevIssuerSettings(tmp_path / "dev-issuer", (REPORTING, CHOOSY), port=0)
    issuer = DevIssuer(settings, "http://127.0.0.1:1")
    transport = httpx.ASGITransport(dev_issuer.app(issuer, settings))
    async with httpx.AsyncClient(base_url=issuer.url, transport=transport) as http:
        yield Served(issuer, http, IssuerRules("development", issuer.url, "pgwarden", insecure_http=True), settings.folder)


@pytest.fixture
async def cache() -> AsyncIterator[JwksCache]:
    made = JwksCache()
    yield made
    await made.close()


async def proven(served: Served, cache: JwksCache, token: str) -> SignedClaims | Refusal:
    kid = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"]
    keys = await cache.keys(served.rules, kid)
    assert isinstance(keys, KeySet), keys
    return verify(token, served.rules, keys, now_us())


async def test_its_token_is_an_access_token_by_the_strict_row(served: Served, cache: JwksCache) -> None:
    signed = await proven(served, cache, await served.token(invocation="run-7", task="PROJ-7"))
    assert isinstance(signed, SignedClaims), signed
    assert signed.claims["sub"] == signed.claims["client_id"] == "reporting"
    assert signed.claims["exp"] - signed.claims["iat"] == 300


async def test_its_token_proves_an_agent(served: Served, cache: JwksCache) -> None:
    token = await served.token(invocation="run-7", task="PROJ-7")

    def agent_of(issuer: str, client: str, subject: str) -> str | None:
        return "reporter" if (issuer, client) == (served.issuer.url, "reporting") else None

    found = await authentication.principal(token, [served.rules], cache, agent_of, now_us())
    assert isinstance(found, Principal), found
    assert (found.agent, found.invocation, found.task, found.on_behalf_of) == ("reporter", "run-7", "PROJ-7", "")


async def test_each_token_is_another(served: Served, cache: JwksCache) -> None:
    first = await proven(served, cache, await served.token())
    second = await proven(served, cache, await served.token())
    assert isinstance(first, SignedClaims)
    assert isinstance(second, SignedClaims)
    assert first.credential != second.credential


async def test_a_rotated_key_is_found_at_once_and_the_old_token_still_holds(served: Served, cache: JwksCache) -> None:
    old = await served.token()
    assert isinstance(await proven(served, cache, old), SignedClaims)
    kid = served.issuer.rotate()
    new = await served.token()
    assert isinstance(await proven(served, cache, new), SignedClaims)
    assert isinstance(await proven(served, cache, old), SignedClaims)
    assert served.issuer.jwks()["keys"][0]["kid"] == kid


async def test_after_two_rotations_the_oldest_key_is_gone(served: Served, cache: JwksCache) -> None:
    old = await served.token()
    served.issuer.rotate()
    served.issuer.rotate()
    assert await proven(served, cache, old) == Refusal("the token's kid is not among the issuer's keys")


async def test_both_metadata_addresses_say_the_same_whatever_the_host_header(served: Served) -> None:
    paths = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")
    plain, other = [(await served.http.get(path, headers={"Host": "evil.example"})).json() for path in paths]
    assert plain == other
    assert plain["issuer"] == served.issuer.url
    assert plain["jwks_uri"] == f"{served.issuer.url}/jwks"


async def test_the_published_keys_hold_nothing_private(served: Served) -> None:
    keys = (await served.http.get("/jwks")).json()["keys"]
    assert [set(key) for key in keys] == [{"kty", "crv", "x", "y", "kid", "alg", "use"}]


# -- the token endpoint ----------------------------------------------------------------------------------------------------------


async def test_the_secret_may_come_in_the_form(endpoint: Served) -> None:
    answer = await endpoint.asked(None, client_id="reporting", client_secret=SECRET)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["token_type"] == "Bearer"
    assert answer.json()["expires_in"] == 300


@pytest.mark.parametrize(
    ("id_", "secret"),
    [("reporting", "wrong"), ("reporting", ""), ("nobody", SECRET), ("", ""), ("choosy", SECRET), ("reporting", "é")],
)
async def test_a_wrong_secret_and_an_unknown_client_look_alike(endpoint: Served, id_: str, secret: str) -> None:
    posted = await endpoint.asked(None, client_id=id_, client_secret=secret)
    basic = await endpoint.asked(DevClient(id_, secret))
    for answer in (posted, basic):
        assert answer.status_code == 401
        assert answer.json() == {"error": "invalid_client", "error_description": "the client is not known, or its secret is wrong"}
        assert answer.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    "authorization", ["Bearer x", "Basic", "Basic ***", "Basic " + base64.b64encode(b"reporting").decode(), ""]
)
async def test_an_authorization_that_cannot_be_read_is_refused(endpoint: Served, authorization: str) -> None:
    answer = await endpoint.http.post("/token", data={"grant_type": "client_credentials"}, headers={"Authorization": authorization})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ("grant_type=authorization_code", "invalid_grant"),
        ("grant_type=password", "unsupported_grant_type"),
        ("", "unsupported_grant_type"),
        ("grant_type=client_credentials&grant_type=client_credentials", "invalid_request"),
        ("grant_type=client_credentials&client_secret=x", "invalid_request"),
        ("grant_type", "invalid_request"),
        ("grant_type=client_credentials&x=%ff", "invalid_request"),
        ("&".join(f"a{number}=1" for number in range(40)), "invalid_request"),
        ("grant_type=client_credentials&task=" + "x" * 257, "invalid_request"),
        ("grant_type=client_credentials&task=a%0Ab", "invalid_request"),
        ("grant_type=client_credentials&audience=other", "invalid_target"),
        ("grant_type=client_credentials&resource=https%3A%2F%2Fother.example", "invalid_target"),
        ("grant_type=client_credentials&task=" + "x" * 9000, "invalid_request"),
        ("grant_type=client_credentials&task=é", "invalid_request"),
    ],
)
async def test_a_request_that_breaks_the_rules_is_named_as_rfc_6749_does(endpoint: Served, form: str, error: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await endpoint.http.post("/token", content=form.encode(), headers=headers, auth=_encoded(REPORTING))
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert "access_token" not in answer.text


async def test_a_body_of_another_type_is_refused(endpoint: Served) -> None:
    answer = await endpoint.http.post("/token", json={"grant_type": "client_credentials"}, auth=_encoded(REPORTING))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_a_client_sets_only_what_it_may(served: Served, cache: JwksCache) -> None:
    assert (await served.asked(scope="admin")).json()["error"] == "invalid_scope"
    assert (await served.asked(groups="operators")).json()["error"] == "invalid_request"
    signed = await proven(served, cache, await served.token(CHOOSY, scope="a b", groups="g h"))
    assert isinstance(signed, SignedClaims), signed
    assert (signed.claims["scope"], signed.claims["groups"]) == ("a b", ("g", "h"))
    unknown = await proven(served, cache, await served.token(sub="admin", iss="https://evil.example", exp="9999999999"))
    assert isinstance(unknown, SignedClaims)
    assert unknown.claims["sub"] == "reporting"


# -- its keys --------------------------------------------------------------------------------------------------------------------


def made(folder: Path, **changes: object) -> DevIssuer:
    return DevIssuer(DevIssuerSettings(folder, (REPORTING,), **changes), "http://127.0.0.1:1")


def test_the_keys_outlive_the_process_and_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "dev-issuer"
    first = made(folder)
    assert made(folder).jwks() == first.jwks()
    first.rotate()
    assert made(folder).jwks() == first.jwks()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()] == [("keys.json", 0o600)]


def test_keys_that_others_may_read_are_not_used(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "keys.json").chmod(0o640)
    with pytest.raises(KeysUnusable, match="can be read by others"):
        made(tmp_path)


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "{}", '{"keys":7}', '{"keys":[]}', '{"keys":[{"kty":"EC"}]}', '{"keys":[{"kty":"oct","k":"eA"}]}', "PUBLIC"],
)
def test_a_damaged_file_is_not_overwritten(tmp_path: Path, damaged: str) -> None:
    public = json.dumps(made(tmp_path).jwks())
    text = public if damaged == "PUBLIC" else damaged
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(KeysUnusable, match="delete it"):
        made(tmp_path)
    assert (tmp_path / "keys.json").read_text() == text


def test_a_key_that_cannot_be_kept_does_not_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = made(tmp_path)
    before = issuer.jwks()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        issuer.rotate()
    monkeypatch.undo()
    assert issuer.jwks() == before
    assert made(tmp_path).jwks() == before
    assert len(list(tmp_path.iterdir())) == 1


# -- its settings and its process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "idp.example", ""])
def test_it_listens_on_this_machine_only(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="host: "):
        DevIssuerSettings(tmp_path, (), host=host)


@pytest.mark.parametrize(
    "clients",
    [(DevClient("", "x"),), (DevClient("a", ""),), (DevClient("a", "x"), DevClient("a", "y")), (DevClient("a", "x", ("sub",)),)],
)
def test_clients_that_cannot_be_told_apart_or_proven_are_refused(tmp_path: Path, clients: tuple[DevClient, ...]) -> None:
    with pytest.raises(ValueError, match="clients: "):
        DevIssuerSettings(tmp_path, clients)


def test_secrets_are_not_in_the_representation(tmp_path: Path) -> None:
    assert SECRET not in repr(DevIssuerSettings(tmp_path, (REPORTING,)))


def test_the_process_warns_serves_rotates_and_ends_without_a_word_of_its_secrets(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("the-secret-of-reporting\n")
    command = [
        sys.executable,
        "-m",
        "pgwarden.dev_issuer",
        "--folder",
        str(tmp_path / "k"),
        "--port",
        "0",
        "--client",
        f"reporting={secret_file}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stderr is not None
        warning = process.stderr.readline()
        assert "FOR DEVELOPMENT ONLY" in warning
        url = next(word for word in warning.split() if word.startswith("http://127.0.0.1:"))
        with httpx.Client(base_url=url, trust_env=False) as http:
            for _ in range(200):
                try:
                    kids = [key["kid"] for key in http.get("/jwks").json()["keys"]]
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            answer = http.post("/token", data={"grant_type": "client_credentials"}, auth=("reporting", "the-secret-of-reporting"))
            token = answer.json()["access_token"]
            process.send_signal(signal.SIGHUP)
            for _ in range(200):
                if len(now := [key["kid"] for key in http.get("/jwks").json()["keys"]]) == 2:
                    break
                time.sleep(0.02)
            assert now[1:] == kids
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, err
    said = out + warning + err
    assert "the-secret-of-reporting" not in said
    assert token.split(".")[2] not in said


def test_a_secret_that_cannot_be_read_is_said_and_nothing_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = dev_issuer.main(["--folder", str(tmp_path / "k"), "--port", "0", "--client", f"reporting={tmp_path / 'nowhere'}"])
    assert status == 1
    assert "which cannot be read: no such file" in capsys.readouterr().err
    assert not (tmp_path / "k").exists()
