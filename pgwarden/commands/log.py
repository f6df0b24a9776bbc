"""`pgwarden topics` and `pgwarden log`: what an operator does to the log itself, with nothing else running or beside it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ingest.log import LogCorrupt, LogUnavailable
from ingest.log import topics as kafka_topics
from ingest.log.topics import Found, TopicsRefused, Wanted, difference, wanted
from ingest.settings import KafkaSettings
from pgwarden import log_copy
from pgwarden.config import Config, ConfigInvalid, load
from pgwarden.log_copy import Copied, CopyRefused
from pgwarden.logs import hush_client, open_log
from pgwarden.printable import printable
from pgwarden.tables import Column, table, width

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
DAY_MS: Final = kafka_topics.DAY_MS

_TOPICS: Final = (
    Column("TOPIC", "name"),
    Column("PARTITIONS", "partitions", right=True),
    Column("COPIES", "copies", right=True),
    Column("IN SYNC", "in_sync", right=True),
    Column("RECORDS", "records", right=True),
    Column("KEPT", "kept"),
    Column("STATE", "state", flexible=True),
)
_CHANGES: Final = (Column("TOPIC", "topic"), Column("", "action"), Column("", "what", flexible=True))
_COPIED: Final = (
    Column("TOPIC", "topic"),
    Column("RECORDS", "records", right=True),
    Column("WRITTEN NOW", "written", right=True),
    Column("TWICE", "repeated", right=True),
    Column("GAPS", "gaps", right=True),
    Column("CHECKSUM", "checksum"),
)


def topics(arguments: argparse.Namespace) -> int:
    """What is there, against what should be; 0 when they are the same."""
    kafka = _kafka(arguments)
    if isinstance(kafka, int):
        return kafka
    try:
        found = kafka_topics.look(kafka)
    except LogUnavailable as error:
        return _failed(arguments, "topics", str(error))
    pairs = list(zip(wanted(kafka), found, strict=True))
    different = [f"{want.name}: {', '.join(wrong)}" for want, one in pairs if (wrong := difference(want, one))]
    if arguments.json:
        print(json.dumps({"ok": not different, "topics": [_as_json(want, one) for want, one in pairs]}, indent=2))
    else:
        print(table(_TOPICS, [_row(want, one) for want, one in pairs], width()))
        if different:
            print("run pgwarden topics apply", file=sys.stderr)
    return FAILED if different else DONE


def topics_apply(arguments: argparse.Namespace) -> int:
    kafka = _kafka(arguments)
    if isinstance(kafka, int):
        return kafka
    try:
        changes = kafka_topics.apply(kafka, dry_run=arguments.dry_run)
    except TopicsRefused as refused:
        return _failed(arguments, "topics", *refused.sentences)
    except LogUnavailable as error:
        return _failed(arguments, "topics", str(error))
    if arguments.json:
        rows = [
            {"topic": kafka.topic_prefix + change.topic, "action": change.action, "what": change.sentence} for change in changes
        ]
        print(json.dumps({"dry_run": arguments.dry_run, "topics": rows}, indent=2))
        return DONE
    said = {"created": "to create", "changed": "to change", "unchanged": "as it should be"} if arguments.dry_run else {}
    print(
        table(
            _CHANGES,
            [
                {
                    "topic": kafka.topic_prefix + change.topic,
                    "action": said.get(change.action, change.action),
                    "what": change.sentence,
                }
                for change in changes
            ],
            width(),
        )
    )
    return DONE


def copy(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if isinstance(config, int):
        return config
    kafka = _kafka_of(arguments, config)
    if isinstance(kafka, int):
        return kafka
    folder: Path = arguments.from_folder or config.state / "log"
    try:
        copied = asyncio.run(_copied(config, kafka, folder, arguments.json))
    except (CopyRefused, LogUnavailable, LogCorrupt, OSError) as error:
        return _failed(arguments, "log copy", str(error))
    if arguments.json:
        print(json.dumps({"from": str(folder), "topics": [_copied_row(one) for one in copied], "equal": True}, indent=2))
        return DONE
    print(table(_COPIED, [_copied_row(one) for one in copied], width()))
    print(f"Kafka holds all of {printable(str(folder))}, read back and compared; each key's records are in their order")
    return DONE


async def _copied(config: Config, kafka: KafkaSettings, folder: Path, quiet: bool) -> list[Copied]:
    def progress(topic: str, done: int, total: int) -> None:
        if not quiet:
            print(f"{topic}: {done} of {total} records", file=sys.stderr)

    target = await open_log(config)
    try:
        return await log_copy.copy(folder, kafka, target, progress)
    finally:
        await target.close()


def _kafka(arguments: argparse.Namespace) -> KafkaSettings | int:
    config = _config(arguments)
    return config if isinstance(config, int) else _kafka_of(arguments, config)


def _kafka_of(arguments: argparse.Namespace, config: Config) -> KafkaSettings | int:
    if config.kafka is not None:
        return config.kafka
    said = f'{printable(str(config.path))} keeps the log on this machine: write backend = "kafka" below [log], and a table [kafka]'
    _failed(arguments, "topics" if arguments.run.startswith("log:topics") else "log copy", said)
    return USAGE


def _config(arguments: argparse.Namespace) -> Config | int:
    os.umask(0o077)
    hush_client()
    try:
        return load(Path(arguments.config))
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return USAGE


def _failed(arguments: argparse.Namespace, command: str, *sentences: str) -> int:
    if arguments.json:
        print(json.dumps({"error": "; ".join(sentences)}))
    else:
        for sentence in sentences:
            print(f"pgwarden {command}: {sentence}", file=sys.stderr)
    return FAILED


def _kept(configs: Mapping[str, str]) -> str:
    milliseconds = configs.get("retention.ms", "")
    if not milliseconds:
        return ""
    if configs.get("cleanup.policy") == "compact":
        return "newest"
    return "for ever" if milliseconds == "-1" else f"{int(milliseconds) / DAY_MS:g} days"


def _records(found: Found) -> int:
    return sum(end - found.begin[number] for number, end in found.end.items())


def _row(want: Wanted, found: Found) -> dict[str, object]:
    return {
        "name": want.name,
        "partitions": found.partitions,
        "copies": found.replication,
        "in_sync": found.in_sync,
        "records": _records(found),
        "kept": _kept(found.configs),
        "state": ", ".join(difference(want, found)) or "as it should be",
    }


def _as_json(want: Wanted, found: Found) -> dict[str, object]:
    return {
        "topic": want.name,
        "partitions": found.partitions,
        "copies": found.replication,
        "in_sync": found.in_sync,
        "begin": {str(number): offset for number, offset in found.begin.items()},
        "end": {str(number): offset for number, offset in found.end.items()},
        "differences": difference(want, found),
    }


def _copied_row(copied: Copied) -> dict[str, object]:
    return {
        "topic": copied.topic,
        "records": copied.records,
        "written": copied.written,
        "repeated": copied.repeated,
        "gaps": copied.gaps,
        "checksum": copied.checksum,
    }
