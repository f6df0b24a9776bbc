"""`pgwarden status PART`: asks one process of this machine how it is, without any credential. For health checks: 0 is well."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from pgwarden.config import Address, Config, ConfigInvalid, load
from pgwarden.neighbours import SOCKETS, socket_file, wrong
from pgwarden.printable import printable
from pgwarden.status_socket import status_of

SECONDS_MAX: Final = 5.0


class Unwell(Exception):
    """It does not answer, or says itself that something is wrong. Says what."""


def status(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    part, name = arguments.part, arguments.name or ""
    try:
        said = _of(part, name, config)
        reason = wrong(said)
    except Unwell as unwell:
        said, reason = {}, str(unwell)
    shown = f"{part} {name}" if name else part
    if arguments.json:
        print(json.dumps({"part": part, "name": name, "well": not reason, "reason": reason, "status": said}, indent=2))
    else:
        print(f"{shown}: {printable(reason)}" if reason else f"{shown}: well", file=sys.stderr if reason else sys.stdout)
    return 1 if reason else 0


def _of(part: str, name: str, config: Config) -> Mapping[str, object]:
    if part in SOCKETS and part != "api":
        return _from_socket(socket_file(config.state, part, name))
    if part == "api":
        # It stands, and has nothing there: a path that asks for a key would log a refusal at each health check.
        return _from_http(config.api.listen, "/", lambda code: code == 404)
    return _from_http(config.dashboard.listen, "/_stcore/health", lambda code: code == 200)


def _from_socket(path: Path) -> Mapping[str, object]:
    try:
        return status_of(path, SECONDS_MAX)
    except (OSError, ValueError) as error:
        raise Unwell(f"does not answer on {path}: {error}") from error


def _from_http(listen: Address, path: str, expected: Callable[[int], bool]) -> Mapping[str, object]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104 - read, not bound
    url = f"http://{Address(host, listen.port)}{path}"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS_MAX) as answer:
            code = int(answer.status)
    except HTTPError as error:
        code = error.code
        error.close()
    except (URLError, OSError) as error:
        raise Unwell(f"does not answer at {url}: {getattr(error, 'reason', error)}") from error
    if not expected(code):
        raise Unwell(f"answers at {url} with {code}")
    return {"url": url, "code": code}
