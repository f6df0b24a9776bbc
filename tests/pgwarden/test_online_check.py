"""What `pgwarden verify-config --online` finds, with a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from pgwarden.cli import main
from pgwarden.config import loads
from pgwarden.online_check import Answer, look


class Database(Protocol):
    host: str
    port: int
    name: str
    role: str
    password: str
    superuser: str
    superuser_password: str


Ask = Callable[..., Answer]


@pytest.fixture
def text(database: Database) -> str:
    return f"""
[connections.shop]
host = "{database.host}"
port = {database.port}
database = "{database.name}"
user = "{database.role}"
password = "env:PASSWORD"
sslmode = "disable"
"""


def answer(text: str, password: str) -> Answer:
    (found,) = look(loads(text, Path("/nowhere/pgwarden.toml"), {"PASSWORD": password}))
    assert password not in repr(found)
    return found


def test_a_database_that_lets_us_in_is_described(text: str, database: Database) -> None:
    found = answer(text, database.password)
    assert (found.name, found.works, found.warning) == ("connections.shop", True, "")
    assert found.found.startswith("PostgreSQL 18.")
    assert found.found.endswith(f", in clear text, logged in as {database.role}")


def test_a_superuser_is_warned_of(text: str, database: Database) -> None:
    found = answer(text.replace(f'"{database.role}"', f'"{database.superuser}"'), database.superuser_password)
    assert found.works
    assert found.warning == f"{database.superuser} is a superuser; make a role that may do only what its agents may"


def test_a_wrong_password_is_found(text: str) -> None:
    found = answer(text, "canary-of-a-wrong-password")
    assert not found.works
    assert "password authentication failed" in found.found


def test_a_missing_database_is_found(text: str, database: Database) -> None:
    found = answer(text.replace(f'database = "{database.name}"', 'database = "none"'), database.password)
    assert not found.works
    assert 'database "none" does not exist' in found.found


def test_a_server_without_the_tls_that_was_asked_for_is_found(text: str, database: Database) -> None:
    found = answer(text.replace('"disable"', '"verify-full"'), database.password)
    assert not found.works
    assert "does not offer TLS" in found.found


def test_a_server_that_is_not_there_is_found(text: str, database: Database) -> None:
    found = answer(text.replace(f"port = {database.port}", "port = 1"), database.password)
    assert not found.works
    assert "cannot be reached" in found.found


def test_issuers_are_asked_for_their_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
    )
    text = """
[issuers.offline]
issuer = "https://a.invalid"
audience = "pgwarden"
jwks_file = "keys.json"
[issuers.gone]
issuer = "http://127.0.0.1:1"
audience = "pgwarden"
insecure_http = true
"""
    offline, gone = look(loads(text, tmp_path / "pgwarden.toml", {}))
    assert (offline.name, offline.works, offline.found) == ("issuers.offline", True, "1 key")
    assert (gone.name, gone.works) == ("issuers.gone", False)
    assert gone.found.startswith("no keys of issuer gone: ")


def test_the_command_shows_each_and_exits_with_1_when_one_fails(
    text: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pgwarden.toml").write_text(text)
    monkeypatch.setenv("PASSWORD", database.password)
    assert main(["verify-config", "-c", str(tmp_path / "pgwarden.toml"), "--online"]) == 0
    assert "connections.shop: ok: PostgreSQL 18." in capsys.readouterr().out
    monkeypatch.setenv("PASSWORD", "wrong")
    assert main(["verify-config", "-c", str(tmp_path / "pgwarden.toml"), "--online", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [(answer["name"], answer["works"]) for answer in document["online"]] == [("connections.shop", False)]
