"""The gateway's record and the server's own log in; what one tells and the other does not out.

The server logs (log_statement = all): a simple Query as one line, however many statements it holds; each Execute as one; a portal
that goes on as `execute fetch from`; Parse, Bind and Describe as nothing; what fails before it runs as an ERROR alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ingest.events import Event, Stamp, StatementDefined, StatementDenied, StatementFinished, StatementStarted

_EXECUTE = re.compile(r"execute (fetch from )?[^:]*: ", re.DOTALL)
_REPLACED = "pgwarden_refused_"
_RAN_ALREADY = re.compile(r'portal ".*" cannot be run', re.DOTALL)


@dataclass(slots=True)
class Recorded:
    """One execution as the record tells it; `outcome` "" where it has no end."""

    number: int
    text: str
    outcome: str = ""
    sqlstate: str = ""


@dataclass(slots=True)
class Line:
    """One execution as the server tells it, and the errors up to its next one that are of the same text."""

    text: str
    simple: bool
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Server:
    lines: list[Line] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)  # SQLSTATE and text of those that never began to run
    doubtful: list[tuple[str, str]] = field(default_factory=list)  # of the run before, or of the same text's next Parse or Bind
    continued: list[str] = field(default_factory=list)  # texts of portals that were run again: on, or when they were done
    replaced: int = 0


def violations(
    events: Iterable[tuple[Stamp | None, Event]],
    log: Iterable[Mapping[str, object]],
    database: str,
    markers: Iterable[str] = (),
    *,
    texts_repeat: bool = False,
) -> list[str]:
    """Empty when both agree. `log`: the server's jsonlog. `markers`: literals of refused statements, which no server may see.

    `texts_repeat`: a session may prepare a text anew that it ran before. An error of such a Parse or Bind, which runs nothing, cannot
    be told from one of the run before, so that it is recorded as failed is then not asked.
    """
    found: list[str] = []
    recorded, denied = _recorded(events, found)
    served = _served(log, database, tuple(markers), found)
    for place, server in served.items():
        if place not in recorded:
            found += [f"{place}: ran in no recorded session: {line.text}" for line in server.lines]
    for place, executions in recorded.items():
        server = served.get(place, _Server())
        found += [f"{place}: {wrong}" for wrong in _compared(executions, server, texts_repeat)]
        if server.replaced > denied.get(place, 0):
            found.append(f"{place}: {server.replaced} messages were replaced, {denied.get(place, 0)} denials are recorded")
    return found


def _recorded(
    events: Iterable[tuple[Stamp | None, Event]], found: list[str]
) -> tuple[dict[tuple[int, int], list[Recorded]], dict[tuple[int, int], int]]:
    texts: dict[tuple[str, int], str] = {}
    executions: dict[tuple[str, int], Recorded] = {}
    recorded: dict[tuple[int, int], list[Recorded]] = defaultdict(list)
    denied: dict[tuple[int, int], int] = defaultdict(int)
    for stamp, event in events:
        assert stamp is not None
        place = (stamp.upstream_port, stamp.backend_pid)
        if isinstance(event, StatementDefined):
            texts[stamp.session, event.statement] = event.text
        elif isinstance(event, StatementStarted):
            ran = executions[stamp.session, event.execution] = Recorded(event.execution, texts[stamp.session, event.statement])
            recorded[place].append(ran)
        elif isinstance(event, StatementDenied):
            recorded[place] += []
            denied[place] += 1
        elif isinstance(event, StatementFinished):
            ended = executions.get((stamp.session, event.execution))
            if ended is None:
                found.append(f"{place}: execution {event.execution} ended and never began")
            elif ended.outcome:
                found.append(f"{place}: execution {event.execution} ended twice: {ended.text}")
            else:
                ended.outcome, ended.sqlstate = event.outcome, event.sqlstate
    for place, of_session in recorded.items():
        found += [f"{place}: execution {ran.number} has no end: {ran.text}" for ran in of_session if not ran.outcome]
    return recorded, denied


def _served(
    log: Iterable[Mapping[str, object]], database: str, markers: Sequence[str], found: list[str]
) -> dict[tuple[int, int], _Server]:
    served: dict[tuple[int, int], _Server] = defaultdict(_Server)
    refused = re.compile("|".join(map(re.escape, markers)) or "(?!)")
    for entry in log:
        if entry.get("dbname") != database or not str(entry.get("application_name", "")).startswith("pgwarden/"):
            continue  # the test's own, straight to the server
        if str(entry["application_name"]).startswith(("pgwarden/control/", "pgwarden/watchdog/")):
            continue
        port, pid = entry.get("remote_port"), entry.get("pid")
        assert isinstance(port, int)
        assert isinstance(pid, int)
        server = served[port, pid]
        message, statement = str(entry.get("message", "")), str(entry.get("statement", ""))
        found += [f"{(port, pid)}: a refused text reached the server: {marker}" for marker in refused.findall(str(entry))]
        if entry.get("error_severity") == "LOG":
            prepared = _EXECUTE.match(message)
            if message.startswith("statement: "):
                server.lines.append(Line(message.removeprefix("statement: "), simple=True))
            elif prepared is not None and not prepared[1]:
                server.lines.append(Line(message[prepared.end() :], simple=False))
            elif prepared is not None:
                server.continued.append(message[prepared.end() :])
            elif message.startswith("fastpath"):
                server.lines.append(Line(message, simple=True))
        elif entry.get("error_severity") in ("ERROR", "FATAL", "PANIC"):
            sqlstate = str(entry.get("state_code", ""))
            if _REPLACED in message:
                server.replaced += 1
            elif sqlstate == "55000" and _RAN_ALREADY.fullmatch(message) and server.lines and server.lines[-1].text == statement:
                # A portal that is done was asked to run again: it says `execute`, and nothing ran. One Bind is one execution.
                server.lines.pop()
                server.errors.append((sqlstate, statement))
            elif server.lines and server.lines[-1].text == statement and not server.lines[-1].errors:
                server.lines[-1].errors.append(sqlstate)
            else:
                server.errors.append((sqlstate, statement))
    return served


def _compared(executions: Sequence[Recorded], server: _Server, texts_repeat: bool) -> Iterable[str]:
    at = 0
    for line in server.lines:
        while at < len(executions) and not _belongs(executions[at], line):
            yield from _did_not_run(executions[at], server)
            at += 1
        if at == len(executions):
            yield f"ran and is not recorded: {line.text}"
            continue
        parts, at = _parts(executions, at, line)
        if len(parts) == 1 and parts[0].outcome == "ok":
            server.doubtful += [(sqlstate, line.text) for sqlstate in line.errors]
            line.errors.clear()
        yield from _ended_alike(parts, line)
    for ran in executions[at:]:
        yield from _did_not_run(ran, server)
    for sqlstate, text in () if texts_repeat else server.doubtful:
        yield f"failed with {sqlstate} and is not recorded so: {text}"


def _belongs(ran: Recorded, line: Line) -> bool:
    if ran.text == line.text and (ran.outcome == "skipped" or (ran.outcome == "error" and not line.errors)):
        return False  # it never began: the line is of a later one of the same text
    if line.simple:
        return line.text.startswith(ran.text)
    return line.text == ran.text or (ran.text.startswith("PREPARE ") and ran.text in line.text)  # the string that prepared it


def _parts(executions: Sequence[Recorded], at: int, line: Line) -> tuple[list[Recorded], int]:
    """The executions that make up one line, and the place of the next."""
    rest, parts = line.text, []
    while at < len(executions) and (not parts or (rest and rest.startswith(executions[at].text))):
        rest = rest[len(executions[at].text) :].lstrip("; \n\t")
        parts.append(executions[at])
        at += 1
        if not rest:
            break
    return parts, at


def _did_not_run(ran: Recorded, server: _Server) -> Iterable[str]:
    if not ran.text:
        return  # the server tells of an empty Query, and not of an empty Execute
    if ran.outcome in ("ok", "suspended") and ran.text in server.continued:
        server.continued.remove(ran.text)
    elif ran.outcome in ("ok", "suspended"):
        yield f"is recorded as run ({ran.outcome}) and did not: {ran.text}"
    elif ran.outcome == "error":
        for errors in (server.doubtful, server.errors):
            same = [error for error in errors if error[0] == ran.sqlstate and error[1] in (ran.text, "None", "")]
            if same:
                errors.remove(same[0])
                break
        else:
            yield f"is recorded as failed with {ran.sqlstate} and no error says so: {ran.text}"


def _ended_alike(parts: Sequence[Recorded], line: Line) -> Iterable[str]:
    failed = [ran.sqlstate for ran in parts if ran.outcome == "error"]
    if any(ran.outcome == "unknown" for ran in parts):
        return
    if failed != line.errors:
        yield f"failed with {line.errors} and is recorded with {failed}: {line.text}"
    expected = ["ok"] * len(parts)
    if failed:
        place = next(number for number, ran in enumerate(parts) if ran.outcome == "error")
        expected = ["ok"] * place + ["error"] + ["skipped"] * (len(parts) - place - 1)
    told = ["ok" if ran.outcome == "suspended" else ran.outcome for ran in parts]
    if told != expected:
        yield f"is recorded as {told} and was {expected}: {line.text}"
