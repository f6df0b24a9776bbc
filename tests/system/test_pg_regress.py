"""PostgreSQL's own regression tests, run by its own driver through the gateway: no difference between record and server.

The driver takes the gateway for a server. Much of what the tests ask is refused, and so most of them fail as tests of PostgreSQL;
what they are here for is the many thousand texts that nobody of this project has written.

Every kind of collector looks at the same run: what one of them saw and another did not is counted, and must be nothing. Which
differences one alone would tell, PGWARDEN_PG_REGRESS_BY=log, ebpf or activity shows; PGWARDEN_PG_REGRESS=all runs every file.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database, fresh_database
from tests.ingest.collectors.ebpf import conftest as ebpf_fixtures
from tests.ingest.collectors.ebpf.servers import Server, copy_of, home
from tests.ingest.collectors.ebpf.test_witness import Witness
from tests.system.house import BOB, House, Housed, WaitFor, collector

TESTS = Path(sys.prefix) / "pg_regress"  # `make pg-regress`
PROGRAMS = Path("/usr/lib/postgresql/15")
DRIVER = PROGRAMS / "lib/pgxs/src/test/regress/pg_regress"
ALL = os.environ.get("PGWARDEN_PG_REGRESS", "") == "all"
SOME = (
    "boolean char name varchar text int2 int4 int8 oid float4 float8 bit txid uuid enum money pg_lsn regproc",
    "copy copyselect copydml insert_conflict portals portals_p2 transactions prepare prepared_xacts limit returning truncate union",
    "rangetypes multirangetypes strings psql plancache combocid lock namespace arrays rowtypes update delete select_having sequence",
)  # in about a minute; a line is a group that runs at once
BY = tuple(os.environ.get("PGWARDEN_PG_REGRESS_BY", "log,ebpf,activity").split(","))
EYES_PASSWORD = secrets.token_urlsafe(18)
_COPY = re.compile(r"\\set filename :abs_srcdir '(/data/\w+\.data)'\nCOPY (\w+) FROM :'filename';")
_WAIT_SECONDS = 120.0
_CLAIMED_OF_NOBODY = {
    "statements_not_seen_by_one",
    "statements_beyond_the_limit",
    "statements_not_compared",
    "live_sessions_forgotten",
}

bpf = ebpf_fixtures.bpf


@pytest.fixture
def server(request: pytest.FixtureRequest, needs: Callable[[str, bool], None]) -> Iterator[Server]:
    """On a server of its own, which logs every statement, and whose binary nobody else's server runs."""
    needs("pg-regress", DRIVER.exists() and (TESTS / "parallel_schedule").exists())
    if "ebpf" in BY:
        request.getfixturevalue("bpf")
    place = home()
    logged = {
        "logging_collector": "on",
        "log_destination": "jsonlog",
        "log_directory": str(place / "log"),
        "log_statement": "all",
        "log_connections": "all",
        "log_disconnections": "on",
        "log_replication_commands": "on",
        "log_timezone": "UTC",
        "max_connections": "200",
    }
    try:
        with Server(place, copy_of(18, place), **logged) as server:
            (server.data / "pg_hba.conf").write_text(
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("SELECT pg_reload_conf()")
                connection.execute(sql.SQL("CREATE ROLE eyes LOGIN PASSWORD {} IN ROLE pg_monitor").format(EYES_PASSWORD))
            yield server
    finally:
        shutil.rmtree(place)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    with fresh_database("127.0.0.1", server.port, "postgres", "") as made:
        yield made


@pytest.fixture
def house(server: Server, database: Database, tmp_path: Path, housed: Housed) -> Iterator[House]:
    witness = Witness(server)
    password = tmp_path / "eyes.password"
    password.touch(0o600)
    password.write_text(EYES_PASSWORD)
    own = {
        "log": (f'path = "{server.home / "log"}"',),
        "ebpf": (f'path = "{witness.socket}"',),
        "activity": ('user = "eyes"', 'password = "file:eyes.password"'),
    }
    if "ebpf" in BY:
        witness.start()
    try:
        with housed(database, *(collector(kind, *own[kind]) for kind in BY)) as made:
            yield made
    finally:
        if "ebpf" in BY:
            witness.remove()


def _environment(password: str) -> dict[str, str]:
    return {
        "PATH": f"{PROGRAMS}/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PGPASSWORD": password,
        "PGSSLMODE": "disable",
        "PGGSSENCMODE": "disable",
    }


def _set_up(database: Database, folder: Path) -> None:
    """What the first of the tests makes, test_setup, made at the server: it reads files of the server's machine, as no agent may."""
    name, role = sql.Identifier(database.name), sql.Identifier(database.role)
    with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(role))
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(name, role))
    script = folder / "test_setup.sql"
    script.write_text(_COPY.sub(rf"\\copy \2 from '{TESTS}\1'", (TESTS / "sql/test_setup.sql").read_text()))
    where = ["-h", database.host, "-p", str(database.port), "-U", database.superuser, "-d", database.name]
    subprocess.run(
        ["psql", "-X", "-q", *where, "-f", str(script)],
        env={**_environment(database.superuser_password), "PGOPTIONS": f"-c role={database.role}"},
        capture_output=True,
        timeout=120,
        check=True,
    )


def _register(house: House, name: str) -> None:
    """An agent that may do all that a grant can allow in `public`, and read the catalogs."""
    house.keys[name] = house.run("agents", "register", name, "--description", "d", "--owner", "o", "--key")["key"]
    allowed = ["--allow", "select, insert, update, delete, ddl, copy, call on public.*", "--introspection", "--channel", "foo"]
    asked = house.run("grants", "request", name, "--connection", "shop", *allowed, "--reason", "PostgreSQL's own tests")
    house.run("grants", "approve", asked["grant"], by=BOB)


def _knows(house: House, name: str) -> bool:
    try:
        house.connect(name).close()
    except psycopg.OperationalError:
        return False
    return True


def _schedule() -> list[str]:
    if not ALL:
        return [f"test: {group}" for group in SOME]
    lines = (TESTS / "parallel_schedule").read_text().splitlines()
    return [line for line in lines if line.startswith("test:") and line != "test: test_setup"]


@pytest.mark.slow
@pytest.mark.timeout(3_600 if ALL else 900)
def test_postgresqls_own_tests_leave_no_difference_unexplained(
    house: House, tmp_path: Path, database: Database, wait_for: WaitFor
) -> None:
    _set_up(database, tmp_path)
    _register(house, "tester")
    wait_for(lambda: _knows(house, "tester"), 60, "the gateway knows the agent")
    schedule = tmp_path / "schedule"
    lines = _schedule()
    schedule.write_text("\n".join(lines) + "\n")
    where = ["--use-existing", "--host=127.0.0.1", f"--port={house.port}", "--user=tester", "--dbname=shop"]
    folders = [f"--bindir={PROGRAMS}/bin", f"--dlpath={PROGRAMS}/lib", f"--inputdir={TESTS}", f"--outputdir={tmp_path}"]
    driver = subprocess.run(
        [str(DRIVER), *where, *folders, f"--schedule={schedule}", "--max-concurrent-tests=20"],
        env=_environment(house.keys["tester"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3_000 if ALL else 600,
        check=False,
    )
    assert driver.returncode in (0, 1), driver.stdout  # 1: some tests have failed, as they must
    files = sum(len(line.split()) - 1 for line in lines)
    opened = [one for one in house.get("/v1/sessions") if one["agent"] == "tester"]
    assert len(opened) > files

    def judged() -> bool:
        seen = [one["verdict"] for one in house.get("/v1/observations/sessions") if one["user_name"] == database.role]
        return len(seen) >= len(opened) and "pending" not in seen

    wait_for(judged, _WAIT_SECONDS, "every session is judged")
    time.sleep(10)  # what is not explained by now is told by now: 5 s of lateness, a second of the watermark
    assert [finding["summary"] for finding in house.findings()] == []
    verdicts = wait_for(house.verdicts, 20, "no session waits for its verdict")
    assert isinstance(verdicts, Counter)
    assert set(verdicts) <= {"audited", "ours", "declared"}, verdicts
    ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
    denied = len(house.get("/v1/statements?decision=deny"))
    assert len(ran) > 1_000
    assert denied > 500
    assert [(one["name"], one["lost"], one["reason"]) for one in house.collectors()] == [(kind, 0, "") for kind in BY]
    eyes = len([kind for kind in BY if kind != "activity"])  # which looks at sessions alone
    if eyes:
        wait_for(lambda: house.compared().get("statements_matched", 0) > 0.9 * len(ran) * eyes, 120, "they are matched")
    assert [finding["summary"] for finding in house.findings()] == []
    counts = house.compared()
    print(f"{files} files, {len(opened)} sessions, {len(ran)} executions, {denied} refused; by {', '.join(BY)}: {counts}")
    assert not _CLAIMED_OF_NOBODY & set(counts)
    if not eyes:
        assert not {"statements_seen", "statements_matched"} & set(counts)
