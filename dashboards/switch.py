"""The kill switch: revokes an agent for a reason, after a second press, and gives back what was taken."""

from __future__ import annotations

import streamlit as st

from dashboards import ledger, notices, reach, viewer
from dashboards.answers import Agent
from dashboards.api_client import ApiTrouble, request_key
from dashboards.ledger import Banner, Fact, Text
from dashboards.words import plural


def draw(agent: Agent) -> None:
    if agent.state == "retired":
        return
    if not viewer.may("responder"):
        st.caption("Revoking and reinstating it is for responders and administrators.")
        return
    active = agent.state == "active"
    with st.container(border=True, key="switch"):
        reason = st.text_input(
            "Why should it be revoked?" if active else "Why may it act again?",
            key=f"reason {agent.agent} {agent.state}",
            max_chars=notices.REASON_CHARACTERS_MAX,
            placeholder="It is recorded, and the agent's clients read it" if active else "It is recorded",
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            if active:
                if st.button("Revoke …", key="revoke", type="primary") and notices.given(reason):
                    _confirm(agent, reason.strip(), request_key())
                st.caption("Ends its sessions at once, in PostgreSQL too, and lets it open no other.")
            else:
                if st.button("Reinstate", key="reinstate") and notices.given(reason):
                    _command(agent.agent, reason.strip(), request_key(), revoke=False)
                st.caption("It may connect again, within the grants that are in force.")


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
        reach.shown(lambda: (found := reach.client().agent(agent)) is not None and (found.state == "revoked") == revoke)
    except ApiTrouble as error:
        notices.failed(error)
    else:
        notices.keep(
            Banner("warn", "Revoked.", "Its sessions are ending; below stands when each one did.")
            if revoke
            else Banner("good", "Reinstated.", "It may connect again.")
        )
    st.rerun()
