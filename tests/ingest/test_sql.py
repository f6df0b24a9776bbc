from __future__ import annotations

import time

import pglast.ast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import sql
from ingest.sql_limits import Limits
from ingest.sql_nodes import FIELDS, NODE, OWN


def statements(text: str) -> tuple[sql.Statement, ...]:
    script = sql.parse(text)
    assert isinstance(script, sql.Script), script
    return script.statements


def one(text: str) -> sql.Statement:
    (statement,) = statements(text)
    return statement


def accesses(text: str) -> set[str]:
    return {f"{a.operation} {a.schema}.{a.name}" for a in one(text).accesses}


def unparsable(text: str, limits: Limits | None = None) -> sql.Unparsable:
    answer = sql.parse(text, limits) if limits else sql.parse(text)
    assert isinstance(answer, sql.Unparsable), answer
    return answer


# -- what a statement touches


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM a, s.b JOIN c ON true", {"select .a", "select s.b", "select .c"}),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x, public.x", {"select .a", "select public.x"}),
        ("WITH x AS (SELECT * FROM x) SELECT * FROM x", {"select .x"}),
        ("WITH RECURSIVE x AS (SELECT 1 UNION SELECT * FROM x) SELECT * FROM x", set()),
        ("WITH RECURSIVE x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x", set()),
        ("WITH x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x", {"select .y"}),
        ("SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) a, x", {"select .x"}),
        ("WITH x AS (SELECT 1) SELECT (SELECT count(*) FROM x) UNION SELECT count(*) FROM x", set()),
        ("WITH x AS (SELECT 1) INSERT INTO x SELECT * FROM x", {"insert .x"}),
        ("SELECT * FROM a x, b FOR UPDATE OF x", {"select .a", "select .b", "update .a"}),
        ("SELECT * FROM a FOR SHARE", {"select .a", "update .a"}),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x FOR UPDATE", {"select .a"}),
        ("COPY a (x) TO STDOUT", {"copy .a", "select .a"}),
        ("COPY (SELECT * FROM a) TO STDOUT", {"select .a", "copy .a"}),
        ("TRUNCATE a, s.b", {"ddl .a", "ddl s.b"}),
        ("CALL s.p(1)", {"call s.p"}),
        ("ALTER TABLE s.a RENAME TO b", {"ddl s.a", "ddl s.b"}),
        ("ALTER TABLE s.a SET SCHEMA t", {"ddl s.a", "ddl t.a"}),
        ("ALTER TYPE s.a RENAME TO b", {"ddl s.a", "ddl s.b"}),
        ("CREATE TABLE a (LIKE b) INHERITS (c)", {"ddl .a", "select .b", "ddl .c"}),
        ("CREATE TABLE a (x int REFERENCES b)", {"ddl .a", "select .b", "update .b"}),
        ("DROP SCHEMA s", {"ddl s.*"}),
        ("SELECT nextval('s.\"Q\"'), currval('P'), setval('s.r'::regclass, 1)", {"update s.Q", "select .p", "update s.r"}),
        ("EXPLAIN ANALYZE DELETE FROM a", {"delete .a"}),
        ("PREPARE p AS DELETE FROM a", {"delete .a"}),
        ("SELECT * INTO a FROM b", {"ddl .a", "select .b"}),
    ],
)
def test_the_accesses_of(text: str, expected: set[str]) -> None:
    assert one(text).refusal == ""
    assert accesses(text) == expected


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("SELECT 1", "SELECT"),
        ("VALUES (1)", "SELECT"),
        ("CREATE TABLE a (x int)", "CREATE TABLE"),
        ("CREATE MATERIALIZED VIEW a AS SELECT 1", "CREATE MATERIALIZED VIEW"),
        ("DROP INDEX a", "DROP INDEX"),
        ("ALTER TABLE a RENAME x TO y", "ALTER TABLE"),
        ("ALTER ROLE a SET x = 1", "ALTER ROLE"),
        ("START TRANSACTION", "BEGIN"),
        ("RESET ALL", "RESET"),
        ("MOVE c", "MOVE"),
        ("ANALYZE a", "ANALYZE"),
        ("GRANT SELECT ON a TO b", "GRANT"),
    ],
)
def test_the_verb_of(text: str, verb: str) -> None:
    assert one(text).verb == verb


def test_each_statement_is_a_slice_of_the_bytes() -> None:
    text = "SELECT 'é' ; ; /* ö */ BEGIN;DELETE FROM ünïcode -- end"
    raw = text.encode()
    found = statements(text)
    assert [s.verb for s in found] == ["SELECT", "BEGIN", "DELETE"]
    assert [raw[s.start : s.end].decode().strip() for s in found] == ["SELECT 'é'", "BEGIN", "DELETE FROM ünïcode -- end"]
    assert accesses("DELETE FROM ünïcode") == {"delete .ünïcode"}


def test_a_prepared_statement_is_kept_with_its_name() -> None:
    statement = one('PREPARE "P" (int) AS SELECT * FROM a WHERE x = $1')
    assert statement.prepares == "P"
    assert statement.prepared is not None
    assert statement.prepared.verb == "SELECT"
    assert statement.prepared.accesses == statement.accesses
    assert one("EXECUTE p (1)").executes == "p"
    assert one("EXPLAIN EXECUTE p").executes == "p"
    assert one("DEALLOCATE p").deallocates == "p"
    assert [one(text).deallocates for text in ["DEALLOCATE ALL", "DISCARD ALL", "DISCARD PLANS"]] == ["*", "*", ""]


def test_cursors_and_transactions_are_told() -> None:
    assert one("DECLARE c CURSOR FOR SELECT 1").declares == "c"
    assert [one(text).fetches for text in ["FETCH c", "MOVE 1 IN c", "CLOSE c", "CLOSE ALL"]] == ["c", "c", "c", "*"]
    texts = ["BEGIN", "END", "ABORT", "SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "SELECT 1"]
    assert [one(text).transaction for text in texts] == ["begin", "commit", "rollback", "savepoint", "release", "rollback to", ""]


def test_names_are_cut_to_63_bytes_at_a_whole_character() -> None:
    long = "t" * 80
    assert accesses(f"SELECT * FROM {long}") == {"select ." + "t" * 63}
    assert accesses(f'SELECT * FROM "{"é" * 40}"') == {"select ." + "é" * 31}
    assert one(f"WITH {long} AS (SELECT 1) SELECT * FROM {'t' * 63}").accesses == ()


def test_names_are_those_that_the_server_would_decode() -> None:
    for text in ["secrets", "SeCrEtS", '"secrets"', 'U&"s\\0065crets"', "U&\"s!0065crets\" UESCAPE '!'"]:
        assert accesses(f"SELECT * FROM {text}") == {"select .secrets"}


def test_only_what_postgres_does_not_bring_is_told_of_types_and_operators() -> None:
    statement = one("SELECT 1::int, 'a'::s.mood, 'b'::mood[], 1 <=> 2, 1 + 2, 1 OPERATOR(s.+) 2, 'x'::regclass")
    assert statement.types == (sql.Name("s", "mood"), sql.Name("", "mood"))
    assert statement.operators == (sql.Name("", "<=>"), sql.Name("s", "+"))
    assert statement.introspects


def test_relation_names_are_those_of_the_text_once_each() -> None:
    assert sql.relation_names(one("SELECT * FROM a, s.b, a x FOR UPDATE")) == ("a", "s.b")


def test_an_empty_text_has_no_statements() -> None:
    for text in ["", " ", ";;", "-- x", "/* x */"]:
        assert statements(text) == ()


def test_the_fingerprint_is_of_the_form_and_not_of_the_values() -> None:
    first, second = sql.parse("SELECT * FROM a WHERE x = 1"), sql.parse("select * from a where x = 'b'")
    assert isinstance(first, sql.Script)
    assert isinstance(second, sql.Script)
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 16


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_é", min_size=1, max_size=12).map(lambda name: "t_" + name)


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_a_renamed_table_is_found_under_its_new_name(names: list[str]) -> None:
    a, b, c = names
    for text in [
        f'SELECT (SELECT 1 FROM "{a}") FROM "{b}" JOIN LATERAL (VALUES ((SELECT 1 FROM "{c}"))) v ON true',
        f'WITH x AS (DELETE FROM "{a}" USING "{b}" RETURNING *) INSERT INTO "{c}" TABLE x',
        f'MERGE INTO "{a}" USING "{b}" ON EXISTS (TABLE "{c}") WHEN MATCHED THEN DO NOTHING',
        f'CREATE TABLE "{a}" AS SELECT * FROM generate_series(1, (SELECT 1 FROM "{b}")), "{c}"',
    ]:
        assert {access.name for access in one(text).accesses} == set(names), text


# -- what cannot be read


@pytest.mark.parametrize(
    ("text", "sqlstate", "message"),
    [
        ("SELEC 1", "42601", 'syntax error at or near "SELEC"'),
        ("SELECT", "", ""),
        ("SELECT 1 FROM", "42601", "syntax error at end of input"),
        ("SELECT 'x", "42601", "unterminated quoted string"),
        ("SELECT '\udc80'", "22021", 'invalid byte sequence for encoding "UTF8"'),
        ("SELECT 1\0; DROP TABLE orders", "08P01", "a statement may not contain a zero byte"),
        ("SELECT 1" + "+-" * 50 + "1", "54000", "more than 64 operator characters in a row"),
        ("/*" * 40 + " */" * 40, "54001", "comments are nested deeper than 32"),
        ("SELECT " + "/* " * 40 + "*/" * 40 + " 1", "54001", "comments are nested deeper than 32"),
        ("SELECT " + "1," * 60_000 + "1", "54000", "statement has more than 50000 tokens"),
        ("SELECT '" + "x" * 300_000 + "'", "54000", "statement of 300009 bytes is longer than 262144 bytes"),
    ],
)
def test_an_unreadable_text_is_told_as_postgres_would(text: str, sqlstate: str, message: str) -> None:
    if not sqlstate:
        assert one(text).refusal == ""  # PostgreSQL allows an empty target list
        return
    answer = unparsable(text)
    assert (answer.sqlstate, answer.message.split(" at or near \"'x")[0]) == (sqlstate, message)


def test_the_position_counts_characters_from_one() -> None:
    assert unparsable("SELECT 'é' FROM FROM").position == 17


def test_what_only_looks_like_a_long_operator_is_allowed() -> None:
    rule = "-" * 100
    for text in [f"{'-' * 2} {rule}\nSELECT 1", f"/* {rule} */ SELECT 1", f"/{'*' * 100}/ SELECT 1", f"SELECT '{rule}'"]:
        assert one(text).verb == "SELECT"
    for text in [f"SELECT $${rule}$$", f"SELECT $a${rule}$a$", f"SELECT E'\\'{rule}'", f'SELECT 1 AS "{rule}"']:
        assert one(text).verb == "SELECT"


@pytest.mark.parametrize("opening", ["$“$ ' $“$", "1$a$ ' $a$", "U&' '", "x'1'", '"\'"', "E'\\''", "--'\n", "/*'*/"])
def test_a_quote_does_not_hide_a_long_operator(opening: str) -> None:
    """As PostgreSQL's scanner reads it, the quote in `opening` is closed or none."""
    assert unparsable(f"SELECT {opening} " + "+-" * 50 + "1").sqlstate == "54000"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 10_000,
        "SELECT " + "(" * 10_000 + "1" + ")" * 10_000,
        "SELECT " + "NOT " * 40_000 + "true",
        "SELECT " + "ARRAY[" * 15_000,
        "SELECT " + "(SELECT " * 3_000 + "1" + ")" * 3_000,
        "SELECT 1" + "+1" * 24_000,
        "SELECT 1" + " UNION SELECT 1" * 15_000,
        "SELECT 1" + "::int" * 16_000,
        "SELECT * FROM a" + " JOIN a ON true" * 10_000,
        "SELECT 1" + " AT TIME ZONE 'x'" * 10_000,
        "SELECT 'a'" + ' COLLATE "C"' * 10_000,
        "SELECT 1" + " IS NULL" * 20_000,
        "SELECT " + "f(" * 5_000 + ")" * 5_000,
        "SELECT true" + " AND true" * 20_000,
        "SELECT a" + "[1]" * 10_000,
        "SELECT CASE " + "WHEN true THEN 1 " * 10_000 + "END",
        "SELECT 1;" * 20_000,
        "/*" * 40_000,
        "SELECT " + "/**/" * 40_000 + "1",
        "SELECT 1" + "+/**/" * 20_000 + "1",
        "$a$" * 40_000,
        "'" * 100_001,
        "WITH a AS (SELECT 1) " * 3_000 + "SELECT 1",
        "EXPLAIN " * 10_000 + "SELECT 1",
        "SELECT " + "-" * 64 + "1",
    ],
    ids=lambda text: text[:24].replace("\n", " "),
)
def test_a_hostile_length_or_depth_ends_soon_and_without_harm(text: str) -> None:
    started = time.perf_counter()
    answer = sql.parse(text[:262_144])
    assert time.perf_counter() - started < 2.0  # 0.2 s at most on an idle machine
    assert isinstance(answer, sql.Script | sql.Unparsable)


@pytest.mark.parametrize("levels", [100, 300, 500, 700, 1000, 1500])
def test_deep_nesting_is_refused_and_never_half_read(levels: int) -> None:
    answer = sql.parse("SELECT " + "f(" * levels + "(SELECT 1 FROM secrets)" + ")" * levels)
    if isinstance(answer, sql.Script):
        (statement,) = answer.statements
        assert statement.refusal or sql.relation_names(statement) == ("secrets",)
    else:
        assert answer.sqlstate == "54001"


def test_what_is_quick_is_parsed_in_this_process() -> None:
    assert sql.parses_inline("SELECT * FROM orders WHERE id = $1")
    assert sql.parses_inline("INSERT INTO t VALUES " + ", ".join("(1, 2, 3)" for _ in range(100)))
    assert not sql.parses_inline("SELECT 1 IN (" + "1," * 10_000 + "1)")
    assert not sql.parses_inline("SELECT '" + "x" * 40_000 + "'")
    assert sql.parses_inline("SELECT '\udc80'")


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    assert isinstance(sql.parse(text), sql.Script | sql.Unparsable)
    sql.parses_inline(text)


# -- the tables


def test_a_node_that_nobody_knows_refuses_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FIELDS, "CoalesceExpr")
    assert one("SELECT COALESCE(1, 2)").refusal == "coalesce expr is not something that agents may use"


def test_a_field_that_nobody_knows_refuses_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FIELDS["SelectStmt"], "havingClause")
    assert one("SELECT 1 HAVING true").refusal == "having clause of select is not something that agents may use"


def test_a_shape_that_nobody_expected_refuses_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pglast.parser.parse_sql_json", lambda text: '{"stmts":[{"stmt":{"SelectStmt":{"targetList":[7]}}}]}')
    assert one("SELECT 1").refusal.startswith("it cannot be judged")


def test_the_tables_say_what_libpg_query_says() -> None:
    """Each field that holds nodes is looked into; none is taken for a plain value."""
    plain = {"bool", "char*", "char", "int", "int16", "int32", "long", "ParseLoc", "Index", "bits32", "double", "ValUnion"}
    for kind, fields in FIELDS.items():
        if kind in ("List", "A_Const"):
            continue
        slots = {
            name.removesuffix("_"): info.c_type for name, info in getattr(pglast.ast, kind).__slots__.items() if name != "ancestors"
        }
        for field, child in fields.items():
            c_type = slots.get(field)
            if c_type is None:
                assert field == "location" or (kind, field) == ("MergeSupportFunc", "msftype"), (kind, field)
            elif child == OWN:
                assert (
                    kind in sql._NODES
                    or kind in sql._STATEMENTS
                    or kind
                    in (
                        "OnConflictClause",
                        "MergeWhenClause",
                        "LockingClause",
                        "WithClause",
                        "IntoClause",
                        "AlterTableCmd",
                        "VacuumRelation",
                    )
                ), kind
            elif c_type in ("List*", "Node*", "Expr*"):
                assert child == NODE, (kind, field)
            elif c_type.endswith("*") and c_type != "char*":
                assert child == c_type.removesuffix("*"), (kind, field)
            elif c_type in plain:
                assert child == "", (kind, field)


def test_every_child_type_has_its_own_row() -> None:
    assert {child for fields in FIELDS.values() for child in fields.values()} - {"", NODE, OWN} <= set(FIELDS)


@pytest.mark.parametrize(
    ("text", "unbounded"),
    [
        ("delete from a", True),
        ("delete from a where x = 1", False),
        ("update a set x = 1 where true", True),
        ("update a set x = 1 where 1 = 1", True),
        ("update a set x = 1 where x = 1", False),
        ("with gone as (delete from a returning x) select * from gone where x = 1", True),
        ("select * from a", True),
        ("select * from a limit 5", False),
        ("select * from a where x = 1", False),
        ("select x, count(*) from a group by x", False),
        ("select 1", False),
        ("select 1 where exists (select * from a)", False),
        ("explain analyze delete from a", True),
    ],
)
def test_a_statement_that_takes_every_row_is_told(text: str, unbounded: bool) -> None:
    script = sql.parse(text)
    assert isinstance(script, sql.Script)
    assert script.statements[0].unbounded is unbounded
