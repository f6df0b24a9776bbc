"""What the dashboard is told from outside, and its limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

API_VARIABLE = "PGWARDEN_API"
KEY_FILE_VARIABLE = "PGWARDEN_OPERATOR_KEY_FILE"
ACCESS_FILE_VARIABLE = "PGWARDEN_DASHBOARD_ACCESS_FILE"
SIGN_IN_VARIABLE = "PGWARDEN_DASHBOARD_SIGN_IN"
SECRET_BYTES_MAX = 4096
ACCESS_CHARACTERS_MIN = 32  # 128 bits in hexadecimal


@dataclass(frozen=True, slots=True)
class Settings:
    api: str = "http://127.0.0.1:8470"  # base URL of the API
    key_file: Path | None = None  # holds the operator key; 0600
    access_file: Path | None = None  # holds what a browser must show; 0600. None: whoever reaches the port acts as the operator
    sign_in: str = ""  # the name of the provider in Streamlit's secrets; "": no sign-in, the operator key acts for every viewer
    connect_seconds_max: float = 1.0  # the API is on this machine: a slower answer is an outage worth showing
    answer_seconds_max: float = 5.0  # one answer; the API's own cap on a query is shorter
    sql_seconds_max: float = 30.0  # one SELECT: 5 s of its own at the API, behind others' and a fresh copy of the tables
    answer_bytes_max: int = 16 * 2**20  # one answer; Streamlit's own limit for a message to a browser is 200 MB
    refresh_seconds: float = 2.0  # page "Now"
    findings_refresh_seconds: float = 1.0  # a shadow session is to stand there within 2 s
    list_refresh_seconds: float = 5.0  # of the list on page "Agents", which may be a thousand long
    agents_max: int = 50  # shown in that list at once, twice what a screen holds; a search finds the others
    agent_rows: int = 10  # of one agent's last sessions and findings
    follow_seconds_max: float = 2.0  # from a recorded command to answers that show it; a commit of the tables is due every 0.25 s
    page_rows: int = 50  # statements on one page
    refusals_max: int = 20  # on page "Now"
    sessions_max: int = 200  # on page "Now"
    timeline_rows: int = 500  # of one session, on one page
    endings_max: int = 20  # of one agent's sessions, on page "Agents"
    whole_characters_max: int = 1_000_000  # of one statement; a browser lays out about that much in a second
    unused_days: int = 30  # an agent not seen for longer is shown as long unused


DEFAULTS: Final = Settings()


class SettingsRefused(Exception):
    """The environment does not say how to reach the API. The sentence says what to set."""


def settings(environment: Mapping[str, str]) -> Settings:
    """Read the variables; the key file itself is read for each request, so that a replaced key works at once.

    Raises:
        SettingsRefused: A variable cannot be used.
    """
    api = environment.get(API_VARIABLE, DEFAULTS.api).rstrip("/")
    parts = urlsplit(api)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise SettingsRefused(f"{API_VARIABLE} must be an address such as http://127.0.0.1:8470, without a user, key or query.")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        # the operator key travels with each request
        raise SettingsRefused(f"{API_VARIABLE} leads off this machine in clear: use https://.")
    key, access = environment.get(KEY_FILE_VARIABLE, ""), environment.get(ACCESS_FILE_VARIABLE, "")
    return Settings(
        api=api,
        key_file=Path(key) if key else None,
        access_file=Path(access) if access else None,
        sign_in=environment.get(SIGN_IN_VARIABLE, ""),
    )


def operator_key(file: Path | None) -> str:
    """The key, for one request.

    Raises:
        SettingsRefused: There is none, or others on this machine can read it.
    """
    if file is None:
        raise SettingsRefused(f"Set {KEY_FILE_VARIABLE} to a file that holds an operator key, readable by you alone.")
    return _secret(file, "operator key", KEY_FILE_VARIABLE)


def access_word(file: Path) -> str:
    """What a browser must show before it sees a page.

    Raises:
        SettingsRefused: There is none, it is short enough to guess, or others on this machine can read it.
    """
    word = _secret(file, "access word", ACCESS_FILE_VARIABLE)
    if len(word) < ACCESS_CHARACTERS_MIN:
        raise SettingsRefused(f"The access word is shorter than {ACCESS_CHARACTERS_MIN} characters: write random ones.")
    return word


def _secret(file: Path, noun: str, variable: str) -> str:
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if mode & 0o077:
                raise SettingsRefused(f"The {noun} file is readable by others (mode {mode:04o}): chmod 600 it.")
            content = opened.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        remedy = f"put an {noun} into it, with mode 0600, or name another file with {variable}"
        raise SettingsRefused(f"{file} cannot be read ({error.strerror}): {remedy}.") from error
    text = content.decode("ascii", "replace").strip()
    if not text or len(content) > SECRET_BYTES_MAX or not text.isascii() or not text.isprintable():
        raise SettingsRefused(f"The {noun} file does not hold one: write the {noun} alone on its only line.")
    return text
