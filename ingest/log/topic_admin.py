"""Topics as they should be go in; topics as they are come out, and are made and changed: kafka-python's client for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ingest.log import LogUnavailable
from ingest.log.brokers import connected
from ingest.log.kafka_client import INSTALL, sentence
from ingest.log.topics import Found, Wanted
from ingest.settings import KafkaSettings

try:
    from kafka import KafkaAdminClient, TopicPartition
    from kafka.admin import ConfigResource, OffsetSpec
    from kafka.errors import KafkaError
except ImportError as error:
    raise ImportError(INSTALL) from error

TOPIC_ALREADY_EXISTS: Final = 36
UNKNOWN_TOPIC: Final = 3
_ANSWER_SECONDS_MAX: Final = 30.0  # brokers that make topics of many partitions take their time; kafka-python's own


class Admin:
    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: KafkaAdminClient | None = None

    def __enter__(self) -> Admin:
        """Raises LogUnavailable."""
        self._client = connected(KafkaAdminClient, self._settings, self._settings.connect_seconds_max, _ANSWER_SECONDS_MAX)
        return self

    def __exit__(self, *error: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> KafkaAdminClient:
        assert self._client is not None
        return self._client

    def found(self, wants: Sequence[Wanted]) -> list[Found]:
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
        except (KafkaError, OSError) as error:
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
        except (KafkaError, OSError) as error:
            raise LogUnavailable(sentence(self._settings, error)) from error
        if wrong:
            why: dict[str, list[str]] = {}
            for topic in wrong:
                why.setdefault(str(topic["error_message"] or f"error {topic['error_code']}"), []).append(topic["name"])
            said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in why.items())
            raise LogUnavailable(f"the brokers did not create {said}")

    def change(self, name: str, configs: Mapping[str, str]) -> None:
        try:
            self.client.alter_configs([ConfigResource("topic", name, dict(configs))])
        except (KafkaError, OSError) as error:
            raise LogUnavailable(f"{name}: {error}") from error
