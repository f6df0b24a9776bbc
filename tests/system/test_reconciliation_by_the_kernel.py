"""Gateway, API, watchdog, `pgwarden witness` and the collector that reads it, as processes around a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgwarden.status_socket import status_of
from tests.conftest import Database, fresh_database
from tests.ingest.collectors.ebpf import conftest as ebpf_fixtures
from tests.ingest.collectors.ebpf.servers import Server, copy_of, home
from tests.ingest.collectors.ebpf.test_witness import Witness
from tests.system.house import House, Housed, WaitFor, collector, process
from tests.system.test_record_equals_server_log import Agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
bpf = ebpf_fixtures.bpf

NOBODY = 65534
LOGGED = {
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_statement": "all",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    "log_timezone": "UTC",
}


@pytest.fixture(scope="module")
def server(bpf: None) -> Iterator[Server]:
    """Its own copy of a binary: the probes slow nobody else's server. It asks for passwords."""
    place = home()
    try:
        with Server(place, copy_of(18, place), **LOGGED) as made:
            (made.data / "pg_hba.conf").write_text(
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n"
            )
            with psycopg.connect(made.dsn(), autocommit=True) as connection:
                connection.execute("SELECT pg_reload_conf()")
            yield made
    finally:
        shutil.rmtree(place)


@pytest.fixture
def shop(server: Server) -> Iterator[Database]:
    with fresh_database("127.0.0.1", server.port, "postgres", "") as made:
        yield made


@pytest.fixture
def witness(server: Server) -> Iterator[Witness]:
    made = Witness(server)
    made.start()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def house(request: pytest.FixtureRequest, shop: Database, witness: Witness, server: Server, housed: Housed) -> Iterator[House]:
    """With the parameter "log too", a collector of the server's log looks beside the kernel's."""
    collectors = [collector("ebpf", f'path = "{witness.socket}"')]
    if getattr(request, "param", "") == "log too":
        collectors.append(collector("log", f'path = "{server.data}/log"'))
    with housed(shop, *collectors) as made:
        yield made


@pytest.mark.parametrize("house", ["log too"], indirect=True)
def test_all_that_the_protocol_allows_is_explained_by_what_the_kernel_saw_and_by_the_log_at_once(
    house: House, shop: Database, wait_for: WaitFor, needs: Callable[[str, bool], None]
) -> None:
    needs("pgbench", shutil.which("pgbench") is not None)
    agents = [Agent(house, number) for number in range(3)]  # type: ignore[arg-type]
    for agent in agents:
        house.agent(agent.name)
    wait_for(lambda: all(house.knows(agent.name) for agent in agents), 60, "the gateway knows the agents")
    for agent in agents:
        for scenario in agent.scenarios():
            scenario()
    for mode in ("simple", "extended", "prepared"):
        house.pgbench(agents[0].name, mode)
    wait_for(lambda: house.judged(shop.role), 60, "every session is judged")
    time.sleep(8)  # what is not explained by now is told by now: 5 s of lateness, a second of the watermark
    assert [finding["summary"] for finding in house.findings()] == []
    verdicts = wait_for(house.verdicts, 20, "no session waits for its verdict")
    assert isinstance(verdicts, Counter)
    assert set(verdicts) <= {"audited", "ours", "declared"}, verdicts
    assert verdicts["audited"] > 30
    seen = house.collectors()
    assert {one["kind"] for one in seen} == {"ebpf", "log"}
    assert [one["lost"] for one in seen] == [0] * len(seen)
    assert [one["reason"] for one in seen] == [""] * len(seen)
    counted = next(one["witness"] for one in seen if one["kind"] == "ebpf")
    assert (counted["reached"], counted["attached"], counted["lost"], counted["made"] > 1_000) == (1, 1, 0, True)
    ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
    assert len(ran) > 1_000
    wait_for(lambda: house.compared().get("statements_matched", 0) > 0.9 * len(ran) * len(seen), 60, "they are matched")
    assert not {"statements_beyond_the_limit", "statements_not_compared", "live_sessions_forgotten"} & set(house.compared())


def test_who_goes_straight_to_postgres_is_named_with_its_process_and_ended(
    house: House, shop: Database, server: Server, wait_for: WaitFor, needs: Callable[[str, bool], None]
) -> None:
    psql = Path("/usr/lib/postgresql/15/bin/psql")
    needs("psql", psql.exists())
    house.agent("honest")
    wait_for(lambda: house.knows("honest"), 60, "the gateway knows the agent")
    for host in ("127.0.0.1", str(server.home)):
        before = len(house.findings())
        thief = subprocess.Popen(
            [psql, "-X", "-c", "SELECT count(*) FROM secrets", *["-c", "SELECT pg_sleep(120)"] * 5],  # it goes on when canceled
            env={
                "PGHOST": host,
                "PGPORT": str(server.port),
                "PGUSER": shop.role,
                "PGDATABASE": shop.name,
                "PGPASSWORD": shop.password,
                "PATH": os.environ["PATH"],
            },
            cwd="/",
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            found = wait_for(lambda number=before: house.findings()[: -number or None], 60, "it is found")
            (finding,) = found  # type: ignore[misc]
            assert finding["detector"] == "hijacked"  # the gateway's role, in the hands of another process
            assert finding["severity"] == "critical"
            assert f"process {thief.pid} ({psql}) of user id {NOBODY}" in finding["summary"]
            assert finding["numbers"]["client_pid"] == thief.pid

            def ended(pid: int = thief.pid) -> list[dict[str, Any]]:
                seen = house.get("/v1/observations/sessions?verdict=hijacked")
                return [one for one in seen if one["client_pid"] == pid and one["kill_backend_gone_at"]]

            (session,) = wait_for(ended, 60, "its end is proven")  # type: ignore[misc]
            assert (session["client_exe"], session["client_uid"], session["killed_by"]) == (str(psql), NOBODY, "watchdog")
            assert thief.wait(30) != 0
            with psycopg.connect(shop.superuser_dsn) as connection:
                alive = connection.execute("SELECT pid FROM pg_stat_activity WHERE pid = %s", (session["backend_pid"],))
                assert alive.fetchall() == []
            texts = [one["text"] for one in house.get(f"/v1/observations/statements?session_id={session['session_id']}")]
            assert "SELECT count(*) FROM secrets" in texts
        finally:
            thief.kill()
            thief.communicate()
    with house.connect("honest") as honest:  # nobody else was touched
        assert honest.execute("SELECT count(*) FROM orders").fetchone() is not None


def test_kills_of_the_collector_and_of_the_witness_under_load_leave_nothing_unexplained(
    house: House, shop: Database, witness: Witness, wait_for: WaitFor, needs: Callable[[str, bool], None]
) -> None:
    needs("pgbench", shutil.which("pgbench") is not None)
    agent = Agent(house, 1)  # type: ignore[arg-type]
    house.agent(agent.name)
    wait_for(lambda: house.knows(agent.name), 60, "the gateway knows the agent")
    with contextlib.ExitStack() as stack:
        through = stack.enter_context(house.connect(agent.name))
        through.execute("SELECT 'before'")
        os.kill(status_of(house.folder / "state/run/collector.sock", 5.0)["pid"], signal.SIGKILL)  # type: ignore[arg-type]
        house.pgbench(agent.name, "simple")
        through.execute("SELECT 'unread'")
        stack.enter_context(process("collector", house.folder, house.sees, wait_for))
        house.pgbench(agent.name, "extended")
        witness.end(signal.SIGKILL)
        house.pgbench(agent.name, "prepared")
        through.execute("SELECT 'unseen by anybody alive'")
        witness.start()
        for scenario in agent.scenarios():
            scenario()
        through.execute("SELECT 'after'")
        wait_for(lambda: house.sees() and house.judged(shop.role), 60, "every session is judged")
        time.sleep(8)  # as above
        assert [finding["summary"] for finding in house.findings()] == []
        verdicts = wait_for(house.verdicts, 20, "no session waits for its verdict")
        assert isinstance(verdicts, Counter)
        assert set(verdicts) <= {"audited", "ours", "declared"}, verdicts
        assert [one["lost"] for one in house.collectors()] == [0]
        ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
        # Each of them, also what ran while nobody read: it was in the kernel's ring.
        wait_for(lambda: house.compared().get("statements_matched", 0) > 0.9 * len(ran), 60, "they are matched")
