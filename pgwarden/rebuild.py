"""`pgwarden rebuild`: the tables anew from the log, table by table beside the old ones. The API must not be running."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from analytics.rebuild import Rebuilt, WorkerDied, rebuild
from analytics.settings import AnalyticsSettings
from analytics.store import Store, Sum, TablesBroken, TablesBusy
from ingest.log import LogCorrupt, LogUnavailable
from pgwarden.config import Config
from pgwarden.logs import open_log, tables_folder
from pgwarden.tables import Column, table, width

_HEADS: Final = (
    Column("TABLE", "name"),
    Column("ROWS", "rows", right=True),
    Column("CHECKSUM", "checksum"),
    Column("BEFORE", "before", flexible=True),
)


@dataclass(frozen=True, slots=True)
class Tables:
    sums: Mapping[str, Sum]
    offsets: Mapping[tuple[str, int], int]
    notice: str  # what had to be thrown away when they were opened


def run(config: Config, as_json: bool) -> int:
    """Exit status: 0 the new tables are in place, 1 they are not and the old ones stay."""
    settings = AnalyticsSettings(tables_folder(config))
    try:
        old = _tables(settings) if (settings.directory / "tables.duckdb").exists() else None
        rebuilt = asyncio.run(_rebuilt(config, settings))
        new = Tables(rebuilt.sums, rebuilt.offsets, "")
    except (TablesBusy, TablesBroken, LogCorrupt, LogUnavailable, OSError, MemoryError, ValueError, WorkerDied) as error:
        sentence = f"the tables were not rebuilt: {error}"
        print(json.dumps({"error": sentence}) if as_json else f"pgwarden rebuild: {sentence}", file=None if as_json else sys.stderr)
        return 1
    _print(old, new, rebuilt, as_json)
    return 0


async def _rebuilt(config: Config, settings: AnalyticsSettings) -> Rebuilt:
    log = await open_log(config)
    try:
        return await rebuild(log, settings)
    finally:
        await log.close()


def _tables(settings: AnalyticsSettings) -> Tables:
    store = Store.open(settings)
    try:
        return Tables(store.sums(), store.offsets(), store.notice)
    finally:
        store.close()


def _print(old: Tables | None, new: Tables, rebuilt: Rebuilt, as_json: bool) -> None:
    unread = _unread(old, new)
    equal = old is not None and old.sums == new.sums
    if as_json:
        document = {
            "tables": [
                {"table": name, "rows": sum_.rows, "checksum": sum_.checksum, "before": _before(old, new, name)}
                for name, sum_ in new.sums.items()
            ],
            "equal": equal,
            "records_not_read_before": unread,
            "frames": rebuilt.frames,
            "events": rebuilt.events,
            "seconds": round(rebuilt.seconds, 3),
        }
        print(json.dumps(document, indent=2))
        return
    rows: list[dict[str, object]] = [
        {"name": name, "rows": sum_.rows, "checksum": sum_.checksum, "before": _before(old, new, name)}
        for name, sum_ in new.sums.items()
    ]
    print(table(_HEADS, rows, width()))
    print(f"{rebuilt.events} events of {rebuilt.frames} frames in {rebuilt.seconds:.1f} s")
    if old is None or old.notice:
        print("there were no old tables to compare with")
    elif equal:
        print("the new tables equal the old ones")
    elif unread:
        print(f"the new tables differ from the old ones, which had not read the last {unread} records of the log")
    else:
        print("the new tables differ from the old ones, though both have read the same log: report this")


def _before(old: Tables | None, new: Tables, name: str) -> str:
    if old is None or old.notice:
        return "none"
    if old.sums[name] == new.sums[name]:
        return "equal"
    return f"{old.sums[name].rows} rows, {old.sums[name].checksum}"


def _unread(old: Tables | None, new: Tables) -> int:
    before = old.offsets if old is not None else {}
    return sum(end - before.get(place, 0) for place, end in new.offsets.items())
