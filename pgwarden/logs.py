"""The log that a configuration asks for, opened; where a gateway keeps its own part of it, and where the tables made of it are."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.log import EventLog, LogUnavailable
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from pgwarden.config import Config

if TYPE_CHECKING:
    from ingest.log.kafka import KafkaLog


async def open_log(config: Config) -> EventLog:
    """The whole record: the segments of this machine, or what the brokers have. Whoever opens it closes it.

    Raises:
        LogUnavailable: Kafka does not answer, lets nobody in, lacks a topic, or has another number of partitions for it; or its
            client is not installed here.
    """
    if config.kafka is None:
        return SegmentLog(local_folder(config), LogSettings())
    try:
        return await kafka_log_class().open(config.kafka)
    except (ValueError, OSError) as error:
        raise LogUnavailable(str(error)) from error


def kafka_log_class() -> type[KafkaLog]:
    """Loaded only where the log is in Kafka: its client alone takes a third of a second, and is no dependency of the others.

    Raises:
        LogUnavailable: It is not installed; says how to install it.
    """
    try:
        loaded: type[KafkaLog] = importlib.import_module("ingest.log.kafka").KafkaLog
    except ImportError as error:
        raise LogUnavailable(str(error)) from error
    return loaded


def hush_client() -> None:
    """For a command: what Kafka's client says of each attempt is said once, in a sentence of ours."""
    for name in ("kafka", "ingest.log.brokers"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


def local_folder(config: Config) -> Path:
    """Where the segments of this machine are.

    With Kafka they are a gateway's own: what its relay has still to ship, and a copy of identities and commands. A folder of their
    own, since the relay must not ship what `pgwarden log copy` copies.
    """
    return config.state / ("log" if config.kafka is None else "gateway-log")


def tables_folder(config: Config) -> Path:
    """Where the tables are that are made of this log. Each log has its own: tables remember the offsets that they have read, and on
    another log those would say that half of it was read."""
    return config.state / ("tables" if config.kafka is None else f"tables-kafka-{config.kafka.topic_prefix.rstrip('.')}")
