"""The parts of pgwarden, one row each: whether it is well, and where not, why."""

from __future__ import annotations

from typing import Final

from dashboards.answers import Health
from dashboards.ledger import Column, Lines, Mark, Row, Text, Tone
from dashboards.words import duration, plural

COLUMNS: Final = (Column("Part", 220), Column("State", 104), Column("What it says"))


def rows(health: Health) -> list[Row]:
    """What is not well first."""
    found = [*_gateways(health), _tables(health), *_others(health)]
    return sorted(found, key=lambda row: row.tone not in ("bad", "warn"))


def _gateways(health: Health) -> list[Row]:
    made = []
    for gateway in health.gateways:
        recording = gateway.log is None or gateway.log.available
        if not gateway.reachable:
            made.append(_row("gateway", gateway.gateway, "silent", "bad", gateway.reason))
        elif not recording:
            made.append(_row("gateway", gateway.gateway, "stopped", "bad", gateway.log.reason if gateway.log else ""))
        else:
            made.append(_row("gateway", gateway.gateway, "well", "good", plural(gateway.sessions, "live session")))
    return made


def _tables(health: Health) -> Row:
    if health.projection.error:
        return _row("API", "tables", "standing still", "bad", health.projection.error)
    return _row("API", "tables", "well", "good", f"{duration(health.projection.lag_us)} behind the log")


def _others(health: Health) -> list[Row]:
    made = []
    for process in health.processes:
        state = ("silent", "bad") if not process.up else ("not well", "warn") if process.reason else ("well", "good")
        made.append(_row(process.process, process.name, *state, process.reason))
    for inspection in health.inspections:
        state = ("standing still", "bad") if inspection.error else ("well", "good")
        said = inspection.error or f"{plural(inspection.lag_records, 'record')} behind the log"
        made.append(_row("inspection", inspection.inspection, *state, said))
    tones = {"seeing": "good", "blind": "bad", "silent": "bad"}
    for collector in health.collectors:
        said = collector.reason or f"{collector.kind} on {collector.server}"
        made.append(_row("collector", collector.collector, collector.state, tones.get(collector.state, "quiet"), said))
    return made


def _row(kind: str, name: str, state: str, tone: str, said: str) -> Row:
    known: Tone = "bad" if tone == "bad" else "warn" if tone == "warn" else "good" if tone == "good" else "quiet"
    return Row(
        id=f"{kind}/{name}",
        cells=(Lines(name or kind, kind), Mark(state, known), Text(said or "–", "" if said else "faint")),
        tone=known if known in ("bad", "warn") else "",
    )
