"""Hostile SQL for `analytics.sql_worker`: whatever is sent, a read-only copy stays as it is, and what comes back is an answer or a
refusal that can be read.

Runs the worker's own function in this process, so that an engine of fuzzing sees its branches; what ends a process is the business of
tests/analytics/test_guarded_sql.py.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

import duckdb

from analytics import sql_worker


@cache
def tables() -> tuple[Path, str]:
    path = Path(tempfile.mkdtemp(prefix="pgwarden-fuzz-")) / "tables.duckdb"
    connection = duckdb.connect(str(path))
    connection.execute("create table texts as select i as session, 'select ' || i as text from range(100) t(i)").fetchall()
    connection.execute("create sequence numbers").fetchall()
    connection.close()
    return path, _sum(path)


def one_input(data: bytes) -> None:
    path, before = tables()
    kind = ("json", "csv", "arrow", "parquet")[len(data) % 4]
    request = {
        "format": kind,
        "sql": data.decode("utf-8", "replace")[:4096],
        "path": str(path),
        "snapshot_at": "",
        "seconds_max": 1.0,
        "rows_max": 100,
        "bytes_max": 10_000,
        "memory_max_mb": 64,
    }
    try:
        rows, truncated, answer = sql_worker.answer(request)
    except sql_worker.Refused as refused:
        why, reason = refused.args
        assert why in ("invalid", "limit")
        assert reason
    else:
        assert rows <= 100
        if kind == "json":
            body = json.loads(answer)
            assert set(body) == {"columns", "rows", "truncated", "snapshot_at"}
            assert (len(body["rows"]), body["truncated"]) == (rows, truncated)
            assert all(len(row) == len(body["columns"]) for row in body["rows"])
    finally:
        sql_worker.disarm()
    assert _sum(path) == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["tables.duckdb"]


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
