"""What a collector is: it looks at one server and hands out what it sees; `pgwarden/collector_process.py` runs and records them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, StatementObserved, WitnessConnected, WitnessEvent

Kind: TypeAlias = Literal["log", "ebpf", "activity"]
Sees: TypeAlias = Literal["statements", "sessions"]
Observation: TypeAlias = SessionObserved | SessionUnobserved | StatementObserved | ObservationGap

DIGEST_CHARACTERS: Final = 32
_EMPTY: Final = hashlib.sha256()


@dataclass(frozen=True, slots=True)
class CollectorState:
    """How one collector is, asked each second. Canaries are not its business: who runs it compares what it hands out."""

    seeing: bool  # nothing that it knows of hinders it
    reason: str  # "" while it sees; else what hinders it, and what to do
    complete_us: int  # all that ended on the server before this time has been handed out; 0 = nothing yet
    observed: int  # handed out since it started
    lost: int  # observations that it knows of and did not see
    lag_us: int  # of the last one, from its end on the server to here; -1 = none yet
    witness: Mapping[str, int] | None = None  # what `pgwarden witness` counts, where that is what it reads; None = not heard of yet


class Outlet(Protocol):
    """Where a collector's observations go."""

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        """Take them, in order, and return a ticket. While the log takes nothing this waits: the source is the buffer.

        Calls do not overlap.
        """

    async def recorded(self, ticket: int) -> None:
        """Return once all up to this ticket would survive a crash: only then may a source be told that it need not keep them.

        Raises:
            LogUnavailable: The process ends; they may or may not have been recorded.
        """


class Collector(Protocol):
    name: str  # of its [collectors.NAME]
    kind: Kind
    server: str
    sees: Sees
    resumed_us: int  # known once `run` has begun to look: what was done since then will be seen; 0 = only what comes

    async def run(self, outlet: Outlet) -> None:
        """Look until cancelled. What can get better is tried again, and told by `state`.

        Cancelled, it leaves nothing behind: what it had not handed out, its next start reads again where the source keeps it.
        """

    def state(self) -> CollectorState: ...


def key(event: WitnessEvent) -> str:
    """Of the record: all that is said of one session of one server is in one partition, in order."""
    session_id: str = getattr(event, "session_id", "")
    return f"{event.server}/{session_id}" if session_id else event.server


def digest(text: bytes) -> str:
    """Of a statement's whole text, as PostgreSQL has it."""
    hashed = _EMPTY.copy()  # three quarters of what making a new one takes
    hashed.update(text)
    return hashed.hexdigest()[:DIGEST_CHARACTERS]


def session_id(backend_start_us: int, backend_pid: int) -> str:
    """PostgreSQL's own name for a backend, as its log prints it."""
    return f"{backend_start_us // 1_000_000:x}.{backend_pid:x}"
