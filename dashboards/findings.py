"""Page "Findings": what the detectors raised, why, and what people made of it."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import endings, filters, ledger, links, notices, reach, statements, switch, viewer
from dashboards.answers import Agent, Finding, Mute, Told
from dashboards.api_client import ApiRefused, ApiTrouble, request_key
from dashboards.ledger import Banner, Column, Fact, Lines, Mark, Mono, Number, Row, Sql, Text, Time, Tone
from dashboards.settings import DEFAULTS
from dashboards.words import number, plural

STATES: Final = ("open", "acknowledged", "confirmed", "muted", "any")
SEVERITIES: Final = ("any", "critical", "warning", "info")
SEVERITY_TONES: Final[dict[str, Tone]] = {"critical": "bad", "warning": "warn", "info": "quiet"}
STATE_TONES: Final[dict[str, Tone]] = {"open": "warn", "acknowledged": "good", "confirmed": "bad", "muted": "quiet"}
MUTE_SECONDS: Final = {"1 hour": 3600, "1 day": 86_400, "7 days": 604_800, "30 days": 2_592_000}
BEFORE: Final = timedelta(minutes=10)  # of what an agent did, shown before the moment in which a finding was raised
EVIDENCE_ROWS: Final = 50


def page() -> None:
    finding = st.query_params.get("finding", "")
    if finding:
        _one(finding)
        return
    ledger.heading("Findings", key="page", below="What the detectors hold to be worth a look, newest first.")
    mutes = reach.ask(reach.client().mutes)
    given = _filters()
    _list(given)
    _mutes(mutes)


# -- the list --------------------------------------------------------------------------------------------------------------------

COLUMNS: Final = (
    Column("Weight", 104),
    Column("What was found"),
    Column("Agent", 150),
    Column("Last seen", 160),
    Column("Times", 56, "right"),
    Column("State", 116),
)


def _filters() -> dict[str, str]:
    with st.container(key="filters"):
        columns = st.columns([1, 1, 1.4, 1.4], gap="small")
        state = columns[0].selectbox("State", STATES, key="state", bind="query-params", on_change=filters.first_page)
        severity = columns[1].selectbox("Weight", SEVERITIES, key="severity", bind="query-params", on_change=filters.first_page)
        agent = filters.text(columns[2], "Agent", "agent", placeholder="its whole name")
        detector = filters.text(columns[3], "Detector", "detector")
    chosen = {
        "state": "" if state == "any" else state,
        "severity": "" if severity == "any" else severity,
        "agent": agent,
        "detector": detector,
    }
    return {name: value for name, value in chosen.items() if value}


@st.fragment(run_every=DEFAULTS.findings_refresh_seconds)
def _list(given: dict[str, str]) -> None:
    before = st.query_params.get("before", "")
    try:
        found = reach.client().findings(given, reach.chosen().page_rows, before)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "The API refused this search.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "findings")
        return
    alone = given == {"state": "open"}
    pressed = ledger.table(
        COLUMNS,
        [finding_row(finding) for finding in found.items],
        key="findings",
        empty="Nothing is open. What a detector finds appears here by itself."
        if alone
        else "No finding fits. Take a filter away, or look at another state.",
        selectable=True,
        flash=not before,
    )
    if pressed is not None:
        links.to_finding(pressed.id)
    filters.paging(found.next, before, len(found.items), "Press a row to see what it rests on.")


def finding_row(finding: Finding) -> Row:
    return Row(
        id=finding.finding,
        cells=(
            Mark(finding.severity, SEVERITY_TONES.get(finding.severity, "quiet")),
            Lines(finding.summary, finding.detector),
            Text(finding.agent or "nobody known", "" if finding.agent else "faint"),
            Time(finding.last_at or finding.raised_at),
            Number(number(finding.times)),
            Mark(finding.state, STATE_TONES.get(finding.state, "quiet")),
        ),
        tone=SEVERITY_TONES.get(finding.severity, "") if finding.state == "open" and finding.severity != "info" else "",
    )


MUTE_COLUMNS: Final = (
    Column("Muted"),
    Column("Until", 168),
    Column("By", 140),
)


def _mutes(asked: Future[tuple[Mute, ...]]) -> None:
    try:
        mutes = asked.result()
    except ApiTrouble as error:
        reach.trouble(error, "mutes")
        return
    if not mutes:
        return
    ledger.table(MUTE_COLUMNS, [mute_row(mute) for mute in mutes], key="mutes", title="Muted now", empty="")
    if viewer.may("responder"):
        _unmute(mutes)


def mute_row(mute: Mute) -> Row:
    whose = "every agent" if mute.agent == "*" else mute.agent or "nobody"
    return Row(
        id=f"{mute.detector}/{mute.agent}",
        cells=(Lines(f"{mute.detector} of {whose}", mute.reason), Time(mute.until_at), Text(mute.operator)),
    )


def _unmute(mutes: tuple[Mute, ...]) -> None:
    names = {f"{mute.detector} of {mute.agent or 'nobody'}": mute for mute in mutes}
    with st.container(horizontal=True, vertical_alignment="bottom", key="unmute"):
        name = st.selectbox("Hear again", tuple(names), key="unmuted", width=320)
        if st.button("Take the mute back", key="take back"):
            mute = names[name]
            try:
                reach.client().unmute(mute.detector, mute.agent, "", request_key())
                reach.shown(lambda: all((m.detector, m.agent) != (mute.detector, mute.agent) for m in reach.client().mutes()))
            except ApiTrouble as error:
                notices.failed(error)
            st.rerun()
    notices.draw()


# -- one finding -----------------------------------------------------------------------------------------------------------------


def _one(name: str) -> None:
    api = reach.client()
    if st.button("All findings", key="back", icon=":material/arrow_back:", type="tertiary"):
        st.query_params.clear()
        st.rerun()
    try:
        finding = api.finding(name)
        agent = api.agent(finding.agent)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "This finding is not to be seen.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "finding")
        return
    ledger.heading(
        finding.summary,
        key="page",
        below=f"{finding.detector}, {finding.agent or 'no known agent'}",
        mark=Mark(finding.severity, SEVERITY_TONES.get(finding.severity, "quiet")),
    )
    notices.draw()
    with st.container(key="beside-finding"):
        left, right = st.columns([3, 2], gap="medium")
    with left:
        ledger.facts(finding_facts(finding), key="finding", wide=True)
        ledger.table(
            (Column("What it rests on"), Column("Number", 140, "right")),
            [Row(label, (Text(number_name(label)), Number(number(value)))) for label, value in finding.numbers.items()],
            key="numbers",
            empty="The detector gave no numbers.",
        )
    with right:
        _triage(finding)
        if agent is not None:
            _respond(agent)
    if agent is not None and agent.state != "active":
        endings.draw(agent)
    _evidence(finding)
    _places(finding)
    _history(finding)
    _follow(finding, agent)


@st.fragment(run_every=DEFAULTS.refresh_seconds)
def _follow(finding: Finding, drawn: Agent | None) -> None:
    """Draws the page anew once somebody decided something, or the tables have what was decided here."""
    api = reach.client()
    try:
        asked = reach.ask(api.agent, finding.agent)
        state, agent = api.finding(finding.finding).state, asked.result()
    except ApiTrouble:
        return  # the banner above the page says so
    if state != finding.state or (agent and agent.state) != (drawn and drawn.state):
        st.rerun()


def number_name(label: str) -> str:
    """`rows_per_minute_max` -> `Rows per minute max`: the unit stands last."""
    words = label.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def finding_facts(finding: Finding) -> list[Fact]:
    facts = [
        Fact("State", Mark(finding.state, STATE_TONES.get(finding.state, "quiet"))),
        Fact("Times", Text(plural(finding.times, "time"))),
        Fact("Raised", Time(finding.raised_at)),
        Fact("Last seen", Time(finding.last_at)),
        Fact("Agent", Text(finding.agent or "–")),
        Fact("Session", Mono(finding.session or "–")),
        Fact("Finding", Mono(finding.finding)),
        Fact("In the log at", Mono(", ".join(finding.offsets[:20]) or "–")),
    ]
    if finding.triaged_by:
        facts += [
            Fact(finding.state.capitalize(), Time(finding.triaged_at)),
            Fact("By", Text(finding.triaged_by)),
            Fact("Note", Text(finding.note or "–")),
        ]
    return facts


def _triage(finding: Finding) -> None:
    if not viewer.may("responder"):
        st.caption("Looking after findings is for responders and administrators.")
        return
    with st.container(border=True, key="switch-triage"):
        note = st.text_input("What do you make of it?", key=f"note {finding.finding}", max_chars=notices.REASON_CHARACTERS_MAX)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            if finding.state in ("open", "muted") and st.button("Acknowledge", key="acknowledge", help="You look after it"):
                _decide(finding, "acknowledged", note)
            if finding.state != "confirmed" and st.button("Confirm", key="confirm it", help="It was what it said"):
                _decide(finding, "confirmed", note)
        if not finding.agent:
            st.caption("What is nobody's is not muted: that would hide every other one.")
        elif finding.state != "muted":
            with st.container(horizontal=True, vertical_alignment="bottom"):
                span = st.selectbox("Mute its like for", tuple(MUTE_SECONDS), index=2, key="mute for", width=140)
                if st.button("Mute", key="mute", help="This detector asks nobody for attention about this agent until then"):
                    _mute(finding, MUTE_SECONDS[span], note)


def _decide(finding: Finding, state: str, note: str) -> None:
    api, request = reach.client(), f"dashboard-{state}-{finding.finding}"[:128]
    try:
        if state == "confirmed":
            api.confirm(finding.finding, note.strip(), request)
        else:
            api.acknowledge(finding.finding, note.strip(), request)
        reach.shown(lambda: reach.client().finding(finding.finding).state == state)
    except ApiTrouble as error:
        notices.failed(error)
    else:
        notices.keep(Banner("good", f"{state.capitalize()}.", "Recorded under your name."))
    st.rerun()


def _mute(finding: Finding, seconds: int, reason: str) -> None:
    if not notices.given(reason):
        return
    try:
        reach.client().mute(finding.finding, seconds, reason.strip(), request_key())
        reach.shown(lambda: any(m.detector == finding.detector and m.agent == finding.agent for m in reach.client().mutes()))
    except ApiTrouble as error:
        notices.failed(error)
    else:
        notices.keep(Banner("good", "Muted.", "What this detector finds of this agent is recorded, and asks nobody for attention."))
    st.rerun()


def _respond(agent: Agent) -> None:
    ledger.facts([Fact("Agent", Mark(agent.state, "good" if agent.state == "active" else "bad"))], key="agent state")
    switch.draw(agent)


def _evidence(finding: Finding) -> None:
    """What was done around it; the offsets above name the very records."""
    with st.container(horizontal=True, key="evidence links"):
        if finding.session and st.button("Read its session", key="its session", type="primary"):
            links.to_session(finding.session)
        if finding.agent and st.button("The agent", key="its agent"):
            links.to_agent(finding.agent)
    if not finding.agent:
        return
    until = (finding.last_at or finding.raised_at) + timedelta(seconds=1)
    asked = {
        "agent": finding.agent,
        "session": finding.session,
        "since_us": str(_us(finding.raised_at - BEFORE)),
        "until_us": str(_us(until)),
    }
    try:
        found = reach.client().statements({name: value for name, value in asked.items() if value}, EVIDENCE_ROWS)
    except ApiTrouble as error:
        reach.trouble(error, "evidence")
        return
    pressed = ledger.table(
        statements.COLUMNS,
        [statements.statement_row(statement) for statement in found.items],
        key="evidence",
        title="What it did then",
        empty="No statement of that time is recorded: look at its sessions.",
        height_pixels=460,
    )
    if pressed is not None:
        statements.open_action(pressed)


def _places(finding: Finding) -> None:
    """The records of the log that it names, each read when it is asked for."""
    if not finding.offsets:
        return
    place = st.selectbox(
        "Where it stands in the log", finding.offsets, index=None, key="place", placeholder="choose a record to read it", width=320
    )
    if place is None:
        return
    try:
        told = reach.client().record(place)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "This record is not to be seen.", str(error))], key="no record")
        return
    except ApiTrouble as error:
        reach.trouble(error, "record")
        return
    pressed = ledger.table(
        (Column("Time", 160), Column("What", 240), Column("Agent", 120), Column("It says")),
        [told_row(index, each, each.event in finding.evidence) for index, each in enumerate(told)],
        key="record",
        title=f"Record {place}",
        empty="It tells of no session and no statement.",
        height_pixels=360,
        selectable=True,
    )
    if pressed is not None:
        each = told[int(pressed.id)]
        if each.session and each.execution is not None:
            links.to_statement(each.session, each.execution)
        elif each.session:
            links.to_session(each.session)


def told_row(index: int, told: Told, evidence: bool) -> Row:
    return Row(
        id=str(index),
        cells=(
            Time(told.at),
            Mark(f"{told.kind}{', the evidence' * evidence}", "warn" if evidence else "quiet"),
            Text(told.agent, "strong" if evidence else ""),
            Sql(told.text or told.outcome or told.reason or "–", told.reason if told.text else "", below=True),
        ),
        tone="warn" if evidence else "",
    )


def _us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _history(finding: Finding) -> None:
    if not finding.history:
        return
    ledger.table(
        (Column("When", 168), Column("What", 120), Column("By", 160), Column("In words")),
        [
            Row(
                id=str(place),
                cells=(
                    Time(event.recorded_at),
                    Text(event.kind),
                    Text(event.operator or "the detector"),
                    Text(event.said or (plural(event.times, "time") if event.times else "–")),
                ),
            )
            for place, event in enumerate(finding.history)
        ],
        key="history",
        title="What became of it",
        empty="",
    )
