"""The rows of a question as one file, within limits: written page by page, so that no other question waits, and then sent."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Literal, TypeAlias

from analytics.answer_formats import batch, csv_lines, schema
from analytics.queries import QUESTIONS, Page, Queries, QuestionFailed, QuestionInvalid, shown_names
from analytics.settings import AnalyticsSettings

if TYPE_CHECKING:
    import pyarrow.parquet as pq

ExportFormat: TypeAlias = Literal["csv", "parquet"]

EXPORT_FORMATS: Final[tuple[ExportFormat, ...]] = ("csv", "parquet")
FOLDER: Final = "exports"
CHUNK_BYTES: Final = 256 * 2**10  # that are sent at once
GROUP_ROWS: Final = 10_000  # of a row group: fewer make a Parquet file large
GROUP_CHARACTERS: Final = 8 * 2**20  # of text in one, which is in memory meanwhile


@dataclass(frozen=True, slots=True)
class Export:
    file: IO[bytes]  # at its beginning; it has no name, and is gone when it is closed
    size_bytes: int
    rows: int
    notice: str  # "" when all is in it; else a sentence that says what cut it and how to go on
    next: str | None  # where it was cut: give it as `before`

    def chunks(self) -> Iterator[bytes]:
        with self.file:
            while chunk := self.file.read(CHUNK_BYTES):
                yield chunk


class Exports:
    """One at a time; calls may overlap."""

    def __init__(self, queries: Queries, settings: AnalyticsSettings) -> None:
        self._queries = queries
        self._settings = settings
        self._one = asyncio.Lock()
        self._waiting = 0

    async def write(self, name: str, given: Mapping[str, str], kind: ExportFormat) -> Export:
        """`given` as for Queries.ask(), but that `limit` may be as large as an export.

        Raises:
            QuestionInvalid: A parameter is wrong.
            QuestionFailed: Too many wait, the tables do not answer, or there is no room.
        """
        if self._waiting >= self._settings.exports_waiting_max:
            raise QuestionFailed(f"{self._waiting} exports are waiting; try again in a minute")
        limit = _limit(given.get("limit", ""), self._settings.export_rows_max)
        self._waiting += 1
        try:
            async with self._one:
                return await self._write(name, {key: value for key, value in given.items() if key != "limit"}, kind, limit)
        finally:
            self._waiting -= 1

    async def _write(self, name: str, given: Mapping[str, str], kind: ExportFormat, limit: int) -> Export:
        settings = self._settings
        until = time.monotonic() + settings.export_seconds_max
        file = self._spool()
        try:
            writing: _Writing | None = None
            before = given.get("before", "")
            rows = 0
            while True:
                wanted = min(settings.answer_rows_max, limit - rows)
                page = await self._queries.page(name, {**given, "before": before, "limit": str(wanted)})
                if writing is None:
                    writing = _Writing(file, kind, name, page)
                await asyncio.to_thread(writing.add, page.rows)
                rows += len(page.rows)
                before = page.next or ""
                cut = ""
                if before:
                    if rows >= limit:
                        cut = f"{rows:,} rows"
                    elif file.tell() >= settings.export_bytes_max:
                        cut = f"{settings.export_bytes_max:,} bytes ({rows:,} rows)"
                    elif time.monotonic() >= until:
                        cut = f"{settings.export_seconds_max:g} s ({rows:,} rows)"
                if cut or not before:
                    await asyncio.to_thread(writing.close)
                    break
            size_bytes = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        notice = f"The export was cut at {cut}; ask for the rest with before={before}, or narrow it by time." if cut else ""
        return Export(file, size_bytes, rows, notice, before or None)

    def _spool(self) -> IO[bytes]:
        folder = self._settings.directory / FOLDER
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            # The log may lie on the same disk: an export must not be what stops the record.
            if shutil.disk_usage(folder).free - self._settings.export_bytes_max < self._settings.snapshot_free_bytes_min:
                raise QuestionFailed(
                    "the disk of the API has too little room for an export; free some, or narrow a question instead"
                )
            return tempfile.TemporaryFile(dir=folder)
        except OSError as error:
            raise QuestionFailed(f"the export cannot be written: {error}") from error


class _Writing:
    def __init__(self, file: IO[bytes], kind: ExportFormat, name: str, page: Page) -> None:
        self._file = file
        names = shown_names(QUESTIONS[name], page.columns)
        self._indexes = [index for index, column in enumerate(page.columns) if column in names]
        self._columns = [(names[page.columns[index]], page.types[index]) for index in self._indexes]
        self._held: list[list[object]] = []
        self._held_characters = 0
        self._parquet: pq.ParquetWriter | None = None
        if kind == "parquet":
            import pyarrow.parquet as pq

            self._schema = schema(self._columns)
            self._parquet = pq.ParquetWriter(file, self._schema, compression="zstd")
        else:
            file.write(csv_lines([[name for name, _ in self._columns]]))

    def add(self, rows: Sequence[Sequence[object]]) -> None:
        shown = [[row[index] for index in self._indexes] for row in rows]
        if self._parquet is None:
            self._file.write(csv_lines(shown))
            return
        self._held += shown
        self._held_characters += sum(len(value) for row in shown for value in row if isinstance(value, str))
        if len(self._held) >= GROUP_ROWS or self._held_characters >= GROUP_CHARACTERS:
            self._write_group()

    def close(self) -> None:
        """The file is whole afterwards, and stays open."""
        if self._parquet is not None:
            self._write_group()
            self._parquet.close()

    def _write_group(self) -> None:
        if self._held and self._parquet is not None:
            self._parquet.write_batch(batch(self._schema, self._columns, self._held))
        self._held, self._held_characters = [], 0


def _limit(given: str, most: int) -> int:
    if not given:
        return most
    if given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= most:
        return int(given)
    raise QuestionInvalid(f"limit: write a number from 1 to {most}")
