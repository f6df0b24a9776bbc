"""The API as every page reaches it: one client for the process, and the banner for when there is nothing to trust on the screen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final, ParamSpec, TypeVar

import streamlit as st

from dashboards import ledger, sign_in
from dashboards.answers import Health
from dashboards.api_client import ApiTrouble, ApiUnreachable, Client, SignInOver
from dashboards.ledger import Banner
from dashboards.settings import DEFAULTS, Settings, settings
from dashboards.words import ago, plural, utc

HEALTH_SECONDS: Final = 1.0  # half a refresh: the banner and page Now ask for it in one breath
_SHOWN: Final = "reach.shown"  # the sentence of the outage that the banner shows, "" when there is none
_HEALTH: Final = "reach.health"
_AGAIN: Final = "reach.again"  # whether a part of the page is drawn without its answer

P = ParamSpec("P")
T = TypeVar("T")


@st.cache_resource(show_spinner=False)
def chosen() -> Settings:
    """Raises:
    SettingsRefused: The environment does not say how to reach the API.
    """
    return settings(os.environ)


@st.cache_resource(show_spinner=False)
def _connections() -> Client:
    return Client(chosen())


@st.cache_resource(show_spinner=False)
def _questions() -> ThreadPoolExecutor:
    # As many as the client has connections. What waits has an end: a page asks at most eight at once, and waits for them.
    return ThreadPoolExecutor(16, thread_name_prefix="question")


def ask(question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """An answer to come: the questions of a page are under way together. Its `result()` raises what the question raises.

    `question` is a method of `client()`, which the page's own thread has got: no other knows who looks.
    """
    return _questions().submit(question, *args, **kwargs)


def health() -> Health:
    """At most HEALTH_SECONDS old."""
    kept = st.session_state.get(_HEALTH)
    if isinstance(kept, tuple) and time.monotonic() - kept[0] < HEALTH_SECONDS and isinstance(kept[1], Health):
        return kept[1]
    found = client().health()
    st.session_state[_HEALTH] = (time.monotonic(), found)
    return found


def client() -> Client:
    """The API, asked as whoever looks: by their own token where people sign in, else by the operator key."""
    return _connections().of_person(sign_in.token()) if chosen().sign_in else _connections()


def watch(page: str) -> None:
    """The banner at the head of every page. When the API comes back, the page below is drawn anew."""

    def drawn() -> None:
        _watch()

    drawn.__qualname__ = f"watch.{page}"  # by which Streamlit knows a fragment: links.py says why it differs from page to page
    st.fragment(drawn, run_every=DEFAULTS.refresh_seconds)()


def _watch() -> None:
    before = st.session_state.get(_SHOWN, "")
    try:
        found = health()
    except ApiTrouble as error:
        st.session_state[_SHOWN] = str(error)
        ledger.banners([Banner("bad", str(error), error.remedy)], key="watch")
        if isinstance(error, SignInOver):
            sign_in.again(chosen().sign_in, "watch")
        return
    st.session_state[_SHOWN] = ""
    ledger.banners(recording(found, datetime.now(UTC)), key="watch")
    if st.session_state.pop(_AGAIN, False) or before:
        st.rerun()


def shown(met: Callable[[], bool]) -> None:
    """Wait until the answers show what was just recorded, or for as long as that may take: the tables follow the log."""
    until = time.monotonic() + chosen().follow_seconds_max
    while not met() and time.monotonic() < until:
        time.sleep(0.05)


def trouble(error: ApiTrouble, key: str) -> None:
    """Say what a page could not get, unless the banner above says the same. What did not come is asked for again: the banner's next
    look draws the page anew."""
    if isinstance(error, ApiUnreachable):
        st.session_state[_AGAIN] = True
    if st.session_state.get(_SHOWN, "") != str(error):
        ledger.banners([Banner("bad", str(error), error.remedy)], key=f"trouble.{key}")


def recording(health: Health, now: datetime) -> list[Banner]:
    """What must be known about the record before anything below it is believed."""
    banners: list[Banner] = []
    stopped = health.log is not None and not health.log.available
    if health.log is not None and stopped:
        since = f"Since {utc(health.log.since_at)} ({ago(health.log.since_at, now)}) " if health.log.since_at else "Now "
        refused = f"{plural(health.log.refused, 'statement')} so far. " if health.log.refused else ""
        banners.append(
            Banner(
                "bad",
                "Nothing can be recorded, so nothing is let through.",
                f"{since}the log takes no records ({health.log.reason or 'no reason given'}); every statement is refused. {refused}"
                "Make room or repair the disk that holds the log; pgwarden goes on by itself.",
            )
        )
    # The first problem of a stopped recording is told above, in more words.
    others = [problem for problem in health.problems if not (stopped and "cannot record" in problem)]
    banners += [Banner("warn", "Not all is well.", f"{problem[:1].upper()}{problem[1:].rstrip('.')}.") for problem in others]
    if health.gaps:
        banners.append(
            Banner(
                "warn",
                f"The record has {plural(health.gaps, 'gap')}.",
                'Frames that were written are missing from the log. `pgwarden sql "select * from recording_gaps"` says which: '
                "find out who could change the log's files, and compare with a copy.",
            )
        )
    return banners
