"""`pgwarden webhooks`: tells receivers outside of findings, kills, revocations and blindness. Writes nothing to the log."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import uvloop

from ingest.clock import now_us
from ingest.log import LogCorrupt, LogUnavailable
from pgwarden.config import Config
from pgwarden.logs import open_log
from pgwarden.neighbours import socket_file
from pgwarden.status_socket import serve_status
from pgwarden.webhooks import Sender, SenderSettings

STUCK_SECONDS: Final = 60.0  # that an event is tried before this process calls itself unwell

_log: Final = logging.getLogger("pgwarden.webhooks")


class CannotStart(Exception):
    """Says what to do."""


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    try:
        if not config.webhooks:
            raise CannotStart("the configuration has no [webhooks.NAME]: write a table for each receiver")
        with _alone(config.state):
            return uvloop.run(_run(config))
    except (CannotStart, OSError, LogCorrupt, LogUnavailable) as error:
        sys.stderr.write(f"pgwarden webhooks: {error}\n")
        return 1


async def _run(config: Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as closing:
        boot = now_us()
        log = await open_log(config)
        closing.push_async_callback(log.close)
        settings = SenderSettings()
        senders = {
            name: Sender(log, log_name(config), webhook, config.state, settings) for name, webhook in config.webhooks.items()
        }
        path = socket_file(config.state, "webhooks")
        status = await serve_status(path, lambda: _status(boot, senders))
        closing.callback(path.unlink, missing_ok=True)
        closing.callback(status.close)
        tasks = {loop.create_task(sender.run(), name=f"webhook {name}") for name, sender in senders.items()}
        stopping = loop.create_task(stop.wait(), name="signal")
        _log.info("telling %s", ", ".join(sorted(senders)))
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        exit_status = 0
        for task in done & tasks:
            exit_status = 1
            _log.critical("%s ended: %r", task.get_name(), task.exception(), exc_info=task.exception())
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.wait({stopping, *tasks}, timeout=2.0)
        return exit_status


def log_name(config: Config) -> str:
    """Of this log among all that a configuration may have had: a place in one is no place in another."""
    return "segments" if config.kafka is None else f"kafka {config.kafka.topic_prefix}"


def _status(boot: int, senders: Mapping[str, Sender]) -> Mapping[str, object]:
    found = {name: sender.status() for name, sender in senders.items()}
    return {
        "boot": boot,
        "pid": os.getpid(),
        "started_us": boot,
        "webhooks": found,
        "reason": "; ".join(f"{name}: {status['error']}" for name, status in found.items() if _is_stuck(status)),
    }


def _is_stuck(status: Mapping[str, object]) -> bool:
    waiting = status["waiting_seconds"]
    return bool(status["error"]) and (not waiting or (isinstance(waiting, float) and waiting > STUCK_SECONDS))


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Two of them would tell everything twice.

    Raises:
        CannotStart: Another one runs on this state folder.
    """
    path = state / "run" / "webhooks.lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"another one runs on {state}") from None
        yield
