"""A session under one task does what only other tasks of this agent do: uses their tables, or sends several of their statements."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Session, Settings, Shape
from analytics.detectors.suspicion import Suspicion, listed, shown

NAME: Final = "outside its task"
TASKS_MAX: Final = 100
SETTLED_DAYS_MIN: Final = 5  # since it took up a table last, or a kind of statement: what changes daily has no bounds to leave
TASK_DAYS_MIN: Final = 4  # on which a task was worked on, before its tables are known
SHAPES_MAX: Final = 100  # kinds of statements of a task that are remembered; one with more has no bounds to leave
STRANGE_MIN: Final = 2  # kinds of statements of other tasks in one session: a single one may be what both tasks need


def defined(agent: Agent, session: Session, shape: Shape, day: int, settings: Settings) -> Suspicion | None:
    task = session.task
    if not task or (task not in agent.tasks and len(agent.tasks) >= TASKS_MAX):
        return None
    if agent.task_day.get(task) != day:
        agent.task_day[task] = day
        agent.task_days[task] = agent.task_days.get(task, 0) + 1
    newest, before = agent.task_shape_new.get(task, (day, day))
    last = before if newest == day else newest  # what is new today says nothing of the days before
    few = len(agent.task_shapes.get(task, ())) <= SHAPES_MAX
    bounded = few and agent.task_days[task] > TASK_DAYS_MIN and day - last >= SETTLED_DAYS_MIN
    return _table(agent, task, shape, day, settings, bounded=bounded) or _statement(agent, session, shape, day, bounded=bounded)


def _table(agent: Agent, task: str, shape: Shape, day: int, settings: Settings, *, bounded: bool) -> Suspicion | None:
    tables = agent.tasks.setdefault(task, {})
    strange = [
        name
        for name in shape.relations
        if name not in tables and any(name in others for other, others in agent.tasks.items() if other != task)
    ]
    new = any(name not in tables for name in shape.relations)
    for name in shape.relations:
        if name in tables or len(tables) < settings.names_max:
            tables[name] = day
    settled = bounded and day - agent.task_new.get(task, day) >= SETTLED_DAYS_MIN
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


def _statement(agent: Agent, session: Session, shape: Shape, day: int, *, bounded: bool) -> Suspicion | None:
    """Tasks that share their tables are told apart by what they ask of them."""
    task = session.task
    shapes = agent.task_shapes.setdefault(task, {})
    if shape.fingerprint in shapes or len(shapes) > SHAPES_MAX:
        return None
    strange = any(shape.fingerprint in others for other, others in agent.task_shapes.items() if other != task)
    shapes[shape.fingerprint] = day
    if not strange or not bounded:
        newest, before = agent.task_shape_new.get(task, (day, day))
        agent.task_shape_new[task] = (day, before if newest == day else newest)
        return None
    session.strange += 1
    if session.strange < STRANGE_MIN:
        return None
    return Suspicion(
        NAME,
        "warning",
        f"under the task {shown(task)} one session sent {session.strange} kinds of statement that only its other tasks had sent",
        (("days_of_task", agent.task_days[task]), ("kinds_of_task", len(shapes)), ("kinds_of_other_tasks", session.strange)),
        task,
    )
