"""Where a thing of the record has its page: an address that can be sent to a colleague."""

from __future__ import annotations

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx


def to_session(session: str) -> None:
    _to("sessions", session=session)


def to_statement(session: str, execution: int) -> None:
    _to("statements", session=session, execution=str(execution))


def to_agent(agent: str) -> None:
    _to("agents", agent=agent)


def to_finding(finding: str) -> None:
    _to("findings", finding=finding)


def _to(page: str, **parameters: str) -> None:
    """Ends this run of the script.

    A part that draws itself anew may have asked for that a moment before the browser hears that its page is left. Streamlit 1.67
    runs it once the new page is drawn, under the page that was left, upon which the browser empties the new one. So the parts are
    forgotten first, and what asks for one of them is then not heard; `reach.watch`, which is on every page, has a name on each.
    """
    context = get_script_run_ctx()
    if context is not None:
        context.fragment_storage.clear()
    st.switch_page(st.session_state["pages"][page], query_params=parameters)
