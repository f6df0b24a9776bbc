"""The broker that the tests run on: it is a real one, it comes back with its data, and it dies with its test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError

from tests.broker import PASSWORD, USER, Broker, jars

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def send(broker: Broker, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    try:
        producer.send(topic, value).get(timeout=60)
    finally:
        producer.close()


def received(broker: Broker, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek_to_beginning()
        values: list[bytes] = []
        until = time.monotonic() + 60
        while len(values) < count and time.monotonic() < until:
            for records in consumer.poll(timeout_ms=500).values():
                values += [record.value for record in records]
        return values
    finally:
        consumer.close()


def test_a_broker_that_was_killed_comes_back_with_its_data_at_the_same_address(own_broker: Broker) -> None:
    admin = KafkaAdminClient(bootstrap_servers=own_broker.bootstrap)
    admin.create_topics({"kept": {"num_partitions": 1, "replication_factor": 1}})
    admin.close()
    send(own_broker, "kept", b"before")
    address = own_broker.bootstrap
    own_broker.kill9()
    assert own_broker.pid == 0
    own_broker.start()
    assert own_broker.bootstrap == address
    send(own_broker, "kept", b"behind")
    assert received(own_broker, "kept", 2) == [b"before", b"behind"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_the_secure_listener_takes_the_user_and_its_password_only(broker: Broker, mechanism: str) -> None:
    def listed(password: str, seconds: int) -> list[str]:
        admin = KafkaAdminClient(
            bootstrap_servers=broker.sasl_bootstrap,
            security_protocol="SASL_SSL",
            ssl_cafile=str(broker.certificates.ca),
            sasl_mechanism=mechanism,
            sasl_plain_username=USER,
            sasl_plain_password=password,
            bootstrap_timeout_ms=seconds * 1000,
        )
        try:
            return list(admin.list_topics())
        finally:
            admin.close()

    assert isinstance(listed(PASSWORD, 60), list)
    with pytest.raises(KafkaTimeoutError):  # kafka-python goes on trying, and says why in its log alone
        listed("another", 2)


@pytest.mark.faults
def test_a_broker_dies_with_the_process_that_started_it(
    tmp_path: Path, needs: Callable[[str, bool], None], wait_for: Callable[..., object]
) -> None:
    lib = jars()
    needs("kafka", lib is not None)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.broker import Broker\n"
        "broker = Broker(Path(sys.argv[1]), Path(sys.argv[2]))\nbroker.start()\nprint(broker.pid, flush=True)\ntime.sleep(120)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(lib)], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        wait_for(lambda: not _runs(pid), 30)
    finally:
        parent.kill()
        parent.wait(30)
        parent.stdout.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
