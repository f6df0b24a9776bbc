"""A function's first bytes -> where its probe costs least. Pure.

On x86 the kernel emulates `push`, `nop`, jumps and calls (arch/x86/kernel/uprobes.c); any other instruction it runs out of line,
with two traps more. Measured in a virtual machine: 0.55 us against 10 to 12. So a probe goes to the first emulated instruction
that every call of the function passes with its arguments still in their registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ingest.collectors.ebpf.elf import Machine

LOOK_BYTES: Final = 48  # of a function; a prologue is shorter
_ARGUMENTS: Final = (7, 6, 2)  # rdi, rsi, rdx, by their number in an instruction
_ENDBR64: Final = b"\xf3\x0f\x1e\xfa"


@dataclass(frozen=True, slots=True)
class Site:
    offset: int  # from the function's first byte
    emulated: bool  # else each hit is single-stepped


def site(machine: Machine, code: bytes, arguments: int) -> Site:
    """`arguments`: how many the probe reads, which must still be in place. What is not understood is probed at its start."""
    keep = frozenset(_ARGUMENTS[:arguments])
    if machine != "x86_64":
        return Site(0, False)  # arm64 simulates branches only, and its calls begin with none
    at = 0
    while at < len(code):
        if _emulated(code, at):
            return Site(at, True)
        length = _harmless(code, at, keep)
        if not length:
            break
        at += length
    return Site(0, False)


def _emulated(code: bytes, at: int) -> bool:
    first = code[at]
    if 0x50 <= first <= 0x57 or first == 0x90:  # push, nop
        return True
    if first == 0x41:
        return at + 1 < len(code) and 0x50 <= code[at + 1] <= 0x57  # push r8 to r15
    if 0x70 <= first <= 0x7F or first in (0xE8, 0xE9, 0xEB):  # jcc, call, jmp
        return True
    return first == 0x0F and at + 1 < len(code) and (0x80 <= code[at + 1] <= 0x8F or code[at + 1] == 0x1F)


def _harmless(code: bytes, at: int, keep: frozenset[int]) -> int:
    """The length of an instruction that only moves on; 0 for one that is not known, or writes to what must be kept."""
    if code[at : at + 4] == _ENDBR64:
        return 4
    begin, rex = at, 0
    if 0x40 <= code[at] <= 0x4F:
        rex, at = code[at], at + 1
    if at + 1 >= len(code):
        return 0
    opcode, modrm = code[at], code[at + 1]
    mode, register, operand = modrm >> 6, (modrm >> 3 & 7) | (rex & 4) << 1, (modrm & 7) | (rex & 1) << 3
    reads_only = opcode in (0x85, 0x39, 0x3B)  # test, cmp
    if opcode == 0x83 and mode == 3:  # add, or, and, sub, xor, cmp of a register and a byte
        writes, length = None if modrm >> 3 & 7 == 7 else operand, at + 3 - begin
    elif opcode in (0x89, 0x31, 0x29, 0x01, 0x85, 0x39, 0x3B) and mode == 3:  # mov, xor, sub, add, test, cmp of two registers
        writes, length = None if reads_only else operand, at + 2 - begin
    elif opcode == 0x8B and mode == 3:
        writes, length = register, at + 2 - begin
    elif opcode in (0x63, 0x8B) and mode == 0 and modrm & 7 == 5:  # movslq or mov of a variable beside the code
        writes, length = register, at + 6 - begin
    else:
        return 0
    return 0 if writes in keep or begin + length > len(code) else length
