"""The topics on a real broker: made as they should be, mended where they may be, refused where records would suffer."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable

import pytest
from kafka.admin import ConfigResource, KafkaAdminClient

from ingest.log import LogUnavailable
from ingest.log.kafka_client import connection
from ingest.log.topics import DAY_MS, Found, TopicsRefused, apply, difference, look, refusal, wanted
from ingest.settings import PARTITIONS, TABLES, KafkaSettings
from tests import broker as brokers
from tests.broker import PASSWORD, Broker

pytestmark = pytest.mark.kafka


@pytest.fixture
def bare(broker: Broker) -> KafkaSettings:
    """As kafka_settings, with no topic yet."""
    return brokers.settings(broker, f"test-{secrets.token_hex(4)}.")


def test_what_is_missing_is_created_as_it_should_be(bare: KafkaSettings) -> None:
    try:
        assert {change.action for change in apply(bare)} == {"created"}
        found = {one.topic: one for one in look(bare)}
        tables = {table: brokers.PARTITIONS[topic] for table, topic in TABLES.items()}
        assert {topic: one.partitions for topic, one in found.items()} == brokers.PARTITIONS | tables
        for want in wanted(bare):
            assert difference(want, found[want.topic]) == []
            configs = found[want.topic].configs
            kept_ms = -1 if want.topic in ("identity", "commands", "checkpoints", *TABLES) else 90 * DAY_MS
            assert configs["retention.ms"] == str(kept_ms)
            assert configs["cleanup.policy"] == ("compact" if want.topic in TABLES else "delete")
            assert configs["unclean.leader.election.enable"] == "false"
            assert int(configs["max.message.bytes"]) > bare.record_bytes_max
            assert found[want.topic].end == dict.fromkeys(range(want.partitions), 0)
    finally:
        brokers.remove_topics(bare)


def test_applying_again_does_nothing(kafka_settings: KafkaSettings) -> None:
    assert {change.action for change in apply(kafka_settings)} == {"unchanged"}


def test_a_dry_run_says_what_it_would_do_and_does_nothing(bare: KafkaSettings) -> None:
    assert {change.action for change in apply(bare, dry_run=True)} == {"created"}
    assert {one.partitions for one in look(bare)} == {0}


def test_retention_is_changed_and_the_change_is_told(kafka_settings: KafkaSettings, wait_for: Callable[..., object]) -> None:
    shorter = dataclasses.replace(kafka_settings, retention_days=30)
    said = {change.topic: change for change in apply(shorter)}
    assert said["statements"].sentence == f"retention.ms {90 * DAY_MS} -> {30 * DAY_MS}"
    assert said["identity"].action == "unchanged"
    # A broker takes a change in a moment after it was made.
    wait_for(lambda: {one.topic: one.configs["retention.ms"] for one in look(shorter)}["statements"] == str(30 * DAY_MS), 30)


def test_what_somebody_else_changed_is_put_right(kafka_settings: KafkaSettings, wait_for: Callable[..., object]) -> None:
    name = f"{kafka_settings.topic_prefix}identity"
    admin = KafkaAdminClient(**connection(kafka_settings))
    try:
        admin.alter_configs([ConfigResource("topic", name, {"cleanup.policy": "compact", "retention.ms": "1000"})])
    finally:
        admin.close()
    wait_for(lambda: look(kafka_settings)[0].configs["cleanup.policy"] == "compact", 30)
    said = {change.topic: change.sentence for change in apply(kafka_settings)}
    assert "cleanup.policy compact -> delete" in said["identity"]
    assert "retention.ms 1000 -> -1" in said["identity"]
    wait_for(lambda: {change.action for change in apply(kafka_settings)} == {"unchanged"}, 30)


def test_another_number_of_partitions_is_refused_and_nothing_is_changed(kafka_settings: KafkaSettings) -> None:
    more = dataclasses.replace(kafka_settings, retention_days=5, partitions={**kafka_settings.partitions, "sessions": 7})
    with pytest.raises(TopicsRefused) as refused:
        apply(more)
    sentence, of_table = refused.value.sentences
    assert "worker-floors has 2 partitions, not 7: delete it" in of_table
    assert "sessions has 2 partitions and sessions_partitions asks for 7" in sentence
    assert "write 2" in sentence
    assert {one.configs["retention.ms"] for one in look(kafka_settings)} == {"-1", str(90 * DAY_MS)}


def test_another_number_of_copies_is_refused(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(TopicsRefused) as refused:
        apply(dataclasses.replace(kafka_settings, replication=3, in_sync_min=2))
    assert len(refused.value.sentences) == len(PARTITIONS) + len(TABLES)
    assert "identity has 1 copies and replication asks for 3" in str(refused.value)


def test_more_copies_than_there_are_brokers_is_said_by_the_brokers(bare: KafkaSettings) -> None:
    with pytest.raises(LogUnavailable, match=r"did not create .*replication factor of 3"):
        apply(dataclasses.replace(bare, replication=3, in_sync_min=2))


@pytest.mark.parametrize("listener", ["sasl", "tls"])
def test_topics_are_made_through_the_secure_listeners(broker: Broker, listener: brokers.Listener) -> None:
    secure = brokers.settings(broker, f"test-{secrets.token_hex(4)}.", listener)
    try:
        assert {change.action for change in apply(secure)} == {"created"}
    finally:
        brokers.remove_topics(secure)


def hurried(settings: KafkaSettings, **changed: object) -> KafkaSettings:
    return dataclasses.replace(settings, append_seconds_max=2.0, connect_seconds_max=2.0, **changed)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_wrong_password_is_named_and_not_shown(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "canary-of-a-wrong-password"
    settings = brokers.settings(broker, "test.", "sasl")
    with pytest.raises(LogUnavailable, match="the user") as unavailable:
        look(hurried(settings, password=lambda: wrong))
    look(settings)
    assert wrong not in str(unavailable.value) + caplog.text
    assert PASSWORD not in caplog.text


def test_every_difference_of_a_topic_is_named() -> None:
    want = wanted(KafkaSettings(("127.0.0.1:9092",), replication=3))[0]
    configs = {**want.configs, "retention.ms": "1"}
    found = Found(want.topic, want.name, 1, 3, configs, {0: 0}, {0: 5}, in_sync=2)
    assert difference(want, found) == ["2 of 3 copies in sync", "retention.ms 1, not -1"]
    assert refusal(want, found) == ""
    assert difference(want, dataclasses.replace(found, partitions=0)) == ["missing"]
