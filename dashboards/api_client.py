"""The API over HTTP. The only module here that opens a socket."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from dashboards.answers import (
    PAGE_ROWS_MAX,
    Agent,
    Attempt,
    Coverage,
    Finding,
    Grant,
    Health,
    Hour,
    Kill,
    KnownColumn,
    Me,
    Moment,
    Mute,
    ObservationGap,
    Observed,
    Page,
    Rate,
    Restraints,
    Session,
    Source,
    SqlAnswer,
    Statement,
    Told,
    Touched,
)
from dashboards.settings import KEY_FILE_VARIABLE, Settings, SettingsRefused, operator_key

THROUGH: Final = "Pgwarden-Through"  # tells the API by what way an operator looks; it records each look

NOTICE: Final = "Pgwarden-Notice"  # stands beside an answer that a limit cut

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Received:
    body: bytes
    notice: str  # "" when all is in it; else the API's own sentence on what cut it and how to go on


class ApiTrouble(Exception):
    """What was asked for did not come. The sentence says why, `remedy` what to do; both are text like any other."""

    def __init__(self, sentence: str, remedy: str = "") -> None:
        super().__init__(sentence)
        self.remedy = remedy


class ApiUnreachable(ApiTrouble):
    """No answer that can be used: nothing on the screen can be trusted to be current."""


class SignInOver(ApiUnreachable):
    """The API does not take this person's token: it has run out, or they are no operator."""


class ApiRefused(ApiTrouble):
    """The API answered, and said no. The sentence is the API's own and says what to do."""


class Client:
    """Calls may overlap. A command that is repeated with the same `request` changes nothing."""

    def __init__(self, settings: Settings, http: httpx.Client | None = None, token: str = "") -> None:
        """One without `http` a process; `of_person` gives those of its viewers. Without a token, the operator key acts."""
        self._settings = settings
        self._token = token
        self._http = http or httpx.Client(
            base_url=settings.api,
            timeout=httpx.Timeout(settings.answer_seconds_max, connect=settings.connect_seconds_max),
            trust_env=False,  # a proxy from the environment would see the operator key
            follow_redirects=False,  # and so would the target of a redirect
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=16),
        )

    def of_person(self, token: str) -> Client:
        """The same connections, with a person's own access token in place of the operator key; without one, nothing is asked."""
        if not token:
            raise SignInOver("Nobody is signed in.", "Sign in.")
        return Client(self._settings, self._http, token)

    def close(self) -> None:
        self._http.close()

    # -- answers -----------------------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        return self._get("/v1/health", {}, Health)

    def agents(self) -> tuple[Agent, ...]:
        return self._all("/v1/agents", {}, Page[Agent])

    def agent(self, agent: str) -> Agent | None:
        """One of them, or None where none has this name."""
        found = self._get("/v1/questions/agents", {"agent": agent}, Page[Agent]).items if agent else ()
        return found[0] if found else None

    def grants(self, *, agent: str = "", state: str = "") -> tuple[Grant, ...]:
        return self._all("/v1/grants", {"agent": agent, "state": state}, Page[Grant])

    def live_sessions(self, agent: str = "", limit: int = PAGE_ROWS_MAX) -> tuple[Session, ...]:
        return self._get("/v1/sessions", {"agent": agent, "live": "true", "limit": str(limit)}, Page[Session]).items

    def sessions(self, filters: Mapping[str, str], limit: int, before: str = "") -> Page[Session]:
        return self._get("/v1/sessions", {**filters, "limit": str(limit), "before": before}, Page[Session])

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

    def touched(self, agent: str, days: int, limit: int) -> tuple[Touched, ...]:
        asked = {"agent": agent, "days": str(days), "limit": str(limit)}
        return self._get("/v1/questions/agent_relations", asked, Page[Touched]).items

    def hours(self, agent: str, days: int) -> tuple[Hour, ...]:
        asked = {"agent": agent, "days": str(days), "limit": str(PAGE_ROWS_MAX)}
        return self._get("/v1/questions/agent_hours", asked, Page[Hour]).items

    def me(self) -> Me:
        return self._get("/v1/me", {}, Me)

    def findings(self, filters: Mapping[str, str], limit: int, before: str = "") -> Page[Finding]:
        return self._get("/v1/findings", {**filters, "limit": str(limit), "before": before}, Page[Finding])

    def finding(self, finding: str) -> Finding:
        """With its history."""
        return self._get(f"/v1/findings/{_part(finding)}", {}, Finding)

    def record(self, place: str) -> tuple[Told, ...]:
        """What stands in the log at `<topic>/<partition>/<offset>`."""
        return self._get("/v1/records/" + "/".join(_part(each) for each in place.split("/")), {}, Page[Told]).items

    def mutes(self) -> tuple[Mute, ...]:
        return self._all("/v1/mutes", {}, Page[Mute])

    def coverage(self) -> Coverage:
        return self._get("/v1/coverage", {"limit": str(PAGE_ROWS_MAX)}, Coverage)

    def observation_gaps(self, limit: int) -> tuple[ObservationGap, ...]:
        return self._get("/v1/coverage/gaps", {"limit": str(limit)}, Page[ObservationGap]).items

    def observed(self, filters: Mapping[str, str], limit: int, before: str = "") -> Page[Observed]:
        return self._get("/v1/observations/sessions", {**filters, "limit": str(limit), "before": before}, Page[Observed])

    def sources(self) -> tuple[Source, ...]:
        return self._all("/v1/sources", {}, Page[Source])

    def restraints(self) -> Restraints:
        return self._get("/v1/responses", {}, Restraints)

    def columns(self) -> tuple[KnownColumn, ...]:
        return self._all("/v1/questions/columns", {}, Page[KnownColumn])

    def sql(self, sql: str) -> SqlAnswer:
        """Rows of one SELECT; what the API refuses, it says why."""
        seconds_max = self._settings.sql_seconds_max
        received = self._exchange("POST", "/v1/sql", json={"sql": sql}, seconds_max=seconds_max)
        return _answer("/v1/sql", received.body, SqlAnswer, nulls=True)

    def export(self, sql: str, media_type: str) -> Received:
        """The rows of one SELECT as a file; of more than the API's limits let through, the first, with a notice."""
        seconds_max, accept = self._settings.sql_seconds_max, {"Accept": media_type}
        return self._exchange("POST", "/v1/sql", json={"sql": sql}, headers=accept, seconds_max=seconds_max)

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def revoke(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/revoke", {"reason": reason}, request)

    def reinstate(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/reinstate", {"reason": reason}, request)

    def release(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/release", {"reason": reason}, request)

    def unthrottle(self, agent: str, reason: str, request: str) -> None:
        self._post(f"/v1/agents/{_part(agent)}/unthrottle", {"reason": reason}, request)

    def approve(self, grant: str, request: str) -> None:
        self._post(f"/v1/grants/{_part(grant)}/approve", {}, request)

    def deny(self, grant: str, reason: str, request: str) -> None:
        self._post(f"/v1/grants/{_part(grant)}/deny", {"reason": reason}, request)

    def acknowledge(self, finding: str, note: str, request: str) -> None:
        self._post(f"/v1/findings/{_part(finding)}/acknowledge", {"note": note}, request)

    def confirm(self, finding: str, note: str, request: str) -> None:
        self._post(f"/v1/findings/{_part(finding)}/confirm", {"note": note}, request)

    def mute(self, finding: str, seconds: int, reason: str, request: str) -> None:
        self._post("/v1/mutes", {"finding": finding, "seconds": seconds, "reason": reason}, request)

    def unmute(self, detector: str, agent: str, reason: str, request: str) -> None:
        self._post("/v1/mutes/remove", {"detector": detector, "agent": agent, "reason": reason}, request)

    # -- one request -------------------------------------------------------------------------------------------------------------

    def _get(self, path: str, params: Mapping[str, str], kind: type[T]) -> T:
        received = self._exchange("GET", path, params={name: value for name, value in params.items() if value})
        return _answer(path, received.body, kind)

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

    def _post(self, path: str, body: Mapping[str, str | int], request: str) -> None:
        self._exchange("POST", path, json=body, headers={"Idempotency-Key": request})

    def _credential(self) -> str:
        if self._token:
            return self._token
        try:
            return operator_key(self._settings.key_file)
        except SettingsRefused as error:
            raise ApiUnreachable("The dashboard has no operator key.", str(error)) from error

    def _exchange(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds_max: float = 0.0,  # 0: as every answer
    ) -> Received:
        seconds_max = seconds_max or self._settings.answer_seconds_max
        timeout = httpx.Timeout(seconds_max, connect=self._settings.connect_seconds_max)
        authorized = {**(headers or {}), "Authorization": f"Bearer {self._credential()}", THROUGH: "dashboard"}
        try:
            with self._http.stream(method, path, params=params, json=json, headers=authorized, timeout=timeout) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > self._settings.answer_bytes_max:
                        raise ApiUnreachable("The API's answer is too long to show.", "Narrow the search, or shorten the time.")
        except httpx.TimeoutException as error:
            raise ApiUnreachable(
                f"The API at {self._settings.api} did not answer within {seconds_max:.0f} s.",
                "Look at the terminal where `pgwarden api` runs; this page tries again by itself.",
            ) from error
        except httpx.TransportError as error:
            raise ApiUnreachable(
                f"The API at {self._settings.api} cannot be reached.",
                "Start it with `pgwarden api` or `pgwarden up`; this page tries again by itself.",
            ) from error
        status = response.status_code
        if self._token and status == 401:
            raise SignInOver("The API does not take your sign-in any more, or does not know you as an operator.", "Sign in again.")
        if status == 429 and path == "/v1/sql":
            raise ApiRefused(_sentence(bytes(body), status))
        if status in (401, 429):  # 429: too many wrong keys from this address
            raise ApiUnreachable(
                "The API does not accept this dashboard's operator key.",
                f"Put a key of an operator from the configuration into the file that {KEY_FILE_VARIABLE} names.",
            )
        if status >= 500:
            raise ApiUnreachable(_sentence(bytes(body), status), "This page tries again by itself.")
        if not 200 <= status < 300:
            raise ApiRefused(_sentence(bytes(body), status))
        return Received(bytes(body), response.headers.get(NOTICE, ""))


def _answer(path: str, body: bytes, kind: type[T], *, nulls: bool = False) -> T:
    """`nulls`: a null is a value of its own, as in the rows of a query."""
    try:
        decoded = msgspec.json.decode(body)
        return msgspec.convert(decoded if nulls else _known(decoded), type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        # the error names the field and its type, never the value
        raise ApiUnreachable(
            f"The API's answer to {path.rpartition('/')[0] or path} is not what this dashboard expects ({error}).",
            "Run the API and the dashboard from the same version of pgwarden.",
        ) from error


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
