"""A piece of work on the API -> its exit code; and what every such command prints, as one JSON document or as tables."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pgwarden.api_client import ApiRefused, ApiUnreachable, BadUsage, Json, Place, call, find
from pgwarden.printable import printable
from pgwarden.tables import Column, duration_of, table, time_of, width

APPLIED_SECONDS_MAX: Final = 5.0  # that a command waits for the gateways, as long as for one proof; the API waits a second itself
APPLIED_INTERVAL_SECONDS: Final = 0.1
UNRECORDED: Final = 503  # the log is slow, or takes nothing now


def answered(arguments: argparse.Namespace, work: Callable[[Place], int]) -> int:
    """Do `work` where the API is. Every way in which it may not answer becomes a sentence and an exit code."""
    try:
        place = find(arguments.api, arguments.operator_key_file, arguments.config, arguments.insecure_http)
    except BadUsage as bad:
        return failed(arguments, {"error": str(bad)}, 2)
    try:
        return work(place)
    except BadUsage as bad:
        return failed(arguments, {"error": str(bad)}, 2)
    except ApiRefused as refused:
        if refused.status == 401:
            wanted = "name an operator key, or the access token of a person in an operator group"
            return failed(arguments, {"error": f"what is in {place.key.source} opens nothing at {place.url}; {wanted}"}, 2)
        return failed(arguments, refused.answer, 1)
    except ApiUnreachable as unreachable:
        return failed(arguments, {"error": str(unreachable)}, 3)


def failed(arguments: argparse.Namespace, answer: Json, code: int) -> int:
    if arguments.json:
        print_json(answer)
        return code
    print(f"pgwarden: {printable(str(answer.get('error', 'it failed')), 1000)}", file=sys.stderr)
    problems = answer.get("problems")
    for problem in problems if isinstance(problems, list) and len(problems) > 1 else ():
        print(f"  {printable(str(problem), 1000)}", file=sys.stderr)
    return code


def command(arguments: argparse.Namespace, place: Place, path: str, body: Json | None = None) -> Json:
    """POST, under an Idempotency-Key, so that a call whose answer was lost can be repeated.

    While the answer says that a gateway does not act on it yet, it is repeated: that changes nothing and asks them anew.

    Raises:
        ApiRefused, ApiUnreachable: As `call`; where it may have been carried out, it says how to repeat it.
    """
    key = arguments.idempotency_key or f"cli-{secrets.token_hex(16)}"
    until = time.monotonic() + APPLIED_SECONDS_MAX
    try:
        answer = call(place, "POST", path, body, key)
        while answer.get("applied") is False and time.monotonic() < until:
            time.sleep(APPLIED_INTERVAL_SECONDS)
            answer = call(place, "POST", path, body, key)
        return answer
    except ApiRefused as refused:
        if refused.status != UNRECORDED:
            raise
        error = f"{refused} To repeat the command, add --idempotency-key {printable(key)}"
        raise ApiRefused(refused.status, {**refused.answer, "error": error}) from refused
    except ApiUnreachable as unreachable:
        raise ApiUnreachable(f"{unreachable}; repeat the command with --idempotency-key {printable(key)}") from unreachable


def rows_of(answer: Json, key: str = "items") -> list[Json]:
    """The list in an answer."""
    items = answer.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def show(
    arguments: argparse.Namespace, answer: Json, heads: Sequence[Column], rows: Sequence[Json], none: str, notes: str = ""
) -> int:
    """A list. `none` is what to say where it is empty, `notes` the key of what stands below a row."""
    if arguments.json:
        print_json(answer)
        return 0
    if not rows:
        print(none)
        return 0
    print(table(heads, [shown(row) for row in rows], width(), notes))
    if answer.get("next"):
        print(f"more: --before {printable(str(answer['next']))}")
    return 0


def not_applied(answer: Json) -> bool:
    """Say which gateways do not act on a change yet; False when all do."""
    if answer.get("applied") is not False:
        return False
    names = answer.get("waiting_for")
    which = ", ".join(printable(str(name)) for name in names) if isinstance(names, list) else ""
    print(f"pgwarden: recorded, but not acted on yet by {which or 'every gateway'}; see pgwarden health", file=sys.stderr)
    return True


def shown(row: Mapping[str, object]) -> Json:
    """Times and durations as people read them: `..._at` and `..._us`."""
    return {
        key: time_of(value) if key.endswith("_at") else duration_of(value) if key.endswith("_us") else value
        for key, value in row.items()
    }


def print_json(answer: Json) -> None:
    # ASCII: JSON itself lets C1 control characters and bidirectional marks through.
    print(json.dumps(answer, indent=2, ensure_ascii=True))
