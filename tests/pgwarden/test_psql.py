from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pgwarden.postgres import Postgres
from pgwarden.psql import psql


def test_the_one_on_the_path_comes_first(tmp_path: Path) -> None:
    mine = tmp_path / "psql"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    found = psql(str(tmp_path))
    assert (found.path, found.preload) == (str(mine), "")


def test_without_one_the_embedded_psql_works_and_speaks_tls(postgres: Postgres, tmp_path: Path) -> None:
    found = psql(str(tmp_path))
    assert found.path != shutil.which("psql")
    environment = found.environment(
        {"PGHOST": postgres.host, "PGPORT": str(postgres.port), "PGUSER": postgres.superuser, "PGPASSWORD": postgres.password}
    )
    command = [found.path, "--no-psqlrc", "-At", "-c", "SELECT 6 * 7", "dbname=postgres"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("42\n", "")
    # The embedded server has no TLS: a client that has it asks for it and is told so; one that has not refuses the setting.
    command[-1] = "dbname=postgres sslmode=require"
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "server does not support SSL, but SSL was required" in said.stderr


def test_its_environment_is_ours_with_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    environment = psql().environment({"PGSERVICE": "shop"})
    assert (environment["INHERITED"], environment["PGSERVICE"]) == ("yes", "shop")
