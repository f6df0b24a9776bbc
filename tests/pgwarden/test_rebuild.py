"""`pgwarden rebuild` on a real log and real tables."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest

from ingest.events import AgentRegistered, AgentRevoked, Event
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from pgwarden.cli import main


def agent(name: str) -> AgentRegistered:
    return AgentRegistered(1, name, "d", "o", "", "", "", "", "", "alice")


def record(state: Path, boot: int, events: Sequence[Event]) -> None:
    async def recorded() -> None:
        log = SegmentLog(state / "log", LogSettings())
        recorder = Recorder(log, "api", boot, RecorderSettings())
        await recorder.recorded([recorder.record("identity", event.agent, event) for event in events][-1])  # type: ignore[union-attr]
        await recorder.close()
        await log.close()

    asyncio.run(recorded())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pgwarden.toml").write_text('state = "state"\n')
    record(tmp_path / "state", 1, [agent("a"), agent("b"), AgentRevoked(2, "a", "r", "alice")])
    return tmp_path / "pgwarden.toml"


def rebuilt(config: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["rebuild", "-c", str(config), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def rows(document: dict[str, object]) -> dict[str, tuple[int, str]]:
    tables = document["tables"]
    assert isinstance(tables, list)
    return {table["table"]: (table["rows"], table["before"]) for table in tables}


def test_the_tables_are_for_their_owner_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0o022)
    try:
        rebuilt(config, capsys)
    finally:
        os.umask(before)
    (tables,) = (config.parent / "state" / "tables").glob("tables.duckdb")
    assert stat.S_IMODE(tables.stat().st_mode) == 0o600


def test_the_same_log_gives_the_same_tables(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = rebuilt(config, capsys)
    assert (first["equal"], first["events"]) == (False, 3)
    assert rows(first)["agent_events"] == (3, "none")
    second = rebuilt(config, capsys)
    assert second["equal"] is True
    assert rows(second)["agent_events"] == (3, "equal")


def test_tables_that_had_not_read_all_of_the_log_are_told_from_wrong_ones(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rebuilt(config, capsys)
    record(config.parent / "state", 2, [agent("c")])
    assert main(["rebuild", "-c", str(config)]) == 0
    assert "the new tables differ from the old ones, which had not read the last 1 records of the log" in capsys.readouterr().out


def test_tables_that_were_changed_by_hand_are_found(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rebuilt(config, capsys)
    with duckdb.connect(str(config.parent / "state" / "tables" / "tables.duckdb")) as connection:
        connection.execute("delete from agent_events where agent = 'a'")
    assert main(["rebuild", "-c", str(config)]) == 0
    out = capsys.readouterr().out
    assert "though both have read the same log: report this" in out
    assert rows(rebuilt(config, capsys))["agent_events"] == (3, "equal")


def test_a_log_that_cannot_be_read_leaves_the_old_tables(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rebuilt(config, capsys)
    tables = config.parent / "state" / "tables" / "tables.duckdb"
    before = tables.stat().st_ino
    (segment,) = (config.parent / "state" / "log").rglob("*.seg")
    record(config.parent / "state", 2, [agent("c")])  # what follows the damage shows that it is no torn tail
    content = bytearray(segment.read_bytes())
    content[80] ^= 0xFF
    segment.write_bytes(bytes(content))
    assert main(["rebuild", "-c", str(config)]) == 1
    assert "the tables were not rebuilt: " in capsys.readouterr().err
    assert tables.stat().st_ino == before
