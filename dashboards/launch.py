"""How Streamlit is started: each setting spelled out, so that no `.streamlit/config.toml` on the machine changes it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dashboards.settings import ACCESS_FILE_VARIABLE, API_VARIABLE, KEY_FILE_VARIABLE, SIGN_IN_VARIABLE

APP: Final = Path(__file__).with_name("app.py")
SERVER: Final = "dashboards.serve"

_FIXED: Final[Mapping[str, object]] = {
    "server.headless": True,
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "server.enableXsrfProtection": True,
    "server.xsrfCookieSameSite": "strict",
    "server.enableCORS": True,  # the WebSocket's Origin must be ours
    "server.enableStaticServing": False,
    "server.enableAgentApi": False,  # else any program on this machine could press the buttons over plain HTTP
    "server.maxUploadSize": 1,  # MB; nothing here takes a file
    "server.maxMessageSize": 32,  # MB; twice the largest answer that we read
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",  # a traceback may hold event text; it goes to the terminal
    "client.showErrorLinks": "false",
    "client.showSidebarNavigation": False,  # app.py names the pages
    "runner.magicEnabled": False,  # a bare expression is not a page element
    # Each refresh of each part would go through all objects of the process, 90 ms of CPU with every other viewer waiting; Python
    # collects by itself what has become garbage.
    "runner.postScriptGC": False,
    "logger.level": "warning",
    "theme.base": "light",
    "theme.primaryColor": "#1d4e6b",
    "theme.backgroundColor": "#fcfbf9",
    "theme.secondaryBackgroundColor": "#f3f1ec",
    "theme.textColor": "#1c2127",
    "theme.borderColor": "#dedad2",
    "theme.linkColor": "#1d4e6b",
    "theme.codeBackgroundColor": "#f6f4ef",
    "theme.baseFontSize": 14,
    "theme.codeFontSize": "12.5px",
    "theme.baseRadius": "4px",
    "theme.buttonRadius": "4px",
    "theme.showWidgetBorder": True,
    "theme.headingFontSizes": ["1.5rem", "1.25rem", "1.05rem", "1rem", "0.95rem", "0.9rem"],
    "theme.headingFontWeights": [650, 650, 650],
    "theme.paddingTop": "1rem",
    "theme.paddingBottom": "2rem",
}


def arguments(host: str, port: int, names: tuple[str, ...] = (), secrets_file: Path | None = None) -> tuple[str, ...]:
    """The command that serves the dashboard in the foreground. It holds no secret; see `environment`.

    `names` are further host names under which browsers come, such as that of a proxy in front. `secrets_file` is what
    `sign_in_secrets` describes; without it Streamlit finds none, whatever lies about on this machine.
    """
    # A page of another site that rebinds its own name to 127.0.0.1 is refused by its Host header.
    chosen: dict[str, object] = {
        "server.address": host,
        "server.port": port,
        "server.allowedHosts": sorted({host, "localhost", *names}),
    }
    chosen["secrets.files"] = [str(secrets_file or os.devnull)]
    return (
        sys.executable,
        "-m",
        SERVER,
        "run",
        str(APP),
        *(f"--{name}={text}" for name, value in {**_FIXED, **chosen}.items() for text in _texts(value)),
    )


PROVIDER: Final = "oidc"  # what Streamlit calls the one provider; no underscore


def sign_in_secrets(
    address: str, metadata: str, client: str, client_secret: str, cookie_secret: str, scope: str, audience: str
) -> str:
    """The file by which Streamlit signs people in, TOML. It is secret: 0600, in a folder of ours.

    `address` is where browsers find the dashboard, `metadata` the provider's discovery document.
    """
    # A string of JSON is one of TOML: the configuration lets no control characters through.
    text = json.dumps
    return "\n".join(
        (
            "[auth]",
            f"redirect_uri = {text(address.rstrip('/') + '/oauth2callback')}",
            f"cookie_secret = {text(cookie_secret)}",
            'expose_tokens = ["access"]',
            f"[auth.{PROVIDER}]",
            f"client_id = {text(client)}",
            f"client_secret = {text(client_secret)}",
            f"server_metadata_url = {text(metadata)}",
            # The audience is asked for by name: several providers make a token for the API only then; others pass over it.
            f"authorize_params = {{ audience = {text(audience)} }}",
            # PKCE always, whatever the provider's metadata says of it
            f'client_kwargs = {{ scope = {text(scope)}, code_challenge_method = "S256" }}',
            "",
        )
    )


def environment(api: str, key_file: Path | None, access_file: Path | None = None, *, sign_in: bool = False) -> Mapping[str, str]:
    """What the process needs beside the caller's own environment. Where people sign in, they act with their own tokens, and neither
    key nor access word is told.

    Without an access file, whoever can reach the port acts with the operator key: on a machine where agents run, give one, and
    open `http://127.0.0.1:8471/?access=<its word>` once in a browser.
    """
    told = {API_VARIABLE: api, "PYTHONPATH": str(APP.parent.parent)}
    if sign_in:
        return told | {SIGN_IN_VARIABLE: PROVIDER}
    told |= {KEY_FILE_VARIABLE: str(key_file)}
    return told | ({} if access_file is None else {ACCESS_FILE_VARIABLE: str(access_file)})


def _texts(value: object) -> list[str]:
    """A list is an option given several times."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [str(value).lower() if isinstance(value, bool) else str(value)]
