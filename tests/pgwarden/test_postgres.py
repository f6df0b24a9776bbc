from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from pgwarden.postgres import Postgres, PostgresSettings, PostgresUnavailable
from tests import broker as brokers

QUICK = PostgresSettings(durable=False, jsonlog=True, shared_buffers_mb=16, connections_max=20)


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgwarden-test-") as directory:
        place = Path(directory)
        place.chmod(0o711)  # the server's account goes through it when the tests run as root
        yield place / "postgres"


def sessions_of(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchall()


def processes_in(data: Path) -> list[Path]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(data):
                found.append(entry)
    return found


def ended(pid: int) -> bool:
    """Gone, or dead and waiting for whoever inherited it to notice."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_every_way_in_asks_for_a_scram_password(postgres: Postgres, database: object) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(host=postgres.host, port=postgres.port, user=postgres.superuser, dbname="postgres")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=postgres.host, port=postgres.port, user=postgres.superuser, dbname="postgres", password="wrong")
    with psycopg.connect(postgres.dsn("postgres")) as connection:
        rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        stored = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL").fetchall()
        sockets = connection.execute("SHOW unix_socket_directories").fetchone()
    assert rules == [("scram-sha-256",)]
    assert all(str(verifier).startswith("SCRAM-SHA-256$") for (verifier,) in stored)
    assert sockets == ("",)


def test_it_listens_on_loopback_only(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn("postgres")) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)


def test_the_password_is_in_a_private_file_and_on_no_command_line(postgres: Postgres) -> None:
    assert (postgres.home / "superuser.password").stat().st_mode & 0o777 == 0o600
    assert postgres.home.stat().st_mode & 0o777 == 0o700
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                seen = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert postgres.password.encode() not in seen
    environment = Path(f"/proc/{postgres.pid}/environ").read_bytes()
    assert {line.split(b"=")[0] for line in environment.split(b"\0") if line} == {b"PATH", b"LC_ALL", b"TZ"}


def test_the_server_never_runs_as_root(postgres: Postgres) -> None:
    status = Path(f"/proc/{postgres.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert "0" not in uids


def test_the_log_shows_each_statement_with_its_session(postgres: Postgres, database: object) -> None:
    with psycopg.connect(postgres.dsn("postgres"), application_name="seen by the log") as connection:
        connection.execute("SELECT 'a statement of this test'")
        pid = connection.info.backend_pid
    entry = next(one for one in postgres.log_entries() if "a statement of this test" in str(one.get("message", "")))
    assert (entry["pid"], entry["application_name"]) == (pid, "seen by the log")


def test_data_survives_a_stop_and_a_start(home: Path) -> None:
    server = Postgres(home, QUICK)
    with server:
        server.execute("postgres", "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)")
        password = server.password
    assert server.pid == 0
    with server, psycopg.connect(server.dsn("postgres")) as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(42,)]
        assert server.password == password


def test_stop_ends_open_sessions_within_a_second(home: Path) -> None:
    server = Postgres(home, QUICK)
    server.start()
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as idle:
        idle.execute("SELECT 1")
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 1.0
    assert not processes_in(server.data)


@pytest.mark.slow
def test_it_starts_again_after_it_was_killed_with_a_backend_left_behind(home: Path) -> None:
    server = Postgres(home, QUICK)
    server.start()
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # a backend that does not notice that its postmaster is gone
        os.kill(server.pid, signal.SIGKILL)
    again = Postgres(home, QUICK)
    with again, psycopg.connect(again.dsn("postgres")) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert ended(backend)
    server.stop()


def test_a_stale_pid_file_with_the_number_of_another_program_does_not_stop_it(home: Path) -> None:
    with Postgres(home, QUICK) as server:
        left = (server.data / "postmaster.pid").read_text()
    other = subprocess.Popen(["sleep", "60"])
    try:
        (server.data / "postmaster.pid").write_text("\n".join([str(other.pid), *left.splitlines()[1:]]) + "\n")
        with Postgres(home, QUICK) as again:
            assert sessions_of(again.dsn("postgres"))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_it_ends_when_its_parent_is_killed(home: Path, wait_for: Callable[..., object]) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pgwarden.postgres import Postgres, PostgresSettings\n"
        "server = Postgres(Path(sys.argv[1]), PostgresSettings(durable=False)); server.start()\n"
        "print(server.pid, server.port, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        with socket.create_connection(("127.0.0.1", port)):
            pass
        parent.kill()
    wait_for(lambda: ended(pid), 10)


def test_a_taken_port_is_reported_with_the_servers_own_words(home: Path) -> None:
    port = brokers.port()
    with socket.create_server(("127.0.0.1", port)):
        server = Postgres(home, PostgresSettings(port=port, durable=False))
        with pytest.raises(PostgresUnavailable, match=f'(?s)port {port}.*could not bind IPv4 address "127.0.0.1"'):
            server.start()
    assert server.pid == 0


def test_an_initialisation_that_was_cut_short_is_begun_again(home: Path) -> None:
    (home / "data.draft" / "base").mkdir(parents=True)
    with Postgres(home, QUICK) as server:
        assert sessions_of(server.dsn("postgres"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a directory that the server's account cannot enter")
def test_as_root_a_closed_directory_stays_closed_and_the_data_stands_elsewhere(home: Path) -> None:
    home.parent.chmod(0o700)
    before = os.umask(0o077)
    try:
        with Postgres(home, QUICK) as server:
            server.execute("postgres", "CREATE TABLE kept ()")
            assert not server.home.is_relative_to(home.parent)
            assert server.home.stat().st_mode & 0o777 == 0o700
            elsewhere = server.home
        with Postgres(home, QUICK) as again:
            again.execute("postgres", "SELECT FROM kept")
    finally:
        os.umask(before)
    assert home.parent.stat().st_mode & 0o777 == 0o700
    subprocess.run(["rm", "-r", "--", str(elsewhere)], check=True)
