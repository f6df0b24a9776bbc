"""Page "Statements": what was asked of the databases, by whom, and what came of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import ledger, reach
from dashboards.api_client import ApiRefused, ApiTrouble, Session, Statement
from dashboards.ledger import Banner, Column, Detail, Fact, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.words import cut, duration, listing, number, size

SPANS: Final[dict[str, timedelta | None]] = {
    "15 minutes": timedelta(minutes=15),
    "1 hour": timedelta(hours=1),
    "1 day": timedelta(days=1),
    "7 days": timedelta(days=7),
    "all time": None,
}
DECISIONS: Final[dict[str, str]] = {"any": "", "allowed": "allow", "refused": "deny"}
OUTCOMES: Final = ("any", "ok", "error", "skipped", "suspended", "unknown")

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
    except ApiTrouble as error:
        reach.trouble(error, "statements")
        return
    except ApiRefused as error:
        ledger.banners([Banner("warn", "The API refused this search.", str(error))], key="refused")
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
        open_timeline(session_of(pressed.id))
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
            _sql(statement),
            Number("–" if statement.rows is None else number(statement.rows)),
            Number("–" if statement.duration_us is None else duration(statement.duration_us)),
            Number("–" if statement.bytes_out is None else size(statement.bytes_out)),
        ),
        detail=statement_detail(statement),
        tone="bad" if statement.decision == "deny" else "warn" if statement.outcome == "error" else "",
    )


def _sql(statement: Statement) -> Sql | Text:
    if statement.text:
        return Sql(statement.text, statement.reason if statement.decision == "deny" else "")
    return Text(f"{' '.join(statement.verbs)} (only its fingerprint {statement.fingerprint or '?'} is kept)", "faint")


def statement_detail(statement: Statement, *, timeline: bool = True) -> Detail:
    text, left_off = cut(statement.text)
    facts = [
        Fact("Session", Mono(statement.session)),
        Fact("Connection", Text(statement.connection)),
        Fact(
            "Decision",
            Text("refused" if statement.decision == "deny" else "allowed", "bad" if statement.decision == "deny" else "good"),
        ),
        Fact("Rule", Text(statement.rule or "–")),
        Fact("Kind", Text(listing(statement.verbs) or "–")),
        Fact("Tables", Text(listing(statement.relations) or "–")),
        Fact("SQLSTATE", Mono(statement.sqlstate or "–")),
        Fact("Answer", Text(statement.tag or "–")),
        Fact("Task", Text(statement.task or "–")),
        Fact("On behalf of", Text(statement.on_behalf_of or "–")),
        Fact("Client", Mono(statement.client or "–")),
        Fact("Fingerprint", Mono(statement.fingerprint or "–")),
    ]
    if statement.reason:
        facts.insert(0, Fact("Why", Text(statement.reason, "bad")))
    return Detail(
        text=text,
        note=f"{number(left_off)} more characters are not shown: search for the fingerprint with `pgwarden sql`."
        if left_off
        else "",
        facts=tuple(facts),
        actions=(("timeline", "Timeline of this session"),) if timeline else (),
    )


# -- timeline --------------------------------------------------------------------------------------------------------------------


def session_detail(session: Session) -> Detail:
    return Detail(
        facts=(
            Fact("Session", Mono(session.session)),
            Fact("Backend process", Text(str(session.backend_pid) if session.backend_pid else "–")),
            Fact("Task", Text(session.task or "–")),
            Fact("On behalf of", Text(session.on_behalf_of or "–")),
            Fact("Invocation", Text(session.invocation or "–")),
            Fact("Database", Text(session.database or "–")),
            Fact("Proven by", Text(session.method or "–")),
            Fact("Encryption", Text(session.tls or "none")),
        ),
        actions=(("timeline", "Timeline of this session"),),
    )


def _timeline(session: str) -> None:
    st.text(session)
