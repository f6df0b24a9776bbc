"""People with passwords in, authorization codes out: how somebody signs in to the development issuer, in a browser.

OpenID Connect's authorization code flow (Core §3.1) with PKCE (RFC 7636), which is required. A code is good once, for a minute, for
the client and the address that asked for it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import urlencode, urlsplit

CODES_MAX: Final = 64  # not redeemed yet; the oldest goes first
CODE_SECONDS: Final = 60  # RFC 6749 §4.1.2: at most ten minutes
PASSWORD_CHARACTERS_MIN: Final = 16  # nobody counts failures here, so it must not be guessable
PARAMETER_CHARACTERS_MAX: Final = 1024  # of one that comes back to its sender
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7636 §4.2: the SHA-256, in base64 without padding
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")  # RFC 7636 §4.1
_CARRIED: Final = (
    "client_id",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
)


@dataclass(frozen=True, slots=True)
class DevPerson:
    """Raises ValueError where the password could be guessed."""

    name: str
    password: str = field(repr=False)
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.password) < PASSWORD_CHARACTERS_MIN:
            raise ValueError(f"people: each has a name, and a password of at least {PASSWORD_CHARACTERS_MIN} characters")


@dataclass(frozen=True, slots=True)
class Asking:
    """An authorization request that may be answered: its client and its address are known."""

    client: str
    redirect: str
    scope: str
    state: str
    nonce: str
    challenge: str

    @property
    def carried(self) -> Mapping[str, str]:
        """The request again, for the form to bring back."""
        return {
            "client_id": self.client,
            "redirect_uri": self.redirect,
            "response_type": "code",
            "scope": self.scope,
            "state": self.state,
            "nonce": self.nonce,
            "code_challenge": self.challenge,
            "code_challenge_method": "S256",
        }


@dataclass(frozen=True, slots=True)
class Unanswerable:
    """Nobody can be told but the person at the browser: an address that is not known is led to by nobody (RFC 6749 §4.1.2.1)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Back:
    """The browser goes back to the client, with a code or with an error."""

    location: str


@dataclass(frozen=True, slots=True)
class Redeemed:
    person: DevPerson
    nonce: str
    scope: str


@dataclass(frozen=True, slots=True)
class _Code:
    asking: Asking
    person: DevPerson
    until: float


Answer: TypeAlias = Asking | Unanswerable | Back


class SignIn:
    """Owned by one event loop. `redirects` are the addresses of each client, exact to the byte."""

    def __init__(
        self, url: str, redirects: Mapping[str, Sequence[str]], people: Sequence[DevPerson], now: Callable[[], float]
    ) -> None:
        self._url = url
        self._redirects = redirects
        self._people = {person.name: person for person in people}
        self._now = now
        self._decoy = secrets.token_bytes(32)
        self._codes: OrderedDict[str, _Code] = OrderedDict()

    def asked(self, given: Mapping[str, str]) -> Answer:
        """What to do about an authorization request."""
        client, redirect = given.get("client_id", ""), given.get("redirect_uri", "")
        if redirect not in self._redirects.get(client, ()):
            return Unanswerable("This client is not known here, or it does not lead back to an address of its own.")
        if any(len(value) > PARAMETER_CHARACTERS_MAX for value in given.values()):
            return Unanswerable("A part of this request is too long.")
        state = given.get("state", "")
        wrong = ""
        if given.get("response_type") != "code":
            wrong = "unsupported_response_type"
        elif "openid" not in given.get("scope", "").split():
            wrong = "invalid_scope"
        elif given.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(given.get("code_challenge", "")):
            wrong = "invalid_request"  # RFC 7636 §4.4.1
        if wrong:
            return self._back(redirect, {"error": wrong, "state": state})
        return Asking(client, redirect, given["scope"], state, given.get("nonce", ""), given["code_challenge"])

    def signed(self, asking: Asking, name: str, password: str) -> Back | None:
        """Back to the client with a code; None where name and password do not fit."""
        person = self._people.get(name)
        # An unknown name costs the same comparison
        expected = hashlib.sha256(person.password.encode("utf-8")).digest() if person is not None else self._decoy
        right = hmac.compare_digest(hashlib.sha256(password.encode("utf-8", "replace")).digest(), expected)
        if person is None or not right:
            return None
        code = secrets.token_urlsafe(32)
        self._codes[code] = _Code(asking, person, self._now() + CODE_SECONDS)
        if len(self._codes) > CODES_MAX:
            self._codes.popitem(last=False)
        return self._back(asking.redirect, {"code": code, "state": asking.state})

    def redeemed(self, client: str, given: Mapping[str, str]) -> Redeemed | None:
        """Who stands behind a code, once; None where it is not this client's, is over, or another asks (RFC 7636 §4.6)."""
        code = self._codes.pop(given.get("code", ""), None)
        verifier = given.get("code_verifier", "")
        if code is None or code.until < self._now() or code.asking.client != client:
            return None
        if given.get("redirect_uri") != code.asking.redirect or _VERIFIER.fullmatch(verifier) is None:
            return None
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).decode().rstrip("=")
        if not hmac.compare_digest(challenge, code.asking.challenge):
            return None
        return Redeemed(code.person, code.asking.nonce, code.asking.scope)

    def _back(self, redirect: str, parameters: Mapping[str, str]) -> Back:
        told = {name: value for name, value in {**parameters, "iss": self._url}.items() if value}  # RFC 9207
        return Back(f"{redirect}?{urlencode(told)}")


def headers(redirect: str = "") -> Mapping[str, str]:
    """Nothing runs on these pages, nothing frames them; the form leads to the client alone, which browsers ask of redirects too."""
    parts = urlsplit(redirect)
    leads_to = f"'self' {parts.scheme}://{parts.netloc}" if redirect else "'none'"
    return {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; "
        f"form-action {leads_to}",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def form(asking: Asking, *, wrong: bool) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{html.escape(asking.carried[name], quote=True)}">' for name in _CARRIED
    )
    refused = '<p role="alert">Name and password do not fit.</p>' if wrong else ""
    return _page(
        f'{refused}<form method="post" action="/authorize">{hidden}'
        '<label>Name<input name="name" autocomplete="username" required autofocus></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
        "<button>Sign in</button></form>"
    )


def refusal(reason: str) -> str:
    return _page(f"<p>{html.escape(reason)}</p>")


def _page(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Development sign-in</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><style>'
        "body{font:15px/1.5 system-ui,sans-serif;max-width:24rem;margin:12vh auto;padding:0 1rem;color:#1c2127}"
        "label{display:block;margin:.8rem 0}input{display:block;width:100%;box-sizing:border-box;padding:.5rem;font:inherit}"
        "button{padding:.5rem 1.2rem;font:inherit;color:#fff;background:#1d4e6b;border:0}[role=alert]{color:#b3261e}"
        f"</style><main><h1>Development sign-in</h1>{body}</main></html>"
    )
