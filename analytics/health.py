"""What all parts say of themselves in; out comes whether all is well, and if not what is wrong, each cause once. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from analytics.inspector import InspectionStatus
from analytics.runner import Lag

LAG_SECONDS_MAX: Final = 5.0  # from here on the tables are called late; a commit is due every 0.25 s

Said: TypeAlias = Mapping[str, object]
_Problem: TypeAlias = tuple[str, str]
"""What is wrong, and the cause of it; "" where the sentence says it all."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What health wants to know of them."""

    gaps: int  # frames are missing from the log so often
    all_revoked: Sequence[Said]  # rows of `revocations`, of everything
    collectors: Sequence[Said]  # rows of `coverage`


def health(
    gateways: Sequence[Said],
    processes: Sequence[Said],
    lag: Lag,
    inspections: Sequence[InspectionStatus],
    tables: Tables | str,
) -> dict[str, object]:
    """`gateways` by their status; `processes`: `process`, `name`, `up`, `reason` of the others; `tables` why they do not answer."""
    logs = [log for status in gateways if isinstance(log := status.get("log"), Mapping)]
    problems = [problem for status in gateways for problem in _of_gateway(status, lag)]
    problems += _of_api(lag, inspections)
    problems += [problem for process in processes if (problem := _of_process(process)) is not None]
    if isinstance(tables, str):
        problems.append(("the tables do not answer", tables))
    else:
        problems += [(_all_revoked(row), "") for row in tables.all_revoked]
        problems += [problem for row in tables.collectors if (problem := _of_collector(row)) is not None]
    told = each_cause_once(problems)
    return {
        "status": "degraded" if told else "ok",
        "problems": told,
        "log": recording(logs) if logs else None,
        "gaps": None if isinstance(tables, str) else tables.gaps,
        "gateways": [_gateway(status) for status in gateways],
        "processes": [{**process} for process in processes],
        "collectors": [] if isinstance(tables, str) else [_collector(row) for row in tables.collectors],
        "projection": {"lag_records": lag.records, "lag_us": int(lag.seconds * 1_000_000), "error": lag.projection_error},
        "enforcement": {
            "by": "this API" if lag.enforcing else "workers",
            "lag_records": lag.enforcement_records,
            "orders_pending": lag.orders_pending,
            "live_sessions": lag.live_sessions,
            "error": lag.enforcement_error,
        },
        "inspections": [
            {
                "inspection": each.name,
                "lag_records": each.records,
                "current": each.current,
                "recorded": each.recorded,
                "error": each.error,
            }
            for each in inspections
        ],
    }


def each_cause_once(problems: Sequence[_Problem]) -> list[str]:
    """An outage that six parts notice is one problem: all of them, and then the cause."""
    by_cause: dict[str, list[str]] = {}
    for index, (what, cause) in enumerate(problems):
        noticed = by_cause.setdefault(cause or f"\0{index}", [])
        if what not in noticed:
            noticed.append(what)
    return ["; ".join(noticed) + ("" if cause.startswith("\0") else f": {cause}") for cause, noticed in by_cause.items()]


# -- what is wrong -----------------------------------------------------------------------------------------------------------------


def _of_gateway(status: Said, lag: Lag) -> list[_Problem]:
    name, log = str(status.get("gateway", "")), status.get("log")
    found: list[_Problem] = []
    if status.get("deaf"):  # it may be well: what cannot be read here is told once, of all
        found.append((f"{name} is not heard of", lag.projection_error or str(status.get("reason", ""))))
    elif status.get("reachable", True) is False:
        found.append((f"{name} does not answer", str(status.get("reason", ""))))
    if isinstance(log, Mapping) and not log.get("available", True):
        found.append((f"{name} cannot record, so it lets nothing through", str(log.get("reason", ""))))
    return found


def _of_api(lag: Lag, inspections: Sequence[InspectionStatus]) -> list[_Problem]:
    found: list[_Problem] = []
    if lag.projection_error:
        found.append(("the tables stand still", lag.projection_error))
    elif lag.seconds > LAG_SECONDS_MAX:
        found.append((f"the tables are {lag.seconds:.0f} s behind the log", ""))
    if lag.enforcement_error:
        found.append(("enforcement stands still", lag.enforcement_error))
    return [*found, *((f"inspection {each.name} stands still", each.error) for each in inspections if each.error)]


def _of_process(process: Said) -> _Problem | None:
    reason = str(process.get("reason", ""))
    shown = " ".join(part for part in (str(process.get("process", "")), str(process.get("name", ""))) if part)
    if process.get("process") == "collector" and reason.startswith("does not see "):
        return None  # each of its collectors tells that for itself, in the log
    if process.get("up") is False:
        return f"{shown} does not answer", reason
    # "cannot record: no space left" has the same cause as a gateway that says that for itself.
    what, colon, cause = reason.partition(": ")
    if not reason:
        return None
    return (f"{shown} {what}", cause) if colon and what == "cannot record" else (f"{shown} is not well", reason)


def _of_collector(row: Said) -> _Problem | None:
    if row.get("state") not in ("blind", "silent"):
        return None
    since = row.get("blind_since_at") or row.get("reported_at")
    began = f" since {str(since)[:19].replace('T', ' ')}" if since else ""
    return f"collector {row.get('witness')} does not see what server {row.get('server')} does{began}", str(row.get("reason") or "")


def _all_revoked(row: Said) -> str:
    since = f"since {str(row['revoked_at'])[:19].replace('T', ' ')} by {row['operator']} ({row['reason']})"
    return f"everything is revoked {since}: nobody can open a session until pgwarden reinstate --all"


# -- what is shown -----------------------------------------------------------------------------------------------------------------


def _gateway(status: Said) -> dict[str, object]:
    log = status.get("log")
    return {
        "gateway": str(status.get("gateway", "")),
        "reachable": status.get("reachable", True),
        "reason": status.get("reason", ""),
        "boot": status.get("boot"),
        "pid": status.get("pid"),
        "started_at": _at(status.get("started_us")),
        "sessions": sessions if isinstance(sessions := status.get("sessions"), int) else len(dicts(sessions)),
        "counters": status.get("counters"),
        "log": recording([log]) if isinstance(log, Mapping) else None,
    }


def _collector(row: Said) -> dict[str, object]:
    return {
        "collector": row.get("witness"),
        "kind": row.get("kind"),
        "server": row.get("server"),
        "state": row.get("state"),
        "reason": row.get("reason"),
    }


def recording(logs: Sequence[Said]) -> dict[str, object]:
    """Available when all are; the reason is the first one's that is not."""
    broken = [log for log in logs if not log.get("available", True)]
    return {
        "available": not broken,
        "since_at": _at(broken[0].get("since_us")) if broken else None,
        "reason": str(broken[0].get("reason", "")) if broken else "",
        "refused": sum(_int(log.get("refused")) for log in logs),
        "pending_bytes": sum(_int(log.get("pending_bytes")) for log in logs),
        "backlog_bytes": sum(_int(log.get("backlog_bytes")) for log in logs),
    }


def dicts(value: object) -> list[Said]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _at(us: object) -> str | None:
    if not isinstance(us, int) or not 0 < us < 253_402_300_800_000_000:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat(timespec="microseconds")[:-6] + "Z"
