"""The API's answers in; out come lines for a terminal as things happen, and in the end a verdict on every part."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import httpx
import msgspec

from pgwarden.neighbours import wrong
from pgwarden.printable import printable
from pgwarden.status_socket import status_of

REPEAT_SECONDS_MIN: Final = 60  # between two lines that say the same; the counters tell how often
LINES_MAX: Final = 8  # of one kind at a time; a terminal is no place for a flood
STATEMENTS_READ: Final = 200  # the newest, each time
SESSIONS_READ: Final = 100
TEXT_CHARACTERS_MAX: Final = 70  # of a statement
LAG_SECONDS_MAX: Final = 5.0  # from a statement to its row; the projector commits every 250 ms
STATUS_SECONDS_MAX: Final = 2.0


class ApiSilent(Exception):
    """The API gave no answer that can be used. Says why."""


class _Statement(msgspec.Struct, frozen=True):
    started_at: datetime
    session: str
    agent: str
    execution: int
    text: str | None = ""
    reason: str | None = ""


class _Session(msgspec.Struct, frozen=True):
    session: str
    agent: str
    client: str = ""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    close_reason: str | None = ""
    kill_cause: str | None = None
    kill_requested_at: datetime | None = None
    kill_backend_gone_at: datetime | None = None
    kill_ended_by: str | None = None


class _Agent(msgspec.Struct, frozen=True):
    agent: str
    state: str
    state_at: datetime | None = None
    state_by: str | None = ""
    state_reason: str | None = ""
    live_sessions: int = 0
    statements: int = 0
    denied: int = 0


class _Gap(msgspec.Struct, frozen=True):
    noticed_at: datetime
    kind: str = ""
    reason: str | None = ""


class _Page(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]


T = TypeVar("T")
_News: TypeAlias = tuple[int, str]
"""When, in microseconds since 1970, and the line."""


class Watch:
    """One reader of one API. Keeps what it has shown, so that each thing is shown once."""

    def __init__(
        self,
        api: str,
        key_file: Path,
        gateway_socket: Path,
        watchdog_socket: Path,
        since_us: int,
        collector_socket: Path | None = None,
    ) -> None:
        """`collector_socket`: None where no collector is configured."""
        self._http = httpx.Client(
            base_url=api,
            headers={"Authorization": f"Bearer {key_file.read_text(encoding='ascii').strip()}"},
            timeout=httpx.Timeout(3.0),  # a Ctrl-C waits for it
            trust_env=False,  # a proxy from the environment would see the operator key
        )
        self._socket = gateway_socket
        self._watchdog_socket = watchdog_socket
        self._collector_socket = collector_socket
        self._since_us = since_us
        self._seen: dict[tuple[str, int], None] = {}
        self._told: dict[str, int] = {}  # lines of refusals, and when
        self._sessions: dict[str, _Session] = {}
        self._agents: dict[str, str] = {}
        self._recording = True
        self._silent = False

    def close(self) -> None:
        self._http.close()

    # -- as it happens -----------------------------------------------------------------------------------------------------------

    def news(self) -> list[str]:
        """What happened since the last call, oldest first. A silent API is said once."""
        try:
            news = [*self._agent_news(), *self._session_news(), *self._refusal_news(), *self._recording_news()]
        except ApiSilent as error:
            if self._silent:
                return []
            self._silent = True
            return [f"no answer   {error}"]
        self._silent = False
        return [line for _, line in sorted(news, key=lambda one: one[0])]

    def counters(self) -> str:
        """A line with the work of each agent so far, or "" when the API is silent."""
        try:
            agents = self._items("/v1/agents", _Agent)
        except ApiSilent:
            return ""
        return "working     " + " · ".join(
            f"{one.agent} {one.statements} statements, {one.denied} refused" + ("" if one.live_sessions else " (not connected)")
            for one in sorted(agents, key=lambda one: one.agent)
        )

    def _agent_news(self) -> Iterator[_News]:
        for one in self._items("/v1/agents", _Agent):
            before, self._agents[one.agent] = self._agents.get(one.agent), one.state
            if before is not None and before != one.state:
                what = "reinstated" if one.state == "active" else one.state
                why = f" by {one.state_by}" + (f": {one.state_reason}" if one.state_reason else "")
                yield _us(one.state_at), f"{what:<11} {one.agent}{printable(why)}"

    def _session_news(self) -> Iterator[_News]:
        page = self._items("/v1/sessions", _Session, limit=SESSIONS_READ)
        known = self._sessions
        self._sessions = {one.session: one for one in page}
        for one in page:
            before = known.get(one.session)
            opened_us, gone_us, closed_us = _us(one.opened_at), _us(one.kill_backend_gone_at), _us(one.closed_at)
            if before is None and opened_us >= self._since_us:
                yield opened_us, f"opened      {one.agent} from {printable(one.client)}"
            if gone_us >= self._since_us and (before is None or before.kill_backend_gone_at is None):
                took_ms = (gone_us - _us(one.kill_requested_at)) / 1000
                by = " by the watchdog" if one.kill_ended_by == "watchdog" else ""
                yield (
                    gone_us,
                    f"killed      {one.agent}: {printable(one.kill_cause or '')}; its backend was gone after {took_ms:.0f} ms{by}",
                )
            elif (
                one.kill_cause is None
                and closed_us >= self._since_us  # 0 while it is open
                and (before is None or before.closed_at is None)
            ):
                yield closed_us, f"closed      {one.agent}: {printable(one.close_reason or '')}"

    def _refusal_news(self) -> Iterator[_News]:
        page = self._items("/v1/statements", _Statement, decision="deny", since_us=self._since_us, limit=STATEMENTS_READ)
        fresh = [one for one in page if (one.session, one.execution) not in self._seen]
        self._seen = dict.fromkeys((one.session, one.execution) for one in page)
        lines: dict[str, int] = {}
        for one in reversed(fresh):
            text = printable(" ".join((one.text or "").split()), TEXT_CHARACTERS_MAX)
            lines.setdefault(f"refused     {one.agent}: {text} — {printable(one.reason or '')}", _us(one.started_at))
        if not lines:
            return
        newest_us = max(lines.values())
        self._told = {line: at_us for line, at_us in self._told.items() if newest_us - at_us < REPEAT_SECONDS_MIN * 1_000_000}
        new = [(at_us, line) for line, at_us in lines.items() if line not in self._told]
        self._told |= {line: at_us for at_us, line in new}
        yield from new[-LINES_MAX:]
        if len(new) > LINES_MAX:
            yield newest_us, f"refused     and {len(new) - LINES_MAX} more"

    def _recording_news(self) -> Iterator[_News]:
        recording, reason = _log_state(self.health())
        if recording != self._recording:
            self._recording = recording
            stopped = f"stopped     nothing can be recorded ({printable(reason)}), so nothing is let through"
            yield time.time_ns() // 1000, "recording   again" if recording else stopped

    # -- in the end --------------------------------------------------------------------------------------------------------------

    def shortcomings(self, agents: Sequence[str], dashboard: str) -> list[str]:
        """What did not do its job, a sentence each; none when all did. `agents` should each have worked and been refused."""
        of_parts = (self._of_the_gateway(agents), self._of_the_watchdog(), self._of_the_collector())
        return [*self._of_the_api(agents), *chain.from_iterable(of_parts), *_of_the_dashboard(dashboard)]

    def _of_the_api(self, agents: Sequence[str]) -> Iterator[str]:
        try:
            health = self.health()
            problems = health.get("problems")
            if isinstance(problems, list):  # of enforcement, the tables, the gateways
                yield from (printable(str(problem)) for problem in problems)
            for gap in self._items("/v1/questions/recording_gaps", _Gap):
                if _us(gap.noticed_at) >= self._since_us:
                    yield f"the record has a gap: {gap.kind}, {printable(gap.reason or '')}"
            newest_us = 0
            for agent in agents:
                allowed = self._statements(agent, "allow")
                if not allowed:
                    yield f"{agent} has no statement that was allowed"
                if not self._statements(agent, "deny"):
                    yield f"{agent} has no statement that was refused"
                newest_us = max([newest_us, *(_us(one.started_at) for one in allowed)])
            lag_seconds = time.time() - newest_us / 1e6
            if agents and newest_us and lag_seconds > LAG_SECONDS_MAX:
                yield f"the newest statement that the API shows is {lag_seconds:.1f} s old"
        except ApiSilent as error:
            yield f"the API: {error}"

    def _statements(self, agent: str, decision: str) -> list[_Statement]:
        return self._items("/v1/statements", _Statement, agent=agent, decision=decision, since_us=self._since_us, limit=1)

    def _of_the_gateway(self, agents: Sequence[str]) -> Iterator[str]:
        try:
            status = status_of(self._socket, STATUS_SECONDS_MAX)
        except (OSError, ValueError) as error:
            yield f"the gateway does not say how it is: {error}"
            return
        recording, reason = _log_state(status)
        if not recording:
            yield f"the gateway cannot record: {reason}"
        sessions = status.get("sessions")
        live = {one.get("agent") for one in sessions if isinstance(one, dict)} if isinstance(sessions, list) else set()
        yield from (f"{agent} has no live session" for agent in agents if agent not in live)

    def _of_the_collector(self) -> Iterator[str]:
        if self._collector_socket is None:
            return
        try:
            status = status_of(self._collector_socket, STATUS_SECONDS_MAX)
        except (OSError, ValueError) as error:
            yield f"the collector does not say how it is: {error}"
            return
        if reason := wrong(status):
            yield f"the collector {printable(reason)}"

    def _of_the_watchdog(self) -> Iterator[str]:
        try:
            status = status_of(self._watchdog_socket, STATUS_SECONDS_MAX)
        except (OSError, ValueError) as error:
            yield f"the watchdog does not say how it is: {error}"
            return
        recording, reason = _log_state(status)
        if not recording:
            yield f"the watchdog cannot record: {reason}"
        for what, said in (("blind", "does not see {what}: {reason}"), ("missed", "misses gateway {gateway} on {connection}")):
            found = status.get(what)
            for one in (each for each in found if isinstance(each, dict)) if isinstance(found, list) else ():
                yield f"the watchdog {printable(said.format(**one))}"

    # -- one answer --------------------------------------------------------------------------------------------------------------

    def health(self) -> Mapping[str, object]:
        """
        Raises:
            ApiSilent: No usable answer.
        """
        try:
            return msgspec.json.decode(self._get("/v1/health", {}), type=dict[str, object])
        except msgspec.MsgspecError as error:
            raise ApiSilent(f"/v1/health: {error}") from error

    def _items(self, path: str, kind: type[T], **query: str | int) -> list[T]:
        try:
            page = msgspec.json.decode(self._get(path, query), type=_Page)
            return [msgspec.json.decode(item, type=kind) for item in page.items]
        except msgspec.MsgspecError as error:
            raise ApiSilent(f"{path}: {error}") from error

    def _get(self, path: str, query: Mapping[str, str | int]) -> bytes:
        try:
            answer = self._http.get(path, params=dict(query))
        except httpx.HTTPError as error:
            raise ApiSilent(f"{path}: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            raise ApiSilent(f"{path} answered {answer.status_code}: {printable(answer.text)}")
        return answer.content


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _of_the_dashboard(url: str) -> Iterator[str]:
    if not answers(f"{url}/_stcore/health") or not answers(f"{url}/"):
        yield f"the dashboard at {url} does not answer"


def _log_state(status: Mapping[str, object]) -> tuple[bool, str]:
    log = status.get("log")
    if not isinstance(log, dict):
        return True, ""
    return bool(log.get("available", True)), str(log.get("reason", ""))


def _us(at: datetime | None) -> int:
    if at is None:
        return 0
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
