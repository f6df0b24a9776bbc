"""What this machine's kernel offers to `pgwarden witness`: whether probes can be attached here at all, and by whom."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RELEASE_MIN: Final = (5, 15)  # uprobes with a cookie: one object for every binary
BPFFS: Final = Path("/sys/fs/bpf")
_MACHINES: Final = {"x86_64": "x86", "aarch64": "arm64"}
_CAP_SYS_ADMIN: Final = 21  # linux/capability.h; with CAP_BPF and CAP_PERFMON alone uprobes are refused


@dataclass(frozen=True, slots=True)
class Lack:
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def lacks() -> list[Lack]:
    """What is missing, whoever asks; none where `pgwarden witness` could attach when it is run as root."""
    found: list[Lack] = []
    system, machine, release = platform.system(), platform.machine(), platform.release()
    if system != "Linux":
        return [Lack(f"this is {system}", "run pgwarden witness on the Linux machine of the server")]
    if machine not in _MACHINES:
        found.append(Lack(f"this machine is {machine}", "eBPF is built for x86_64 and aarch64: use a collector of the log"))
    elif (
        not (objects := list((Path(__file__).parent / "ebpf").glob(f"*{_MACHINES[machine]}*.bpf.o")))
        or not objects[0].stat().st_size
    ):
        found.append(Lack("the eBPF program is not installed", "install the wheel of pgwarden, or run make bpf"))
    number = re.match(r"(\d+)\.(\d+)", release)
    if number is None or (int(number[1]), int(number[2])) < RELEASE_MIN:
        found.append(Lack(f"the kernel is {release}", "5.15 or newer is needed: use a collector of the log"))
    if not Path("/sys/kernel/btf/vmlinux").exists():
        found.append(Lack("the kernel does not describe its types (/sys/kernel/btf/vmlinux)", "use one with CONFIG_DEBUG_INFO_BTF"))
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        found.append(Lack("libbpf.so.1 is not here", "install libbpf1 (Debian, Ubuntu) or libbpf (Fedora), 1.0 or newer"))
    if not mounted(BPFFS, _text(Path("/proc/self/mounts"))):
        found.append(
            Lack(
                f"no BPF file system is mounted at {BPFFS}",
                f"pgwarden witness mounts it where it may, as root; else run mount -t bpf none {BPFFS}, in a container on its host",
            )
        )
    lockdown = _text(Path("/sys/kernel/security/lockdown"))
    if "[confidentiality]" in lockdown:
        found.append(
            Lack("the kernel is locked down (confidentiality)", "start it with lockdown=integrity, or use a collector of the log")
        )
    return found


def mounted(bpffs: Path, mounts: str) -> bool:
    """Whether a BPF file system is there. `mounts`: /proc/self/mounts, for Python has no statfs(2)."""
    return any(line.split()[1:3] == [str(bpffs), "bpf"] for line in mounts.splitlines())


def may_attach() -> bool:
    """Whether this process could: `pgwarden witness` needs CAP_SYS_ADMIN."""
    status = _text(Path("/proc/self/status"))
    mask = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return os.geteuid() == 0 and mask is not None and bool(int(mask[1], 16) >> _CAP_SYS_ADMIN & 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
