"""The tables of a month of agents at work (`bench.history`): made anew from the log, and asked every question that has a name."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from analytics.projections.schema import version
from analytics.queries import QUESTIONS, Queries
from analytics.rebuild import Rebuilt, rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from bench import history
from bench.history import DAY_US, END_US, Past
from bench.servers import CannotMeasure
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings

RUNS: Final = 5
GOAL_MS: Final = 100.0


async def rebuilt(folder: Path, executions: int) -> None:
    result, cpu, workers_cpu = await _made(folder, executions, anew=True)
    assert result is not None
    size = (folder / "tables" / "tables.duckdb").stat().st_size
    print(
        f"{executions} executions, {result.events} events in {result.frames} frames: {result.seconds:.1f} s, "
        f"{result.events / result.seconds:.0f} events/s"
    )
    print(
        f"CPU {cpu:.0f} s in this process, {workers_cpu:.0f} s in the workers: {(cpu + workers_cpu) / result.events * 1e6:.2f} us "
        f"an event; sums of all tables in another {result.checksum_seconds:.1f} s"
    )
    print(f"tables {size / 1e6:.0f} MB, {size / executions:.0f} bytes an execution; log {_size(folder / 'log') / executions:.0f}")


async def kept(folder: Path, executions: int) -> None:
    """Log and tables in `folder`, made where they are not there."""
    await _made(folder, executions, anew=False)


async def questions(folder: Path, executions: int) -> None:
    await _made(folder, executions, anew=False)
    settings = AnalyticsSettings(folder / "tables", questions_at_once=1, question_seconds_max=60.0)
    store = await asyncio.to_thread(Store.open, settings)
    queries = Queries(store, settings, lambda: END_US)
    try:
        if store.notice:
            raise CannotMeasure(store.notice)
        print(f"{executions} executions; median of {RUNS}, DuckDB with {settings.threads} thread")
        print(f"{'ms':>7} {'CPU ms':>7} {'rows':>5}  question")
        slow = 0
        for name, given in _asked(store):
            wall, cpu, rows = await _measured(queries, name, given)
            slow += cpu > GOAL_MS
            filters = " ".join(f"{key}={value}" for key, value in given.items())
            print(f"{wall:7.1f} {cpu:7.1f} {rows:5}  {name} {filters}{'   more than the goal' if cpu > GOAL_MS else ''}")
        print(f"{slow} of them take more than {GOAL_MS:g} ms of CPU")
    finally:
        queries.close()
        await asyncio.to_thread(store.close)


async def _measured(queries: Queries, name: str, given: Mapping[str, str | int]) -> tuple[float, float, int]:
    walls, cpus = [], []
    for _ in range(RUNS):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = await queries.ask(name, given)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls) * 1e3, statistics.median(cpus) * 1e3, len(answer.items)


def _asked(store: Store) -> Sequence[tuple[str, Mapping[str, str | int]]]:
    """Every question, with filters that find much, little and nothing."""
    (old,) = store.read(
        "select session, invocation, on_behalf_of from session_records order by opened_at limit 1 offset 30", {}
    ).rows
    session, invocation, person = map(str, old)
    ((fingerprint,),) = store.read("select fingerprint from texts limit 1", {}).rows
    busy, idle = "agent-00000", "agent-00999"
    asked: list[tuple[str, Mapping[str, str | int]]] = [
        ("agents", {"limit": 1_000}),
        ("grants", {"agent": "agent-00007"}),
        ("sessions", {"agent": idle}),
        ("sessions", {"session": session}),
        ("sessions", {"state": "killed"}),
        ("timeline", {"session": session}),
        ("statements", {"agent": busy}),
        ("statements", {"agent": idle}),
        ("statements", {"agent": "nobody"}),
        ("statements", {"session": session}),
        ("statements", {"on_behalf_of": person}),
        ("statements", {"invocation": invocation}),
        ("statements", {"decision": "deny"}),
        ("statements", {"outcome": "error"}),
        ("statements", {"outcome": "unknown"}),
        ("statements", {"sqlstate": "99999"}),
        ("statements", {"text": "from"}),
        ("statements", {"text": "table_399"}),
        ("statements", {"text": "no such text"}),
        ("statements", {"fingerprint": str(fingerprint)}),
        ("statements", {"relation": "table_7"}),
        ("statements", {"relation": "table_399"}),
        ("statements", {"relation": "no_such_table"}),
        ("statements", {"agent": busy, "since_us": END_US - 20 * DAY_US, "until_us": END_US - 19 * DAY_US}),
        ("statement", {"session": session, "execution": 3}),
        ("rates", {"minutes": 44_640}),
        ("rates", {"minutes": 44_640, "agent": busy}),
        ("denials", {"days": 3_650}),
        ("relation_agents", {"relation": "table_0"}),
        ("relation_agents", {"relation": "table_7"}),
        ("agent_relations", {"agent": busy}),
        ("agent_hours", {"agent": busy}),
        ("finding_history", {"finding": "none"}),  # the history has neither findings nor a collector
        ("observed_statements", {"session_id": "none"}),
    ]
    required = {name for name, question in QUESTIONS.items() if any(parameter.required for parameter in question.parameters)}
    bare: list[tuple[str, Mapping[str, str | int]]] = [(name, {}) for name in QUESTIONS if name not in required]
    if missing := required - {name for name, _ in asked}:
        raise CannotMeasure(f"no way to ask {sorted(missing)} is known here")
    return [*bare, *asked]


async def _made(folder: Path, executions: int, *, anew: bool) -> tuple[Rebuilt | None, float, float]:
    """The log and the tables; what making the tables gave, and its CPU seconds here and in the workers."""
    log_folder, made = folder / "log", folder / f"log-of-{executions}"
    if not made.exists():
        if log_folder.exists():
            raise CannotMeasure(f"{log_folder} holds something else; remove it")
        await history.main(log_folder, Past(executions))
        made.touch()
    named = folder / f"tables-{version()}"
    if not anew and named.exists():
        return None, 0.0, 0.0
    log = SegmentLog(log_folder, LogSettings())
    try:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time()
        result = await rebuild(log, AnalyticsSettings(folder / "tables"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        await log.close()
    named.touch()
    children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result, time.process_time() - cpu, children


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.seg"))
