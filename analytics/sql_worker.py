"""Runs SQL that somebody else wrote, on a copy of the tables, in a process that has nothing to lose. Started by `guarded_sql`.

Imports nothing of pgwarden but the file beside it that knows formats: it is run by its path, in isolated mode (`python -I`), with
no environment. With the argument `arrow` it can answer in Arrow's formats too. Requests come as lines of JSON; a reply is one byte
(`A`nswer, `T`runcated answer, `R`efusal), four of the number of rows, four of length, and the answer; a refusal is JSON.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import duckdb

if TYPE_CHECKING:
    from analytics import answer_formats as formats
else:
    _spec = importlib.util.spec_from_file_location("answer_formats", Path(__file__).with_name("answer_formats.py"))
    formats = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(formats)

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
            rows, truncated, payload = answer(request)
            kind = b"T" if truncated else b"A"
        except Refused as refusal:
            kind, rows, payload = b"R", 0, json.dumps({"kind": refusal.args[0], "reason": refusal.args[1]}).encode()
        disarm()
        replies.write(kind + struct.pack("!II", rows, len(payload)) + payload)
        replies.flush()


def disarm() -> None:
    """Call off the alarm that answer() set."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def answer(request: dict[str, object]) -> tuple[int, bool, bytes]:
    """Return the number of rows, whether there were more, and the answer in the format that was asked for. Sets an alarm that ends
    this process; call disarm() afterwards, however it came out.

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


def _run(connection: duckdb.DuckDBPyConnection, request: dict[str, object]) -> tuple[int, bool, bytes]:
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
    columns = [(str(column[0]), str(column[1])) for column in result.description or ()]
    kind = request["format"]
    rows_max, bytes_max = int(str(request["rows_max"])), int(str(request["bytes_max"]))
    kept: list[tuple[object, ...]] = []
    encoded: list[bytes] = []
    size = 0
    truncated = False
    while (row := result.fetchone()) is not None:
        # Their size as text bounds what every format makes of them.
        line = (
            formats.csv_lines([row])
            if kind == "csv"
            else json.dumps([formats.plain(value) for value in row], ensure_ascii=False).encode("utf-8", "replace")
        )
        size += len(line) + 2
        if len(encoded) == rows_max or size > bytes_max:
            truncated = True
            break
        encoded.append(line)
        if kind in ("arrow", "parquet"):
            kept.append(row)
    if kind == "csv":
        body = formats.csv_lines([[name for name, _ in columns]]) + b"".join(encoded)
    elif kind == "json":
        named = [{"name": name, "type": kind} for name, kind in columns]
        head = json.dumps({"columns": named, "truncated": truncated, "snapshot_at": request["snapshot_at"]}).encode()
        body = head[:-1] + b', "rows": [' + b", ".join(encoded) + b"]}"
    else:
        try:
            body = formats.parquet(columns, kept) if kind == "parquet" else formats.arrow(columns, kept)
        except formats.Unwritable as error:
            raise Refused("invalid", str(error)) from error
    return len(encoded), truncated, body


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:500]


if __name__ == "__main__":
    # What a library prints must not pass for a reply.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if sys.argv[1:] == ["arrow"]:
        import pyarrow.parquet  # noqa: F401  # a second of CPU, which this process is not given soon once it is nice
    lock_in()
    serve(sys.stdin.buffer, replies)
