"""The kernel's ring buffer, read in place: what was read stays there until it is let go, so it outlives whoever reads.

Documentation/bpf/ringbuf.rst: two positions that only rise, the data mapped twice in a row, a busy bit in each record's header.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import Final

from ingest.collectors.ebpf.layout import RING_BUSY, RING_LENGTH

READ_BYTES: Final = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Span:
    data: bytes  # whole records, each with its header
    end: int  # position behind it
    caught_up: bool  # nothing else had been written when this was read


class Ring:
    """One of a pinned map. One reader at a time."""

    def __init__(self, fd: int, ring_bytes: int) -> None:
        """Raises OSError."""
        page = mmap.PAGESIZE
        self._mask = ring_bytes - 1
        self._page = page
        self._reader = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._writer = mmap.mmap(fd, page + 2 * ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._reader).cast("Q")
        self._produced = memoryview(self._writer).cast("Q")
        self._headers = memoryview(self._writer).cast("I")

    @property
    def consumed(self) -> int:
        return self._consumed[0]

    @property
    def produced(self) -> int:
        return self._produced[0]

    def read(self, begin: int, bytes_max: int = READ_BYTES) -> Span:
        """From `begin`, which is no less than `consumed`, on. It stays in the ring."""
        produced = self._produced[0]
        _fence()
        at = begin
        while at < produced and at - begin < bytes_max:
            header = self._headers[(self._page + (at & self._mask)) >> 2]
            if header & RING_BUSY:
                break
            at += 8 + ((header & RING_LENGTH) + 7 & ~7)
        _fence()
        place = self._page + (begin & self._mask)
        return Span(self._writer[place : place + at - begin], at, at >= produced)

    def let_go(self, end: int) -> None:
        """Up to there it may be written over."""
        _fence()
        self._consumed[0] = end

    def close(self) -> None:
        for view in (self._consumed, self._produced, self._headers):
            view.release()
        self._reader.close()
        self._writer.close()


def _fence() -> None:
    """A pause lets go of the interpreter's lock and takes it again: no load or store moves across that, on arm64 neither."""
    time.sleep(0)
