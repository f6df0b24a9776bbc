"""A step's state and its place in the log, in one file that is replaced whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ingest.log import Partition

MAGIC: Final = b"pgwarden inspection 1\n"
DIGEST_BYTES: Final = 32  # SHA-256 of what follows it: a torn or changed file is seen


@dataclass(frozen=True, slots=True)
class Checkpoint:
    version: int  # of the step
    offsets: dict[Partition, int]  # the next record of each
    seen: dict[tuple[str, str, int], tuple[int, int]]  # as in ingest.follow
    state: bytes


def write(path: str, checkpoint: Checkpoint) -> None:
    """Return once the file is on disk.

    Raises:
        OSError: The older file stands.
    """
    body = msgspec.msgpack.encode(
        (checkpoint.version, list(checkpoint.offsets.items()), list(checkpoint.seen.items()), checkpoint.state)
    )
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = f"{path}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(beside, path)
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def read(path: str) -> Checkpoint | str:
    """What was written last, or why there is none: "" when there never was."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    body = data[len(MAGIC) + DIGEST_BYTES :]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) :][:DIGEST_BYTES]:
        return f"{path} is broken"
    try:
        version, offsets, seen, state = msgspec.msgpack.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"{path} is not what this program writes"
    return Checkpoint(version, dict(offsets), dict(seen), state)


_Body = tuple[int, list[tuple[Partition, int]], list[tuple[tuple[str, str, int], tuple[int, int]]], bytes]
