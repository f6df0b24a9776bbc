"""What pgaudit wrote as a log message -> which statement it is about. https://github.com/pgaudit/pgaudit, "Format"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ingest.collectors.csv_fields import csv_fields

PREFIX: Final = "AUDIT: "
_KINDS: Final = ("SESSION", "OBJECT")
_COUNTED: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")  # of others pgaudit says 0, whatever they did
_NOT_HERE: Final = ("<not logged>", "<previously logged>", "<none>")


@dataclass(frozen=True, slots=True)
class Audited:
    statement: int  # counts up in a session
    substatement: int  # 1 = what the client sent; above it, what that ran itself, in functions and triggers
    kind: str  # "SESSION" | "OBJECT"
    text: str  # "" where pgaudit does not say it
    rows: int  # -1 = not told (pgaudit.log_rows), or not to be believed


def audited(message: str) -> Audited | None:
    """None when it is no message of pgaudit's, whatever it begins with."""
    if not message.startswith(PREFIX):
        return None
    fields = csv_fields(message[len(PREFIX) :])
    if len(fields) < 9 or fields[0] not in _KINDS or not (fields[1].isdecimal() and fields[2].isdecimal()):
        return None
    rows = fields[9] if len(fields) > 9 and fields[4] in _COUNTED else ""
    return Audited(
        statement=int(fields[1][:18]),
        substatement=int(fields[2][:18]),
        kind=fields[0],
        text="" if fields[7] in _NOT_HERE else fields[7],
        rows=int(rows) if rows.isdecimal() and len(rows) < 19 else -1,
    )
