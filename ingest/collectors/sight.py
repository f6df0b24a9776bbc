"""Whether one collector sees: by its own word, its canaries, and what the settings hide. Pure: it is told what happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.collectors.collector import CollectorState, Sees
from ingest.events import SessionObserved, StatementObserved, WitnessEvent

_RECENT: Final = 1_000  # sessions whose begin was told; a canary's own may be told before it is sent
NOT_YET: Final = "its first canary has not been seen yet"


@dataclass(frozen=True, slots=True)
class Blinded:
    since_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    blind_since_us: int


class Sight:
    """`now_us` rises from call to call. `change` is asked now and then, and tells each change once."""

    def __init__(self, sees: Sees, begun_us: int, canary_seconds_max: float) -> None:
        self._sees = sees
        self._limit_us = int(canary_seconds_max * 1e6)
        self._waiting: tuple[int, str, str] | None = None  # of a canary that was sent: when, its session, its digest
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._unseen = ""
        self._unsent = ""
        self._hidden: Sequence[str] = ()
        self._good_us = begun_us  # until then nothing hindered it
        self._blind: Blinded | None = None
        self.canary_us = 0

    def sent(self, at_us: int, session_id: str, digest: str) -> None:
        """A canary is about to be sent."""
        self._unsent = ""
        if self._sees == "sessions" and session_id in self._recent:
            self._seen(at_us)
        else:
            self._waiting = (at_us, session_id, digest)

    def not_sent(self, reason: str) -> None:
        self._unsent = f"no canary can be sent: {reason}"

    def hidden(self, reasons: Sequence[str]) -> None:
        """What the server's settings keep from it."""
        self._hidden = reasons

    def told(self, events: Iterable[WitnessEvent]) -> None:
        """What it hands out, all of it."""
        for event in events:
            if isinstance(event, StatementObserved):
                waiting = self._waiting
                if waiting is not None and event.digest == waiting[2] and event.session_id == waiting[1]:
                    self._seen(waiting[0])
            elif isinstance(event, SessionObserved) and self._sees == "sessions":
                self._recent.append(event.session_id)
                if self._waiting is not None and event.session_id == self._waiting[1]:
                    self._seen(self._waiting[0])

    @property
    def waits(self) -> bool:
        """For a canary to be seen."""
        return self._waiting is not None

    def reason(self, state: CollectorState, now_us: int) -> str:
        """Why it does not see, and what to do; "" while it does."""
        if self._waiting is not None and now_us - self._waiting[0] > self._limit_us:
            self._unseen = f"a canary was not seen within {self._limit_us / 1e6:g} s: pgwarden doctor says what can be wrong"
            self._waiting = None
        hindrances = [state.reason, *self._hidden, self._unsent, self._unseen]
        if found := next((one for one in hindrances if one), ""):
            return found
        return "" if self.canary_us else NOT_YET

    def change(self, state: CollectorState, now_us: int) -> Blinded | Restored | None:
        reason = self.reason(state, now_us)
        blind = self._blind
        if not reason:
            self._good_us = now_us
            self._blind = None
            return Restored(blind.since_us) if blind is not None else None
        if reason == NOT_YET or (blind is not None and blind.reason == reason):
            return None
        # Since the last canary that was seen, nothing proves that it saw.
        since_us = blind.since_us if blind is not None else self.canary_us or self._good_us
        self._blind = Blinded(since_us, reason)
        return self._blind

    def _seen(self, sent_us: int) -> None:
        self.canary_us = sent_us
        self._waiting = None
        self._unseen = ""
