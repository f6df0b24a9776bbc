"""Small files: a path and a limit -> the bytes, or why there are none; and files that nobody else may ever read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True, slots=True)
class Content:
    data: bytes
    mode: int  # permission bits


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str  # goes after the file's name: "which cannot be read: permission denied"
    missing: bool = False


def content(path: Path, bytes_max: int) -> Content | Unreadable:
    """Never waits: a FIFO, a device and a folder are refused."""
    try:
        # Not to wait for a writer when the path is a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Unreadable(f"which cannot be read: {reason_of(error)}", isinstance(error, FileNotFoundError))
    except ValueError:
        return Unreadable("which cannot be read: the path holds a zero byte")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Unreadable("which is not a regular file")
        data = b""
        while len(data) <= bytes_max and (more := os.read(descriptor, bytes_max + 1 - len(data))):
            data += more
    except OSError as error:
        return Unreadable(f"which cannot be read: {reason_of(error)}")
    finally:
        os.close(descriptor)
    if len(data) > bytes_max:
        return Unreadable(f"which is larger than {bytes_max} bytes")
    return Content(data, stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of that at `path` when all went well. Only its owner can read it. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_private(path: Path, text: str) -> None:
    """Replace a file, all or nothing, by one that only its owner can read at every moment of its life. Raises OSError."""
    write_private_bytes(path, text.encode())


def write_private_bytes(path: Path, data: bytes) -> None:
    """As write_private()."""
    with private_file(path) as out:
        out.write(data)


def reason_of(error: OSError) -> str:
    """The operating system's words, without the path that we print ourselves."""
    return (error.strerror or type(error).__name__).lower()
