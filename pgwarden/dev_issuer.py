"""Clients with secrets in, RFC 9068 access tokens out: a small, real OIDC issuer for development on one machine.

People sign in to it by a form (`dev_sign_in`), for a client that leads back to an address of its own.

It listens on loopback in clear text and trusts whoever can read its folder. For anything else there are real ones (docs/oidc.md).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, assert_never
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from identity.settings import loopback
from pgwarden import dev_sign_in
from pgwarden.dev_sign_in import Asking, Back, DevPerson, SignIn, Unanswerable
from pgwarden.small_files import Unreadable, content, write_private

ALGORITHM: Final = "ES256"  # signs in 0.05 ms; a 2048-bit RSA key takes 20 times that, and a second to make
ASKED_CLAIMS: Final = ("scope", "groups", "invocation", "task")  # what a client may be allowed to say of itself

_KEYS_FILE_BYTES_MAX: Final = 65_536
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}  # RFC 6749 §5.1


class KeysUnusable(Exception):
    """The keys' file cannot be used as it is. Says what to do."""


@dataclass(frozen=True, slots=True)
class DevClient:
    id: str
    secret: str = field(repr=False)
    asks: tuple[str, ...] = ("invocation", "task")  # of ASKED_CLAIMS. With "groups" a client gives itself any group
    redirects: tuple[str, ...] = ()  # where people who signed in are led back to; () = nobody signs in through it


@dataclass(frozen=True, slots=True)
class DevIssuerSettings:
    """Raises ValueError where it would listen beyond this machine."""

    folder: Path  # holds the signing keys: 0700, and its file 0600
    clients: tuple[DevClient, ...]
    people: tuple[DevPerson, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8472  # 0 = any free one
    audience: str = "pgwarden"
    lifetime_seconds: int = 300
    keys_kept: int = 2  # the one that signs, and those before it, whose tokens are still about
    form_bytes_max: int = 8192
    fields_max: int = 32
    value_characters_max: int = 256  # of what a client asks for; identity.principal.LABEL_CHARACTERS_MAX
    connections_max: int = 64
    keep_alive_seconds: int = 5
    shutdown_seconds_max: int = 2

    def __post_init__(self) -> None:
        if not loopback(self.host):
            raise ValueError("host: the development issuer listens on 127.0.0.1, ::1 or localhost only")
        for client in self.clients:
            if not client.id or not client.secret:
                raise ValueError("clients: each has an id and a secret")
            if not set(client.asks) <= set(ASKED_CLAIMS):
                raise ValueError(f"clients: {client.id} may ask for {', '.join(ASKED_CLAIMS)} only")
            if not all(loopback(urlsplit(redirect).hostname or "") and "?" not in redirect for redirect in client.redirects):
                raise ValueError(f"clients: {client.id} leads people back to addresses of this machine only, without a query")
        if len({person.name for person in self.people}) != len(self.people):
            raise ValueError("people: a name is used twice")
        if len({client.id for client in self.clients}) != len(self.clients):
            raise ValueError("clients: an id is used twice")


@dataclass(frozen=True, slots=True)
class _Error:
    """RFC 6749 §5.2."""

    status: int
    error: str
    description: str


class DevIssuer:
    """Owned by one event loop. `url` is the issuer, whatever a request's Host header says."""

    def __init__(self, settings: DevIssuerSettings, url: str, now: Callable[[], float] = time.time) -> None:
        self.url = url
        self._settings = settings
        self._now = now
        self._clients = {client.id: client for client in settings.clients}
        self.sign_in = SignIn(url, {client.id: client.redirects for client in settings.clients}, settings.people, now)
        self._decoy = secrets.token_bytes(32)
        self._file = settings.folder / "keys.json"
        self._keys = _read_keys(self._file)
        if not self._keys:
            self.rotate()

    def rotate(self) -> str:
        """Sign with a new key from now on, and return its kid. The ones before it stay published, up to `keys_kept`."""
        made = jwk.ECKey.generate_key("P-256", {"alg": ALGORITHM, "use": "sig"})
        made.ensure_kid()  # RFC 7638
        keys = [made, *self._keys][: self._settings.keys_kept]
        _write_keys(self._file, keys)
        self._keys = keys
        assert made.kid is not None
        return made.kid

    def metadata(self) -> dict[str, object]:
        return {
            "issuer": self.url,
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "authorization_endpoint": f"{self.url}/authorize",
            "response_types_supported": ["code"],
            "scopes_supported": ["openid"],
            "code_challenge_methods_supported": ["S256"],  # RFC 8414 §2
            "authorization_response_iss_parameter_supported": True,  # RFC 9207
            "subject_types_supported": ["public"],
            "grant_types_supported": ["client_credentials", "authorization_code"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        }

    def jwks(self) -> dict[str, object]:
        return {"keys": [key.as_dict(private=False) for key in self._keys]}

    def answer(self, form: str, authorization: str | None) -> dict[str, object] | _Error:
        """The token endpoint, RFC 6749 §4.1.3 and §4.4."""
        try:
            pairs = parse_qsl(
                form, keep_blank_values=True, strict_parsing=bool(form), max_num_fields=self._settings.fields_max, errors="strict"
            )
        except ValueError:
            return _Error(400, "invalid_request", "the body is not a form")
        asked = dict(pairs)
        if len(asked) != len(pairs):
            return _Error(400, "invalid_request", "a parameter is there twice")  # RFC 6749 §3.2
        client = self._client(asked, authorization)
        if isinstance(client, _Error):
            return client
        if asked.get("grant_type") == "authorization_code":
            return self._of_person(client, asked)
        if asked.get("grant_type") != "client_credentials":
            return _Error(400, "unsupported_grant_type", "only client_credentials and authorization_code are served")
        for name in ("audience", "resource"):  # RFC 8707 §2
            if asked.get(name, self._settings.audience) != self._settings.audience:
                return _Error(400, "invalid_target", f"tokens are for {self._settings.audience} only")
        claims = self._asked_claims(client, asked)
        return claims if isinstance(claims, _Error) else self._token(client, claims)

    def _client(self, asked: Mapping[str, str], authorization: str | None) -> DevClient | _Error:
        if authorization is not None and "client_secret" in asked:
            return _Error(400, "invalid_request", "the client authenticates twice")  # RFC 6749 §2.3
        posted = (asked.get("client_id", ""), asked.get("client_secret", ""))
        given = posted if authorization is None else _basic(authorization)
        failed = _Error(401, "invalid_client", "the client is not known, or its secret is wrong")
        if given is None or asked.get("client_id", given[0]) != given[0]:
            return failed
        client = self._clients.get(given[0])
        # An unknown client costs the same comparison
        expected = hashlib.sha256(client.secret.encode("utf-8")).digest() if client is not None else self._decoy
        right = hmac.compare_digest(hashlib.sha256(given[1].encode("utf-8")).digest(), expected)
        return client if client is not None and right else failed

    def _asked_claims(self, client: DevClient, asked: Mapping[str, str]) -> dict[str, object] | _Error:
        claims: dict[str, object] = {}
        for name in ASKED_CLAIMS:
            value = asked.get(name, "")
            if not value:
                continue
            if name not in client.asks:
                return _Error(400, "invalid_scope" if name == "scope" else "invalid_request", f"this client may not set {name}")
            if len(value) > self._settings.value_characters_max or not value.isprintable():
                return _Error(400, "invalid_request", f"{name} is too long, or cannot be printed")
            claims[name] = value.split() if name == "groups" else value
        return claims

    def _of_person(self, client: DevClient, asked: Mapping[str, str]) -> dict[str, object] | _Error:
        """OpenID Connect Core §3.1.3: an access token of the person, and an ID token that says who they are."""
        redeemed = self.sign_in.redeemed(client.id, asked)
        if redeemed is None:
            return _Error(400, "invalid_grant", "the code is over, is another's, or was not asked for by this client")
        person = redeemed.person
        answer = self._token(client, {"groups": list(person.groups), "scope": redeemed.scope}, person.name)
        now, signer = int(self._now()), self._keys[0]
        claims: dict[str, object] = {  # OpenID Connect Core §2
            "iss": self.url,
            "aud": client.id,
            "sub": person.name,
            "name": person.name,
            "iat": now,
            "exp": now + self._settings.lifetime_seconds,
        }
        if redeemed.nonce:
            claims["nonce"] = redeemed.nonce
        header = {"typ": "JWT", "alg": ALGORITHM, "kid": signer.kid}
        return answer | {"id_token": jwt.encode(header, claims, signer, algorithms=[ALGORITHM])}

    def _token(self, client: DevClient, asked: Mapping[str, object], subject: str = "") -> dict[str, object]:
        now, signer = int(self._now()), self._keys[0]
        claims: dict[str, object] = {  # RFC 9068 §2.2
            **asked,
            "iss": self.url,
            "aud": self._settings.audience,
            "sub": subject or client.id,
            "client_id": client.id,
            "iat": now,
            "exp": now + self._settings.lifetime_seconds,
            "jti": secrets.token_urlsafe(16),
        }
        header = {"typ": "at+jwt", "alg": ALGORITHM, "kid": signer.kid}
        token = jwt.encode(header, claims, signer, algorithms=[ALGORITHM])
        answer: dict[str, object] = {"access_token": token, "token_type": "Bearer", "expires_in": self._settings.lifetime_seconds}
        return answer | ({"scope": asked["scope"]} if "scope" in asked else {})


def app(issuer: DevIssuer, settings: DevIssuerSettings) -> FastAPI:
    served = FastAPI(title="pgwarden development issuer", docs_url=None, redoc_url=None, openapi_url=None)

    @served.get("/.well-known/openid-configuration")
    @served.get("/.well-known/oauth-authorization-server")  # RFC 8414 §3
    async def metadata() -> JSONResponse:
        return JSONResponse(issuer.metadata())

    @served.get("/jwks")
    async def jwks() -> JSONResponse:
        return JSONResponse(issuer.jwks())

    @served.get("/authorize")
    async def authorize(request: Request) -> Response:
        return _authorize(issuer.sign_in, dict(request.query_params), "", "")

    @served.post("/authorize")
    async def sign_in(request: Request) -> Response:
        posted = await _form(request, settings.form_bytes_max)
        try:
            given = dict(parse_qsl(posted or "", keep_blank_values=True, max_num_fields=settings.fields_max, errors="strict"))
        except ValueError:
            given = {}
        return _authorize(issuer.sign_in, given, given.pop("name", ""), given.pop("password", ""))

    @served.post("/token")
    async def token(request: Request) -> JSONResponse:
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        form = await _form(request, settings.form_bytes_max)
        if kind != "application/x-www-form-urlencoded" or form is None:
            answer: dict[str, object] | _Error = _Error(
                400, "invalid_request", "send a short application/x-www-form-urlencoded body"
            )
        else:
            answer = issuer.answer(form, request.headers.get("Authorization"))
        if isinstance(answer, _Error):
            headers = _NO_STORE | ({"WWW-Authenticate": 'Basic realm="pgwarden development"'} if answer.status == 401 else {})
            body = {"error": answer.error, "error_description": answer.description}
            return JSONResponse(body, status_code=answer.status, headers=headers)
        return JSONResponse(answer, headers=_NO_STORE)

    return served


def _authorize(sign_in: SignIn, given: Mapping[str, str], name: str, password: str) -> Response:
    asked = sign_in.asked(given)
    match asked:
        case Back(location):
            return RedirectResponse(location, 303, headers=dict(dev_sign_in.headers()))
        case Asking(redirect=redirect):
            tried = bool(name or password)
            back = sign_in.signed(asked, name, password) if tried else None
            if back is not None:
                return RedirectResponse(back.location, 303, headers=dict(dev_sign_in.headers()))
            page = dev_sign_in.form(asked, wrong=tried)
            return HTMLResponse(page, 403 if tried else 200, headers=dict(dev_sign_in.headers(redirect)))
        case Unanswerable(reason):
            return HTMLResponse(dev_sign_in.refusal(reason), 400, headers=dict(dev_sign_in.headers()))
        case _:
            assert_never(asked)


def listener(settings: DevIssuerSettings) -> socket.socket:
    """Bind, so that the port and with it the issuer's name are known before anything is served. The caller closes it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError:
        listening.close()
        raise
    return listening


def url_of(settings: DevIssuerSettings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `run`'s, so that the process ends with a status of its own."""
        yield


def server(issuer: DevIssuer, settings: DevIssuerSettings) -> Server:
    return Server(
        uvicorn.Config(
            app(issuer, settings),
            access_log=False,
            log_config=None,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.connections_max,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds_max,
        )
    )


def run(settings: DevIssuerSettings) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP rotates the key.

    Raises:
        KeysUnusable: The keys' file is damaged, or others may read it.
        OSError: The port is taken, or the folder cannot be written.
    """
    with contextlib.closing(listener(settings)) as listening:
        issuer = DevIssuer(settings, url_of(settings, listening))
        serving = server(issuer, settings)
        sys.stderr.write(
            f"WARNING: {issuer.url} issues access tokens FOR DEVELOPMENT ONLY: clear text, loopback, keys in a file."
            " Configure a real issuer before anything but this machine depends on it.\n"
        )
        sys.stderr.flush()
        asyncio.run(_serve(issuer, serving, listening))


async def _serve(issuer: DevIssuer, serving: Server, listening: socket.socket) -> None:
    def stop() -> None:
        serving.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, issuer.rotate)
    await serving.serve([listening])


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pgwarden.dev_issuer`. Secrets come from files: a command line is everybody's to read."""
    parser = argparse.ArgumentParser(
        prog="pgwarden.dev_issuer", description="An OIDC issuer for development, on this machine only."
    )
    parser.add_argument("--folder", type=Path, required=True, help="where its keys are kept")
    parser.add_argument("--port", type=int, default=8472, help="on 127.0.0.1; 0 takes any free one")
    parser.add_argument("--audience", default="pgwarden", help="what its tokens are for")
    parser.add_argument(
        "--client", action="append", default=[], metavar="ID=FILE", help="a client and the file that holds its secret"
    )
    parser.add_argument(
        "--redirect",
        action="append",
        default=[],
        metavar="ID=URL",
        help="where people who sign in through a client are led back to",
    )
    parser.add_argument(
        "--person",
        action="append",
        default=[],
        metavar="NAME:GROUP,...=FILE",
        help="a person and the file that holds their password",
    )
    given = parser.parse_args(arguments)
    try:
        redirects = [text.partition("=") for text in given.redirect]
        clients = tuple(
            replace(client, redirects=tuple(url for id_, _, url in redirects if id_ == client.id))
            for client in map(_client_of, given.client)
        )
        people = tuple(_person_of(text) for text in given.person)
        run(DevIssuerSettings(given.folder, clients, people, port=given.port, audience=given.audience))
    except (KeysUnusable, OSError, ValueError) as error:
        sys.stderr.write(f"development issuer: {error}\n")
        return 1
    return 0


def _client_of(text: str) -> DevClient:
    id_, _, file = text.partition("=")
    return DevClient(id_, _secret(f"client {id_}", file))


def _person_of(text: str) -> DevPerson:
    who, _, file = text.partition("=")
    name, _, groups = who.partition(":")
    return DevPerson(name, _secret(f"person {name}", file), tuple(filter(None, groups.split(","))))


def _secret(whose: str, file: str) -> str:
    found = content(Path(file), 4096)
    if isinstance(found, Unreadable):
        raise ValueError(f"the secret of {whose} is in {file}, {found.reason}")
    return found.data.decode("utf-8").strip()


async def _form(request: Request, bytes_max: int) -> str | None:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > bytes_max:
            return None
    try:
        return received.decode("ascii")
    except UnicodeDecodeError:
        return None


def _basic(authorization: str) -> tuple[str, str] | None:
    """RFC 6749 §2.3.1: both parts are form-encoded before they are joined."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        id_, colon, secret = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
        return (unquote_plus(id_, errors="strict"), unquote_plus(secret, errors="strict")) if colon else None
    except (binascii.Error, ValueError):
        return None


def _read_keys(file: Path) -> list[jwk.ECKey]:
    found = content(file, _KEYS_FILE_BYTES_MAX)
    if isinstance(found, Unreadable):
        if found.missing:
            return []
        raise KeysUnusable(f"{file}, {found.reason}")
    if found.mode & 0o077:
        raise KeysUnusable(f"{file} can be read by others, who could sign tokens with it: delete it, and new keys are made")
    unusable = KeysUnusable(f"{file} does not hold the signing keys: delete it, and new ones are made")
    try:
        keys = [jwk.ECKey.import_key(member) for member in json.loads(found.data)["keys"]]
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise unusable from error
    if not keys or not all(key.is_private and key.kid and key.curve_name == "P-256" for key in keys):
        raise unusable
    return keys


def _write_keys(file: Path, keys: Sequence[jwk.ECKey]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, json.dumps({"keys": [key.as_dict(private=True) for key in keys]}))


if __name__ == "__main__":
    sys.exit(main())
