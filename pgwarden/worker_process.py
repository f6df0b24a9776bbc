"""`pgwarden worker`: with the log in Kafka, orders the end of sessions and counts what agents do, and shares that with others."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analytics.activity import ActivitySettings
from analytics.enforcer import Enforcer, EnforcerSettings
from ingest.clock import now_us
from ingest.log import LogCorrupt, LogUnavailable
from ingest.log.kafka_client import INSTALL
from ingest.once_a_minute import OnceAMinute
from ingest.recorder import Recorder
from ingest.settings import TABLES, KafkaSettings, RecorderSettings
from pgwarden.config import Config
from pgwarden.logs import kafka_log_class, open_log
from pgwarden.neighbours import socket_file
from pgwarden.ordering import ordering
from pgwarden.self_reports import report
from pgwarden.status_socket import serve_status

if TYPE_CHECKING:
    from analytics.streams import Streams

STOP_SECONDS_MAX: Final = 5.0  # 1.2 to 2.7 s as a rule; Faust hangs when it is told to end in the middle of joining its group
SILENT_SECONDS_MAX: Final = 10.0  # the brokers are asked once a second; a restart takes a few
AGE_SECONDS_MAX: Final = 30.0  # a worker that is behind for longer is not well; a rebalance takes 2 to 3 s, a dead member's 10 more


_log: Final = logging.getLogger("pgwarden.worker")


class CannotStart(Exception):
    """Says what to do."""


def run(config: Config, name: str = "") -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on."""
    try:
        if config.kafka is None:
            raise CannotStart('workers share the work on a log in Kafka; this log is on one machine ([log] backend = "segments")')
        with _alone(config.state, name):
            return asyncio.run(_run(config, config.kafka, name))
    except (CannotStart, OSError, LogCorrupt, LogUnavailable) as error:
        sys.stderr.write(f"pgwarden worker: {error}\n")
        return 1


async def _run(config: Config, kafka: KafkaSettings, name: str) -> int:
    try:
        streams_module = importlib.import_module("analytics.streams")  # half a second, and no dependency of the other parts
    except ImportError as error:
        raise CannotStart(f"{INSTALL} ({error.name} is missing)") from error
    state = config.state
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _quiet()
    writer = f"worker-{name or own_name(state)}"
    async with contextlib.AsyncExitStack() as closing:
        log = await open_log(replace(config, kafka=_with_tables(kafka)))
        closing.push_async_callback(log.close)
        assert isinstance(log, kafka_log_class())
        boot = now_us()
        recorder = Recorder(log, writer, boot, RecorderSettings())
        closing.push_async_callback(recorder.close)
        enforcer = Enforcer(log, ordering(recorder), EnforcerSettings())
        credentials = streams_module.credentials(kafka)
        streams: Streams = streams_module.Streams(kafka, log, enforcer, ActivitySettings(), state / "worker", credentials)
        path = socket_file(state, "worker", name)
        closing.callback(path.unlink, missing_ok=True)  # one that was told to end is not missed
        status = await serve_status(
            path, lambda: {**_status(writer, boot, enforcer, streams, log.heard_seconds), "appends": recorder.appends.facts()}
        )
        closing.callback(status.close)
        tasks = {
            loop.create_task(enforcer.run(), name="enforcement"),
            loop.create_task(streams.run(), name="Faust"),
        }

        def reason() -> str:
            return str(_status(writer, boot, enforcer, streams, log.heard_seconds)["reason"])

        reporting = loop.create_task(report(recorder, "worker", writer, boot, reason), name="reporting")
        stopping = loop.create_task(stop.wait(), name="signal")
        _log.info("this is %s, of group %s%s", writer, kafka.topic_prefix, streams_module.GROUP)
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        exit_status = 0
        for task in done & tasks:
            exit_status = 1
            ended = task.exception()
            _log.critical("%s ended: %r", task.get_name(), ended, exc_info=ended)
        reporting.cancel()
        await asyncio.wait({reporting})
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await streams.stop()
        except TimeoutError:
            _log.warning("Faust has not ended within %g s, and is left behind", STOP_SECONDS_MAX)
            with contextlib.suppress(LogUnavailable):
                await recorder.close()
            # Its threads would keep this process; what it had is redelivered to its successor, which knows it.
            logging.shutdown()
            os._exit(exit_status)
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.wait({stopping, *tasks}, timeout=1.0)
        return exit_status


def _with_tables(kafka: KafkaSettings) -> KafkaSettings:
    """As whoever reads and writes the workers' own topics sees the log."""
    tables = {table: kafka.partitions[shared] for table, shared in TABLES.items()}
    return replace(kafka, partitions={**kafka.partitions, **tables})


def _status(writer: str, boot: int, enforcer: Enforcer, streams: Streams, silent_seconds: float) -> Mapping[str, object]:
    enforcing, counting = enforcer.status(), streams.status()
    reasons = [enforcing.error]
    if silent_seconds > SILENT_SECONDS_MAX:  # what is behind is not known then: ends are as old
        reasons.append(f"the brokers have not answered for {silent_seconds:.0f} s")
    if counting.age_seconds > AGE_SECONDS_MAX:
        reasons.append(f"behind for {counting.age_seconds:.0f} s")
    if counting.unreadable:
        reasons.append(f"{counting.unreadable} records of statements could not be read")
    reason = "; ".join(why for why in reasons if why)
    return {
        "worker": writer,
        "pid": os.getpid(),
        "started_us": boot,
        "healthy": not reason,
        "reason": reason,
        "age_seconds": round(counting.age_seconds, 3),
        "rebalancing": counting.rebalancing,
        "sessions": {
            "partitions": enforcing.partitions,
            "reading": enforcing.reading,
            "records_behind": enforcing.records,
            "live": enforcing.live_sessions,
        },
        "identity": {"records_behind": enforcing.identity_records, "at_us": enforcing.identity_at_us},
        "orders": {"pending": enforcing.orders_pending, "recorded": enforcing.orders_recorded},
        "statements": {
            "partitions": counting.statements,
            "records_behind": counting.statement_records,
            "frames": counting.frames,
            "agents": counting.agents,
            "windows_closed": counting.windows_closed,
        },
    }


def own_name(state: Path) -> str:
    """Of this host and this state folder, of which `_alone` lets one worker without a name be: no two may write under one name."""
    return f"{socket.gethostname()}-{hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:8]}"


@contextlib.contextmanager
def _alone(state: Path, name: str) -> Iterator[None]:
    """Two workers of one name would write frames that pass for each other's.

    Raises:
        CannotStart: This name is taken on this state folder.
    """
    path = socket_file(state, "worker", name).with_suffix(".lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"another worker of this name runs on {state}: give this one another with --name") from None
        yield


def _quiet() -> None:
    """Faust tells of each step of a rebalance in tables, and its parts may write what they are configured with."""
    words = OnceAMinute(_log, faults=True)
    for chatty in ("faust", "mode", "aiokafka"):
        logger = logging.getLogger(chatty)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(words)
