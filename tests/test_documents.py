"""The documents that describe the house name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "ARCHITECTURE.md", REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FOLDERS = ("ingest", "identity", "gateway", "analytics", "dashboards", "pgwarden", "tests", "bench", "docs")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text)
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    missing += [name for name in linked if not (document.parent / name).exists()]
    assert missing == []
