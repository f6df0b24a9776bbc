"""Gives privileges up for good: capabilities(7), no_new_privs, another user."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Collection
from typing import Final

# linux/capability.h
CAP_DAC_READ_SEARCH: Final = 2
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_PERFMON: Final = 38
CAP_BPF: Final = 39

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_CAPABILITY_VERSION_3: Final = 0x20080522
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def keep(capabilities: Collection[int]) -> None:
    """From here on this process has these, and can never get another, nor can what it starts.

    Raises:
        OSError: It lacks one of them, or the kernel will not.
    """
    for number in range(64):
        if number not in capabilities and _LIBC.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() != 22:
            raise _failure("dropping a capability")  # 22, EINVAL: this kernel knows no further ones
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(capabilities)
    _no_new_privileges()


def become(uid: int, gid: int) -> None:
    """From here on this process is that user, with no capability at all. Raises OSError."""
    keep_none = frozenset[int]()
    for number in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() != 22:
            raise _failure("dropping a capability")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _set(keep_none)
    _no_new_privileges()


def held() -> frozenset[int]:
    """The capabilities in effect."""
    with open("/proc/self/status", encoding="ascii") as lines:
        mask = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return frozenset(number for number in range(64) if mask >> number & 1)


def die_with(parent: int) -> None:
    """The kernel ends this process with SIGTERM when the one that started it ends. Call it after `become`, which undoes it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _set(capabilities: Collection[int]) -> None:
    mask = sum(1 << number for number in capabilities)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    if _LIBC.capset(header, struct.pack("<6I", low, low, 0, high, high, 0)):
        raise _failure("keeping only what is needed")


def _no_new_privileges() -> None:
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _failure("no_new_privs")
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # its memory is nobody else's: it has statements' texts in it


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
