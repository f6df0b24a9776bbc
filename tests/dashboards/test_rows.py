"""What the pages make of the API's answers, before anything is drawn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import duckdb
from hypothesis import given as hypothesis_given
from hypothesis.strategies import text

from dashboards import agent_use, agents, endings, grants, moments, now, parts, reach, sql, statements, viewer
from dashboards.answers import (
    Agent,
    Attempt,
    CollectorHealth,
    GatewayHealth,
    Grant,
    Health,
    Kill,
    Moment,
    ProcessHealth,
    Rate,
    Recording,
    Rule,
    Scope,
    Session,
    SqlColumn,
    Statement,
    Touched,
)
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
    assert grants.scope_words(scope) == (
        "select on public.orders and public.customers",
        "insert, update and delete on every table of schema app",
        "call public.refresh",
        "listen and notify on done",
        "read the catalogs (pg_catalog, information_schema)",
    )


def test_an_empty_scope_says_that_it_allows_nothing() -> None:
    assert grants.scope_words(Scope(connection="shop")) == ("nothing",)


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
    assert grants.grant_state(grant, NOW) == "expired"
    assert grants.grant_state(grant, NOW - timedelta(seconds=1)) == "approved"


# -- endings ---------------------------------------------------------------------------------------------------------------------


def test_a_proven_end_shows_how_long_it_took() -> None:
    row = endings.killed_row(Kill("s1", "reporter", requested_at=NOW, backend_gone_at=NOW + timedelta(milliseconds=42)))
    assert row.cells[1] == Mark("gone", "good")
    assert row.cells[-1] == Number("+42.0 ms")


def test_an_end_shows_why_and_when_the_watchdog_had_to_do_it() -> None:
    assert endings.killed_row(Kill("s1", "a", "all revoked", ended_by="gateway")).cells[0] == Sql("s1", "all revoked", below=True)
    reaped = endings.killed_row(Kill("s1", "a", "gateway gone", ended_by="watchdog"))
    assert reaped.cells[0] == Sql("s1", "gateway gone, by the watchdog", below=True)


def test_an_end_without_proof_is_not_shown_as_gone() -> None:
    row = endings.killed_row(Kill("s1", "reporter", requested_at=NOW))
    assert row.cells[1] == Mark("no proof", "bad")
    assert row.cells[-1] == Number("–", "faint")


def test_a_session_that_must_end_shows_since_when() -> None:
    row = endings.ending_row(Session("s1", "reporter", opened_at=NOW), NOW)
    assert row.cells[1:3] == (Mark("ending", "warn"), Time(NOW, fine=True))


# -- the record ------------------------------------------------------------------------------------------------------------------


def test_a_log_that_takes_no_records_is_the_first_thing_said() -> None:
    log = Recording(available=False, since_at=NOW - timedelta(seconds=90), reason="No space left on device", refused=12)
    health = Health(problems=("gateway g cannot record, so it lets nothing through: No space left on device", "more"), log=log)
    first, second = reach.recording(health, NOW)
    assert first.tone == "bad"
    assert "Since 2026-07-30 14:00:37 UTC (1 min ago) the log takes no records (No space left on device)" in first.text
    assert "12 statements so far" in first.text
    assert (second.tone, second.text) == ("warn", "More.")
    assert now.recording_figure(health).value == "stopped"


def test_missing_frames_are_told_of() -> None:
    (banner,) = reach.recording(Health(log=Recording(available=True), gaps=2), NOW)
    assert banner.title == "The record has 2 gaps."


def test_a_whole_record_says_nothing() -> None:
    health = Health(log=Recording(available=True))
    assert reach.recording(health, NOW) == []
    assert now.recording_figure(health).value == "on"


def test_a_record_that_waits_for_the_brokers_says_how_much() -> None:
    few, much = (Health(log=Recording(available=True, backlog_bytes=size)) for size in (5_000, 300 * 2**20))
    assert now.recording_figure(few).value == "on"
    figure = now.recording_figure(much)
    assert (figure.value, figure.hint, figure.tone) == ("on disk", "314.6 MB wait for the brokers", "warn")


def test_without_a_gateway_nobody_claims_that_all_is_recorded() -> None:
    assert now.recording_figure(Health()).value == "unknown"


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


def test_rows_errors_and_refusals_are_all_counted_over_the_whole_hour() -> None:
    (row,) = now.rate_rows([rate("busy", 0, 5, denied=2), rate("busy", 59, 7, denied=1)], NOW)
    assert row.cells[-3:] == (Number("3", "bad"), Number("2", "warn"), Number("120"))


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
    assert statements.statement_row(statement()).cells[5] == Number("–", "faint")


def test_a_refused_statement_shows_why_first() -> None:
    refused = statement(decision="deny", outcome="denied", reason="Ask for a grant.")
    assert statements.result(refused) == Mark("refused", "bad")
    assert statements.statement_detail(refused).facts[0].cell == Text("Ask for a grant.", "bad")


def test_a_long_statement_is_cut_and_the_whole_is_a_press_away() -> None:
    detail = statements.statement_detail(statement(text="x" * 16_384, text_bytes=1_016_384))
    assert detail.note == "1.0 MB more are not shown here."
    assert statements.WHOLE in detail.actions


def test_a_statement_that_is_shown_whole_offers_no_more() -> None:
    detail = statements.statement_detail(statement(text="SELECT 'ä'", text_bytes=11))
    assert detail.note == ""
    assert detail.actions == (statements.TIMELINE, statements.ALONE)


def test_a_statement_whose_text_is_not_kept_shows_its_fingerprint() -> None:
    row = statements.statement_row(statement(text="", verbs=("SELECT",), fingerprint="a0b1c2d3e4f50617"))
    assert row.cells[3] == Text("SELECT (only its fingerprint a0b1c2d3e4f50617 is kept)", "faint")


def test_a_row_leads_back_to_its_session() -> None:
    assert statements.session_of(statements.statement_id(statement(session="a/b"))) == "a/b"
    assert isinstance(statements.statement_row(statement()).cells[3], Sql)


def test_refused_statements_and_connections_come_in_one_list_newest_first() -> None:
    attempt = Attempt(NOW + timedelta(seconds=1), claimed="ghost", reason="nobody of this name")
    rows = now.refusal_rows([statement(decision="deny", reason="Ask.")], [attempt])
    assert rows[0].cells[1] == Text("ghost (claimed)", "faint")
    assert rows[1].cells[1] == Text("reporter", "strong")


# -- timeline --------------------------------------------------------------------------------------------------------------------


def test_a_moment_stands_at_its_distance_from_the_opening() -> None:
    session = Session("s1", "reporter", opened_at=NOW)
    moment = Moment(NOW + timedelta(milliseconds=1500), "statement", "SELECT 1", 7, outcome="error", sqlstate="42P01")
    row = moments.moment_row(moment, session)
    assert row.cells[1] == Number("+1.50 s")
    assert row.cells[2] == Mark("error", "warn")
    assert row.cells[3] == Sql("SELECT 1", "42P01", below=True)
    assert statements.session_of(row.id) == "s1"


def test_what_happened_to_a_session_is_told_with_its_reason() -> None:
    session = Session("s1", "reporter", opened_at=NOW)
    row = moments.moment_row(Moment(NOW, "end ordered", "agent revoked", reason="reads payroll"), session)
    assert row.cells[2:4] == (Mark("end ordered", "warn"), Text("agent revoked: reads payroll", "faint"))
    assert row.detail is None


# -- SQL -------------------------------------------------------------------------------------------------------------------------


def test_a_value_of_an_answer_is_drawn_by_its_type() -> None:
    moment, text, whole = SqlColumn("at", "TIMESTAMP"), SqlColumn("text", "VARCHAR"), SqlColumn("n", "BIGINT")
    assert sql.cell(None, text) == Text("null", "faint")
    assert sql.cell("2026-07-30T14:02:07Z", moment) == Time(NOW, fine=True)
    assert sql.cell("2026-07-30T14:02:07", moment) == Time(NOW, fine=True)
    assert sql.cell("no time", moment) == Text("no time")
    assert sql.cell(1234567, whole) == Number("1,234,567")
    assert sql.cell(["a", 1, None], SqlColumn("list", "VARCHAR[]")) == Sql('["a",1,null]')
    assert not sql.numeric(SqlColumn("counts", "BIGINT[]"))


# -- use -------------------------------------------------------------------------------------------------------------------------


def test_what_is_granted_and_never_used_stands_apart_from_what_was_refused() -> None:
    scope = Scope("shop", (Rule("public", ("orders", "refunds"), ("select",)), Rule("app", ("*",), ("insert",))))
    granted = [
        Grant("g1", "reporter", scope, "approved"),
        Grant("g2", "reporter", Scope("shop", (Rule("old", ("t",), ("call",)),)), "revoked"),
    ]
    did = [
        Touched("public.orders", ("SELECT",), 7, 0, 70, last_at=NOW),
        Touched("app.log", ("INSERT",), 3),
        Touched("public.secrets", ("SELECT",), 0, 2),
    ]
    found = agent_use.uses(granted, did, NOW)
    assert sorted(found) == ["app.*", "app.log", "public.orders", "public.refunds", "public.secrets"]  # not what was revoked
    assert (found["app.*"].statements, found["app.log"].may) == (3, {"insert"})
    rows = {row.id: row for row in agent_use.rows(found)}
    assert next(iter(rows)) == "public.secrets"
    assert [rows[name].tone for name in ("public.secrets", "public.refunds", "public.orders", "app.*")] == ["bad", "warn", "", ""]


def test_a_table_that_a_statement_names_without_its_schema_is_the_one_that_is_granted() -> None:
    granted = [Grant("g1", "reporter", Scope("shop", (Rule("public", ("orders",), ("select",)),)), "approved")]
    did = [Touched("orders", ("SELECT",), 1), Touched("public.orders", ("SELECT",), 2), Touched("payroll", ("SELECT",), 0, 1)]
    found = agent_use.uses(granted, did, NOW)
    assert (found["public.orders"].statements, found["public.orders"].may) == (3, {"select"})
    assert sorted(found) == ["public.orders", "public.payroll"]  # the only schema that anything is in
    elsewhere = agent_use.uses(granted, [*did, Touched("app.orders", ("SELECT",), 1)], NOW)
    assert sorted(elsewhere) == ["app.orders", "orders", "payroll", "public.orders"]  # it could be either


# -- who may ---------------------------------------------------------------------------------------------------------------------


def test_a_role_may_what_the_narrower_ones_may_and_an_unknown_one_nothing() -> None:
    assert viewer.wide_enough("administrator", "responder")
    assert viewer.wide_enough("responder", "responder")
    assert not viewer.wide_enough("viewer", "responder")
    assert not viewer.wide_enough("emperor", "viewer")
    assert not viewer.wide_enough("", "viewer")


# -- exports ---------------------------------------------------------------------------------------------------------------------


@hypothesis_given(text())
def test_what_was_typed_is_a_literal_of_the_export_whatever_it_is(typed: str) -> None:
    (row,) = duckdb.connect().execute(f"select {statements.literal(typed)}").fetchall()
    assert row == (typed.replace("\0", ""),)


def test_an_export_asks_for_what_the_search_asked() -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "create table statements as select 'eraser' as agent, 'DELETE 1' as text, ['public.orders'] as relations, 'allow' as decision, "
            "null as outcome, 'night' as task, ['bob'] as approvers, timestamp '2026-07-30 14:00:00' as started_at"
        )
        fits = {
            "agent": "eraser",
            "text": "delete",
            "relation": "orders",
            "decision": "allow",
            "outcome": "running",
            "task": "night",
        }
        for given in ({}, fits, {"approver": "bob"}, {"relation": "public.orders"}, {"since_us": "0"}):
            assert len(connection.execute(statements.export_sql(given)).fetchall()) == 1, given
        for given in ({"agent": "' or true --"}, {"relation": "rder"}, {"approver": "carol"}, {"since_us": str(2**52)}):
            assert connection.execute(statements.export_sql(given)).fetchall() == [], given


# -- parts -----------------------------------------------------------------------------------------------------------------------


def test_a_part_that_is_not_well_comes_first_and_says_why() -> None:
    health = Health(
        gateways=(GatewayHealth("gateway-1"), GatewayHealth("gateway-2", log=Recording(available=False, reason="no space left"))),
        processes=(ProcessHealth("watchdog", "w-1"), ProcessHealth("worker", "w-2", up=False, reason="no answer")),
        collectors=(CollectorHealth("kernel", state="blind", reason="its server was replaced"),),
    )
    rows = parts.rows(health)
    assert [row.id for row in rows] == [
        "gateway/gateway-2",
        "worker/w-2",
        "collector/kernel",
        "gateway/gateway-1",
        "API/tables",
        "watchdog/w-1",
    ]
    assert rows[0].cells[2] == Text("no space left")
