"""When a collector looked: its watermark, and the times of which it cannot tell."""

from __future__ import annotations

from dataclasses import dataclass, field

INTERVALS_MAX = 200  # of a collector that are remembered; the oldest two become one
FOR_EVER = 1 << 62
AUDIT_US = (
    3_600 * 1_000_000
)  # that pgaudit's word for one statement stands for how the next is told: the longest between two canaries


@dataclass(slots=True)
class Interval:
    from_us: int
    until_us: int
    session_id: str  # "" = of every session
    reason: str


@dataclass(slots=True)
class Witness:
    """One collector on one server, as its record tells."""

    name: str
    kind: str
    server: str
    connections: tuple[str, ...]
    statements: bool  # it sees them; else sessions alone
    running: bool = True
    complete_us: int = 0
    reported_us: int = 0
    seeing: bool = False
    unseen: list[Interval] = field(default_factory=list)
    stopped_us: int = 0  # when it was told that it ended; 0 = it runs, or is no longer waited for
    unseen_until_us: int = FOR_EVER  # no interval of them ends later; what began after it needs no look at them
    audited_us: int = 0  # when it last told of what pgaudit alone had written; 0 = never

    def __post_init__(self) -> None:
        self._look_again()

    def began(self, at_us: int, resumed_us: int) -> None:
        """Between its last word and now nobody looked, but for what it takes up again."""
        since_us = self.complete_us if self.reported_us else 0
        looks_us = resumed_us or at_us
        if since_us < looks_us:
            self._miss(Interval(since_us, looks_us, "", "the collector did not run"))
        self.running = True
        self.stopped_us = 0

    def missed(self, from_us: int, until_us: int, session_id: str, reason: str) -> None:
        self._miss(Interval(from_us, until_us, session_id, reason))

    def blinded(self, since_us: int, reason: str) -> None:
        if not any(one.until_us == FOR_EVER and not one.session_id for one in self.unseen):
            self._miss(Interval(since_us, FOR_EVER, "", reason))

    def restored(self, at_us: int) -> None:
        for one in self.unseen:
            if one.until_us == FOR_EVER:
                one.until_us = at_us
        self._look_again()

    def blind(self) -> bool:
        return any(one.until_us == FOR_EVER for one in self.unseen)

    def saw_all(self, session_id: str, from_us: int, until_us: int) -> bool:
        return from_us > self.unseen_until_us or not any(
            one.from_us <= until_us and from_us <= one.until_us and one.session_id in ("", session_id) for one in self.unseen
        )

    def passes_over_until_us(self) -> int:
        """Up to when it may be silent of what ran though it sees; 0 = never. pgaudit writes nothing of how a failed transaction is
        ended (pgaudit_ProcessUtility_hook)."""
        return self.audited_us + AUDIT_US if self.audited_us else 0

    def _miss(self, interval: Interval) -> None:
        self.unseen.append(interval)
        if len(self.unseen) > INTERVALS_MAX:  # what they excuse grows, and nothing is claimed that may be wrong
            first, second = self.unseen[:2]
            until_us = max(first.until_us, second.until_us)
            joined = Interval(min(first.from_us, second.from_us), until_us, "", "several gaps of long ago")
            self.unseen[:2] = [joined]
        self.unseen_until_us = max(self.unseen_until_us, interval.until_us)

    def _look_again(self) -> None:
        self.unseen_until_us = max((one.until_us for one in self.unseen), default=0)
