"""Page "Agents": who may do what, who let them, and the switch that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st

from dashboards import ledger, links, reach
from dashboards.answers import Agent, Grant, Kill, Scope, Session
from dashboards.api_client import ApiTrouble, request_key
from dashboards.ledger import Banner, Column, Fact, Lines, Mark, Mono, Number, Paragraph, Row, Sql, Text, Time, Tone
from dashboards.settings import DEFAULTS
from dashboards.words import duration, listing, number, plural, utc

STATE_TONES: Final[dict[str, Tone]] = {"active": "good", "revoked": "bad", "retired": "quiet"}
REASON_CHARACTERS_MAX: Final = 500
_NOTICE: Final = "agents.notice"


def page() -> None:
    api = reach.client()
    try:
        agents = api.agents()
        grants = api.grants()
    except ApiTrouble as error:
        reach.trouble(error, "agents")
        return
    if not agents:
        ledger.banners(
            [Banner("warn", "No agent is registered.", "Name one in the configuration, or register it with POST /v1/agents.")],
            key="no agents",
        )
        return
    asked = st.query_params.get("agent", "")
    chosen = next((agent for agent in agents if agent.agent == asked), in_order(agents)[0])
    with st.container(key="beside-agents"):
        left, right = st.columns([9, 11], gap="medium")
    with left:
        _list(chosen.agent, _standing(chosen, grants))
    with right:
        _one(chosen, [grant for grant in grants if grant.agent == chosen.agent])


def _standing(agent: Agent | None, grants: Sequence[Grant]) -> object:
    """What the right half of the page was drawn from."""
    if agent is None:
        return None
    return (agent.state, agent.state_at, tuple((grant.grant, grant.state) for grant in grants if grant.agent == agent.agent))


# -- the list --------------------------------------------------------------------------------------------------------------------

LIST_COLUMNS: Final = (
    Column("Agent and owner"),
    Column("State", 84),
    Column("Last seen", 152, title="When it last opened a session or sent a statement"),
    Column("Live", 48, "right", "Sessions open now"),
    Column("24 h", 70, "right", "Statements let through in the last 24 hours"),
    Column("Refused", 66, "right", "Statements refused in the last 24 hours"),
)


@st.fragment(run_every=DEFAULTS.refresh_seconds)
def _list(chosen: str, standing: object) -> None:
    api = reach.client()
    try:
        agents, grants = api.agents(), api.grants()
    except ApiTrouble as error:
        reach.trouble(error, "agents list")
        return
    now = datetime.now(UTC)
    asking = {grant.agent for grant in grants if grant.state == "requested"}
    pressed = ledger.table(
        LIST_COLUMNS,
        [agent_row(agent, now, selected=agent.agent == chosen, asking=agent.agent in asking) for agent in in_order(agents)],
        key="agents",
        title=f"Agents ({number(len(agents))})",
        empty="No agent is registered. Name one in the configuration, or register it with POST /v1/agents.",
        selectable=True,
    )
    if _standing(next((agent for agent in agents if agent.agent == chosen), None), grants) != standing:
        st.rerun()  # somebody else decided something about it
    if pressed is not None and pressed.id != chosen:
        st.query_params["agent"] = pressed.id
        st.rerun()


def in_order(agents: Sequence[Agent]) -> list[Agent]:
    """Those that can act first, then by name."""
    ranks = {"active": 0, "revoked": 1}
    return sorted(agents, key=lambda agent: (ranks.get(agent.state, 2), agent.agent))


def agent_row(agent: Agent, now: datetime, *, selected: bool, asking: bool) -> Row:
    return Row(
        id=agent.agent,
        cells=(
            Lines(agent.agent, f"{'asks for more · ' if asking else ''}{agent.owner or 'no owner'}"),
            Mark(agent.state, STATE_TONES.get(agent.state, "warn")),
            last_seen(agent, now),
            Number(number(agent.live_sessions), "" if agent.live_sessions else "faint"),
            Number(number(agent.statements), "" if agent.statements else "faint"),
            Number(number(agent.denied), "bad" if agent.denied else "faint"),
        ),
        tone="warn" if asking else "",
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


def _one(agent: Agent, grants: Sequence[Grant]) -> None:
    now = datetime.now(UTC)
    ledger.heading(
        agent.agent,
        key="agent",
        below=agent.description or "No description.",
        mark=Mark(agent.state, STATE_TONES.get(agent.state, "warn")),
    )
    notice = st.session_state.pop(_NOTICE, None)
    if isinstance(notice, Banner):
        ledger.banners([notice], key="notice")
    ledger.facts(agent_facts(agent, now), key="facts", wide=True)
    _switch(agent)
    if agent.state != "active":
        _endings(agent)
    _pending([grant for grant in grants if grant.state == "requested"])
    ledger.table(
        GRANT_COLUMNS,
        [grant_row(grant, now) for grant in by_weight(grants, now) if grant.state != "requested"],
        key="grants",
        title="Scope: what its grants allow",
        empty="It holds no grant, so every statement is refused. Ask for one with POST /v1/grants; another operator approves it.",
    )
    if agent.state == "active":
        _endings(agent)


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


# -- grants ----------------------------------------------------------------------------------------------------------------------

GRANT_COLUMNS: Final = (
    Column("It may"),
    Column("On", 76, title="The connection"),
    Column("State", 90),
    Column("Ends", 150),
    Column("Approved by", 96),
)


def grant_state(grant: Grant, now: datetime) -> str:
    over = grant.state == "approved" and grant.expires_at is not None and grant.expires_at <= now
    return "expired" if over else grant.state


def by_weight(grants: Sequence[Grant], now: datetime) -> list[Grant]:
    """What holds now first; what ended is history."""
    ranks = {"requested": 0, "approved": 1}
    return sorted(grants, key=lambda grant: (ranks.get(grant_state(grant, now), 2), grant.scope.connection, grant.grant))


def scope_words(scope: Scope) -> tuple[str, ...]:
    """`select from public.orders and public.customers`: one line a rule, then functions, channels and catalogs."""
    lines = []
    for rule in scope.rules:
        tables = [f"{rule.schema}.{table}" for table in rule.tables if table != "*"]
        if "*" in rule.tables:
            tables = [f"every table of schema {rule.schema}"]
        lines.append(f"{listing(rule.operations)} on {listing(tables)}")
    if scope.functions:
        lines.append(f"call {listing(scope.functions)}")
    if scope.channels:
        lines.append(f"listen and notify on {listing(scope.channels)}")
    if scope.introspection:
        lines.append("read the catalogs (pg_catalog, information_schema)")
    return tuple(lines) or ("nothing",)


def grant_row(grant: Grant, now: datetime) -> Row:
    state = grant_state(grant, now)
    tones: dict[str, Tone] = {"approved": "good", "requested": "warn"}
    reason = f"Reason: {grant.reason}" if grant.reason else "No reason given"
    return Row(
        id=grant.grant,
        cells=(
            Paragraph((*scope_words(grant.scope), f"{reason} (asked by {grant.requested_by or 'nobody named'})")),
            Text(grant.scope.connection),
            Mark("in force" if state == "approved" else state, tones.get(state, "quiet")),
            Time(grant.expires_at, none="when revoked" if state == "approved" else "–"),
            Text(grant.approver or "–"),
        ),
    )


def _pending(grants: Sequence[Grant]) -> None:
    for grant in grants:
        with st.container(border=True, key=f"pending-{grants.index(grant)}"):
            life = f"for {duration(grant.seconds * 1_000_000)} from approval" if grant.seconds else "until it is revoked"
            ledger.facts(
                [
                    Fact("Asks to", Paragraph(scope_words(grant.scope))),
                    Fact("On", Text(grant.scope.connection)),
                    Fact("For", Text(life)),
                    Fact("Reason", Text(grant.reason or "none given", "" if grant.reason else "warn")),
                    Fact("Asked by", Text(grant.requested_by)),
                ],
                key=f"asked {grant.grant}",
                title="Asks for a grant",
            )
            with st.container(horizontal=True, vertical_alignment="bottom"):
                if st.button("Approve", key=f"approve {grant.grant}", type="primary"):
                    _decide(grant, approve=True, reason="")
                reason = st.text_input(
                    "Reason for a denial",
                    key=f"denial {grant.grant}",
                    max_chars=REASON_CHARACTERS_MAX,
                    label_visibility="collapsed",
                    placeholder="Reason for a denial",
                )
                if st.button("Deny", key=f"deny {grant.grant}"):
                    _decide(grant, approve=False, reason=reason)


def _decide(grant: Grant, *, approve: bool, reason: str) -> None:
    if not approve and not reason.strip():
        ledger.banners(
            [Banner("warn", "Say why.", "A denial is recorded with its reason; the one who asked will read it.")], key="say why"
        )
        return
    # one command a grant: a grant is decided once, so its own name makes a repeated press harmless
    try:
        if approve:
            reach.client().approve(grant.grant, f"dashboard-approve-{grant.grant}"[:128])
        else:
            reach.client().deny(grant.grant, reason.strip(), f"dashboard-deny-{grant.grant}"[:128])
        reach.shown(lambda: all(other.grant != grant.grant or other.state != "requested" for other in reach.client().grants()))
    except ApiTrouble as error:
        _say(error)
    else:
        st.session_state[_NOTICE] = Banner("good", "Approved." if approve else "Denied.", "Recorded under your name.")
    st.rerun()


def _say(error: ApiTrouble) -> None:
    st.session_state[_NOTICE] = Banner("bad", "That was not done.", f"{error} {error.remedy}".strip())


# -- the kill switch -------------------------------------------------------------------------------------------------------------


def _switch(agent: Agent) -> None:
    if agent.state == "retired":
        return
    active = agent.state == "active"
    with st.container(border=True, key="switch"):
        reason = st.text_input(
            "Why should it be revoked?" if active else "Why may it act again?",
            key=f"reason {agent.agent} {agent.state}",
            max_chars=REASON_CHARACTERS_MAX,
            placeholder="It is recorded, and the agent's clients read it" if active else "It is recorded",
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            if active:
                if st.button("Revoke …", key="revoke", type="primary") and _given(reason):
                    _confirm(agent, reason.strip(), request_key())
                st.caption("Ends its sessions at once, in PostgreSQL too, and lets it open no other.")
            else:
                if st.button("Reinstate", key="reinstate") and _given(reason):
                    _command(agent.agent, reason.strip(), request_key(), revoke=False)
                st.caption("It may connect again, within the grants that are in force.")


def _given(reason: str) -> bool:
    if not reason.strip():
        ledger.banners([Banner("warn", "Say why.", "Write a reason first: it is recorded with your name.")], key="say why")
    return bool(reason.strip())


@st.dialog("Revoke this agent?", width="medium")
def _confirm(agent: Agent, reason: str, request: str) -> None:
    ledger.facts(
        [
            Fact("Agent", Text(agent.agent, "strong")),
            Fact("Owner", Text(agent.owner or "none named")),
            Fact("Sessions that end", Text(plural(agent.live_sessions, "live session"))),
            Fact("Reason", Text(reason)),
        ],
        key="confirm",
    )
    st.caption("Running statements are cancelled and their transactions rolled back. Other agents go on.")
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it", key="keep"):
            st.rerun()
        if st.button("Revoke now", key="revoke_now", type="primary"):
            _command(agent.agent, reason, request, revoke=True)


def _command(agent: str, reason: str, request: str, *, revoke: bool) -> None:
    try:
        if revoke:
            reach.client().revoke(agent, reason, request)
        else:
            reach.client().reinstate(agent, reason, request)
        reach.shown(lambda: any(one.agent == agent and (one.state == "revoked") == revoke for one in reach.client().agents()))
    except ApiTrouble as error:
        _say(error)
    else:
        st.session_state[_NOTICE] = (
            Banner("warn", "Revoked.", "Its sessions are ending; below stands when each one did.")
            if revoke
            else Banner("good", "Reinstated.", "It may connect again.")
        )
    st.rerun()


# -- how its sessions end ----------------------------------------------------------------------------------------------------------

ENDING_COLUMNS: Final = (
    Column("Session", 168),
    Column("State", 90),
    Column("Requested", 120, title="When its end was recorded"),
    Column("Decided", 76, "right", "How long after that it was decided that this session must end"),
    Column("Client closed", 92, "right", "How long after that the client's connection was closed"),
    Column("Backend gone", 98, "right", "How long after that PostgreSQL's own list of processes no longer held it"),
)


@st.fragment(run_every=1.0)
def _endings(agent: Agent) -> None:
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
            _after(kill, kill.decided_at),
            _after(kill, kill.client_closed_at),
            _after(kill, kill.backend_gone_at),
        ),
    )


def _after(kill: Kill, at: datetime | None) -> Number:
    """How long after the request."""
    if at is None or kill.requested_at is None:
        return Number("–", "faint")
    return Number(f"+{duration(max(0, (at - kill.requested_at) // timedelta(microseconds=1)))}")
