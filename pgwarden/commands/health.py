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
from pgwarden.printable import printable
from pgwarden.settings import RELAY_SOCKET_FILE, SOCKET_FILE, WATCHDOG_SOCKET_FILE, WORKER_SOCKET_FILE
from pgwarden.status_socket import status_of

SECONDS_MAX: Final = 5.0

_SOCKETS: Final = {
    "gateway": SOCKET_FILE,
    "relay": RELAY_SOCKET_FILE,
    "watchdog": WATCHDOG_SOCKET_FILE,
    "worker": WORKER_SOCKET_FILE,
}


class Unwell(Exception):
    """It does not answer, or says itself that something is wrong. Says what."""


def status(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    part: str = arguments.part
    try:
        said = _of(part, config)
        wrong = _wrong(said)
    except Unwell as unwell:
        said, wrong = {}, str(unwell)
    if arguments.json:
        print(json.dumps({"part": part, "well": not wrong, "reason": wrong, "status": said}, indent=2))
    else:
        print(f"{part}: {printable(wrong)}" if wrong else f"{part}: well", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


def _of(part: str, config: Config) -> Mapping[str, object]:
    if part in _SOCKETS:
        return _from_socket(config.state / _SOCKETS[part])
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


def _wrong(said: Mapping[str, object]) -> str:
    """Why what it says of itself is not well; "" when it is."""
    wrong: list[str] = []
    log, blind = said.get("log"), said.get("blind")  # a gateway's and a watchdog's; a watchdog's
    if isinstance(log, dict) and log.get("available") is False:
        wrong.append(f"cannot record: {log.get('reason', '')}")
    if isinstance(blind, list):
        wrong += [f"does not see {one.get('what')}: {one.get('reason')}" for one in blind if isinstance(one, dict)]
    wrong += [said_itself for name in ("error", "reason") if isinstance(said_itself := said.get(name), str) and said_itself]
    return "; ".join(wrong)
