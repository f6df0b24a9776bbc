"""The processes of this machine, asked for their status: which there are, and what each says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgwarden.settings import (
    API_SOCKET_FILE,
    COLLECTOR_SOCKET_FILE,
    RELAY_SOCKET_FILE,
    SOCKET_FILE,
    WATCHDOG_SOCKET_FILE,
    WEBHOOKS_SOCKET_FILE,
    WORKER_SOCKET_FILE,
)
from pgwarden.status_socket import read_status

SECONDS_MAX: Final = 1.5  # for one answer; all are asked at once
NAMED_MAX: Final = 64  # of one kind on one machine; more are not asked

SOCKETS: Final[Mapping[str, str]] = {
    "gateway": SOCKET_FILE,
    "relay": RELAY_SOCKET_FILE,
    "watchdog": WATCHDOG_SOCKET_FILE,
    "worker": WORKER_SOCKET_FILE,
    "collector": COLLECTOR_SOCKET_FILE,
    "api": API_SOCKET_FILE,
    "webhooks": WEBHOOKS_SOCKET_FILE,
}
"""What can be asked, by the command that runs it."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    process: str  # a key of SOCKETS
    name: str  # that it was started with; "" where it was given none
    status: Mapping[str, object] | None  # None: it does not answer
    silence: str = ""  # why not, in a sentence that goes on "… does not answer: "

    @property
    def shown(self) -> str:
        return f"{self.process} {self.name}" if self.name else self.process


def socket_file(state: Path, process: str, name: str = "") -> Path:
    """`run/worker.sock`, and `run/worker-NAME.sock` of one that was given a name."""
    path = state / SOCKETS[process]
    return path.with_name(f"{path.stem}-{name}{path.suffix}") if name else path


def found(state: Path) -> Sequence[tuple[str, str]]:
    """Process and name of whatever listens here, or did when it was killed: it leaves its socket behind."""
    there: list[tuple[str, str]] = []
    for process in SOCKETS:
        path = socket_file(state, process)
        if path.exists():
            there.append((process, ""))
        named = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))
        there += [(process, other.name[len(path.stem) + 1 : -len(path.suffix)]) for other in named[:NAMED_MAX]]
    return there


async def asked(state: Path, *, without: Sequence[str] = ()) -> Sequence[Neighbour]:
    """All that is found, and what each says. Takes no longer than SECONDS_MAX, a moment aside."""
    there = [one for one in found(state) if one[0] not in without]
    return await asyncio.gather(*(ask(state, process, name) for process, name in there))


async def ask(state: Path, process: str, name: str = "") -> Neighbour:
    try:
        return Neighbour(process, name, await read_status(socket_file(state, process, name), SECONDS_MAX))
    except (FileNotFoundError, ConnectionRefusedError):  # the second: one that was killed leaves its socket behind
        named = f" --name {name}" if name else ""
        return Neighbour(process, name, None, f"it does not run: start it with pgwarden {process}{named}")
    except TimeoutError:
        return Neighbour(process, name, None, f"no answer within {SECONDS_MAX:g} s")
    except (OSError, ValueError) as error:
        return Neighbour(process, name, None, f"its status cannot be read: {error}")


def wrong(said: Mapping[str, object]) -> str:
    """Why what a process says of itself is not well; "" when it is."""
    found: list[str] = []
    log, blind = said.get("log"), said.get("blind")  # a gateway's and a watchdog's; a watchdog's
    if isinstance(log, dict) and log.get("available") is False:
        found.append(f"cannot record: {log.get('reason', '')}")
    if isinstance(blind, list):
        found += [f"does not see {one.get('what')}: {one.get('reason')}" for one in blind if isinstance(one, dict)]
    found += [said_itself for name in ("error", "reason") if isinstance(said_itself := said.get(name), str) and said_itself]
    return "; ".join(found)
