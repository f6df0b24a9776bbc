"""`pgwarden dashboard`: becomes Streamlit with the dashboard's pages, told by environment where the API and its key file are."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NoReturn

from dashboards import launch
from dashboards.settings import KEY_FILE_VARIABLE
from pgwarden.api_client import KEY_FILE
from pgwarden.config import Address, Config
from pgwarden.small_files import write_private


def run(config: Config) -> NoReturn:
    """Does not return: this process is Streamlit from here on, under the same number and with the same parent.

    Raises:
        OSError: Python cannot be started anew.
    """
    key_file = Path(os.environ.get(KEY_FILE_VARIABLE, "") or config.state / KEY_FILE)
    arguments = launch.arguments(config.dashboard.listen.host, config.dashboard.listen.port)
    # A setting of Streamlit in the environment is somebody else's: launch.py spells out all that matters, arguments come first.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    told = launch.environment(url(config.api.listen), key_file.absolute(), access_file(config.state).absolute())
    path = os.pathsep.join(filter(None, (told["PYTHONPATH"], inherited.get("PYTHONPATH", ""))))
    os.execve(arguments[0], arguments, {**inherited, **told, "PYTHONPATH": path})  # noqa: S606 - no shell is wanted


def access_file(state: Path) -> Path:
    """Holds the word that a browser must show, made when missing: the dashboard acts with an operator's key for whoever reaches its
    port, and agents run on this machine too."""
    file = state / "dashboard.access"
    if not file.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may be the first part to start
        write_private(file, secrets.token_hex(32) + "\n")
    return file


def address(config: Config) -> str:
    """What to open in a browser, once; the browser keeps the word."""
    word = access_file(config.state).read_text(encoding="ascii").strip()
    return f"{url(config.dashboard.listen)}/?access={word}"


def url(listen: Address) -> str:
    """Where this machine reaches what listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 - read, not bound
    return f"http://{Address(host, listen.port)}"
