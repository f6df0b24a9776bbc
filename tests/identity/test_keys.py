from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable

import pytest

from identity import authentication
from identity.claims import OperatorClaims
from identity.keys import JwksCache
from identity.principal import Principal
from identity.refusal import Refusal
from identity.settings import IssuerRules, KeysSettings
from identity.tokens import KeySet
from tests.identity.token_shapes import NOW_US, P256, RSA, STRICT, agents, jwks, keycloak_person, rfc9068, row, signed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """A small honest HTTP server: what it serves at each path, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self.answers: dict[str, bytes] = {}
        self.delay_seconds = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serves(self, *keys: dict[str, object]) -> None:
        self.answers["/.well-known/openid-configuration"] = _ok({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})
        self.answers["/jwks"] = _http(200, jwks(*keys))

    def count(self, path: str) -> int:
        return self.asked.count(path)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                self.heads.append(head)
                await asyncio.sleep(self.delay_seconds)
                writer.write(self.answers.get(path, _http(404, b"")))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _http(status: int, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def _ok(document: object) -> bytes:
    return _http(200, json.dumps(document).encode())


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    served = Issuer()
    server = await asyncio.start_server(served.handle, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    served.serves(RSA.jwk())
    async with server:
        yield served
        server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(clock: Clock) -> AsyncIterator[JwksCache]:
    made = JwksCache(KeysSettings(fetch_seconds_max=0.5), clock)
    yield made
    await made.close()


def rules_of(issuer: Issuer, **changes: object) -> IssuerRules:
    return dataclasses.replace(STRICT, issuer=issuer.url, insecure_http=True, **changes)


def kids(found: KeySet | Refusal) -> set[str]:
    assert isinstance(found, KeySet), found
    return {key.kid for key in found.keys}


def reason(found: KeySet | Refusal) -> str:
    assert isinstance(found, Refusal), found
    return found.reason


# -- discovery -------------------------------------------------------------------------------------------------------------------


async def test_keys_are_found_through_the_metadata_and_kept(issuer: Issuer, cache: JwksCache) -> None:
    for _ in range(3):
        assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == {"rsa-1"}
    assert issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_metadata_is_also_found_where_rfc_8414_puts_it(issuer: Issuer, cache: JwksCache) -> None:
    issuer.answers = {
        "/.well-known/oauth-authorization-server/realms/agents": _ok(
            {"issuer": f"{issuer.url}/realms/agents", "jwks_uri": f"{issuer.url}/k"}
        ),
        "/k": _http(200, jwks(RSA.jwk())),
    }
    rules = dataclasses.replace(rules_of(issuer), issuer=f"{issuer.url}/realms/agents")
    assert kids(await cache.keys(rules, "")) == {"rsa-1"}
    assert issuer.asked[0] == "/realms/agents/.well-known/openid-configuration"


async def test_a_slash_at_the_issuers_end_is_dropped_for_the_address_only(issuer: Issuer, cache: JwksCache) -> None:
    issuer.answers["/.well-known/openid-configuration"] = _ok({"issuer": f"{issuer.url}/", "jwks_uri": f"{issuer.url}/jwks"})
    assert kids(await cache.keys(dataclasses.replace(rules_of(issuer), issuer=f"{issuer.url}/"), "")) == {"rsa-1"}
    assert "another issuer" in reason(await cache.keys(rules_of(issuer), ""))


async def test_a_row_with_a_jwks_uri_needs_no_metadata(issuer: Issuer, cache: JwksCache) -> None:
    assert kids(await cache.keys(rules_of(issuer, jwks_uri=f"{issuer.url}/jwks"), "")) == {"rsa-1"}
    assert issuer.asked == ["/jwks"]


async def test_a_row_with_its_keys_asks_nobody(issuer: Issuer, cache: JwksCache) -> None:
    rules = rules_of(issuer, jwks=jwks(P256.jwk()).decode())
    assert kids(await cache.keys(rules, "unknown")) == {"p256"}
    assert issuer.asked == []
    assert "not well-formed" in reason(await cache.keys(rules_of(issuer, jwks="{"), ""))


async def test_rows_of_one_issuer_share_its_keys(issuer: Issuer, cache: JwksCache) -> None:
    await cache.keys(rules_of(issuer), "")
    await cache.keys(rules_of(issuer, name="people", audience="api"), "")
    assert issuer.count("/jwks") == 1


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"issuer": "http://evil.example", "jwks_uri": "JWKS"}, "another issuer"),
        ({"issuer": "ISSUER/", "jwks_uri": "JWKS"}, "another issuer"),
        ({"jwks_uri": "JWKS"}, "another issuer"),
        ({"issuer": "ISSUER"}, "no jwks_uri"),
        ({"issuer": "ISSUER", "jwks_uri": ["JWKS"]}, "no jwks_uri"),
        ({"issuer": "ISSUER", "jwks_uri": "https://evil.example/jwks"}, "neither the issuer's host"),
        ({"issuer": "ISSUER", "jwks_uri": "https://127.0.0.1.evil.example/jwks"}, "neither the issuer's host"),
        ({"issuer": "ISSUER", "jwks_uri": "http://10.0.0.1/jwks"}, "not an https URL"),
        ({"issuer": "ISSUER", "jwks_uri": "file:///etc/passwd"}, "not an https URL"),
        ({"issuer": "ISSUER", "jwks_uri": "data:application/json,{}"}, "not an https URL"),
        ({"issuer": "ISSUER", "jwks_uri": "https://127.0.0.1@evil.example/jwks"}, "not a plain URL"),
        ({"issuer": "ISSUER", "jwks_uri": "https://[::1"}, "not a URL"),
    ],
)
async def test_metadata_cannot_lead_astray(issuer: Issuer, cache: JwksCache, metadata: dict[str, object], why: str) -> None:
    text = json.dumps(metadata).replace("ISSUER", issuer.url).replace("JWKS", f"{issuer.url}/jwks")
    issuer.answers["/.well-known/openid-configuration"] = _http(200, text.encode())
    assert why in reason(await cache.keys(rules_of(issuer), ""))
    assert issuer.count("/jwks") == 0


async def test_metadata_may_lead_to_a_host_that_the_row_names(issuer: Issuer, cache: JwksCache) -> None:
    issuer.answers["/.well-known/openid-configuration"] = _ok(
        {"issuer": issuer.url, "jwks_uri": f"http://localhost:{issuer.port}/jwks"}
    )
    assert "jwks_hosts" in reason(await cache.keys(rules_of(issuer), ""))
    assert kids(await cache.keys(rules_of(issuer, jwks_hosts=("localhost",)), "")) == {"rsa-1"}


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/jwks"])
async def test_redirects_are_not_followed(issuer: Issuer, cache: JwksCache, path: str) -> None:
    issuer.answers["/elsewhere"] = issuer.answers[path]
    issuer.answers[path] = _http(302, b"", f"Location: {issuer.url}/elsewhere")
    assert "answered 302" in reason(await cache.keys(rules_of(issuer), ""))
    assert issuer.count("/elsewhere") == 0


@pytest.mark.parametrize("declared", [True, False])
async def test_a_document_over_a_megabyte_is_not_read_to_its_end(issuer: Issuer, cache: JwksCache, declared: bool) -> None:
    body = b" " * (2**20 + 1)
    issuer.answers["/jwks"] = _http(200, body) if declared else b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n" + body
    assert "more than 1048576 bytes" in reason(await cache.keys(rules_of(issuer), ""))


async def test_a_compressed_answer_is_refused(issuer: Issuer, cache: JwksCache) -> None:
    issuer.answers["/jwks"] = _http(200, jwks(RSA.jwk()), "Content-Encoding: gzip")
    assert "compressed" in reason(await cache.keys(rules_of(issuer), ""))


async def test_an_issuer_that_does_not_answer_is_waited_for_only_so_long(issuer: Issuer, cache: JwksCache) -> None:
    issuer.delay_seconds = 30
    assert "no answer within 0.5 s" in reason(await cache.keys(rules_of(issuer), ""))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"keys":1}', b'{"keys":[],"keys":[]}'])
async def test_an_answer_that_is_no_jwks_is_a_failure(issuer: Issuer, cache: JwksCache, body: bytes) -> None:
    issuer.answers["/jwks"] = _http(200, body)
    assert "the JWKS" in reason(await cache.keys(rules_of(issuer), ""))


async def test_an_https_issuer_with_a_certificate_nobody_signed_is_refused(issuer: Issuer, cache: JwksCache) -> None:
    rules = dataclasses.replace(STRICT, issuer=f"https://127.0.0.1:{issuer.port}")
    assert isinstance(await cache.keys(rules, ""), Refusal)
    assert "FileNotFoundError" in reason(await cache.keys(dataclasses.replace(rules, ca_file="/nowhere.pem"), ""))


async def test_the_environment_names_no_proxy(issuer: Issuer, cache: JwksCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert kids(await cache.keys(rules_of(issuer), "")) == {"rsa-1"}
    assert b"identity" in issuer.heads[0]


# -- rotation --------------------------------------------------------------------------------------------------------------------


async def test_a_new_key_is_found_by_the_first_token_that_it_signs(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    issuer.serves(RSA.jwk(), P256.jwk())
    clock.now += 1
    assert kids(await cache.keys(rules_of(issuer), "p256")) == {"rsa-1", "p256"}


async def test_unknown_kids_cause_one_fetch_in_thirty_seconds(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    for number in range(100):
        assert kids(await cache.keys(rules_of(issuer), f"garbage-{number}")) == {"rsa-1"}
    assert issuer.count("/jwks") == 2
    clock.now += 29.9
    await cache.keys(rules_of(issuer), "garbage")
    assert issuer.count("/jwks") == 2
    clock.now += 0.2
    await cache.keys(rules_of(issuer), "garbage")
    assert issuer.count("/jwks") == 3


async def test_unknown_kids_cause_no_more_fetches_while_the_issuer_is_down(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    issuer.answers = {}
    for _ in range(100):
        await cache.keys(rules_of(issuer), "garbage")
    assert issuer.count("/.well-known/openid-configuration") == 2


async def test_all_that_wait_share_one_fetch(issuer: Issuer, cache: JwksCache) -> None:
    issuer.delay_seconds = 0.05
    found = await asyncio.gather(*[cache.keys(rules_of(issuer), "rsa-1") for _ in range(50)])
    assert all(kids(keys) == {"rsa-1"} for keys in found)
    assert issuer.count("/jwks") == 1


async def test_one_that_hangs_up_does_not_take_the_keys_from_the_others(issuer: Issuer, cache: JwksCache) -> None:
    issuer.delay_seconds = 0.05
    first = asyncio.create_task(cache.keys(rules_of(issuer), "rsa-1"))
    second = asyncio.create_task(cache.keys(rules_of(issuer), "rsa-1"))
    await asyncio.sleep(0.01)
    first.cancel()
    assert kids(await second) == {"rsa-1"}
    assert first.cancelled()
    assert issuer.count("/jwks") == 1


async def test_a_key_that_was_taken_away_is_gone_after_the_soft_ttl(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    issuer.serves(P256.jwk())
    clock.now += 299
    assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == {"rsa-1"}
    clock.now += 2
    assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == {"p256"}


async def test_an_issuer_that_took_its_last_key_away_is_believed(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    issuer.serves()
    clock.now += 301
    assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == set()
    assert cache.states()[0].degraded == "it publishes no key that can verify"


# -- outage ----------------------------------------------------------------------------------------------------------------------


def _gone(issuer: Issuer) -> None:
    issuer.answers = {}


def _garbled(issuer: Issuer) -> None:
    issuer.answers["/jwks"] = _http(200, b"<html>")


def _closing(issuer: Issuer) -> None:
    issuer.answers["/jwks"] = b""
    issuer.delay_seconds = 30


@pytest.mark.parametrize("outage", [_gone, _garbled, _closing])
async def test_an_outage_leaves_the_keys_until_the_hard_ttl_and_then_nobody_is_verified(
    issuer: Issuer, cache: JwksCache, clock: Clock, outage: Callable[[Issuer], None]
) -> None:
    await cache.keys(rules_of(issuer), "rsa-1")
    assert cache.states()[0].degraded == ""
    outage(issuer)
    clock.now += 86_399
    assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == {"rsa-1"}
    state = cache.states()[0]
    assert state.degraded != ""
    assert (state.issuer, state.keys, state.age_seconds) == (issuer.url, 1, 86_399)
    clock.now += 2
    assert "no keys of issuer strict" in reason(await cache.keys(rules_of(issuer), "rsa-1"))


async def test_it_recovers_by_itself(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    answers = dict(issuer.answers)
    issuer.answers = {}
    assert isinstance(await cache.keys(rules_of(issuer), "rsa-1"), Refusal)
    issuer.answers = answers
    assert isinstance(await cache.keys(rules_of(issuer), "rsa-1"), Refusal)  # not asked again at once
    assert issuer.count("/jwks") == 0
    clock.now += 1
    assert kids(await cache.keys(rules_of(issuer), "rsa-1")) == {"rsa-1"}
    assert cache.states()[0].degraded == ""


async def test_an_issuer_that_is_down_is_asked_ever_less(issuer: Issuer, cache: JwksCache, clock: Clock) -> None:
    issuer.answers = {}
    for _ in range(600):
        await cache.keys(rules_of(issuer), "rsa-1")
        clock.now += 1
    # after 1, 2, 4, 8, 16 s and then every 30 s: 6 + 19 times in ten minutes
    assert 20 <= issuer.count("/.well-known/openid-configuration") <= 26


async def test_closing_ends_a_fetch_under_way(issuer: Issuer, cache: JwksCache) -> None:
    issuer.delay_seconds = 30
    waiting = asyncio.create_task(cache.keys(rules_of(issuer), ""))
    await asyncio.sleep(0.02)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- from bearer token to principal ------------------------------------------------------------------------------------------------


async def test_a_token_becomes_a_principal_under_its_issuers_row(issuer: Issuer, cache: JwksCache) -> None:
    rows = [STRICT, rules_of(issuer, name="here")]
    agent_of = agents(("reporter", "reporter", ""))
    found = await authentication.principal(signed(rfc9068(iss=issuer.url)), rows, cache, agent_of, NOW_US)
    assert isinstance(found, Principal)
    assert found.agent == "reporter"
    unknown = await authentication.principal(signed(rfc9068(iss="https://evil.example")), rows, cache, agent_of, NOW_US)
    assert unknown == Refusal("the token's issuer is not configured here")
    assert isinstance(await authentication.principal("not.a.token", rows, cache, agent_of, NOW_US), Refusal)


async def test_agents_and_people_of_one_issuer_have_a_row_each(cache: JwksCache) -> None:
    keys = {"jwks": jwks(RSA.jwk()).decode()}
    rows = [row("keycloak", **keys), row("keycloak_people", **keys)]
    person = signed(keycloak_person(), typ="JWT")
    found = await authentication.operator(person, rows, cache, NOW_US)
    assert isinstance(found, OperatorClaims)
    assert found.name == "ada"
    refused = await authentication.principal(person, rows, cache, agents(("reporter", "reporter", "")), NOW_US)
    assert isinstance(refused, Refusal)
    assert "keycloak: " in refused.reason
    assert "keycloak_people: " in refused.reason
