from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from pgwarden import dev_issuer
from pgwarden.dev_issuer import DevClient, DevIssuer, DevIssuerSettings
from pgwarden.dev_sign_in import CODE_SECONDS, CODES_MAX, Asking, Back, DevPerson, SignIn, Unanswerable

HERE = "http://127.0.0.1:8471/oauth2callback"
SECRET = "the secret of the desk"
PASSWORD = "a password of some length"
RITA = DevPerson("rita", PASSWORD, ("responders",))
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
ASKED = {
    "client_id": "desk",
    "redirect_uri": HERE,
    "response_type": "code",
    "scope": "openid profile",
    "state": "s-1",
    "nonce": "n-1",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def made(clock: Clock | None = None) -> SignIn:
    return SignIn("http://127.0.0.1:1", {"desk": (HERE,), "other": ()}, (RITA,), clock or Clock())


def code(sign_in: SignIn) -> str:
    asking = sign_in.asked(ASKED)
    assert isinstance(asking, Asking)
    back = sign_in.signed(asking, "rita", PASSWORD)
    assert back is not None
    told = parse_qs(urlsplit(back.location).query)
    assert told["state"] == ["s-1"]
    assert told["iss"] == ["http://127.0.0.1:1"]
    return told["code"][0]


def redeem(sign_in: SignIn, **changes: str) -> object:
    given = {"code": code(sign_in), "redirect_uri": HERE, "code_verifier": VERIFIER, "client": "desk", **changes}
    return sign_in.redeemed(given.pop("client"), given)


def test_a_code_is_the_persons_once() -> None:
    sign_in = made()
    given = {"code": code(sign_in), "redirect_uri": HERE, "code_verifier": VERIFIER}
    redeemed = sign_in.redeemed("desk", given)
    assert redeemed is not None
    assert (redeemed.person, redeemed.nonce) == (RITA, "n-1")
    assert sign_in.redeemed("desk", given) is None


@pytest.mark.parametrize(
    "changes",
    [{"code_verifier": "w" * 64}, {"code_verifier": ""}, {"redirect_uri": HERE + "/"}, {"client": "other"}, {"code": "guessed"}],
)
def test_a_code_is_worth_nothing_to_whoever_did_not_ask_for_it(changes: dict[str, str]) -> None:
    assert redeem(made(), **changes) is None


def test_a_code_is_over_after_a_minute_and_the_oldest_of_many_goes() -> None:
    clock = Clock()
    sign_in = made(clock)
    first = code(sign_in)
    for _ in range(CODES_MAX):
        last = code(sign_in)
    given = {"redirect_uri": HERE, "code_verifier": VERIFIER}
    assert sign_in.redeemed("desk", {**given, "code": first}) is None
    clock.seconds += CODE_SECONDS + 1
    assert sign_in.redeemed("desk", {**given, "code": last}) is None


@pytest.mark.parametrize("address", ["http://127.0.0.1:8471/other", "https://evil.example/oauth2callback", "", HERE + "?a=b"])
def test_nobody_is_led_to_an_address_that_is_not_the_clients(address: str) -> None:
    assert isinstance(made().asked({**ASKED, "redirect_uri": address}), Unanswerable)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "profile"}, "invalid_scope"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
    ],
)
def test_a_request_that_is_wrong_goes_back_to_its_client_with_the_reason(changes: dict[str, str], error: str) -> None:
    back = made().asked({**ASKED, **changes})
    assert isinstance(back, Back)
    assert parse_qs(urlsplit(back.location).query)["error"] == [error]


@hypothesis_given(st.dictionaries(st.sampled_from([*ASKED, "prompt"]), st.text(max_size=50), max_size=9))
def test_whatever_is_asked_is_answered_and_nothing_leads_away(asked: dict[str, str]) -> None:
    answer = made().asked({**ASKED, **asked})
    if isinstance(answer, Back):
        assert answer.location.startswith(f"{HERE}?")
    elif isinstance(answer, Asking):
        assert answer.redirect == HERE


def test_a_password_that_could_be_guessed_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="at least 16 characters"):
        DevPerson("rita", "short")


@pytest.fixture
async def issuer(tmp_path: Path) -> httpx.AsyncClient:
    settings = DevIssuerSettings(tmp_path / "keys", (DevClient("desk", SECRET, redirects=(HERE,)),), (RITA,), port=0)
    made = DevIssuer(settings, "http://127.0.0.1:1")
    return httpx.AsyncClient(base_url=made.url, transport=httpx.ASGITransport(dev_issuer.app(made, settings)))


async def test_somebody_signs_in_by_the_form_and_the_client_gets_both_tokens(issuer: httpx.AsyncClient) -> None:
    hostile = {**ASKED, "state": '"><script>alert(1)</script>'}
    page = await issuer.get("/authorize", params=hostile)
    assert page.status_code == 200
    assert "<script>" not in page.text
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    wrong = await issuer.post("/authorize", data={**ASKED, "name": "rita", "password": "a guess"})
    assert (wrong.status_code, "do not fit" in wrong.text, PASSWORD in wrong.text) == (403, True, False)
    right = await issuer.post("/authorize", data={**ASKED, "name": "rita", "password": PASSWORD})
    assert right.status_code == 303
    form = {
        "grant_type": "authorization_code",
        "code": parse_qs(urlsplit(right.headers["Location"]).query)["code"][0],
        "redirect_uri": HERE,
        "code_verifier": VERIFIER,
    }
    stranger = await issuer.post("/token", data=form, auth=("desk", "a guess"))
    assert stranger.status_code == 401
    answer = await issuer.post("/token", data=form, auth=("desk", SECRET.replace(" ", "+")))
    assert answer.status_code == 200, answer.text
    access, identity = (_claims(answer.json()[name]) for name in ("access_token", "id_token"))
    assert (access["aud"], access["sub"], access["client_id"], access["groups"]) == ("pgwarden", "rita", "desk", ["responders"])
    assert (identity["aud"], identity["sub"], identity["nonce"]) == ("desk", "rita", "n-1")
    again = await issuer.post("/token", data=form, auth=("desk", SECRET.replace(" ", "+")))
    assert again.json()["error"] == "invalid_grant"


async def test_a_body_that_is_too_long_or_no_form_signs_nobody_in(issuer: httpx.AsyncClient) -> None:
    for body in (b"x" * 100_000, b"\xff\xfe", b"&".join(b"a%d=1" % n for n in range(100))):
        answer = await issuer.post("/authorize", content=body)
        assert answer.status_code == 400


def _claims(token: str) -> dict[str, object]:
    part = token.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims
