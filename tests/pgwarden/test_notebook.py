"""The notebooks run, cell after cell, against a running API and a snapshot that it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pgwarden.test_api_process import ALICE, CONFIG, running, write_key

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first-look.ipynb"


def cells(kind: str) -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind
    ]


@pytest.mark.slow
def test_every_cell_runs_and_prints_what_it_is_there_for(tmp_path: Path, free_port: int, wait_for: Callable[..., object]) -> None:
    (tmp_path / "pgwarden.toml").write_text(CONFIG, encoding="utf-8")
    write_key(tmp_path)
    with running(tmp_path, free_port) as api:
        wait_for(lambda: api.get("/v1/grants?agent=reporter").json()["items"])
        snapshot = api.post("/v1/snapshots").json()["path"]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "\n\n".join(cells("code"))],
            env={**os.environ, "PGWARDEN_SNAPSHOT": snapshot, "PGWARDEN_API": api.url, "PGWARDEN_OPERATOR_KEY": ALICE},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "the record as of 2" in done.stdout
    assert "reporter             finance         active" in done.stdout
    assert "reporter may select public.orders, and never did" in done.stdout
    assert "registered_at: timestamp[us, tz=UTC]" in done.stdout


def test_it_is_kept_without_outputs_and_holds_no_key() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"] == [[]] * len(cells("code"))
    assert "pgwop_" not in NOTEBOOK.read_text(encoding="utf-8")
