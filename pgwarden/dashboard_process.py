"""`pgwarden dashboard`: becomes Streamlit with the dashboard's pages, told by environment where the API and its key file are."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from dashboards import launch
from dashboards.settings import KEY_FILE_VARIABLE
from pgwarden.api_client import KEY_FILE
from pgwarden.config import Address, Config, SignInConfig
from pgwarden.small_files import write_private


def run(config: Config) -> NoReturn:
    """Does not return: this process is Streamlit from here on, under the same number and with the same parent.

    Raises:
        OSError: Python cannot be started anew.
    """
    key_file = Path(os.environ.get(KEY_FILE_VARIABLE, "") or config.state / KEY_FILE)
    host, port, sign_in = config.dashboard.listen.host, config.dashboard.listen.port, config.dashboard.sign_in
    if sign_in is None:
        arguments = launch.arguments(host, port)
    else:
        arguments = launch.arguments(host, port, (urlsplit(sign_in.address).hostname or "",), secrets_file(config, sign_in))
    # A setting of Streamlit in the environment is somebody else's: launch.py spells out all that matters, arguments come first.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    if sign_in is None:
        told = launch.environment(url(config.api.listen), key_file.absolute(), access_file(config.state).absolute())
    else:
        told = launch.environment(url(config.api.listen), None, sign_in=True)
    path = os.pathsep.join(filter(None, (told["PYTHONPATH"], inherited.get("PYTHONPATH", ""))))
    os.execve(arguments[0], arguments, {**inherited, **told, "PYTHONPATH": path})  # noqa: S606 - no shell is wanted


def secrets_file(config: Config, sign_in: SignInConfig) -> Path:
    """By which Streamlit signs people in: written anew at each start, with a secret for its cookies that is made once. Whoever can
    read that can forge a person's name on a screen, and not their token: the API looks at tokens alone."""
    run = config.state / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    cookie_file = config.state / "dashboard.cookie"
    if not cookie_file.exists():
        write_private(cookie_file, secrets.token_hex(32) + "\n")
    rules = config.issuers[sign_in.issuer]
    file = run / "dashboard.toml"
    text = launch.sign_in_secrets(
        sign_in.address,
        f"{rules.issuer.rstrip('/')}/.well-known/openid-configuration",  # OpenID Connect Discovery §4
        sign_in.client_id,
        sign_in.client_secret.reveal(),
        cookie_file.read_text(encoding="ascii").strip(),
        sign_in.scope,
        rules.audience,
    )
    write_private(file, text)
    return file.absolute()


def access_file(state: Path) -> Path:
    """Holds the word that a browser must show, made when missing: the dashboard acts with an operator's key for whoever reaches its
    port, and agents run on this machine too."""
    file = state / "dashboard.access"
    if not file.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may be the first part to start
        write_private(file, secrets.token_hex(32) + "\n")
    return file


def address(config: Config) -> str:
    """What to open in a browser; where nobody signs in, once, and the browser keeps the word."""
    if config.dashboard.sign_in is not None:
        return config.dashboard.sign_in.address
    word = access_file(config.state).read_text(encoding="ascii").strip()
    return f"{url(config.dashboard.listen)}/?access={word}"


def url(listen: Address) -> str:
    """Where this machine reaches what listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 - read, not bound
    return f"http://{Address(host, listen.port)}"
