"""The topics that the log has in Kafka: what each should be, what it is, and how the first becomes the second.

Changes what can be changed and loses nothing; what would lose records, or change a key's partition, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ingest.log import LogUnavailable
from ingest.log.kafka_client import INSTALL, connection, listening, sentence
from ingest.settings import TABLES, KafkaSettings

if TYPE_CHECKING:
    from kafka.admin import KafkaAdminClient

KEPT_FOR_EVER: Final = ("identity", "commands", "checkpoints")  # who may do what is a fold over the first
DAY_MS: Final = 86_400_000
TABLE_SEGMENT_BYTES: Final = 16 * 2**20  # some 30,000 values; read in a second
TABLE_SEGMENT_MS: Final = 600_000
BATCH_OVERHEAD_BYTES: Final = 64 * 2**10  # of a batch that holds one record of the largest size; Kafka needs under 200
LONG_MAX: Final = str(2**63 - 1)
TOPIC_ALREADY_EXISTS: Final = 36
UNKNOWN_TOPIC: Final = 3

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


def look(settings: KafkaSettings) -> list[Found]:
    """What is there. Blocks.

    Raises:
        LogUnavailable: The brokers do not answer, or may not be asked.
    """
    with _Admin(settings) as admin:
        return admin.found()


def apply(settings: KafkaSettings, *, dry_run: bool = False) -> list[Change]:
    """Create what is missing, change what differs, and say so; with `dry_run` only say it. Doing it again does nothing. Blocks.

    Raises:
        TopicsRefused: See there.
        LogUnavailable: The brokers do not answer, or refuse. Some of it may be done; do it again.
    """
    with _Admin(settings) as admin:
        found = {one.topic: one for one in admin.found()}
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


class _Admin:
    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: KafkaAdminClient | None = None

    def __enter__(self) -> _Admin:
        try:
            from kafka.admin import KafkaAdminClient
            from kafka.errors import KafkaError
            from kafka.net.compat import KafkaNetClient
        except ImportError as error:
            raise LogUnavailable(INSTALL) from error
        told = connection(self._settings)
        self._error = KafkaError
        made: list[KafkaNetClient] = []

        def client(**configs: object) -> KafkaNetClient:
            made.append(KafkaNetClient(**configs))
            return made[-1]

        with listening() as heard:
            try:
                self._client = KafkaAdminClient(kafka_client=client, **told)
            except (KafkaError, OSError) as error:
                for half_made in made:  # its thread and sockets would stay
                    half_made.close()
                raise LogUnavailable(sentence(self._settings, error, heard)) from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> KafkaAdminClient:
        assert self._client is not None
        return self._client

    def found(self) -> list[Found]:
        from kafka import TopicPartition
        from kafka.admin import ConfigResource, OffsetSpec

        wants = wanted(self._settings)
        try:
            described = {
                topic["name"]: topic
                for topic in self.client.describe_topics([want.name for want in wants])
                if topic["error_code"] != UNKNOWN_TOPIC
            }
            for topic in described.values():
                if topic["error_code"]:
                    raise LogUnavailable(f"the brokers say error {topic['error_code']} of the topic {topic['name']}")
            places = [
                TopicPartition(name, part["partition_index"]) for name, topic in described.items() for part in topic["partitions"]
            ]
            configs: Mapping[str, Mapping[str, Mapping[str, str]]] = {}
            begin, end = {}, {}
            if described:
                resources = [ConfigResource("topic", name, None) for name in described]
                configs = self.client.describe_configs(resources, config_filter="all")["topic"]
                begin = self.client.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
                end = self.client.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        except (self._error, OSError) as error:
            raise LogUnavailable(sentence(self._settings, error)) from error
        found = []
        for want in wants:
            if (topic := described.get(want.name)) is None:
                found.append(Found(want.topic, want.name, 0, 0, {}, {}, {}, 0))
                continue
            parts = topic["partitions"]
            numbers = sorted(part["partition_index"] for part in parts)
            found.append(
                Found(
                    want.topic,
                    want.name,
                    len(parts),
                    min(len(part["replica_nodes"]) for part in parts),
                    {name: config["value"] for name, config in configs[want.name].items()},
                    {number: begin[TopicPartition(want.name, number)].offset for number in numbers},
                    {number: end[TopicPartition(want.name, number)].offset for number in numbers},
                    min(len(part["isr_nodes"]) for part in parts),
                )
            )
        return found

    def create(self, wants: Sequence[Wanted]) -> None:
        """Return once they are there, each partition with a leader."""
        asked = {
            want.name: {
                "num_partitions": want.partitions,
                "replication_factor": want.replication,
                "configs": dict(want.configs),
            }
            for want in wants
        }
        try:
            answer = self.client.create_topics(asked, raise_errors=False)
            wrong = [topic for topic in answer["topics"] if topic["error_code"] not in (0, TOPIC_ALREADY_EXISTS)]
            if not wrong:
                self.client.wait_for_topics(list(asked), timeout_ms=30_000)
        except (self._error, OSError) as error:
            raise LogUnavailable(sentence(self._settings, error)) from error
        if wrong:
            why: dict[str, list[str]] = {}
            for topic in wrong:
                why.setdefault(str(topic["error_message"] or f"error {topic['error_code']}"), []).append(topic["name"])
            said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())
            raise LogUnavailable(f"the brokers did not create {said}")

    def change(self, name: str, configs: Mapping[str, str]) -> None:
        from kafka.admin import ConfigResource

        try:
            self.client.alter_configs([ConfigResource("topic", name, dict(configs))])
        except (self._error, OSError) as error:
            raise LogUnavailable(f"{name}: {error}") from error
