"""docs/views.md and the tables agree, column by column: who relies on the page relies on what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analytics.projections.schema import TABLES, VIEWS
from analytics.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "views.md").read_text(encoding="utf-8")
PARTS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
ROW = re.compile(r"^\| `(\w+)` \| (\S+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
UNITS = {"_at": "UTC", "_us": "microseconds"}


@pytest.mark.parametrize("view", PARTS)
def test_a_view_has_the_columns_that_the_page_gives_it_with_their_types_and_in_their_order(store: Store, view: str) -> None:
    found = store.read(
        "select column_name, data_type from duckdb_columns() where table_name = $view order by column_index", {"view": view}
    ).rows
    assert found
    assert [(name, kind) for name, kind, _, _ in ROW.findall(PARTS[view])] == found


@pytest.mark.parametrize("view", PARTS)
def test_every_column_says_what_it_is_and_times_and_durations_their_unit(view: str) -> None:
    for name, kind, unit, sentence in ROW.findall(PARTS[view]):
        assert sentence.strip().endswith((".", ")", "…")), (name, sentence)
        for ending, wanted in UNITS.items():
            if name.endswith(ending):
                assert unit.strip() == wanted, name
        assert (kind == "TIMESTAMP") == (unit.strip() == "UTC"), name
        if name.startswith("bytes") or name.endswith("bytes"):
            assert unit.strip() == "bytes", name


def test_all_that_is_named_exists_and_what_people_ask_about_is_there() -> None:
    assert set(PARTS) <= {*TABLES, *VIEWS}
    assert {"agents", "grants", "sessions", "statements", "findings", "witnesses", "observed_sessions", "kills", "looks"} <= set(
        PARTS
    )
