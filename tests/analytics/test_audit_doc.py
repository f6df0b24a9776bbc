from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analytics.guarded_sql import GuardedSql, SqlAnswer
from analytics.projections.schema import TABLES, VIEWS
from analytics.queries import QUESTIONS
from analytics.settings import AnalyticsSettings
from analytics.snapshots import Snapshots
from analytics.store import Store

DOC = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()


def section(name: str) -> str:
    return DOC.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]


def headings(text: str) -> list[str]:
    return [line.removeprefix("### ").strip("`") for line in text.splitlines() if line.startswith("### ")]


def test_every_table_and_view_has_a_heading_and_no_other() -> None:
    assert sorted(headings(section("Tables"))) == sorted([*TABLES, *VIEWS])


def test_every_question_has_a_heading_and_no_other() -> None:
    assert headings(section("Questions")) == list(QUESTIONS)


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_every_parameter_that_a_heading_names_is_one(name: str) -> None:
    part = section("Questions").split(f"### {name}\n", 1)[1].split("\n### ", 1)[0]
    filters = re.findall(r"by ((?:`\w+`(?: \([^)]*\))?(?:, |\n| )?)+)", part)
    named = {word for group in filters for word in re.findall(r"`(\w+)`", group)}
    assert named <= {parameter.name for parameter in QUESTIONS[name].parameters}


@pytest.mark.parametrize("name", ["SQL", "Snapshots"])
def test_the_limits_are_those_of_the_settings(tmp_path: Path, name: str) -> None:
    settings = AnalyticsSettings(tmp_path)
    for line in section(name).splitlines():
        if line.startswith("| ") and line.endswith("` |"):
            _, _, figure, name, _ = (cell.strip().strip("`") for cell in line.split("|"))
            assert f"{getattr(settings, name):,g}" in figure or f"{getattr(settings, name):,}" in figure, line


async def test_every_example_runs(store: Store, told: AnalyticsSettings) -> None:
    examples = re.findall(r"```sql\n(.*?)```", DOC, re.DOTALL)
    assert len(examples) >= 2
    guarded = GuardedSql(store, told)
    for example in examples:
        answer = await guarded.run(example, "alice")
        assert isinstance(answer, SqlAnswer), (example, answer)
        assert json.loads(answer.body)["columns"]
    await guarded.close()


async def test_the_program_that_reads_a_snapshot_runs(store: Store, told: AnalyticsSettings) -> None:
    taken = await Snapshots(store, told).take()
    (program,) = re.findall(r"```python\n(.*?)```", section("Snapshots"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=taken.path.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "reporter 1\n"), done.stderr
