"""Page "Now": who is connected, how fast, what was refused, and whether it is being recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import ledger, links, parts, reach, sessions, statements
from dashboards.answers import Attempt, Health, Rate, Session, Statement
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Bars, Column, Detail, Fact, Figure, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.settings import DEFAULTS
from dashboards.words import duration, number, plural, size

RATE_MINUTES: Final = 60
BACKLOG_BYTES: Final = 16 * 2**20  # of the record: less is on its way to the brokers, and no news

_TONES: Final[dict[str, Tone]] = {"active": "good", "in transaction": "warn", "idle": "quiet"}


def page() -> None:
    _live()


@st.fragment(run_every=DEFAULTS.refresh_seconds)
def _live() -> None:
    api, chosen = reach.client(), reach.chosen()
    try:
        opened = reach.ask(api.live_sessions, limit=chosen.sessions_max)
        asked = reach.ask(api.rates, RATE_MINUTES)
        denied = reach.ask(api.statements, {"decision": "deny"}, chosen.refusals_max)
        tried = reach.ask(api.attempts, chosen.refusals_max)
        health = reach.health()
        sessions, rates, refusals, attempts = opened.result(), asked.result(), denied.result().items, tried.result()
    except ApiTrouble as error:
        reach.trouble(error, "now")
        return
    now = datetime.now(UTC)
    ledger.strip(figures(health, sessions, rates, now), key="figures")
    ledger.table(
        RATE_COLUMNS,
        rate_rows(rates, now),
        title="Statements per minute by agent",
        key="rates",
        empty=f"No statement in the last {RATE_MINUTES} minutes. Rates appear here with the first one.",
    )
    with st.container(key="beside-now"):
        left, right = st.columns([11, 9], gap="small")
    with left:
        pressed = ledger.table(
            SESSION_COLUMNS,
            [session_row(session) for session in sessions],
            title="Live sessions",
            key="sessions",
            empty="No agent is connected. Connect one with psql to the gateway, with the agent's name as user and the connection's "
            "name as database.",
            height_pixels=420,
            flash=True,
        )
        if pressed is not None:
            links.to_session(pressed.id)
    with right:
        pressed = ledger.table(
            REFUSAL_COLUMNS,
            refusal_rows(refusals, attempts)[: chosen.refusals_max],
            title="Refusals as they come",
            key="refusals",
            empty="Nothing was refused yet. A statement outside an agent's grants appears here with the reason.",
            height_pixels=420,
            flash=True,
        )
        if pressed is not None and pressed.name == "timeline":
            links.to_session(statements.session_of(pressed.id))
    ledger.table(
        parts.COLUMNS, parts.rows(health), title="Parts and their health", key="parts", empty="The API says nothing of them."
    )


SESSION_COLUMNS: Final = (
    Column("Agent"),
    Column("State", 104),
    Column("Connection", 80),
    Column("Client", 138, title="The client's address and port, as the gateway saw it"),
    Column("Since", 152),
    Column("Statements", 80, "right"),
    Column("Refused", 66, "right"),
)

REFUSAL_COLUMNS: Final = (Column("Time", 152), Column("Agent", 104), Column("What, and why not"))

RATE_COLUMNS: Final = (
    Column("Agent", 150),
    Column(f"Last {RATE_MINUTES} minutes, newest on the right; refused in red; one scale for all agents"),
    Column("This minute", 100, "right", "Statements in the minute that runs now"),
    Column("Mean /min", 90, "right", f"Statements a minute over the last {RATE_MINUTES} minutes"),
    Column("Peak /min", 90, "right"),
    Column("Refused", 80, "right", f"Statements refused in the last {RATE_MINUTES} minutes"),
    Column("Errors", 80, "right", f"Statements that PostgreSQL answered with an error in the last {RATE_MINUTES} minutes"),
    Column("Rows", 100, "right", f"Rows read and written in the last {RATE_MINUTES} minutes"),
)


def figures(health: Health, sessions: Sequence[Session], rates: Sequence[Rate], now: datetime) -> list[Figure]:
    """The strip of numbers. Rates are of the last whole minute: the one that runs now would always look too low."""
    minute = now.replace(second=0, microsecond=0) - timedelta(minutes=1)
    last = [rate for rate in rates if rate.minute_at == minute]
    active = sum(session.state == "active" for session in sessions)
    denied = sum(rate.denied for rate in last)
    errors = sum(rate.errors for rate in last)
    return [
        Figure(
            "Live sessions",
            number(len(sessions)),
            hint=f"{number(active)} active, {plural(len({s.agent for s in sessions}), 'agent')}",
        ),
        Figure("Statements", number(sum(rate.statements for rate in last)), "/min", "in the last whole minute"),
        Figure("Refused", number(denied), "/min", "outside what was granted", "warn" if denied else ""),
        Figure("Errors", number(errors), "/min", "answered by PostgreSQL", "warn" if errors else ""),
        Figure("Rows", number(sum(rate.rows for rate in last)), "/min", "read and written"),
        recording_figure(health),
    ]


def recording_figure(health: Health) -> Figure:
    if health.log is None:
        return Figure("Recording", "unknown", hint="no gateway answers the API", tone="warn")
    if not health.log.available:
        return Figure("Recording", "stopped", hint="no statement is let through", tone="bad")
    behind = health.projection.lag_us
    if health.log.backlog_bytes > BACKLOG_BYTES:
        return Figure("Recording", "on disk", hint=f"{size(health.log.backlog_bytes)} wait for the brokers", tone="warn")
    hint = "what is let through is on disk" if behind < 1_000_000 else f"this screen is {duration(behind)} behind"
    return Figure("Recording", "on", hint=hint, tone="good")


def session_row(session: Session) -> Row:
    return Row(
        id=session.session,
        cells=(
            Text(session.agent, "strong"),
            Mark(session.state or "open", _TONES.get(session.state, "quiet")),
            Text(session.connection),
            Mono(session.client),
            Time(session.opened_at),
            Number(number(session.statements)),
            Number(number(session.denied), "bad" if session.denied else "faint"),
        ),
        detail=sessions.session_detail(session),
    )


def refusal_rows(refusals: Sequence[Statement], attempts: Sequence[Attempt]) -> list[Row]:
    """Statements that were not let through and connections that were not, newest first."""
    rows = [(statement.started_at, refusal_row(statement)) for statement in refusals]
    rows += [(attempt.attempted_at, attempt_row(attempt)) for attempt in attempts]
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)]


def refusal_row(statement: Statement) -> Row:
    return Row(
        id=statements.statement_id(statement),
        cells=(
            Time(statement.started_at),
            Text(statement.agent, "strong"),
            Sql(statement.text or " ".join(statement.verbs), statement.reason, below=True),
        ),
        detail=statements.statement_detail(statement, actions=(statements.TIMELINE,)),
    )


def attempt_row(attempt: Attempt) -> Row:
    claimed = attempt.agent or f"{attempt.claimed or 'nobody'} (claimed)"
    return Row(
        id=f"attempt/{attempt.attempted_at.timestamp()}/{attempt.client}",
        cells=(
            Time(attempt.attempted_at),
            Text(claimed, "strong" if attempt.agent else "faint"),
            Sql("tried to connect", attempt.reason, below=True),
        ),
        detail=Detail(
            facts=(
                Fact("Why", Text(attempt.reason, "bad")),
                Fact("Claimed to be", Text(attempt.claimed or "–")),
                Fact("Connection", Text(attempt.connection or "–")),
                Fact("Client", Mono(attempt.client or "–")),
                Fact("SQLSTATE", Mono(attempt.sqlstate or "–")),
            )
        ),
    )


@dataclass(slots=True)
class _Minutes:
    asked: list[int]  # let through or refused
    denied: list[int]
    errors: int = 0
    rows: int = 0


def rate_rows(rates: Sequence[Rate], now: datetime) -> list[Row]:
    """One row an agent, the busiest first."""
    newest = now.replace(second=0, microsecond=0)
    agents: dict[str, _Minutes] = {}
    for rate in rates:
        age = int((newest - rate.minute_at).total_seconds() // 60)
        if not 0 <= age < RATE_MINUTES:
            continue  # a minute that began after this page was asked for, or the one that just fell off
        minutes = agents.setdefault(rate.agent, _Minutes([0] * RATE_MINUTES, [0] * RATE_MINUTES))
        minutes.asked[RATE_MINUTES - 1 - age] += rate.statements + rate.denied
        minutes.denied[RATE_MINUTES - 1 - age] += rate.denied
        minutes.errors += rate.errors
        minutes.rows += rate.rows
    maximum = max((max(minutes.asked) for minutes in agents.values()), default=0)
    times = [(newest - timedelta(minutes=RATE_MINUTES - 1 - index)).strftime("%H:%M") for index in range(RATE_MINUTES)]
    busiest = sorted(agents.items(), key=lambda item: (-sum(item[1].asked), item[0]))
    return [_rate_row(agent, minutes, maximum, times) for agent, minutes in busiest]


def _rate_row(agent: str, minutes: _Minutes, maximum: int, times: Sequence[str]) -> Row:
    titles = tuple(
        f"{time} UTC: {plural(count, 'statement')}, {number(denied)} refused"
        for time, count, denied in zip(times, minutes.asked, minutes.denied, strict=True)
    )
    total, denied = sum(minutes.asked), sum(minutes.denied)
    return Row(
        id=agent,
        cells=(
            Text(agent, "strong"),
            Bars(
                tuple(minutes.asked),
                tuple(minutes.denied),
                titles,
                maximum,
                f"{agent}: {plural(total, 'statement')} in {len(times)} minutes, {number(denied)} refused",
            ),
            Number(number(minutes.asked[-1])),
            Number(number(total / len(times))),
            Number(number(max(minutes.asked))),
            Number(number(denied), "bad" if denied else "faint"),
            Number(number(minutes.errors), "warn" if minutes.errors else "faint"),
            Number(number(minutes.rows)),
        ),
    )
