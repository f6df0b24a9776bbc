from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from identity import agent_keys
from pgwarden.config import load
from pgwarden.first_start import SAMPLES, Ports, StateUnusable, fill, settle, write_configuration
from pgwarden.postgres import Postgres, PostgresSettings


@pytest.fixture
def state() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgwarden-test-") as directory:
        place = Path(directory)
        place.chmod(0o711)
        yield place / "state"


def test_a_first_start_makes_keys_that_a_second_one_keeps(state: Path) -> None:
    first = settle(state, None)
    files = [
        first.operator_key_file,
        first.client_secret_file,
        first.role_password_file,
        *map(first.key_file, ("ingestion", "migration")),
    ]
    contents = [file.read_text() for file in files]
    assert first.new_operator_key == contents[0].strip()
    assert len(set(contents)) == len(files)
    second = settle(state, None)
    assert [file.read_text() for file in files] == contents
    assert second.new_operator_key == ""


def test_the_samples_never_join_somebodys_own_record(state: Path) -> None:
    (state / "log").mkdir(parents=True)
    with pytest.raises(StateUnusable, match="start with -c"):
        settle(state, None)
    assert [path.name for path in state.iterdir()] == ["log"]


def test_no_file_is_for_others(state: Path) -> None:
    before = os.umask(0)
    try:
        write_configuration(settle(state, None), 5432, Path("/srv/pg/log"))
    finally:
        os.umask(before)
    readable = [path for path in state.rglob("*") if path.is_file() and path.stat().st_mode & 0o077 and path.stat().st_size]
    assert readable == [state / "tls" / "certificate.pem"]
    assert state.stat().st_mode & 0o066 == 0


def test_the_configuration_is_one_that_loads_without_a_warning(state: Path) -> None:
    home = settle(state, 21000)
    write_configuration(home, 5432, Path("/srv/pg/log"))
    config = load(home.config)
    assert config.warnings == ()
    assert config.state == state
    assert set(config.agents) == set(SAMPLES)
    assert [config.gateway.listen.port, config.api.listen.port, config.dashboard.listen.port] == [21000, 21001, 21002]
    assert config.operators["local"].key_sha256 == agent_keys.operator_key_sha256(home.new_operator_key)
    for secret in home.operator_key_file, home.role_password_file, home.key_file("ingestion"):
        assert secret.read_text().strip() not in home.config.read_text()


def test_a_folder_keeps_its_ports(state: Path) -> None:
    assert settle(state, 21000).ports == Ports(21000, 21001, 21002, 21003)
    assert settle(state, None).ports.gateway == 21000
    assert settle(state, 21000).ports.gateway == 21000
    with pytest.raises(StateUnusable, match="was made with the gateway on port 21000.*--state"):
        settle(state, 22000)


def test_the_sample_database_is_filled_once_and_its_role_is_no_superuser(state: Path) -> None:
    home = settle(state, None)
    with Postgres(state / "postgres", PostgresSettings(durable=False, jsonlog=True, parameters={"log_statement": "all"})) as server:
        fill(server, home)
        server.execute("shop", "DELETE FROM public.orders WHERE id = 1")
        home.role_password_file.write_text("another password\n")
        fill(server, home)
        with psycopg.connect(server.dsn("shop", "pgwarden", "another password")) as connection:
            assert connection.execute("SELECT count(*) FROM public.orders").fetchone() == (4999,)
            assert connection.execute("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user").fetchone() == (
                False,
                False,
            )
        assert "another password" not in str(list(server.log_entries()))
