"""`pgwarden dashboard`: becomes Streamlit with the dashboard's pages, told by environment where the API and its key file are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from dashboards import launch
from dashboards.settings import KEY_FILE_VARIABLE
from pgwarden.api_client import KEY_FILE
from pgwarden.config import Address, Config


def run(config: Config) -> NoReturn:
    """Does not return: this process is Streamlit from here on, under the same number and with the same parent.

    Raises:
        OSError: Python cannot be started anew.
    """
    key_file = Path(os.environ.get(KEY_FILE_VARIABLE, "") or config.state / KEY_FILE)
    arguments = launch.arguments(config.dashboard.listen.host, config.dashboard.listen.port)
    # A setting of Streamlit in the environment is somebody else's: launch.py spells out all that matters, arguments come first.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    told = launch.environment(url(config.api.listen), key_file.absolute())
    path = os.pathsep.join(filter(None, (told["PYTHONPATH"], inherited.get("PYTHONPATH", ""))))
    os.execve(arguments[0], arguments, {**inherited, **told, "PYTHONPATH": path})  # noqa: S606 - no shell is wanted


def url(listen: Address) -> str:
    """Where this machine reaches what listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 - read, not bound
    return f"http://{Address(host, listen.port)}"
