"""An export is the question's rows, all of them or as many as a limit lets through, and says which limit it was."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from analytics.exports import Export, ExportFormat, Exports
from analytics.queries import Queries, QuestionFailed, QuestionInvalid
from analytics.settings import AnalyticsSettings
from analytics.store import Store


@pytest.fixture
async def queries(store: Store, told: AnalyticsSettings) -> AsyncIterator[Queries]:
    made = Queries(store, replace(told, answer_rows_max=2))  # so that every export takes several pages
    yield made
    made.close()


async def written(queries: Queries, settings: AnalyticsSettings, kind: ExportFormat = "csv", **given: str) -> Export:
    return await Exports(queries, replace(settings, answer_rows_max=2)).write("statements", given, kind)


def rows(export: Export, kind: ExportFormat = "csv") -> list[Mapping[str, object]]:
    body = b"".join(export.chunks())
    assert len(body) == export.size_bytes
    if kind == "parquet":
        return pq.read_table(io.BytesIO(body)).to_pylist()
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


async def test_both_formats_hold_what_the_question_answers(queries: Queries, told: AnalyticsSettings) -> None:
    answered = []
    before: str | None = ""
    while before is not None:
        page = await queries.ask("statements", {"before": before})
        answered += page.items
        before = page.next
    assert len(answered) == 6
    for kind in ("csv", "parquet"):
        export = await written(queries, told, kind)  # type: ignore[arg-type]
        found = rows(export, kind)  # type: ignore[arg-type]
        assert (export.rows, export.notice, export.next) == (6, "", None)
        assert [(str(row["session"]), int(str(row["execution"]))) for row in found] == [
            (row["session"], row["execution"]) for row in answered
        ]
        assert list(found[0]) == list(answered[0])


async def test_the_filters_of_the_question_are_those_of_the_export(queries: Queries, told: AnalyticsSettings) -> None:
    denied = rows(await written(queries, told, decision="deny"))
    assert {row["decision"] for row in denied} == {"deny"}
    with pytest.raises(QuestionInvalid, match="no such parameter"):
        await written(queries, told, agnet="reporter")
    with pytest.raises(QuestionInvalid, match="limit: write a number from 1 to 100000"):
        await written(queries, told, limit="1000000")


@pytest.mark.parametrize(
    ("limits", "given", "cut"),
    [
        ({"export_rows_max": 3}, {}, "3 rows"),
        ({}, {"limit": "4"}, "4 rows"),
        ({"export_bytes_max": 10}, {}, "10 bytes (2 rows)"),
        ({"export_seconds_max": 0.0}, {}, "0 s (2 rows)"),
    ],
)
async def test_what_a_limit_cut_says_which_and_how_to_go_on(
    queries: Queries, told: AnalyticsSettings, limits: dict[str, float], given: dict[str, str], cut: str
) -> None:
    first = await written(queries, replace(told, **limits), **given)  # type: ignore[arg-type]
    assert first.notice.startswith(f"The export was cut at {cut};")
    assert first.next is not None
    rest = await written(queries, told, before=first.next)
    assert (first.rows + rest.rows, rest.notice) == (6, "")
    keys = [(row["session"], row["execution"]) for row in [*rows(first), *rows(rest)]]
    assert len(set(keys)) == 6


async def test_an_export_that_would_fill_the_disk_is_refused(queries: Queries, told: AnalyticsSettings) -> None:
    with pytest.raises(QuestionFailed, match="too little room"):
        await written(queries, replace(told, snapshot_free_bytes_min=2**60))


async def test_an_export_without_rows_is_a_file_with_its_columns(queries: Queries, told: AnalyticsSettings) -> None:
    for kind in ("csv", "parquet"):
        assert rows(await written(queries, told, kind, agent="nobody"), kind) == []  # type: ignore[arg-type]


async def test_nothing_is_left_on_the_disk(queries: Queries, told: AnalyticsSettings) -> None:
    export = await written(queries, told)
    assert list((told.directory / "exports").iterdir()) == []
    export.file.close()
