"""Which log a configuration opens, and what is said where it cannot be."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.log import LogUnavailable
from ingest.log.kafka import KafkaLog
from ingest.log.segments import SegmentLog
from ingest.settings import KafkaSettings
from pgwarden.config import Config, loads
from pgwarden.logs import local_folder, open_log, tables_folder

SEGMENTS = 'state = "state"\n'
KAFKA = SEGMENTS + '[gateway]\nname = "a"\n[log]\nbackend = "kafka"\n[kafka]\nbootstrap = ["127.0.0.1:9"]\ntls = false\n'
REPOSITORY = Path(__file__).parents[2]


def configured(text: str, folder: Path, kafka: KafkaSettings | None = None) -> Config:
    config = loads(text, folder / "pgwarden.toml", {})
    return config if kafka is None else dataclasses.replace(config, kafka=kafka)


async def test_segments_are_opened_below_the_state_folder(tmp_path: Path) -> None:
    config = configured(SEGMENTS, tmp_path)
    log = await open_log(config)
    assert isinstance(log, SegmentLog)
    await log.claim(["identity"])
    await log.close()
    assert (tmp_path / "state" / "log" / "identity").is_dir()


@pytest.mark.kafka
async def test_a_log_in_kafka_is_opened_connected(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    log = await open_log(configured(KAFKA, tmp_path, kafka_settings))
    assert isinstance(log, KafkaLog)
    assert log.partitions("statements") == kafka_settings.partitions["statements"]
    await log.close()


@pytest.mark.kafka
async def test_other_partitions_than_configured_are_unavailable_with_a_remedy(
    tmp_path: Path, kafka_settings: KafkaSettings
) -> None:
    other = dataclasses.replace(kafka_settings, partitions={**kafka_settings.partitions, "sessions": 7})
    with pytest.raises(LogUnavailable, match=r"sessions.* 2 .*7|sessions.* 7 .*2"):
        await open_log(configured(KAFKA, tmp_path, other))


def test_each_log_has_tables_and_segments_of_its_own(tmp_path: Path) -> None:
    on_segments, on_kafka = configured(SEGMENTS, tmp_path), configured(KAFKA, tmp_path)
    elsewhere = configured(KAFKA + 'topic_prefix = "audit."\n', tmp_path)
    assert local_folder(on_segments) != local_folder(on_kafka)
    assert len({tables_folder(config) for config in (on_segments, on_kafka, elsewhere)}) == 3
    assert tables_folder(elsewhere).parent == elsewhere.state


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)


@pytest.mark.parametrize("missing", ["kafka", "crc32c"])
def test_a_client_that_is_not_installed_is_named_with_how_to_install_it(missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import asyncio\nfrom pathlib import Path\nfrom ingest.log import LogUnavailable\n"
        "from pgwarden.config import loads\nfrom pgwarden.logs import open_log\n"
        f"config = loads({KAFKA!r}, Path('/nowhere/pgwarden.toml'), {{}})\n"
        "try:\n    asyncio.run(open_log(config))\nexcept LogUnavailable as error:\n    print(error)\n"
    )
    done = run(program)
    assert "pip install 'pgwarden[kafka]'" in done.stdout, done.stderr


def test_a_log_on_this_machine_loads_no_client_of_kafka() -> None:
    program = (
        "import sys\nimport pgwarden.api_process, pgwarden.gateway_process, pgwarden.rebuild, pgwarden.commands.log\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'kafka', 'faust', 'aiokafka', 'crc32c'}))\n"
    )
    done = run(program)
    assert done.stdout == "[]\n", done.stderr
