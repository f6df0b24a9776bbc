"""Gateway, API, watchdog and log collector around a real PostgreSQL with pgaudit: what only it wrote explains the record, and tells more."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database, fresh_database
from tests.ingest.collectors.ebpf.servers import Server, copy_of, home
from tests.system.house import House, Housed, WaitFor, collector
from tests.system.test_record_equals_server_log import Agent

PGAUDIT = Path("/usr/lib/postgresql/15/lib/pgaudit.so")
SETTINGS = {
    "shared_preload_libraries": "pgaudit",
    "pgaudit.log": "all",
    "pgaudit.log_catalog": "on",
    "pgaudit.role": "auditor",  # what it may do is told of each object, too
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    "log_timezone": "UTC",
}


@pytest.fixture
def server(needs: Callable[[str, bool], None]) -> Iterator[Server]:
    needs("pgaudit", PGAUDIT.exists())
    place = home()
    try:
        with Server(place, copy_of(15, place), **SETTINGS, log_directory=str(place / "log")) as made:
            (made.data / "pg_hba.conf").write_text(
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            with psycopg.connect(made.dsn(), autocommit=True) as connection:
                connection.execute("CREATE ROLE auditor NOLOGIN")
                connection.execute("ALTER SYSTEM SET log_statement = 'all'")
                connection.execute("ALTER SYSTEM SET pgaudit.log_rows = on")
                connection.execute("SELECT pg_reload_conf()")
            yield made
    finally:
        shutil.rmtree(place)


@pytest.fixture
def shop(server: Server) -> Iterator[Database]:
    with fresh_database("127.0.0.1", server.port, "postgres", "") as made:
        with psycopg.connect(made.superuser_dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pgaudit")
            connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON orders, secrets TO auditor")
            connection.execute(
                "CREATE FUNCTION public.busy() RETURNS bigint LANGUAGE plpgsql AS"
                " $$ BEGIN UPDATE orders SET note = 'busy' WHERE id < 4; RETURN (SELECT count(*) FROM orders); END $$"
            )
            connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION public.busy() TO {}").format(sql.Identifier(made.role)))
        yield made


@pytest.fixture
def house(server: Server, shop: Database, housed: Housed) -> Iterator[House]:
    with housed(shop, collector("log", f'path = "{server.home / "log"}"')) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_pgaudit_says_beside_the_log_and_alone_explains_the_record(
    house: House, server: Server, shop: Database, wait_for: WaitFor
) -> None:
    agents = [Agent(house, number) for number in range(2)]  # type: ignore[arg-type]
    for agent in agents:
        house.agent(agent.name)
    wait_for(lambda: all(house.knows(agent.name) for agent in agents), 60, "the gateway knows the agents")
    for scenario in agents[0].scenarios():
        scenario()
    beside = told_of_a_function(house, shop, wait_for)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'none'")
        connection.execute("ALTER SYSTEM SET pgaudit.log_rows = off")
        connection.execute("SELECT pg_reload_conf()")
    wait_for(lambda: asked(shop, "SHOW log_statement") == "none", 20)
    for scenario in agents[1].scenarios():
        scenario()
    alone = told_of_a_function(house, shop, wait_for)
    # Its session lines and its object lines speak of the same statements: each is told once, and what functions ran besides.
    update, count = "UPDATE orders SET note = 'busy' WHERE id < 4", "(SELECT count(*) FROM orders)"
    assert beside == [("nested", count, 1), ("nested", update, 3), ("statement", "SELECT busy()", 1)]
    assert alone == [("audit", "SELECT busy()", -1), ("nested", count, -1), ("nested", update, -1)]

    wait_for(lambda: house.judged(shop.role), 60, "every session is judged")
    time.sleep(8)  # what is not explained by now is told by now: 5 s of lateness, a second of the watermark
    assert [finding["summary"] for finding in house.findings()] == []
    verdicts = wait_for(house.verdicts, 20, "no session waits for its verdict")
    assert isinstance(verdicts, Counter)
    assert set(verdicts) == {"audited", "ours", "declared"}
    assert [(one["lost"], one["reason"]) for one in house.collectors()] == [(0, "")]
    ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
    wait_for(lambda: house.compared().get("statements_matched", 0) > 0.9 * len(ran), 60, "they are matched")
    assert not {"statements_beyond_the_limit", "statements_not_compared"} & set(house.compared())


def asked(shop: Database, text: str) -> str:
    with psycopg.connect(shop.superuser_dsn, autocommit=True) as connection:
        row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return str(row[0])


def told_of_a_function(house: House, shop: Database, wait_for: WaitFor) -> list[tuple[str, str, int]]:
    """What was recorded of a session that calls a function: source, text and rows of each."""
    with psycopg.connect(shop.superuser_dsn, autocommit=True, application_name="caller") as connection:
        connection.execute("SELECT busy()")
        pid = connection.info.backend_pid

    def told() -> list[dict[str, Any]]:
        sessions = [one for one in house.get("/v1/observations/sessions") if one["backend_pid"] == pid]
        if not sessions:
            return []
        found = house.get(f"/v1/observations/statements?session_id={sessions[0]['session_id']}")
        return found if any("busy()" in one["text"] for one in found) else []

    found = wait_for(told, 30, "what it ran is in the tables")
    assert isinstance(found, list)
    return sorted((one["source"], one["text"], one["rows"]) for one in found)
