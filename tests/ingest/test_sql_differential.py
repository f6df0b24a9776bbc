"""What PostgreSQL says a query depends on, against what the walk found: the server writes it down for each view."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest

from ingest import sql

TABLES = ("ta", "tb", "tc", "td")

DEPENDS = """
SELECT DISTINCT c.relname FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
  AND d.refclassid = 'pg_class'::regclass JOIN pg_class c ON c.oid = d.refobjid
WHERE r.ev_class = 'public.probe'::regclass AND c.oid <> r.ev_class
"""


class Queries:
    """Random queries over four tables, whose CTEs and aliases take the tables' own names."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.aliases = 0

    def query(self, depth: int) -> str:
        kind = self.random.randrange(9) if depth > 0 else 0
        if kind == 1:
            return f"({self.query(depth - 1)}) UNION ALL ({self.query(depth - 1)})"
        if kind in (2, 3, 4):
            names = self.random.sample(TABLES, self.random.randint(1, 3))
            recursive = self.random.choice(["", "", "RECURSIVE "])
            ctes = ", ".join(f"{name} AS (SELECT 1 AS x FROM ({self.query(depth - 1)}) AS z{self.alias()})" for name in names)
            return f"WITH {recursive}{ctes} SELECT 1 AS x FROM ({self.query(depth - 1)}) AS a{self.alias()}"
        if kind == 5:
            return f"VALUES (({self.scalar(depth - 1)}), 1), (2, ({self.scalar(depth - 1)}))"
        where = self.random.choice(
            [
                "",
                f" WHERE EXISTS ({self.query(depth - 1)})" if depth > 0 else "",
                f" ORDER BY ({self.scalar(depth - 1)})" if depth > 0 else "",
                f" LIMIT ({self.scalar(depth - 1)})" if depth > 0 else "",
                f" GROUP BY GROUPING SETS ((({self.scalar(depth - 1)})), ())" if depth > 0 else "",
            ]
        )
        target = f"({self.scalar(depth - 1)})" if depth > 0 and self.random.random() < 0.4 else "1"
        return f"SELECT {target} AS x FROM {self.source(depth)}{where}"

    def scalar(self, depth: int) -> str:
        return f"SELECT count(*) FROM {self.source(depth)}"

    def source(self, depth: int) -> str:
        kind = self.random.randrange(7) if depth > 0 else 0
        if kind == 1:
            return f"({self.query(depth - 1)}) AS a{self.alias()}"
        if kind == 2:
            return f"({self.source(depth - 1)} CROSS JOIN {self.source(depth - 1)})"
        if kind == 3:
            return f"{self.source(depth - 1)} CROSS JOIN LATERAL ({self.query(depth - 1)}) AS a{self.alias()}"
        if kind == 4:
            return f"generate_series(1, ({self.scalar(depth - 1)})) AS a{self.alias()}"
        schema = self.random.choice(["", "", "public."])
        return f"{schema}{self.random.choice(TABLES)} AS a{self.alias()}"

    def alias(self) -> int:
        self.aliases += 1
        return self.aliases


@pytest.fixture
def server(database: Any) -> Any:
    with psycopg.connect(database.superuser_dsn) as connection:
        connection.execute("".join(f"CREATE TABLE public.{name} (x int);" for name in TABLES))  # type: ignore[arg-type]
        yield connection


def test_the_walk_finds_the_relations_that_the_server_finds(server: Any) -> None:
    compared = shadowed = 0
    for seed in range(400):
        text = Queries(seed).query(4)
        script = sql.parse(text)
        assert isinstance(script, sql.Script), (text, script)
        server.execute("SAVEPOINT before")
        try:
            server.execute(f"CREATE VIEW public.probe AS {text}")
        except psycopg.Error:  # a recursion that PostgreSQL does not allow, a name used twice
            server.execute("ROLLBACK TO before")
            continue
        found = {str(row[0]) for row in server.execute(DEPENDS)}
        server.execute("ROLLBACK TO before")
        compared += 1
        shadowed += found != {name for name in TABLES if name in text}
        (statement,) = script.statements
        assert statement.refusal == ""
        assert {access.name for access in statement.accesses} == found, text
    assert compared > 200  # else the generator compares nothing
    assert shadowed > 20  # and proves nothing about CTEs


@pytest.mark.parametrize(
    "text",
    [
        "SELECT f.pg_sleep FROM unnest(ARRAY[0.0::float8]) f",
        "SELECT f.pg_typeof FROM lower('x') f",
        "SELECT (0.0::float8).pg_sleep",
        "SELECT o.row_to_json FROM ta o",
    ],
)
def test_attribute_notation_calls_functions_on_this_server(server: Any, text: str) -> None:
    """The reason for `Statement.attributes`: if a server stops doing so, the rule can go."""
    server.execute(text)
    script = sql.parse(text)
    assert isinstance(script, sql.Script)
    assert script.statements[0].attributes or script.statements[0].refusal
