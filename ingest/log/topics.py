"""The topics that the log has in Kafka: what each should be, what it is, and how the first becomes the second.

Changes what can be changed and loses nothing; what would lose records, or change a key's partition, is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ingest.log import LogUnavailable
from ingest.settings import TABLES, KafkaSettings

if TYPE_CHECKING:
    from ingest.log.topic_admin import Admin

KEPT_FOR_EVER: Final = ("identity", "commands", "checkpoints")  # who may do what is a fold over the first
DAY_MS: Final = 86_400_000
TABLE_SEGMENT_BYTES: Final = 16 * 2**20  # some 30,000 values; read in a second
TABLE_SEGMENT_MS: Final = 600_000
BATCH_OVERHEAD_BYTES: Final = 64 * 2**10  # of a batch that holds one record of the largest size; Kafka needs under 200
LONG_MAX: Final = str(2**63 - 1)

Action: TypeAlias = Literal["created", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Wanted:
    topic: str  # without the prefix
    name: str  # as the brokers know it
    partitions: int
    replication: int
    configs: Mapping[str, str]  # as Kafka names them


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as it is."""

    topic: str
    name: str
    partitions: int  # 0 = it is not there
    replication: int  # the fewest copies that any partition has
    configs: Mapping[str, str]
    begin: Mapping[int, int]  # the first offset that is kept, of each partition
    end: Mapping[int, int]  # the next offset
    in_sync: int  # the fewest copies in sync that any partition has


@dataclass(frozen=True, slots=True)
class Change:
    topic: str
    action: Action
    sentence: str


class TopicsRefused(Exception):
    """Nothing was changed: the topics are there, and cannot become what is asked without harm. One sentence each."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = tuple(sentences)


def wanted(settings: KafkaSettings) -> tuple[Wanted, ...]:
    common = {
        "retention.bytes": "-1",
        "min.insync.replicas": str(settings.in_sync_min),
        "unclean.leader.election.enable": "false",  # a copy that was behind would take acknowledged records away
        "max.message.bytes": str(settings.record_bytes_max + BATCH_OVERHEAD_BYTES),
        "message.timestamp.type": "CreateTime",  # when the writer appended it
        # A writer whose clock is ahead would else be refused, and its statements with it; Kafka's default is one hour.
        "message.timestamp.after.max.ms": LONG_MAX,
        "message.timestamp.before.max.ms": LONG_MAX,  # `pgwarden log copy` writes old records
    }
    return tuple(
        Wanted(
            topic,
            settings.topic_prefix + topic,
            partitions,
            settings.replication,
            {
                "cleanup.policy": "delete",  # compaction would drop facts
                "retention.ms": "-1" if topic in KEPT_FOR_EVER else str(settings.retention_days * DAY_MS),
                **common,
            },
        )
        for topic, partitions in settings.partitions.items()
    ) + tuple(
        Wanted(
            table,
            settings.topic_prefix + table,
            settings.partitions[shared],
            settings.replication,
            {
                "cleanup.policy": "compact",
                "retention.ms": "-1",
                # A worker reads all of it when it gets a partition, and only what is behind the newest segment is compacted.
                "segment.bytes": str(TABLE_SEGMENT_BYTES),
                "segment.ms": str(TABLE_SEGMENT_MS),
                "min.cleanable.dirty.ratio": "0.1",
                **common,
            },
        )
        for table, shared in TABLES.items()
        if shared in settings.partitions
    )


def _admin(settings: KafkaSettings) -> Admin:
    """Loaded only where topics are looked at: kafka-python is no dependency of those who have none."""
    try:
        loaded: type[Admin] = importlib.import_module("ingest.log.topic_admin").Admin
    except ImportError as error:
        raise LogUnavailable(str(error)) from error
    return loaded(settings)


def look(settings: KafkaSettings) -> list[Found]:
    """What is there. Blocks.

    Raises:
        LogUnavailable: The brokers do not answer, or may not be asked.
    """
    with _admin(settings) as admin:
        return admin.found(wanted(settings))


def apply(settings: KafkaSettings, *, dry_run: bool = False) -> list[Change]:
    """Create what is missing, change what differs, and say so; with `dry_run` only say it. Doing it again does nothing. Blocks.

    Raises:
        TopicsRefused: See there.
        LogUnavailable: The brokers do not answer, or refuse. Some of it may be done; do it again.
    """
    with _admin(settings) as admin:
        found = {one.topic: one for one in admin.found(wanted(settings))}
        refusals = [why for want in wanted(settings) if (why := refusal(want, found[want.topic]))]
        if refusals:
            raise TopicsRefused(refusals)
        missing = [want for want in wanted(settings) if not found[want.topic].partitions]
        different = {
            want.topic: {name: value for name, value in want.configs.items() if found[want.topic].configs.get(name) != value}
            for want in wanted(settings)
            if found[want.topic].partitions
        }
        if not dry_run:
            if missing:
                admin.create(missing)
            for topic, configs in different.items():
                if configs:
                    admin.change(settings.topic_prefix + topic, configs)
    changes = []
    for want in wanted(settings):
        if want in missing:
            kept = "for ever" if want.configs["retention.ms"] == "-1" else f"for {settings.retention_days} days"
            if want.topic in TABLES:
                kept = "the newest of each key"
            copies = f"{want.replication} {'copy' if want.replication == 1 else 'copies'}"
            parts = f"{want.partitions} {'partition' if want.partitions == 1 else 'partitions'}"
            changes.append(Change(want.topic, "created", f"{parts}, {copies}, {settings.in_sync_min} in sync, kept {kept}"))
        elif configs := different[want.topic]:
            was = found[want.topic].configs
            said = ", ".join(f"{name} {was.get(name, 'unset')} -> {value}" for name, value in configs.items())
            changes.append(Change(want.topic, "changed", said))
        else:
            changes.append(Change(want.topic, "unchanged", ""))
    return changes


def refusal(want: Wanted, found: Found) -> str:
    """Why this topic cannot become what is wanted; "" when it can."""
    if not found.partitions:
        return ""
    if found.partitions != want.partitions and want.topic in TABLES:
        place = f"{want.name} has {found.partitions} partitions, not {want.partitions}"
        return f"{place}: delete it while no worker runs; it holds no facts"
    if found.partitions != want.partitions:
        setting = f"{want.topic}_partitions" if want.topic not in KEPT_FOR_EVER else "its number of partitions"
        return (
            f"{want.name} has {found.partitions} partitions and {setting} asks for {want.partitions}: keys would change their"
            f" place; write {found.partitions}, or take another topic_prefix and copy the log"
        )
    if found.replication != want.replication:
        return (
            f"{want.name} has {found.replication} copies and replication asks for {want.replication}: write {found.replication}, or"
            f" move its partitions with kafka-reassign-partitions.sh"
        )
    return ""


def difference(want: Wanted, found: Found) -> list[str]:
    """What of a topic is not as it should be, a short phrase each; none when all is."""
    if not found.partitions:
        return ["missing"]
    wrong = [f"{found.partitions} partitions, not {want.partitions}"] if found.partitions != want.partitions else []
    if found.replication != want.replication:
        wrong.append(f"{found.replication} copies, not {want.replication}")
    if found.in_sync < found.replication:
        wrong.append(f"{found.in_sync} of {found.replication} copies in sync")
    return wrong + [
        f"{name} {found.configs.get(name, 'unset')}, not {value}"
        for name, value in want.configs.items()
        if found.configs.get(name) != value
    ]
