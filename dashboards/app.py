"""What Streamlit runs for each viewer, started by serve.py as launch.py says: pages over one API."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards import admission, agents, coverage, findings, foot, ledger, now, reach, sessions, sign_in, sql, statements
from dashboards.settings import SettingsRefused

FOLDER = Path(__file__).parent

st.set_page_config(page_title="pgwarden", page_icon=FOLDER / "mark.svg", layout="wide")
st.logo(FOLDER / "wordmark.svg", size="large")
st.html(FOLDER / "style.css")

pages = {
    "now": st.Page(now.page, title="Now", url_path="now", default=True),
    "agents": st.Page(agents.page, title="Agents", url_path="agents"),
    "sessions": st.Page(sessions.page, title="Sessions", url_path="sessions"),
    "statements": st.Page(statements.page, title="Statements", url_path="statements"),
    "findings": st.Page(findings.page, title="Findings", url_path="findings"),
    "coverage": st.Page(coverage.page, title="Coverage", url_path="coverage"),
    "sql": st.Page(sql.page, title="SQL", url_path="sql"),
}
st.session_state["pages"] = pages
chosen = st.navigation(list(pages.values()), position="top")
try:
    provider = reach.chosen().sign_in
    admitted = sign_in.admitted(provider) if provider else admission.admitted(reach.chosen())
except SettingsRefused as error:
    ledger.banners([ledger.Banner("bad", "The dashboard cannot start.", str(error))], key="settings")
else:
    if admitted:
        reach.watch(chosen.url_path)
        chosen.run()
        foot.draw()
