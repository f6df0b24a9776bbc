"""`pgwarden report`: an agent's month as one page to hand to an auditor."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from identity.commands import AGENT_NAME
from pgwarden import __version__
from pgwarden.api_client import BadUsage, Place, call, path
from pgwarden.commands.answers import answered, failed, print_json
from pgwarden.printable import printable
from pgwarden.report import Facts, Section, holds, page
from pgwarden.report_questions import questions
from pgwarden.small_files import Unreadable, content, reason_of, write_private_bytes

STYLE: Final = Path(__file__).parents[1] / "report.css"
PAGE_BYTES_MAX: Final = 64 * 2**20


def report(arguments: argparse.Namespace) -> int:
    if arguments.check is not None:
        return _check(arguments, arguments.check)
    if not arguments.agent or not arguments.month or arguments.output is None:
        return failed(arguments, {"error": "write AGENT --month YYYY-MM --output FILE.html, or --check FILE.html"}, 2)

    def work(place: Place) -> int:
        if AGENT_NAME.fullmatch(arguments.agent) is None:
            raise BadUsage(f"{printable(arguments.agent)!r} is no name of an agent; pgwarden agents lists them")
        begin, end = _month(arguments.month)
        written = page(_facts(place, arguments.agent, begin, end), STYLE.read_text(encoding="utf-8")).encode("utf-8")
        shown = printable(str(arguments.output), 4096)
        try:
            write_private_bytes(arguments.output, written)
        except OSError as error:
            raise BadUsage(f"{shown} cannot be written: {reason_of(error)}; name a file in a folder that you may write") from error
        digest = hashlib.sha256(written).hexdigest()
        if arguments.json:
            print_json({"path": str(arguments.output), "bytes": len(written), "sha256": digest})
        else:
            print(f"{shown}: {len(written)} bytes, SHA-256 {digest}")
        return 0

    return answered(arguments, work)


def _facts(place: Place, agent: str, begin: date, end: date) -> Facts:
    me = str(call(place, "GET", path("me")).get("operator"))
    sections: dict[str, Section] = {}
    snapshot_at = ""
    for name, sql in questions(agent, begin, end).items():
        answer = call(place, "POST", path("sql"), {"sql": sql})
        sections[name] = _section(sql, answer)
        snapshot_at = snapshot_at or str(answer.get("snapshot_at"))
        if name == "agent" and not sections[name].rows:
            raise BadUsage(f"there is no agent {agent}; pgwarden agents lists them")
    written_at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return Facts(agent, begin, end, written_at, me, snapshot_at, __version__, sections)


def _section(sql: str, answer: Mapping[str, object]) -> Section:
    columns, rows = answer.get("columns"), answer.get("rows")
    names = [str(column.get("name")) for column in columns if isinstance(column, dict)] if isinstance(columns, list) else []
    found = [dict(zip(names, row, strict=False)) for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    limit = int(sql.rsplit(" limit ", 1)[1]) if " limit " in sql else None
    return Section(sql, found, bool(answer.get("truncated")) or (limit is not None and len(found) >= limit))


def _month(text: str) -> tuple[date, date]:
    try:
        begin = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise BadUsage(f"{printable(text)!r} is no month; write one as 2026-11") from error
    if not 1970 <= begin.year < 9999 or len(text) != 7:
        raise BadUsage(f"{printable(text)!r} is no month; write one as 2026-11")
    if begin > datetime.now(UTC).date():
        raise BadUsage(f"{text} has not begun; write a month of which there is a record")
    return begin, date(begin.year + begin.month // 12, begin.month % 12 + 1, 1)


def _check(arguments: argparse.Namespace, file: Path) -> int:
    shown = printable(str(file), 4096)
    found = content(file, PAGE_BYTES_MAX)
    if isinstance(found, Unreadable):
        return failed(arguments, {"error": f"{shown} is a file {found.reason}; name a page that pgwarden report wrote"}, 2)
    whole = holds(found.data.decode("utf-8", "replace"))
    if arguments.json:
        print_json({"path": str(file), "unchanged": whole})
    elif whole:
        print(f"{shown}: as it was written")
    else:
        print(f"pgwarden: {shown} was changed after it was written, or is no page of pgwarden report", file=sys.stderr)
    return 0 if whole else 1
