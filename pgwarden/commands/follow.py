"""`pgwarden tail`: what happens now, one line each, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

from pgwarden.api_client import ApiRefused, ApiUnreachable, BadUsage, Json, Place, call, path
from pgwarden.commands.answers import answered, rows_of
from pgwarden.printable import printable
from pgwarden.small_files import Unreadable, content, write_private
from pgwarden.tables import duration_of, time_of

WAIT_SECONDS: Final = 20
RETRY_SECONDS: Final = (
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    15.0,
    15.0,
    15.0,
)  # an API that starts anew takes seconds, more on a loaded machine
BUSY: Final = (429, 503)
CURSOR_BYTES_MAX: Final = 8192
BEHIND_SECONDS: Final = 10.0  # and it is said, once; a lag of seconds comes and goes with the load
CAUGHT_UP_SECONDS: Final = 2.0


def tail(arguments: argparse.Namespace) -> int:
    def work(place: Place) -> int:
        cursor = _kept(arguments.resume) or arguments.after
        is_behind = False
        until = None if arguments.for_seconds is None else time.monotonic() + arguments.for_seconds
        while True:
            wait = WAIT_SECONDS if until is None else min(WAIT_SECONDS, max(0, int(until - time.monotonic())))
            answer = _next(place, arguments, cursor, wait)
            behind_seconds = answer.get("behind_seconds")
            if not is_behind and isinstance(behind_seconds, int | float) and behind_seconds > BEHIND_SECONDS:
                is_behind = True
                print(f"pgwarden: {behind_seconds:.0f} s behind: these lines are of then, not of now", file=sys.stderr)
            for item in rows_of(answer):
                if arguments.json:
                    print(json.dumps(item, ensure_ascii=True))
                elif line := _line(item):
                    print(line)
            sys.stdout.flush()
            if is_behind and isinstance(behind_seconds, int | float) and behind_seconds <= CAUGHT_UP_SECONDS:
                is_behind = False
                print("pgwarden: caught up: these lines are of now", file=sys.stderr)
            cursor = str(answer.get("next") or "")
            # After the lines are out: who ends in between sees them twice, never not at all.
            _keep(arguments.resume, cursor)
            if until is not None and time.monotonic() >= until:
                return 0

    return answered(arguments, work)


def _next(place: Place, arguments: argparse.Namespace, cursor: str, wait: int) -> Json:
    """
    Raises:
        ApiRefused: The operator may not follow (any more), or something is wrong with what was asked.
        ApiUnreachable: Nobody answers, for longer than an API takes to start anew.
    """
    asked = path("follow", after=cursor, agent=arguments.agent, decision=arguments.decision, wait_seconds=str(wait))
    for pause in RETRY_SECONDS:
        try:
            return call(place, "GET", asked)
        except ApiRefused as refused:
            if refused.status not in BUSY:
                raise
        except ApiUnreachable:
            if not cursor:
                raise  # it never answered: the address may be wrong
        time.sleep(pause)
    return call(place, "GET", asked)


def _kept(file: Path | None) -> str:
    if file is None or not file.exists():
        return ""
    found = content(file, CURSOR_BYTES_MAX)
    if isinstance(found, Unreadable):
        raise BadUsage(f"{printable(str(file))} is a file {found.reason}; name another with --resume")
    return found.data.decode("ascii", "replace").strip()


def _keep(file: Path | None, cursor: str) -> None:
    if file is None:
        return
    try:
        write_private(file, cursor + "\n")
    except OSError as error:
        raise BadUsage(
            f"{printable(str(file))} cannot be written: {error.strerror or error}; name another with --resume"
        ) from error


def _line(item: Json) -> str:
    """As people read it; "" for what only programs want: that a statement ended as it should."""
    kind = str(item.get("kind"))
    if kind == "statement finished" and item.get("outcome") == "ok":
        return ""
    session, execution = str(item.get("session") or ""), item.get("execution")
    where = f"{session}#{execution}" if execution is not None else session
    said = [str(item[name]) for name in ("outcome", "sqlstate", "reason", "text") if item.get(name)]
    if "text" in item and item["text"] is None:
        said.append("its text is not known")
    if kind == "statement finished":
        said.append(str(duration_of(item.get("duration_us"))))
    shown = (str(time_of(item.get("at"))), kind, str(item.get("agent") or "-"), where or "-", " · ".join(said))
    return "  ".join(printable(" ".join(part.split()), 400) for part in shown)
