"""A session under one task does what only other tasks of this agent do."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings, Shape
from analytics.detectors.suspicion import Suspicion, listed, shown

NAME: Final = "outside its task"
TASKS_MAX: Final = 100
SETTLED_DAYS_MIN: Final = 5  # since it took up a table last: what changes daily has no bounds to leave
TASK_DAYS_MIN: Final = 4  # on which a task was worked on, before its tables are known


def defined(agent: Agent, task: str, shape: Shape, day: int, settings: Settings) -> Suspicion | None:
    if not task or (task not in agent.tasks and len(agent.tasks) >= TASKS_MAX):
        return None
    tables = agent.tasks.setdefault(task, {})
    if agent.task_day.get(task) != day:
        agent.task_day[task] = day
        agent.task_days[task] = agent.task_days.get(task, 0) + 1
    strange = [
        name
        for name in shape.relations
        if name not in tables and any(name in others for other, others in agent.tasks.items() if other != task)
    ]
    new = any(name not in tables for name in shape.relations)
    for name in shape.relations:
        if name in tables or len(tables) < settings.names_max:
            tables[name] = day
    settled = agent.task_days[task] > TASK_DAYS_MIN and day - agent.task_new.get(task, day) >= SETTLED_DAYS_MIN
    if new:
        agent.task_new[task] = day
    if not strange or not settled:
        return None
    return Suspicion(
        NAME,
        "warning",
        f"under the task {shown(task)} it used {listed(strange)}, which only its other tasks had used",
        (("days_of_task", agent.task_days[task]), ("tables_of_task", len(tables))),
        task,
    )
