"""What was recorded once must be readable for ever.

golden_frames.txt holds one frame an event class: its name, its bytes in hexadecimal, and what they mean as JSON. Lines are only
ever added. Those of the classes that have none are printed by

    PYTHONPATH=. python tests/ingest/test_events.py >> tests/ingest/golden_frames.txt
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from ingest.events import TOPICS, Event, Frame, Stamp
from ingest.frames import TOPIC_OF, VERSION, decode, encode

GOLDEN = Path(__file__).with_name("golden_frames.txt")
CLASSES: list[type[msgspec.Struct]] = list(get_args(Event))


def specimen(kind: Any, name: str, salt: int) -> Any:
    """A value of this type, another one for every field."""
    origin = typing.get_origin(kind)
    if origin is tuple and get_args(kind)[-1] is not Ellipsis:
        return tuple(specimen(part, name, salt + n) for n, part in enumerate(get_args(kind)))
    if origin is tuple:
        return (specimen(get_args(kind)[0], name, salt), specimen(get_args(kind)[0], name + "'", salt + 1))
    if origin is typing.Literal:
        return get_args(kind)[salt % len(get_args(kind))]
    if origin in (typing.Union, types.UnionType):
        return None if name.endswith("'") else specimen(get_args(kind)[0], name, salt)
    if kind is bool:
        return True
    if kind is int:
        return [0, 127, 65_536, 1_763_800_000_000_000 + salt][salt % 4]
    if kind is float:
        return salt + 0.5
    if kind is str:
        return f"{name} ä{salt}"
    if issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{field: specimen(hints[field], field, salt + n) for n, field in enumerate(kind.__struct_fields__)})
    raise AssertionError(f"no specimen of {kind}")


def specimen_frame(kind: type[msgspec.Struct]) -> Frame:
    return Frame(VERSION, "gateway-1", 3, 41, (specimen(Stamp, "stamp", 1),), ((0, specimen(kind, kind.__name__, 2)),))


def golden() -> dict[str, tuple[bytes, Any]]:
    lines = [line.split(" ", 2) for line in GOLDEN.read_text().splitlines()] if GOLDEN.exists() else []
    return {name: (bytes.fromhex(data), json.loads(meaning)) for name, data, meaning in lines}


def begins_with(now: Any, then: Any) -> bool:
    """`now` says what `then` said; fields that were added later stand at the end."""
    if isinstance(then, list):
        return isinstance(now, list) and len(now) >= len(then) and all(map(begins_with, now, then))
    return type(now) is type(then) and now == then


@pytest.mark.parametrize("name", sorted(golden()))
def test_a_frame_recorded_once_is_read_for_ever(name: str) -> None:
    data, meaning = golden()[name]
    frame = decode(data)
    assert type(frame.events[0][1]).__name__ == name
    assert begins_with(json.loads(msgspec.json.encode(frame)), meaning)


def test_every_event_has_its_golden_frame() -> None:
    assert {kind.__name__ for kind in CLASSES} <= golden().keys(), f"print the missing ones: see {__file__}"


def test_no_event_that_was_recorded_is_gone() -> None:
    assert golden().keys() <= {kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_event_comes_back_as_it_went_in(kind: type[msgspec.Struct]) -> None:
    assert decode(encode(specimen_frame(kind))) == specimen_frame(kind)


def test_no_tag_names_two_events() -> None:
    tags = [kind.__struct_config__.tag for kind in CLASSES]
    assert len(set(tags)) == len(tags)
    assert all(type(tag) is int for tag in tags)


@pytest.mark.parametrize("kind", [*CLASSES, Stamp, Frame], ids=lambda kind: kind.__name__)
def test_a_fact_is_frozen_and_stored_by_position(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.array_like


def test_every_event_belongs_to_one_topic() -> None:
    assert set(TOPIC_OF) == set(CLASSES)
    assert set(TOPIC_OF.values()) == set(TOPICS)


if __name__ == "__main__":
    for missing in CLASSES:
        if missing.__name__ not in golden():
            sample = specimen_frame(missing)
            print(missing.__name__, encode(sample).hex(), msgspec.json.encode(sample).decode())
