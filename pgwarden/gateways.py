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
from ingest.events import GatewayReported, ProcessReported
from ingest.follow import Follower
from ingest.log import EventLog, LogCorrupt, LogUnavailable

SILENT_SECONDS_MAX: Final = 60.0  # a gateway silent for so long holds no answer back; the watchdog has ended its sessions
REPORTS_BACK: Final = 2_000  # records of each partition that are read at the start: minutes, with ten gateways
MISSED_SECONDS_MAX: Final = 5.0  # of the reports that come each second
SHOWN_SECONDS_MAX: Final = 900.0  # a gateway that has ended is missed for so long, and then forgotten
GATEWAYS_MAX: Final = 1_000  # names that are remembered, the most silent go first
PROCESSES_MAX: Final = 1_000  # as of gateways
WHOLE_SECONDS_MAX: Final = 10.0  # since all that was reported had been read; beyond it nobody here knows who runs
LOOK_SECONDS: Final = 1.0  # between two looks at how much that is
NAMESAKE_SECONDS: Final = (
    30.0  # a start of a gateway's outlives its next one by some eight seconds, its relay's last words included
)
UNKNOWN: Final = "unknown"  # in answers: a gateway that we may not have heard of
PROCESS_MISSED_SECONDS_MAX: Final = 15.0  # of the reports of workers and watchdogs, which come every five seconds
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
        self._began: dict[str, float] = {}  # when the start that the word is of was heard first
        self._namesakes: dict[str, tuple[GatewayReported, float]] = {}  # of another process that goes on under the same name
        self._processes: dict[tuple[str, str], tuple[ProcessReported, float]] = {}  # by process and name, with when it was heard
        self._whole_at: float | None = None  # all that was reported before had been read

    async def run(self) -> None:
        """Until cancelled. While the log cannot be read answers say that gateways may be waited for whom nobody here knows."""
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
        deaf = self._whole_at is None or now - self._whole_at > MISSED_SECONDS_MAX
        found = [(word, now - heard) for _, (word, heard) in sorted(self._words.items())]
        return [_status(word, silent, deaf) for word, silent in found if silent < SHOWN_SECONDS_MAX]

    def processes(self) -> Sequence[Mapping[str, object]]:
        """Workers and watchdogs: `process`, `name`, `up`, and `reason`. None while nothing is read: that is not their fault."""
        now = self._clock()
        if self._whole_at is None or now - self._whole_at > MISSED_SECONDS_MAX:
            return ()
        heard = [(word, now - heard) for _, (word, heard) in sorted(self._processes.items())]
        return [_process(word, silent) for word, silent in heard if silent < SHOWN_SECONDS_MAX]

    async def waiting_for(self, at_us: int) -> Sequence[str]:
        """Who does not act yet on all that was recorded of identities up to `at_us`; UNKNOWN where it is not known who runs."""
        now = self._clock()
        names = {word.gateway for word in self.newest() if word.identity_at_us < at_us}
        for word, heard in self._namesakes.values():
            if now - heard < SILENT_SECONDS_MAX and word.identity_at_us < at_us:
                names.add(word.gateway)
        if self._whole_at is None or now - self._whole_at > WHOLE_SECONDS_MAX:
            names.add(UNKNOWN)
        return sorted(names)

    async def _follow(self) -> None:
        asked_at = self._clock()
        begins, ends = self._log.begin_offsets("observations"), await self._log.offsets("observations")
        offsets = {place: max(begins.get(place, 0), end - REPORTS_BACK) for place, end in ends.items()}
        follower = Follower(self._log, ("observations",), offsets, on_gap=lambda _: None)  # the tables' reader tells of gaps
        reported = ends
        try:
            while True:
                for record, frame in await follower.poll(timeout_seconds=LOOK_SECONDS):
                    for _, event in frame.events:
                        if not isinstance(event, (GatewayReported, ProcessReported)):
                            continue
                        past = record.offset < ends.get((record.topic, record.partition), 0)
                        age_seconds = max(0.0, (self._now_us() - record.at_us) / 1e6) if past else 0.0
                        if isinstance(event, GatewayReported):
                            self._heard(event, age_seconds, past)
                        else:
                            self._heard_process(event, age_seconds)
                if all(follower.offsets[place] >= end for place, end in reported.items()):
                    self._whole_at = asked_at
                    if self._clock() - asked_at >= LOOK_SECONDS:
                        asked_at = self._clock()
                        reported = await self._log.offsets("observations")
        finally:
            follower.close()

    def _heard(self, word: GatewayReported, age_seconds: float, past: bool) -> None:
        """`age_seconds`: by two machines' clocks, so of the past alone. A gateway whose clock is behind is not silent.

        Its own clock may step back too: the order of one start's words is the log's.
        """
        now, name = self._clock(), word.gateway
        before = self._words.get(name)
        if before is not None and word.boot < before[0].boot:
            if not past and now - self._began[name] > NAMESAKE_SECONDS:
                if name not in self._namesakes:
                    _log.critical("two gateways bear the name %s, boots %d and %d: name one anew", name, word.boot, before[0].boot)
                self._namesakes[name] = (word, now)
            return  # an old one's word comes late
        if before is None or word.boot > before[0].boot:
            self._began[name] = now - age_seconds
        self._words[name] = (word, now - age_seconds)
        if len(self._words) > GATEWAYS_MAX:
            silent = min(self._words, key=lambda name: self._words[name][1])
            del self._words[silent], self._began[silent]
            self._namesakes.pop(silent, None)

    def _heard_process(self, word: ProcessReported, age_seconds: float) -> None:
        name = (word.process, word.name)
        before = self._processes.get(name)
        if before is not None and word.boot < before[0].boot:
            return  # an old one's word comes late
        if word.stopping:
            self._processes.pop(name, None)
            return
        self._processes[name] = (word, self._clock() - age_seconds)
        if len(self._processes) > PROCESSES_MAX:
            del self._processes[min(self._processes, key=lambda name: self._processes[name][1])]


def _process(word: ProcessReported, silent_seconds: float) -> Mapping[str, object]:
    up = silent_seconds <= PROCESS_MISSED_SECONDS_MAX
    silence = f"it has not reported for {silent_seconds:.0f} s: it ended, hangs, or does not reach the brokers"
    name = word.name.removeprefix(f"{word.process}-")
    return {"process": word.process, "name": name, "up": up, "reason": word.reason if up else silence}


def _status(word: GatewayReported, silent_seconds: float, deaf: bool) -> Mapping[str, object]:
    """`deaf`: for so long nothing was heard of anybody, which is no gateway's fault."""
    if silent_seconds > MISSED_SECONDS_MAX:
        if deaf:
            reason = f"for {silent_seconds:.0f} s this API has read nothing from the brokers; the gateway may be well"
        else:
            reason = f"it has not reported for {silent_seconds:.0f} s: it ended, hangs, or does not reach the brokers"
        silent = {"gateway": word.gateway, "reachable": False, "reason": reason, "boot": word.boot, "pid": word.pid}
        return {**silent, "deaf": True} if deaf else silent
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
