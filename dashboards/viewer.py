"""Who looks, and what the API lets them do: what they may not is not offered, and would be refused all the same."""

from __future__ import annotations

import time
from typing import Final

import streamlit as st

from dashboards import reach
from dashboards.answers import Me
from dashboards.api_client import ApiTrouble

ROLES: Final = ("viewer", "responder", "administrator")  # each may all that those before it may
KNOWN_SECONDS: Final = 30.0  # for so long an answer stands; a role that was taken away is refused by the API at once
_KNOWN: Final = "viewer.known"


def me() -> Me | None:
    """Whom the API takes this viewer for; None while it does not say."""
    kept = st.session_state.get(_KNOWN)
    if isinstance(kept, tuple) and time.monotonic() - kept[0] < KNOWN_SECONDS and isinstance(kept[1], Me):
        return kept[1]
    try:
        found = reach.client().me()
    except ApiTrouble:
        return None
    st.session_state[_KNOWN] = (time.monotonic(), found)
    return found


def may(role: str) -> bool:
    """Whether this viewer has `role`, or a wider one."""
    found = me()
    return found is not None and wide_enough(found.role, role)


def wide_enough(has: str, wants: str) -> bool:
    return has in ROLES and ROLES.index(has) >= ROLES.index(wants)
