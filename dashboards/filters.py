"""Filters that stand in the page's address, so that a search can be sent to a colleague, and pages of what they found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboards.words import number

SPANS: Final[dict[str, timedelta | None]] = {
    "15 minutes": timedelta(minutes=15),
    "1 hour": timedelta(hours=1),
    "1 day": timedelta(days=1),
    "7 days": timedelta(days=7),
    "30 days": timedelta(days=30),
    "all time": None,
}


def text(place: DeltaGenerator, label: str, key: str, *, placeholder: str = "", characters_max: int = 200) -> str:
    typed = place.text_input(
        label, key=key, bind="query-params", max_chars=characters_max, placeholder=placeholder, on_change=first_page
    )
    return (typed or "").strip()


def since(place: DeltaGenerator, index: int) -> str:
    """The beginning of the time that is looked at, in microseconds since 1970; "" for all of it."""
    span = place.selectbox("Within the last", tuple(SPANS), index=index, key="span", bind="query-params", on_change=first_page)
    length = SPANS[span]
    return "" if length is None else str(int((datetime.now(UTC) - length).timestamp() * 1_000_000))


def first_page() -> None:
    """Another search starts at its newest entry."""
    st.query_params.pop("before", None)


def paging(following: str | None, before: str, shown: int, hint: str = "") -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="paging"):
        if st.button("Newest", key="newest"):
            first_page()
            st.rerun()
        if st.button("Older", disabled=not following, key="older"):
            st.query_params["before"] = following or ""
            st.rerun()
        st.caption(f"{number(shown)} shown, newest first. {hint}".strip())
