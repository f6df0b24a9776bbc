"""Any text: where tomllib finds a document, `locate` finds exactly its places; elsewhere it ends with a ValueError or not at all."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator

from pgwarden.toml_lines import Place, locate


def one_input(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        with contextlib.suppress(ValueError, RecursionError):
            locate(text)
        return
    lines = locate(text)
    assert set(lines) == set(_places(values))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def _places(value: object, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _places(below, (*place, key))
    if isinstance(value, list):
        for index, below in enumerate(value):
            yield from _places(below, (*place, index))
