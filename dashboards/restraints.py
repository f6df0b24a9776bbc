"""What holds an agent back short of a revocation: since when, by which finding, and the way to take it back."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboards import ledger, links, notices, reach, viewer
from dashboards.answers import Restraint
from dashboards.api_client import ApiTrouble, request_key
from dashboards.ledger import Banner, Fact, Mark, Mono, Text, Time
from dashboards.words import number


def draw(restraints: Sequence[Restraint]) -> None:
    """Of one agent: it is held, throttled, both, or neither."""
    for restraint in restraints:
        kind = name(restraint)
        with st.container(border=True, key=f"restraint-{kind}"):
            ledger.facts(facts(restraint), key=f"{kind} facts", wide=True)
            with st.container(horizontal=True, vertical_alignment="bottom"):
                if viewer.may("responder"):
                    said = st.text_input(
                        "Why may it go on as before?",
                        key=f"{kind} note {restraint.agent}",
                        max_chars=notices.REASON_CHARACTERS_MAX,
                        placeholder="It is recorded; it may be left out",
                    )
                    if st.button("Release" if kind == "held" else "Take the throttle back", key=f"{kind} release"):
                        _take_back(restraint, said.strip())
                else:
                    st.caption("A responder or an administrator takes this back.")
                if restraint.finding and st.button("The finding", key=f"{kind} finding"):
                    links.to_finding(restraint.finding)


def name(restraint: Restraint) -> str:
    return "throttled" if restraint.per_minute else "held"


def facts(restraint: Restraint) -> list[Fact]:
    what = (
        f"its statements are evenly spaced, {number(restraint.per_minute)} a minute at each gateway, and wait for their turn"
        if restraint.per_minute
        else "each of its statements is refused until it is released; what runs goes on, and its sessions stay"
    )
    return [
        Fact("Held back", Mark(name(restraint), "warn")),
        Fact("So", Text(what)),
        Fact("Since", Time(restraint.since_at)),
        Fact("By", Text(restraint.operator or "–")),
        Fact("Reason", Text(restraint.reason or "–")),
        Fact("Finding", Mono(restraint.finding or "none")),
    ]


def _take_back(restraint: Restraint, reason: str) -> None:
    api = reach.client()
    try:
        if restraint.per_minute:
            api.unthrottle(restraint.agent, reason, request_key())
        else:
            api.release(restraint.agent, reason, request_key())
    except ApiTrouble as error:
        notices.failed(error)
    else:
        notices.keep(Banner("good", "It may go on.", "Recorded under your name."))
    st.rerun()
