"""The tables of what PostgreSQL brings, against a PostgreSQL."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from identity import builtin_functions as table
from identity.catalogs import READABLE
from ingest.sql_names import NAME_TYPES, OPERATORS, OTHER_TYPES, TYPES

TABLES = {"SAFE": table.SAFE, "INTROSPECTION": table.INTROSPECTION, "GRANTABLE": table.GRANTABLE, "NEVER": table.NEVER}


@pytest.fixture
def names(database: Any) -> Any:
    def names(query: str) -> set[str]:
        with psycopg.connect(database.superuser_dsn) as connection:
            return {str(row[0]) for row in connection.execute(query)}  # type: ignore[call-overload]

    return names


# What SQL can call: no argument or result that only the server makes.
CALLABLE = """
SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 AND prorettype::regtype::text NOT IN
  ('internal', 'cstring', 'trigger', 'event_trigger', 'language_handler', 'fdw_handler', 'index_am_handler', 'table_am_handler',
   'tsm_handler', 'pg_ddl_command')
  AND NOT EXISTS (SELECT FROM unnest(proargtypes::oid[]) AS a WHERE a::regtype::text IN ('internal', 'cstring', 'pg_ddl_command'))
"""
# What stands behind operators, index classes, aggregates and binary output: their arguments are all that they know.
SUPPORT = """
SELECT proname FROM pg_proc AS p WHERE pronamespace = 'pg_catalog'::regnamespace AND (
  EXISTS (SELECT FROM pg_operator WHERE p.oid = oprcode) OR EXISTS (SELECT FROM pg_amproc WHERE amproc = p.oid)
  OR EXISTS (SELECT FROM pg_aggregate WHERE p.oid IN (aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn))
  OR EXISTS (SELECT FROM pg_type WHERE p.oid IN (typsend, typmodin)) OR EXISTS (SELECT FROM pg_range WHERE p.oid IN (rngcanonical, rngsubdiff)))
"""
# Overloads and relics of the same kind, without a documentation of their own.
PURE_RELICS = {
    "cash_words",
    "dexp",
    "dlog1",
    "dlog10",
    "dround",
    "dtrunc",
    "enum_send",
    "getpgusername",
    "int4inc",
    "int8_sum",
    "mxid_age",
    "nameconcatoid",
    "notlike",
    "numeric_exp",
    "numeric_inc",
    "numeric_ln",
    "numeric_log",
    "numeric_sqrt",
    "satisfies_hash_partition",
    "similar_escape",
    "textlen",
    "xmlvalidate",
}


def test_no_function_stands_in_two_tables() -> None:
    seen: set[str] = set()
    for rows in TABLES.values():
        assert not seen & rows
        seen |= rows


def test_every_function_of_the_tables_exists(names: Any) -> None:
    exist = names("SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace")
    for title, rows in TABLES.items():
        assert rows - exist == set(), title


def test_every_function_of_the_server_has_been_looked_at(names: Any) -> None:
    """Else `o.name` could call one that no table refuses; all that begin with `pg_` are refused by their name."""
    known = set().union(*TABLES.values()) | PURE_RELICS | names(SUPPORT)
    assert {name for name in names(CALLABLE) - known if not name.startswith("pg_")} == set()


def test_no_safe_function_changes_anything_but_a_few_that_change_the_session(names: Any) -> None:
    volatile = names("SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'")
    assert table.SAFE & volatile == {
        "array_sample",
        "array_shuffle",
        "clock_timestamp",
        "current_query",
        "gen_random_uuid",
        "lastval",
        "pg_advisory_unlock_all",
        "pg_is_in_recovery",
        "pg_jit_available",
        "random",
        "random_normal",
        "setseed",
        "timeofday",
        "uuidv4",
        "uuidv7",
    }


def test_no_safe_function_takes_the_name_of_something(names: Any) -> None:
    """An argument of a reg... type tells whether a name exists."""
    by_name = names(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND EXISTS (SELECT FROM"
        " unnest(proargtypes::oid[]) AS a WHERE a::regtype::text IN ('regclass', 'regproc', 'regprocedure', 'regtype', 'regrole'))"
    )
    assert table.SAFE & by_name == set()


def test_relations_of_pg_catalog_begin_with_pg(names: Any) -> None:
    """`identity.scope` takes an unqualified name for one of pg_catalog's by this."""
    relations = names("SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace")
    assert [name for name in relations if not name.startswith("pg_")] == []


def test_readable_catalogs_exist(names: Any) -> None:
    for schema, readable in READABLE.items():
        assert readable - names(f"SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace") == set()


def test_operators_and_types_are_those_of_the_server(names: Any) -> None:
    operators = names("SELECT oprname FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace")
    assert {name for name in OPERATORS if "BETWEEN" not in name} == operators
    types = names(
        "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typrelid = 0 AND typname !~ '^_'"
    )
    assert types >= TYPES | NAME_TYPES | OTHER_TYPES
    user_visible = names(
        "SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typname !~ '^_'"
    )
    assert {name for name in user_visible - TYPES - NAME_TYPES - OTHER_TYPES if not name.startswith("pg_")} == set()
