"""Conversations that try to make the record say something else than what the server did, or to fill the gateway. No sockets."""

from __future__ import annotations

import pytest

from gateway.session import Close, Kill, ToClient
from gateway.settings import GatewaySettings
from gateway.wire.messages import message
from identity.scope import Authority, LiveGrant
from ingest.events import Rule, Scope, StatementDefined, StatementDenied, StatementFinished, StatementStarted
from tests.gateway.test_session import BOUND, PARSED, ROW, SUSPENDED, S, Talk, b, c, e, error, p, q, z

COPY_IN = message(b"G", b"\0\0\0")
COPY_DONE = message(b"c", b"")
CLOSED = message(b"3", b"")
WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))
WRITER = Authority("reporter", "shop", ("public",), (LiveGrant("g-3", "reporter", Scope("shop", (WRITE,)), "oscar", 0),))


@pytest.fixture
def talk() -> Talk:
    talk = Talk()
    talk.core.authorize(WRITER, 2)
    return talk


def copied(rows: bytes = b"x\n") -> bytes:
    return message(b"d", rows)


def close(name: str, kind: bytes = b"S") -> bytes:
    return message(b"C", kind + name.encode() + b"\0")


def ends(talk: Talk) -> list[tuple[str, str]]:
    """Text and outcome of each execution, in the order in which they ended; each ends once."""
    texts = {fact.statement: fact.text for fact in talk.facts(StatementDefined) if isinstance(fact, StatementDefined)}
    started = {fact.execution: texts[fact.statement] for fact in talk.facts(StatementStarted) if isinstance(fact, StatementStarted)}
    finished = [fact for fact in talk.facts(StatementFinished) if isinstance(fact, StatementFinished)]
    assert len({fact.execution for fact in finished}) == len(finished), "an execution has one end"
    return [(started[fact.execution], f"{fact.outcome} {fact.sqlstate}".strip()) for fact in finished]


def all_ended(talk: Talk) -> bool:
    return len(talk.facts(StatementStarted)) == len(talk.facts(StatementFinished))


def unbroken(talk: Talk) -> bool:
    return not [command for command in talk.commands if isinstance(command, Kill | Close)]


# -- COPY and stray messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stray", [COPY_DONE, message(b"f", b"no\0"), COPY_DONE * 3, copied(), COPY_DONE + copied()])
def test_a_stray_end_of_copy_does_not_make_the_next_error_somebody_elses(talk: Talk, stray: bytes) -> None:
    talk.client(q("SELECT 1") + stray + q("SELECT 1/0") + q("SELECT 2"))
    talk.server(c("SELECT 1") + z() + error("22012", "division by zero") + z() + c("SELECT 1") + z())
    talk.client(q("DELETE FROM orders"))
    talk.server(c("DELETE 100") + z())
    assert ends(talk) == [("SELECT 1", "ok"), ("SELECT 1/0", "error 22012"), ("SELECT 2", "ok"), ("DELETE FROM orders", "ok")]
    assert unbroken(talk)


def test_nothing_is_sent_behind_a_copy_before_the_server_has_begun_it_or_refused_it(talk: Talk) -> None:
    talk.client(p("COPY orders FROM STDIN") + b() + e() + S + copied() + COPY_DONE + S)
    assert talk.to_server.endswith(e())
    talk.server(PARSED + BOUND + error("42501", "permission denied"))
    assert talk.to_server.endswith(e() + S + copied() + COPY_DONE + S)  # the server passes over data that it did not ask for
    talk.server(z() + z())
    assert ends(talk) == [("COPY orders FROM STDIN", "error 42501")]
    assert unbroken(talk)


def test_a_sync_in_a_copy_that_failed_meanwhile_lets_nothing_run_as_skipped(talk: Talk) -> None:
    talk.client(p("COPY orders FROM STDIN") + b() + e())
    talk.server(PARSED + BOUND + COPY_IN)
    talk.client(copied(b"bad\n") + S + p("DELETE FROM orders") + b() + e() + S)
    reached = talk.to_server
    # The server met the bad row first. What it makes of the rest depends on the Syncs that reached it.
    counted = reached.endswith(S + p("DELETE FROM orders") + b() + e() + S)
    talk.server(error("22P02", "bad row"))
    talk.server((z() + PARSED + BOUND + c("DELETE 100") + z()) if counted else b"")
    assert ("DELETE FROM orders", "skipped") not in ends(talk) or not counted
    talk.server(b"" if counted else z() * (talk.to_server.count(S) - reached.count(S)))
    talk.client(q("SELECT 1"))
    talk.server(c("SELECT 1") + z())
    assert ends(talk)[-1] == ("SELECT 1", "ok")
    assert unbroken(talk)


def test_a_copy_goes_on_as_drivers_send_it(talk: Talk) -> None:
    talk.client(p("COPY orders FROM STDIN") + b() + e() + S)
    talk.server(PARSED + BOUND + COPY_IN)
    talk.client(copied() + copied() + COPY_DONE + S)
    talk.server(c("COPY 2") + z())
    talk.client(q("COPY orders FROM STDIN; COPY orders FROM STDIN; SELECT 1"))
    talk.server(COPY_IN)
    talk.client(copied() + COPY_DONE + copied() + COPY_DONE + q("SELECT 2"))
    assert talk.to_server.endswith(copied() + COPY_DONE)
    talk.server(c("COPY 1") + COPY_IN)
    talk.server(c("COPY 1") + c("SELECT 1") + z())
    assert talk.to_server.endswith(COPY_DONE + q("SELECT 2"))
    talk.server(c("SELECT 1") + z())
    assert [outcome for _, outcome in ends(talk)] == ["ok"] * 5
    assert unbroken(talk)


# -- names: what the record says ran is what ran -----------------------------------------------------------------------------------


def test_a_name_taken_again_after_an_error_is_recorded_as_what_it_still_means(talk: Talk) -> None:
    """The Parse fails, since the name is taken: the old statement runs."""
    talk.client(p("DELETE FROM orders", "s") + S)
    talk.server(PARSED + z())
    talk.client(p("SELECT 1", "s") + S + b("s") + e() + S)
    talk.server(error("42P05", "already exists") + z())
    talk.server(BOUND + c("DELETE 100") + z())
    assert ends(talk) == [("DELETE FROM orders", "ok")]
    assert unbroken(talk)


def test_an_unnamed_statement_whose_parse_was_skipped_is_recorded_as_the_one_before(talk: Talk) -> None:
    talk.client(p("DELETE FROM orders") + S)
    talk.server(PARSED + z())
    talk.client(p("SELECT nothing FROM orders", "x") + p("SELECT 1") + S + b() + e() + S)
    talk.server(error("42703", "no such column") + z())
    talk.server(BOUND + c("DELETE 100") + z())
    assert ends(talk) == [("DELETE FROM orders", "ok")]


def test_a_close_that_was_skipped_closed_nothing(talk: Talk) -> None:
    talk.client(p("DELETE FROM orders", "s") + S)
    talk.server(PARSED + z())
    talk.client(p("SELECT nothing FROM orders", "x") + close("s") + S + p("SELECT 1", "s") + S + b("s") + e() + S)
    talk.server(error("42703", "no such column") + z() + error("42P05", "already exists") + z())
    talk.server(BOUND + c("DELETE 100") + z())
    assert ends(talk) == [("DELETE FROM orders", "ok")]


def test_a_portal_bound_again_in_vain_is_recorded_as_the_first(talk: Talk) -> None:
    talk.client(q("BEGIN") + p("DELETE FROM orders", "s") + p("SELECT 1", "t") + p("ROLLBACK TO x", "r") + b("s", "p") + S)
    talk.server(c("BEGIN") + z(b"T") + PARSED * 3 + BOUND + z(b"T"))
    talk.client(q("SAVEPOINT x"))
    talk.server(c("SAVEPOINT") + z(b"T"))
    talk.client(b("t", "p") + S + b("r", "") + e() + S + e("p") + S)
    talk.server(error("42P03", "portal exists") + z(b"E") + BOUND + c("ROLLBACK") + z(b"T"))
    talk.server(c("DELETE 100") + z(b"T"))
    assert ends(talk)[-1] == ("DELETE FROM orders", "ok")
    assert unbroken(talk)


@pytest.mark.parametrize(
    "sql", ["DEALLOCATE s; PREPARE s AS DELETE FROM orders", "DEALLOCATE ALL; PREPARE s AS DELETE FROM orders"]
)
def test_a_name_that_sql_gives_to_another_statement_means_the_other(talk: Talk, sql: str) -> None:
    talk.client(p("SELECT 1", "s") + S)
    talk.server(PARSED + z())
    talk.client(q(sql) + b("s") + e() + S)
    talk.server(c("DEALLOCATE") + c("PREPARE") + z())
    talk.server(BOUND + c("DELETE 100") + z())
    assert ends(talk)[-1] == ("PREPARE s AS DELETE FROM orders", "ok")
    assert len(ends(talk)) == 3


def test_a_name_that_sql_changes_in_the_same_segment_is_not_bound(talk: Talk) -> None:
    talk.client(p("SELECT 1", "s") + p("DEALLOCATE s", "d") + p("PREPARE s AS DELETE FROM orders", "n") + S)
    talk.server(PARSED * 3 + z())
    talk.client(b("d") + e() + b("n") + e() + b("s") + e() + S)
    assert b"Bs\0" not in talk.to_server
    (denied,) = talk.facts(StatementDenied)
    assert isinstance(denied, StatementDenied)
    assert denied.sqlstate == "0A000"
    talk.server(BOUND + c("DEALLOCATE") + BOUND + c("PREPARE") + error("42601", "pgwarden_refused_1") + z())
    assert [outcome for _, outcome in ends(talk)] == ["ok", "ok"]
    assert unbroken(talk)


def test_fetch_does_not_run_a_portal_under_another_name(talk: Talk) -> None:
    talk.client(q("BEGIN") + p("DELETE FROM orders RETURNING id") + b("", "x") + S)
    talk.server(c("BEGIN") + z(b"T") + PARSED + BOUND + z(b"T"))
    talk.client(q("FETCH ALL FROM x"))
    assert b"FETCH" not in talk.to_server
    talk.server(error("42601", "pgwarden_refused_1") + z(b"E"))
    talk.client(q("ROLLBACK"))
    talk.server(c("ROLLBACK") + z())
    talk.client(q("BEGIN; DECLARE x CURSOR FOR SELECT id FROM orders; FETCH ALL FROM x"))
    assert b"DECLARE x" in talk.to_server


# -- each execution has exactly one end --------------------------------------------------------------------------------------------


def test_a_portal_replaced_in_a_pipeline_before_its_end_has_one(talk: Talk) -> None:
    talk.client(p("SELECT id FROM orders") + b() + e(rows=1) + p("SELECT 2") + b() + e() + S)
    talk.server(PARSED + BOUND + ROW + SUSPENDED + PARSED + BOUND + ROW + c("SELECT 1") + z())
    assert ends(talk) == [("SELECT id FROM orders", "suspended"), ("SELECT 2", "ok")]


def test_a_portal_run_several_times_in_one_pipeline_is_one_execution(talk: Talk) -> None:
    talk.client(p("SELECT id FROM orders") + b() + e(rows=1) + e(rows=1) + e() + e() + S)
    talk.server(PARSED + BOUND + ROW + SUSPENDED + ROW + SUSPENDED + ROW + c("SELECT 1") + c("SELECT 0") + z())
    assert ends(talk) == [("SELECT id FROM orders", "ok")]
    assert all_ended(talk)


def test_a_session_lost_while_a_portal_goes_on_ends_it_once(talk: Talk) -> None:
    talk.client(q("BEGIN") + p("SELECT id FROM orders") + b("", "p") + e("p", rows=1) + S)
    talk.server(c("BEGIN") + z(b"T") + PARSED + BOUND + ROW + SUSPENDED + z(b"T"))
    talk.client(e("p", rows=1) + e("p", rows=1) + S)
    talk._heard([talk.core.server_lost(9, 9)])
    assert ends(talk) == [("BEGIN", "ok"), ("SELECT id FROM orders", "unknown")]


def test_an_older_portal_goes_on_after_an_error_was_rolled_back_to_a_savepoint(talk: Talk) -> None:
    talk.client(q("BEGIN") + p("SELECT id FROM orders") + b("", "p") + e("p", rows=1) + S)
    talk.server(c("BEGIN") + z(b"T") + PARSED + BOUND + ROW + SUSPENDED + z(b"T"))
    talk.client(q("SAVEPOINT x") + q("SELECT 1/0") + q("ROLLBACK TO x"))
    talk.server(c("SAVEPOINT") + z(b"T") + error("22012", "x") + z(b"E") + c("ROLLBACK") + z(b"T"))
    talk.client(e("p") + S)
    talk.server(ROW + c("SELECT 1") + z(b"T"))
    assert ends(talk)[-1] == ("SELECT id FROM orders", "ok")
    assert not talk.facts(StatementDenied)


# -- what was decided is sent, and what was sent is followed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "violation",
    [
        b"p\0\0\0\x04",
        b"\0\0\0\x10\0",
        b"S\0\0\0\x03",
        message(b"D", b"x" * 20_000),
        message(b"Q", b"no end"),
        message(b"B", b"x" * 200),
    ],
)
def test_what_was_recorded_as_begun_before_a_violation_is_sent(talk: Talk, violation: bytes) -> None:
    talk.client(q("SELECT 7") + violation)
    assert talk.to_server == q("SELECT 7")
    assert len(talk.facts(StatementStarted)) == 1


def test_after_an_answer_that_nobody_asked_for_nothing_is_believed(talk: Talk) -> None:
    talk.client(q("SELECT 7"))
    talk.server(PARSED)
    assert [command for command in talk.commands if isinstance(command, Kill)]
    talk.server(c("SELECT 1") + z())
    talk._heard([talk.core.server_lost(9, 9)])
    assert ends(talk) == [("SELECT 7", "unknown")]


def test_rows_are_not_shown_before_the_record_that_they_were_asked_for(talk: Talk) -> None:
    talk.client(q("SELECT note FROM orders"))
    (rows,) = [command for command in talk.server(ROW * 3) if isinstance(command, ToClient)]
    assert rows.held


def test_a_long_error_is_the_clients_own(talk: Talk) -> None:
    talk.client(q("SELECT note::int FROM orders") + q("SELECT 2"))
    long = error("22P02", "x" * 3_000_000)
    answer = long + z() + c("SELECT 1") + z()
    for at in range(0, len(answer), 65_536):
        talk.server(answer[at : at + 65_536])
    assert talk.to_client == answer
    assert ends(talk) == [("SELECT note::int FROM orders", "error 22P02"), ("SELECT 2", "ok")]


def test_a_hostile_servers_numbers_and_tags_fit_into_the_record(talk: Talk) -> None:
    talk.client(q("SELECT 1") + q("SELECT 2"))
    talk.server(c("SELECT " + "9" * 5_000) + z() + c("SELECT 99999999999999999999") + z())
    finished = [fact for fact in talk.facts(StatementFinished) if isinstance(fact, StatementFinished)]
    assert [fact.rows for fact in finished] == [0, 0]
    assert max(len(fact.tag) for fact in finished) <= 64


# -- memory ------------------------------------------------------------------------------------------------------------------------


def test_a_huge_bind_after_a_refusal_is_not_kept(talk: Talk) -> None:
    talk.client(p("SELECT * FROM secrets"))
    header = b"B" + (2**30 - 100).to_bytes(4, "big") + b"\0\0"
    talk.client(header, *([b"x" * 65_536] * 64))
    assert len(talk.core._from_client) < 1_000_000
    assert unbroken(talk)


def test_a_long_pipeline_waits_and_is_not_ended() -> None:
    talk = Talk(settings=GatewaySettings(pipeline_max=20))
    talk.client(q("SELECT 1") * 50)
    assert talk.core.waits
    assert talk.to_server.count(b"SELECT 1") == 20
    for _ in range(50):
        talk.server(c("SELECT 1") + z())
    assert not talk.core.waits
    assert [outcome for _, outcome in ends(talk)] == ["ok"] * 50
    assert unbroken(talk)


def test_many_long_texts_are_not_all_remembered() -> None:
    talk = Talk(settings=GatewaySettings(session_texts_bytes_max=100_000))
    for number in range(100):
        talk.client(q(f"SELECT '{'x' * 8_000}', {number}"))
        talk.server(c("SELECT 1") + z())
    assert sum(len(text) for text in talk.core._scripts) < 120_000


def test_portals_are_counted() -> None:
    talk = Talk(settings=GatewaySettings(prepared_max=5))
    talk.client(q("BEGIN") + p("SELECT 1"))
    talk.client(*(b("", f"p{number}") for number in range(6)))
    assert [fact.sqlstate for fact in talk.facts(StatementDenied) if isinstance(fact, StatementDenied)] == ["54000"]


def test_a_text_of_very_many_statements_is_refused_whole(talk: Talk) -> None:
    talk.client(q("SELECT 1;" * 1_001))
    (denied,) = talk.facts(StatementDenied)
    assert isinstance(denied, StatementDenied)
    assert denied.sqlstate == "54000"
    assert not talk.facts(StatementStarted)
    talk.client(q("SELECT 1;" * 1_000))
    assert len(talk.facts(StatementStarted)) == 1_000
