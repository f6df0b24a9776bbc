"""Two pages with a word each: what Streamlit itself takes, whatever is drawn with it."""

from __future__ import annotations

import streamlit as st


def one() -> None:
    st.text("one", width="content")


def other() -> None:
    st.text("other", width="content")


st.set_page_config(page_title="empty", layout="wide")
st.navigation([st.Page(one, url_path="one", default=True), st.Page(other, url_path="other")], position="top").run()
