"""The check of the promise book finds what it should find."""

from __future__ import annotations

import pytest

from tests.promises import BOOK, problems

GOOD = "| promise | fails | figure |\n|---|---|---|\n" + "| a | `tests/promises.py::problems` | yes |\n" * 10


def test_the_book_names_tests_that_exist() -> None:
    assert problems(BOOK.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("| a | `tests/nowhere.py` | yes |", "does not exist"),
        ("| a | `tests/promises.py::nobody` | yes |", "has no nobody"),
        ("| a | somebody looked | yes |", "no test or benchmark"),
        ("| a | `tests/promises.py` | |", "a row has"),
    ],
)
def test_a_row_without_a_test_that_exists_is_found(row: str, expected: str) -> None:
    assert problems(GOOD) == []
    (problem,) = problems(f"{GOOD}{row}\n")
    assert expected in problem
