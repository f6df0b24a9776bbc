"""Page "Agents": who may do what, who let them, and the switch that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import agent_use, endings, findings, grants, ledger, links, notices, reach, restraints, sessions, switch
from dashboards.answers import PAGE_ROWS_MAX, Agent, Finding, Grant, Hour, Page, Restraints, Session, Touched
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Banner, Column, Fact, Lines, Mark, Number, Row, Text, Time, Tone
from dashboards.settings import DEFAULTS
from dashboards.words import listing, number, plural, utc

_FRESH: Final = "agents.fresh"
STATE_TONES: Final[dict[str, Tone]] = {"active": "good", "revoked": "bad", "retired": "quiet"}


def page() -> None:
    wanted = st.query_params.get("agent", "")
    about = _About.ask(wanted) if wanted else None
    try:
        agents, asking, restrained = _asked()
    except ApiTrouble as error:
        reach.trouble(error, "agents")
        return
    if not agents:
        ledger.banners(
            [Banner("warn", "No agent is registered.", "Name one in the configuration, or register it with POST /v1/agents.")],
            key="no agents",
        )
        return
    chosen = next((agent for agent in agents if agent.agent == wanted), in_order(agents)[0])
    if about is None or chosen.agent != wanted:
        about = _About.ask(chosen.agent)
    try:
        held = about.grants.result()
    except ApiTrouble as error:
        reach.trouble(error, "agents")
        return
    st.session_state[_FRESH] = (agents, asking, held, restrained)
    with st.container(key="beside-agents"):
        left, right = st.columns([9, 11], gap="medium")
    with left:
        _list(chosen.agent, _standing(chosen, held, restrained))
    with right:
        _one(chosen, held, restrained, about)


@dataclass(frozen=True, slots=True)
class _About:
    """What is asked about one agent, all at once."""

    grants: Future[tuple[Grant, ...]]
    touched: Future[tuple[Touched, ...]]
    hours: Future[tuple[Hour, ...]]
    findings: Future[Page[Finding]]
    sessions: Future[Page[Session]]

    @classmethod
    def ask(cls, agent: str) -> _About:
        api, chosen = reach.client(), reach.chosen()
        return cls(
            reach.ask(api.grants, agent=agent),
            reach.ask(api.touched, agent, agent_use.DAYS, PAGE_ROWS_MAX),
            reach.ask(api.hours, agent, 28),
            reach.ask(api.findings, {"agent": agent}, chosen.agent_rows),
            reach.ask(api.sessions, {"agent": agent}, chosen.agent_rows),
        )


def _asked() -> tuple[tuple[Agent, ...], frozenset[str], Restraints]:
    """Every agent, those that ask for more, and who is held back.

    Raises:
        ApiTrouble: It did not come.
    """
    api = reach.client()
    requested, restrained = reach.ask(api.grants, state="requested"), reach.ask(api.restraints)
    return api.agents(), frozenset(grant.agent for grant in requested.result()), restrained.result()


def _standing(agent: Agent | None, grants: Sequence[Grant], restrained: Restraints) -> object:
    """What the right half of the page was drawn from; `grants` are the agent's own."""
    if agent is None:
        return None
    return (agent.state, agent.state_at, tuple((grant.grant, grant.state) for grant in grants), restrained.of(agent.agent))


# -- the list --------------------------------------------------------------------------------------------------------------------

LIST_COLUMNS: Final = (
    Column("Agent and owner"),
    Column("State", 84),
    Column("Last seen", 152, title="When it last opened a session or sent a statement"),
    Column("Live", 48, "right", "Sessions open now"),
    Column("24 h", 70, "right", "Statements let through in the last 24 hours"),
    Column("Refused", 66, "right", "Statements refused in the last 24 hours"),
)


@st.fragment(run_every=DEFAULTS.list_refresh_seconds)
def _list(chosen: str, standing: object) -> None:
    fresh = st.session_state.pop(_FRESH, None)  # the page has just asked for the same
    try:
        if fresh is None:
            own = reach.ask(reach.client().grants, agent=chosen)
            agents, asking, restrained = _asked()
            held = own.result()
        else:
            agents, asking, held, restrained = fresh
    except ApiTrouble as error:
        reach.trouble(error, "agents list")
        return
    now = datetime.now(UTC)
    back = {each.agent: restraints.name(each) for each in (*restrained.throttled, *restrained.held)}
    sought = st.text_input("Find an agent", key="sought", placeholder="part of a name, or an owner", max_chars=100) or ""
    fitting = [agent for agent in in_order(agents) if fits(agent, sought)]
    shown = fitting[: DEFAULTS.agents_max]
    pressed = ledger.table(
        LIST_COLUMNS,
        [
            agent_row(agent, now, selected=agent.agent == chosen, asking=agent.agent in asking, held_back=back.get(agent.agent, ""))
            for agent in shown
        ],
        key="agents",
        title=f"Agents ({number(len(fitting))}{f', the first {number(len(shown))} shown' if len(shown) < len(fitting) else ''})",
        empty="No agent has this in its name or its owner's.",
        height_pixels=860,
        selectable=True,
    )
    if _standing(next((agent for agent in agents if agent.agent == chosen), None), held, restrained) != standing:
        st.rerun()  # somebody else decided something about it
    if pressed is not None and pressed.id != chosen:
        st.query_params["agent"] = pressed.id
        st.rerun()


def fits(agent: Agent, sought: str) -> bool:
    wanted = sought.strip().lower()
    return wanted in agent.agent.lower() or wanted in agent.owner.lower()


def in_order(agents: Sequence[Agent]) -> list[Agent]:
    """Those that can act first, then by name."""
    ranks = {"active": 0, "revoked": 1}
    return sorted(agents, key=lambda agent: (ranks.get(agent.state, 2), agent.agent))


def agent_row(agent: Agent, now: datetime, *, selected: bool, asking: bool, held_back: str = "") -> Row:
    held_back = held_back if agent.state == "active" else ""
    return Row(
        id=agent.agent,
        cells=(
            Lines(agent.agent, f"{'asks for more · ' if asking else ''}{agent.owner or 'no owner'}"),
            Mark(held_back, "warn") if held_back else Mark(agent.state, STATE_TONES.get(agent.state, "warn")),
            last_seen(agent, now),
            Number(number(agent.live_sessions), "" if agent.live_sessions else "faint"),
            Number(number(agent.statements), "" if agent.statements else "faint"),
            Number(number(agent.denied), "bad" if agent.denied else "faint"),
        ),
        tone="warn" if asking or held_back else "",
        selected=selected,
    )


def last_seen(agent: Agent, now: datetime) -> Time | Text:
    """The time; or, for one that can act and does not, how long that has been so."""
    if agent.last_seen_at is None:
        return Text(
            "never used", "warn" if agent.state == "active" else "faint", "It can connect and has never done so: is it needed?"
        )
    if agent.state == "active" and now - agent.last_seen_at > timedelta(days=DEFAULTS.unused_days):
        days = (now - agent.last_seen_at).days
        return Text(f"unused for {plural(days, 'day')}", "warn", f"Last seen {utc(agent.last_seen_at)}: is it still needed?")
    return Time(agent.last_seen_at)


# -- one agent -------------------------------------------------------------------------------------------------------------------


def _one(agent: Agent, held: Sequence[Grant], restrained: Restraints, about: _About) -> None:
    now = datetime.now(UTC)
    ledger.heading(
        agent.agent,
        key="agent",
        below=agent.description or "No description.",
        mark=Mark(agent.state, STATE_TONES.get(agent.state, "warn")),
    )
    notices.draw()
    ledger.facts(agent_facts(agent, now), key="facts", wide=True)
    restraints.draw(restrained.of(agent.agent))
    switch.draw(agent)
    if agent.state != "active":
        endings.draw(agent)
    grants.pending([grant for grant in held if grant.state == "requested"])
    ledger.table(
        grants.GRANT_COLUMNS,
        [grants.grant_row(grant, now) for grant in grants.by_weight(held, now) if grant.state != "requested"],
        key="grants",
        title="Scope: what its grants allow",
        empty="It holds no grant, so every statement is refused. Ask for one with POST /v1/grants; another operator approves it.",
    )
    _work(about, held, now)
    if agent.state == "active":
        endings.draw(agent)


def _work(about: _About, held: Sequence[Grant], now: datetime) -> None:
    """What it did, against what it may; what was found; and its sessions."""
    try:
        touched, hours = about.touched.result(), about.hours.result()
        found, opened = about.findings.result().items, about.sessions.result().items
    except ApiTrouble as error:
        reach.trouble(error, "work")
        return
    agent_use.draw(held, touched, hours, now)
    pressed = ledger.table(
        FINDING_COLUMNS,
        [finding_row(finding) for finding in found],
        key="its findings",
        title="Findings",
        empty="No detector found anything about it.",
        selectable=bool(found),
    )
    if pressed is not None:
        links.to_finding(pressed.id)
    pressed = ledger.table(
        SESSION_COLUMNS,
        [session_row(session) for session in opened],
        key="its sessions",
        title="Its last sessions",
        empty="It has not connected yet.",
        selectable=bool(opened),
    )
    if pressed is not None:
        links.to_session(pressed.id)


FINDING_COLUMNS: Final = (Column("Weight", 104), Column("What was found"), Column("Last seen", 160), Column("State", 116))
SESSION_COLUMNS: Final = (
    Column("State", 124),
    Column("Opened", 160),
    Column("Lasted", 84, "right"),
    Column("Did"),
    Column("Refused", 66, "right"),
)


def finding_row(finding: Finding) -> Row:
    whole = findings.finding_row(finding)
    weight, found, _, seen, _, state = whole.cells
    return replace(whole, cells=(weight, found, seen, state))


def session_row(session: Session) -> Row:
    whole = sessions.session_row(session)
    _, state, opened, lasted, did, refused, *_ = whole.cells
    return replace(whole, cells=(state, opened, lasted, did, refused))


def agent_facts(agent: Agent, now: datetime) -> list[Fact]:
    proof = []
    if agent.issuer:
        pinned = f", subject {agent.subject}" if agent.subject else ""
        proof.append(f"token of issuer {agent.issuer}, client {agent.client}{pinned}")
    if agent.key_id:
        proof.append(f"agent key {agent.key_id}")
    facts = [
        Fact("Owner", Text(agent.owner or "none named")),
        Fact("Proves itself by", Text(listing(proof) or "nothing yet: give it a key or an issuer")),
        Fact("Registered", Time(agent.registered_at)),
        Fact("Last seen", last_seen(agent, now)),
    ]
    if agent.state != "active":
        facts.append(Fact(agent.state.capitalize(), Time(agent.state_at)))
        facts.append(Fact("By", Text(agent.state_by or "–")))
        facts.append(Fact("Reason", Text(agent.state_reason or "–")))
    return facts
