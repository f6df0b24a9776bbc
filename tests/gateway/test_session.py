"""The conversation without sockets: bytes in, commands out, at every split of the stream."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pace import Pace
from gateway.session import Analyze, Close, Command, Kill, Record, Session, ToClient, ToServer
from gateway.settings import Durability, GatewaySettings
from gateway.wire import messages
from gateway.wire.messages import message
from identity.scope import Authority, LiveGrant
from ingest import sql
from ingest.events import (
    OutcomeResolved,
    Rule,
    Scope,
    StatementDefined,
    StatementDenied,
    StatementEvent,
    StatementFinished,
    StatementStarted,
)
from ingest.sql import Script, Unparsable

READ = LiveGrant("g-1", "reporter", Scope("shop", (Rule("public", ("orders",), ("select",)),)), "oscar", 0)
WRITE = LiveGrant("g-2", "reporter", Scope("shop", (Rule("public", ("orders",), ("select", "delete")),)), "oscar", 0)


def _authority(*grants: LiveGrant) -> Authority:
    return Authority("reporter", "shop", ("public",), grants)


def q(text: str) -> bytes:
    return messages.query(text)


def p(text: str, name: str = "") -> bytes:
    return messages.parse(name, text)


def b(name: str = "", portal: str = "") -> bytes:
    return message(b"B", portal.encode() + b"\0" + name.encode() + b"\0" + struct.pack("!hhh", 0, 0, 0))


def e(portal: str = "", rows: int = 0) -> bytes:
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", rows))


S = messages.SYNC
PARSED, BOUND, SUSPENDED, EMPTY = message(b"1", b""), message(b"2", b""), message(b"s", b""), message(b"I", b"")


def z(status: bytes = b"I") -> bytes:
    return message(b"Z", status)


def c(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


def error(sqlstate: str, text: str) -> bytes:
    return message(b"E", b"SERROR\0VERROR\0C" + sqlstate.encode() + b"\0M" + text.encode() + b"\0\0")


ROW = message(b"D", struct.pack("!hi", 1, 1) + b"1")


@dataclass
class Talk:
    durability: Durability = "group"
    settings: GatewaySettings = field(default_factory=GatewaySettings)
    analyze: Callable[[str], Script | Unparsable | None] = sql.parse
    watched: dict[str, str] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    clock: int = 1_000

    def __post_init__(self) -> None:
        self.core = Session(
            _authority(READ), 1, self.durability, self.settings, self.analyze, lambda: frozenset({"leaky"}), self.watched
        )

    def client(self, *parts: bytes) -> list[Command]:
        return self._heard([self.core.from_client(part, 7, self._tick()) for part in parts])

    def server(self, *parts: bytes) -> list[Command]:
        return self._heard([self.core.from_server(part, 8, self._tick()) for part in parts])

    def _tick(self) -> int:
        self.clock += 10
        return self.clock

    def _heard(self, answers: list[list[Command]]) -> list[Command]:
        new = [command for answer in answers for command in answer]
        self.commands.extend(new)
        return new

    @property
    def to_server(self) -> bytes:
        return b"".join(command.data for command in self.commands if isinstance(command, ToServer))

    @property
    def to_client(self) -> bytes:
        return b"".join(command.data for command in self.commands if isinstance(command, ToClient))

    def facts(self, *kinds: type) -> list[StatementEvent]:
        return [
            command.event
            for command in self.commands
            if isinstance(command, Record) and (not kinds or isinstance(command.event, kinds))
        ]


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_an_allowed_query_is_recorded_before_its_bytes_go_on_unchanged(talk: Talk) -> None:
    commands = talk.client(q("SELECT id FROM orders"))
    assert [type(command) for command in commands] == [Record, Record, ToServer]
    assert talk.to_server == q("SELECT id FROM orders")
    talk.server(ROW + ROW + c("SELECT 2") + z())
    (finished,) = talk.facts(StatementFinished)
    assert isinstance(finished, StatementFinished)
    assert (finished.outcome, finished.rows, finished.tag) == ("ok", 2, "SELECT 2")


@pytest.mark.parametrize(
    ("durability", "to_server", "to_client"), [("fast", False, False), ("group", False, True), ("strict", True, True)]
)
def test_what_waits_for_the_record_at_each_level(durability: Durability, to_server: bool, to_client: bool) -> None:
    talk = Talk(durability)
    (sent,) = [command for command in talk.client(q("SELECT 1")) if isinstance(command, ToServer)]
    (answered,) = [command for command in talk.server(c("SELECT 1") + z()) if isinstance(command, ToClient)]
    assert (sent.held, answered.held) == (to_server, to_client)


@pytest.mark.parametrize(("durability", "held"), [("fast", False), ("group", True), ("strict", True)])
def test_a_refusal_is_told_only_once_it_is_recorded(durability: Durability, held: bool) -> None:
    talk = Talk(durability)
    talk.client(q("DELETE FROM orders"))
    (told,) = talk.server(error("42601", 'syntax error at or near "pgwarden_refused_1"') + z())
    assert isinstance(told, ToClient)
    assert told.held is held


def test_a_refused_query_is_replaced_and_its_error_too(talk: Talk) -> None:
    talk.client(q("DELETE FROM orders"))
    assert b"DELETE" not in talk.to_server
    (denied,) = talk.facts(StatementDenied)
    assert isinstance(denied, StatementDenied)
    assert denied.sqlstate == "42501"
    talk.server(error("42601", 'syntax error at or near "pgwarden_refused_1"') + z())
    fields = messages.error_fields(talk.to_client[5:])
    assert fields["C"] == "42501"
    assert "delete" in fields["M"]
    assert talk.to_client.endswith(z())


def test_messages_before_a_refused_one_go_first(talk: Talk) -> None:
    talk.client(q("SELECT 1") + q("DELETE FROM orders") + q("SELECT 2"))
    assert talk.to_server == q("SELECT 1") + q("pgwarden_refused_1") + q("SELECT 2")


def test_after_a_refused_parse_nothing_reaches_the_server_up_to_the_sync(talk: Talk) -> None:
    talk.client(p("SELECT 1") + b() + e() + p("DELETE FROM orders") + b() + e() + p("SELECT 2") + b() + e() + S + q("SELECT 3"))
    refused = p("pgwarden_refused_1", "pgwarden_refused_1")
    assert talk.to_server == p("SELECT 1") + b() + e() + refused + S + q("SELECT 3")


def test_a_statement_prepared_under_a_wider_grant_is_decided_anew_when_it_is_used(talk: Talk) -> None:
    talk.core.authorize(_authority(WRITE), 2)
    talk.client(p("DELETE FROM orders", "d") + S)
    talk.server(PARSED + z())
    talk.core.authorize(_authority(READ), 3)
    talk.client(b("d") + e() + S)
    assert talk.to_server.endswith(p("pgwarden_refused_1", "pgwarden_refused_1") + S)


def test_a_portal_opened_under_a_wider_grant_gives_no_more_rows(talk: Talk) -> None:
    talk.core.authorize(_authority(WRITE), 2)
    talk.client(p("DELETE FROM orders RETURNING id") + b() + e("", 1) + message(b"H", b""))
    talk.server(PARSED + BOUND + ROW + SUSPENDED)
    talk.core.authorize(_authority(READ), 3)
    talk.client(e("", 1) + S)
    assert talk.to_server.endswith(p("pgwarden_refused_1", "pgwarden_refused_1") + S)


def test_an_unknown_statement_name_is_not_asked_of_the_server(talk: Talk) -> None:
    talk.client(b("nothing") + e() + S)
    assert b"nothing" not in talk.to_server
    (denied,) = talk.facts(StatementDenied)
    assert isinstance(denied, StatementDenied)
    assert denied.sqlstate == "26000"


def test_sql_prepare_and_the_protocols_bind_share_their_names(talk: Talk) -> None:
    talk.client(q("PREPARE s AS SELECT id FROM orders"))
    talk.server(c("PREPARE") + z())
    talk.client(b("s") + e() + S)
    assert not talk.facts(StatementDenied)
    talk.server(BOUND + c("SELECT 0") + z())
    talk.client(q("EXECUTE s"))
    assert not talk.facts(StatementDenied)
    talk.server(c("SELECT 0") + z())
    talk.client(q("DEALLOCATE s"))
    talk.server(c("DEALLOCATE") + z())
    talk.client(q("EXECUTE s"))
    assert len(talk.facts(StatementDenied)) == 1


def test_a_prepared_write_is_refused_when_it_is_prepared(talk: Talk) -> None:
    talk.client(q("PREPARE s AS DELETE FROM orders"))
    assert len(talk.facts(StatementDenied)) == 1


@pytest.mark.parametrize("oid", [2205, 2202, 16384, 2**32 - 1])
def test_a_parameter_type_that_looks_names_up_needs_introspection(talk: Talk, oid: int) -> None:
    talk.client(message(b"P", b"\0SELECT $1\0" + struct.pack("!hI", 1, oid)) + S)
    assert len(talk.facts(StatementDenied)) == 1
    talk.client(message(b"P", b"\0SELECT $1\0" + struct.pack("!hI", 1, 23)) + S)
    assert len(talk.facts(StatementDenied)) == 1


def test_a_fastpath_call_is_refused(talk: Talk) -> None:
    call = message(b"F", struct.pack("!ihhh", 2626, 0, 0, 0))
    talk.client(call + q("SELECT 1"))
    assert talk.to_server == q("pgwarden_refused_1") + q("SELECT 1")


@pytest.mark.parametrize(
    "data",
    [
        b"Q\0\0\0\3",
        b"Q\xff\xff\xff\xff",
        message(b"Q", b"SELECT 1\0; DROP TABLE x\0"),
        message(b"Q", b"SELECT 1"),
        message(b"Q", b"\xff\0"),
        message(b"p", b"again\0"),
        message(b"?", b""),
        message(b"E", b"x" * 20_000 + b"\0\0\0\0\0"),
        struct.pack("!ii", 8, 80877103),
    ],
)
def test_a_broken_message_ends_the_session_and_forwards_nothing(talk: Talk, data: bytes) -> None:
    commands = talk.client(data)
    assert isinstance(commands[-1], Close)
    assert talk.to_server == b""
    assert talk.client(q("SELECT 1")) == []


def test_a_name_that_postgres_would_cut_short_is_refused(talk: Talk) -> None:
    talk.client(p("SELECT 1", "x" * 64) + S)
    assert len(talk.facts(StatementDenied)) == 1


def test_nothing_is_forwarded_that_cannot_be_recorded(talk: Talk) -> None:
    talk.client(p("SELECT 1", "s") + S)
    talk.server(PARSED + z())
    talk.core.recording_reason = "the disk is full"
    before = talk.to_server
    talk.client(q("SELECT 1") + b("s") + e() + S)
    assert q("SELECT 1") not in talk.to_server[len(before) :]
    assert [event.sqlstate for event in talk.facts(StatementDenied) if isinstance(event, StatementDenied)] == ["58030", "58030"]
    talk.server(error("42601", "pgwarden_refused_1") + z())
    talk.server(BOUND + error("42601", "pgwarden_refused_2") + z())
    talk.core.recording_reason = ""
    talk.client(q("SELECT 1"))
    assert talk.to_server.endswith(q("SELECT 1"))


def test_a_long_text_waits_for_its_parser_and_everything_behind_it_too() -> None:
    talk = Talk(analyze=lambda text: None if "long" in text else sql.parse(text))
    commands = talk.client(q("SELECT 1") + q("SELECT 'long'") + q("SELECT 2"))
    assert [command for command in commands if isinstance(command, Analyze)] == [Analyze("SELECT 'long'")]
    assert talk.to_server == q("SELECT 1")
    assert talk.client(q("SELECT 3")) == []
    talk.commands.extend(talk.core.analyzed(sql.parse("SELECT 'long'"), 9, 9))
    assert talk.to_server == q("SELECT 1") + q("SELECT 'long'") + q("SELECT 2") + q("SELECT 3")


def test_a_watched_parameter_that_changes_ends_the_session() -> None:
    talk = Talk(watched={"session_authorization": "app"})
    talk.client(q("SELECT 1"))
    commands = talk.server(message(b"S", b"session_authorization\0postgres\0") + c("SELECT 1") + z())
    assert any(isinstance(command, Kill) for command in commands)


def test_an_answer_that_cannot_be_followed_ends_the_session(talk: Talk) -> None:
    commands = talk.server(c("SELECT 1"))
    assert [type(command) for command in commands] == [Kill]


def test_each_text_is_defined_once_and_each_run_recorded(talk: Talk) -> None:
    for _ in range(3):
        talk.client(q("SELECT id FROM orders"))
        talk.server(c("SELECT 0") + z())
    assert len(talk.facts(StatementDefined)) == 1
    assert len(talk.facts(StatementStarted)) == 3


def test_fingerprints_only_where_the_policy_says_so() -> None:
    talk = Talk(settings=GatewaySettings(statement_text="fingerprint"))
    talk.client(q("SELECT id FROM orders WHERE note = 'secret'"))
    (defined,) = talk.facts(StatementDefined)
    assert isinstance(defined, StatementDefined)
    assert defined.text == ""
    assert len(defined.fingerprint) == 16


CONVERSATION = (
    q("SELECT 1")
    + p("SELECT id FROM orders", "s")
    + b("s")
    + e()
    + S
    + q("DELETE FROM orders")
    + p("DELETE FROM orders")
    + b()
    + e()
    + S
    + q("")
    + message(b"F", b"x" * 50)
    + b("s")
    + e()
    + S
    + message(b"d", b"stray data")
    + q("SELECT 2; SELECT 3")
)
ANSWERS = (
    ROW
    + c("SELECT 1")
    + z()
    + PARSED
    + BOUND
    + ROW
    + ROW
    + c("SELECT 2")
    + z()
    + error("42601", 'at "pgwarden_refused_1"')
    + z()
    + error("42601", 'at "pgwarden_refused_2"')
    + z()
    + EMPTY
    + z()
    + error("42601", 'at "pgwarden_refused_3"')
    + z()
    + BOUND
    + error("22012", "division by zero")
    + z()
    + c("SELECT 1")
    + c("SELECT 1")
    + z()
)


def _told(events: list[StatementEvent]) -> list[object]:
    """What does not depend on the clock."""
    return [
        (event.execution, event.outcome, event.sqlstate, event.rows, event.bytes_out)
        if isinstance(event, StatementFinished)
        else event
        for event in events
    ]


def test_every_split_of_the_stream_tells_the_same_story() -> None:
    whole = Talk()
    whole.client(CONVERSATION)
    whole.server(ANSWERS)
    for at in range(1, len(CONVERSATION)):
        talk = Talk()
        talk.client(CONVERSATION[:at], CONVERSATION[at:])
        assert talk.to_server == whole.to_server
        assert talk.facts() == [event for event in whole.facts() if not isinstance(event, StatementFinished)]
    for at in range(1, len(ANSWERS)):
        talk = Talk()
        talk.client(CONVERSATION)
        talk.server(ANSWERS[:at], ANSWERS[at:])
        assert talk.to_client == whole.to_client
        assert _told(talk.facts()) == _told(whole.facts())


def test_the_story_told_byte_by_byte_is_the_same() -> None:
    whole, single = Talk(), Talk()
    whole.client(CONVERSATION)
    whole.server(ANSWERS)
    single.client(*(CONVERSATION[at : at + 1] for at in range(len(CONVERSATION))))
    single.server(*(ANSWERS[at : at + 1] for at in range(len(ANSWERS))))
    assert single.to_server == whole.to_server
    assert single.to_client == whole.to_client
    assert _told(single.facts()) == _told(whole.facts())
    assert [event.outcome for event in whole.facts(StatementFinished) if isinstance(event, StatementFinished)] == [
        "ok",
        "ok",
        "ok",
        "error",
        "ok",
        "ok",
    ]


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from([q("SELECT 1"), p("SELECT 1"), b(), e(), S, q("DROP TABLE orders")])),
        max_size=12,
    )
)
def test_whatever_a_client_sends_no_undecided_text_is_forwarded(parts: list[bytes]) -> None:
    talk = Talk()
    talk.client(*parts)
    sent = talk.to_server
    while len(sent) >= 5:
        end = 1 + struct.unpack("!I", sent[1:5])[0]
        assert sent[:1] in b"dB" or b"DROP" not in sent[5:end]  # the data of COPY and of Bind may be anything
        sent = sent[end:]


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=30), max_size=8))
def test_whatever_a_server_sends_ends_at_worst_in_a_kill(parts: list[bytes]) -> None:
    talk = Talk()
    talk.client(q("SELECT 1"))
    talk.server(*parts)


# -- a grant is narrowed while the session is open -------------------------------------------------------------------------------

WIDE = LiveGrant(
    "g-3", "reporter", Scope("shop", (Rule("public", ("orders", "secrets"), ("select", "delete")),), channels=("news",)), "oscar", 0
)
WITHOUT_SECRETS = LiveGrant("g-3", "reporter", Scope("shop", (Rule("public", ("orders",), ("select",)),)), "oscar", 0)


def _wide(durability: Durability = "group") -> Talk:
    talk = Talk(durability)
    talk.core.authorize(_authority(READ, WIDE), 2)
    return talk


def _narrow(talk: Talk) -> str:
    return talk.core.authorize(_authority(READ, WITHOUT_SECRETS), 3)


def test_what_the_server_runs_now_and_may_run_no_more_ends_the_session() -> None:
    talk = _wide()
    talk.client(q("SELECT id FROM secrets"))
    assert "secrets" in _narrow(talk)


def test_what_waits_behind_another_statement_counts_too() -> None:
    for more in (q("SELECT id FROM secrets"), p("SELECT id FROM secrets") + S, p("SELECT id FROM secrets") + b() + e() + S):
        talk = _wide()
        talk.client(q("SELECT id FROM orders") + more)
        assert "secrets" in _narrow(talk), more


def test_a_bind_of_what_was_prepared_before_counts_too() -> None:
    talk = _wide()
    talk.client(p("SELECT id FROM secrets", "s") + S)
    talk.server(PARSED + z())
    assert _narrow(talk) == ""
    talk = _wide()
    talk.client(p("SELECT id FROM secrets", "s") + S)
    talk.server(PARSED + z())
    talk.client(b("s") + message(b"H", b""))
    assert "secrets" in _narrow(talk)


def test_what_is_still_allowed_goes_on() -> None:
    talk = _wide()
    talk.client(p("SELECT id FROM orders") + b() + e() + S)
    assert _narrow(talk) == ""
    talk.server(PARSED + BOUND + ROW + c("SELECT 1") + z())
    (finished,) = talk.facts(StatementFinished)
    assert isinstance(finished, StatementFinished)
    assert finished.outcome == "ok"


def test_what_was_answered_before_is_over() -> None:
    talk = _wide()
    talk.client(q("SELECT id FROM secrets"))
    talk.server(ROW + c("SELECT 1") + z())
    assert _narrow(talk) == ""


def test_a_statement_of_a_string_that_was_done_is_over_and_the_next_counts() -> None:
    talk = _wide()
    talk.client(q("SELECT id FROM secrets; SELECT id FROM orders"))
    talk.server(ROW + c("SELECT 1"))
    assert _narrow(talk) == ""
    talk = _wide()
    talk.client(q("SELECT id FROM orders; SELECT id FROM secrets"))
    talk.server(ROW + c("SELECT 1"))
    assert "secrets" in _narrow(talk)


def test_a_wider_grant_ends_nothing() -> None:
    talk = Talk()
    talk.client(q("SELECT id FROM orders"))
    assert talk.core.authorize(_authority(READ, WIDE), 2) == ""


def _refused(talk: Talk, *messages_: bytes) -> bool:
    before = len(talk.facts(StatementDenied))
    talk.client(*messages_)
    return len(talk.facts(StatementDenied)) > before


@pytest.mark.parametrize("fetch", ["FETCH ALL FROM c", "MOVE 1 FROM c", "FETCH c"])
def test_a_cursor_is_decided_anew_at_each_fetch(fetch: str) -> None:
    talk = _wide()
    talk.client(q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM secrets; DECLARE d CURSOR FOR SELECT id FROM orders"))
    talk.server(c("BEGIN") + c("DECLARE CURSOR") + c("DECLARE CURSOR") + z(b"T"))
    assert not _refused(talk, q(fetch))
    talk.server(c("FETCH 1") + z(b"T"))
    assert _narrow(talk) == ""
    assert _refused(talk, q(fetch))
    talk.server(error("42601", "pgwarden_refused_1") + z(b"E"))
    assert _refused(talk, p(fetch) + b() + e() + S)
    talk.server(error("42601", "pgwarden_refused_2") + z(b"E"))
    assert not _refused(talk, q("FETCH ALL FROM d"))
    assert not _refused(talk, q("CLOSE c"))


def test_a_fetch_under_way_from_such_a_cursor_ends_the_session() -> None:
    talk = _wide()
    talk.client(q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM secrets"))
    talk.server(c("BEGIN") + c("DECLARE CURSOR") + z(b"T"))
    talk.client(q("FETCH ALL FROM c"))
    assert "secrets" in _narrow(talk)


def test_a_cursor_that_nobody_saw_declared_is_not_fetched_from_after_a_narrowing() -> None:
    talk = _wide()
    talk.client(q("BEGIN"))
    talk.server(c("BEGIN") + z(b"T"))
    assert not _refused(talk, q('FETCH ALL FROM "<unnamed portal 1>"'))
    talk.server(c("FETCH 0") + z(b"T"))
    _narrow(talk)
    assert _refused(talk, q('FETCH ALL FROM "<unnamed portal 1>"'))


def test_a_cursor_of_the_same_string_is_fetched_from_after_a_narrowing() -> None:
    talk = _wide()
    _narrow(talk)
    assert not _refused(talk, q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM orders; FETCH ALL FROM c"))
    assert _refused(talk, q("BEGIN; FETCH ALL FROM d; DECLARE d CURSOR FOR SELECT id FROM orders"))


def test_a_name_stands_for_the_cursor_that_was_declared_last() -> None:
    talk = _wide()
    talk.client(q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM secrets; CLOSE c; DECLARE c CURSOR FOR SELECT id FROM orders"))
    talk.server(c("BEGIN") + c("DECLARE CURSOR") + c("CLOSE CURSOR") + c("DECLARE CURSOR") + z(b"T"))
    assert _narrow(talk) == ""
    assert not _refused(talk, q("FETCH ALL FROM c"))


def test_cursors_end_with_their_transaction() -> None:
    talk = _wide()
    talk.client(q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM secrets"))
    talk.server(c("BEGIN") + c("DECLARE CURSOR") + z(b"T"))
    talk.client(q("COMMIT"))
    talk.server(c("COMMIT") + z())
    talk.client(q("BEGIN; DECLARE c CURSOR FOR SELECT id FROM orders"))
    talk.server(c("BEGIN") + c("DECLARE CURSOR") + z(b"T"))
    _narrow(talk)
    assert not _refused(talk, q("FETCH ALL FROM c"))


def test_a_session_declares_only_so_many_cursors_at_once() -> None:
    talk = Talk(settings=GatewaySettings(prepared_max=2))
    talk.client(q("BEGIN; DECLARE a CURSOR FOR SELECT 1; DECLARE b CURSOR FOR SELECT 1"))
    assert _refused(talk, q("DECLARE c CURSOR FOR SELECT 1"))


def test_sql_prepared_statements_are_decided_anew_when_they_are_executed() -> None:
    talk = _wide()
    talk.client(q("PREPARE s AS SELECT id FROM secrets"))
    talk.server(c("PREPARE") + z())
    talk.client(p("EXECUTE s", "x") + S)
    talk.server(PARSED + z())
    assert not _refused(talk, q("EXECUTE s"))
    talk.server(c("SELECT 0") + z())
    assert _narrow(talk) == ""
    assert _refused(talk, q("EXECUTE s"))
    talk.server(error("42601", "pgwarden_refused_1") + z())
    assert _refused(talk, b("x") + e() + S)


def test_what_it_describes_is_decided_anew_too() -> None:
    talk = _wide()
    talk.client(p("SELECT * FROM secrets", "s") + S)
    talk.server(PARSED + z())
    _narrow(talk)
    assert _refused(talk, message(b"D", b"Ss\0") + S)


def test_a_session_that_listens_where_it_may_listen_no_more_ends() -> None:
    talk = _wide()
    talk.client(q("LISTEN news"))
    talk.server(c("LISTEN") + z())
    assert "news" in _narrow(talk)


# -- what a crash, or an error, makes of it ----------------------------------------------------------------------------------------


def _to_server(commands: list[Command]) -> ToServer:
    (sent,) = [command for command in commands if isinstance(command, ToServer)]
    return sent


@pytest.mark.parametrize("text", ["COMMIT", "END", "ROLLBACK", "COMMIT AND CHAIN", "ABORT"])
@pytest.mark.parametrize(
    ("durability", "held", "settles"), [("fast", False, False), ("group", False, True), ("strict", True, True)]
)
def test_what_ends_a_transaction_goes_behind_the_ends_of_what_came_before(
    text: str, durability: Durability, held: bool, settles: bool
) -> None:
    talk = Talk(durability)
    talk.client(q("BEGIN"))
    talk.server(c("BEGIN") + z(b"T"))
    sent = _to_server(talk.client(q(text)))
    assert (sent.held, sent.settles) == (held, settles)


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_what_ends_a_transaction_is_on_disk_first_where_something_before_it_has_no_end(durability: Durability) -> None:
    for commit in (q("COMMIT"), p("COMMIT") + b() + e() + S):
        talk = Talk(durability)
        talk.client(q("SELECT 1"))
        commands = talk.client(commit)
        assert _to_server(commands).held
        (begun,) = [command for command in commands if isinstance(command, Record) and isinstance(command.event, StatementStarted)]
        assert begun.urgent
    talk = Talk(durability)
    assert _to_server(talk.client(q("SELECT 1; COMMIT"))).held


def test_a_savepoint_ends_nothing() -> None:
    talk = Talk()
    for text in ("SAVEPOINT s", "ROLLBACK TO s", "RELEASE s", "BEGIN"):
        sent = _to_server(talk.client(q(text)))
        assert (sent.held, sent.settles) == (False, False)


def _undone(talk: Talk) -> list[int]:
    events = talk.facts(OutcomeResolved)
    assert all(isinstance(event, OutcomeResolved) and event.resolution == "aborted" for event in events)
    return [event.execution for event in events if isinstance(event, OutcomeResolved)]


READ_ONE = p("SELECT 1") + b() + e()
READ_DONE = PARSED + BOUND + ROW + c("SELECT 1")


def test_a_commit_that_fails_at_sync_undoes_what_was_ok_in_its_pipeline() -> None:
    talk = Talk()
    talk.client(READ_ONE + READ_ONE + S)
    talk.server(READ_DONE + READ_DONE + error("23503", "deferred") + z())
    assert _undone(talk) == [1, 2]


def test_an_error_undoes_what_was_ok_before_it_in_the_same_pipeline_or_string() -> None:
    talk = Talk()
    talk.client(READ_ONE + READ_ONE + S)
    talk.server(READ_DONE + PARSED + BOUND + error("22012", "division by zero") + z())
    assert _undone(talk) == [1]
    talk = Talk()
    talk.client(q("SELECT 1; SELECT 2; SELECT 3"))
    talk.server(c("SELECT 1") + c("SELECT 1") + error("22012", "division by zero") + z())
    assert _undone(talk) == [1, 2]


def test_a_refusal_undoes_what_was_ok_before_it_in_the_same_pipeline() -> None:
    talk = Talk()
    talk.client(READ_ONE + p("DELETE FROM orders") + b() + e() + S)
    talk.server(READ_DONE + error("42601", "pgwarden_refused_1") + z())
    assert _undone(talk) == [1]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        # nothing failed
        (READ_ONE + S, READ_DONE + z()),
        # each in a transaction of its own
        (READ_ONE + S + READ_ONE + S, READ_DONE + z() + PARSED + BOUND + error("22012", "") + z()),
        (q("SELECT 1") + q("SELECT 2"), c("SELECT 1") + z() + error("22012", "") + z()),
        # a cancellation may come when the commit is done
        (READ_ONE + S, READ_DONE + error("57014", "canceled") + z()),
        # an explicit transaction has an end of its own in the record
        (q("BEGIN; SELECT 1; SELECT 2"), c("BEGIN") + c("SELECT 1") + error("22012", "") + z(b"E")),
        # what was committed before the error
        (q("BEGIN; SELECT 1; COMMIT; SELECT 2"), c("BEGIN") + c("SELECT 1") + c("COMMIT") + error("22012", "") + z()),
        (q("SELECT 1; COMMIT; SELECT 2"), c("SELECT 1") + c("COMMIT") + error("22012", "") + z()),
        # it may commit by itself, and what stands before it with it
        (p("SELECT 1") + b() + e() + p("VACUUM orders") + b() + e() + S, READ_DONE + PARSED + BOUND + error("22012", "") + z()),
        # the server's last word: it may have come after the commit
        (READ_ONE + S, READ_DONE + message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mshutdown\0\0")),
    ],
)
def test_what_is_not_certain_to_be_undone_is_not_said_to_be(sent: bytes, received: bytes) -> None:
    talk = Talk()
    maintenance = LiveGrant("g-9", "reporter", Scope("shop", (Rule("public", ("orders",), ("select", "ddl")),)), "oscar", 0)
    talk.core.authorize(_authority(READ, maintenance), 2)
    talk.client(sent)
    talk.server(received)
    assert _undone(talk) == []


def test_a_connection_that_is_lost_in_a_transaction_took_it_along() -> None:
    talk = Talk()
    talk.client(q("BEGIN"))
    talk.server(c("BEGIN") + z(b"T"))
    talk.client(q("SELECT 1"))
    talk._heard([talk.core.server_lost(9, 99)])
    (finished,) = [
        event for event in talk.facts(StatementFinished) if isinstance(event, StatementFinished) and event.execution == 2
    ]
    assert finished.outcome == "unknown"
    assert _undone(talk) == [2]


@pytest.mark.parametrize("texts", [("SELECT 1",), ("BEGIN", "COMMIT"), ("BEGIN", "SELECT 1; COMMIT")])
def test_a_connection_that_is_lost_where_a_commit_may_have_run_leaves_it_unknown(texts: tuple[str, ...]) -> None:
    talk = Talk()
    for text in texts[:-1]:
        talk.client(q(text))
        talk.server(c(text) + z(b"T"))
    talk.client(q(texts[-1]))
    talk._heard([talk.core.server_lost(9, 99)])
    assert _undone(talk) == []
    assert any(isinstance(event, StatementFinished) and event.outcome == "unknown" for event in talk.facts())


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("extended", [False, True])
def test_what_stands_behind_a_commit_that_was_answered_is_not_said_to_be_undone_by_the_loss(end: str, extended: bool) -> None:
    for sent, received in (
        (p(end) + b() + e() + READ_ONE + S, PARSED + BOUND + c(end)) if extended else (q(f"{end}; SELECT 1"), c(end)),
        (q(end) + q("SELECT 1"), c(end)),
    ):
        talk = Talk()
        talk.client(q("BEGIN"))
        talk.server(c("BEGIN") + z(b"T"))
        talk.client(sent)
        talk.server(received)
        talk._heard([talk.core.server_lost(9, 99)])
        assert _undone(talk) == []
        assert any(isinstance(event, StatementFinished) and event.outcome == "unknown" for event in talk.facts())


def test_a_transaction_that_was_begun_behind_a_commit_and_its_answer_is_taken_along_by_the_loss() -> None:
    talk = Talk()
    talk.client(q("BEGIN"))
    talk.server(c("BEGIN") + z(b"T"))
    talk.client(q("COMMIT; BEGIN"))
    talk.server(c("COMMIT") + c("BEGIN") + z(b"T"))
    talk.client(q("SELECT 1"))
    talk._heard([talk.core.server_lost(9, 99)])
    assert _undone(talk) == [4]


def test_a_held_agents_statement_never_reaches_the_server_and_a_rollback_does(talk: Talk) -> None:
    talk.core.restrain("agent a is held", None)
    talk.client(q("SELECT id FROM orders"))
    (denied,) = talk.facts(StatementDenied)
    assert isinstance(denied, StatementDenied)
    assert (denied.sqlstate, denied.rule, denied.reason) == ("42501", "held", "agent a is held")
    assert b"FROM orders" not in talk.to_server
    talk.server(error("42601", "syntax error") + z())
    talk.client(q("ROLLBACK"))
    assert q("ROLLBACK") in talk.to_server
    talk.core.restrain("", None)
    talk.client(q("SELECT id FROM orders"))
    assert q("SELECT id FROM orders") in talk.to_server


def test_a_paced_statement_waits_for_its_turn_and_keeps_its_place(talk: Talk) -> None:
    talk.core.restrain("", Pace(60))
    talk.client(q("SELECT id FROM orders") + q("SELECT 2") + q("SELECT 3"))
    assert talk.to_server == q("SELECT id FROM orders")
    turn = talk.core.paced_until_us
    assert turn > talk.clock
    talk.client(q("SELECT 4"))
    talk.server(c("SELECT 1") + z())
    assert talk.to_server == q("SELECT id FROM orders")
    talk.clock = turn
    talk._heard([talk.core.resume(9, talk.clock)])
    assert talk.to_server == q("SELECT id FROM orders") + q("SELECT 2")
    talk.core.restrain("", None)
    talk._heard([talk.core.resume(9, talk.clock)])
    assert talk.to_server == b"".join(q(text) for text in ("SELECT id FROM orders", "SELECT 2", "SELECT 3", "SELECT 4"))
    assert talk.core.paced_until_us == 0


def test_turns_are_evenly_spaced_over_all_sessions_of_an_agent() -> None:
    pace = Pace(60)
    assert [pace.slot(1_000) for _ in range(3)] == [1_000, 1_001_000, 2_001_000]
    assert pace.slot(9_000_000) == 9_000_000
    pace.change(600)
    assert pace.slot(9_000_000) == 10_000_000
    assert pace.slot(9_000_000) == 10_100_000
