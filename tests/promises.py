"""Checks docs/assurance.md: every promise names a test or a benchmark, and each one that is named exists. Part of `make check`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BOOK = REPOSITORY / "docs" / "assurance.md"
_NAMED = re.compile(r"`((?:tests|bench)/[\w/]+\.py)(?:::(\w+))?`")


def problems(text: str) -> list[str]:
    """What is wrong with the book, a line each; none: all is well."""
    found: list[str] = []
    rows = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|") or set(line) <= set("|- "):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "promise":
            continue
        rows += 1
        where = f"docs/assurance.md:{number}"
        if len(cells) != 3 or not all(cells):
            found.append(f"{where}: a row has a promise, what would fail, and the last figure")
            continue
        named = _NAMED.findall(cells[1])
        if not named:
            found.append(f"{where}: no test or benchmark is named")
        for path, test in named:
            if not (REPOSITORY / path).exists():
                found.append(f"{where}: {path} does not exist")
            elif test and test not in _names(REPOSITORY / path):
                found.append(f"{where}: {path} has no {test}")
    if rows < 10:
        found.append("docs/assurance.md: hardly any promise is left")
    return found


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


if __name__ == "__main__":
    wrong = problems(BOOK.read_text(encoding="utf-8"))
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    sys.exit(bool(wrong))
