"""How the API's own work goes, in figures: what its status socket says."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from analytics.inspector import Inspector
from analytics.queries import Queries, QuestionFailed
from analytics.runner import Runner
from ingest.recorder import Recorder

LOOK_SECONDS: Final = 5.0  # between two looks into the tables; the rest is of the moment
COUNTED_MAX: Final = 1_000  # gaps, open findings, collectors: more are as bad


class Figures:
    """`run` until cancelled. A status must not wait for the tables: what stands in them is looked up before."""

    def __init__(self, boot: int, runner: Runner, inspector: Inspector, recorder: Recorder, queries: Queries) -> None:
        self._boot = boot
        self._runner = runner
        self._inspector = inspector
        self._recorder = recorder
        self._queries = queries
        self._of_tables: Mapping[str, object] = {}

    async def run(self) -> None:
        while True:
            try:
                self._of_tables = await self._look()
            except QuestionFailed:
                self._of_tables = {}  # not known, and no figure is given
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> Mapping[str, object]:
        """Raises QuestionFailed."""
        gaps = (await self._queries.ask("recording_gaps", {"limit": COUNTED_MAX})).items
        findings = (await self._queries.ask("findings", {"state": "open", "limit": COUNTED_MAX})).items
        collectors = (await self._queries.ask("coverage", {"limit": COUNTED_MAX})).items
        counted = Counter((str(item["detector"]), str(item["severity"])) for item in findings)
        return {
            "gaps": sum(item["kind"] == "frames missing" for item in gaps),
            "findings": [
                {"detector": detector, "severity": severity, "open": number}
                for (detector, severity), number in sorted(counted.items())
            ],
            "collectors": [_collector(item) for item in collectors if item["state"] != "stopped"],
        }

    def status(self) -> Mapping[str, object]:
        lag, record, inspections = self._runner.lag(), self._recorder.state(), self._inspector.status()
        status: dict[str, object] = {
            "api": "api",
            "boot": self._boot,
            "pid": os.getpid(),
            "started_us": self._boot,
            "log": {
                "available": record.available,
                "since_us": record.since_us,
                "reason": record.reason,
                "pending_bytes": record.pending_bytes,
            },
            "appends": self._recorder.appends.facts(),
            "projection": {
                "lag_records": lag.records,
                "lag_seconds": round(lag.seconds, 3),
                "standing": bool(lag.projection_error),
                "error": lag.projection_error,
                "commits": self._runner.commits.facts(),
            },
            "inspections": {
                one.name: {
                    "lag_records": one.records,
                    "recorded": one.recorded,
                    "standing": bool(one.error),
                    "error": one.error,
                    "figures": one.figures,
                }
                for one in inspections
            },
            **self._of_tables,
        }
        if lag.enforcing:
            status["enforcement"] = {
                "lag_records": lag.enforcement_records,
                "orders_pending": lag.orders_pending,
                "live_sessions": lag.live_sessions,
                "standing": bool(lag.enforcement_error),
                "error": lag.enforcement_error,
            }
        standing = [("projection", lag.projection_error), ("enforcement", lag.enforcement_error)]
        standing += [(f"inspection {one.name}", one.error) for one in inspections]
        return {**status, "reason": "; ".join(f"{what} stands still: {error}" for what, error in standing if error)}


def _collector(item: Mapping[str, object]) -> Mapping[str, object]:
    return {
        "collector": item["witness"],
        "kind": item["kind"],
        "server": item["server"],
        "state": item["state"],
        "seeing": item["state"] == "seeing",
        "observed": item["observed"],
        "lost": item["lost"],
        "lag_us": item["lag_us"],
        "complete_us": _us(item["complete_at"]),
        "canary_us": _us(item["canary_at"]),
    }


def _us(at: object) -> int:
    """-1: not known."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return int(at.timestamp() * 1e6) if isinstance(at, datetime) else -1
