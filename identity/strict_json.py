"""In come bytes that a peer wrote; out comes one JSON object, frozen, or why it is none that two readers would read alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from identity.refusal import Refusal

Json: TypeAlias = "bool | int | float | str | tuple[Json, ...] | Mapping[str, Json] | None"
Object: TypeAlias = Mapping[str, Json]

DEPTH_MAX: Final = 32  # Kubernetes nests 3 deep, an `act` chain of 8 nests 9


class _Ambiguous(ValueError):
    pass


def json_object(data: bytes) -> Object | Refusal:
    """Refuses what RFC 8259 leaves to the reader: a member named twice, NaN, lone surrogates, and anything but UTF-8.

    A refusal's reason ends a sentence that begins with "The document is".
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_constant)
        if not isinstance(value, dict):
            return Refusal("not a JSON object")
        return MappingProxyType({name: _frozen(member, 1) for name, member in value.items()})
    except _Ambiguous as ambiguous:
        return Refusal(str(ambiguous))
    except (
        ValueError,
        RecursionError,
    ):  # UnicodeDecodeError, JSONDecodeError, an integer of over 4300 digits, nesting beyond Python's
        return Refusal("not well-formed JSON")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # RFC 7519 §4: names must be unique. The issuer's library and ours could each take a different one.
        raise _Ambiguous("JSON in which a member is named twice")
    for name in members:
        name.encode("utf-8")
    return members


def _constant(_: str) -> object:
    raise _Ambiguous("JSON with NaN or Infinity, which are none")


def _frozen(value: object, depth: int) -> Json:
    if depth > DEPTH_MAX:
        raise _Ambiguous(f"JSON nested deeper than {DEPTH_MAX}")
    if isinstance(value, dict):
        return MappingProxyType({name: _frozen(member, depth + 1) for name, member in value.items()})
    if isinstance(value, list):
        return tuple(_frozen(item, depth + 1) for item in value)
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate would fail later, in the record
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"json.loads made a {type(value).__name__}")
