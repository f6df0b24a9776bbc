"""asyncpg, psql and pgbench through a real gateway to a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ingest.events import Rule

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

ALL = ("select", "insert", "update", "delete", "copy", "ddl")


async def _asyncpg(warden: Warden, agent: str) -> asyncpg.Connection:
    context = ssl.create_default_context(cafile=str(warden.folder / "state/tls/certificate.pem"))
    return await asyncpg.connect(
        host="127.0.0.1", port=warden.port, user=agent, password=warden.keys[agent], database="shop", ssl=context
    )


def test_asyncpg_queries_cursors_and_refusals(warden: Warden) -> None:
    warden.agent("reporter")
    asyncio.run(_work_with_asyncpg(warden))
    warden.stop()
    cursors = [execution for execution in warden.executions() if "ORDER BY id" in execution.text]
    assert [(execution.outcome, execution.rows) for execution in cursors] == [("ok", 100)]


async def _work_with_asyncpg(warden: Warden) -> None:
    connection = await _asyncpg(warden, "reporter")
    try:
        assert await connection.fetchval("SELECT sum(id) FROM orders WHERE id < $1", 4) == 6
        async with connection.transaction():
            rows = [row async for row in connection.cursor("SELECT id FROM orders ORDER BY id", prefetch=7)]
        assert len(rows) == 100
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="secrets"):
            await connection.fetch("SELECT * FROM secrets")
        assert await connection.fetchval("SELECT 5") == 5
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("SELECT 1/0")
        statement = await connection.prepare("SELECT note FROM orders WHERE id = $1")
        assert [await statement.fetchval(number) for number in (1, 2)] == ["note 1", "note 2"]
        await connection.reset()
    finally:
        await connection.close()


def _psql(warden: Warden, agent: str, *commands: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [argument for command in commands for argument in ("-c", command)]
    return subprocess.run(
        [
            "psql",
            "-X",
            "-v",
            "ON_ERROR_STOP=0",
            "-At",
            f"host=127.0.0.1 port={warden.port} dbname=shop user={agent} sslmode=require",
            *arguments,
        ],
        env={**os.environ, "PGPASSWORD": warden.keys[agent]},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("gss", ["disable", "prefer"])
def test_psql_runs_queries_copies_and_is_refused(warden: Warden, gss: str) -> None:
    warden.agent("writer", Rule("public", ("orders",), ALL), introspection=True)
    done = _psql(
        warden,
        "writer",
        "SELECT count(*) FROM orders",
        "SELECT * FROM secrets",
        "\\copy (SELECT id FROM orders WHERE id <= 3) TO STDOUT",
        "\\copy orders FROM STDIN",
        "SELECT count(*) FROM orders",
        stdin="2000\t1\t1.0\tx\n",
    )
    assert done.stdout.split() == ["100", "1", "2", "3", "COPY", "1", "101"] or done.stdout.split() == ["100", "COPY", "1", "101"]
    assert "42501" not in done.stdout
    assert "secrets" in done.stderr


def test_psql_describes_tables_with_introspection(warden: Warden) -> None:
    warden.agent("writer", introspection=True)
    done = _psql(warden, "writer", "\\dt", "\\d orders", "\\dn")
    assert "orders" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_in_each_mode(warden: Warden, mode: str, postgres: object, database: object) -> None:
    tables = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")
    warden.agent("bench", Rule("public", tables, ALL))
    environment = {**os.environ, "PGPASSWORD": database.superuser_password}  # type: ignore[attr-defined]
    place = ["-h", database.host, "-p", str(database.port), "-U", database.superuser]  # type: ignore[attr-defined]
    subprocess.run(["pgbench", "-i", "-q", "-s", "1", *place, database.name], env=environment, check=True, capture_output=True)  # type: ignore[attr-defined]
    with __import__("psycopg").connect(database.superuser_dsn, autocommit=True) as connection:  # type: ignore[attr-defined]
        connection.execute(f"GRANT ALL ON {', '.join(tables)} TO {database.role}")  # type: ignore[attr-defined]
    done = subprocess.run(
        ["pgbench", "-n", "-M", mode, "-c", "4", "-t", "50", "-h", "127.0.0.1", "-p", str(warden.port), "-U", "bench", "shop"],
        env={**os.environ, "PGPASSWORD": warden.keys["bench"], "PGSSLMODE": "require"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "number of transactions actually processed: 200/200" in done.stdout, done.stderr
    warden.stop()
    executions = [
        execution for execution in warden.executions("bench") if execution.text.startswith(("UPDATE", "INSERT", "SELECT abalance"))
    ]
    assert len(executions) == 200 * 5
    assert {execution.outcome for execution in executions} == {"ok"}
