"""Where fields stand in PostgreSQL's structures, by major version; and what a live backend says against it. Pure.

From the headers that each version installs (libpq/libpq-be.h, utils/portal.h, nodes/plannodes.h, utils/elog.h). They do not change
within a major version, since extensions are built against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Offsets:
    port_database: int  # offsetof(Port, database_name)
    port_user: int
    portal_stmts: int  # offsetof(PortalData, stmts)
    portal_at_start: int
    stmt_location: int  # offsetof(PlannedStmt, stmt_location); stmt_len follows
    error_sqlstate: int = 48  # offsetof(ErrorData, sqlerrcode)


KNOWN: Final[Mapping[int, Offsets]] = MappingProxyType(
    {
        14: Offsets(328, 336, 80, 192, 120),
        15: Offsets(328, 336, 88, 200, 120),
        16: Offsets(328, 336, 88, 200, 128),
        17: Offsets(320, 328, 88, 200, 128),
        18: Offsets(384, 392, 88, 192, 152),
    }
)

FUNCTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ready": "ReadyForQuery",
        "portal_run": "PortalRun",
        "end_command": "EndCommand",
        "abort_transaction": "AbortCurrentTransaction",
        "errstart": "errstart_cold",
        "errcode": "errcode",
        "rethrow": "ReThrowError",
        "throw": "ThrowErrorData",
        "function_call": "HandleFunctionRequest",
        "replication": "exec_replication_command",
        "executor": "standard_ExecutorRun",
        "utility": "standard_ProcessUtility",
    }
)
"""Program -> the server's function that it is attached to."""
ARGUMENTS: Final[Mapping[str, int]] = MappingProxyType({"ready": 0, "abort_transaction": 0, "portal_run": 3, "utility": 2})
"""How many of the function's arguments a program reads, where it is not the first alone."""
NESTED: Final = frozenset({"executor", "utility"})  # attached only where SQL inside functions is asked for
VARIABLES: Final = ("MyProcPort", "MyStartTime", "MyStartTimestamp", "debug_query_string", "application_name")

_VERSION: Final = re.compile(rb"PostgreSQL (\d{2})(?:\.\d+|devel|beta\d|rc\d)")


def major_of(text: bytes | bytearray | mmap) -> int:
    """Of a server binary's own words, or of the file PG_VERSION; 0 = they name none."""
    found = _VERSION.search(text)
    if found:
        return int(found[1])
    written = bytes(text[:5]).strip()
    return int(written) if len(text) < 5 and written.isdigit() else 0


def agrees(title: str, user: str, database: str) -> bool:
    """Whether a backend's process title, which PostgreSQL writes without these structures, names the same user and database.

    ps_status.c: "postgres: [cluster_name: ]user database host(port) activity".
    """
    return title.startswith("postgres: ") and f" {user} {database} " in f"{title} "
