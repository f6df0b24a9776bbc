"""In comes a browser; out comes whether it may see anything.

The dashboard acts with an operator's key. Whatever else runs on this machine, an agent first of all, can open its port too, and
could approve what it asked for: so a browser shows a word that only the operator can read.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

import streamlit as st

from dashboards import ledger
from dashboards.ledger import Banner
from dashboards.settings import ACCESS_FILE_VARIABLE, Settings, access_word

_ADMITTED: Final = "admission.admitted"
_mount = st.components.v2.component(
    "pgwarden_admission", js=Path(__file__).with_name("admission.js").read_text("utf-8"), isolate_styles=True
)


def admitted(settings: Settings) -> bool:
    """Whether this browser has shown the word. Where it has not, the way in is drawn.

    Raises:
        SettingsRefused: The word cannot be read.
    """
    if settings.access_file is None or st.session_state.get(_ADMITTED, False):
        return True
    word = access_word(settings.access_file)
    kept = st.session_state.get("admission", {}).get("word")
    shown = kept if isinstance(kept, str) else None
    typed = str(st.session_state.get("typed word", ""))
    if any(matches(candidate, word) for candidate in (shown, typed)):
        st.session_state[_ADMITTED] = True
        if matches(typed, word):
            _ask(shown=shown, typed=typed)  # the browser keeps what was typed right, for the next time
        return True
    _ask(shown=shown, typed="")
    if shown is not None:
        _explain(wrong=bool(shown or typed))
    return False


def matches(candidate: object, word: str) -> bool:
    return isinstance(candidate, str) and hmac.compare_digest(candidate.encode("utf-8", "replace"), word.encode())


def _ask(shown: str | None, typed: str) -> None:
    _mount(key="admission", data={"shown": shown, "typed": typed}, default={"word": None}, on_word_change=_nothing)


def _nothing() -> None:
    """A state needs a callback to be declared; its value is read from the session."""


def _explain(*, wrong: bool) -> None:
    ledger.banners(
        [
            Banner(
                "warn",
                "That access word is not right." if wrong else "This browser is not known here.",
                f"Open the address that pgwarden printed when the dashboard started, or type the word that stands in the file "
                f"named by {ACCESS_FILE_VARIABLE}.",
            )
        ],
        key="explain",
    )
    st.text_input("Access word", type="password", key="typed word", autocomplete="off", width=460)
