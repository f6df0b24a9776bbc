"""What collectors let grow, and how often they look. Units stand last in the names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextPolicy:
    full: bool = True  # False: digests only
    bytes_max: int = 64 * 2**10  # of a statement's text that is recorded; its digest is of the whole


@dataclass(frozen=True, slots=True)
class LogSettings:
    record_bytes_max: int = 32 * 2**20  # one record of the server's log; twice the largest message that the gateway takes
    read_bytes: int = 256 * 2**10  # one read; some 600 records, parsed in about 5 ms
    scan_ms: float = 100.0  # between two looks at the folder and at what was added: most of the time until a statement is seen
    settle_ms: float = 1_000.0  # a statement without a word on its end is told so long after its begin, as begun only
    behind_ms: float = 250.0  # what the server's log collector may still have in its pipe; the watermark stays behind by this
    checkpoint_ms: float = 1_000.0  # between two checkpoints; what a kill makes the next start read again
    sessions_max: int = 50_000  # whose line numbers are known at once, 200 bytes each; beyond it the longest silent is forgotten
    ended_seconds: float = 60.0  # the line numbers of a session that ended are known for so long, for what a restart reads again
    files_max: int = 1_000  # looked at in the folder
    idle_seconds: float = 60.0  # a file that was rotated away, and read to its end, is closed after so long


@dataclass(frozen=True, slots=True)
class ActivitySettings:
    sample_ms: float = 1_000.0  # between two looks; a session that is shorter may be missed, and is said to be
    answer_seconds_max: float = 5.0
    sessions_max: int = 50_000
