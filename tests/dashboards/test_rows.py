"""What the pages make of the API's answers, before anything is drawn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dashboards import agents, now, statements
from dashboards.api_client import Agent, Grant, Rate, Rule, Scope, Session, Statement
from dashboards.ledger import Bars, Mark, Number, Sql, Text, Time

NOW = datetime(2026, 7, 30, 14, 2, 7, tzinfo=UTC)
MINUTE = NOW.replace(second=0)


def agent(name: str = "reporter", state: str = "active", seen: timedelta | None = timedelta(seconds=4)) -> Agent:
    return Agent(agent=name, state=state, last_seen_at=None if seen is None else NOW - seen)


# -- agents ----------------------------------------------------------------------------------------------------------------------


def test_a_scope_reads_as_sentences() -> None:
    scope = Scope(
        connection="shop",
        rules=(Rule("public", ("orders", "customers"), ("select",)), Rule("app", ("*",), ("insert", "update", "delete"))),
        functions=("public.refresh",),
        channels=("done",),
        introspection=True,
    )
    assert agents.scope_words(scope) == (
        "select on public.orders and public.customers",
        "insert, update and delete on every table of schema app",
        "call public.refresh",
        "listen and notify on done",
        "read the catalogs (pg_catalog, information_schema)",
    )


def test_an_empty_scope_says_that_it_allows_nothing() -> None:
    assert agents.scope_words(Scope(connection="shop")) == ("nothing",)


def test_an_agent_that_never_connected_is_marked() -> None:
    assert agents.last_seen(agent(seen=None), NOW) == Text(
        "never used", "warn", "It can connect and has never done so: is it needed?"
    )


def test_an_agent_that_is_long_unused_says_for_how_long() -> None:
    seen = agents.last_seen(agent(seen=timedelta(days=45)), NOW)
    assert isinstance(seen, Text)
    assert (seen.text, seen.tone) == ("unused for 45 days", "warn")


def test_an_agent_in_use_shows_when() -> None:
    assert agents.last_seen(agent(), NOW) == Time(NOW - timedelta(seconds=4))


def test_a_retired_agent_is_not_asked_about_though_it_is_long_unused() -> None:
    assert agents.last_seen(agent(state="retired", seen=timedelta(days=45)), NOW) == Time(NOW - timedelta(days=45))


def test_agents_that_can_act_come_first() -> None:
    listed = [agent("zeta"), agent("beta", "retired"), agent("gamma", "revoked"), agent("alpha")]
    assert [each.agent for each in agents.in_order(listed)] == ["alpha", "zeta", "gamma", "beta"]


def test_a_grant_whose_time_is_over_is_expired_whatever_its_state_says() -> None:
    grant = Grant("g1", "reporter", Scope("shop"), "approved", expires_at=NOW)
    assert agents.grant_state(grant, NOW) == "expired"
    assert agents.grant_state(grant, NOW - timedelta(seconds=1)) == "approved"


# -- endings ---------------------------------------------------------------------------------------------------------------------


def test_a_proven_end_shows_how_long_it_took() -> None:
    session = Session("s1", "reporter", closed_at=NOW, kill_requested_at=NOW, kill_backend_gone_at=NOW + timedelta(milliseconds=42))
    row = agents.ending_row(session)
    assert row.cells[1] == Mark("gone", "good")
    assert row.cells[-1] == Number("42.0 ms")


def test_an_end_without_proof_is_not_shown_as_gone() -> None:
    row = agents.ending_row(Session("s1", "reporter", closed_at=NOW, kill_requested_at=NOW))
    assert row.cells[1] == Mark("no proof", "bad")
    assert row.cells[-1] == Number("–")


def test_a_live_session_of_a_revoked_agent_is_ending() -> None:
    session = Session("s1", "reporter", opened_at=NOW)
    assert agents.ending(session, "revoked")
    assert not agents.ending(session, "active")
    assert agents.ending_row(session).cells[1] == Mark("ending", "warn")


# -- now -------------------------------------------------------------------------------------------------------------------------


def rate(name: str, minutes_ago: int, allowed: int, denied: int = 0) -> Rate:
    return Rate(MINUTE - timedelta(minutes=minutes_ago), name, statements=allowed, denied=denied, errors=1, rows=60)


def test_the_busiest_agent_comes_first_and_all_share_one_scale() -> None:
    rows = now.rate_rows([rate("quiet", 0, 3), rate("busy", 1, 40, denied=2)], NOW)
    assert [row.id for row in rows] == ["busy", "quiet"]
    bars = [row.cells[1] for row in rows]
    assert all(isinstance(bar, Bars) and bar.maximum == 42 for bar in bars)


def test_the_newest_minute_is_the_last_bar() -> None:
    bars = now.rate_rows([rate("busy", 0, 5), rate("busy", 59, 7), rate("busy", 60, 1000), rate("busy", -1, 1000)], NOW)[0].cells[1]
    assert isinstance(bars, Bars)
    assert (bars.values[-1], bars.values[0], sum(bars.values)) == (5, 7, 12)
    assert bars.titles[-1] == "14:02 UTC: 5 statements, 0 refused"


def test_a_refused_statement_counts_in_the_bar_and_in_its_red_part() -> None:
    bars = now.rate_rows([rate("busy", 0, 5, denied=2)], NOW)[0].cells[1]
    assert isinstance(bars, Bars)
    assert (bars.values[-1], bars.refused[-1]) == (7, 2)


# -- statements ------------------------------------------------------------------------------------------------------------------


def statement(**fields: object) -> Statement:
    known: dict[str, object] = {"started_at": NOW, "session": "s1", "agent": "reporter", "execution": 7, "text": "SELECT 1"}
    return Statement(**{**known, **fields})  # type: ignore[arg-type]


def test_a_statement_that_has_not_ended_is_running() -> None:
    assert statements.result(statement(decision="allow")) == Mark("running", "quiet")
    assert statements.statement_row(statement()).cells[5] == Number("–")


def test_a_refused_statement_shows_why_first() -> None:
    refused = statement(decision="deny", outcome="denied", reason="Ask for a grant.")
    assert statements.result(refused) == Mark("refused", "bad")
    assert statements.statement_detail(refused).facts[0].cell == Text("Ask for a grant.", "bad")


def test_a_long_statement_is_cut_and_says_so() -> None:
    detail = statements.statement_detail(statement(text="x" * 25_000))
    assert len(detail.text) == 20_000
    assert detail.note.startswith("5,000 more characters")


def test_a_statement_whose_text_is_not_kept_shows_its_fingerprint() -> None:
    row = statements.statement_row(statement(text="", verbs=("SELECT",), fingerprint="a0b1c2d3e4f50617"))
    assert row.cells[3] == Text("SELECT (only its fingerprint a0b1c2d3e4f50617 is kept)", "faint")


def test_a_row_leads_back_to_its_session() -> None:
    assert statements.session_of(statements.statement_id(statement(session="a/b"))) == "a/b"
    assert isinstance(statements.statement_row(statement()).cells[3], Sql)
