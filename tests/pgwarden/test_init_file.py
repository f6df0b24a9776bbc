from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tomllib
from pathlib import Path

import pytest

from identity import agent_keys
from pgwarden import init_file, settings
from pgwarden.cli import main
from pgwarden.config import ConfigInvalid, load
from pgwarden.first_start import settle

FILLED = {
    "<the host name or IP address of your PostgreSQL>": "db.example",
    "<the name of the database>": "shop",
    "<the role that the gateway logs in as>": "pgwarden",
}


def filled(path: Path) -> Path:
    text = path.read_text()
    for placeholder, value in FILLED.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    path.write_text(text)
    return path


def test_the_file_is_private_and_holds_the_keys_hash_only(tmp_path: Path) -> None:
    path = tmp_path / "pgwarden.toml"
    key = init_file.write(path, "alice", "administrator")
    assert agent_keys.is_operator_key(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()


def test_beside_the_samples_it_keeps_its_state_apart(tmp_path: Path) -> None:
    init_file.write(tmp_path / "first.toml", "alice", "administrator")
    assert tomllib.loads((tmp_path / "first.toml").read_text())["state"] == ".pgwarden"
    settle(tmp_path / ".pgwarden", None)
    init_file.write(tmp_path / "second.toml", "alice", "administrator")
    assert tomllib.loads((tmp_path / "second.toml").read_text())["state"] == ".pgwarden-own"


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_no_umask_changes_its_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        init_file.write(tmp_path / "pgwarden.toml", "alice", "administrator")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "pgwarden.toml").stat().st_mode) == 0o600


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pgwarden.toml").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pgwarden.toml", "link"):
        with pytest.raises(FileExistsError):
            init_file.write(tmp_path / name, "alice", "administrator")
    assert (tmp_path / "pgwarden.toml").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_all_that_is_left_to_do_are_the_placeholders_and_the_password(tmp_path: Path) -> None:
    path = tmp_path / "pgwarden.toml"
    init_file.write(path, "alice", "administrator")
    with pytest.raises(ConfigInvalid) as caught:
        load(path, {})
    lines = path.read_text().splitlines()
    assert [lines[problem.line - 1].partition(" ")[0] for problem in caught.value.problems] == [
        "host",
        "database",
        "user",
        "password",
    ]
    assert [problem.remedy for problem in caught.value.problems] == [
        "write the host name or IP address of your PostgreSQL",
        "write the name of the database",
        "write the role that the gateway logs in as",
        "export SHOP_PASSWORD before you start pgwarden",
    ]


@pytest.mark.parametrize("operator", ["alice", "alice.b@example", "a-b_c"])
def test_once_filled_in_it_loads_with_the_documented_defaults(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "pgwarden.toml"
    init_file.write(path, operator, "administrator")
    config = load(filled(path), {"SHOP_PASSWORD": "x"})
    assert config.warnings == ()
    assert list(config.operators) == [operator]
    assert config.connections["shop"].host == "db.example"


def test_what_is_commented_out_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "pgwarden.toml"
    init_file.write(path, "alice", "administrator")
    before = load(filled(path), {"SHOP_PASSWORD": "x"})
    path.write_text(re.sub(r"^#(?=[a-z\[])", "", path.read_text(), flags=re.MULTILINE))
    after = load(path, {"SHOP_PASSWORD": "x"})
    assert (after.gateway, after.api, after.dashboard) == (before.gateway, before.api, before.dashboard)
    assert (after.log, after.kafka) == (before.log, None)
    assert after.connections == before.connections
    assert list(after.agents) == ["reporter"]
    values = tomllib.loads(path.read_text())
    assert set(values["gateway"]) == {setting.name for setting in settings.GATEWAY}


# -- the command -----------------------------------------------------------------------------------------------------------------


def test_init_shows_the_key_once_and_what_is_still_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pgwarden.toml"
    assert main(["init", str(path), "--operator", "alice"]) == 0
    out = capsys.readouterr().out
    (key,) = re.findall(r"^    (pgwop_\S+)$", out, re.MULTILINE)
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()
    assert out.count(key) == 1
    assert f"{path}:" in out
    assert "write the name of the database" in out


def test_init_in_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "a.toml"), "--operator", "alice", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["operator"] == "alice"
    assert agent_keys.is_operator_key(document["operator_key"])
    assert len(document["to_do"]) == 4


def test_init_leaves_an_existing_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pgwarden.toml"
    path.write_text("mine")
    assert main(["init", str(path)]) == 1
    assert "is there already and was not touched" in capsys.readouterr().err
    assert path.read_text() == "mine"


@pytest.mark.parametrize("operator", ["Alice", "config", "a b", "../x"])
def test_init_takes_no_name_that_the_file_could_not_hold(tmp_path: Path, operator: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "a.toml"), "--operator", operator]) == 2
    assert "is no name for an operator" in capsys.readouterr().err
    assert not (tmp_path / "a.toml").exists()


def test_init_says_why_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "no" / "a.toml"), "--operator", "alice"]) == 1
    assert "cannot be written: no such file or directory" in capsys.readouterr().err
