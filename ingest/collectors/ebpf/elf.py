"""An ELF file's bytes -> addresses and file offsets of symbols. Pure. Any bytes end in symbols or ElfInvalid, hostile ones too.

System V ABI, chapters 4 and 5; only what a uprobe needs.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Final, Literal, TypeAlias

Machine: TypeAlias = Literal["x86_64", "aarch64"]
Bytes: TypeAlias = "bytes | bytearray | mmap"

_IDENT: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_MACHINES: Final[Mapping[int, Machine]] = {62: "x86_64", 183: "aarch64"}
_PT_LOAD: Final = 1
_SHT_SYMTAB: Final = 2
_SHT_DYNSYM: Final = 11
_KINDS: Final = {1: "variable", 2: "function"}  # STT_OBJECT, STT_FUNC

SEGMENTS_MAX: Final = 256
SECTIONS_MAX: Final = 4096  # PostgreSQL's has about 40
SYMBOLS_MAX: Final = 2_000_000  # PostgreSQL's has 14,000 in .dynsym


class ElfInvalid(Exception):
    """This is no ELF file that could be probed. Says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Symbol:
    address: int  # as linked
    file_offset: int  # -1 for what is not in the file, as zeroed variables
    kind: str  # "function" | "variable"


@dataclass(frozen=True, slots=True)
class Symbols:
    machine: Machine
    found: Mapping[str, Symbol]


def symbols(data: Bytes, wanted: Collection[str]) -> Symbols:
    """Those of `wanted` that it defines, exported ones first; a stripped file has no others.

    Raises:
        ElfInvalid: It is no 64-bit little-endian ELF file of a known machine, or leads beyond its own end.
    """
    if data[:6] != _IDENT:
        raise ElfInvalid("it is no 64-bit little-endian ELF file")
    _, number, _, _, segments_at, sections_at, _, _, segment_bytes, segments, section_bytes, sections, _ = _read(_HEADER, data, 0)
    machine = _MACHINES.get(number)
    if machine is None:
        raise ElfInvalid(f"it is for machine {number}; x86_64 and aarch64 are known")
    if segments > SEGMENTS_MAX or sections > SECTIONS_MAX or not segments or not sections:
        raise ElfInvalid(f"it has {segments} segments and {sections} sections")
    if segment_bytes != _SEGMENT.size or section_bytes != _SECTION.size:
        raise ElfInvalid("its headers have an unknown size")
    loads = []
    for index in range(segments):
        kind, _, offset, address, _, in_file, _, _ = _read(_SEGMENT, data, segments_at + index * _SEGMENT.size)
        if kind == _PT_LOAD:
            loads.append((address, offset, in_file))
    headers = [_read(_SECTION, data, sections_at + index * _SECTION.size) for index in range(sections)]
    names = {name.encode(): name for name in wanted}
    found: dict[str, Symbol] = {}
    for table_kind in (_SHT_DYNSYM, _SHT_SYMTAB):
        for _, kind, _, _, offset, length, link, _, _, _ in headers:
            if kind == table_kind and len(found) < len(names):
                if link >= len(headers):
                    raise ElfInvalid("its symbols have no names")
                _table(data, offset, length, (headers[link][4], headers[link][5]), names, loads, found)
    return Symbols(machine, found)


def _table(
    data: Bytes,
    offset: int,
    length: int,
    strings: tuple[int, int],
    names: Mapping[bytes, str],
    loads: list[tuple[int, int, int]],
    found: dict[str, Symbol],
) -> None:
    if offset + length > len(data) or strings[0] + strings[1] > len(data) or length > SYMBOLS_MAX * _SYMBOL.size:
        raise ElfInvalid("its symbols lead beyond its end")
    text = bytes(data[strings[0] : strings[0] + strings[1]])
    places = _places(text, names)
    if not places:
        return
    for name, info, _, section, address, _ in _SYMBOL.iter_unpack(bytes(data[offset : offset + length - length % _SYMBOL.size])):
        wanted = places.get(name)
        if wanted is None or not section or not address or wanted in found:
            continue
        kind = _KINDS.get(info & 0xF)
        if kind is not None:
            place = next((address - begin + at for begin, at, in_file in loads if begin <= address < begin + in_file), -1)
            found[wanted] = Symbol(address, place, kind)


def _places(text: bytes, names: Mapping[bytes, str]) -> Mapping[int, str]:
    """Where in a string table each name stands; linkers let one name end another, so a name may stand in several places."""
    places: dict[int, str] = {}
    for encoded, name in names.items():
        at = text.find(encoded + b"\0")
        while at >= 0 and len(places) < 10_000:
            places[at] = name
            at = text.find(encoded + b"\0", at + 1)
    return places


def _read(kind: struct.Struct, data: Bytes, at: int) -> tuple[int, ...]:
    if at + kind.size > len(data):
        raise ElfInvalid("it is cut short")
    return kind.unpack_from(data, at)
