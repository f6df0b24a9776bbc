"""The files of a server's log, followed: each byte once, in order, whatever their names become. The I/O of the log collector.

A file is known by device and inode, so a rename changes nothing. Whole records are handed out, and the checkpoint names the end
of whole records: a crash repeats at worst. A file that was truncated under us, or written over, has lost what nobody can name; that
is told, never mended: PostgreSQL rotates its own log, and needs no copytruncate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from ingest.collectors.log_lines import BEGIN_BYTES, Format, cut, last_begin, resume
from ingest.collectors.log_sessions import Kept, Place
from ingest.collectors.settings import LogSettings

_log: Final = logging.getLogger(__name__)

HEAD_BYTES: Final = 256
_PACKED: Final = (".gz", ".bz2", ".xz", ".zst", ".lz4")
Inode: TypeAlias = tuple[int, int]  # device, number


class FileCheckpoint(msgspec.Struct, frozen=True):
    device: int
    inode: int
    offset: int  # up to here all is recorded
    head_bytes: int
    head_sha256: str  # of its first bytes: an inode may be given to another file
    done: bool  # it was rotated away, and read to its end: it may be gone


class Checkpoint(msgspec.Struct, frozen=True):
    """`<state>/collectors/NAME.checkpoint`. What a collector's next start begins with."""

    at_us: int
    complete_us: int
    complete_since_us: int
    files: tuple[FileCheckpoint, ...]
    sessions: dict[str, Kept]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What cannot be as it should. `lost` where something surely was not seen; `for_good` where only a person can mend it."""

    reason: str
    lost: bool
    for_good: bool


@dataclass(slots=True)
class _File:
    number: int
    inode: Inode
    path: Path
    offset: int = 0
    head: bytes = b""
    descriptor: int = -1
    size: int = 0
    skip: bool = False  # in the middle of a record that is too long
    quiet_since: float = 0.0  # monotonic; 0 = it is the newest, or has news


@dataclass(slots=True)
class LogFiles:
    """One server's. Not for several callers at once; `close` it. Blocks for a read of the page cache at a time."""

    folder: Path
    pattern: str
    kind: Format
    settings: LogSettings
    from_start: bool = False  # whether what is there at the first start is read; else only what comes
    checkpoint: Checkpoint | None = None
    troubles: list[Trouble] = field(default_factory=list)  # whoever reads takes them, and empties it
    unreadable: str = ""  # why the folder or a file cannot be read, and what to do; "" while they can
    _files: dict[Inode, _File] = field(default_factory=dict)
    _expected: dict[Inode, FileCheckpoint] = field(default_factory=dict)
    _numbers: int = 0
    _looked: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            self._expected = {(file.device, file.inode): file for file in self.checkpoint.files}

    def read(self, now: float) -> Iterator[tuple[Sequence[bytes], Sequence[Place]]]:
        """What is new, oldest first, a piece at a time: records and the place of each. `now` is monotonic.

        At its end all that was written before the call has been handed out, unless `unreadable` says otherwise.
        """
        self._look()
        files = sorted(self._files.values(), key=lambda file: (file.head[:48] or b"~", file.number))
        for file in files:
            if file.descriptor < 0 and file.size <= file.offset:
                continue
            yield from self._read(file)
            is_newest = file is files[-1]
            if is_newest or file.size > file.offset:
                file.quiet_since = 0.0
            elif not file.quiet_since:
                file.quiet_since = now
            elif now - file.quiet_since > self.settings.idle_seconds:
                _close(file)

    def offsets(self, unfinished: Mapping[int, int]) -> tuple[FileCheckpoint, ...]:
        """For a checkpoint. `unfinished`: of a file by its number, where something stands that must be read again."""
        newest = max(self._files.values(), key=lambda file: (file.head[:48], file.number), default=None)
        return tuple(
            FileCheckpoint(
                *file.inode,
                offset=min(file.offset, unfinished.get(file.number, file.offset)),
                head_bytes=len(file.head),
                head_sha256=sha256(file.head).hexdigest(),
                done=file is not newest and file.offset >= file.size and file.number not in unfinished,
            )
            for file in self._files.values()
        )

    def close(self) -> None:
        for file in self._files.values():
            _close(file)

    # -- which files there are -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        found: dict[Inode, tuple[Path, int]] = {}
        self.unreadable = ""
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    self._consider(entry, found)
        except OSError as error:
            self.unreadable = f"{self.folder} cannot be read ({error.strerror}): give this process's user the right to read it"
            return
        if not found and not self._files:
            self.unreadable = (
                f"{self.folder} holds no file {self.pattern}: is logging_collector on, and log_destination '{self.kind}'?"
            )
        for inode, (path, size) in found.items():
            if (known := self._files.get(inode)) is not None:
                known.path, known.size = path, size
                if known.descriptor < 0 and size != known.offset:
                    self._reopen(known)
            else:
                self._open(inode, path, size)
        for inode, file in list(self._files.items()):
            if inode not in found and (file.descriptor < 0 or self._is_removed(file)):
                _close(file)
                del self._files[inode]
        if not self._looked:
            self._looked = True
            for gone in self._expected.values():
                if not gone.done:
                    self.troubles.append(
                        Trouble(
                            "a log file is gone that was not read to its end: keep log files until they have been read", True, False
                        )
                    )
            self._expected = {}

    def _consider(self, entry: os.DirEntry[str], found: dict[Inode, tuple[Path, int]]) -> None:
        if len(found) >= self.settings.files_max or entry.name.endswith(_PACKED):
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # it was removed between the two calls
            return
        inode = (status.st_dev, status.st_ino)
        # A rotated file keeps its name and gets more: postgresql.json.1
        fits = fnmatchcase(entry.name, self.pattern) or fnmatchcase(entry.name, f"{self.pattern}[.-]*")
        if stat.S_ISREG(status.st_mode) and (fits or inode in self._files or inode in self._expected):
            found[inode] = (Path(entry.path), status.st_size)

    def _open(self, inode: Inode, path: Path, size: int) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            self.unreadable = (
                f"{path} cannot be read ({error.strerror}): set log_file_mode = '0640', and give this process its group"
            )
            return
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != inode or not stat.S_ISREG(status.st_mode):
            os.close(descriptor)  # another one has the name by now; the next look finds both
            return
        self._numbers += 1
        file = _File(self._numbers, inode, path, descriptor=descriptor, size=size, head=os.pread(descriptor, HEAD_BYTES, 0))
        before = self._expected.pop(inode, None)
        if (
            before is not None
            and sha256(file.head[: before.head_bytes]).hexdigest() == before.head_sha256
            and size >= before.offset
        ):
            file.offset = before.offset
        elif before is not None and not before.done:
            self._refuse(file)
        elif before is None and self._copy_of(file) is not None:
            self._refuse(file)
            file.offset = size
        elif before is None and not self._looked and self.checkpoint is None and not self.from_start:
            self._begin_at_the_end(file, size)
        self._files[inode] = file

    def _copy_of(self, file: _File) -> _File | None:
        """A file with the same beginning is a copy, as copytruncate makes it: it has been read, or is lost with the original."""
        if len(file.head) < HEAD_BYTES:
            return None
        return next((other for other in self._files.values() if other.head == file.head), None)

    def _begin_at_the_end(self, file: _File, size: int) -> None:
        back = min(size, self.settings.read_bytes)
        tail = os.pread(file.descriptor, back, size - back)
        file.offset = size - back + last_begin(self.kind, tail)

    def _reopen(self, file: _File) -> None:
        """It was closed as read, and is another size now: it grew, or its inode is another file's."""
        try:
            file.descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        if os.pread(file.descriptor, len(file.head), 0) != file.head:  # it was done with: nothing is lost
            file.offset = 0
            file.head = os.pread(file.descriptor, HEAD_BYTES, 0)

    def _is_removed(self, file: _File) -> bool:
        """Without a name, and nothing left to read. While the server writes it still, it goes on."""
        status = os.fstat(file.descriptor)
        file.size = status.st_size
        return status.st_nlink == 0 and file.offset >= status.st_size

    def _refuse(self, file: _File) -> None:
        reason = (
            f"{file.path} was truncated or written over while it was read (copytruncate): what stood there may be lost."
            " Let PostgreSQL rotate its log (log_rotation_age, log_rotation_size, log_truncate_on_rotation = off)"
        )
        self.troubles.append(Trouble(reason, lost=True, for_good=True))

    # -- what stands in one ----------------------------------------------------------------------------------------------------

    def _read(self, file: _File) -> Iterator[tuple[Sequence[bytes], Sequence[Place]]]:
        if file.descriptor < 0:
            return
        file.size = os.fstat(file.descriptor).st_size
        if file.size < file.offset or os.pread(file.descriptor, len(file.head), 0) != file.head:
            self._refuse(file)
            file.offset = 0
            file.head = b""
            file.skip = False
        until = file.size
        want = self.settings.read_bytes
        while file.offset < until:
            data = os.pread(file.descriptor, want, file.offset)
            if not data:
                return
            if len(file.head) < HEAD_BYTES:
                file.head = os.pread(file.descriptor, HEAD_BYTES, 0)
            if file.skip:
                if not self._skip(file, data):
                    return
                continue
            records, taken = cut(self.kind, data)
            if not taken:
                if len(data) < want:
                    return  # a record that is still being written
                if want < self.settings.record_bytes_max:
                    want = min(want * 4, self.settings.record_bytes_max)
                    continue
                self.troubles.append(
                    Trouble(f"a record is longer than {self.settings.record_bytes_max} bytes, and was passed over", True, False)
                )
                file.skip = True
                continue
            want = self.settings.read_bytes
            places = []
            at = file.offset
            for record in records:
                places.append((file.number, at))
                at += len(record) + 1
            yield records, places
            file.offset += taken

    def _skip(self, file: _File, data: bytes) -> bool:
        """Pass over the rest of a record, up to where one begins. False where more must be written first."""
        begin = resume(self.kind, data)
        if begin >= 0:
            file.offset += begin
            file.skip = False
            return True
        end = data.rfind(b"\n")
        # A record may begin right behind the last line's end, and not be here yet.
        passed = end if end >= 0 and len(data) - end <= BEGIN_BYTES else len(data) - 1
        file.offset += passed
        return passed > 0


def _close(file: _File) -> None:
    if file.descriptor >= 0:
        os.close(file.descriptor)
        file.descriptor = -1


# -- the checkpoint ----------------------------------------------------------------------------------------------------------------


def load(path: Path) -> Checkpoint | None:
    """None where there is none, or none that can be understood, which is logged: then looking begins anew.

    Raises:
        OSError
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        _log.warning(
            "%s cannot be understood (%s): the log is read anew, and what was not recorded before may be missing", path, error
        )
        return None


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Old or new stands there after a crash, never half of one.

    Raises:
        OSError
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(msgspec.json.encode(checkpoint))
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        os.fsync(folder)
    os.close(folder)
