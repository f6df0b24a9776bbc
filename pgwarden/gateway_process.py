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
from typing import Final

import uvloop

from gateway.admission import Admission
from gateway.directory import Directory
from gateway.relay_link import RelayLink
from gateway.server import Gateway, Place
from gateway.settings import GatewaySettings
from gateway.stamp import control_name
from gateway.texts import Texts
from gateway.tls import end_point_of_file, server_context
from identity.keys import JwksCache
from identity.registry import Registry
from ingest.clock import now_us
from ingest.events import SessionEndOrdered
from ingest.frames import FrameInvalid, decode
from ingest.log import LogCorrupt, LogLocked, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.parser_process import ParserProcess
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden import __version__
from pgwarden.config import Config, ConnectionConfig
from pgwarden.logs import local_folder
from pgwarden.relay_child import RelayChild
from pgwarden.settings import BOOKMARK_FILE, RELAY_SOCKET_FILE, SOCKET_FILE
from pgwarden.status_socket import serve_status
from pgwarden.targets import control, target
from pgwarden.tls import self_signed

_LAST_RECORD_SECONDS_MAX: Final = 5.0

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
    log = SegmentLog(local_folder(config), LogSettings())
    recoveries = await log.claim(("sessions", "statements"))  # a second gateway on this log ends here
    boot = await _boot(log)
    partitions = config.kafka.partitions if config.kafka is not None else None
    recorder = Recorder(log, settings.gateway, boot, RecorderSettings(), partitions=partitions)
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

    loop = asyncio.get_running_loop()
    link: RelayLink | None = None
    child = RelayChild(config.path)
    relaying: list[asyncio.Task[None]] = []
    if config.kafka is not None:
        path = config.state / RELAY_SOCKET_FILE
        link = RelayLink(path, recorder, config.log.relay, gateway.report, lambda: gateway.identity_at_us, gateway.needed)
        gateway.why_stale, gateway.silent_seconds = link.why_stale, link.silent_seconds
        relaying = [loop.create_task(child.keep()), loop.create_task(link.run())]
        if not await link.mirrored(config.log.relay.stale_seconds_max):
            _log.warning("nobody is let in until the brokers answer%s", link.trouble())

    def ordered(order: SessionEndOrdered) -> None:
        gateway.ordered(order)

    directory = Directory(log, registry, gateway.identity_changed, ordered)
    await directory.catch_up()
    if link is not None:
        link.identity_offset = lambda: directory.identity_offset
    await gateway.read_catalogs()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # before the first session: from here on nothing ends without its record
        loop.add_signal_handler(number, stop.set)
    port = gateway.bind()
    await gateway.started(recoveries)
    await gateway.recover(log, config.state / BOOKMARK_FILE)
    gateway.listen()
    status = await serve_status(config.state / SOCKET_FILE, lambda: _status(settings, boot, gateway, link))
    _log.info("listening on %s:%s", settings.listen_host, port)
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked through again

    serving = loop.create_task(gateway.serve())
    following = loop.create_task(directory.follow())
    stopping = loop.create_task(stop.wait())
    done, _ = await asyncio.wait((serving, following, stopping, *relaying), return_when=asyncio.FIRST_COMPLETED)
    exit_status = 0
    for task in (serving, following, *relaying):
        if task in done:
            _log.error("the gateway cannot go on: %r", task.exception())
            exit_status = 1
    status.close()
    await gateway.drain()
    stopping.cancel()
    for task in (serving, following):
        task.cancel()
    directory.close()
    await parser.close()
    await keys.close()
    try:
        await recorder.close()
        await log.close()
    finally:
        for task in relaying:
            task.cancel()
        await child.end()  # last: it ships what the others left
    return exit_status


def _settings(config: Config) -> GatewaySettings:
    return GatewaySettings(
        gateway=config.gateway.name,
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


async def _boot(log: SegmentLog) -> int:
    """Later than every boot before it, whatever the clock says: each has left a record of its start in `sessions`."""
    ((place, end),) = log.end_offsets("sessions").items()
    if end == 0:
        return now_us()
    subscription = log.assign({place: end - 1})
    try:
        (record,) = await subscription.poll(1, _LAST_RECORD_SECONDS_MAX)
        return max(now_us(), decode(record.value).boot + 1)
    except (ValueError, FrameInvalid) as error:
        raise LogCorrupt(f"{place[0]}/{place[1]}, record {end - 1}: {error}") from error
    finally:
        subscription.close()


def _status(settings: GatewaySettings, boot: int, gateway: Gateway, link: RelayLink | None) -> Mapping[str, object]:
    status = {"gateway": settings.gateway, "boot": boot, "pid": os.getpid(), "started_us": boot, **gateway.status()}
    return status if link is None else {**status, "relay": link.facts()}
