"""How the API's own work goes, in figures: what its status socket says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Final

from analytics.inspector import Inspector
from analytics.queries import Queries, QuestionFailed
from analytics.runner import Runner
from ingest.recorder import Recorder

LOOK_SECONDS: Final = 5.0  # between two looks into the tables; the rest is of the moment
GAPS_COUNTED_MAX: Final = 1_000


class Figures:
    """`run` until cancelled. A status must not wait for the tables: what stands in them is looked up before."""

    def __init__(self, boot: int, runner: Runner, inspector: Inspector, recorder: Recorder, queries: Queries) -> None:
        self._boot = boot
        self._runner = runner
        self._inspector = inspector
        self._recorder = recorder
        self._queries = queries
        self._gaps: int | None = None

    async def run(self) -> None:
        while True:
            try:
                found = await self._queries.ask("recording_gaps", {"limit": GAPS_COUNTED_MAX})
                self._gaps = sum(item["kind"] == "frames missing" for item in found.items)
            except QuestionFailed:
                self._gaps = None  # not known, and no figure is given
            await asyncio.sleep(LOOK_SECONDS)

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
                one.name: {"lag_records": one.records, "recorded": one.recorded, "standing": bool(one.error), "error": one.error}
                for one in inspections
            },
            "gaps": self._gaps,
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
