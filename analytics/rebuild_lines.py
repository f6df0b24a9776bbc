"""What a rebuild and its workers say to each other: MessagePack behind its length."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

LENGTH: Final = struct.Struct("!I")

Raw: TypeAlias = tuple[str, int, int, int, bytes]
"""Topic, partition, offset, at_us and value of a record: its key says nothing that the frame does not."""


class Task(msgspec.Struct, frozen=True, array_like=True):
    folder: str  # for the files; it exists
    number: int  # of this task among all, in the order of the log
    records: Sequence[Raw]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What names a frame."""

    writer: str
    boot: int
    seq: int
    step: int
    events: int


class Staged(msgspec.Struct, frozen=True, array_like=True):
    heads: Sequence[Head]  # one a record
    files: Mapping[str, str]  # stage -> Parquet file
    invalid: str = ""  # the record behind those of `heads` is not a frame, for this reason
