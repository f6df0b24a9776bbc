"""The PostgreSQL servers that run on this machine, and whether `pgwarden witness` could look at each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.collectors.ebpf.server import ServerUnknown, postmaster, probed

SERVERS_MAX: Final = 16  # each binary's symbols are read


@dataclass(frozen=True, slots=True)
class Running:
    """One server, in whatever mount namespace."""

    pid: int
    data: str  # its directory, as it names it; "" where this process may not know
    major: int  # 0 where it cannot be probed
    reason: str  # why it cannot, and what to do
    stepped: tuple[str, ...]  # functions whose probe costs ten times as much as others


def servers() -> Sequence[Running]:
    return list(itertools.islice((_judged(pid) for pid in _postmasters()), SERVERS_MAX))


def _postmasters() -> Iterator[int]:
    """Every process that is called postgres, and whose parent is not."""
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
        parent = _parent(folder)
        if parent is not None and _name(folder) == "postgres" and _name(Path("/proc") / str(parent)) != "postgres":
            yield int(folder.name)


def _judged(pid: int) -> Running:
    cwd = Path(f"/proc/{pid}/cwd")  # the data directory, also that of a container
    data = ""
    try:
        data = str(cwd.readlink())
        found = probed(postmaster(cwd), nested=True, chunks=1)
    except ServerUnknown as unknown:
        return Running(pid, data, 0, str(unknown), ())
    except OSError as error:
        return Running(pid, data, 0, f"this user may not look at it ({error.strerror}): run pgwarden doctor as root", ())
    return Running(pid, data, found.major, "", found.stepped)


def _name(folder: Path) -> str:
    try:
        return (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _parent(folder: Path) -> int | None:
    """None where the process is gone."""
    try:
        stat = (folder / "stat").read_bytes()
        return int(stat[stat.rindex(b")") + 2 :].split()[1])  # proc(5), ppid
    except (OSError, ValueError, IndexError):
        return None
