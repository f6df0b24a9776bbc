"""A cgroup's number -> its path: the number is the inode of its folder in the v2 hierarchy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FOLDERS_MAX: Final = 20_000  # looked at in one search
KNOWN_MAX: Final = 10_000


class Cgroups:
    """Remembers what it found, and what it did not."""

    def __init__(self) -> None:
        self._root = _root()
        self._paths: dict[int, str] = {}

    def path(self, number: int) -> str:
        """ "" where it is gone, or cannot be seen from here."""
        if self._root is None or not number:
            return ""
        if number not in self._paths:
            if len(self._paths) >= KNOWN_MAX:
                self._paths.clear()
            self._search(self._root)
            self._paths.setdefault(number, "")
        return self._paths[number]

    def _search(self, root: Path) -> None:
        for seen, (folder, _, _) in enumerate(os.walk(root)):
            if seen >= FOLDERS_MAX or len(self._paths) >= KNOWN_MAX:
                return
            try:
                inode = os.stat(folder).st_ino
            except OSError:  # it ended meanwhile
                continue
            self._paths[inode] = "/" + os.path.relpath(folder, root) if folder != str(root) else "/"


def _root() -> Path | None:
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((Path(line.split()[1]) for line in mounts.splitlines() if line.split()[2:3] == ["cgroup2"]), None)
