"""Runs SQL that somebody else wrote, on a copy of the tables, in a process that has nothing to lose. Started by `guarded_sql`.

Imports nothing of pgwarden: it is run by its path, in isolated mode (`python -I`), with an empty environment. Requests come as
lines of JSON; a reply is one byte (`A`nswer or `R`efusal), four of length, and JSON.
"""

from __future__ import annotations

import ctypes
import datetime
import decimal
import json
import math
import os
import resource
import signal
import struct
import sys
import threading
from typing import IO, Final

import duckdb

ADDRESS_SPACE_BYTES: Final = 3 * 2**30  # DuckDB reserves more than it uses; its own limit is sql_memory_max_mb
FILES_MAX: Final = 64
NICE: Final = 10
ALARM_SECONDS: Final = 1.0  # after the interrupt: some functions (levenshtein) do not look for one
PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>
PR_SET_NO_NEW_PRIVS: Final = 38


class Refused(Exception):
    """Says what to do instead."""


def lock_in() -> None:
    """Give up all that a query does not need."""
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, 0),  # it cannot make a file longer, whatever it finds to write to
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, FILES_MAX),
    ):
        resource.setrlimit(limit, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.nice(NICE)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a function that never comes back to Python
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            kind, payload = b"A", answer(request)
        except Refused as refusal:
            kind, payload = b"R", json.dumps({"kind": refusal.args[0], "reason": refusal.args[1]}).encode()
        disarm()
        replies.write(kind + struct.pack("!I", len(payload)) + payload)
        replies.flush()


def disarm() -> None:
    """Call off the alarm that answer() set."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def answer(request: dict[str, object]) -> bytes:
    """Return the answer as JSON. Sets an alarm that ends this process; call disarm() afterwards, however it came out.

    Raises:
        Refused: With a kind and a sentence.
    """
    seconds_max = float(str(request["seconds_max"]))
    signal.setitimer(signal.ITIMER_REAL, seconds_max + ALARM_SECONDS)
    try:
        connection = duckdb.connect(
            str(request["path"]),
            read_only=True,
            config={
                "enable_external_access": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "python_enable_replacements": "false",
                "threads": "1",
                "memory_limit": f"{request['memory_max_mb']}MB",
                "temp_directory": "",
            },
        )
    except duckdb.Error as error:
        raise Refused("unavailable", f"The copy of the tables cannot be opened: {_first_line(error)}") from error
    timer = threading.Timer(seconds_max, connection.interrupt)
    timer.daemon = True
    try:
        connection.execute("set TimeZone = 'UTC'").fetchall()
        connection.execute("set lock_configuration = true").fetchall()
        timer.start()
        return _run(connection, request)
    except duckdb.InterruptException as error:
        raise Refused(
            "limit", f"The query took more than {seconds_max:g} s and was stopped; narrow it, for example by time."
        ) from error
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise Refused("limit", "The query needed more memory than it may use; narrow it, for example by time.") from error
    except duckdb.Error as error:
        raise Refused("invalid", _first_line(error)) from error
    finally:
        timer.cancel()
        connection.close()


def _run(connection: duckdb.DuckDBPyConnection, request: dict[str, object]) -> bytes:
    try:
        statements = connection.extract_statements(str(request["sql"]))
    except duckdb.Error as error:
        raise Refused("invalid", _first_line(error)) from error
    if len(statements) != 1:
        raise Refused("invalid", f"Send exactly one statement; these are {len(statements)}.")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise Refused("invalid", "Send a SELECT; nothing else is run here.")
    # A CTE may hold an INSERT and the whole still be a SELECT: the file is read-only, and so is the transaction.
    connection.execute("begin transaction read only").fetchall()
    result = connection.execute(statements[0])
    columns = [{"name": str(column[0]), "type": str(column[1])} for column in result.description or ()]
    rows_max, bytes_max = int(str(request["rows_max"])), int(str(request["bytes_max"]))
    rows: list[bytes] = []
    size = 0
    truncated = False
    while (row := result.fetchone()) is not None:
        encoded = json.dumps([plain(value) for value in row], ensure_ascii=False).encode("utf-8", "replace")
        size += len(encoded) + 2
        if len(rows) == rows_max or size > bytes_max:
            truncated = True
            break
        rows.append(encoded)
    head = json.dumps({"columns": columns, "truncated": truncated, "snapshot_at": request["snapshot_at"]}).encode()
    return head[:-1] + b', "rows": [' + b", ".join(rows) + b"]}"


def plain(value: object) -> object:
    """What JSON can say. Times are UTC; bytes are hexadecimal; NaN and infinities are strings."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime():
            moment = value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
            return moment.isoformat() + "Z"
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return "\\x" + bytes(value).hex()
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case _:
            return str(value)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:500]


if __name__ == "__main__":
    # What a library prints must not pass for a reply.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock_in()
    serve(sys.stdin.buffer, replies)
