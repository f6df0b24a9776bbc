"""Where a thing of the record has its page: an address that can be sent to a colleague."""

from __future__ import annotations

import streamlit as st


def to_session(session: str) -> None:
    _to("sessions", session=session)


def to_statement(session: str, execution: int) -> None:
    _to("statements", session=session, execution=str(execution))


def to_agent(agent: str) -> None:
    _to("agents", agent=agent)


def to_finding(finding: str) -> None:
    _to("findings", finding=finding)


def _to(page: str, **parameters: str) -> None:
    """Ends this run of the script."""
    st.switch_page(st.session_state["pages"][page], query_params=parameters)
