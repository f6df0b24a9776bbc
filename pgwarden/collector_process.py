"""`pgwarden collector`: runs the collectors that the configuration names, with no privilege. Writes the topic witness."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import uvloop

from ingest.clock import now_us
from ingest.collectors.activity import ActivityCollector
from ingest.collectors.canary import Connect
from ingest.collectors.collector import Collector
from ingest.collectors.ebpf.reader import EbpfCollector
from ingest.collectors.server_log import LogCollector, LogSource
from ingest.collectors.settings import TextPolicy
from ingest.collectors.watched import Watched, WatchSettings
from ingest.log import LogCorrupt, LogLocked, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from pgwarden import __version__
from pgwarden.config import CollectorConfig, Config, ConnectionConfig
from pgwarden.logs import open_log
from pgwarden.settings import COLLECTOR_SOCKET_FILE
from pgwarden.status_socket import serve_status

CONNECT_SECONDS_MAX: Final = 5
_OPTIONS: Final = "-c search_path=pg_catalog,pg_temp -c statement_timeout=5000"

_log = logging.getLogger("pgwarden.collector")


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    if not config.collectors:
        sys.stderr.write("pgwarden collector: there is no [collectors.NAME] in the configuration; docs/collectors.md shows one\n")
        return 1
    try:
        return uvloop.run(_run(config))
    except (OSError, LogCorrupt, LogLocked, LogUnavailable) as error:
        sys.stderr.write(f"pgwarden collector: {error}\n")
        return 1


async def _run(config: Config) -> int:
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as closing:
        log = await open_log(config)
        closing.push_async_callback(log.close)
        writer = "collector"
        if isinstance(log, SegmentLog):
            await log.claim(("witness",))  # a second process on this log ends here
        else:  # several may run, each under a name of its own: by it their frames are told apart
            writer = f"collector-{socket.gethostname()}-{os.getpid()}"
        recorder = Recorder(log, writer, now_us(), RecorderSettings())
        closing.push_async_callback(_closed, recorder)
        watched = [_watched(one, config, recorder) for one in config.collectors.values()]
        status = await serve_status(config.state / COLLECTOR_SOCKET_FILE, lambda: _status(watched, recorder))
        closing.callback(status.close)
        _log.info("looking by %s", ", ".join(f"{one.name} ({one.kind} of {one.server})" for one in config.collectors.values()))
        tasks = [loop.create_task(one.run(), name=one.collector.name) for one in watched]
        stopping = loop.create_task(stop.wait())
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        exit_status = 0
        for task in tasks:
            if task.done():
                _log.error("the collector %s cannot go on: %r", task.get_name(), task.exception())
                exit_status = 1
        stopping.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait([*tasks, stopping])
        for one in watched:
            one.stopped()
        return exit_status


async def _closed(recorder: Recorder) -> None:
    try:
        await recorder.close()
    except LogUnavailable as error:  # the checkpoints are behind what was recorded: it is read again
        _log.error("%s", error)


def _status(watched: Sequence[Watched], recorder: Recorder) -> Mapping[str, object]:
    state = recorder.state()
    collectors = [one.status() for one in watched]
    blind = [{"what": one["server"], "reason": f"{one['name']}: {one['reason']}"} for one in collectors if one["reason"]]
    return {
        "pid": os.getpid(),
        "version": __version__,
        "collectors": collectors,
        "blind": blind,
        "log": {"available": state.available, "reason": state.reason, "pending_events": state.pending_events},
    }


def _watched(one: CollectorConfig, config: Config, recorder: Recorder) -> Watched:
    connect = connector(one, config.connections)
    return Watched(
        collector_of(one, config.state / "collectors", connect),
        one.connections,
        connect,
        recorder,
        __version__,
        WatchSettings(canary_seconds=one.canary_seconds),
        one.format if one.kind == "log" else None,
    )


def collector_of(one: CollectorConfig, checkpoints: Path, connect: Connect) -> Collector:
    policy = TextPolicy(one.statement_text == "full", one.text_bytes_max)
    match one.kind:
        case "log":
            assert one.path is not None
            checkpoint = checkpoints / f"{one.name}.checkpoint"
            return LogCollector(one.name, one.server, LogSource(one.path, one.format, checkpoint, policy, one.from_start))
        case "activity":
            return ActivityCollector(one.name, one.server, connect)
        case "ebpf":
            assert one.path is not None
            return EbpfCollector(one.name, one.server, one.path, policy)


def connector(one: CollectorConfig, connections: Mapping[str, ConnectionConfig]) -> Connect:
    """How this collector logs in to its server: over the first of its connections."""
    target = connections[one.connections[0]]
    root = str(target.sslrootcert) if target.sslrootcert is not None else ""
    if not root and target.sslmode.startswith("verify"):
        root = "system"  # libpq 16: the system's trust store, as for the sessions

    async def connect(application_name: str) -> psycopg.AsyncConnection[Any]:
        password = one.password or target.password
        return await psycopg.AsyncConnection.connect(
            host=target.host,
            port=target.port,
            dbname=target.database,
            user=one.user or target.user,
            password=password.reveal(),
            sslmode=target.sslmode,
            sslrootcert=root or None,
            application_name=application_name,
            options=_OPTIONS,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS_MAX,
        )

    return connect
