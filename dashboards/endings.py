"""How the sessions of an agent ended: for each the proof, or that it is still to come."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import streamlit as st

from dashboards import ledger, links, pictures, reach
from dashboards.answers import Agent, Kill, Session
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Column, Mark, Mono, Number, Row, Sql, Time

ENDING_COLUMNS: Final = (
    Column("Session", 168),
    Column("State", 90),
    Column("Requested", 120, title="When its end was recorded"),
    Column("Decided", 76, "right", "How long after that it was decided that this session must end"),
    Column("Client closed", 92, "right", "How long after that the client's connection was closed"),
    Column("Backend gone", 98, "right", "How long after that PostgreSQL's own list of processes no longer held it"),
)


@st.fragment(run_every=1.0)
def draw(agent: Agent) -> None:
    api, chosen = reach.client(), reach.chosen()
    try:
        kills = api.kills(chosen.endings_max, agent=agent.agent)
        live = () if agent.state == "active" else api.live_sessions(agent.agent, chosen.endings_max)
    except ApiTrouble as error:
        reach.trouble(error, "endings")
        return
    proven = {kill.session for kill in kills}
    rows = [ending_row(session, agent.state_at) for session in live if session.session not in proven]
    rows += [killed_row(kill) for kill in kills]
    if rows:
        pressed = ledger.table(
            ENDING_COLUMNS, rows[: chosen.endings_max], key="endings", title="How its sessions ended", empty="", selectable=True
        )
        if pressed is not None:
            links.to_session(pressed.id)


def ending_row(session: Session, requested_at: datetime | None) -> Row:
    """A session that must end, and of whose end there is no proof yet."""
    none = Number("–", "faint")
    return Row(
        id=session.session,
        cells=(Mono(session.session), Mark("ending", "warn"), Time(requested_at, fine=True), none, none, none),
    )


def killed_row(kill: Kill) -> Row:
    return Row(
        id=kill.session,
        cells=(
            Sql(kill.session, f"{kill.cause}{', by the watchdog' * (kill.ended_by == 'watchdog')}", below=True),
            Mark("no proof", "bad") if kill.backend_gone_at is None else Mark("gone", "good"),
            Time(kill.requested_at, fine=True),
            _number_after(kill, kill.decided_at),
            _number_after(kill, kill.client_closed_at),
            _number_after(kill, kill.backend_gone_at),
        ),
    )


def _number_after(kill: Kill, at: datetime | None) -> Number:
    """How long after the request."""
    told = pictures.after(kill.requested_at, at)
    return Number(told) if told else Number("–", "faint")
