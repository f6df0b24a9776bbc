"""One call of the HTTP API -> its answer, or why there is none. Where the API is, and with which key, as the command line says."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from identity.settings import loopback
from pgwarden import settings
from pgwarden.printable import printable
from pgwarden.references import Secret, resolve
from pgwarden.small_files import Unreadable, content

Json: TypeAlias = "dict[str, object]"

ANSWER_BYTES_MAX: Final = 64 * 2**20  # guarded SQL answers up to 10 MB; a list of 1,000 statements of 16 KB is 16 MB
CHUNK_BYTES: Final = 2**20  # of a download, in memory at once
TIMEOUT_SECONDS: Final = 60.0  # guarded SQL may take 30
CONFIG_FILES: Final = ("pgwarden.toml", ".pgwarden/pgwarden.toml")  # the second is what `pgwarden up` writes for itself
KEY_FILE: Final = "operator.key"  # in the state folder, written by `pgwarden up`
KEY_VARIABLE: Final = "PGWARDEN_OPERATOR_KEY"
API_VARIABLE: Final = "PGWARDEN_API"
CONFIG_VARIABLE: Final = "PGWARDEN_CONFIG"


class BadUsage(Exception):
    """What the command line, the environment or a file says cannot be used. Says what to write instead."""


class ApiRefused(Exception):
    """The API answered that it did not do it. Holds the whole answer."""

    def __init__(self, status: int, answer: Json) -> None:
        super().__init__(f"{answer.get('error', f'the API answered with status {status}')}")
        self.status = status
        self.answer = answer


class ApiUnreachable(Exception):
    """No answer came. A command may or may not have been carried out."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the API is, and what opens it."""

    url: str
    key: Secret


def find(
    api: str, key_file: str, config_file: str, insecure_http: bool, environ: Mapping[str, str] = os.environ, folder: Path = Path()
) -> Place:
    """`api`, `key_file` and `config_file` are the options, "" where they were not given.

    Raises:
        BadUsage: The address or the key is missing or cannot be used.
    """
    state, listen = _of_config_file(config_file or environ.get(CONFIG_VARIABLE, ""), folder)
    url = api or environ.get(API_VARIABLE, "") or f"http://{listen}"
    _check(url, insecure_http)
    if key_file:
        reference = f"file:{key_file}"
    elif KEY_VARIABLE in environ:
        reference = f"env:{KEY_VARIABLE}"
    elif (state / KEY_FILE).exists():
        reference = f"file:{state / KEY_FILE}"
    else:
        where = printable(str(state / KEY_FILE))
        raise BadUsage(f"no operator key; put it into {where}, set {KEY_VARIABLE}, or name a file with --operator-key-file")
    key = resolve(reference, folder, environ)
    if not isinstance(key, Secret):
        raise BadUsage(f"the operator key {key.reason}; {key.remedy}")
    if not key.reveal().isascii():
        raise BadUsage(f"the operator key in {key.source} has letters that no key has; write the key that pgwarden init showed")
    return Place(url, key)


def call(place: Place, method: str, path: str, body: Json | None = None, idempotency_key: str = "") -> Json:
    """
    Raises:
        ApiRefused: The API says no, or has failed.
        ApiUnreachable: It does not answer.
    """
    data, status, _ = _exchange(place, method, path, body, idempotency_key, "application/json")
    answer = _json(data, status, place.url)
    if not 200 <= status < 300:
        raise ApiRefused(status, answer)
    return answer


def fetch(place: Place, method: str, path: str, body: Json | None, media_type: str) -> tuple[bytes, Mapping[str, str]]:
    """An answer that is no JSON, and its headers, their names in lower case.

    Raises:
        ApiRefused, ApiUnreachable: As `call`.
    """
    data, status, headers = _exchange(place, method, path, body, "", media_type)
    if not 200 <= status < 300:
        raise ApiRefused(status, _json(data, status, place.url))
    if len(data) > ANSWER_BYTES_MAX:
        raise ApiRefused(status, {"error": f"the answer is larger than {ANSWER_BYTES_MAX} bytes; ask for less"})
    return data, headers


def download(place: Place, path: str, media_type: str, out: IO[bytes]) -> int:
    """Write an answer of any size to `out`; returns its bytes.

    Raises:
        ApiRefused, ApiUnreachable: As `call`; part of it may be written.
        OSError: It cannot be written.
    """
    with _asked(place, "GET", path, None, "", media_type) as response:
        if not 200 <= response.status < 300:
            raise ApiRefused(response.status, _json(_read(place, response, ANSWER_BYTES_MAX + 1), response.status, place.url))
        expected = int(response.headers.get("Content-Length") or -1)
        written = 0
        while chunk := _read(place, response, CHUNK_BYTES):
            written += out.write(chunk)
        if written != expected:
            raise ApiUnreachable(f"the API at {place.url} ended after {written} of {expected} bytes")
    return written


def _exchange(
    place: Place, method: str, path: str, body: Json | None, idempotency_key: str, media_type: str
) -> tuple[bytes, int, Mapping[str, str]]:
    with _asked(place, method, path, body, idempotency_key, media_type) as response:
        data = _read(place, response, ANSWER_BYTES_MAX + 1)
        return data, response.status, {name.lower(): value for name, value in response.headers.items()}


@contextlib.contextmanager
def _asked(
    place: Place, method: str, path: str, body: Json | None, idempotency_key: str, media_type: str
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(place.url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Spelled out: verify-full, as for every other connection.
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    headers = {"Authorization": f"Bearer {place.key.reveal()}", "Accept": media_type, "Pgwarden-Through": "command line"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    with contextlib.closing(connection):
        try:
            connection.request(method, parts.path.rstrip("/") + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()  # redirects are not followed: the key is for this API alone
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(place, error) from error
        yield response


def _read(place: Place, response: http.client.HTTPResponse, bytes_max: int) -> bytes:
    try:
        return response.read(bytes_max)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(place, error) from error


def _unreachable(place: Place, error: Exception) -> ApiUnreachable:
    return ApiUnreachable(f"the API at {place.url} cannot be reached: {printable(str(error) or type(error).__name__)}")


def path(*parts: str, **query: str | int | None) -> str:
    """`/v1/...` of these parts, each escaped; a query parameter that is None or empty is left out."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return "/v1/" + "/".join(quote(part, safe="") for part in parts) + (f"?{urlencode(given)}" if given else "")


def _check(url: str, insecure_http: bool) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    else:
        if parts.scheme in ("http", "https") and host and not (parts.query or parts.fragment or parts.username) and port != 0:
            if parts.scheme == "http" and not loopback(host) and not insecure_http:
                remedy = "write https://, or add --insecure-http to send the operator key in clear text"
                raise BadUsage(f"the API at {printable(url)} is on another machine; {remedy}")
            return
    raise BadUsage(f'"{printable(url)}" is no address of the API; write one as http://127.0.0.1:8470')


def _of_config_file(named: str, folder: Path) -> tuple[Path, str]:
    """The state folder and the API's address. Only these: the rest, with its secrets, is not this command's affair."""
    state, listen = folder / ".pgwarden", "127.0.0.1:8470"
    candidates = [folder / Path(named)] if named else [folder / name for name in CONFIG_FILES]
    file = next((candidate for candidate in candidates if named or candidate.is_file()), None)
    if file is None:
        return state, listen
    found = content(file, settings.FILE_BYTES_MAX)
    if isinstance(found, Unreadable):
        raise BadUsage(f"{printable(str(file))} is a file {found.reason}; name another with --config")
    try:
        values = tomllib.loads(found.data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadUsage(
            f"{printable(str(file))} is not valid TOML; run: pgwarden verify-config -c {printable(str(file))}"
        ) from error
    api = values.get("api")
    written = (api.get("listen") if isinstance(api, dict) else None) or listen
    state_written = values.get("state", ".pgwarden")
    if not isinstance(written, str) or not isinstance(state_written, str):
        raise BadUsage(f"{printable(str(file))} is wrong; run: pgwarden verify-config -c {printable(str(file))}")
    host, _, port = written.rpartition(":")
    # Where it listens on all addresses, it listens on loopback.
    reachable = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  (compared, not listened on)
    return file.parent / state_written, f"{reachable}:{port}"


def _json(data: bytes, status: int, url: str) -> Json:
    if len(data) > ANSWER_BYTES_MAX:
        raise ApiRefused(status, {"error": f"the answer is larger than {ANSWER_BYTES_MAX} bytes; ask for less, with --limit"})
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ApiRefused(status, {"error": f"what answers at {url} (status {status}) is no pgwarden API; check --api"})
    return answer
