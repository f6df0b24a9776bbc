"""`pgwarden relay`: carries one gateway's record to Kafka and brings identities and orders back, until it is told to stop.

Listens at `run/relay.sock`. Whoever connects hears its state, a JSON object a line, at each change and every second, and may send
the gateway's word, a line each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from ingest import relay_lines
from ingest.log import EventLog, LogCorrupt, LogLocked, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.relay import MIRRORED, Relay
from ingest.settings import KafkaSettings, LogSettings
from pgwarden.config import Config
from pgwarden.logs import kafka_log_class, local_folder
from pgwarden.postgres import die_with_parent
from pgwarden.settings import RELAY_FINISH_SECONDS_MAX, RELAY_PARENT, RELAY_SOCKET_FILE
from pgwarden.status_socket import listen

_CLAIM_SECONDS: Final = 0.1  # between two looks whether another relay has ended
_STATE_SECONDS: Final = 1.0  # between two lines when nothing happens
_STATE_SECONDS_MIN: Final = 0.002  # and when much does
_LOOK_MS_MAX: Final = 5.0  # between two looks for news: at level `replicated` a statement waits for them

_log = logging.getLogger("pgwarden.relay")


def run(config: Config) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    if config.kafka is None:
        sys.stderr.write('pgwarden relay: there is nothing to relay: the configuration\'s log.backend is not "kafka"\n')
        return 1
    if parent := os.environ.get(RELAY_PARENT):
        die_with_parent(signal.SIGTERM, int(parent))()
    try:
        return uvloop.run(_run(config, config.kafka))
    except OSError as error:
        sys.stderr.write(f"pgwarden relay: {error}\n")
        return 1


async def _run(config: Config, settings: KafkaSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    brokers = replace(settings, linger_ms=0.0)  # what belongs together comes together, and at level `replicated` a statement waits

    async def connect() -> EventLog:
        try:
            return await kafka_log_class().open(brokers)
        except (ValueError, OSError) as error:  # wrong partitions, an unreadable certificate: somebody may put it right meanwhile
            raise LogUnavailable(str(error)) from error

    listeners = _Listeners()
    here = SegmentLog(local_folder(config), LogSettings(poll_interval_max_ms=_LOOK_MS_MAX))
    if not await _alone(here, stop):
        await here.close()
        return 0
    relay = listeners.relay = Relay(here, connect, config.gateway.name, config.log.relay, listeners.tell)
    server = await listeners.serve(config.state / RELAY_SOCKET_FILE)
    relaying = loop.create_task(relay.run())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((relaying, stopping), return_when=asyncio.FIRST_COMPLETED)
    exit_status = 0
    if relaying.done():
        _log.error("the relay cannot go on: %r", relaying.exception())
        exit_status = 1
    relaying.cancel()
    await asyncio.wait({relaying})
    if not exit_status and not await relay.finish(RELAY_FINISH_SECONDS_MAX):
        _log.warning("%d bytes of the record wait on this disk for the brokers", relay.state().backlog_bytes)
    await relay.close()
    server.close()
    return exit_status


async def _alone(here: SegmentLog, stop: asyncio.Event) -> bool:
    """Once no other relay runs on this log; False when told to stop before. Until then the socket is the other's."""
    told = False
    while not stop.is_set():
        try:
            await here.claim(MIRRORED)
        except LogLocked as error:
            if not told:
                _log.warning("waiting for another relay to end: %s", error)
            told = True
        except (LogUnavailable, LogCorrupt):
            return True  # it is tried again, and told to who listens
        else:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLAIM_SECONDS):
                await stop.wait()
    return False


class _Listeners:
    """Those who hear the state."""

    def __init__(self) -> None:
        self.relay: Relay | None = None
        self._news: set[asyncio.Event] = set()
        self._error = ""

    def tell(self) -> None:
        for news in self._news:
            news.set()
        assert self.relay is not None
        error = self.relay.state().error
        if error != self._error:
            self._error = error
            _log.warning("%s", error or "all is well again")

    async def serve(self, path: Path) -> asyncio.Server:
        """Raises OSError."""
        return await listen(path, self._answer, relay_lines.LINE_BYTES_MAX)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        telling = asyncio.create_task(self._tell_state(writer))
        try:
            with contextlib.suppress(OSError, ValueError):
                while line := await reader.readline():
                    assert self.relay is not None
                    self.relay.heard(relay_lines.word(line))
        finally:
            telling.cancel()
            writer.close()

    async def _tell_state(self, writer: asyncio.StreamWriter) -> None:
        news = asyncio.Event()
        self._news.add(news)
        try:
            while True:
                news.clear()
                assert self.relay is not None
                writer.write(relay_lines.line(self.relay.state()))
                await writer.drain()  # who does not listen hears the newest state later
                await asyncio.sleep(_STATE_SECONDS_MIN)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STATE_SECONDS):
                        await news.wait()
        except OSError:
            pass  # it has gone
        finally:
            self._news.discard(news)
