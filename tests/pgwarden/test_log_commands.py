"""`pgwarden topics` and `pgwarden log copy` on a real broker: what they do, what they refuse, and what a kill -9 leaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.events import AgentRevoked, Event, SessionOpened, Stamp, StatementStarted, Topic
from ingest.follow import Follower, Gap
from ingest.frames import Framer, event_id
from ingest.log import Entry, EventLog
from ingest.log.kafka import KafkaLog
from ingest.log.segments import SegmentLog
from ingest.log.topics import look
from ingest.settings import KafkaSettings, LogSettings
from pgwarden.cli import main
from tests.broker import Broker, make_certificates, port, settings
from tests.pgwarden.test_api_on_kafka import log_sections

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
NOW_US = time.time_ns() // 1000


def configuration(folder: Path, kafka: KafkaSettings, more: str = "") -> str:
    path = folder / "pgwarden.toml"
    path.write_text(f'state = "state"\n[gateway]\nname = "gateway-1"\n{log_sections(kafka)}{more}')
    return str(path)


# -- topics ------------------------------------------------------------------------------------------------------------------------


def test_topics_are_shown_as_missing_made_and_then_as_they_should_be(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # a narrow terminal cuts what it shows
    kafka = settings(broker, f"test-{os.urandom(4).hex()}.")
    config = configuration(tmp_path, kafka)
    assert main(["topics", "-c", config]) == 1
    shown = capsys.readouterr()
    assert "missing" in shown.out
    assert "run pgwarden topics apply" in shown.err
    assert main(["verify-config", "--online", "-c", config]) == 1
    assert "\nkafka: failed: the brokers have no topic " in capsys.readouterr().out
    assert main(["topics", "-c", config, "apply", "--dry-run"]) == 0
    assert "to create" in capsys.readouterr().out
    assert {one.partitions for one in look(kafka)} == {0}
    assert main(["topics", "apply", "-c", config]) == 0
    assert "4 partitions, 1 copy, 1 in sync, kept for 90 days" in capsys.readouterr().out
    assert main(["verify-config", "--online", "-c", config]) == 0
    assert f"\nkafka: ok: {broker.bootstrap}, in clear text, with every topic of the log\n" in capsys.readouterr().out
    assert main(["topics", "-c", config]) == 0
    assert main(["topics", "-c", config, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert document["ok"] is True
    configuration(tmp_path, dataclasses.replace(kafka, partitions={**kafka.partitions, "sessions": 9}))
    assert main(["topics", "apply", "-c", config]) == 1
    assert "sessions has 2 partitions and sessions_partitions asks for 9" in capsys.readouterr().err


def test_a_log_on_this_machine_has_no_topics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pgwarden.toml"
    path.write_text('state = "state"\n')
    assert main(["topics", "-c", str(path)]) == 2
    assert 'write backend = "kafka" below [log]' in capsys.readouterr().err
    assert main(["log", "copy", "-c", str(path)]) == 2


def test_brokers_that_are_not_there_are_named_in_one_line(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{port()}"
    config = configuration(tmp_path, KafkaSettings((nobody,), tls=False))
    done = command("topics", "apply", "-c", config)
    assert done.wait(120) == 1
    assert done.stderr is not None
    assert done.stderr.read() == f"pgwarden topics: the brokers at {nobody} do not answer: nobody listens there\n".encode()
    done.stderr.close()


def test_a_check_of_brokers_that_are_not_there_says_so_and_nothing_else(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{port()}"
    config = configuration(tmp_path, KafkaSettings((nobody,), tls=False))
    done = subprocess.run(
        [sys.executable, "-m", "pgwarden", "verify-config", "--online", "-c", config],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == f"kafka: failed: the brokers at {nobody} do not answer: nobody listens there"


def test_a_broker_of_another_authority_is_not_trusted(tmp_path: Path, broker: Broker) -> None:
    make_certificates(tmp_path / "other")
    config = configuration(tmp_path, settings(broker, "test.", "tls"))
    text = Path(config).read_text()
    Path(config).write_text(text.replace("tls = false", 'tls = true\nca_file = "other/ca.pem"'))
    done = command("topics", "-c", config)
    assert done.wait(120) == 1
    assert done.stderr is not None
    assert b"their certificate is not trusted" in done.stderr.read()
    done.stderr.close()


def command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pgwarden", *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


# -- copying -----------------------------------------------------------------------------------------------------------------------

STAMP = Stamp("s", "agent-0", "", "", "", (), "", "", (), (), (), "shop", "shop", "app", "c", 1, 1, 1)


def frames(writer: str, boot: int, topic: Topic, keys: int, count: int) -> list[Entry]:
    framer = Framer(writer, boot, events_max=2, bytes_max=10_000)
    entries: list[Entry] = []
    for number in range(count):
        key = f"agent-{number * 7 % keys}"
        event: Event
        if topic == "identity":
            event = AgentRevoked(NOW_US + number, key, "r" * 50, "alice")
        elif topic == "sessions":
            event = SessionOpened(NOW_US + number, STAMP, "scram", "k", 0, "", "", "3.0", "group")
        else:
            event = StatementStarted(NOW_US + number, number, number, "grant")
        framer.add(topic, key, event, STAMP if topic == "statements" else None)
        if number % 3 == 0:
            entries += framer.cut()
    return entries + framer.cut()


def recorded(folder: Path, count: int = 120) -> None:
    """Two boots of a gateway and of an API, some frames appended twice as after a crash."""

    async def write() -> None:
        log = SegmentLog(folder, LogSettings())
        for boot in (1, 2):
            for writer, topic in (("api", "identity"), ("gateway-1", "sessions"), ("gateway-1", "statements")):
                entries = frames(writer, boot, topic, 11, count)  # type: ignore[arg-type]
                await log.append(entries[:10])
                await log.append(entries[7:])
        await log.close()

    asyncio.run(write())


async def read(log: EventLog, topic: str) -> tuple[dict[bytes, list[tuple[str, Event, int]]], list[Gap]]:
    gaps: list[Gap] = []
    found: dict[bytes, list[tuple[str, Event, int]]] = defaultdict(list)
    follower = Follower(log, (topic,), {}, on_gap=gaps.append)
    ends = await log.offsets(topic)
    until = time.monotonic() + 60
    while any(follower.offsets[place] < end for place, end in ends.items()) and time.monotonic() < until:
        for record, frame in await follower.poll(timeout_seconds=0.5):
            for index, (_, event) in enumerate(frame.events):
                found[record.key].append((event_id(frame, index), event, record.at_us // 1000))
    follower.close()
    return found, gaps


def both(folder: Path, kafka: KafkaSettings) -> list[tuple[object, object]]:
    async def compare() -> list[tuple[object, object]]:
        source, target = SegmentLog(folder, LogSettings()), await KafkaLog.open(kafka)
        pairs: list[tuple[object, object]] = []
        for topic in ("identity", "sessions", "statements"):
            pairs.append((await read(source, topic), await read(target, topic)))
        await source.close()
        await target.close()
        return pairs

    return asyncio.run(compare())


def test_each_keys_events_are_there_in_their_order_under_their_ids_at_their_time_and_without_a_gap(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "state" / "log")
    config = configuration(tmp_path, kafka_settings)
    assert main(["log", "copy", "-c", config, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["topic"], row["repeated"] > 0, row["gaps"]) for row in document["topics"]] == [
        ("identity", True, 0),
        ("sessions", True, 0),
        ("statements", True, 0),
    ]
    for before, after in both(tmp_path / "state" / "log", kafka_settings):
        assert before == after
        assert after[1] == []  # type: ignore[index]
    ends = {one.topic: one.end for one in look(kafka_settings)}
    assert sum(end > 0 for end in ends["statements"].values()) > 1
    assert main(["log", "copy", "-c", config, "--json"]) == 0  # again: it is all there
    again = json.loads(capsys.readouterr().out)
    assert [row["written"] for row in again["topics"]] == [0, 0, 0]
    assert [row["checksum"] for row in again["topics"]] == [row["checksum"] for row in document["topics"]]
    assert {one.topic: one.end for one in look(kafka_settings)} == ends


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_copy_that_was_killed_goes_on_where_it_was_and_writes_nothing_twice(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str], wait_for: Callable[..., object]
) -> None:
    recorded(tmp_path / "state" / "log", 8_000)
    config = configuration(tmp_path, kafka_settings)

    def there() -> int:
        return sum(sum(one.end.values()) for one in look(kafka_settings))

    killed = 0
    for more in (1, 3_000, 10_000):
        copying = command("log", "copy", "-c", config)
        at = there()
        wait_for(lambda copying=copying, at=at, more=more: there() >= at + more or copying.poll() is not None, 90)
        killed += copying.poll() is None
        copying.send_signal(signal.SIGKILL)
        copying.wait(30)
        assert copying.stderr is not None
        copying.stderr.close()
    assert killed
    assert main(["log", "copy", "-c", config, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sum(row["records"] for row in document["topics"]) == there()
    assert any(row["written"] < row["records"] for row in document["topics"])
    for before, after in both(tmp_path / "state" / "log", kafka_settings):
        assert before == after


def test_a_log_that_is_still_written_is_not_copied(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "state" / "log")
    holder = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom ingest.log.segments import SegmentLog\n"
        "from ingest.settings import LogSettings\n"
        "async def hold():\n    log = SegmentLog(Path(sys.argv[1]), LogSettings())\n    await log.claim(['sessions'])\n"
        "    print('held', flush=True)\n    await asyncio.sleep(120)\nasyncio.run(hold())\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "state" / "log")], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"held\n"
        assert main(["log", "copy", "-c", configuration(tmp_path, kafka_settings)]) == 1
        assert "sessions/0 is being written by another process" in capsys.readouterr().err
        assert all(end == 0 for one in look(kafka_settings) for end in one.end.values())
    finally:
        writer.kill()
        writer.wait(30)
        assert writer.stdout is not None
        writer.stdout.close()


def test_topics_that_hold_something_else_are_not_copied_into(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "state" / "log", 60)
    config = configuration(tmp_path, kafka_settings)

    async def write(entries: list[Entry]) -> None:
        log = await KafkaLog.open(kafka_settings)
        await log.append(entries)
        await log.close()

    asyncio.run(write(frames("gateway-9", 5, "sessions", 3, 2)))
    ends = {one.topic: one.end for one in look(kafka_settings)}
    assert main(["log", "copy", "-c", config]) == 1
    assert "is not this log's: take another topic_prefix" in capsys.readouterr().err
    assert {one.topic: one.end for one in look(kafka_settings)} == ends  # not even the topics that are empty


def test_a_log_that_has_gone_on_in_kafka_is_not_copied_into(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "state" / "log", 60)
    config = configuration(tmp_path, kafka_settings)
    assert main(["log", "copy", "-c", config]) == 0

    async def write() -> None:
        log = await KafkaLog.open(kafka_settings)
        await log.append(frames("api", 9, "identity", 3, 2))
        await log.close()

    asyncio.run(write())
    capsys.readouterr()
    assert main(["log", "copy", "-c", config]) == 1
    assert "the log in Kafka is another one, or has gone on" in capsys.readouterr().err


def test_records_that_the_brokers_would_drop_are_not_copied(
    tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path / "state" / "log", 30)
    later = time.time() + 100 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert main(["log", "copy", "-c", configuration(tmp_path, kafka_settings)]) == 1
    assert "the oldest record of sessions is 100 days old, and the brokers would drop it: write retention_days = 102" in (
        capsys.readouterr().err
    )


def test_a_folder_that_is_none_is_named(tmp_path: Path, kafka_settings: KafkaSettings, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration(tmp_path, kafka_settings)
    assert main(["log", "copy", "-c", config, "--from", str(tmp_path / "nothing")]) == 1
    assert "is no folder: name the folder of the segments with --from" in capsys.readouterr().err
