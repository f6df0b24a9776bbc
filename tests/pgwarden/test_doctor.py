"""`pgwarden doctor` against a real server, and against what can be wrong with one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.collectors.ebpf.running import servers
from ingest.collectors.kernel import BPFFS, mounted
from ingest.collectors.server_settings import Override, shortcomings
from pgwarden.postgres import Postgres
from tests.conftest import Database
from tests.pgwarden.test_collector_process import ROOT, House

GOOD = {
    "logging_collector": "on",
    "log_destination": "stderr,jsonlog",
    "log_statement": "all",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    "log_min_messages": "warning",
    "log_min_error_statement": "error",
    "log_timezone": "UTC",
    "lc_messages": "C",
}


def ask(config: Path | None, folder: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "pgwarden", "doctor", "--json", *(["-c", str(config)] if config else [])]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment, cwd=folder)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def house(tmp_path: Path, database: Database, postgres: Postgres) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(path: Path | None = None) -> House:
        made.append(House(tmp_path, database, f'kind = "log"\npath = "{path or postgres.log_path.parent}"\ncanary_seconds = 5'))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_collector_that_can_see_is_proven_by_a_canary(house: Callable[..., House], tmp_path: Path) -> None:
    code, said = ask(house().config, tmp_path)
    eyes = said["collectors"][0]
    assert (eyes["name"], eyes["works"], eyes["reasons"]) == ("eyes", True, [])
    assert any("log_replication_commands is off" in one for one in eyes["dim"])
    assert (code, said["ok"]) == (0, True)
    assert not (tmp_path / "state" / "collectors").exists()


def test_what_hinders_one_is_said_with_the_remedy(house: Callable[..., House], tmp_path: Path) -> None:
    code, said = ask(house(tmp_path / "nowhere").config, tmp_path)
    assert (code, said["ok"]) == (1, False)
    assert "cannot be read" in said["collectors"][0]["reasons"][0]
    assert {one["kind"] for one in said["collectors"]} == {"log", "ebpf", "activity"}


@pytest.mark.slow
def test_where_the_collectors_run_it_asks_them(
    house: Callable[..., House], tmp_path: Path, wait_for: Callable[..., object]
) -> None:
    here = house()
    here.start()
    wait_for(here.sees, 30, "its first canary is seen")
    before = here.status()["collectors"][0]["observed"]
    code, said = ask(here.config, tmp_path)
    assert (code, said["collectors"][0]["works"]) == (0, True)
    own = {one.session_id for one in here.events() if type(one).__name__ == "WitnessConnected"}
    seen = {one.session_id for one in here.events() if type(one).__name__ == "SessionObserved"}
    assert before > 0
    assert seen <= own  # no session of the doctor's


def test_without_a_file_it_says_what_each_kind_needs(tmp_path: Path) -> None:
    code, said = ask(None, tmp_path)
    assert code == 1
    assert [one["kind"] for one in said["collectors"]] == ["log", "ebpf", "activity"]
    assert all(one["reasons"] for one in said["collectors"])


def test_a_server_of_this_machine_is_found_with_the_version_that_can_be_probed(postgres: Postgres) -> None:
    (found,) = [one for one in servers() if one.data == str(postgres.data.resolve())]
    assert (found.major, found.reason, found.stepped) == (18, "", ())


def test_a_binary_that_cannot_be_probed_is_named_with_the_reason(tmp_path: Path) -> None:
    shutil.copy2("/bin/sleep", tmp_path / "postgres")
    (tmp_path / "PG_VERSION").write_text("15\n")
    process = subprocess.Popen([tmp_path / "postgres", "60"], cwd=tmp_path)
    try:
        (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n{tmp_path}\n1\n5432\n")
        (found,) = [one for one in servers() if one.pid == process.pid]
        assert (found.major, found.reason) == (0, "its binary is of version unknown, its data of 15")
        _, said = ask(None, tmp_path)
        (kernel_witness,) = [one for one in said["collectors"] if one["kind"] == "ebpf"]
        assert f"the server of process {process.pid} {tmp_path}: {found.reason}" in kernel_witness["reasons"]
    finally:
        process.kill()
        process.wait(10)


def test_a_bpf_file_system_is_known_by_its_place_and_kind() -> None:
    mounts = "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\nnone /srv/bpf tmpfs rw 0 0\n"
    assert mounted(BPFFS, mounts)
    assert not mounted(Path("/srv/bpf"), mounts)
    assert not mounted(BPFFS, mounts.replace(" bpf rw", " tmpfs rw"))


def test_good_settings_have_no_shortcomings() -> None:
    assert shortcomings("jsonlog", GOOD, []) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_statement", "ddl"),
        ("log_min_messages", "fatal"),
        ("log_min_error_statement", "log"),
        ("log_timezone", "Europe/Berlin"),
        ("lc_messages", "de_DE.UTF-8"),
    ],
)
def test_what_blinds_is_named_with_its_value_and_what_to_write(name: str, value: str) -> None:
    (found,) = shortcomings("jsonlog", {**GOOD, name: value}, [])
    assert found.blinds
    assert str(found).startswith(f"{name} is {value}: set {name} = ")


def test_pgaudit_alone_must_not_count_rows() -> None:
    audited = {**GOOD, "log_statement": "none", "pgaudit.log": "all", "pgaudit.log_rows": "on"}
    (found,) = shortcomings("jsonlog", audited, [])
    assert (found.blinds, "set log_statement = all, or pgaudit.log_rows = off" in str(found)) == (True, True)
    assert shortcomings("jsonlog", {**audited, "log_statement": "all"}, []) == []


def test_pgaudit_in_place_of_log_statement_blinds_nobody() -> None:
    assert shortcomings("jsonlog", {**GOOD, "log_statement": "none", "pgaudit.log": "all"}, []) == []


def test_what_one_role_has_otherwise_blinds_too() -> None:
    hidden = [Override("batch", "", "log_statement", "none"), Override("", "shop", "log_statement", "all")]
    (found,) = shortcomings("jsonlog", GOOD, hidden)
    assert str(found).startswith("log_statement is none for role batch: take it back with ALTER ROLE")


def test_what_only_dims_does_not_blind() -> None:
    (found,) = shortcomings("jsonlog", {**GOOD, "log_connections": "off"}, [])
    assert not found.blinds
