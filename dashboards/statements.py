"""Page "Statements": what was asked of the databases, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import streamlit as st

from dashboards import exports, filters, ledger, links, reach
from dashboards.answers import Statement
from dashboards.api_client import ApiRefused, ApiTrouble
from dashboards.ledger import Action, Banner, Column, Detail, Fact, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.words import cut, duration, listing, number, size, visible

DECISIONS: Final[dict[str, str]] = {"any": "", "allowed": "allow", "refused": "deny"}
OUTCOMES: Final = ("any", "running", "ok", "error", "skipped", "suspended", "unknown")
TIMELINE: Final = ("timeline", "Timeline of this session")
ALONE: Final = ("alone", "Its own address")
WHOLE: Final = ("whole", "Whole statement")

OUTCOME_TONES: Final[dict[str, Tone]] = {
    "ok": "good",
    "error": "warn",
    "skipped": "quiet",
    "suspended": "quiet",
    "unknown": "warn",
}


def page() -> None:
    session, execution = st.query_params.get("session", ""), st.query_params.get("execution", "")
    if session and execution:
        _one(session, execution)
    elif session:
        links.to_session(session)  # where the timelines of sessions stood once
    else:
        _search()


# -- search ----------------------------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    Column("Time", 160),
    Column("Agent", 120),
    Column("Result", 104),
    Column("Statement"),
    Column("Rows", 84, "right"),
    Column("Time taken", 96, "right"),
    Column("Sent", 84, "right", "Bytes sent to the client"),
)


def _search() -> None:
    api, chosen = reach.client(), reach.chosen()
    ledger.heading("Statements", key="page", below="Each execution that an agent asked for, let through or refused.")
    given = _filters()
    before = st.query_params.get("before", "")
    try:
        found = api.statements(given, chosen.page_rows, before)
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
        if given
        else "No statement is recorded yet. Each one that an agent sends through the gateway appears here.",
    )
    if pressed is not None:
        open_action(pressed)
    filters.paging(found.next, before, len(found.items), "Press a row to see the whole statement.")
    exports.draw(export_sql(given), "statements", key="exports")


def export_sql(given: Mapping[str, str]) -> str:
    """The search again, as a SELECT: what was typed stands in it as a literal of its own, whatever it is."""
    conditions = {
        "text": "contains(lower(text), lower({}))",
        "agent": "agent = {}",
        "decision": "decision = {}",
        "outcome": "coalesce(outcome, 'running') = {}",
        "task": "task = {}",
        "approver": "list_contains(approvers, {})",
        "since_us": "started_at >= make_timestamp({})",
    }
    where = [
        conditions[name].format(int(value) if name == "since_us" else literal(value))
        for name, value in given.items()
        if name in conditions
    ]
    if relation := given.get("relation"):
        name = literal(relation)
        where.append(f"list_has_any(relations, [{name}]) or list_contains([split_part(r, '.', -1) for r in relations], {name})")
    condition = " and ".join(f"({each})" for each in where) or "true"
    return f"select * from statements where {condition} order by started_at desc"  # noqa: S608 - each value is a literal


def literal(text: str) -> str:
    """A string of SQL: only the quote means something in one, and NUL cannot stand in it."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def _filters() -> dict[str, str]:
    with st.container(key="filters"):
        columns = st.columns([3, 1.5, 1, 1], gap="small")
        text = filters.text(columns[0], "Text in the statement", "text", characters_max=500)
        agent = filters.text(columns[1], "Agent", "agent", placeholder="its whole name")
        decision = columns[2].selectbox(
            "Decision", tuple(DECISIONS), key="decision", bind="query-params", on_change=filters.first_page
        )
        outcome = columns[3].selectbox("Outcome", OUTCOMES, key="outcome", bind="query-params", on_change=filters.first_page)
        columns = st.columns([1.5, 1.5, 1.5, 1], gap="small")
        relation = filters.text(columns[0], "Table or view", "relation", placeholder="public.orders")
        task = filters.text(columns[1], "Task", "task")
        approver = filters.text(columns[2], "Approver of a grant", "approver")
        since = filters.since(columns[3], 2)
    chosen = {
        "text": text,
        "agent": agent,
        "decision": DECISIONS[decision],
        "outcome": "" if outcome == "any" else outcome,
        "relation": relation,
        "task": task,
        "approver": approver,
        "since_us": since,
    }
    return {name: value for name, value in chosen.items() if value}


def statement_id(statement: Statement) -> str:
    return f"{statement.session}/{statement.execution}"


def session_of(row_id: str) -> str:
    return row_id.rpartition("/")[0]


def result(statement: Statement) -> Mark:
    if statement.decision == "deny":
        return Mark("refused", "bad")
    if not statement.outcome:
        return Mark("running", "quiet")
    return Mark(statement.outcome, OUTCOME_TONES.get(statement.outcome, "warn"))


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
        return Sql(statement.text, statement.reason if statement.decision == "deny" else "", below=True)
    return Text(f"{' '.join(statement.verbs)} (only its fingerprint {statement.fingerprint or '?'} is kept)", "faint")


def statement_detail(statement: Statement, *, actions: tuple[tuple[str, str], ...] = (TIMELINE, ALONE)) -> Detail:
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
        Fact("Time", Time(statement.started_at, fine=True)),
        Fact("Agent", Text(statement.agent)),
        Fact("Result", result(statement)),
        Fact("Session", Mono(statement.session)),
        Fact("Connection", Text(statement.connection)),
        Fact("Decision", Text("refused", "bad") if refused else Text("allowed", "good")),
        Fact("Rule", Text(statement.rule or "–")),
        Fact("Kind", Text(listing(statement.verbs) or "–")),
        Fact("Tables", Text(listing(statement.relations) or "–")),
        Fact("SQLSTATE", Mono(statement.sqlstate or "–")),
        Fact("Answer", Text(statement.tag or "–")),
        Fact("Task", Text(statement.task or "–")),
        Fact("Approved by", Text(listing(statement.approvers) or "–")),
        Fact("On behalf of", Text(statement.on_behalf_of or "–")),
        Fact("Client", Mono(statement.client or "–")),
        Fact("Fingerprint", Mono(statement.fingerprint or "–")),
    )
    return (Fact("Why", Text(statement.reason, "bad")), *facts) if statement.reason else facts


def open_action(pressed: Action) -> None:
    if pressed.name == TIMELINE[0]:
        links.to_session(session_of(pressed.id))
    elif pressed.name == ALONE[0]:
        links.to_statement(session_of(pressed.id), int(pressed.id.rpartition("/")[2]))
    elif pressed.name == WHOLE[0]:
        _whole(pressed.id)


@st.dialog("Statement", width="large")
def _whole(row_id: str) -> None:
    session, _, execution = row_id.rpartition("/")
    _read(session, execution)


def _one(session: str, execution: str) -> None:
    with st.container(horizontal=True):
        if st.button("All statements", key="back", icon=":material/arrow_back:", type="tertiary"):
            st.query_params.clear()
            st.rerun()
        if st.button("Its session", key="its session", type="tertiary"):
            links.to_session(session)
    ledger.heading("One statement", key="page", below=f"Execution {execution} of session {session}")
    _read(session, execution)


def _read(session: str, execution: str) -> None:
    api, chosen = reach.client(), reach.chosen()
    try:
        statement = api.statement(session, execution)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "This statement is not to be seen.", str(error))], key="whole refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "whole")
        return
    text, left_off = cut(statement.text, chosen.whole_characters_max)
    st.code(visible(text, lines=True) or "Only its fingerprint is kept.", language=None, wrap_lines=True, height=420)
    if left_off:
        st.caption(f"{number(left_off)} more characters are not shown: ask the API for this statement.")
    ledger.facts(statement_facts(statement), key="whole facts", wide=True)
