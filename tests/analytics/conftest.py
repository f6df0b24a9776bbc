from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.analytics.scenario import story


@pytest.fixture
def settings(tmp_path: Path) -> AnalyticsSettings:
    return AnalyticsSettings(tmp_path / "tables", commit_interval_ms=20)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SegmentLog]:
    log = SegmentLog(tmp_path / "log", LogSettings())
    yield log
    await log.close()


@pytest.fixture(scope="session")
def told_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that holds the story, and its tables."""
    directory = tmp_path_factory.mktemp("told")

    async def tell() -> None:
        log = SegmentLog(directory / "log", LogSettings())
        await story(log)
        await rebuild(log, AnalyticsSettings(directory / "tables"))
        await log.close()

    asyncio.run(tell())
    return directory


@pytest.fixture
def told(told_once: Path, tmp_path: Path, settings: AnalyticsSettings) -> AnalyticsSettings:
    """Tables that hold the story, and its log beside them, where the fixture `log` opens it."""
    shutil.copytree(told_once, tmp_path, dirs_exist_ok=True)
    return settings


@pytest.fixture
def store(told: AnalyticsSettings) -> Iterator[Store]:
    store = Store.open(told)
    yield store
    store.close()
