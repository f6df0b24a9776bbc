"""`pgwarden gateway`: wires the gateway to its configuration, its log and its databases, and runs it until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from gateway.admission import Admission
from gateway.conversation import now_us
from gateway.directory import Directory
from gateway.server import Gateway, Place
from gateway.settings import GatewaySettings
from gateway.stamp import control_name
from gateway.status import serve_status
from gateway.texts import Texts
from gateway.tls import end_point_of_file, server_context
from identity.keys import JwksCache
from identity.registry import Registry
from ingest.events import SessionEndOrdered
from ingest.log import LogCorrupt, LogLocked, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.parser_process import ParserProcess
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden import __version__
from pgwarden.config import Config, ConnectionConfig
from pgwarden.settings import SOCKET_FILE
from pgwarden.targets import control, target
from pgwarden.tls import self_signed

_log = logging.getLogger("pgwarden.gateway")


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    try:
        return uvloop.run(_run(config))
    except (OSError, LogCorrupt, LogLocked, LogUnavailable) as error:
        sys.stderr.write(f"pgwarden gateway: {error}\n")
        return 1


async def _run(config: Config) -> int:
    settings = _settings(config)
    certificate, key = _certificate(config)
    log = SegmentLog(config.state / "log", LogSettings())
    recoveries = await log.claim(("sessions", "statements"))  # a second gateway on this log ends here
    boot = now_us()
    recorder = Recorder(log, settings.gateway, boot, RecorderSettings())
    registry = Registry()
    keys = JwksCache()
    parser = ParserProcess()
    gateway = Gateway(
        settings,
        {name: _place(connection, settings, boot) for name, connection in config.connections.items()},
        registry,
        Admission(registry, config.issuers, keys, settings, now_us),
        recorder,
        Texts(parser, settings),
        server_context(certificate, key),
        end_point_of_file(certificate),
        boot,
        __version__,
    )

    def ordered(order: SessionEndOrdered) -> None:
        gateway.ordered(order)

    directory = Directory(log, registry, gateway.identity_changed, ordered)
    await directory.catch_up()
    await gateway.read_catalogs()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # before the first session: from here on nothing ends without its record
        loop.add_signal_handler(number, stop.set)
    port = gateway.listen()
    await gateway.started(recoveries)
    status = await serve_status(config.state / SOCKET_FILE, lambda: _status(settings, boot, gateway))
    _log.info("listening on %s:%s", settings.listen_host, port)
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked through again

    serving = loop.create_task(gateway.serve())
    following = loop.create_task(directory.follow())
    stopping = loop.create_task(_waited(stop))
    done, _ = await asyncio.wait((serving, following, stopping), return_when=asyncio.FIRST_COMPLETED)
    exit_status = 0
    for task in (serving, following):
        if task in done:
            _log.error("the gateway cannot go on: %r", task.exception())
            exit_status = 1
    status.close()
    await gateway.drain()
    for task in (serving, following, stopping):
        task.cancel()
    directory.close()
    await parser.close()
    await keys.close()
    await recorder.close()
    await log.close()
    return exit_status


def _settings(config: Config) -> GatewaySettings:
    return GatewaySettings(
        listen_host=config.gateway.listen.host,
        listen_port=config.gateway.listen.port,
        clear_text_from_loopback=config.gateway.tls == "optional",
        durability=config.gateway.durability,
        statement_text=config.gateway.statement_text,
        parameters=config.gateway.parameters,
    )


def _certificate(config: Config) -> tuple[Path, Path]:
    if config.gateway.tls_certificate is not None and config.gateway.tls_key is not None:
        return config.gateway.tls_certificate, config.gateway.tls_key
    made = self_signed(config.state / "tls")
    return made.certificate, made.key


def _place(connection: ConnectionConfig, settings: GatewaySettings, boot: int) -> Place:
    name = control_name(settings.gateway, boot)
    return Place(target(connection), control(connection, settings, name), control(connection, settings, name))


def _status(settings: GatewaySettings, boot: int, gateway: Gateway) -> Mapping[str, object]:
    return {"gateway": settings.gateway, "boot": boot, "pid": os.getpid(), "started_us": boot, **gateway.status()}


async def _waited(stop: asyncio.Event) -> None:
    await stop.wait()
