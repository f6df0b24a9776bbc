"""What an inspection step is: frames of the log in, findings and what follows from them out. Pure; `inspector.py` is its shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from identity.commands import HoldAgent, RevokeAgent, ThrottleAgent
from ingest.events import BackendEndOrdered, FindingRaised, FindingRecurred, Frame, SessionJudged, Topic
from ingest.log import Record

Response: TypeAlias = RevokeAgent | ThrottleAgent | HoldAgent


@dataclass(frozen=True, slots=True)
class Respond:
    """Give this command as an operator would. `key` is derived from its cause: what was done under it is not done twice."""

    key: str
    command: Response


Effect: TypeAlias = FindingRaised | FindingRecurred | SessionJudged | BackendEndOrdered | Respond


class Inspection(Protocol):
    """One step and its state, owned by one task. No clock, no I/O, no randomness: the same frames give the same effects.

    Order: the frames of one partition come as they stand in it. Frames of different topics come by the time at which they were
    recorded, and those of one moment by the topic's place in `topics`: name `identity` before `sessions`, and `sessions` before
    `statements`, so that a session's opening is known before its statements. It is an order of recording, not of causes: the end
    of a session may come before its last statements, so keep what is known of it for a while. Between the machines of a Kafka log
    the order is as good as their clocks.

    Time: `now_us` never goes back within one run of the shell. Behind the log's end at start it is the record's own time, later the
    clock's; nothing may depend on how often `tick` is called, nor on whether one call brings two frames or two calls bring one.

    Effects are recorded in their order before the step goes on. Ids (`finding`, `order`, `key`) must be derived from the evidence:
    after a crash the step repeats what stands behind its last checkpoint, and what is recorded under an id already is passed over.
    A FindingRecurred is known by its finding and its `times`, a SessionJudged by its session and its verdict.

    An exception stops this step alone, and is told in GET /v1/health; it begins at its last checkpoint when the API starts anew.
    """

    @property
    def name(self) -> str:
        """Of its checkpoint's file: a-z and -."""
        ...

    @property
    def version(self) -> int:
        """Of what `encode` gives. Raise it when the meaning of the state changes: the state is then made anew from the log."""
        ...

    @property
    def topics(self) -> tuple[Topic, ...]: ...

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]: ...

    def tick(self, now_us: int) -> Sequence[Effect]:
        """Called about four times a second, and seldom while the past is read."""
        ...

    def status(self) -> Mapping[str, int]:
        """How much it holds and has counted, by names that stay; asked between steps."""
        ...

    def encode(self) -> bytes: ...

    def restore(self, data: bytes) -> None:
        """Take up what `encode` of the same version gave; called at most once, before anything else.

        Raises:
            ValueError: It cannot be. The step is thrown away and begun anew.
        """
        ...
