"""What stands below every page: who looks, and in which zone times are told."""

from __future__ import annotations

import streamlit as st

from dashboards import ledger


def draw() -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="foot"):
        st.toggle("Times in UTC", key=ledger.UTC_WANTED, help="Otherwise in the zone of this browser")
