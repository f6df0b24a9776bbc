from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.scope import Allow, Authority, Decision, Deny, LiveGrant, beyond, decide
from ingest import sql
from ingest.events import Rule, Scope


def _corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sql_corpus", Path(__file__).with_name("sql_corpus.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corpus = _corpus()


def decisions(
    text: str, authority: Authority, prepared: Mapping[str, sql.Statement] | None = None, names: frozenset[str] = frozenset()
) -> list[Decision]:
    script = sql.parse(text)
    assert isinstance(script, sql.Script), script
    return [decide(statement, authority, prepared or {}, names) for statement in script.statements]


def only(text: str, authority: Authority, prepared: Mapping[str, sql.Statement] | None = None) -> Decision:
    (decision,) = decisions(text, authority, prepared)
    return decision


def scope(*rules: Rule, functions: tuple[str, ...] = (), introspection: bool = False) -> Scope:
    return Scope("shop", rules, functions, (), introspection)


def authority(*scopes: Scope, search_path: tuple[str, ...] = ("public",)) -> Authority:
    grants = tuple(LiveGrant(f"g-{n}", "reporter", scope, "alice", 0) for n, scope in enumerate(scopes, 1))
    return Authority("reporter", "shop", search_path, grants)


READ_ORDERS = Rule("public", ("orders",), ("select",))


HOSTILE = [text for texts in corpus.HOSTILE.values() for text in texts]
WHAT_INTROSPECTION_IS_FOR = re.compile(r"\breg|_reg|aclitem|pg_node_tree")


@pytest.mark.parametrize(
    ("text", "introspection"),
    [(text, False) for text in HOSTILE] + [(text, True) for text in HOSTILE if not WHAT_INTROSPECTION_IS_FOR.search(text)],
)
def test_a_hostile_text_is_denied(text: str, introspection: bool) -> None:
    script = sql.parse(text)
    if isinstance(script, sql.Unparsable):
        return  # never forwarded
    outcomes = [decide(s, corpus.authority(introspection), {}, corpus.CALLABLE) for s in script.statements]
    assert any(isinstance(outcome, Deny) for outcome in outcomes), outcomes


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("functions wherever they hide", {"function", "relation", "operator"}),
        ("forbidden tables in odd places", {"relation"}),
        ("operators, casts and types", {"operator", "type", "introspection", "function"}),
        ("catalogs, with or without introspection", {"catalog"}),
    ],
)
def test_a_hostile_text_is_denied_for_what_it_hides(kind: str, rules: set[str]) -> None:
    """Not for a node that nobody knows: that would hide a place that the walk does not look into."""
    for text in corpus.HOSTILE[kind]:
        (decision,) = decisions(text, corpus.authority(), names=corpus.CALLABLE)
        assert isinstance(decision, Deny)
        assert decision.rule in rules or "TABLESAMPLE secdef_fn" in text, (text, decision)


def test_every_hostile_text_is_sql() -> None:
    """A row that PostgreSQL cannot read tests nothing."""
    texts = [text for texts in corpus.HOSTILE.values() for text in texts]
    assert len(texts) >= 150
    assert len(texts) == len(set(texts))
    assert [text for text in texts if isinstance(sql.parse(text), sql.Unparsable)] == []


@pytest.mark.parametrize("text", corpus.BENIGN)
def test_a_benign_text_is_allowed(text: str) -> None:
    known = sql.parse("SELECT * FROM orders WHERE id = $1")
    assert isinstance(known, sql.Script)
    outcomes = decisions(text, corpus.authority(), {"known": known.statements[0]}, corpus.CALLABLE)
    assert [outcome for outcome in outcomes if isinstance(outcome, Deny)] == []


@pytest.mark.parametrize("text", corpus.INTROSPECTIVE)
def test_introspection_needs_a_grant_with_introspection(text: str) -> None:
    assert all(isinstance(d, Allow) for d in decisions(text, corpus.authority(introspection=True), names=corpus.CALLABLE))
    assert any(isinstance(d, Deny) for d in decisions(text, corpus.authority(introspection=False), names=corpus.CALLABLE))


def test_a_denial_says_who_what_where_and_what_to_ask_for() -> None:
    assert only("DELETE FROM public.orders", authority(scope(READ_ORDERS))) == Deny(
        "42501",
        "relation",
        "agent reporter may not delete from public.orders on shop: ask for a grant with the operation delete",
    )


def test_an_allowance_names_the_grants_that_it_needed() -> None:
    customers = scope(Rule("public", ("customers",), ("select",)))
    unused = scope(Rule("public", ("*",), ("delete",)))
    assert only("SELECT * FROM orders, customers", authority(unused, scope(READ_ORDERS), customers)) == Allow(
        "select public.orders by g-2; select public.customers by g-3", ("g-2", "g-3")
    )


def test_an_unqualified_name_is_held_against_every_schema_of_the_search_path() -> None:
    both = authority(scope(READ_ORDERS, Rule("app", ("orders",), ("select",))), search_path=("app", "public"))
    one = authority(scope(READ_ORDERS), search_path=("app", "public"))
    assert isinstance(only("SELECT * FROM orders", both), Allow)
    assert isinstance(only("SELECT * FROM orders", one), Deny)
    assert isinstance(only("SELECT * FROM public.orders", one), Allow)


def test_an_unqualified_name_without_a_search_path_is_denied() -> None:
    for text in ["SELECT * FROM orders", "SELECT f(1)", "SELECT 1 <=> 2", "SELECT 1::mood"]:
        assert isinstance(only(text, authority(scope(READ_ORDERS, functions=("public.f",)), search_path=())), Deny), text


def test_a_grant_of_another_agent_or_another_connection_proves_nothing() -> None:
    others = (
        LiveGrant("g-1", "someone", scope(READ_ORDERS), "alice", 0),
        LiveGrant("g-2", "reporter", Scope("other", (READ_ORDERS,)), "alice", 0),
    )
    assert isinstance(only("SELECT * FROM orders", Authority("reporter", "shop", ("public",), others)), Deny)


def test_nothing_is_allowed_on_tables_without_a_grant() -> None:
    assert isinstance(only("SELECT 1", authority()), Allow)
    assert isinstance(only("SELECT * FROM orders", authority()), Deny)


@pytest.mark.parametrize("operation", ["select", "insert", "update", "delete", "ddl", "copy", "call"])
def test_one_operation_does_not_give_another(operation: str) -> None:
    texts = {
        "select": "SELECT * FROM t",
        "insert": "INSERT INTO t VALUES (1)",
        "update": "UPDATE t SET a = 1",
        "delete": "DELETE FROM t",
        "ddl": "DROP TABLE t",
        "call": "CALL t()",
    }
    granted = authority(scope(Rule("public", ("t",), (operation,))))
    allowed = [name for name, text in texts.items() if isinstance(only(text, granted), Allow)]
    assert allowed == ([operation] if operation in texts else [])


def test_copy_needs_copy_and_what_it_does() -> None:
    def may(text: str, *operations: str) -> bool:
        return isinstance(only(text, authority(scope(Rule("public", ("t",), operations)))), Allow)

    assert may("COPY t TO STDOUT", "copy", "select")
    assert may("COPY t FROM STDIN", "copy", "insert")
    assert not may("COPY t TO STDOUT", "select")
    assert not may("COPY t TO STDOUT", "copy", "insert")
    assert not may("COPY t FROM STDIN", "copy", "select")
    assert not may("COPY (SELECT * FROM t) TO STDOUT", "select")


def test_a_statement_that_reads_what_it_changes_needs_select() -> None:
    writer = authority(scope(Rule("public", ("t",), ("insert", "update", "delete"))))
    for text in [
        "UPDATE t SET a = b",
        "UPDATE t SET a = 1 WHERE b = 2",
        "UPDATE t SET a = 1 RETURNING b",
        "DELETE FROM t WHERE a = 1",
        "DELETE FROM t RETURNING *",
        "INSERT INTO t VALUES (1) RETURNING a",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = t.b",
        "MERGE INTO t USING (VALUES (1)) s(a) ON true WHEN MATCHED THEN DELETE",
    ]:
        decision = only(text, writer)
        assert isinstance(decision, Deny), text
        assert decision.reason.endswith("ask for a grant with the operation select"), text
    for text in ["UPDATE t SET a = 1", "DELETE FROM t", "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = excluded.a"]:
        assert isinstance(only(text, writer), Allow), text


def test_an_execute_is_judged_by_what_was_prepared_and_by_the_grants_of_now() -> None:
    script = sql.parse("PREPARE p AS DELETE FROM orders")
    assert isinstance(script, sql.Script)
    stored = script.statements[0].prepared
    assert stored is not None
    assert isinstance(only("EXECUTE p", authority(scope(READ_ORDERS)), {"p": stored}), Deny)
    assert isinstance(only("EXECUTE p", authority(scope(Rule("public", ("*",), ("delete",)))), {"p": stored}), Allow)


def test_an_unknown_prepared_statement_gets_the_sqlstate_that_postgres_gives() -> None:
    decision = only("EXECUTE p", authority(scope(READ_ORDERS)))
    assert isinstance(decision, Deny)
    assert decision.sqlstate == "26000"


def test_a_prepared_statement_that_executes_itself_is_denied() -> None:
    script = sql.parse("EXECUTE p")
    assert isinstance(script, sql.Script)
    assert isinstance(only("EXECUTE p", authority(), {"p": script.statements[0]}), Deny)


@pytest.mark.parametrize(
    ("function", "text", "allowed"),
    [
        ("public.f", "SELECT f(1)", True),
        ("public.f", "SELECT public.f(1)", True),
        ("public.f", "SELECT app.f(1)", False),
        ("f", "SELECT f(1)", False),
        ("pg_catalog.pg_sleep", "SELECT pg_sleep(1)", True),
        ("public.pg_sleep", "SELECT pg_sleep(1)", False),
        ("pg_catalog.pg_read_file", "SELECT pg_read_file('x')", False),
        ("public.pg_read_file", "SELECT pg_read_file('x')", False),
        ("pg_catalog.query_to_xml", "SELECT query_to_xml('x', true, true, '')", False),
        ("public.query_to_xml", "SELECT query_to_xml('x', true, true, '')", False),
        ("public.dblink", "SELECT public.dblink('x', 'y')", False),
        ("pg_catalog.set_config", "SELECT set_config($1, 'x', false)", False),
        ("pg_catalog.lo_import", "SELECT lo_import('x')", False),
        ("pg_temp.f", "SELECT pg_temp.f(1)", False),
    ],
)
def test_a_function_needs_its_own_name_in_the_scope(function: str, text: str, allowed: bool) -> None:
    assert isinstance(only(text, authority(scope(functions=(function,)))), Allow) is allowed


def test_an_attribute_that_may_be_a_function_needs_that_function() -> None:
    text = "SELECT o.total FROM orders o"
    plain, granted = scope(READ_ORDERS), scope(READ_ORDERS, functions=("public.total",))
    assert isinstance(decisions(text, authority(plain))[0], Allow)
    assert isinstance(decisions(text, authority(plain), names=frozenset(["total"]))[0], Deny)
    assert isinstance(decisions(text, authority(granted), names=frozenset(["total"]))[0], Allow)
    assert isinstance(decisions("SELECT total FROM orders o", authority(plain), names=frozenset(["total"]))[0], Allow)


def test_a_reason_is_one_printable_ascii_line_whatever_the_names() -> None:
    for text in ['SELECT * FROM "a\nb\x1b[31m"', "SELECT * FROM täble", 'SELECT "x\ty"(1)', 'LISTEN "\u202e"', 'EXECUTE "ö\n"']:
        decision = only(text, authority(scope(READ_ORDERS)))
        assert isinstance(decision, Deny)
        assert decision.reason.isascii()
        assert decision.reason.isprintable(), decision.reason


def test_a_rule_stays_short_however_many_relations_a_statement_has() -> None:
    text = "SELECT 1 FROM " + ", ".join(f"t{n}" for n in range(100))
    decision = only(text, authority(scope(Rule("public", ("*",), ("select",)))))
    assert isinstance(decision, Allow)
    assert decision.rule.endswith("; 92 more")


# -- a part of a scope -------------------------------------------------------------------------------------------------------------

TABLES = ("orders", "lines", "other")  # the last is named by no rule
PARTS = st.builds(
    Scope,
    st.just("shop"),
    st.lists(
        st.builds(
            Rule,
            st.sampled_from(["public", "app"]),
            st.lists(st.sampled_from(["orders", "lines", "*"]), min_size=1, unique=True).map(tuple),
            st.lists(st.sampled_from(["select", "insert", "delete"]), min_size=1, unique=True).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    st.lists(st.sampled_from(["public.f", "public.g"]), unique=True).map(tuple),
    st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple),
    st.booleans(),
)
PROBES = [
    *(
        text.replace("TABLE", f"{schema}.{table}")
        for text in ("SELECT * FROM TABLE", "INSERT INTO TABLE VALUES (1)", "DELETE FROM TABLE", "SELECT NULL::TABLE")
        for schema in ("public", "app")
        for table in TABLES
    ),
    "SELECT public.f(1)",
    "SELECT public.g(1)",
    "LISTEN a",
    "LISTEN b",
    "SELECT relname FROM pg_catalog.pg_class",
]


@settings(max_examples=300, deadline=None)
@given(PARTS, PARTS)
def test_a_scope_is_part_of_another_exactly_where_every_statement_that_it_allows_is_allowed_by_the_other(
    wider: Scope, narrower: Scope
) -> None:
    def allowed(of: Scope) -> set[str]:
        return {text for text in PROBES if isinstance(only(text, authority(of)), Allow)}

    assert (list(beyond(wider, narrower)) == []) == (allowed(narrower) <= allowed(wider))


@pytest.mark.parametrize(
    ("wider", "narrower", "outside"),
    [
        ([("public", "*", "select insert")], [("public", "orders lines", "select")], []),
        ([("public", "orders lines", "select")], [("public", "*", "select")], ["select on public.*"]),
        ([("public", "orders", "select")], [("public", "orders", "select delete")], ["delete on public.orders"]),
        ([("public", "orders", "select"), ("public", "*", "insert")], [("public", "orders", "insert select")], []),
        (
            [("public", "orders", "select"), ("public", "lines", "insert")],
            [("public", "lines", "select")],
            ["select on public.lines"],
        ),
        ([("public", "*", "select")], [("app", "orders", "select")], ["select on app.orders"]),
        ([("public", "orders", "select")], [("public", "lines", "")], ["public.lines"]),
        ([("public", "orders", "select")], [], []),
    ],
)
def test_what_lies_outside_a_scope_is_named(
    wider: list[tuple[str, str, str]], narrower: list[tuple[str, str, str]], outside: list[str]
) -> None:
    def of(lines: list[tuple[str, str, str]]) -> Scope:
        return scope(*(Rule(schema, tuple(tables.split()), tuple(operations.split())) for schema, tables, operations in lines))

    assert list(beyond(of(wider), of(narrower))) == outside


def test_functions_channels_introspection_and_the_connection_are_parts_of_a_scope_too() -> None:
    wider = Scope("shop", (), ("public.f",), ("a",), introspection=False)
    narrower = Scope("other", (), ("public.f", "public.g"), ("a", "b"), introspection=True)
    assert list(beyond(wider, narrower)) == ["connection other", "function public.g", "channel b", "introspection"]


def test_scopes_as_large_as_a_body_can_hold_are_compared_at_once() -> None:
    tables = tuple(f"t{n}" for n in range(1000))
    wide = scope(*(Rule("public", tables, ("select", "insert")) for _ in range(100)))
    assert list(beyond(wide, scope(*(Rule("public", tables, ("select",)) for _ in range(20))))) == []
