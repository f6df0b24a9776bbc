"""What recorded logs of real servers say, and what hostile ones must not make of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.collectors.collector import Observation, digest
from ingest.collectors.log_lines import Clock, Format, LogLine, Unreadable, cut, last_begin, parse, resume
from ingest.collectors.log_sessions import FOREIGN, ZONE, LogSessions
from ingest.collectors.settings import LogSettings, TextPolicy
from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, StatementObserved
from tests.fuzz.fuzz_server_log import one_input
from tests.ingest.collectors.scenario import HOSTILE

HERE = Path(__file__).parent
FILES = ("pg15.json", "pg15.csv", "pg18.json", "pg18.csv")
T0 = 1_800_000_000_000_000


def kind_of(name: str) -> Format:
    return "jsonlog" if name.endswith("json") else "csvlog"


def lines_of(name: str) -> list[LogLine]:
    data = (HERE / name).read_bytes()
    records, taken = cut(kind_of(name), data)
    assert taken == len(data)
    lines = [parse(kind_of(name), record) for record in records]
    assert not [line for line in lines if isinstance(line, Unreadable)]
    return [line for line in lines if isinstance(line, LogLine)]


def sessions(policy: TextPolicy | None = None, since_us: int = 0, **limits: float) -> LogSessions:
    return LogSessions("pglog", "main", policy or TextPolicy(), LogSettings(**limits), since_us)  # type: ignore[arg-type]


def told(lines: Iterable[LogLine], seen: LogSessions | None = None) -> list[Observation]:
    seen = seen or sessions()
    for place, line in enumerate(lines):
        seen.see(line, (1, place))
    return seen.out


def statements(out: Iterable[Observation]) -> list[StatementObserved]:
    return [one for one in out if isinstance(one, StatementObserved)]


def line(number: int, message: str, severity: str = "LOG", *, session: str = "6b000000.10", at: int = 0, **more: object) -> LogLine:
    minutes, milli = divmod(at, 60_000)
    said = {
        "session_id": session,
        "line_num": number,
        "timestamp": f"2027-01-15 08:{minutes:02}:{milli // 1000:02}.{milli % 1000:03} UTC",
        "error_severity": severity,
        "message": message,
        "user": "agent",
        "dbname": "shop",
        "pid": 16,
        "remote_host": "10.0.0.7",
        "remote_port": 4711,
        "backend_type": "client backend",
        **more,
    }
    return LogLine(**said)  # type: ignore[arg-type]


# -- what real servers logged ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_each_execution_of_the_scenario_is_told_once_with_its_sqlstate(name: str) -> None:
    ran = [(one.text, one.sqlstate) for one in statements(told(lines_of(name))) if one.source == "statement"]
    expected = [
        ("SELECT 1", ""),
        ("CREATE TEMPORARY TABLE seen (id int PRIMARY KEY, word text)", ""),
        ("INSERT INTO seen VALUES (1, 'a'), (2, 'b'); SELECT count(*) FROM seen; UPDATE seen SET word = 'c'", ""),
        ("COPY seen FROM STDIN", ""),
        (HOSTILE, ""),
        ("", ""),
        ("PREPARE p AS SELECT word FROM seen WHERE id = $1", ""),
        ("EXECUTE p(1)", ""),
        ("BEGIN", ""),
        ("DECLARE c CURSOR FOR SELECT * FROM seen", ""),
        ("FETCH 1 FROM c", ""),
        ("COMMIT", ""),
    ]
    assert ran[: len(expected)] == expected
    assert ran[14:] == [
        ("SELECT word FROM seen WHERE id = $1", ""),
        *[("SELECT id FROM seen WHERE word = $1", "")] * 2,
        *[("INSERT INTO seen VALUES ($1, 'piped')", "")] * 2,
        ("SELEC 1", "42601"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT 1/0", "22012"),
        ("INSERT INTO seen VALUES (1, 'twice')", "23505"),
        ("SELECT 2; SELECT 1/0; SELECT 3", "22012"),
        ("DO $$ BEGIN PERFORM 1/0; END $$", "22012"),
        ("SELECT * FROM nowhere WHERE id = $1", "42P01"),
        ("SELECT 1/$1::int", "22012"),
        ("SELECT $1::int", "22P02"),
        ("SELECT 'after all of it'", ""),
        (ran[-2][0], ""),
        ("SELECT 'the last'", ""),
    ]
    assert ran[-2][0].startswith("SELECT pg_terminate_backend(")


@pytest.mark.parametrize("name", FILES)
def test_each_session_begins_and_ends_once_with_who_it_was(name: str) -> None:
    out = told(lines_of(name))
    began = [one for one in out if isinstance(one, SessionObserved)]
    ended = {one.session_id: one.reason for one in out if isinstance(one, SessionUnobserved)}
    assert [one.application_name for one in began] == ["scenario", "victim", "killer", "", "", "pg_receivewal"]
    assert {one.session_id for one in began} == set(ended)
    assert ended[began[1].session_id] == "57P01"
    assert ended[began[3].session_id] == "28000"
    assert began[5].backend_type == "walsender"
    for one in began:
        start, pid = one.session_id.split(".")
        assert int(pid, 16) == one.backend_pid
        assert 0 <= one.at_us - int(start, 16) * 1_000_000 < 5_000_000
        assert one.client.startswith("127.0.0.1:")
    assert not [one for one in out if isinstance(one, ObservationGap)]


@pytest.mark.parametrize("version", ["pg15", "pg18"])
def test_both_formats_tell_the_same(version: str) -> None:
    assert told(lines_of(f"{version}.json")) == told(lines_of(f"{version}.csv"))


def test_replication_commands_are_told() -> None:
    found = [one.text for one in statements(told(lines_of("pg18.json"))) if one.source == "replication"]
    assert found == ["SHOW data_directory_mode", "IDENTIFY_SYSTEM", 'CREATE_REPLICATION_SLOT "s1" PHYSICAL']


def test_pgaudit_adds_the_statements_of_functions_and_rows_and_repeats_nothing() -> None:
    out = statements(told(lines_of("pg15audit.json")))
    nested = [(one.text, one.rows) for one in out if one.source == "nested"]
    assert ("insert into t values (1),(2)", 2) in nested
    assert [one.rows for one in out if one.source == "statement" and one.text.endswith("'x,y' from t")] == [4]
    assert [one.rows for one in out if one.text == "SELECT 2; SELECT 1/0; SELECT 3"] == [1]
    plain = [(one.text, one.sqlstate) for one in out if one.source == "statement"]
    without = [(one.text, one.sqlstate) for one in statements(told(lines_of("pg15.json"))) if one.source == "statement"]
    assert [one for one in plain if "terminate" not in one[0]][: len(without) - 2] == without[:-2]


@pytest.mark.parametrize(("first", "source", "rows"), [("statement: SELECT f()", "statement", 1), ("", "audit", -1)])
def test_a_statement_that_pgaudit_speaks_of_before_and_after_what_its_function_ran_is_told_once(
    first: str, source: str, rows: int
) -> None:
    counted = (lambda number: f",{number}") if first else (lambda _: "")
    messages = [
        first,
        f"AUDIT: SESSION,1,1,FUNCTION,EXECUTE,FUNCTION,public.f,SELECT f(),<not logged>{counted(0)}",
        f"AUDIT: SESSION,1,2,WRITE,UPDATE,TABLE,public.t,UPDATE t SET a = 1,<not logged>{counted(3)}",
        f"AUDIT: OBJECT,1,2,WRITE,UPDATE,TABLE,public.t,UPDATE t SET a = 1,<not logged>{counted(3)}",
        f"AUDIT: SESSION,1,3,READ,SELECT,,,SELECT f(),<not logged>{counted(1)}",
        first or "AUDIT: SESSION,2,1,READ,SELECT,,,SELECT f(),<not logged>",  # another execution
    ]
    out = statements(told(line(number, message) for number, message in enumerate(filter(None, messages), 1)))
    nested = [(one.text, one.rows) for one in out if one.source == "nested"]
    assert nested == [("UPDATE t SET a = 1", 3 if first else -1)]
    assert [(one.source, one.text, one.rows) for one in out if one.source != "nested"][:1] == [(source, "SELECT f()", rows)]


def test_pgaudit_alone_is_a_witness_too() -> None:
    lines = [one for one in lines_of("pg15audit.json") if not one.message.startswith(("statement: ", "execute "))]
    numbers: dict[str, int] = {}
    for index, one in enumerate(lines):
        numbers[one.session_id] = numbers.get(one.session_id, 0) + 1
        lines[index] = LogLine(
            **{**{name: getattr(one, name) for name in one.__struct_fields__}, "line_num": numbers[one.session_id]}
        )
    ran = [(one.text, one.sqlstate) for one in statements(told(lines)) if one.source in ("audit", "statement")]
    for expected in (("SELECT 1", ""), ("SELEC 1", "42601"), ("SELECT 1/0", "22012"), ("COMMIT", "")):
        assert expected in ran


# -- one session, line by line -----------------------------------------------------------------------------------------------------


def test_a_missing_line_is_a_gap_of_that_session() -> None:
    seen = sessions()
    told([line(1, "connection received: x"), line(2, "statement: A"), line(5, "statement: B", at=7)], seen)
    gap = next(one for one in seen.out if isinstance(one, ObservationGap))
    assert (gap.session_id, gap.lost, gap.reason) == ("6b000000.10", 2, "line_num 3 to 4 of the session are not in the log")
    first = statements(seen.out)[0]
    assert (first.text, first.outcome_known) == ("A", False)
    assert seen.lost == 2


def test_lines_missing_at_the_begin_of_a_session_that_was_watched_from_its_begin_are_a_gap() -> None:
    assert any(isinstance(one, ObservationGap) for one in told([line(4, "statement: A")], sessions(since_us=0)))
    late = sessions(since_us=0x6B000000 * 1_000_000 + 5)
    assert not any(isinstance(one, ObservationGap) for one in told([line(4, "statement: A")], late))


def test_a_repeated_line_is_dropped() -> None:
    seen = sessions()
    told([line(1, "statement: A"), line(2, "statement: B"), line(1, "statement: A"), line(2, "statement: B")], seen)
    seen.settle(10**18)
    assert [one.text for one in statements(seen.out)] == ["A", "B"]
    assert seen.repeated == 2


def test_a_statement_whose_end_is_not_logged_is_told_after_a_second_and_again_when_it_fails() -> None:
    seen = sessions()
    begin = 1_800_000_000_000_000
    told([line(1, "statement: SELECT pg_sleep(9)")], seen)
    at_us = seen.newest_us
    seen.settle(at_us + 999_000)
    assert statements(seen.out) == []
    assert seen.complete_us(at_us + 999_000) < at_us
    seen.settle(at_us + 1_000_000)
    assert [(one.sequence, one.outcome_known) for one in statements(seen.out)] == [(1, False)]
    assert seen.complete_us(at_us + 1_000_000) == at_us + 750_000
    told([line(2, "canceling", "ERROR", ps="SELECT", state_code="57014", statement="SELECT pg_sleep(9)")], seen)
    assert [(one.sequence, one.sqlstate, one.outcome_known) for one in statements(seen.out)][1:] == [(1, "57014", True)]
    assert at_us > begin - 10**15


def test_a_failed_parse_of_the_same_text_is_not_the_run_before_it() -> None:
    out = told(
        [
            line(1, "execute <unnamed>: SELECT * FROM t"),
            line(2, "gone", "ERROR", ps="PARSE", state_code="42P01", statement="SELECT * FROM t"),
        ]
    )
    assert [(one.sequence, one.sqlstate) for one in statements(out)] == [(1, ""), (2, "42P01")]


def test_durations_are_told_where_the_server_logs_them() -> None:
    out = told(
        [
            line(1, "duration: 1.500 ms", ps="PARSE"),
            line(2, "execute <unnamed>: SELECT 1"),
            line(3, "duration: 2.125 ms", ps="SELECT"),
            line(4, "duration: 12.001 ms  statement: SELECT 2"),
            line(5, "duration: 12.001 ms  parse s1: SELECT 3"),
            line(6, "duration: 0.042 ms  execute s1: SELECT 3"),
            line(7, "duration: 0.042 ms  plan:\nQuery Text: SELECT 3"),
        ]
    )
    assert [(one.text, one.duration_us) for one in statements(out)] == [("SELECT 1", 2125), ("SELECT 2", 12001), ("SELECT 3", 42)]


def test_a_fast_path_call_is_told_without_text_of_its_own() -> None:
    out = told([line(1, 'fastpath function call: "loread" (OID 954)'), line(2, "disconnection: session time: x")])
    assert [(one.source, one.text) for one in statements(out)] == [("function call", '"loread" (OID 954)')]


def test_a_portal_that_goes_on_is_no_further_execution() -> None:
    out = told([line(1, "execute s/c: SELECT 1"), line(2, "execute fetch from s/c: SELECT 1"), line(3, "disconnection: x")])
    assert [one.text for one in statements(out)] == ["SELECT 1"]


def test_a_name_with_a_colon_does_not_hide_the_text_of_an_error() -> None:
    out = told(
        [
            line(1, "execute a: b: SELECT 1/0"),
            line(2, "division by zero", "ERROR", ps="SELECT", state_code="22012", statement="SELECT 1/0"),
        ]
    )
    assert [(one.text, one.sqlstate) for one in statements(out)] == [("SELECT 1/0", "22012")]


@pytest.mark.parametrize("more", [{"context": "PL/pgSQL function f() line 1 at RAISE"}, {"statement": "SELECT f()"}])
@pytest.mark.parametrize(
    "message",
    [
        "statement: DROP TABLE x",
        "execute a: DROP TABLE x",
        "disconnection: session time: 0",
        "AUDIT: SESSION,1,1,READ,SELECT,,,SELECT 1,<none>",
    ],
)
def test_what_a_client_makes_the_server_log_is_not_taken_for_the_servers_own_word(message: str, more: dict[str, str]) -> None:
    assert told([line(1, "connection received: x"), line(2, message, **more)]) == []


def test_what_a_parallel_worker_says_is_its_leaders() -> None:
    assert told([line(1, "x", "ERROR", backend_type="parallel worker", state_code="57014", statement="SELECT 1")]) == []


def test_a_server_that_restarted_has_no_session_of_before() -> None:
    seen = sessions()
    told([line(1, "statement: SELECT 1")], seen)
    told([line(1, "database system is ready to accept connections", session="6b000009.1", backend_type="postmaster")], seen)
    assert [one.reason for one in seen.out if isinstance(one, SessionUnobserved)] == ["the server was restarted"]


def test_messages_in_another_language_and_times_in_another_zone_are_said_with_the_remedy() -> None:
    seen = sessions()
    told([line(1, "Tabelle fehlt", "FEHLER")], seen)
    assert seen.hindrance == FOREIGN
    told([line(2, "no table", "ERROR")], seen)
    assert seen.hindrance == ""
    told([line(3, "x", timestamp="2027-01-15 08:00:00.000 CET")], seen)
    assert seen.hindrance == ZONE


def test_a_text_is_cut_and_its_digest_is_of_the_whole() -> None:
    text = "SELECT '" + "ä" * 100 + "'"
    (one,) = statements(told([line(1, f"statement: {text}"), line(2, "disconnection: x")], sessions(TextPolicy(True, 19))))
    assert one.text == "SELECT 'äääää"
    assert (one.text_bytes, one.digest) == (len(text.encode()), digest(text.encode()))
    (one,) = statements(told([line(1, f"statement: {text}"), line(2, "disconnection: x")], sessions(TextPolicy(False))))
    assert (one.text, one.text_bytes, one.digest) == ("", len(text.encode()), digest(text.encode()))


def test_sessions_that_are_never_seen_to_end_are_forgotten_at_the_limit() -> None:
    seen = sessions(sessions_max=100)
    for number in range(1000):
        seen.see(line(1, "statement: SELECT 1", session=f"6b000000.{number:x}", at=number), (1, number))
    assert len(seen.kept()[0]) <= 100
    seen.settle(10**18)
    assert len(statements(seen.out)) == 1000


def test_a_checkpoint_begins_where_something_is_open() -> None:
    seen = sessions()
    lines = [
        line(1, "statement: A"),
        line(1, "statement: X", session="6b000000.11"),
        line(2, "statement: Y", session="6b000000.11"),
    ]
    told(lines, seen)
    kept, places = seen.kept()
    assert places == {1: 0}
    again = LogSessions("pglog", "main", TextPolicy(), LogSettings(), 0, kept)
    told([*lines, line(2, "disconnection: x"), line(3, "disconnection: x", session="6b000000.11")], again)
    assert sorted(one.text for one in statements(seen.out + again.out)) == ["A", "X", "Y"]
    assert len([one for one in seen.out + again.out if isinstance(one, SessionObserved)]) == 2
    assert again.lost == 0


# -- bytes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_split_of_a_file_gives_the_same_records(name: str) -> None:
    kind = kind_of(name)
    data = (HERE / name).read_bytes()
    whole, _ = cut(kind, data)
    for split in range(0, len(data), 97):
        first, taken = cut(kind, data[:split])
        rest, _ = cut(kind, data[taken:])
        assert [*first, *rest] == list(whole)


@pytest.mark.parametrize("name", FILES)
def test_from_the_middle_of_a_record_reading_goes_on_at_the_next(name: str) -> None:
    kind = kind_of(name)
    data = (HERE / name).read_bytes()
    records, _ = cut(kind, data)
    begins = []
    at = 0
    for record in records:
        begins.append(at)
        at += len(record) + 1
    for offset in range(1, len(data), 331):
        found = resume(kind, data[offset:])
        following = next((begin for begin in begins if begin > offset), None)
        # What looks like a record within a statement of the scenario is one that a reader from the middle may fall for, and refuses.
        assert found < 0 or following is None or found <= following - offset
    assert last_begin(kind, data) in (begins[-1], len(data))


def test_no_bytes_make_the_parsers_raise() -> None:
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        for kind in ("jsonlog", "csvlog"):
            for record in cut(kind, data + b"\n")[0]:
                parse(kind, record)

    check()


def test_no_columns_make_the_fold_raise() -> None:
    words = st.sampled_from(
        ["statement: ", "execute ", "AUDIT: ", "duration: ", "SESSION,1,1,", '"', ": ", "\n", "disconnection: ", "é"]
    )
    text = st.lists(words | st.text(max_size=5), max_size=6).map("".join)

    @given(
        st.lists(st.tuples(st.integers(-3, 2**63), text, st.sampled_from(["LOG", "ERROR", "FATAL", "X"]), text, text), max_size=12)
    )
    def check(said: list[tuple[int, str, str, str, str]]) -> None:
        seen = sessions()
        for number, message, severity, session, statement in said:
            seen.see(line(number, message, severity, session=session, statement=statement, timestamp=session), (1, 1))
        seen.settle(2**62)
        seen.kept()

    check()


def test_a_record_that_is_no_text_is_read_all_the_same() -> None:
    record = json.dumps({"session_id": "1.1", "line_num": 1, "timestamp": "x", "message": "statement: SELECT '?'"}).encode()
    found = parse("jsonlog", record.replace(b"?", b"\xff"))
    assert isinstance(found, LogLine)
    assert found.message == "statement: SELECT '\ufffd'"


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        ("2027-01-15 08:00:00.000 UTC", 1_800_000_000.0),
        ("2027-01-15 08:00:01.250 GMT", 1_800_000_001.25),
        ("2027-01-15 11:30:00.000 +03:30", 1_800_000_000.0),
        ("2027-01-15 04:00:00.000 -04", 1_800_000_000.0),
        ("2027-01-15 08:00:00.000 CET", -1e-6),
        ("2027-13-15 08:00:00.000 UTC", -1e-6),
        ("", -1e-6),
    ],
)
def test_times_of_records(timestamp: str, seconds: float) -> None:
    clock = Clock()
    assert [clock.at_us(timestamp) for _ in range(2)] == [round(seconds * 1e6)] * 2


def test_the_fuzz_target_of_the_servers_log() -> None:
    pieces = [record for name in FILES for record in cut(kind_of(name), (HERE / name).read_bytes())[0]]
    noise = st.binary(max_size=40) | st.sampled_from([b"\n", b'"', b'""', b",", b'{"timestamp":"', b"2027-01-15 08:00:00.000 UTC,"])

    @given(st.lists(st.sampled_from(pieces) | noise, max_size=6).map(b"".join))
    def check(data: bytes) -> None:
        one_input(data)

    check()


def test_what_is_read_again_after_a_restart_of_a_session_that_ended_is_neither_a_gap_nor_told() -> None:
    lines = [
        line(1, "connection received: x"),
        line(2, "connection authorized: user=agent database=shop"),
        line(3, "disconnection: x"),
    ]
    seen = sessions()
    told(lines, seen)
    again = LogSessions("pglog", "main", TextPolicy(), LogSettings(), 0, seen.kept()[0])
    told(lines, again)
    assert (again.out, again.lost, again.repeated) == ([], 0, 3)


def test_what_only_pgaudit_says_is_not_counted_where_the_server_logs_each_statement() -> None:
    audit = "AUDIT: SESSION,1,1,READ,SELECT,,,<not logged>,<not logged>"
    out = told([line(1, "statement: SELECT 1"), line(2, audit, ps="SELECT"), line(3, "disconnection: x")])
    assert [(one.source, one.text) for one in statements(out)] == [("statement", "SELECT 1")]
    out = told([line(1, audit, ps="SELECT"), line(2, "disconnection: x")])
    assert [(one.source, one.text, one.text_bytes) for one in statements(out)] == [("audit", "", 0)]
