"""`pgwarden witness`: two processes. The one attaches probes, and talks to nobody; the other talks, and may do nothing else.

docs/witness.md says what each keeps, and why.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from ingest.collectors.ebpf import libbpf, messages, privileges
from ingest.collectors.ebpf.attach import Probes, ProbeSettings
from ingest.collectors.ebpf.hand_over import HandOver, Maps
from ingest.collectors.ebpf.ring import Ring
from ingest.collectors.ebpf.server import ServerUnknown

WATCH_SECONDS: Final = 0.1  # between two looks whether the server is still the same process: what a restart may hide
KEPT: Final = frozenset(
    {
        privileges.CAP_SYS_ADMIN,  # perf_event_open of a uprobe: the kernel asks for this, not for CAP_PERFMON
        privileges.CAP_BPF,  # maps and programs
        privileges.CAP_PERFMON,  # programs that read memory
        privileges.CAP_SYS_PTRACE,  # /proc/PID/exe and cwd of another user's process
        privileges.CAP_DAC_READ_SEARCH,  # the server's data directory, to find its postmaster
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WitnessSettings:
    probes: ProbeSettings
    socket: Path  # its folder is root's alone to change
    client_uid: int  # who may read
    client_gid: int
    own_uid: int = 65534  # of the half that talks; nobody
    own_gid: int = 65534


@dataclass(slots=True)
class _State:
    seeing: bool = False
    reason: str = ""
    unseen: int = 0
    said: bytes = b""
    said_at: float = 0.0
    stop: bool = field(default=False)


def run(settings: WitnessSettings) -> int:
    """Exit status: 0 stopped as asked, 1 could not start or go on. Probes and ring stay, and the next one goes on with them."""
    missing = KEPT - privileges.held()
    if missing:
        names = ", ".join(sorted(_NAMES[number] for number in missing))
        print(f"pgwarden witness: it lacks {names}: run it as root, or as deploy/pgwarden-witness.service does", file=sys.stderr)
        return 1
    try:
        with contextlib.ExitStack() as closing:
            try:
                listener = _listen(settings, closing)
            except OSError as error:
                where, why = settings.socket, error.strerror or error
                print(
                    f"pgwarden witness: it cannot listen at {where} ({why}): mend that, or choose another --socket", file=sys.stderr
                )
                return 1
            probes = Probes(settings.probes)
            maps = _maps(probes)
            return _apart(settings, probes, maps, listener)
    except (OSError, libbpf.BpfRefused, ServerUnknown) as error:
        print(f"pgwarden witness: {error}", file=sys.stderr)
        return 1


def remove(settings: ProbeSettings) -> int:
    """Take the probes of that name away."""
    folder = settings.bpffs / "pgwarden" / settings.name
    if not folder.is_dir():
        print(f"pgwarden witness: nothing is pinned at {folder}", file=sys.stderr)
        return 1
    for build in folder.iterdir():
        for pin in build.iterdir():
            pin.unlink()
        build.rmdir()
    folder.rmdir()
    return 0


def _listen(settings: WitnessSettings, closing: contextlib.ExitStack) -> socket.socket:
    """Raises OSError."""
    path = settings.socket
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    closing.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError("another witness does, and would have to be stopped first") from error
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    closing.callback(listener.close)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(previous)
    os.chown(path, settings.client_uid, settings.client_gid)
    listener.listen(4)
    return listener


def _maps(probes: Probes) -> Maps:
    """Raises OSError."""
    settings = probes.settings
    page = mmap.PAGESIZE
    return Maps(
        Ring(probes.fds["ring"], settings.ring_bytes),
        Ring(probes.fds["spill"], settings.spill_bytes),
        mmap.mmap(probes.fds["counters"], page, mmap.MAP_SHARED, mmap.PROT_READ),
        mmap.mmap(probes.fds["made"], page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        probes.fds["announced"],
        settings.ring_bytes,
        settings.nested,
    )


def _apart(settings: WitnessSettings, probes: Probes, maps: Maps, listener: socket.socket) -> int:
    hears, says = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(says)
            for name, fd in probes.fds.items():
                if name != "announced":
                    os.close(fd)
            privileges.become(settings.own_uid, settings.own_gid)
            privileges.die_with(parent)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the other half's to translate
            HandOver(listener, hears, maps, settings.client_uid).run()
            status = 0
        except BaseException:
            _log.exception("the half that talks ends")
        finally:
            os._exit(status)
    os.close(hears)
    listener.close()
    privileges.keep(KEPT)
    try:
        return _watch(probes, says, child)
    finally:
        os.close(says)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _watch(probes: Probes, says: int, child: int) -> int:
    state = _State()

    def stop(number: int, frame: object) -> None:
        del number, frame
        state.stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if probes.replaced_ns:
        reason = "the program was replaced, and what its ring held was not read"
        _say_unseen(state, says, probes.replaced_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME), reason)
    while not state.stop:
        try:
            unseen = probes.look()
            if unseen is not None:
                _say_unseen(state, says, unseen.from_ns, unseen.until_ns, unseen.reason)
            state.seeing, state.reason = True, ""
        except (ServerUnknown, libbpf.BpfRefused, OSError) as error:
            if str(error) != state.reason:
                _log.warning("%s", error)
            state.seeing, state.reason = False, str(error)
        _say(state, probes, says)
        if os.waitpid(child, os.WNOHANG)[0]:
            _log.error("the half that talks has ended")
            return 1
        time.sleep(WATCH_SECONDS)
    return 0


def _say(state: _State, probes: Probes, says: int) -> None:
    server = probes.server
    said = msgspec.json.encode(
        messages.Status(
            state.seeing, state.reason, probes.major, server.pid if server else 0, probes.verified, probes.stepped, 0, 0, 0, 0, 0
        )
    )
    if said != state.said or time.monotonic() - state.said_at > 1.0:
        state.said, state.said_at = said, time.monotonic()
        _write(says, said)


def _say_unseen(state: _State, says: int, from_ns: int, until_ns: int, reason: str) -> None:
    state.unseen += 1
    # Numbers rise over restarts too: a client lets go by number.
    number = time.time_ns() // 1000 + state.unseen
    _write(says, msgspec.json.encode(messages.Unseen(number, from_ns, until_ns, reason)))


def _write(says: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the child is gone: the loop finds that out
        os.write(says, line + b"\n")


_NAMES: Final = {
    privileges.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
    privileges.CAP_BPF: "CAP_BPF",
    privileges.CAP_PERFMON: "CAP_PERFMON",
    privileges.CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
    privileges.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
}
