"""What an agent may do: its grants in words, and those that wait for a decision."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import streamlit as st

from dashboards import ledger, notices, reach, viewer
from dashboards.answers import Grant, Scope
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Banner, Column, Fact, Mark, Paragraph, Row, Text, Time, Tone
from dashboards.words import duration, listing

GRANT_COLUMNS: Final = (
    Column("It may"),
    Column("On", 76, title="The connection"),
    Column("State", 90),
    Column("Ends", 220),
    Column("Approved by", 96),
)


def grant_state(grant: Grant, now: datetime) -> str:
    over = grant.state == "approved" and grant.expires_at is not None and grant.expires_at <= now
    return "expired" if over else grant.state


def by_weight(grants: Sequence[Grant], now: datetime) -> list[Grant]:
    """What holds now first; what ended is history."""
    ranks = {"requested": 0, "approved": 1}
    return sorted(grants, key=lambda grant: (ranks.get(grant_state(grant, now), 2), grant.scope.connection, grant.grant))


def scope_words(scope: Scope) -> tuple[str, ...]:
    """`select from public.orders and public.customers`: one line a rule, then functions, channels and catalogs."""
    lines = []
    for rule in scope.rules:
        tables = [f"{rule.schema}.{table}" for table in rule.tables if table != "*"]
        if "*" in rule.tables:
            tables = [f"every table of schema {rule.schema}"]
        lines.append(f"{listing(rule.operations)} on {listing(tables)}")
    if scope.functions:
        lines.append(f"call {listing(scope.functions)}")
    if scope.channels:
        lines.append(f"listen and notify on {listing(scope.channels)}")
    if scope.introspection:
        lines.append("read the catalogs (pg_catalog, information_schema)")
    return tuple(lines) or ("nothing",)


def grant_row(grant: Grant, now: datetime) -> Row:
    state = grant_state(grant, now)
    tones: dict[str, Tone] = {"approved": "good", "requested": "warn"}
    reason = f"Reason: {grant.reason}" if grant.reason else "No reason given"
    return Row(
        id=grant.grant,
        cells=(
            Paragraph((*scope_words(grant.scope), f"{reason} (asked by {grant.requested_by or 'nobody named'})")),
            Text(grant.scope.connection),
            Mark("in force" if state == "approved" else state, tones.get(state, "quiet")),
            Time(grant.expires_at, none="when revoked" if state == "approved" else "–"),
            Text(grant.approver or "–"),
        ),
    )


def pending(grants: Sequence[Grant]) -> None:
    for grant in grants:
        with st.container(border=True, key=f"pending-{grants.index(grant)}"):
            life = f"for {duration(grant.seconds * 1_000_000)} from approval" if grant.seconds else "until it is revoked"
            ledger.facts(
                [
                    Fact("Asks to", Paragraph(scope_words(grant.scope))),
                    Fact("On", Text(grant.scope.connection)),
                    Fact("For", Text(life)),
                    Fact("Reason", Text(grant.reason or "none given", "" if grant.reason else "warn")),
                    Fact("Asked by", Text(grant.requested_by)),
                ],
                key=f"asked {grant.grant}",
                title="Asks for a grant",
            )
            if not viewer.may("administrator"):
                st.caption("An administrator approves or denies it.")
                continue
            with st.container(horizontal=True, vertical_alignment="bottom"):
                if st.button("Approve", key=f"approve {grant.grant}", type="primary"):
                    _decide(grant, approve=True, reason="")
                reason = st.text_input(
                    "Reason for a denial",
                    key=f"denial {grant.grant}",
                    max_chars=notices.REASON_CHARACTERS_MAX,
                    label_visibility="collapsed",
                    placeholder="Reason for a denial",
                )
                if st.button("Deny", key=f"deny {grant.grant}"):
                    _decide(grant, approve=False, reason=reason)


def _decide(grant: Grant, *, approve: bool, reason: str) -> None:
    if not approve and not reason.strip():
        ledger.banners(
            [Banner("warn", "Say why.", "A denial is recorded with its reason; the one who asked will read it.")], key="say why"
        )
        return
    # one command a grant: a grant is decided once, so its own name makes a repeated press harmless
    try:
        if approve:
            reach.client().approve(grant.grant, f"dashboard-approve-{grant.grant}"[:128])
        else:
            reach.client().deny(grant.grant, reason.strip(), f"dashboard-deny-{grant.grant}"[:128])
        reach.shown(lambda: all(other.grant != grant.grant or other.state != "requested" for other in reach.client().grants()))
    except ApiTrouble as error:
        notices.failed(error)
    else:
        notices.keep(Banner("good", "Approved." if approve else "Denied.", "Recorded under your name."))
    st.rerun()
