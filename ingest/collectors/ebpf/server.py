"""The server that is looked at, as the machine shows it: its postmaster, its binary, its backends' titles."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from ingest.collectors.ebpf import elf, layout, sites, versions

_TICKS: int = os.sysconf("SC_CLK_TCK")


class ServerUnknown(Exception):
    """There is nothing to probe, or nothing that could be: says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Postmaster:
    pid: int
    start_ns: int  # CLOCK_BOOTTIME, in hundredths of a second
    port: int
    device: int  # of its binary
    inode: int
    data: Path

    @property
    def exe(self) -> Path:
        """The binary that runs, whatever stands at its path by now, and in whatever mount namespace."""
        return Path(f"/proc/{self.pid}/exe")


@dataclass(frozen=True, slots=True)
class Probed:
    """What is probed in one binary."""

    major: int
    offsets: versions.Offsets
    sites: dict[str, int]  # program -> file offset
    binary: bytes  # for the program's map of binaries
    stepped: tuple[str, ...]  # functions whose probe is single-stepped


def postmaster(data: Path) -> Postmaster:
    """
    Raises:
        ServerUnknown: None runs on this data directory.
    """
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        pid, port = int(lines[0]), int(lines[3])
        # The number alone proves nothing, another program may bear it by now: PostgreSQL's working directory is its data.
        if not os.path.samefile(f"/proc/{pid}/cwd", data):
            raise ServerUnknown(f"the process {pid}, which {data}/postmaster.pid names, is no server of it")
        exe = os.stat(f"/proc/{pid}/exe")
        return Postmaster(pid, start_ns(pid), port, exe.st_dev, exe.st_ino, data)
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError) as error:
        raise ServerUnknown(f"no PostgreSQL runs on {data}: start it, or name its data directory") from error
    except PermissionError as error:
        raise ServerUnknown(
            f"{data} or its server cannot be looked at ({error}): it takes CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"
        ) from error


def start_ns(pid: int) -> int:
    """When a process began. Raises OSError, ValueError."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[19]) * 1_000_000_000 // _TICKS  # proc(5), starttime


def title(pid: int) -> str:
    """What a backend calls itself; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode("utf-8", "replace")
    except OSError:
        return ""


def probed(server: Postmaster, *, nested: bool, chunks: int) -> Probed:
    """
    Raises:
        ServerUnknown: Its version is not known, or its binary lacks what must be probed.
    """
    try:
        written = versions.major_of((server.data / "PG_VERSION").read_bytes())
        with server.exe.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return probes_of(data, written, nested=nested, chunks=chunks)
    except (OSError, ValueError) as error:
        raise ServerUnknown(f"the server's binary cannot be read: {error}") from error


def probes_of(data: elf.Bytes, written: int, *, nested: bool, chunks: int) -> Probed:
    """`written`: the major version that its data directory names. Raises ServerUnknown."""
    own = versions.major_of(data)
    if own != written:
        raise ServerUnknown(f"its binary is of version {own or 'unknown'}, its data of {written or 'unknown'}")
    offsets = versions.KNOWN.get(own)
    if offsets is None:
        raise ServerUnknown(
            f"PostgreSQL {own} is not known; known are {min(versions.KNOWN)} to {max(versions.KNOWN)}: upgrade pgwarden"
        )
    programs = [name for name in layout.PROBES if nested or name not in versions.NESTED]
    wanted = [versions.FUNCTIONS[name] for name in programs]
    try:
        symbols = elf.symbols(data, {*wanted, *versions.VARIABLES})
    except elf.ElfInvalid as error:
        raise ServerUnknown(f"its binary cannot be probed: {error}") from error
    missing = [name for name in (*wanted, *versions.VARIABLES) if name not in symbols.found]
    missing += [name for name in wanted if name in symbols.found and symbols.found[name].file_offset < 0]
    if missing:
        names = ", ".join(missing)
        raise ServerUnknown(f"its binary exports no {names}: it was built with link-time optimisation; use the log's collector")
    places, at, stepped = {}, [0] * len(layout.PROBES), []
    for program, name in zip(programs, wanted, strict=True):
        symbol = symbols.found[name]
        code = bytes(data[symbol.file_offset : symbol.file_offset + sites.LOOK_BYTES])
        found = sites.site(symbols.machine, code, versions.ARGUMENTS.get(program, 1))
        places[program] = symbol.file_offset + found.offset
        at[layout.PROBES.index(program)] = symbol.address + found.offset
        if not found.emulated:
            stepped.append(name)
    variables = [symbols.found[name].address for name in versions.VARIABLES]
    fields = (
        offsets.port_database,
        offsets.port_user,
        offsets.portal_stmts,
        offsets.portal_at_start,
        offsets.stmt_location,
        offsets.error_sqlstate,
        chunks,
        int(nested),
    )
    return Probed(own, offsets, places, layout.BINARY.pack(*at, *variables, *fields), tuple(stepped))
