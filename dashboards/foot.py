"""What stands below every page: who looks, and in which zone times are told."""

from __future__ import annotations

import streamlit as st

from dashboards import ledger, reach, viewer
from dashboards.ledger import Fact, Text


def draw() -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="foot"):
        st.toggle("Times in UTC", key=ledger.UTC_WANTED, help="Otherwise in the zone of this browser")
        found = viewer.me()
        if found is not None:
            ledger.facts([Fact("You are", Text(f"{found.name or found.operator}, {found.role}"))], key="who")
        if reach.chosen().sign_in and st.button("Sign out", key="sign out", type="tertiary"):
            st.logout()
