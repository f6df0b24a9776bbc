"""An agent's month as a page: true to the record, inert whatever agents wrote, and one that shows when it was changed."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.guarded_sql import GuardedSql, SqlAnswer
from analytics.rebuild import rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from pgwarden.cli import main
from pgwarden.commands.report import STYLE, _section
from pgwarden.report import Facts, holds, page
from pgwarden.report_questions import questions
from tests.analytics.scenario import START_US, story
from tests.pgwarden.test_api_process import ALICE, CONFIG, open_session, registry, running, write_key

CSS = STYLE.read_text(encoding="utf-8")
HOSTILE = '</td></main><script>alert(1)</script><img src=x onerror=alert(1)>&quot;\x1b[2J\u202e"onload="'


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Of the story that the analytics tests tell, asked in SQL as the command asks it."""
    folder = tmp_path_factory.mktemp("month")
    day = datetime.fromtimestamp(START_US / 1e6, UTC).date()
    begin = day.replace(day=1)
    end = date(begin.year + begin.month // 12, begin.month % 12 + 1, 1)

    async def ask() -> Facts:
        log = SegmentLog(folder / "log", LogSettings())
        await story(log)
        settings = AnalyticsSettings(folder / "tables")
        await rebuild(log, settings)
        await log.close()
        store = Store.open(settings)
        guarded = GuardedSql(store, settings)
        sections = {}
        for name, sql in questions("reporter", begin, end).items():
            answer = await guarded.run(sql, "olga")
            assert isinstance(answer, SqlAnswer), (name, answer)
            sections[name] = _section(sql, json.loads(answer.body))
        await guarded.close()
        store.close()
        return Facts("reporter", begin, end, "2026-12-01T09:00:00.000Z", "olga", "2026-12-01T08:59:59.000Z", "0.1", sections)

    return asyncio.run(ask())


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(re.sub(r"<(rect[^>]*)/>", r"<\1>", text))
    tags.close()
    assert tags.open == []
    return tags


def test_it_tells_who_it_is_what_it_did_and_what_became_of_it(facts: Facts) -> None:
    text = html.unescape(page(facts, CSS))
    for said in (
        "reporter agent",
        "team-a",
        "g-reporter on shop",
        "Asked for by alice",
        "Approved by bob",
        "monthly report",
        "public.orders",
        "2 statements: SELECT",
        "secrets is not in your scope",
        "many denials",
        "No collector watches the database",
        "statements",
    ):
        assert said in text, said
    totals = facts.rows("totals")[0]
    assert (totals["statements"], totals["denied"]) == (2, 1)
    (kill,) = facts.rows("kills")
    assert str(kill["backend_gone_at"])[:19].replace("T", " ") in text
    assert {str(row["topic"]) for row in facts.rows("offsets")} >= {"identity", "sessions", "statements"}


def test_what_was_granted_and_never_used_is_marked(facts: Facts) -> None:
    unused = replace(facts, sections={**facts.sections, "used": replace(facts.sections["used"], rows=())})
    assert "never used this month" in page(unused, CSS)
    assert "never used this month" not in page(facts, CSS)


def hostile(facts: Facts, text: str) -> Facts:
    """The same month, in which every text that somebody wrote is this one."""

    def poisoned(value: object) -> object:
        if isinstance(value, str):
            return text
        return [text for _ in value] if isinstance(value, list) else value

    sections = {
        name: replace(section, rows=[{key: poisoned(value) for key, value in row.items()} for row in section.rows])
        for name, section in facts.sections.items()
    }
    return replace(facts, agent=text, written_by=text, sections=sections)


def test_hostile_text_is_shown_and_does_nothing(facts: Facts) -> None:
    calm, poisoned = page(facts, CSS), page(hostile(facts, HOSTILE), CSS)
    assert read(poisoned).seen <= read(calm).seen | {"p"}
    assert read(poisoned).attributes <= read(calm).attributes
    assert "<script" not in poisoned
    assert "\x1b" not in poisoned
    assert "\u202e" not in poisoned
    assert "&lt;script&gt;alert(1)" in poisoned


@given(text=st.text())
def test_no_text_opens_a_tag(facts: Facts, text: str) -> None:
    written = page(hostile(facts, text), CSS)
    assert read(written).seen <= read(page(facts, CSS)).seen | {"p"}
    assert holds(written)


def test_the_page_allows_itself_no_script_and_loads_nothing(facts: Facts) -> None:
    text = page(facts, CSS)
    assert "default-src 'none'" in html.unescape(text)
    assert not {"script", "img", "link", "iframe", "object"} & read(text).seen
    assert "http" not in text.replace("http-equiv", "")


def test_a_page_that_was_changed_shows_it(facts: Facts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "month.html"
    file.write_text(page(facts, CSS), encoding="utf-8")
    assert main(["report", "--check", str(file)]) == 0
    file.write_text(page(facts, CSS).replace("secrets is not", "secrets is"), encoding="utf-8")
    assert main(["report", "--check", str(file)]) == 1
    assert "was changed after it was written" in capsys.readouterr().err


def test_the_same_facts_give_the_same_bytes(facts: Facts) -> None:
    assert page(facts, CSS) == page(replace(facts), CSS)


@pytest.mark.slow
def test_the_command_writes_the_page_of_a_running_system(
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wait_for: Callable[..., object],
) -> None:
    (tmp_path / "pgwarden.toml").write_text(CONFIG, encoding="utf-8")
    write_key(tmp_path)
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", ALICE)
    month = f"{datetime.now(UTC):%Y-%m}"
    with running(tmp_path, free_port) as api:
        (grant,) = registry(tmp_path).grants
        open_session(tmp_path, (grant,), boot=time.time_ns())
        wait_for(lambda: api.get("/v1/sessions?agent=reporter").json()["items"])
        file = tmp_path / "month.html"
        command = ["report", "-c", str(tmp_path / "pgwarden.toml")]
        assert main([*command, "reporter", "--month", month, "--output", str(file)]) == 0
        assert file.stat().st_mode & 0o777 == 0o600
        text = html.unescape(file.read_text(encoding="utf-8"))
        assert all(
            said in text for said in ("monthly figures", "finance", grant, "s-1", "by alice with pgwarden", "month is not over")
        )
        assert main([*command, "nobody", "--month", month, "--output", str(file)]) == 2
        assert main([*command, "reporter' or 1=1", "--month", month, "--output", str(file)]) == 2
        assert main([*command, "reporter", "--month", "2026-13", "--output", str(file)]) == 2
        assert main([*command, "reporter"]) == 2
    assert "there is no agent nobody" in capsys.readouterr().err
