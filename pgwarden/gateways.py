"""Which gateways act on what was decided: in comes what they say of themselves, out come the names of those that do not yet.

Where the log is Kafka they say it in topic `observations`, once a second and whenever they act on a newer identity event. On one
machine the gateway is asked at its status socket (`api_process.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ingest.clock import now_us
from ingest.events import GatewayReported
from ingest.follow import Follower
from ingest.log import EventLog, LogCorrupt, LogUnavailable

SILENT_SECONDS_MAX: Final = 60.0  # a gateway silent for so long holds no answer back; the watchdog has ended its sessions
REPORTS_BACK: Final = 2_000  # records of each partition that are read at the start: minutes, with ten gateways
MISSED_SECONDS_MAX: Final = 5.0  # of the reports that come each second
SHOWN_SECONDS_MAX: Final = 900.0  # a gateway that has ended is missed for so long, and then forgotten
GATEWAYS_MAX: Final = 1_000  # names that are remembered, the most silent go first
RETRY_SECONDS: Final = 0.25  # after the log was not available
BROKEN_RETRY_SECONDS: Final = 5.0  # after it was corrupt: a person must act

_log: Final = logging.getLogger(__name__)


class Reports:
    """The newest word of each gateway. Owned by one loop; closes no log."""

    def __init__(self, log: EventLog, clock: Callable[[], float] = time.monotonic, now_us: Callable[[], int] = now_us) -> None:
        self._log = log
        self._clock = clock
        self._now_us = now_us
        self._words: dict[str, tuple[GatewayReported, float]] = {}  # with the time at which it was heard

    async def run(self) -> None:
        """Until cancelled. While the log cannot be read the gateways grow silent, and answers name them."""
        troubled = False
        while True:
            try:
                await self._follow()
            except LogUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except LogCorrupt as error:
                if not troubled:
                    _log.critical("what gateways say of themselves cannot be read: %s", error)
                troubled = True
                await asyncio.sleep(BROKEN_RETRY_SECONDS)

    def newest(self) -> Sequence[GatewayReported]:
        """Of those that are not silent for too long, by name."""
        oldest = self._clock() - SILENT_SECONDS_MAX
        return [word for _, (word, heard) in sorted(self._words.items()) if heard > oldest]

    async def statuses(self) -> Sequence[Mapping[str, object]]:
        """Of each gateway, what its status socket says of itself where there is one machine, less its list of sessions."""
        now = self._clock()
        return [_status(word, now - heard) for _, (word, heard) in sorted(self._words.items()) if now - heard < SHOWN_SECONDS_MAX]

    async def waiting_for(self, at_us: int) -> Sequence[str]:
        """Who does not act yet on all that was recorded of identities up to `at_us`."""
        return [word.gateway for word in self.newest() if word.identity_at_us < at_us]

    async def _follow(self) -> None:
        begins, ends = self._log.begin_offsets("observations"), await self._log.offsets("observations")
        offsets = {place: max(begins.get(place, 0), end - REPORTS_BACK) for place, end in ends.items()}
        follower = Follower(self._log, ("observations",), offsets, on_gap=lambda _: None)  # the tables' reader tells of gaps
        try:
            while True:
                for record, frame in await follower.poll(timeout_seconds=1.0):
                    for _, event in frame.events:
                        if isinstance(event, GatewayReported):
                            past = record.offset < ends.get((record.topic, record.partition), 0)
                            self._heard(event, max(0.0, (self._now_us() - record.at_us) / 1e6) if past else 0.0)
        finally:
            follower.close()

    def _heard(self, word: GatewayReported, age_seconds: float) -> None:
        """`age_seconds`: by two machines' clocks, so of the past alone. A gateway whose clock is behind is not silent."""
        before = self._words.get(word.gateway)
        # Where two processes bear a name, or an old one's word comes late, the newer boot counts.
        if before is not None and (word.boot, word.at_us) < (before[0].boot, before[0].at_us):
            return
        self._words[word.gateway] = (word, self._clock() - age_seconds)
        if len(self._words) > GATEWAYS_MAX:
            del self._words[min(self._words, key=lambda name: self._words[name][1])]


def _status(word: GatewayReported, silent_seconds: float) -> Mapping[str, object]:
    if silent_seconds > MISSED_SECONDS_MAX:
        reason = f"it has not reported for {silent_seconds:.0f} s: it ended, hangs, or does not reach the brokers"
        return {"gateway": word.gateway, "reachable": False, "reason": reason, "boot": word.boot, "pid": word.pid}
    return {
        "gateway": word.gateway,
        "boot": word.boot,
        "pid": word.pid,
        "started_us": word.boot,
        "identity_at_us": word.identity_at_us,
        "log": {
            "available": word.available,
            "since_us": word.since_us,
            "reason": word.reason,
            "refused": word.refused,
            "pending_bytes": word.pending_bytes,
            "backlog_bytes": word.backlog_bytes,
        },
        "sessions": word.sessions,
        "counters": {
            "statements": word.statements,
            "denied": word.denied,
            "sessions_opened": word.sessions_opened,
            "sessions_denied": word.sessions_denied,
            "killed": word.killed,
        },
    }
