from __future__ import annotations

from pathlib import Path

import pytest

from dashboards import launch
from dashboards.settings import DEFAULTS, SettingsRefused, access_word, operator_key, settings


def key_file(folder: Path, text: bytes, mode: int = 0o600) -> Path:
    file = folder / "operator.key"
    file.write_bytes(text)
    file.chmod(mode)
    return file


def test_without_an_environment_the_api_is_on_this_machine() -> None:
    assert settings({}) == DEFAULTS
    assert DEFAULTS.api == "http://127.0.0.1:8470"


@pytest.mark.parametrize(
    "api", ["ftp://127.0.0.1", "127.0.0.1:8470", "http://", "http://user:key@127.0.0.1:8470", "http://127.0.0.1:8470/?key=1"]
)
def test_an_address_that_cannot_be_used_is_refused_with_an_example(api: str) -> None:
    with pytest.raises(SettingsRefused, match="such as http://"):
        settings({"PGWARDEN_API": api})


def test_the_key_does_not_leave_the_machine_in_clear() -> None:
    with pytest.raises(SettingsRefused, match="https"):
        settings({"PGWARDEN_API": "http://audit.example:8470"})
    assert settings({"PGWARDEN_API": "https://audit.example/"}).api == "https://audit.example"


def test_the_key_is_read_without_its_line_feed(tmp_path: Path) -> None:
    assert operator_key(key_file(tmp_path, b"pgw_secret\n")) == "pgw_secret"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="chmod 600"):
        operator_key(key_file(tmp_path, b"pgw_secret", 0o640))


@pytest.mark.parametrize("text", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"k" * 5000])
def test_a_file_that_holds_no_key_is_refused_without_showing_what_it_holds(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(SettingsRefused) as refused:
        operator_key(key_file(tmp_path, text))
    assert str(refused.value) == "The operator key file does not hold one: write the operator key alone on its only line."


def test_no_key_file_says_which_variable_to_set(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="PGWARDEN_OPERATOR_KEY_FILE"):
        operator_key(None)


def test_a_missing_key_file_says_where_to_put_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused) as refused:
        operator_key(tmp_path / "missing")
    assert str(refused.value) == (
        f"{tmp_path}/missing cannot be read (No such file or directory): put an operator key into it, with mode 0600, or name "
        "another file with PGWARDEN_OPERATOR_KEY_FILE."
    )


def test_the_command_line_spells_out_what_keeps_the_dashboard_closed(tmp_path: Path) -> None:
    command = launch.arguments("127.0.0.1", 8471)
    for option in (
        "--server.address=127.0.0.1",
        "--server.port=8471",
        "--server.headless=true",
        "--server.enableXsrfProtection=true",
        "--server.fileWatcherType=none",
        "--server.enableAgentApi=false",
        "--server.allowedHosts=127.0.0.1",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
    ):
        assert option in command


def test_the_command_line_holds_no_key(tmp_path: Path) -> None:
    file = key_file(tmp_path, b"pgw_secret")
    told = launch.environment("http://127.0.0.1:8470", file)
    assert told["PGWARDEN_OPERATOR_KEY_FILE"] == str(file)
    assert not any("pgw_secret" in part for part in (*launch.arguments("127.0.0.1", 8471), *told.values()))


def test_an_access_word_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused, match="random"):
        access_word(key_file(tmp_path, b"letmein"))
    assert access_word(key_file(tmp_path, b"0123456789abcdef" * 4)) == "0123456789abcdef" * 4
