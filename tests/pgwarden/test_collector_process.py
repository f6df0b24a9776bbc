"""`pgwarden collector` as a process, against a real PostgreSQL: what it records, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingest.events import (
    Event,
    ObservationGap,
    SessionObserved,
    SessionUnobserved,
    StatementObserved,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.follow import Follower
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from pgwarden.postgres import Postgres
from pgwarden.status_socket import status_of
from tests.conftest import Database, fill
from tests.ingest.collectors import scenario

ROOT = Path(__file__).parents[2]


class House:
    """A configuration with one collector, and its process."""

    def __init__(self, folder: Path, database: Database, collector: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "pgwarden.toml"
        secret = folder / "password"
        secret.write_text(database.superuser_password + "\n")
        secret.chmod(0o600)
        self.config.write_text(
            f'state = "state"\n[connections.shop]\nhost = "{database.host}"\nport = {database.port}\n'
            f'database = "{database.name}"\nuser = "{database.superuser}"\npassword = "file:password"\nsslmode = "disable"\n'
            f'[collectors.eyes]\nserver = "main"\nconnections = ["shop"]\n{collector}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pgwarden", "collector", "-c", str(self.config)]
        with (self.folder / "collector.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]})

    def stop(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(30)

    def status(self) -> dict[str, Any]:
        try:
            return dict(status_of(self.state / "run/collector.sock", 5.0))
        except (OSError, ValueError):
            return {}

    def sees(self) -> bool:
        said = self.status()
        return bool(said) and not said["blind"] and bool(said["collectors"][0]["canary_us"])

    def troubles(self) -> str:
        """What it says is wrong with its collectors and its record."""
        said = self.status()
        return " ".join([one["reason"] for one in said.get("collectors", ())] + [said.get("log", {}).get("reason", "")])

    def events(self) -> list[Event]:
        async def read() -> list[Event]:
            log = SegmentLog(self.state / "log", LogSettings())
            follower = Follower(log, ("witness",), {})
            found: list[Event] = []
            while frames := await follower.poll(timeout_seconds=0.05):
                found += [event for _, frame in frames for _, event in frame.events]
            follower.close()
            await log.close()
            return found

        return asyncio.run(read())

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events() if isinstance(event, kind)]


@pytest.fixture
def house(tmp_path: Path, database: Database, postgres: Postgres) -> Iterator[Callable[[str], House]]:
    made: list[House] = []

    def make(collector: str = "") -> House:
        made.append(
            House(tmp_path, database, collector or f'kind = "log"\npath = "{postgres.log_path.parent}"\ncanary_seconds = 5')
        )
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.mark.slow
def test_what_clients_did_is_recorded_and_who_the_collectors_own_sessions_are(
    house: Callable[..., House], database: Database, wait_for: Callable[..., object]
) -> None:
    here = house()
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    done = list(scenario.run(database.superuser_dsn))
    wait_for(lambda: any("the last" in one.text for one in here.of(StatementObserved)), 20, "the last statement is recorded")
    wait_for(
        lambda: [one for one in here.of(WitnessReported) if one.complete_us > max(one.at_us for one in here.of(StatementObserved))],
        20,
        "the watermark passes it",
    )
    assert here.stop() == 0
    observed = [one for one in here.of(StatementObserved) if one.database == database.name]
    ours = {one.session_id for one in here.of(WitnessConnected)}
    assert ours
    seen = [(one.text, one.sqlstate) for one in observed if one.session_id not in ours]
    assert sorted(seen) == sorted((one.text, one.sqlstate) for one in done)
    began, ended = here.of(SessionObserved), here.of(SessionUnobserved)
    assert {"scenario", "victim", "killer"} <= {one.application_name for one in began}
    assert {one.session_id for one in began if one.application_name == "victim"} <= {one.session_id for one in ended}
    (started,) = here.of(WitnessStarted)
    assert (started.witness, started.kind, started.sees, started.connections) == ("eyes", "log", "statements", ("shop",))
    assert [one.witness for one in here.of(WitnessStopped)] == ["eyes"]
    last = here.of(WitnessReported)[-1]
    assert (last.seeing, last.reason, last.lost) == (True, "", 0)
    assert here.of(ObservationGap) == []
    canaries = {(one.session_id, one.digest) for one in here.of(WitnessConnected) if one.purpose == "canary"}
    assert canaries & {(one.session_id, one.digest) for one in observed}


@pytest.mark.slow
def test_killed_and_begun_again_it_has_recorded_each_statement_and_none_twice(
    house: Callable[..., House], database: Database, wait_for: Callable[..., object]
) -> None:
    here = house()
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    with psycopg.connect(database.superuser_dsn, autocommit=True) as client:
        for number in range(600):
            client.execute(f"SELECT {number} AS marked".encode())
            if number in (150, 400):
                here.stop(signal.SIGKILL)
            if number in (250, 450):
                here.start()
                wait_for(here.sees, 30, "its first canary is seen")
    wait_for(lambda: any("599 AS" in one.text for one in here.of(StatementObserved)), 30, "the last statement is recorded")
    here.stop()
    marked = [one for one in here.of(StatementObserved) if one.text.endswith(" AS marked")]
    assert {one.text for one in marked} == {f"SELECT {number} AS marked" for number in range(600)}
    named = {(one.session_id, one.sequence): one.text for one in marked}
    assert len(named) == 600  # what a kill makes it tell again bears the same name
    assert [one.lost for one in here.of(ObservationGap)] == []
    assert [one.resumed_us > 0 for one in here.of(WitnessStarted)] == [False, True, True]


@pytest.mark.faults
def test_a_full_disk_is_told_and_loses_nothing_and_it_goes_on_by_itself_once_there_is_room(
    house: Callable[..., House], small_disk: Path, database: Database, wait_for: Callable[..., object]
) -> None:
    here = house()
    (small_disk / "state").mkdir(mode=0o700)
    here.state.symlink_to(small_disk / "state")
    here.start()
    wait_for(here.sees, 60, "its first canary is seen")
    pid = here.status()["pid"]
    ballast = fill(small_disk)
    with psycopg.connect(database.superuser_dsn, autocommit=True) as client:
        for number in range(100):
            client.execute(f"SELECT {number} AS marked".encode())
        wait_for(lambda: "No space left" in here.troubles(), 60, "it says what is wrong")
        ballast.unlink()
        client.execute("SELECT 100 AS marked")
    wait_for(lambda: any("100 AS" in one.text for one in here.of(StatementObserved)), 60, "what waited is recorded")
    assert here.status()["pid"] == pid
    wait_for(lambda: here.status()["log"]["available"] and here.sees(), 60, "it sees, and records")
    assert here.stop() == 0
    marked = [one for one in here.of(StatementObserved) if one.text.endswith(" AS marked")]
    assert sorted(one.text for one in marked) == sorted(f"SELECT {number} AS marked" for number in range(101))  # each once
    assert [one.lost for one in here.of(ObservationGap)] == []


@pytest.mark.slow
def test_a_server_that_stops_logging_statements_blinds_it_until_it_logs_them_again(
    house: Callable[..., House], postgres: Postgres, wait_for: Callable[..., object]
) -> None:
    here = house()
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    try:
        postgres.execute("postgres", "ALTER SYSTEM SET log_statement = 'none'", "SELECT pg_reload_conf()")
        wait_for(lambda: here.of(WitnessBlinded), 30, "it says that it is blind")
        (blinded,) = here.of(WitnessBlinded)
        assert "log_statement is none: set log_statement = all" in blinded.reason
        assert "log_statement is none" in here.status()["blind"][0]["reason"]
    finally:
        postgres.execute("postgres", "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()")
    wait_for(lambda: here.of(WitnessRestored), 30, "it sees again")
    assert here.of(WitnessRestored)[0].blind_since_us == blinded.since_us


@pytest.mark.slow
def test_activity_sees_sessions_and_says_that_it_sees_no_more(
    house: Callable[..., House], database: Database, wait_for: Callable[..., object]
) -> None:
    here = house('kind = "activity"\ncanary_seconds = 5')
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    with psycopg.connect(database.dsn, application_name="visitor") as client:
        pid = client.info.backend_pid
        wait_for(lambda: any(one.backend_pid == pid for one in here.of(SessionObserved)), 10, "the session is seen")
    (visitor,) = [one for one in here.of(SessionObserved) if one.backend_pid == pid]
    assert (visitor.user, visitor.database, visitor.application_name) == (database.role, database.name, "visitor")
    wait_for(lambda: visitor.session_id in {one.session_id for one in here.of(SessionUnobserved)}, 10, "its end is seen")
    assert here.of(WitnessStarted)[0].sees == "sessions"
    assert here.of(StatementObserved) == []
    assert {one.purpose for one in here.of(WitnessConnected)} == {"activity", "canary"}


@pytest.mark.slow
def test_where_the_witness_in_the_kernel_does_not_run_it_says_to_start_it(
    house: Callable[..., House], wait_for: Callable[..., object], tmp_path: Path
) -> None:
    here = house(f'kind = "ebpf"\npath = "{tmp_path / "witness.sock"}"\ncanary_seconds = 5')
    here.start()
    wait_for(lambda: here.of(WitnessBlinded), 30, "it says that it is blind")
    assert "start pgwarden witness" in here.of(WitnessBlinded)[0].reason
    assert [one.kind for one in here.of(WitnessStarted)] == ["ebpf"]


def test_without_a_collector_it_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "pgwarden.toml").write_text('state = "state"\n')
    command = [sys.executable, "-m", "pgwarden", "collector", "-c", str(tmp_path / "pgwarden.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "there is no [collectors.NAME]" in done.stderr


def test_its_status_is_asked_as_every_process_is(house: Callable[..., House], wait_for: Callable[..., object]) -> None:
    here = house()
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    command = [sys.executable, "-m", "pgwarden", "status", "collector", "-c", str(here.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": str(ROOT)})
    said = json.loads(done.stdout)
    assert (done.returncode, said["well"]) == (0, True)
    assert said["status"]["collectors"][0]["name"] == "eyes"
