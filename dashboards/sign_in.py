"""In comes a browser; out comes whether a person is signed in, by the OIDC provider that the configuration names.

Streamlit speaks with the provider and keeps what came of it in signed cookies that no script can read. The person's access token
goes with each request to the API, which alone decides what they may: nothing is believed here.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboards import ledger

_mount = st.components.v2.component(
    "pgwarden_sign_in", js=Path(__file__).with_name("sign_in.js").read_text("utf-8"), isolate_styles=True
)


def admitted(provider: str) -> bool:
    """Whether somebody is signed in. Where nobody is, the way to do so is drawn; it leads back to the page that was wanted."""
    signed_in = bool(token())
    _mount(key="sign in", data={"signed_in": signed_in})
    if signed_in:
        return True
    ledger.heading("Sign in", key="page", below="What agents did is for people of your organization who may see it.")
    if st.button("Sign in", key="go", type="primary"):
        st.login(provider)
    return False


def token() -> str:
    """The access token of the person at this browser; "" where nobody is signed in."""
    if not st.user.get("is_logged_in", False):
        return ""
    return st.user.tokens.get("access", "")


def again(provider: str, key: str) -> None:
    """For a sign-in that has run out: a press, and the provider, which mostly still knows the person, leads back here."""
    with st.container(horizontal=True, key=f"again {key}"):
        if st.button("Sign in again", key=f"again button {key}", type="primary"):
            st.login(provider)
        if st.button("Sign out", key=f"out {key}"):
            st.logout()
