"""The API over HTTP, and its answers as types. The only module here that opens a socket."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Generic, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from dashboards.settings import KEY_FILE_VARIABLE, Settings, SettingsRefused, operator_key

# Answers are read by name. Fields that this dashboard does not know are passed over, so that an API may grow before it does; a
# null says that something is not known, and reads as the field's default.


class Rule(msgspec.Struct, frozen=True):
    schema: str
    tables: tuple[str, ...]
    operations: tuple[str, ...]


class Scope(msgspec.Struct, frozen=True):
    connection: str
    rules: tuple[Rule, ...] = ()
    functions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    introspection: bool = False


class Grant(msgspec.Struct, frozen=True):
    grant: str
    agent: str
    scope: Scope
    state: str  # requested | approved | denied | revoked | expired
    reason: str = ""
    seconds: int = 0  # life from approval; 0 = until revoked
    requested_by: str = ""
    requested_at: datetime | None = None
    approver: str | None = None
    expires_at: datetime | None = None


class Agent(msgspec.Struct, frozen=True):
    agent: str
    state: str  # active | revoked | retired
    description: str = ""
    owner: str = ""
    issuer: str = ""
    client: str = ""
    subject: str = ""
    key_id: str = ""
    registered_at: datetime | None = None
    state_at: datetime | None = None
    state_by: str = ""
    state_reason: str = ""
    last_seen_at: datetime | None = None
    live_sessions: int = 0
    statements: int = 0  # let through, in the last 24 hours
    denied: int = 0  # in the last 24 hours


class Session(msgspec.Struct, frozen=True):
    session: str
    agent: str
    state: str = ""  # closed | killed | lost; of an open one idle | active | in transaction, or live where its gateway is silent
    connection: str = ""
    gateway: str = ""
    database: str = ""
    client: str = ""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    close_reason: str = ""
    kill_cause: str = ""
    statements: int = 0
    denied: int = 0
    errors: int = 0
    rows: int = 0
    bytes_in: int | None = None
    bytes_out: int | None = None
    duration_us: int | None = None
    task: str = ""
    invocation: str = ""
    on_behalf_of: str = ""
    backend_pid: int = 0
    method: str = ""
    tls: str = ""
    application_name: str = ""


class Kill(msgspec.Struct, frozen=True):
    """The proof of a session's end. No `backend_gone_at`: it did not come within the time limit."""

    session: str
    agent: str
    cause: str = ""
    reason: str = ""
    ended_by: str = ""  # gateway | watchdog
    requested_at: datetime | None = None
    decided_at: datetime | None = None
    client_closed_at: datetime | None = None
    backend_gone_at: datetime | None = None


class Attempt(msgspec.Struct, frozen=True):
    """A connection that did not become a session. `claimed` was not proven."""

    attempted_at: datetime
    claimed: str = ""
    agent: str = ""
    connection: str = ""
    client: str = ""
    sqlstate: str = ""
    reason: str = ""


class Statement(msgspec.Struct, frozen=True):
    started_at: datetime
    session: str
    agent: str
    execution: int = 0
    connection: str = ""
    text: str = ""
    text_mode: str = "full"
    fingerprint: str = ""
    verbs: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    decision: str = ""  # allow | deny
    rule: str = ""
    reason: str = ""
    text_bytes: int = 0  # of the whole text, where `text` is its beginning
    outcome: str = ""  # "" while it runs
    sqlstate: str = ""
    tag: str = ""
    rows: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    duration_us: int | None = None
    task: str = ""
    invocation: str = ""
    on_behalf_of: str = ""
    client: str = ""
    approvers: tuple[str, ...] = ()


class Moment(msgspec.Struct, frozen=True):
    """One entry of a session's timeline."""

    at: datetime
    kind: str  # opened | statement | running | denied | cancel requested | end ordered | killed | lost | closed
    text: str = ""
    execution: int = 0
    outcome: str = ""
    sqlstate: str = ""
    reason: str = ""
    rows: int | None = None
    duration_us: int | None = None


class Rate(msgspec.Struct, frozen=True):
    """One agent's minute. `statements` were let through; `denied` were not, and are not among them."""

    minute_at: datetime
    agent: str
    statements: int = 0
    denied: int = 0
    errors: int = 0
    rows: int = 0


class Recording(msgspec.Struct, frozen=True):
    available: bool
    since_at: datetime | None = None
    reason: str = ""
    refused: int = 0
    backlog_bytes: int = 0  # on gateways' disks, and not with the brokers yet


class Projection(msgspec.Struct, frozen=True):
    lag_us: int = 0  # how old the newest answer may be


class Health(msgspec.Struct, frozen=True):
    problems: tuple[str, ...] = ()
    log: Recording | None = None  # None: no gateway says
    gaps: int = 0  # places where frames are missing from the log
    projection: Projection = Projection()


PAGE_ROWS_MAX: Final = 1000  # the API's own bound

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    items: tuple[T, ...]
    next: str | None = None


class ApiTrouble(Exception):
    """What was asked for did not come. The sentence says why, `remedy` what to do; both are text like any other."""

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.remedy = remedy


class ApiUnreachable(ApiTrouble):
    """No answer that can be used: nothing on the screen can be trusted to be current."""


class ApiRefused(ApiTrouble):
    """The API answered, and said no. The sentence is the API's own and says what to do."""


class Client:
    """One for the whole process; calls may overlap. A command that is repeated with the same `request` changes nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx.Client(
            base_url=settings.api,
            timeout=httpx.Timeout(settings.answer_seconds_max, connect=settings.connect_seconds_max),
            trust_env=False,  # a proxy from the environment would see the operator key
            follow_redirects=False,  # and so would the target of a redirect
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=4),
        )

    def close(self) -> None:
        self._http.close()

    # -- answers -----------------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        return self._get("/v1/health", {}, Health)

    def agents(self) -> tuple[Agent, ...]:
        return self._all("/v1/agents", {}, Page[Agent])

    def grants(self) -> tuple[Grant, ...]:
        return self._all("/v1/grants", {}, Page[Grant])

    def live_sessions(self, agent: str = "", limit: int = PAGE_ROWS_MAX) -> tuple[Session, ...]:
        return self._get("/v1/sessions", {"agent": agent, "live": "true", "limit": str(limit)}, Page[Session]).items

    def session(self, session: str) -> Session:
        return self._get(f"/v1/sessions/{_part(session)}", {}, Session)

    def timeline(self, session: str, limit: int, before: str = "") -> Page[Moment]:
        return self._get(f"/v1/sessions/{_part(session)}/timeline", {"limit": str(limit), "before": before}, Page[Moment])

    def statements(self, filters: Mapping[str, str], limit: int, before: str = "") -> Page[Statement]:
        return self._get("/v1/statements", {**filters, "limit": str(limit), "before": before}, Page[Statement])

    def statement(self, session: str, execution: str) -> Statement:
        """One execution, with the whole text."""
        return self._get(f"/v1/statements/{_part(session)}/{_part(execution)}", {}, Statement)

    def rates(self, minutes: int) -> tuple[Rate, ...]:
        return self._all("/v1/rates", {"minutes": str(minutes)}, Page[Rate])

    def attempts(self, limit: int) -> tuple[Attempt, ...]:
        return self._get("/v1/questions/attempts", {"limit": str(limit)}, Page[Attempt]).items

    def kills(self, limit: int, *, agent: str = "", session: str = "") -> tuple[Kill, ...]:
        return self._get("/v1/questions/kills", {"agent": agent, "session": session, "limit": str(limit)}, Page[Kill]).items

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def revoke(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/revoke", {"reason": reason}, request)

    def reinstate(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/reinstate", {"reason": reason}, request)

    def approve(self, grant: str, request: str) -> None:
        self._post(f"/v1/grants/{_part(grant)}/approve", {}, request)

    def deny(self, grant: str, reason: str, request: str) -> None:
        self._post(f"/v1/grants/{_part(grant)}/deny", {"reason": reason}, request)

    # -- one request -------------------------------------------------------------------------------------------------------------

    def _get(self, path: str, params: Mapping[str, str], kind: type[T]) -> T:
        body = self._exchange("GET", path, params={name: value for name, value in params.items() if value})
        try:
            return msgspec.convert(_known(msgspec.json.decode(body)), type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            # the error names the field and its type, never the value
            raise ApiUnreachable(
                f"The API's answer to {path.rpartition('/')[0] or path} is not what this dashboard expects ({error}).",
                "Run the API and the dashboard from the same version of pgwarden.",
            ) from error

    def _all(self, path: str, params: Mapping[str, str], kind: type[Page[T]]) -> tuple[T, ...]:
        items: list[T] = []
        cursor: str | None = ""
        for _ in range(_PAGES_MAX):
            page = self._get(path, {**params, "limit": str(PAGE_ROWS_MAX), "before": cursor or ""}, kind)
            items.extend(page.items)
            cursor = page.next
            if not cursor:
                break
        return tuple(items)

    def _post(self, path: str, body: Mapping[str, str], request: str) -> None:
        self._exchange("POST", path, json=body, headers={"Idempotency-Key": request})

    def _exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        try:
            key = operator_key(self._settings.key_file)
        except SettingsRefused as error:
            raise ApiUnreachable("The dashboard has no operator key.", str(error)) from error
        authorized = {**(headers or {}), "Authorization": f"Bearer {key}"}
        try:
            with self._http.stream(method, path, params=params, json=json, headers=authorized) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > self._settings.answer_bytes_max:
                        raise ApiUnreachable("The API's answer is too long to show.", "Narrow the search, or shorten the time.")
        except httpx.TimeoutException as error:
            raise ApiUnreachable(
                f"The API at {self._settings.api} did not answer within {self._settings.answer_seconds_max:.0f} s.",
                "Look at the terminal where `pgwarden api` runs; this page tries again by itself.",
            ) from error
        except httpx.TransportError as error:
            raise ApiUnreachable(
                f"The API at {self._settings.api} cannot be reached.",
                "Start it with `pgwarden api` or `pgwarden up`; this page tries again by itself.",
            ) from error
        status = response.status_code
        if status in (401, 429):  # 429: too many wrong keys from this address
            raise ApiUnreachable(
                "The API does not accept this dashboard's operator key.",
                f"Put a key of an operator from the configuration into the file that {KEY_FILE_VARIABLE} names.",
            )
        if status >= 500:
            raise ApiUnreachable(_sentence(bytes(body), status), "This page tries again by itself.")
        if not 200 <= status < 300:
            raise ApiRefused(_sentence(bytes(body), status))
        return bytes(body)


def _known(value: object) -> object:
    """Without the fields that are null."""
    if isinstance(value, dict):
        return {name: _known(item) for name, item in value.items() if item is not None}
    return [_known(item) for item in value] if isinstance(value, list) else value


def _part(name: str) -> str:
    return quote(name, safe="")


_PAGES_MAX = 20  # of agents or grants; a house with more needs a search, not a longer list


class _Error(msgspec.Struct, frozen=True):
    error: str


def _sentence(body: bytes, status: int) -> str:
    try:
        return msgspec.json.decode(body, type=_Error).error[:1000]
    except msgspec.MsgspecError:
        return f"The API answered with status {status} and no reason: look at its terminal."


def request_key() -> str:
    """An Idempotency-Key. Made when a form is opened, so that pressing its button twice is one command."""
    return f"dashboard-{secrets.token_hex(16)}"
