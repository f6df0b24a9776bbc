"""Where a group of readers stands in a log of segments: one small file a group, `<log>/groups/<group>`, and who may move it.

A line a partition: topic, number, the next offset that the group has not done. A lock on `<group>.lock` beside it belongs to the
one member that has the partitions; the kernel takes it back when that member's process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ingest.log import LogCorrupt, LogUnavailable, Partition
from ingest.log.disk import Disk, make_folders, replace

FOLDER: Final = "groups"


class GroupOffsets:
    """Of one member. Calls may come from several threads."""

    def __init__(self, directory: Path, group: str, disk: Disk) -> None:
        """`group` becomes a file's name: the caller has looked at it."""
        self._path = directory / FOLDER / group
        self._disk = disk
        self._mutex = threading.Lock()
        self._lock = -1  # the file descriptor that holds it
        self._closed = False

    def hold(self) -> bool:
        """Take the group's place if nobody has it; True when it is this member's.

        Raises:
            LogUnavailable: The disk says no.
        """
        with self._mutex:
            if self._lock >= 0 or self._closed:
                return not self._closed
            try:
                make_folders(self._disk, self._path.parent)
                fd = self._disk.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise LogUnavailable(f"{self._path}: {error.strerror or error}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return False
                raise LogUnavailable(f"{self._path}: {error.strerror or error}") from error
            self._lock = fd
            return True

    @property
    def held(self) -> bool:
        return self._lock >= 0

    def read(self) -> dict[Partition, int]:
        """What was committed last, by whichever member.

        Raises:
            LogCorrupt: The file is not one that a member wrote.
            LogUnavailable: The disk says no.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LogUnavailable(f"{self._path}: {error.strerror or error}") from error
        found: dict[Partition, int] = {}
        for line in lines:
            topic, _, rest = line.decode("ascii", "replace").partition(" ")
            number, _, offset = rest.partition(" ")
            if not (number.isdigit() and offset.isdigit()):
                raise LogCorrupt(f"{self._path}: {line!r} is no topic, partition and offset")
            found[(topic, int(number))] = int(offset)
        return found

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Blocks until it is on disk.

        Raises:
            LogUnavailable: It may or may not be; or this member has not got the group's place.
            LogCorrupt: As read().
        """
        with self._mutex:
            if self._lock < 0:
                raise LogUnavailable(f"{self._path}: another member of the group has the partitions")
            stored = {**self.read(), **offsets}
            lines = [f"{topic} {number} {offset}\n" for (topic, number), offset in sorted(stored.items())]
            try:
                replace(self._disk, self._path, "".join(lines).encode())
            except OSError as error:
                raise LogUnavailable(f"{self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1
