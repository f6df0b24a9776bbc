"""`pgwarden watchdog`: ends what a gateway should have ended, with nothing of the gateway's. Writes observations."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace

import uvloop

from gateway.settings import GatewaySettings
from gateway.stamp import watchdog_name
from gateway.watchdog import Sight, Watchdog, WatchdogSettings
from ingest.clock import now_us
from ingest.log import LogCorrupt, LogLocked, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from pgwarden.config import Config
from pgwarden.logs import open_log
from pgwarden.neighbours import wrong
from pgwarden.self_reports import report
from pgwarden.settings import WATCHDOG_SOCKET_FILE
from pgwarden.status_socket import serve_status
from pgwarden.targets import control

_log = logging.getLogger("pgwarden.watchdog")


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    try:
        return uvloop.run(_run(config, WatchdogSettings()))
    except (OSError, LogCorrupt, LogLocked, LogUnavailable) as error:
        sys.stderr.write(f"pgwarden watchdog: {error}\n")
        return 1


async def _run(config: Config, settings: WatchdogSettings) -> int:
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as closing:
        log = await open_log(config)
        closing.push_async_callback(log.close)
        if isinstance(log, SegmentLog):
            await log.claim(("observations",))  # a second watchdog on this log ends here
        else:  # several may run, each under a name of its own: by it their frames are told apart
            settings = replace(settings, watchdog=f"{settings.watchdog}-{socket.gethostname()}-{os.getpid()}")
        boot = now_us()
        recorder = Recorder(log, settings.watchdog, boot, RecorderSettings())
        closing.push_async_callback(recorder.close)
        eyes = sights(config, settings)
        for sight in eyes.values():
            closing.push_async_callback(sight.look.close)
            closing.push_async_callback(sight.kill.close)
        watchdog = Watchdog(log, recorder, eyes, boot, settings)
        status = await serve_status(config.state / WATCHDOG_SOCKET_FILE, watchdog.status)
        closing.callback(status.close)
        watching = loop.create_task(watchdog.run())
        reporting: set[asyncio.Task[None]] = set()
        if config.kafka is not None:
            word = report(recorder, "watchdog", settings.watchdog, boot, lambda: wrong(watchdog.status()))
            reporting.add(loop.create_task(word))
        stopping = loop.create_task(stop.wait())
        _log.info("looking after %s", ", ".join(sorted(config.connections)) or "no connection")
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        exit_status = 0
        if watching.done():
            _log.error("the watchdog cannot go on: %r", watching.exception())
            exit_status = 1
        for task in (watching, stopping, *reporting):
            task.cancel()
        await asyncio.wait((watching, stopping, *reporting))
        return exit_status


def sights(config: Config, settings: WatchdogSettings) -> Mapping[str, Sight]:
    """Raises OSError, ssl.SSLError when a root certificate cannot be used."""
    ours = GatewaySettings()
    name = watchdog_name(settings.watchdog)
    return {
        connection.name: Sight(control(connection, ours, name), control(connection, ours, name))
        for connection in config.connections.values()
    }
