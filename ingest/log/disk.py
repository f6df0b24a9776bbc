"""Every way in which the log changes the disk, so that a test can make any of them fail."""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """Each method raises OSError."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def pwrite(self, fd: int, data: bytes | memoryview, place: int) -> int:
        return os.pwrite(fd, data, place)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path, 0o700)

    def rename(self, path: Path, to: Path) -> None:
        os.rename(path, to)

    def unlink(self, path: Path) -> None:
        os.unlink(path)


def make_folders(disk: Disk, folder: Path) -> None:
    """Return once the folder and those above it would survive a crash of this machine. Raises OSError."""
    for one in (*reversed(folder.parents), folder):
        if not one.exists():
            disk.mkdir(one)
            sync_folder(disk, one.parent)


def sync_folder(disk: Disk, folder: Path) -> None:
    """Make durable which files it has. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.fsync(fd)
    finally:
        os.close(fd)


def replace(disk: Disk, path: Path, data: bytes) -> None:
    """Return once a crash of this machine would leave `data` there, and not before it what stood there or `data`, whole.

    Nobody else may replace the same file meanwhile. Raises OSError: it may or may not be done.
    """
    fresh = path.with_name(path.name + ".new")
    fd = disk.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        place = 0
        while place < len(data):
            place += disk.pwrite(fd, data[place:], place)
        disk.fsync(fd)
    finally:
        os.close(fd)
    disk.rename(fresh, path)
    sync_folder(disk, path.parent)
