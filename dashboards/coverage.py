"""Page "Coverage": what the collectors saw of the databases, what they did not, and what was found beside the gateway's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Final

import streamlit as st

from dashboards import filters, ledger, links, reach
from dashboards.answers import Coverage, ObservationGap, Observed, Source, TopicPlace, Witness
from dashboards.api_client import ApiRefused, ApiTrouble
from dashboards.ledger import Banner, Column, Detail, Fact, Figure, Lines, Mark, Mono, Number, Row, Text, Time, Tone
from dashboards.settings import DEFAULTS
from dashboards.words import duration, listing, number, plural

WITNESS_TONES: Final[dict[str, Tone]] = {"seeing": "good", "blind": "bad", "silent": "bad", "starting": "quiet", "stopped": "quiet"}
VERDICT_TONES: Final[dict[str, Tone]] = {
    "audited": "good",
    "ours": "quiet",
    "declared": "quiet",
    "pending": "quiet",
    "shadow": "bad",
    "hijacked": "bad",
    "unexplained": "warn",
}
VERDICTS: Final = ("any", *VERDICT_TONES)
GAPS_MAX: Final = 50
_FRESH: Final = "coverage.fresh"


def page() -> None:
    ledger.heading(
        "Coverage", key="page", below="A second witness beside the gateway: what the databases really ran, and who went round it."
    )
    sources = reach.ask(reach.client().sources)
    _live()
    _observed()
    _sources(sources)
    _log()


# -- collectors and the log ------------------------------------------------------------------------------------------------------

WITNESS_COLUMNS: Final = (
    Column("Collector"),
    Column("State", 96),
    Column("Complete up to", 160, title="All that ended on the server before this has been recorded"),
    Column("Last canary", 160, title="A statement of our own that it must see, once a minute"),
    Column("Observed", 84, "right"),
    Column("Lost", 60, "right"),
    Column("Lag", 76, "right", "Of its last observation"),
)
TOPIC_COLUMNS: Final = (
    Column("Topic"),
    Column("Partition", 76, "right"),
    Column("Log", 110, "right", "The next record to be written"),
    Column("Tables", 110, "right", "The next record to be read into the tables"),
    Column("Behind", 84, "right"),
)
GAP_COLUMNS: Final = (
    Column("What was not seen"),
    Column("From", 160),
    Column("To", 160),
    Column("Lost", 60, "right"),
)


@st.fragment(run_every=DEFAULTS.refresh_seconds)
def _live() -> None:
    api = reach.client()
    try:
        missed = reach.ask(api.observation_gaps, GAPS_MAX)
        unknown = reach.ask(api.observed, {"verdict": "shadow"}, GAPS_MAX)
        coverage = api.coverage()
        gaps, shadows = missed.result(), unknown.result().items
    except ApiTrouble as error:
        reach.trouble(error, "coverage")
        return
    st.session_state[_FRESH] = coverage.topics
    ledger.strip(figures(coverage, gaps, shadows), key="figures")
    if coverage.reconciliation:
        ledger.strip(compared(coverage.reconciliation), key="compared")
    ledger.table(
        WITNESS_COLUMNS,
        [witness_row(witness) for witness in coverage.items],
        key="witnesses",
        title="Collectors",
        empty="No collector has reported. Write [collectors.NAME] into the configuration and start `pgwarden collector`; "
        "`pgwarden doctor` says which can run here.",
    )
    ledger.table(
        GAP_COLUMNS,
        [gap_row(place, gap) for place, gap in enumerate(gaps)],
        key="gaps",
        title="Gaps and blindness",
        empty="Nothing was missed.",
        height_pixels=280,
    )


@st.fragment(run_every=DEFAULTS.refresh_seconds)
def _log() -> None:
    fresh = st.session_state.pop(_FRESH, None)  # the collectors' part has just asked for the same
    try:
        topics = reach.client().coverage().topics if fresh is None else fresh
    except ApiTrouble as error:
        reach.trouble(error, "log")
        return
    ledger.table(
        TOPIC_COLUMNS,
        [topic_row(place) for place in topics],
        key="topics",
        title="The log, and how far the tables are in it",
        empty="The API does not say yet.",
    )


def figures(coverage: Coverage, gaps: Sequence[ObservationGap], shadows: Sequence[Observed]) -> list[Figure]:
    seeing = sum(witness.state == "seeing" for witness in coverage.items)
    dark = [witness for witness in coverage.items if witness.state in ("blind", "silent")]
    lost = sum(gap.lost for gap in gaps)
    behind = sum(place.behind for place in coverage.topics)
    going_on = sum(shadow.ended_at is None for shadow in shadows)
    return [
        Figure(
            "Collectors seeing",
            number(seeing),
            hint=f"of {plural(len(coverage.items), 'collector')}",
            tone="good" if seeing else "",
        ),
        Figure("Blind or silent", number(len(dark)), hint=dark[0].reason if dark else "none", tone="bad" if dark else ""),
        Figure("Gaps", number(len(gaps)), hint=f"{plural(lost, 'observation')} lost", tone="warn" if gaps else ""),
        Figure(
            "Round the gateway", number(len(shadows)), hint=f"{number(going_on)} of them open now", tone="bad" if shadows else ""
        ),
        Figure("Tables behind", number(behind), "records", hint="of the log", tone="warn" if behind > 10_000 else ""),
    ]


def compared(said: Mapping[str, int]) -> list[Figure]:
    """What the gateways' record and the collectors' came to when they were laid side by side."""
    differences = sum(said.get(kind, 0) for kind in ("unaudited", "phantom", "miscounted"))
    beyond, reached = said.get("statements_beyond_the_limit", 0), said.get("waiting_limit_reached", 0)
    return [
        Figure("Statements matched", number(said.get("statements_matched", 0)), hint="record and server agree on what ran"),
        Figure("Differences", number(differences), hint="each is a finding", tone="bad" if differences else ""),
        Figure("Waiting", number(said.get("statements_waiting", 0)), hint="for the other side's word"),
        Figure("Sessions pending", number(said.get("sessions_pending", 0)), hint="without a verdict yet"),
        Figure(
            "Beyond a limit",
            number(beyond),
            hint=f"not compared; the limit of all was reached {plural(reached, 'time')}",
            tone="warn" if beyond else "",
        ),
    ]


def witness_row(witness: Witness) -> Row:
    what = f"{witness.kind} on {witness.server}, sees {witness.sees or 'nothing yet'}"
    return Row(
        id=f"{witness.server}/{witness.witness}",
        cells=(
            Lines(witness.witness, f"{what} · {witness.reason}" if witness.reason else what),
            Mark(witness.state, WITNESS_TONES.get(witness.state, "quiet")),
            Time(witness.complete_at),
            Time(witness.canary_at, none="none yet"),
            Number(number(witness.observed)),
            Number(number(witness.lost), "bad" if witness.lost else "faint"),
            Number(duration(max(0, witness.lag_us)), "faint"),
        ),
        tone="bad" if witness.state in ("blind", "silent") else "",
    )


def gap_row(place: int, gap: ObservationGap) -> Row:
    where = f"{gap.witness} on {gap.server}{f', session {gap.session_id}' if gap.session_id else ''}"
    return Row(
        id=str(place),
        cells=(
            Lines(f"{gap.kind}: {gap.reason or 'no reason given'}", where),
            Time(gap.from_at),
            Time(gap.until_at, none="still"),
            Number(number(gap.lost), "bad" if gap.lost else "faint"),
        ),
        tone="bad" if gap.until_at is None and gap.kind == "blind" else "",
    )


def topic_row(place: TopicPlace) -> Row:
    return Row(
        id=f"{place.topic}/{place.partition}",
        cells=(
            Text(place.topic, "strong"),
            Number(number(place.partition)),
            Number(number(place.log_offset)),
            Number(number(place.table_offset)),
            Number(number(place.behind), "warn" if place.behind > 1000 else "faint"),
        ),
    )


# -- what the collectors saw -----------------------------------------------------------------------------------------------------

OBSERVED_COLUMNS: Final = (
    Column("Verdict", 116),
    Column("Who, and from where"),
    Column("Agent or source", 150),
    Column("Began", 160),
    Column("Ended", 160),
)


def _observed() -> None:
    with st.container(key="filters"):
        columns = st.columns([1, 1.4, 1.4, 1.2], gap="small")
        verdict = columns[0].selectbox("Verdict", VERDICTS, key="verdict", bind="query-params", on_change=filters.first_page)
        agent = filters.text(columns[1], "Agent", "agent", placeholder="its whole name")
        user = filters.text(columns[2], "Database role", "user")
        since = filters.since(columns[3], 2)
    asked = {"verdict": "" if verdict == "any" else verdict, "agent": agent, "user_name": user, "since_us": since}
    before = st.query_params.get("before", "")
    try:
        given = {name: value for name, value in asked.items() if value}
        found = reach.client().observed(given, reach.chosen().page_rows, before)
    except ApiRefused as error:
        ledger.banners([Banner("warn", "The API refused this search.", str(error))], key="refused")
        return
    except ApiTrouble as error:
        reach.trouble(error, "observed")
        return
    pressed = ledger.table(
        OBSERVED_COLUMNS,
        [observed_row(observed) for observed in found.items],
        key="observed",
        title="Sessions on the servers",
        empty="No collector saw a session that fits.",
    )
    if pressed is not None:
        session = next(each.session for each in found.items if observed_id(each) == pressed.id)
        links.to_session(session)
    filters.paging(found.next, before, len(found.items))


def observed_id(observed: Observed) -> str:
    return f"{observed.server}/{observed.session_id}"


def observed_row(observed: Observed) -> Row:
    process = f"{observed.client_exe} (process {observed.client_pid})" if observed.client_pid else observed.application_name
    tone = VERDICT_TONES.get(observed.verdict, "quiet")
    return Row(
        id=observed_id(observed),
        cells=(
            Mark(observed.verdict, tone),
            Lines(
                f"{observed.user_name or '–'} from {observed.client or 'the server itself'}",
                process or observed.verdict_reason or "–",
            ),
            Text(observed.agent or observed.source or "–"),
            Time(observed.began_at),
            Time(observed.ended_at, none="open"),
        ),
        detail=Detail(
            facts=(
                Fact("Why", Text(observed.verdict_reason or "–", "bad" if tone == "bad" else "")),
                Fact("Server", Text(observed.server)),
                Fact("Database", Text(observed.database or "–")),
                Fact("Server's session", Mono(observed.session_id)),
                Fact("Backend process", Text(str(observed.backend_pid) if observed.backend_pid else "–")),
                Fact("Gateway's session", Mono(observed.session or "none")),
                Fact("Seen by", Text(listing(observed.witnesses) or "–")),
                Fact("Application", Text(observed.application_name or "–")),
                Fact("Program", Mono(observed.client_exe or "–")),
                Fact("Its user id", Text(str(observed.client_uid) if observed.client_uid >= 0 else "–")),
                Fact("Its cgroup", Mono(observed.client_cgroup_path or "–")),
                Fact("End requested", Time(observed.kill_requested_at, fine=True)),
                Fact("Backend gone", Time(observed.backend_gone_at, fine=True)),
            ),
            actions=(("session", "The gateway's session"),) if observed.session else (),
        ),
        tone=tone if tone in ("bad", "warn") else "",
    )


# -- declared sources ------------------------------------------------------------------------------------------------------------

SOURCE_COLUMNS: Final = (
    Column("Source"),
    Column("State", 100),
    Column("Roles", 160),
    Column("From", 220),
    Column("Declared", 160),
)


def _sources(asked: Future[tuple[Source, ...]]) -> None:
    try:
        sources = asked.result()
    except ApiTrouble as error:
        reach.trouble(error, "sources")
        return
    ledger.table(
        SOURCE_COLUMNS,
        [source_row(source) for source in sources],
        key="sources",
        title="Declared sources: what may go round the gateway",
        empty="Nothing may go round the gateway. Declare backups, replication and monitoring with POST /v1/sources.",
    )


def source_row(source: Source) -> Row:
    return Row(
        id=source.source,
        cells=(
            Lines(source.source, f"{source.kind} · {source.reason}"),
            Mark(source.state, "good" if source.state == "declared" else "quiet"),
            Text(listing(source.roles) or "–"),
            Mono(source.executable or source.client or "–"),
            Time(source.declared_at),
        ),
    )
