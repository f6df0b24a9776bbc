"""libbpf.so.1 through ctypes: open, load, attach, pin. No compiler, headers or LLVM at run time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_POINTER: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int
_TEXT: Final = ctypes.c_char_p
_SIZE: Final = ctypes.c_size_t

_FUNCTIONS: Final = (
    ("libbpf_major_version", ctypes.c_uint32, ()),
    ("libbpf_set_print", _POINTER, (_POINTER,)),
    ("bpf_object__open_file", _POINTER, (_TEXT, _POINTER)),
    ("bpf_object__load", _INT, (_POINTER,)),
    ("bpf_object__close", None, (_POINTER,)),
    ("bpf_object__find_program_by_name", _POINTER, (_POINTER, _TEXT)),
    ("bpf_object__find_map_by_name", _POINTER, (_POINTER, _TEXT)),
    ("bpf_map__fd", _INT, (_POINTER,)),
    ("bpf_map__set_max_entries", _INT, (_POINTER, ctypes.c_uint32)),
    ("bpf_map__reuse_fd", _INT, (_POINTER, _INT)),
    ("bpf_map__pin", _INT, (_POINTER, _TEXT)),
    ("bpf_program__attach", _POINTER, (_POINTER,)),
    ("bpf_program__attach_uprobe_opts", _POINTER, (_POINTER, _INT, _TEXT, _SIZE, _POINTER)),
    ("bpf_link__pin", _INT, (_POINTER, _TEXT)),
    ("bpf_link__destroy", _INT, (_POINTER,)),
    ("bpf_obj_get", _INT, (_TEXT,)),
    ("bpf_map_update_elem", _INT, (_INT, _POINTER, _POINTER, ctypes.c_uint64)),
    ("bpf_map_lookup_elem", _INT, (_INT, _POINTER, _POINTER)),
    ("bpf_map_delete_elem", _INT, (_INT, _POINTER)),
    ("bpf_map_get_next_key", _INT, (_INT, _POINTER, _POINTER)),
)


class BpfRefused(Exception):
    """The kernel or libbpf will not; says which call, and what to do where that is known."""


class _UprobeOptions(ctypes.Structure):
    _fields_ = (
        ("sz", _SIZE),
        ("ref_ctr_offset", _SIZE),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
        ("func_name", _TEXT),
    )


def library() -> ctypes.CDLL:
    """
    Raises:
        BpfRefused: There is none, or one before 1.0, whose errors are told otherwise.
    """
    try:
        loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        remedy = "install libbpf 1.0 or newer: apt install libbpf1, or dnf install libbpf"
        raise BpfRefused(f"libbpf.so.1 is not on this machine: {remedy}") from error
    for name, result, arguments in _FUNCTIONS:
        function = getattr(loaded, name, None)
        if function is None:
            raise BpfRefused(f"libbpf.so.1 has no {name}: install libbpf 1.0 or newer")
        function.restype, function.argtypes = result, arguments
    loaded.libbpf_set_print(None)  # what it says goes nowhere: stderr is the log's
    return loaded


class Object:
    """One loaded object file. Its maps outlive it where they are pinned, its links too."""

    def __init__(self, path: Path, sizes: Mapping[str, int], pinned: Mapping[str, Path]) -> None:
        """`sizes`: maps that are not as large as the file says. `pinned`: maps to take up in place of new ones.

        Raises:
            BpfRefused
        """
        self._library = library()
        self._object = self._library.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise BpfRefused(f"{path} cannot be opened: {_reason()}")
        try:
            for name, entries in sizes.items():
                self._library.bpf_map__set_max_entries(self._map(name), entries)
            for name, pin in pinned.items():
                fd = open_pin(pin)
                done = self._library.bpf_map__reuse_fd(self._map(name), fd)
                os.close(fd)
                if done:
                    raise BpfRefused(f"{pin} cannot be taken up: {_reason(-done)}")
            done = self._library.bpf_object__load(self._object)
            if done:
                raise BpfRefused(f"the kernel does not load {path.name}: {_reason(-done)}")
        except BpfRefused:
            self.close()
            raise

    def close(self) -> None:
        """What is pinned stays."""
        self._library.bpf_object__close(self._object)

    def map_fd(self, name: str) -> int:
        fd: int = self._library.bpf_map__fd(self._map(name))
        return fd

    def pin_map(self, name: str, path: Path) -> None:
        done = self._library.bpf_map__pin(self._map(name), os.fsencode(path))
        if done:
            raise BpfRefused(f"{path} cannot be pinned: {_reason(-done)}")

    def attach(self, program: str, pin: Path) -> None:
        """To what its section names; pinned, it outlives this process.

        Raises:
            BpfRefused
        """
        link = self._library.bpf_program__attach(self._program(program))
        self._pin(link, pin, program)

    def attach_uprobe(self, program: str, path: Path, offset: int, cookie: int, pin: Path) -> None:
        """`offset` is of the file, whatever process runs it. Raises BpfRefused."""
        options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, cookie, False, None)
        link = self._library.bpf_program__attach_uprobe_opts(
            self._program(program), -1, os.fsencode(path), offset, ctypes.byref(options)
        )
        self._pin(link, pin, f"{program} to {path}+{offset:#x}")

    def _pin(self, link: int | None, pin: Path, what: str) -> None:
        if not link:
            raise BpfRefused(f"{what} cannot be attached: {_reason()}")
        done = self._library.bpf_link__pin(link, os.fsencode(pin))
        # Without its pin the link would end with this process: it is given back either way.
        self._library.bpf_link__destroy(link)
        if done:
            raise BpfRefused(f"{pin} cannot be pinned: {_reason(-done)}")

    def _map(self, name: str) -> int:
        return self._found(self._library.bpf_object__find_map_by_name(self._object, name.encode()), f"map {name}")

    def _program(self, name: str) -> int:
        return self._found(self._library.bpf_object__find_program_by_name(self._object, name.encode()), f"program {name}")

    def _found(self, what: int | None, name: str) -> int:
        if not what:
            raise BpfRefused(f"the object has no {name}: it is of another version of pgwarden; build it again")
        return what


def open_pin(path: Path) -> int:
    """A file descriptor. Raises BpfRefused."""
    fd: int = library().bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise BpfRefused(f"{path} cannot be opened: {_reason(-fd)}")
    return fd


def update(fd: int, key: bytes, value: bytes) -> None:
    """Raises BpfRefused."""
    done = library().bpf_map_update_elem(fd, key, value, 0)
    if done:
        raise BpfRefused(f"a map takes no value: {_reason(-done)}")


def lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    value = ctypes.create_string_buffer(value_bytes)
    return value.raw if library().bpf_map_lookup_elem(fd, key, value) == 0 else None


def delete(fd: int, key: bytes) -> None:
    library().bpf_map_delete_elem(fd, key)


def keys(fd: int, key_bytes: int, keys_max: int) -> list[bytes]:
    """Of a map that changes meanwhile: at most `keys_max`."""
    found: list[bytes] = []
    key: bytes | None = None
    for _ in range(keys_max):
        following = ctypes.create_string_buffer(key_bytes)
        if library().bpf_map_get_next_key(fd, key, following):
            break
        key = following.raw
        found.append(key)
    return found


def _reason(number: int = 0) -> str:
    number = number or ctypes.get_errno()
    text = os.strerror(number)
    if number == 1:  # EPERM
        return (
            f"{text}: it takes CAP_SYS_ADMIN, CAP_BPF and CAP_PERFMON, and a kernel that /sys/kernel/security/lockdown leaves open"
        )
    return text
