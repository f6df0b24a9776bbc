"""What was found, saved from the browser and read back."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC
from pathlib import Path
from typing import Final, Literal

import duckdb
import pytest
from playwright.sync_api import Locator, expect

from dashboards.statements import export_sql
from tests.dashboards.house import Gateway, House, Screen, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What an agent wrote, and what a spreadsheet is given of it.
TEXTS: Final = {
    "=cmd|'/c calc'!A1": "'=cmd|'/c calc'!A1",
    "+1+1": "'+1+1",
    "-2+3": "'-2+3",
    "@SUM(1;=2)": "'@SUM(1;'=2)",
    "SELECT \"a,b\", 'two\nlines', '<b>\u202e=1' FROM orders": "SELECT \"a,b\", 'two\nlines', '<b>\u202e=1' FROM orders",
}


def test_a_search_is_saved_as_csv_and_parquet_and_holds_what_the_api_answers(
    house: House, gateway: Gateway, screen: Screen, tmp_path: Path
) -> None:
    under = gateway.session(house.agent("exported"))
    for number, text in enumerate(TEXTS, 1):
        gateway.writer.defined(under, number, text)
        gateway.writer.began(under, number, number)
        gateway.writer.finished(under, number, rows=-number)  # a number stays one, though it begins with a minus
    other = gateway.session(house.agent("not-exported"))
    gateway.writer.defined(other, 1, "SELECT 'of another'")
    gateway.writer.began(other, 1, 1)
    gateway.record()
    sql = export_sql({"agent": "exported"})
    # the copy of the tables that SQL reads is moments old
    until(lambda: len(house.post("/v1/sql", {"sql": sql})["rows"]) == len(TEXTS), "SQL sees what was recorded")
    said = house.post("/v1/sql", {"sql": sql})
    names = [column["name"] for column in said["columns"]]  # type: ignore[index]  # the answer of SQL holds more than texts
    answered: list[dict[str, object]] = [dict(zip(names, row, strict=True)) for row in said["rows"]]
    assert [row["text"] for row in answered] == [*reversed(TEXTS)]

    screen.open("/statements?agent=exported")
    expect(screen.table("statements").locator("tr.row")).to_have_count(len(TEXTS))
    with saved(screen, "CSV", tmp_path).open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == names
    assert [row["text"] for row in cells] == [TEXTS[str(row["text"])] for row in answered]
    for name in ("agent", "execution", "rows", "started_at", "task", "approvers", "decision"):
        assert [row[name] for row in cells] == [written(row[name]) for row in answered], name
    read = duckdb.sql(f"select agent, execution, rows, text, started_at from read_parquet('{saved(screen, 'Parquet', tmp_path)}')")
    assert [(*row[:4], f"{row[4].astimezone(UTC).replace(tzinfo=None).isoformat()}Z") for row in read.fetchall()] == [
        (row["agent"], row["execution"], row["rows"], row["text"], row["started_at"]) for row in answered
    ]
    # of the first file: the second asks the same again, which is told a minute later
    until(lambda: looks_at_files(house) >= 1, "who saved a file stands in the record")


def test_a_file_that_was_cut_says_so(house: House, screen: Screen) -> None:
    screen.open("/sql")
    screen.page.get_by_role("textbox", name="SELECT").fill("select i from range(20000) r(i)")
    screen.page.get_by_role("button", name="Run").click()
    expect(screen.table("answer").locator("tr.row").first).to_be_visible()
    made(screen, "CSV")
    expect(screen.table("exports-cut")).to_contain_text("The answer was cut after 10,000 rows; narrow the query")


def made(screen: Screen, kind: Literal["CSV", "Parquet"]) -> Locator:
    """Its button, once the API has made it."""
    save = screen.page.get_by_role("button", name=re.compile(rf"Save \w+\.{kind.lower()}"))
    failed = screen.table("exports-failed")
    for _ in range(5):
        screen.page.get_by_role("button", name=f"Make {kind}").click()
        expect(save.or_(failed)).to_be_visible()
        if save.is_visible():
            break
        screen.page.wait_for_timeout(2000)  # on busy cores a query may take more than the API lets it
    expect(save).to_be_visible()
    return save


def saved(screen: Screen, kind: Literal["CSV", "Parquet"], folder: Path) -> Path:
    button = made(screen, kind)
    with screen.page.expect_download() as begun:
        button.click()
    assert begun.value.suggested_filename == f"statements.{kind.lower()}"
    file = folder / begun.value.suggested_filename
    begun.value.save_as(file)
    return file


def written(value: object) -> str:
    """A value of the API's answer as a cell has it."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def looks_at_files(house: House) -> int:
    looks = house.get("/v1/looks?operator=alice&question=sql&mentions=%27exported%27").json()["items"]
    return sum(look["through"] == "dashboard" for look in looks)
