"""One record of comma-separated values -> its fields, quoted as csvlog and pgaudit do: `""` within quotes is one quote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Final

_CHARACTERS_MAX: Final = 2**31 - 1  # csv's own limit for a field is 128 KiB, less than a statement may have


def csv_fields(record: str) -> Sequence[str]:
    """None at all where it is not such a record. It may hold line ends within quotes."""
    if csv.field_size_limit() < _CHARACTERS_MAX:
        csv.field_size_limit(_CHARACTERS_MAX)
    try:
        return next(csv.reader((record,), strict=True), ())
    except csv.Error:
        return ()
