"""Page "Sessions": each client connection of an agent, and one of them moment by moment, until the proof of its end."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboards import filters, ledger, links, moments, pictures, reach, replay
from dashboards.answers import Session
from dashboards.api_client import ApiRefused, ApiTrouble
from dashboards.ledger import Banner, Column, Detail, Fact, Lines, Mark, Mono, Number, Row, Text, Time, Tone
from dashboards.statements import TIMELINE, open_action
from dashboards.words import duration, number, plural

STATES: Final = ("any", "live", "closed", "killed", "lost")


def page() -> None:
    session = st.query_params.get("session", "")
    if session:
        _one(session)
    else:
        _list()


# -- the list --------------------------------------------------------------------------------------------------------------------

LIST_COLUMNS: Final = (
    Column("Agent", 168),
    Column("State", 116),
    Column("Opened", 168),
    Column("Lasted", 92, "right"),
    Column("Did"),
    Column("Refused", 66, "right"),
    Column("Errors", 60, "right"),
    Column("Client", 138, title="The client's address and port, as the gateway saw it"),
)


def _list() -> None:
    api, chosen = reach.client(), reach.chosen()
    ledger.heading("Sessions", key="page", below="One row a connection of an agent. Open one to replay it.")
    given = _filters()
    before = st.query_params.get("before", "")
    try:
        found = api.sessions(given, chosen.page_rows, before)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "The API refused this search.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "sessions")
        return
    pressed = ledger.table(
        LIST_COLUMNS,
        [session_row(session) for session in found.items],
        key="sessions",
        empty="No session fits. Take a filter away, or choose a longer time."
        if given
        else "No session is recorded yet. Each connection of an agent through the gateway appears here.",
        selectable=True,
    )
    if pressed is not None:
        links.to_session(pressed.id)
    filters.paging(found.next, before, len(found.items), "Press a row to replay the session.")


def _filters() -> dict[str, str]:
    with st.container(key="filters"):
        columns = st.columns([1.6, 1, 1.2, 1.2], gap="small")
        agent = filters.text(columns[0], "Agent", "agent", placeholder="its whole name")
        state = columns[1].selectbox("State", STATES, key="state", bind="query-params", on_change=filters.first_page)
        connection = filters.text(columns[2], "Connection", "connection")
        since = filters.since(columns[3], 3)
    chosen = {"agent": agent, "state": "" if state == "any" else state, "connection": connection, "since_us": since}
    return {name: value for name, value in chosen.items() if value}


def session_row(session: Session) -> Row:
    person = f"for {session.on_behalf_of}" if session.on_behalf_of else session.connection
    did = f"{plural(session.statements, 'statement')}, {plural(session.rows, 'row')}"
    did += f" · {session.task}" if session.task else ""
    life = "open" if session.duration_us is None else duration(session.duration_us)
    return Row(
        id=session.session,
        cells=(
            Lines(session.agent, person),
            Mark(session.state or "open", SESSION_TONES.get(session.state, "quiet")),
            Time(session.opened_at),
            Number(life, "faint" if session.duration_us is None else ""),
            Text(did),
            Number(number(session.denied), "bad" if session.denied else "faint"),
            Number(number(session.errors), "warn" if session.errors else "faint"),
            Mono(session.client),
        ),
        tone="bad" if session.state == "killed" else "warn" if session.state == "lost" else "",
    )


# -- one session -----------------------------------------------------------------------------------------------------------------


def session_detail(session: Session) -> Detail:
    return Detail(
        facts=(
            Fact("Session", Mono(session.session)),
            Fact("Gateway", Text(session.gateway or "–")),
            Fact("Backend process", Text(str(session.backend_pid) if session.backend_pid else "–")),
            Fact("Task", Text(session.task or "–")),
            Fact("On behalf of", Text(session.on_behalf_of or "–")),
            Fact("Invocation", Text(session.invocation or "–")),
            Fact("Database", Text(session.database or "–")),
            Fact("Proven by", Text(session.method or "–")),
            Fact("Encryption", Text(session.tls or "none")),
        ),
        actions=(TIMELINE,),
    )


SESSION_TONES: Final[dict[str, Tone]] = {"active": "good", "in transaction": "warn", "killed": "bad", "lost": "warn"}


def _one(session: str) -> None:
    api, chosen = reach.client(), reach.chosen()
    if st.button("All sessions", key="back", icon=":material/arrow_back:", type="tertiary"):
        st.query_params.clear()
        st.rerun()
    before = st.query_params.get("before", "")
    try:
        moments_asked = reach.ask(api.timeline, session, chosen.timeline_rows, before)
        kills_asked = reach.ask(api.kills, chosen.endings_max, session=session)
        found = api.session(session)
        page, kills = moments_asked.result(), kills_asked.result()
    except ApiRefused as error:
        ledger.banners([Banner("warn", "This session is not to be seen.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "timeline")
        return
    ledger.heading(
        found.agent,
        key="session heading",
        below=f"Session {found.session}",
        mark=Mark(found.state or "open", SESSION_TONES.get(found.state, "quiet")),
    )
    ledger.facts(session_facts(found), key="session", wide=True)
    for place, kill in enumerate(kills):
        pictures.ending(kill, key=f"ending {place}")
        if kill.reason:
            why = [Fact("Reason", Text(kill.reason)), Fact("Ended by", Text(kill.ended_by or "–"))]
            ledger.facts(why, key=f"ended by {place}", wide=True)
    replay.draw(found, page.items, key="replay", step=st.query_params.get("step", ""))
    pressed = ledger.table(
        moments.MOMENT_COLUMNS,
        [moments.moment_row(moment, found) for moment in page.items],
        key="timeline",
        title="Timeline",
        empty="Nothing is recorded of this session here. Go back to its beginning.",
    )
    if pressed is not None:
        open_action(pressed)
    with st.container(horizontal=True, vertical_alignment="center", key="timeline paging"):
        if st.button("From the beginning" if before else "Refresh", key="beginning"):
            filters.first_page()
            st.rerun()
        if st.button("Later", disabled=page.next is None, key="later"):
            st.query_params["before"] = page.next or ""
            st.rerun()
        if st.button("The agent", key="its agent"):
            links.to_agent(found.agent)
        st.caption(f"{number(len(page.items))} shown, oldest first.")


def session_facts(session: Session) -> list[Fact]:
    life = duration(session.duration_us) if session.duration_us is not None else "–"
    volume = f"{plural(session.statements, 'statement')}, {number(session.denied)} refused, {plural(session.errors, 'error')}"
    return [
        Fact("Opened", Time(session.opened_at)),
        Fact("Closed", Time(session.closed_at, none="it is open")),
        Fact("Lasted", Text(life)),
        Fact("Ended by", Text(session.kill_cause or session.close_reason or "–")),
        Fact("Did", Text(volume)),
        Fact("Rows", Text(number(session.rows))),
        Fact("Connection", Text(f"{session.connection} (database {session.database})")),
        Fact("Client", Mono(session.client)),
        Fact("Task", Text(session.task or "–")),
        Fact("On behalf of", Text(session.on_behalf_of or "–")),
        Fact("Invocation", Text(session.invocation or "–")),
        Fact("Application", Text(session.application_name or "–")),
        Fact("Proven by", Text(session.method or "–")),
        Fact("Encryption", Text(session.tls or "none")),
    ]
