"""Page "Statements": what was asked of the databases, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import ledger, reach
from dashboards.api_client import ApiRefused, ApiTrouble, Kill, Moment, Session, Statement
from dashboards.ledger import Action, Banner, Column, Detail, Fact, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.words import cut, duration, listing, number, plural, size, visible

SPANS: Final[dict[str, timedelta | None]] = {
    "15 minutes": timedelta(minutes=15),
    "1 hour": timedelta(hours=1),
    "1 day": timedelta(days=1),
    "7 days": timedelta(days=7),
    "all time": None,
}
DECISIONS: Final[dict[str, str]] = {"any": "", "allowed": "allow", "refused": "deny"}
OUTCOMES: Final = ("any", "running", "ok", "error", "skipped", "suspended", "unknown")
TIMELINE: Final = ("timeline", "Timeline of this session")
WHOLE: Final = ("whole", "Whole statement")

_OUTCOME_TONES: Final[dict[str, Tone]] = {
    "ok": "good",
    "error": "warn",
    "skipped": "quiet",
    "suspended": "quiet",
    "unknown": "warn",
}


def page() -> None:
    session = st.query_params.get("session", "")
    if session:
        _timeline(session)
    else:
        _search()


def open_timeline(session: str) -> None:
    st.switch_page(st.session_state["pages"]["statements"], query_params={"session": session})


# -- search ----------------------------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    Column("Time (UTC)", 160),
    Column("Agent", 120),
    Column("Result", 104),
    Column("Statement"),
    Column("Rows", 84, "right"),
    Column("Time taken", 96, "right"),
    Column("Sent", 84, "right", "Bytes sent to the client"),
)


def _search() -> None:
    api, chosen = reach.client(), reach.chosen()
    try:
        names = tuple(agent.agent for agent in api.agents())
    except ApiTrouble as error:
        reach.trouble(error, "statements")
        return
    filters = _filters(names)
    before = st.query_params.get("before", "")
    try:
        found = api.statements(filters, chosen.page_rows, before)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "The API refused this search.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "statements")
        return
    pressed = ledger.table(
        COLUMNS,
        [statement_row(statement) for statement in found.items],
        key="statements",
        empty="No statement fits. Take a filter away, or choose a longer time."
        if filters
        else "No statement is recorded yet. Each one that an agent sends through the gateway appears here.",
    )
    if pressed is not None:
        _open(pressed)
    _paging(found.next, before, len(found.items))


def _filters(agents: tuple[str, ...]) -> dict[str, str]:
    with st.container(key="filters"):
        columns = st.columns([3, 1.5, 1, 1, 1.6, 1.1], gap="small")
        text = columns[0].text_input("Text in the statement", key="text", bind="query-params", max_chars=500, on_change=_first_page)
        agent = columns[1].selectbox(
            "Agent", ("any", *agents), key="agent", bind="query-params", on_change=_first_page, accept_new_options=False
        )
        decision = columns[2].selectbox("Decision", tuple(DECISIONS), key="decision", bind="query-params", on_change=_first_page)
        outcome = columns[3].selectbox("Outcome", OUTCOMES, key="outcome", bind="query-params", on_change=_first_page)
        relation = columns[4].text_input(
            "Table or view", key="relation", bind="query-params", max_chars=200, placeholder="public.orders", on_change=_first_page
        )
        span = columns[5].selectbox(
            "Within the last", tuple(SPANS), index=2, key="span", bind="query-params", on_change=_first_page
        )
    length = SPANS[span]
    since = "" if length is None else str(int((datetime.now(UTC) - length).timestamp() * 1_000_000))
    chosen = {
        "text": text or "",
        "agent": "" if agent == "any" else agent,
        "decision": DECISIONS[decision],
        "outcome": "" if outcome == "any" else outcome,
        "relation": relation or "",
        "since_us": since,
    }
    return {name: value for name, value in chosen.items() if value}


def _first_page() -> None:
    """Another search starts at its newest statement."""
    st.query_params.pop("before", None)


def _paging(following: str | None, before: str, shown: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="paging"):
        if st.button("Newest", key="newest"):
            _first_page()
            st.rerun()
        if st.button("Older", disabled=not following, key="older"):
            st.query_params["before"] = following or ""
            st.rerun()
        st.caption(f"{number(shown)} shown, newest first. Press a row to see the whole statement.")


def statement_id(statement: Statement) -> str:
    return f"{statement.session}/{statement.execution}"


def session_of(row_id: str) -> str:
    return row_id.rpartition("/")[0]


def result(statement: Statement) -> Mark:
    if statement.decision == "deny":
        return Mark("refused", "bad")
    if not statement.outcome:
        return Mark("running", "quiet")
    return Mark(statement.outcome, _OUTCOME_TONES.get(statement.outcome, "warn"))


def statement_row(statement: Statement) -> Row:
    return Row(
        id=statement_id(statement),
        cells=(
            Time(statement.started_at),
            Text(statement.agent, "strong"),
            result(statement),
            sql_cell(statement),
            _unless_refused(statement, None if statement.rows is None else number(statement.rows)),
            _unless_refused(statement, None if statement.duration_us is None else duration(statement.duration_us)),
            _unless_refused(statement, None if statement.bytes_out is None else size(statement.bytes_out)),
        ),
        detail=statement_detail(statement),
        tone="bad" if statement.decision == "deny" else "warn" if statement.outcome == "error" else "",
    )


def _unless_refused(statement: Statement, text: str | None) -> Number:
    """What was refused did not run: no rows is then no number."""
    return Number("–", "faint") if text is None or statement.decision == "deny" else Number(text)


def sql_cell(statement: Statement) -> Sql | Text:
    if statement.text:
        return Sql(statement.text, statement.reason if statement.decision == "deny" else "")
    return Text(f"{' '.join(statement.verbs)} (only its fingerprint {statement.fingerprint or '?'} is kept)", "faint")


def statement_detail(statement: Statement, *, actions: tuple[tuple[str, str], ...] = (TIMELINE,)) -> Detail:
    text, _ = cut(statement.text)
    left_off_bytes = statement.text_bytes - len(text.encode("utf-8", "replace")) if text else 0
    cut_short = left_off_bytes > 0
    return Detail(
        text=text,
        note=f"{size(left_off_bytes)} more are not shown here." if cut_short else "",
        facts=statement_facts(statement),
        actions=(*actions, WHOLE) if cut_short and TIMELINE in actions else actions,
    )


def statement_facts(statement: Statement) -> tuple[Fact, ...]:
    refused = statement.decision == "deny"
    facts = (
        Fact("Session", Mono(statement.session)),
        Fact("Connection", Text(statement.connection)),
        Fact("Decision", Text("refused", "bad") if refused else Text("allowed", "good")),
        Fact("Rule", Text(statement.rule or "–")),
        Fact("Kind", Text(listing(statement.verbs) or "–")),
        Fact("Tables", Text(listing(statement.relations) or "–")),
        Fact("SQLSTATE", Mono(statement.sqlstate or "–")),
        Fact("Answer", Text(statement.tag or "–")),
        Fact("Task", Text(statement.task or "–")),
        Fact("On behalf of", Text(statement.on_behalf_of or "–")),
        Fact("Client", Mono(statement.client or "–")),
        Fact("Fingerprint", Mono(statement.fingerprint or "–")),
    )
    return (Fact("Why", Text(statement.reason, "bad")), *facts) if statement.reason else facts


def _open(pressed: Action) -> None:
    if pressed.name == TIMELINE[0]:
        open_timeline(session_of(pressed.id))
    elif pressed.name == WHOLE[0]:
        _whole(pressed.id)


@st.dialog("Statement", width="large")
def _whole(row_id: str) -> None:
    session, _, execution = row_id.rpartition("/")
    api, chosen = reach.client(), reach.chosen()
    try:
        statement = api.statement(session, execution)
    except ApiTrouble as error:
        reach.trouble(error, "whole")
        return
    text, left_off = cut(statement.text, chosen.whole_characters_max)
    st.code(visible(text, lines=True) or "Only its fingerprint is kept.", language=None, wrap_lines=True, height=420)
    if left_off:
        st.caption(f"{number(left_off)} more characters are not shown: ask the API for this statement.")
    ledger.facts(statement_facts(statement), key="whole facts", wide=True)


# -- timeline --------------------------------------------------------------------------------------------------------------------


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
MOMENT_TONES: Final[dict[str, Tone]] = {
    "denied": "bad",
    "killed": "bad",
    "end ordered": "warn",
    "cancel requested": "warn",
    "lost": "warn",
}

MOMENT_COLUMNS: Final = (
    Column("Time (UTC)", 112),
    Column("After opening", 106, "right"),
    Column("What", 132),
    Column("Statement, or what happened"),
    Column("Rows", 84, "right"),
    Column("Time taken", 96, "right"),
)


def _timeline(session: str) -> None:
    api, chosen = reach.client(), reach.chosen()
    if st.button("All statements", key="back", icon=":material/arrow_back:", type="tertiary"):
        st.query_params.clear()
        st.rerun()
    before = st.query_params.get("before", "")
    try:
        found = api.session(session)
        page = api.timeline(session, chosen.timeline_rows, before)
        kills = api.kills(1, session=session)
    except ApiTrouble as error:
        reach.trouble(error, "timeline")
        return
    ledger.heading(
        found.agent,
        key="session heading",
        below=f"Session {found.session}",
        mark=Mark(found.state or "open", SESSION_TONES.get(found.state, "quiet")),
    )
    ledger.facts(session_facts(found, kills), key="session", wide=True)
    pressed = ledger.table(
        MOMENT_COLUMNS,
        [moment_row(moment, found) for moment in page.items],
        key="timeline",
        title="Timeline",
        empty="Nothing is recorded of this session here. Go back to its beginning.",
    )
    if pressed is not None:
        _open(pressed)
    with st.container(horizontal=True, vertical_alignment="center", key="timeline paging"):
        if st.button("From the beginning" if before else "Refresh", key="beginning"):
            _first_page()
            st.rerun()
        if st.button("Later", disabled=page.next is None, key="later"):
            st.query_params["before"] = page.next or ""
            st.rerun()
        st.caption(f"{number(len(page.items))} shown, oldest first.")


def session_facts(session: Session, kills: Sequence[Kill]) -> list[Fact]:
    life = duration(session.duration_us) if session.duration_us is not None else "–"
    volume = f"{plural(session.statements, 'statement')}, {number(session.denied)} refused, {plural(session.errors, 'error')}"
    facts = [
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
    for kill in kills:
        gone = (
            Text("not proven: look at pg_stat_activity", "bad")
            if kill.backend_gone_at is None
            else Time(kill.backend_gone_at, fine=True)
        )
        facts += [
            Fact("End requested", Time(kill.requested_at, fine=True)),
            Fact("Decided", Time(kill.decided_at, fine=True)),
            Fact("Client closed", Time(kill.client_closed_at, fine=True)),
            Fact("Backend gone", gone),
            Fact("Reason", Text(kill.reason or "–")),
        ]
    return facts


def moment_row(moment: Moment, session: Session) -> Row:
    after = moment.at - session.opened_at if session.opened_at else timedelta()
    asked = moment.kind in ("statement", "running", "denied")
    note = moment.reason if moment.kind == "denied" else moment.sqlstate if moment.outcome == "error" else ""
    told = f"{moment.text}{': ' if moment.text and moment.reason else ''}{moment.reason}"
    ran = moment.kind == "statement"
    return Row(
        id=f"{session.session}/{moment.execution}" if asked else f"{session.session}/{moment.kind}/{moment.at.timestamp()}",
        cells=(
            Time(moment.at, fine=True),
            Number(f"+{duration(max(0, after // timedelta(microseconds=1)))}"),
            moment_mark(moment),
            Sql(moment.text, note) if asked else Text(told, "faint"),
            Number(number(moment.rows)) if ran and moment.rows is not None else Number("–", "faint"),
            Number(duration(moment.duration_us)) if ran and moment.duration_us is not None else Number("–", "faint"),
        ),
        detail=Detail(text=cut(moment.text)[0], facts=_moment_facts(moment), actions=(WHOLE,)) if asked else None,
        tone="bad" if moment.kind in ("denied", "killed") else "warn" if moment.outcome == "error" else "",
    )


def moment_mark(moment: Moment) -> Mark:
    if moment.kind == "statement":
        return Mark(moment.outcome, _OUTCOME_TONES.get(moment.outcome, "warn"))
    return Mark("refused" if moment.kind == "denied" else moment.kind, MOMENT_TONES.get(moment.kind, "quiet"))


def _moment_facts(moment: Moment) -> tuple[Fact, ...]:
    facts = (Fact("SQLSTATE", Mono(moment.sqlstate or "–")), Fact("Execution", Text(number(moment.execution))))
    return (Fact("Why", Text(moment.reason, "bad")), *facts) if moment.reason else facts
