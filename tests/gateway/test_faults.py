"""The record under fire: the gateway is killed, its disk fills, its database goes away."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from ingest.events import GatewayStarted, RecordingStopped, Rule, SessionClosed
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.conftest import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Warden  # type: ignore[import-not-found]

WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))


@pytest.mark.faults
@pytest.mark.parametrize("durability", ["group", "strict"])
def test_no_acknowledged_statement_is_lost_when_the_gateway_is_killed_at_random(
    make_warden: Callable[..., Warden], durability: str, database: object
) -> None:
    """25 instants at each of the two levels that promise it; four agents write markers until their gateway dies."""
    warden = make_warden(durability=durability)
    for number in range(4):
        warden.agent(f"agent-{number}", WRITE)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    lock = threading.Lock()

    def work(number: int, round_: int) -> None:
        try:
            with warden.connect(f"agent-{number}") as connection:
                for count in range(100_000):
                    marker = f"m:{round_}.{number}.{count}"
                    if count % 3 == 0:
                        with connection.pipeline():
                            connection.execute(f"INSERT INTO orders VALUES ({_id(round_, number, count)}, 1, 1, '{marker}')")
                    else:
                        connection.execute(f"INSERT INTO orders VALUES ({_id(round_, number, count)}, 1, 1, '{marker}')".encode())
                    with lock:
                        acknowledged.add(marker)
        except psycopg.Error:
            pass

    for round_ in range(25):
        threads = [threading.Thread(target=work, args=(number, round_)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1 + chance.random() * 0.5)
        warden.kill9()
        for thread in threads:
            thread.join()
        warden.start()
    warden.stop()

    recorded = {_marker(execution.text) for execution in warden.executions()}
    assert acknowledged - recorded == set(), f"seed {seed}"
    assert len(acknowledged) > 100
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        stored = {str(row[0]) for row in direct.execute("SELECT note FROM orders WHERE note LIKE 'm:%'")}
    assert acknowledged <= stored, f"seed {seed}"
    if durability == "strict":
        assert stored <= recorded, f"seed {seed}: something ran that is not in the record"
    assert len(warden.session_events(GatewayStarted)) == 26
    checksums = {asyncio.run(_rebuilt(warden, folder)) for folder in ("once", "twice")}
    assert len(checksums) == 1, "the same log gives the same tables"


async def _rebuilt(warden: Warden, folder: str) -> str:
    log = SegmentLog(warden.folder / "state/log", LogSettings())
    try:
        return (await rebuild(log, AnalyticsSettings(warden.folder / folder))).checksum
    finally:
        await log.close()


def _id(round_: int, number: int, count: int) -> int:
    return 10_000 + (round_ * 4 + number) * 1_000_000 + count


def _marker(text: str) -> str:
    return text.rsplit("'", 2)[1] if "'" in text else ""


@pytest.mark.faults
def test_a_full_disk_stops_every_statement_until_there_is_room_again(
    make_warden: Callable[..., Warden], small_disk: Path, database: object
) -> None:
    warden = make_warden(start=False)
    (warden.folder / "state").mkdir(mode=0o700)
    (warden.folder / "state" / "log").symlink_to(small_disk / "log")
    (small_disk / "log").mkdir(mode=0o700)
    warden.start()
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        connection.execute("SELECT 1")
        ballast = fill(small_disk)
        refusal: psycopg.Error | None = None
        until = time.monotonic() + 60
        count = 0
        while refusal is None and time.monotonic() < until:
            try:
                connection.execute("SELECT '" + "y" * 60_000 + f"{count}'")
                count += 1
            except psycopg.Error as error:
                refusal = error
        assert refusal is not None, "the disk never filled"
        assert "cannot be recorded" in str(refusal) or "does not reach the disk" in str(refusal)
        status = warden.status()
        assert status["log"]["available"] is False  # type: ignore[index]
        assert status["log"]["reason"]  # type: ignore[index]
        if not connection.closed:
            with pytest.raises(psycopg.Error, match="cannot be recorded"):
                connection.execute("UPDATE orders SET note = 'unrecorded'")
        with pytest.raises(psycopg.OperationalError, match="cannot be recorded"):
            warden.connect("writer")
        ballast.unlink()
        until = time.monotonic() + 10
        while not warden.status()["log"]["available"] and time.monotonic() < until:  # type: ignore[index]
            time.sleep(0.05)
        if connection.closed:
            connection = warden.connect("writer")
        assert connection.execute("SELECT 2").fetchone() == (2,)
    connection.close()
    warden.stop()
    (stopped,) = warden.session_events(RecordingStopped)
    assert isinstance(stopped, RecordingStopped)
    assert stopped.since_us < stopped.at_us
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'unrecorded'").fetchone() == (0,)


def test_a_backend_that_is_killed_ends_its_session_with_postgres_own_words(warden: Warden, database: object) -> None:
    warden.agent("writer", WRITE)
    with warden.connect("writer") as connection:
        connection.execute("SELECT 1")
        with psycopg.connect(database.superuser_dsn) as direct:  # type: ignore[attr-defined]
            direct.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    warden.stop()
    assert [event.reason for event in warden.session_events(SessionClosed) if isinstance(event, SessionClosed)] == [
        "server",
        "client",
    ]


def test_a_client_that_vanishes_in_the_middle_leaves_a_known_outcome(warden: Warden) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    connection.pgconn.send_query(b"SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e")
    connection.pgconn.flush()
    time.sleep(0.3)
    os.close(os.dup(connection.fileno()))
    connection.close()
    until = time.monotonic() + 10
    while warden.status()["sessions"] and time.monotonic() < until:
        time.sleep(0.05)
    warden.stop()
    (execution,) = warden.executions()
    assert (execution.outcome, execution.sqlstate) == ("error", "57014")


def test_a_second_gateway_on_the_same_log_refuses_to_start(warden: Warden, free_port: int) -> None:
    second = warden.folder / "second.toml"
    shutil.copy(warden.folder / "pgwarden.toml", second)
    second.chmod(0o600)
    second.write_text(second.read_text().replace(f":{free_port}", ":0"))
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pgwarden", "gateway", "-c", str(second)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "another process" in done.stderr.lower() or "lock" in done.stderr.lower()
    warden.agent("writer")
    with warden.connect("writer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_backend_whose_gateway_was_killed_ends_by_itself_and_commits_nothing(warden: Warden, database: object) -> None:
    warden.agent("writer", WRITE)
    connection = warden.connect("writer")
    insert = b"INSERT INTO orders SELECT n, 1, 1, 'orphan' FROM generate_series(1000, 20000000) AS n"
    connection.pgconn.send_query(insert)
    connection.pgconn.flush()
    time.sleep(0.4)
    warden.kill9()
    with psycopg.connect(database.superuser_dsn, autocommit=True) as direct:  # type: ignore[attr-defined]
        of_agents = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgwarden/writer/%'"
        until = time.monotonic() + 5
        while direct.execute(of_agents).fetchone() != (0,) and time.monotonic() < until:
            time.sleep(0.05)
        assert direct.execute(of_agents).fetchone() == (0,)
        assert direct.execute("SELECT count(*) FROM orders WHERE note = 'orphan'").fetchone() == (0,)
    connection.close()
    warden.start()
    warden.stop()
    (execution,) = warden.executions()
    assert execution.outcome == "unknown", "by an event of the next start: the log is not edited"
