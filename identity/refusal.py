"""Why somebody or something was not accepted, for the log and the operator. The peer is told less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str  # one sentence; never holds a token, a key or a piece of one
