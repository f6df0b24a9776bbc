"""`pgwarden status PART`: asks one process of this machine how it is, without any credential. For health checks: 0 is well."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from pgwarden.config import Address, Config, ConfigInvalid, load
from pgwarden.printable import printable

SECONDS_MAX: Final = 5.0
STATUS_BYTES_MAX: Final = 16 * 2**20

_SOCKETS: Final = {
    "gateway": "run/gateway.sock",
    "relay": "run/relay.sock",
    "watchdog": "run/watchdog.sock",
    "worker": "run/worker.sock",
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
        wrong = _wrong(part, said)
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
        return _from_http(config.api.listen, "/v1/health", lambda code: code == 401)  # it stands, and wants to know who asks
    return _from_http(config.dashboard.listen, "/_stcore/health", lambda code: code == 200)


def _from_socket(path: Path) -> Mapping[str, object]:
    """One JSON object: all that is said, or the first line of what goes on."""
    said = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(SECONDS_MAX)
            peer.connect(str(path))
            while b"\n" not in said and len(said) <= STATUS_BYTES_MAX and (more := peer.recv(65_536)):
                said += more
        answer = json.loads(said.partition(b"\n")[0])
    except (OSError, ValueError) as error:
        raise Unwell(f"does not answer on {path}: {error}") from error
    if not isinstance(answer, dict):
        raise Unwell(f"answers on {path} with no JSON object")
    return answer


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


def _wrong(part: str, said: Mapping[str, object]) -> str:
    """Why what it says of itself is not well; "" when it is."""
    log = said.get("log")
    if part == "gateway" and isinstance(log, dict) and log.get("available") is False:
        return f"cannot record, so it lets nothing through: {log.get('reason', '')}"
    for name in ("error", "reason", "blind"):
        if isinstance(said.get(name), str) and said[name]:
            return str(said[name])
    return ""
