"""What clients do to a server, each thing once, and what a witness must have seen of it. Run against real servers.

    PYTHONPATH=. python tests/ingest/collectors/scenario.py <dsn>

does it; the files `pg15.json`, `pg15.csv`, `pg18.json` and `pg18.csv` beside this one are what servers of those versions logged, with
log_statement, log_connections, log_disconnections and log_replication_commands on; `pg15audit.json` is one with pgaudit besides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

HOSTILE = "SELECT 'statement: DROP TABLE x', E'\\u001b[31m\n2026-01-01 00:00:00.000 UTC,\"a\",,LOG' -- \"quoted\", 'äöü €' \t"


@dataclass(frozen=True, slots=True)
class Ran:
    """One execution that a witness of statements must tell."""

    text: str
    sqlstate: str = ""
    source: str = "statement"


def run(dsn: str) -> Iterator[Ran]:
    """Do it all, in one session and a few others; tell what was done in the order of each session."""
    with psycopg.connect(dsn, autocommit=True, application_name="scenario") as client:
        yield from _simple(client)
        yield from _extended(client)
        yield from _errors(client)
    yield from _terminated(dsn)
    yield from _refused(dsn)


def _plain(client: psycopg.Connection[tuple[object, ...]], text: str) -> None:
    """By the simple protocol."""
    result = client.pgconn.exec_(text.encode())
    if result.status == psycopg.pq.ExecStatus.COPY_IN:
        client.pgconn.put_copy_data(b"7\tcopied\n")
        client.pgconn.put_copy_end()
        while client.pgconn.get_result() is not None:
            pass


def _simple(client: psycopg.Connection[tuple[object, ...]]) -> Iterator[Ran]:
    for text in (
        "SELECT 1",
        "CREATE TEMPORARY TABLE seen (id int PRIMARY KEY, word text)",
        "INSERT INTO seen VALUES (1, 'a'), (2, 'b'); SELECT count(*) FROM seen; UPDATE seen SET word = 'c'",
        "COPY seen FROM STDIN",
        HOSTILE,
        "",
        "PREPARE p AS SELECT word FROM seen WHERE id = $1",
        "EXECUTE p(1)",
        "BEGIN",
        "DECLARE c CURSOR FOR SELECT * FROM seen",
        "FETCH 1 FROM c",
        "COMMIT",
        "DO $$ BEGIN PERFORM count(*) FROM seen; RAISE WARNING 'statement: SELECT no statement'; RAISE LOG 'statement: SELECT no statement'; END $$",
        "SELECT '" + "x" * 900 + "'",
    ):
        _plain(client, text)
        yield Ran(text)


def _extended(client: psycopg.Connection[tuple[object, ...]]) -> Iterator[Ran]:
    client.execute("SELECT word FROM seen WHERE id = %s", (1,))
    yield Ran("SELECT word FROM seen WHERE id = $1")
    for number in (1, 2):
        client.execute("SELECT id FROM seen WHERE word = %s", (f"w{number}",), prepare=True)
        yield Ran("SELECT id FROM seen WHERE word = $1")
    with client.pipeline():
        for number in (3, 4):
            client.execute("INSERT INTO seen VALUES (%s, 'piped')", (number,))
    yield Ran("INSERT INTO seen VALUES ($1, 'piped')")
    yield Ran("INSERT INTO seen VALUES ($1, 'piped')")


def _errors(client: psycopg.Connection[tuple[object, ...]]) -> Iterator[Ran]:
    for text, sqlstate in (
        ("SELEC 1", "42601"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT 1/0", "22012"),
        ("INSERT INTO seen VALUES (1, 'twice')", "23505"),
        ("SELECT 2; SELECT 1/0; SELECT 3", "22012"),
        ("DO $$ BEGIN PERFORM 1/0; END $$", "22012"),
    ):
        _plain(client, text)
        yield Ran(text, sqlstate)
    for text, parameters, told, sqlstate in (
        ("SELECT * FROM nowhere WHERE id = %s", (1,), "SELECT * FROM nowhere WHERE id = $1", "42P01"),
        ("SELECT 1/%s::int", (0,), "SELECT 1/$1::int", "22012"),
        ("SELECT %s::int", ("no number",), "SELECT $1::int", "22P02"),
    ):
        try:
            client.execute(text, parameters)
        except psycopg.Error:
            pass
        yield Ran(told, sqlstate)
    client.execute("SELECT 'after all of it'")
    yield Ran("SELECT 'after all of it'")


def _terminated(dsn: str) -> Iterator[Ran]:
    with psycopg.connect(dsn, autocommit=True, application_name="victim") as victim:
        with psycopg.connect(dsn, autocommit=True, application_name="killer") as killer:
            text = sql.SQL("SELECT pg_terminate_backend({})").format(victim.info.backend_pid)
            killer.execute(text)
        yield Ran(text.as_string())
        try:
            victim.execute("SELECT 'too late'")
        except psycopg.Error:
            pass


def _refused(dsn: str) -> Iterator[Ran]:
    try:
        psycopg.connect(dsn, user="nobody of that name", password="wrong")
    except psycopg.OperationalError:
        pass
    with psycopg.connect(dsn, autocommit=True) as last:
        last.execute("SELECT 'the last'")
        yield Ran("SELECT 'the last'")


if __name__ == "__main__":
    for ran in run(sys.argv[1]):
        print(ran)
