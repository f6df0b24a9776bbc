"""Records of a server's log in, in order; observations out: sessions, what they ran and how it ended, and what is missing.

A record is written when a statement begins, its error later: a statement is told once the next record of its session shows how it
ended, or `settle_ms` after its begin, as begun only. An error that comes later still tells it again, with the same `sequence`.

What a client can make PostgreSQL log (`RAISE LOG 'statement: ...'`) has a context or a statement of its own; what PostgreSQL says
of statements, sessions and audits has neither, so the one is not taken for the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from ingest.collectors.audit_lines import PREFIX as AUDIT
from ingest.collectors.audit_lines import audited
from ingest.collectors.collector import Observation, digest
from ingest.collectors.log_lines import Clock, LogLine
from ingest.collectors.settings import LogSettings, TextPolicy
from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, StatementObserved

Place: TypeAlias = tuple[int, int]
"""Of a record's begin: which file, as its follower numbers them, and the offset there."""
Kept: TypeAlias = tuple[int, bool, int]
"""What a checkpoint keeps of a session: its last line, whether it was told, and when it ended (0 = it did not)."""

_STATEMENT: Final = "statement: "
_EXECUTE: Final = re.compile(r"execute (fetch from )?([^:]*): ", re.DOTALL)
_DURATION: Final = re.compile(
    r"duration: (\d{1,12})\.(\d{3}) ms(?:  (?:statement: |execute (fetch from )?[^:]*: )(.*))?", re.DOTALL
)
_FASTPATH: Final = "fastpath function call: "
_REPLICATION: Final = "received replication command: "
_AUTHORIZED: Final = ("connection authorized: ", "replication connection authorized: ")
_APPLICATION_NAME: Final = " application_name="
_BEFORE_EXECUTION: Final = ("PARSE", "BIND")  # `ps` while a message is handled that executes nothing
_SEVERITIES: Final = frozenset({"DEBUG", "LOG", "INFO", "NOTICE", "WARNING", "ERROR", "FATAL", "PANIC"})
_FAILURES: Final = frozenset({"ERROR", "FATAL", "PANIC"})
_READY: Final = "database system is ready to accept connections"

FOREIGN: Final = (
    "the server's messages are in another language than English: set lc_messages = 'C' in postgresql.conf, and reload the server"
)
ZONE: Final = "the server's log has times in a zone that its name does not tell: set log_timezone = 'UTC', and reload the server"


class _Begun(msgspec.Struct, gc=False):  # one is made for each statement: a fifth of a dataclass's time
    """A statement whose end is not known yet."""

    at_us: int
    sequence: int
    source: str
    text: str
    query_id: int
    place: Place
    rows: int = -1
    audited: int = 0  # pgaudit's lines that counted rows of it


@dataclass(slots=True)
class _Session:
    last: int  # the newest `line_num`
    at_us: int = 0  # of that line
    told: bool = False
    ended_us: int = 0
    user: str = ""
    database: str = ""
    client: str = ""
    pid: int = 0
    begun: _Begun | None = None
    late: StatementObserved | None = None  # told as begun only; its error may still come
    logged: bool = False  # the server itself logs what it runs
    audit: tuple[int, int] = (0, 0)  # the newest statement and substatement of pgaudit's


class LogSessions:
    """`see` each record once, in order; `settle` now and then. `out` is taken by whoever calls, and emptied.

    `complete_since_us`: of sessions that began later, every line is expected; else the first that is seen counts as the first.
    """

    def __init__(
        self,
        witness: str,
        server: str,
        policy: TextPolicy,
        settings: LogSettings,
        complete_since_us: int,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        self.witness = witness
        self.server = server
        self._policy = policy
        self._settings = settings
        self._complete_since_us = complete_since_us
        self._sessions = {name: _Session(last, told=told, ended_us=ended) for name, (last, told, ended) in (kept or {}).items()}
        self._begun: dict[str, _Begun] = {}  # by session, in the order of their begins
        self._clock = Clock()
        self.out: list[Observation] = []
        self.hindrance = ""  # what makes all of it doubtful, and what to do
        self.repeated = 0
        self.lost = 0
        self.newest_us = 0

    def see(self, line: LogLine, place: Place) -> None:
        name = line.session_id
        number = line.line_num
        session = self._sessions.get(name)
        if session is None:
            session = self._first(name, line)
        if number <= session.last:
            self.repeated += 1
            return
        at_us = self._clock.at_us(line.timestamp)
        if at_us < 0:
            self.hindrance = ZONE
            at_us = session.at_us or self.newest_us
        elif self.hindrance == ZONE:
            self.hindrance = ""
        if number != session.last + 1:
            self._gap(name, session, number - session.last - 1, at_us)
        session.last = number
        session.at_us = self.newest_us = at_us
        severity = line.error_severity
        if line.backend_type == "parallel worker":
            return  # what its leader runs; the leader's own lines tell of it
        if severity == "LOG":
            if not line.context:
                self._said(name, session, line, at_us, place)
        elif severity in _FAILURES:
            if self.hindrance == FOREIGN and severity == "ERROR":
                self.hindrance = ""
            self._failed(name, session, line, at_us, place)
        elif severity not in _SEVERITIES and severity[:5] != "DEBUG":
            self.hindrance = FOREIGN

    def lose(self, at_us: int, from_us: int, count: int, reason: str) -> None:
        """Something is missing, and nobody knows whose it was."""
        self.lost += count
        self.out.append(ObservationGap(at_us, self.witness, self.server, "", from_us, at_us, count, reason))
        self._complete_since_us = at_us

    def settle(self, read_us: int) -> None:
        """All that was logged before `read_us` has been seen. Tell what has waited long enough for its end."""
        before_us = read_us - int(self._settings.settle_ms * 1000)
        while self._begun:
            name, begun = next(iter(self._begun.items()))
            if begun.at_us > before_us:
                break
            session = self._sessions[name]
            session.late = self._end(name, session, known=False)
        ended_before_us = read_us - int(self._settings.ended_seconds * 1e6)
        for name in [name for name, session in self._sessions.items() if 0 < session.ended_us < ended_before_us]:
            del self._sessions[name]

    def complete_us(self, read_us: int) -> int:
        """The watermark, once all that was logged before `read_us` has been seen."""
        complete_us = read_us - int(self._settings.behind_ms * 1000)
        return min(complete_us, min((begun.at_us - 1 for begun in self._begun.values()), default=complete_us))

    def kept(self) -> tuple[Mapping[str, Kept], Mapping[int, int]]:
        """For a checkpoint: the sessions, and where in each file reading must begin again, so that what is open is seen again."""
        places: dict[int, int] = {}
        for begun in self._begun.values():
            file, offset = begun.place
            places[file] = min(offset, places.get(file, offset))
        return {
            name: (session.begun.sequence - 1 if session.begun else session.last, session.told, session.ended_us)
            for name, session in self._sessions.items()
        }, places

    @property
    def complete_since_us(self) -> int:
        return self._complete_since_us

    # -- sessions --------------------------------------------------------------------------------------------------------------

    def _first(self, name: str, line: LogLine) -> _Session:
        if len(self._sessions) >= self._settings.sessions_max:
            self._forget()
        begin = name.partition(".")[0]
        try:
            start_us = int(begin, 16) * 1_000_000
        except ValueError:
            start_us = 0
        # The start has whole seconds: one of the second in which looking began may have begun before.
        session = _Session(last=0 if start_us > self._complete_since_us else line.line_num - 1)
        self._sessions[name] = session
        return session

    def _forget(self) -> None:
        """Make room: those that have been silent for longest."""
        silent = sorted(self._sessions.items(), key=lambda item: item[1].at_us)[: max(1, self._settings.sessions_max // 20)]
        for name, session in silent:
            self._end(name, session)
            del self._sessions[name]

    def _gap(self, name: str, session: _Session, missing: int, at_us: int) -> None:
        self.lost += missing
        self._end(name, session, known=False)
        from_us = session.at_us or at_us
        reason = f"line_num {session.last + 1} to {session.last + missing} of the session are not in the log"
        self.out.append(ObservationGap(at_us, self.witness, self.server, name, from_us, at_us, missing, reason))

    def _told(self, name: str, session: _Session, line: LogLine, at_us: int, application_name: str = "") -> None:
        if session.told and session.client:
            return
        session.user = line.user
        session.database = line.dbname
        session.client = _client(line.remote_host, line.remote_port)
        if session.told:  # before this start; what it is called is not in the checkpoint
            return
        session.told = True
        self.out.append(
            SessionObserved(
                at_us=at_us,
                witness=self.witness,
                server=self.server,
                session_id=name,
                backend_pid=line.pid,
                user=line.user,
                database=line.dbname,
                client=session.client,
                application_name=application_name or line.application_name,
                backend_type="" if line.backend_type == "client backend" else line.backend_type,
            )
        )

    def _untold(self, name: str, session: _Session, at_us: int, reason: str) -> None:
        self._end(name, session)
        if session.told and not session.ended_us:
            self.out.append(SessionUnobserved(at_us, self.witness, self.server, name, reason))
        session.ended_us = at_us
        session.late = None

    # -- what it says ----------------------------------------------------------------------------------------------------------

    def _said(self, name: str, session: _Session, line: LogLine, at_us: int, place: Place) -> None:
        message = line.message
        if line.statement:
            # Only replication commands are logged beside themselves.
            if line.backend_type == "walsender" and message.startswith(_REPLICATION) and message.endswith(line.statement):
                self._begin(name, session, line, at_us, place, "replication", message[len(_REPLICATION) :])
        elif message.startswith(_STATEMENT):
            session.logged = True
            self._begin(name, session, line, at_us, place, "statement", message[len(_STATEMENT) :])
        elif message.startswith("execute "):
            if (match := _EXECUTE.match(message)) is not None and not match[1]:  # else a portal goes on: no further execution
                session.logged = True
                self._begin(name, session, line, at_us, place, "statement", message[match.end() :])
        elif message.startswith("duration: "):
            self._lasted(name, session, line, at_us, place)
        elif message.startswith(AUDIT):
            self._audited(name, session, line, at_us, place)
        elif message.startswith(_AUTHORIZED):
            self._told(name, session, line, at_us, _application_name(line))
        elif message.startswith("disconnection: "):
            self._untold(name, session, at_us, "")
        elif message.startswith(_FASTPATH):
            self._begin(name, session, line, at_us, place, "function call", message[len(_FASTPATH) :])
        elif message.startswith(_REPLICATION):
            self._begin(name, session, line, at_us, place, "replication", message[len(_REPLICATION) :])
        elif message == _READY and line.backend_type == "postmaster":
            self._restarted(name, at_us)

    def _restarted(self, postmaster: str, at_us: int) -> None:
        for name, session in self._sessions.items():
            if name != postmaster and session.told and not session.ended_us:
                self._untold(name, session, at_us, "the server was restarted")

    def _begin(self, name: str, session: _Session, line: LogLine, at_us: int, place: Place, source: str, text: str) -> None:
        begun = session.begun
        if begun is not None and begun.source == "audit" and source == "statement" and begun.text == text:
            del self._begun[name]  # pgaudit spoke at the Bind; this is its Execute
        elif begun is not None:
            self._end(name, session)
        session.late = None
        if not session.client:
            self._told(name, session, line, at_us)
        session.begun = self._begun[name] = _Begun(at_us, line.line_num, source, text, line.query_id, place)

    def _end(
        self,
        name: str,
        session: _Session,
        *,
        sqlstate: str = "",
        rows: int = -1,
        duration_us: int = -1,
        known: bool = True,
    ) -> StatementObserved | None:
        """Tell what was begun, where something was."""
        begun = session.begun
        if begun is None:
            return None
        session.begun = None
        del self._begun[name]
        if rows >= 0:
            begun.rows = rows
        return self._tell(name, session, begun, sqlstate, duration_us, known)

    def _tell(
        self, name: str, session: _Session, ran: _Begun, sqlstate: str = "", duration_us: int = -1, known: bool = True
    ) -> StatementObserved:
        text = ran.text
        whole = text.encode("utf-8", "replace")
        if not self._policy.full:
            text = ""
        elif len(whole) > self._policy.bytes_max:
            text = whole[: self._policy.bytes_max].decode("utf-8", "ignore")
        told = StatementObserved(
            ran.at_us,
            self.witness,
            self.server,
            name,
            ran.sequence,
            ran.source,
            text,
            len(whole),
            digest(whole),
            ran.query_id,
            ran.rows,
            sqlstate,
            duration_us,
            session.user,
            session.database,
            session.client,
            known,
        )
        self.out.append(told)
        return told

    def _lasted(self, name: str, session: _Session, line: LogLine, at_us: int, place: Place) -> None:
        match = _DURATION.fullmatch(line.message)
        if match is None:
            return
        duration_us = int(match[1]) * 1000 + int(match[2])
        if match[4] is None:
            if line.ps not in _BEFORE_EXECUTION:
                self._end(name, session, duration_us=duration_us)
        elif match[3] is None:  # log_min_duration_statement: one line, at the end
            self._begin(name, session, line, at_us - duration_us, place, "statement", match[4])
            self._end(name, session, duration_us=duration_us)

    def _audited(self, name: str, session: _Session, line: LogLine, at_us: int, place: Place) -> None:
        found = audited(line.message)
        if found is None or (found.statement, found.substatement) == session.audit:
            return  # one line a relation: the statement has been told
        session.audit = (found.statement, found.substatement)
        begun = session.begun
        again = begun is not None and (begun.source == "statement" or (begun.source == "audit" and found.substatement > 1))
        if begun is not None and again and begun.text == found.text:
            # It has been said already: by the server, or of the function that it calls. Of several statements in one text, the rows
            # of one would be wrong for all.
            if found.rows >= 0:
                begun.audited += 1
                begun.rows = found.rows if begun.audited == 1 else -1
        elif found.substatement > 1:
            self._told(name, session, line, at_us)
            ran = _Begun(at_us, line.line_num, "nested", found.text, line.query_id, place, found.rows)
            self._tell(name, session, ran, known=False)
        elif not session.logged:
            self._begin(name, session, line, at_us, place, "audit", found.text)
            if found.rows >= 0:  # it is told at the end then
                self._end(name, session, rows=found.rows)

    def _failed(self, name: str, session: _Session, line: LogLine, at_us: int, place: Place) -> None:
        begun, late, statement = session.begun, session.late, line.statement
        sqlstate = line.state_code
        if statement:
            executing = line.ps not in _BEFORE_EXECUTION
            if begun is not None and executing and _is_of(begun, statement):
                begun.text = statement
                self._end(name, session, sqlstate=sqlstate)
            elif late is not None and executing and late.digest == digest(statement.encode("utf-8", "replace")):
                session.late = None
                again = _Begun(late.at_us, late.sequence, late.source, statement, late.query_id, place)
                self._tell(name, session, again, sqlstate)
            else:  # it failed before it was logged: a syntax error, a Parse or a Bind
                self._begin(name, session, line, at_us, place, "statement", statement)
                self._end(name, session, sqlstate=sqlstate)
        if line.error_severity != "ERROR":
            self._untold(name, session, at_us, sqlstate)


def _is_of(begun: _Begun, statement: str) -> bool:
    """Whether this is the statement that was begun. The name of a prepared one may hold ": ", so that its text seems to begin
    earlier; and a function call has none."""
    return begun.text == statement or (begun.source == "statement" and begun.text.endswith(f": {statement}"))


def _client(host: str, port: int) -> str:
    if not port:
        return "local" if host in ("", "[local]") else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _application_name(line: LogLine) -> str:
    """Of "connection authorized: user=U database=D application_name=A SSL enabled (...)", where U and D are known."""
    begin = f"user={line.user}" + (f" database={line.dbname}" if line.dbname else "") + _APPLICATION_NAME
    _, found, rest = line.message.partition(begin)
    if not found:
        return ""
    for end in (" SSL enabled (", " GSS ("):
        rest = rest.rpartition(end)[0] if end in rest else rest
    return rest
