"""What came of a press: kept over the page's next run, and then shown once."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboards import ledger
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Banner

REASON_CHARACTERS_MAX: Final = 500
_NOTICE: Final = "notices.kept"


def keep(notice: Banner) -> None:
    st.session_state[_NOTICE] = notice


def failed(error: ApiTrouble) -> None:
    keep(Banner("bad", "That was not done.", f"{error} {error.remedy}".strip()))


def draw() -> None:
    notice = st.session_state.pop(_NOTICE, None)
    if isinstance(notice, Banner):
        ledger.banners([notice], key="notice")


def given(reason: str) -> bool:
    """Whether a reason was written; where not, it is asked for."""
    if not reason.strip():
        ledger.banners([Banner("warn", "Say why.", "Write a reason first: it is recorded with your name.")], key="say why")
    return bool(reason.strip())
