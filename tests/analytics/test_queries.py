from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from analytics.queries import QUESTIONS, Given, Order, Queries, Question, QuestionFailed, QuestionInvalid, _asked, described
from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from bench import history
from ingest.events import AgentRevoked, RecordingStopped
from ingest.log.segments import SegmentLog
from tests.analytics.scenario import MINUTE, OBSERVED, START_US, Writer

NOW_US = START_US + 10 * MINUTE
REQUIRED: Given = {
    "finding": "f-1",
    "session": "s1",
    "execution": 1,
    "relation": "orders",
    "agent": "reporter",
    "session_id": OBSERVED,
}


@pytest.fixture
def queries(store: Store, told: AnalyticsSettings) -> Iterator[Queries]:
    queries = Queries(store, told, lambda: NOW_US)
    yield queries
    queries.close()


async def column(queries: Queries, question: str, name: str, **given: str | int) -> list[object]:
    return [item[name] for item in (await queries.ask(question, given)).items]


def required(question: str) -> dict[str, str | int | bool]:
    return {p.name: REQUIRED[p.name] for p in QUESTIONS[question].parameters if p.required}


# -- each question ---------------------------------------------------------------------------------------------------------------


async def test_agents_tell_their_state_and_their_last_day(queries: Queries) -> None:
    agents = {item["agent"]: item for item in (await queries.ask("agents", {})).items}
    assert list(agents) == ["idle", "loader", "reporter"]
    loader, idle = agents["loader"], agents["idle"]
    assert (loader["state"], loader["owner"], loader["live_sessions"], loader["statements"], loader["denied"]) == (
        "active",
        "team-a",
        1,
        3,
        0,
    )
    assert agents["reporter"]["denied"] == 1
    assert (idle["last_seen_at"], idle["live_sessions"], idle["statements"]) == (None, 0, 0)
    assert str(loader["last_seen_at"]).startswith("2026-11-18T11:09:40.006")


async def test_the_last_day_ends_after_a_day(store: Store, told: AnalyticsSettings) -> None:
    queries = Queries(store, told, lambda: NOW_US + 25 * 60 * MINUTE)
    agents = {item["agent"]: item for item in (await queries.ask("agents", {})).items}
    assert agents["loader"]["statements"] == 0
    assert agents["loader"]["last_seen_at"] is not None
    queries.close()


async def test_unused_agents_were_never_seen_or_not_for_so_long(store: Store, told: AnalyticsSettings) -> None:
    now = Queries(store, told, lambda: NOW_US)
    later = Queries(store, told, lambda: NOW_US + 31 * 24 * 60 * MINUTE)
    assert await column(now, "unused_agents", "agent") == ["idle"]
    assert await column(later, "unused_agents", "agent") == ["idle", "loader", "reporter"]
    assert await column(later, "unused_agents", "agent", days=60) == ["idle"]
    now.close()
    later.close()


async def test_grants_show_what_they_allow_and_who_approved(queries: Queries) -> None:
    (grant,) = (await queries.ask("grants", {"agent": "reporter"})).items
    assert (grant["grant"], grant["state"], grant["approver"], grant["reason"]) == (
        "g-reporter",
        "approved",
        "bob",
        "monthly report",
    )
    assert grant["scope"] == {
        "connection": "shop",
        "rules": [{"schema": "public", "tables": ["orders"], "operations": ["select"]}],
        "functions": [],
        "channels": [],
        "introspection": False,
    }
    assert await column(queries, "grants", "grant", state="revoked") == []


async def test_changes_tell_who_decided_what(queries: Queries) -> None:
    assert await column(queries, "changes", "change", agent="idle") == ["grant approved", "grant requested", "agent registered"]


async def test_live_sessions_are_those_that_are_open(queries: Queries) -> None:
    (item,) = (await queries.ask("live_sessions", {})).items
    assert (item["session"], item["state"], item["statements"]) == ("s3", "live", 1)


async def test_sessions_tell_how_they_ended(queries: Queries) -> None:
    (killed,) = (await queries.ask("sessions", {"session": "s1"})).items
    assert (killed["state"], killed["kill_cause"], killed["close_reason"]) == ("killed", "agent revoked", "killed")
    assert killed["kill_backend_gone_at"] == "2026-11-18T11:08:39.995000Z"
    assert (killed["statements"], killed["denied"], killed["rows"], killed["backend_start_at"]) == (
        2,
        1,
        17,
        "2026-11-18T11:05:40.000000Z",
    )
    assert await column(queries, "sessions", "session") == ["s3", "s2", "s1"]


async def test_a_timeline_tells_a_session_in_order(queries: Queries) -> None:
    items = (await queries.ask("timeline", {"session": "s1"})).items
    assert [item["kind"] for item in items if item["kind"] != "end ordered"] == [
        "opened",
        "statement",
        "denied",
        "statement",
        "killed",
        "closed",
    ]
    assert [item["text"] for item in items if item["kind"] == "denied"] == ["SELECT * FROM secrets"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["s3/1", "s2/2", "s1/3", "s2/1", "s1/2", "s1/1"]),
        ({"agent": "reporter"}, ["s1/3", "s1/2", "s1/1"]),
        ({"session": "s2"}, ["s2/2", "s2/1"]),
        ({"decision": "deny"}, ["s1/2"]),
        ({"decision": "allow", "agent": "reporter"}, ["s1/3", "s1/1"]),
        ({"outcome": "error"}, ["s2/1"]),
        ({"outcome": "unknown"}, ["s2/2"]),
        ({"outcome": "running"}, ["s3/1"]),
        ({"outcome": "denied"}, ["s1/2"]),
        ({"text": "from ORDERS"}, ["s1/3", "s1/1"]),
        ({"text": "%"}, []),
        ({"relation": "public.orders"}, ["s1/3", "s1/1"]),
        ({"relation": "orders"}, ["s1/3", "s1/1"]),
        ({"relation": "rders"}, []),
        ({"sqlstate": "23505"}, ["s2/1"]),
        ({"on_behalf_of": "alice"}, ["s3/1", "s1/3", "s1/2", "s1/1"]),
        ({"invocation": "run-8"}, []),
        ({"fingerprint": "0000000000000002"}, ["s1/2"]),
        ({"since_us": START_US + 2 * MINUTE}, ["s3/1"]),
        ({"until_us": START_US + MINUTE + 2000}, ["s1/1"]),
        ({"agent": "' or 1 = 1 --"}, []),
    ],
)
async def test_statements_are_found_by_each_filter(queries: Queries, given: Given, expected: list[str]) -> None:
    items = (await queries.ask("statements", given)).items
    assert [f"{item['session']}/{item['execution']}" for item in items] == expected


async def test_a_statement_shows_its_whole_text(store: Store, told: AnalyticsSettings, queries: Queries) -> None:
    short = Queries(store, AnalyticsSettings(told.directory, answer_text_max=6), lambda: NOW_US)
    assert set(await column(short, "statements", "text", session="s1")) == {"SELECT"}
    (whole,) = (await queries.ask("statement", {"session": "s1", "execution": 2})).items
    assert (whole["text"], whole["reason"]) == ("SELECT * FROM secrets", "secrets is not in your scope")
    short.close()


async def test_rates_are_by_minute_and_agent(queries: Queries) -> None:
    items = (await queries.ask("rates", {})).items
    assert [
        (item["minute_at"], item["agent"], item["statements"], item["denied"], item["errors"], item["rows"]) for item in items
    ] == [
        ("2026-11-18T11:09:00.000000Z", "loader", 1, 0, 0, 0),
        ("2026-11-18T11:07:00.000000Z", "reporter", 2, 1, 0, 17),
        ("2026-11-18T11:07:00.000000Z", "loader", 2, 0, 1, 0),
    ]
    assert len((await queries.ask("rates", {"minutes": 8})).items) == 1


async def test_denials_are_counted_by_agent_and_reason(queries: Queries) -> None:
    (item,) = (await queries.ask("denials", {})).items
    assert (item["agent"], item["reason"], item["denials"]) == ("reporter", "secrets is not in your scope", 1)


async def test_attempts_tell_who_was_not_let_in(queries: Queries) -> None:
    assert await column(queries, "attempts", "reason") == ["agent reporter is revoked"]


async def test_kills_tell_what_passed_between_their_four_times(queries: Queries) -> None:
    (item,) = (await queries.ask("kills", {})).items
    assert (item["decided_after_us"], item["client_closed_after_us"], item["backend_gone_after_us"]) == (10_000, 40_000, 80_000)


async def test_who_touched_a_relation(queries: Queries) -> None:
    (orders,) = (await queries.ask("relation_agents", {"relation": "orders"})).items
    assert (orders["agent"], orders["statements"], orders["denied"], orders["rows"]) == ("reporter", 2, 0, 17)
    (secrets,) = (await queries.ask("relation_agents", {"relation": "public.secrets"})).items
    assert (secrets["statements"], secrets["denied"]) == (0, 1)


async def test_what_an_agent_touched(queries: Queries) -> None:
    items = (await queries.ask("agent_relations", {"agent": "reporter"})).items
    assert [(item["relation"], item["statements"], item["denied"], item["verbs"]) for item in items] == [
        ("public.orders", 2, 0, ["SELECT"]),
        ("public.secrets", 0, 1, ["SELECT"]),
    ]


async def test_recording_gaps_tell_when_nothing_was_let_through(log: SegmentLog, settings: AnalyticsSettings) -> None:
    gateway = Writer(log)
    gateway.add("gw-1", RecordingStopped(START_US + MINUTE, "gw-1", START_US, 12, "the disk is full"))
    await gateway.write()
    await rebuild(log, settings)
    store = Store.open(settings)
    queries = Queries(store, settings)
    try:
        (item,) = (await queries.ask("recording_gaps", {})).items
        assert (item["kind"], item["refused"], item["reason"]) == ("recording stopped", 12, "the disk is full")
    finally:
        queries.close()
        store.close()


async def test_gateways_and_findings(queries: Queries) -> None:
    assert await column(queries, "gateways", "boot") == [2, 1]
    assert await column(queries, "findings", "finding") == ["f-1"]


async def test_a_revoked_agent_shows_who_revoked_it_and_why(log: SegmentLog, settings: AnalyticsSettings) -> None:
    api = Writer(log, "api")
    api.registered("reporter")
    api.add("reporter", AgentRevoked(api.at(5), "reporter", "leaked", "carol"))
    await api.write()
    await rebuild(log, settings)
    store = Store.open(settings)
    queries = Queries(store, settings)
    try:
        (item,) = (await queries.ask("agents", {})).items
        assert (item["state"], item["state_by"], item["state_reason"]) == ("revoked", "carol", "leaked")
    finally:
        queries.close()
        store.close()


# -- all of them -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", sorted(QUESTIONS))
async def test_pages_of_one_make_the_whole_answer(queries: Queries, question: str) -> None:
    whole = (await queries.ask(question, required(question))).items
    pages = []
    given = {**required(question), "limit": 1}
    for _ in range(len(whole) + 1):
        page = await queries.ask(question, given)
        pages += page.items
        if page.next is None:
            break
        given["before"] = page.next
    assert pages == whole
    assert json.loads(json.dumps(whole)) == whole


async def test_a_costly_filter_finds_the_same_whether_the_newest_day_fills_the_page_or_not(
    log: SegmentLog, settings: AnalyticsSettings
) -> None:
    await history.write(log, history.Past(4_000, agents=5, tables=4, live_sessions=4, frames_of_session=3, days=6))
    await rebuild(log, settings)
    store = Store.open(settings)
    queries = Queries(store, settings, lambda: history.END_US)
    try:
        for given in ({"relation": "table_0"}, {"text": "FROM public.table_1"}, {"relation": "table_0", "decision": "deny"}):
            whole = (await queries.ask("statements", {**given, "limit": 1_000})).items
            pages: list[object] = []
            following: str | None = ""
            while following is not None:
                page = await queries.ask("statements", {**given, "limit": 90, "before": following})
                pages, following = pages + page.items, page.next if len(pages) < 900 else None
            assert pages == whole[: len(pages)]
            assert len(pages) > 20, given
            times = [str(item["started_at"]) for item in whole]
            assert times == sorted(times, reverse=True)
    finally:
        queries.close()
        store.close()


# `columns` reads no table at all, but what DuckDB knows of them.
@pytest.mark.parametrize("question", sorted(set(QUESTIONS) - {"statements", "statement", "timeline", "denials", "columns"}))
def test_no_question_but_those_about_single_executions_reads_them(store: Store, told: AnalyticsSettings, question: str) -> None:
    asked = _asked(QUESTIONS[question], required(question), told, NOW_US)
    assert [columns for table, columns in scans(store, asked.sql, asked.bound) if table == "executions"] == []


@pytest.mark.parametrize("given", [{}, {"agent": "reporter"}, {"relation": "orders"}, {"text": "x"}, {"outcome": "error"}])
def test_only_the_rows_of_a_page_are_read_whole(store: Store, told: AnalyticsSettings, given: Given) -> None:
    asked = _asked(QUESTIONS["statements"], given, told, NOW_US)
    for sql, bound in {asked.sql: asked.bound, **dict([asked.first_look] if asked.first_look else [])}.items():
        columns = [columns for table, columns in scans(store, sql, bound) if table == "executions"]
        # One scan finds the page by few columns; the other reads all of them, of the page's rows.
        assert sorted(len(some) > 10 for some in columns) == [False, True], columns


def scans(store: Store, sql: str, bound: Mapping[str, object]) -> list[tuple[str, list[str]]]:
    """Of the plan: each table that is scanned, and its columns that are."""
    (row,) = store.read(f"explain (format json) {sql}", bound).rows
    found: list[tuple[str, list[str]]] = []

    def walk(node: dict[str, Any]) -> None:
        info = node["extra_info"]
        if "Table" in info:
            columns = info.get("Projections", [])
            found.append((info["Table"].split(".")[-1], [columns] if isinstance(columns, str) else columns))
        for child in node["children"]:
            walk(child)

    for root in json.loads(str(row[1])):
        walk(root)
    assert found
    return found


@pytest.mark.parametrize("question", sorted(QUESTIONS))
async def test_every_filter_can_be_given_at_once(queries: Queries, question: str) -> None:
    values: dict[str, str | int] = {"text": "x", "integer": 5, "time": START_US}
    given = {p.name: p.choices[0] if p.choices else values[p.kind] for p in QUESTIONS[question].parameters}
    assert (await queries.ask(question, given)).items is not None


@pytest.mark.parametrize(
    ("question", "given", "word"),
    [
        ("nonsense", {}, "no question"),
        ("statements", {"agnet": "x"}, "agnet"),
        ("statements", {"decision": "maybe"}, "allow, deny"),
        ("statements", {"limit": 0}, "limit"),
        ("statements", {"limit": 1001}, "1000"),
        ("statements", {"limit": "many"}, "whole number"),
        ("statements", {"since_us": "yesterday"}, "since_us"),
        ("statements", {"since_us": 2**63}, "since_us"),
        ("statements", {"text": "x" * 10_001}, "10,000"),
        ("statements", {"before": "!"}, "before"),
        ("statements", {"before": "W10"}, "before"),  # []
        ("statements", {"before": "WzEsMiwzXQ"}, "before"),  # [1,2,3]
        ("statements", {"before": "W1sxXSwiYSIsMV0"}, "before"),  # [[1],"a",1]
        ("timeline", {}, "session"),
        ("unused_agents", {"days": -1}, "days"),
    ],
)
async def test_a_question_that_is_asked_wrongly_is_told_what_to_write(
    queries: Queries, question: str, given: Given, word: str
) -> None:
    with pytest.raises(QuestionInvalid, match=word):
        await queries.ask(question, given)


async def test_an_answer_of_much_text_comes_in_more_pages(store: Store, told: AnalyticsSettings) -> None:
    small = Queries(store, AnalyticsSettings(told.directory, answer_bytes_max=30), lambda: NOW_US)
    page = await small.ask("statements", {})
    assert 0 < len(page.items) < 6
    assert page.next is not None
    small.close()


async def test_an_answer_that_takes_too_long_is_given_up(
    store: Store, told: AnalyticsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Question(
        "endless", "Never.", (), "select i from range(1000000000000) t(i) where i < 0 and $where", Order((("i", "integer"),))
    )
    monkeypatch.setattr("analytics.queries.QUESTIONS", {"endless": endless})
    hasty = Queries(store, AnalyticsSettings(told.directory, question_seconds_max=0.1), lambda: NOW_US)
    with pytest.raises(QuestionFailed, match="narrow it"):
        await hasty.ask("endless", {})
    hasty.close()


async def test_the_line_of_questions_has_an_end(store: Store, told: AnalyticsSettings) -> None:
    full = Queries(store, AnalyticsSettings(told.directory, questions_waiting_max=0), lambda: NOW_US)
    with pytest.raises(QuestionFailed, match="waiting"):
        await full.ask("agents", {})
    full.close()


def test_every_question_says_what_it_answers_and_takes() -> None:
    for question in described():
        assert str(question["sentence"]).endswith(".")
        for parameter in question["parameters"]:  # type: ignore[attr-defined]
            assert parameter["sentence"], (question["name"], parameter["name"])


def test_no_value_is_formatted_into_sql() -> None:
    for question in QUESTIONS.values():
        for parameter in question.parameters:
            named = parameter.where or question.sql
            assert f"${parameter.name}" in named, (question.name, parameter.name)
