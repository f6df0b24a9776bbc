"""Holds the probes to one server: loads the program, attaches it to the binary that runs, and pins all of it.

What is pinned goes on without this process: the next one takes up the same ring. Layout below /sys/fs/bpf/pgwarden/NAME/BUILD:
`map-RING`, `kernel-PROGRAM`, and for each binary `probe-SLOT-DEVICE-INODE-PROGRAM`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.collectors.ebpf import layout, libbpf, versions
from ingest.collectors.ebpf.clocks import wall_us
from ingest.collectors.ebpf.server import Postmaster, Probed, ServerUnknown, postmaster, probed, title
from ingest.collectors.kernel import BPFFS, mounted

_ARCHITECTURES: Final = {"x86_64": "x86", "aarch64": "arm64"}
MAPS: Final = ("binaries", "postmasters", "ports", "sessions", "announced", "connecting", "ring", "spill", "counters", "made")
_KERNEL: Final = ("tcp_state", "process_exit")
_SLOTS: Final = 16
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    name: str  # of the pins
    data: Path  # the server's data directory
    nested: bool = False  # SQL of functions too
    text_chunks: int = 16  # of 4 KiB, of one text
    ring_bytes: int = 16 * 2**20  # a power of two; 80,000 statements of 40 bytes
    spill_bytes: int = 2**20  # a power of two; 26,000 headers
    bpffs: Path = BPFFS


@dataclass(frozen=True, slots=True)
class Unseen:
    """What happened on the server meanwhile was not seen."""

    from_ns: int
    until_ns: int
    reason: str


class Probes:
    """Of one server. Not for use by several threads."""

    def __init__(self, settings: ProbeSettings) -> None:
        """Load and pin, or take up what is pinned.

        Raises:
            libbpf.BpfRefused, OSError
        """
        self.settings = settings
        self.major = 0
        self.stepped: tuple[str, ...] = ()
        self.server: Postmaster | None = None
        self.verified = False  # a live backend's title agreed with what was read of its structures
        self._object: libbpf.Object | None = None
        mount(settings.bpffs)
        parent = settings.bpffs / "pgwarden" / settings.name
        self.folder = parent / _build(settings)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.resumed = all((self.folder / f"map-{name}").exists() for name in MAPS) and all(
            (self.folder / f"kernel-{name}").exists() for name in _KERNEL
        )
        if not self.resumed:
            _clear(self.folder)
            self._load({})
        self.replaced_ns = 0  # since when the records of another build, or of other settings, are not read; 0 = there were none
        for other in parent.iterdir():
            if other != self.folder:
                with contextlib.suppress(libbpf.BpfRefused):
                    self.replaced_ns = _recorded_ns(other)
                _clear(other)
                other.rmdir()
        self.fds = {name: libbpf.open_pin(self.folder / f"map-{name}") for name in MAPS}

    def look(self) -> Unseen | None:
        """See whether the same server still runs, and attach to it where it does not. Call it every 100 ms or so.

        Raises:
            ServerUnknown, libbpf.BpfRefused: Nothing new is seen until it returns again.
        """
        if self.server is not None and _same(self.server):
            self._verify()
            return None
        server = postmaster(self.settings.data)
        known = _U32.pack(server.pid)
        took_up = libbpf.lookup(self.fds["postmasters"], known, 4) == _U32.pack(_start_mark(server))
        found = probed(server, nested=self.settings.nested, chunks=self.settings.text_chunks)
        self._attach(server, found)
        if not took_up:
            for old in libbpf.keys(self.fds["postmasters"], 4, 64):
                libbpf.delete(self.fds["postmasters"], old)
            libbpf.update(self.fds["postmasters"], known, _U32.pack(_start_mark(server)))
        for old_port in libbpf.keys(self.fds["ports"], 2, 64):
            if old_port != struct.pack("<H", server.port):
                libbpf.delete(self.fds["ports"], old_port)
        libbpf.update(self.fds["ports"], struct.pack("<H", server.port), _U32.pack(1))
        before, self.server = self.server, server
        self.major, self.stepped, self.verified = found.major, found.stepped, False
        if took_up or (before is None and not self.resumed):
            return None  # it was seen all the time; or nobody looked before, and nobody says otherwise
        return Unseen(
            server.start_ns,
            time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "the server was started anew; what it ran before its probes were attached was not seen",
        )

    def remove(self) -> None:
        """Take all of it away: the server runs without probes again."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}
        _clear(self.folder)
        self.folder.rmdir()
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    # -- attaching -----------------------------------------------------------------------------------------------------------------

    def _load(self, pinned: dict[str, Path]) -> libbpf.Object:
        sizes = {"ring": self.settings.ring_bytes, "spill": self.settings.spill_bytes}
        loaded = libbpf.Object(object_file(), sizes if not pinned else {}, pinned)
        if not pinned:
            for name in MAPS:
                loaded.pin_map(name, self.folder / f"map-{name}")
            now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            libbpf.update(loaded.map_fd("made"), _U32.pack(0), struct.pack("<Q", now))
            libbpf.update(loaded.map_fd("made"), _U32.pack(2), struct.pack("<q", wall_us(0)))
            for name in _KERNEL:
                loaded.attach(name, self.folder / f"kernel-{name}")
        self._object = loaded
        return loaded

    def _attach(self, server: Postmaster, found: Probed) -> None:
        mark = f"{server.device:x}-{server.inode:x}"
        attached: dict[str, set[str]] = {}
        for pin in self.folder.glob("probe-*"):
            _, slot, device, inode, program = pin.name.split("-")
            attached.setdefault(f"{slot}-{device}-{inode}", set()).add(program)
        ours = next((name for name, programs in attached.items() if name.endswith(f"-{mark}") and programs == set(found.sites)), "")
        if not ours:
            taken = {int(name.split("-")[0]) for name in attached}
            free = next(number for number in range(_SLOTS) if number not in taken)
            ours = f"{free}-{mark}"
            libbpf.update(self.fds["binaries"], _U32.pack(free), found.binary)
            loaded = self._object or self._load({name: self.folder / f"map-{name}" for name in MAPS})
            try:
                for program, offset in found.sites.items():
                    loaded.attach_uprobe(program, server.exe, offset, free, self.folder / f"probe-{ours}-{program}")
            except libbpf.BpfRefused:
                _clear(self.folder, f"probe-{ours}-*")
                raise
        for name in attached:
            if name != ours:
                _clear(self.folder, f"probe-{name}-*")

    def _verify(self) -> None:
        """Hold what was read of a live backend against its title, once for each binary.

        Raises:
            ServerUnknown: They differ: the structures are not those of this version's headers.
        """
        if self.verified:
            return
        for key in libbpf.keys(self.fds["announced"], layout.NAME.size, 64):
            record = libbpf.lookup(self.fds["announced"], key, layout.SESSION_BYTES)
            if record is None:
                continue
            _, _, server, _, database, user, _ = layout.SESSION_TAIL.unpack_from(record, layout.SESSION_TAIL_AT)
            said = title(layout.NAME.unpack(key)[1])
            if not said.startswith("postgres: ") or self.server is None or server != self.server.pid:
                continue  # gone, or of an earlier server
            if not versions.agrees(said, _name(user), _name(database)):
                what = f"a backend calls itself {said!r}, and its structures say otherwise"
                raise ServerUnknown(f"{what}: this build is not as PostgreSQL {self.major} is; use the log's collector")
            self.verified = True
            return


def mount(bpffs: Path) -> None:
    """See that there is a BPF file system.

    Raises:
        OSError: There is none, and none can be mounted.
    """
    if _is_bpffs(bpffs):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(bpffs), b"bpf", 0, b"mode=0700"):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: mount it yourself: mount -t bpf none {bpffs}", str(bpffs))


def _is_bpffs(path: Path) -> bool:
    try:
        return mounted(path, Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False


def object_file() -> Path:
    """The program for this machine.

    Raises:
        libbpf.BpfRefused: There is none.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise libbpf.BpfRefused(f"there is no program for {machine}; there is for {' and '.join(_ARCHITECTURES)}")
    path = Path(__file__).with_name(f"witness.{_ARCHITECTURES[machine]}.bpf.o")
    if not path.exists():
        raise libbpf.BpfRefused(f"{path.name} is not installed: in a checkout, run make bpf; a wheel brings it")
    return path


def _build(settings: ProbeSettings) -> str:
    """Of what must be the same for a ring to be read on."""
    said = f"{settings.nested}/{settings.text_chunks}/{settings.ring_bytes}/{settings.spill_bytes}"
    return hashlib.sha256(object_file().read_bytes() + said.encode()).hexdigest()[:16]


def _recorded_ns(folder: Path) -> int:
    """Up to when what the ring there brought is recorded; when it was made, where nothing is. Raises libbpf.BpfRefused."""
    fd = libbpf.open_pin(folder / "map-made")
    try:
        made, recorded = (libbpf.lookup(fd, _U32.pack(number), 8) or bytes(8) for number in range(2))
    finally:
        os.close(fd)
    return int.from_bytes(recorded, "little") or int.from_bytes(made, "little")


def _same(server: Postmaster) -> bool:
    """Cheap: whether that very process still runs that very binary. A server that was started anew is another process."""
    try:
        exe = os.stat(f"/proc/{server.pid}/exe")
        return (exe.st_dev, exe.st_ino) == (server.device, server.inode) and os.path.samefile(
            f"/proc/{server.pid}/cwd", server.data
        )
    except OSError:
        return False


def _start_mark(server: Postmaster) -> int:
    """Tells a postmaster from a later one of the same number."""
    return server.start_ns // 10_000_000 & 0xFFFFFFFF


def _clear(folder: Path, pattern: str = "*") -> None:
    for pin in folder.glob(pattern):
        pin.unlink(missing_ok=True)


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
