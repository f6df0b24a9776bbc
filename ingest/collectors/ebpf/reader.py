"""The collector that reads what `pgwarden witness` hands over: the unprivileged side, in `pgwarden collector`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from ingest.clock import now_us
from ingest.collectors.collector import CollectorState, Kind, Observation, Outlet, Sees
from ingest.collectors.ebpf import messages
from ingest.collectors.ebpf.cgroups import Cgroups
from ingest.collectors.ebpf.clocks import wall_us
from ingest.collectors.ebpf.decode import Decoding, RingInvalid
from ingest.collectors.ebpf.messages import LetGo, Malformed, Status
from ingest.collectors.settings import TextPolicy
from ingest.events import ObservationGap, SessionObserved, StatementObserved

RETRY_SECONDS: Final = 0.5  # before it connects again
SILENCE_SECONDS_MAX: Final = 10.0  # a witness says something each 100 ms
BEHIND_NS: Final = (
    50_000_000  # a record's time is taken a moment before its place in the ring, and a backend may lose the CPU between
)
_RING_SHARE: Final = 4  # an open statement holds at most this part of the ring back

_log = logging.getLogger(__name__)


class EbpfCollector:
    """A `collector.Collector`. What it has not recorded for good stays in the kernel's ring, whoever is started anew."""

    def __init__(
        self,
        name: str,
        server: str,
        path: Path,
        policy: TextPolicy | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`path`: the witness's socket."""
        self.name = name
        self.kind: Kind = "ebpf"
        self.server = server
        self.sees: Sees = "statements"
        self.resumed_us = 0
        self._path = path
        self._policy = policy or TextPolicy()
        self._retry_seconds = retry_seconds
        self._cgroups = Cgroups()
        self.decoding = Decoding(name, server)
        self._made_ns = 0
        self._wall_us = 0
        self._ring_bytes = 0
        self._ring_end = 0  # read so far
        self._spill_end = 0
        self._unseen = 0
        self.status: Status | None = None
        self._reason = "it has not reached the witness yet"
        self._complete_us = 0
        self._observed = 0
        self._lag_us = -1
        self._tickets: deque[tuple[int, LetGo]] = deque()
        self._ticketed = asyncio.Event()

    def state(self) -> CollectorState:
        reason = self._reason or (self.status.reason if self.status is not None else "")
        return CollectorState(
            not reason, reason, self._complete_us, self._observed, self.decoding.lost, self._lag_us, self._of_the_witness()
        )

    def _of_the_witness(self) -> Mapping[str, int] | None:
        """What it last said of itself; `reached` is 0 once it is lost."""
        if (status := self.status) is None:
            return None
        return {
            "reached": int(not self._reason),
            "attached": int(status.seeing and not self._reason),
            "made": status.made,
            "lost": status.lost,
            "unattributed": status.unattributed,
            "unreadable_texts": status.unreadable_texts,
            "full_sessions": status.full_sessions,
        }

    async def run(self, outlet: Outlet) -> None:
        """As `Collector.run`."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError as error:
                self._hindered(f"the witness at {self._path} cannot be reached ({error.strerror or error}): start pgwarden witness")
                await asyncio.sleep(self._retry_seconds)
                continue
            self._tickets.clear()
            letting_go = asyncio.create_task(self._let_go(outlet, writer))
            try:
                await self._follow(reader, outlet)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                what = "it closed the connection" if isinstance(error, asyncio.IncompleteReadError) else repr(error)
                self._hindered(
                    f"the witness at {self._path} was lost ({what}): see whether it runs, and whether it takes this user"
                )
            except (Malformed, RingInvalid) as error:
                self._hindered(f"the witness at {self._path} cannot be understood: {error}")
            finally:
                letting_go.cancel()
                writer.close()
            await asyncio.wait((letting_go,))
            if not letting_go.cancelled() and (failure := letting_go.exception()) is not None and not isinstance(failure, OSError):
                raise failure
            await asyncio.sleep(self._retry_seconds)

    def _hindered(self, reason: str) -> None:
        if reason != self._reason:
            _log.warning("%s: %s", self.name, reason)
        self._reason = reason

    # -- what the witness says -----------------------------------------------------------------------------------------------------

    async def _follow(self, reader: asyncio.StreamReader, outlet: Outlet) -> None:
        greeted = False
        while True:
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                length, kind = messages.head(await reader.readexactly(messages.HEAD.size))
                body = await reader.readexactly(length)
            if kind == messages.HELLO:
                self._greet(messages.read_hello(body))
                greeted = True
            elif not greeted:
                raise Malformed(f"a message of kind {kind} before its hello")
            elif kind == messages.STATUS:
                self.status = messages.read_status(body)
                self._reason = ""
            else:
                await self._piece(kind, body, outlet)

    def _greet(self, hello: messages.Hello) -> None:
        self._ring_bytes = hello.ring_bytes
        self._wall_us = wall_us(hello.wall_us)
        if hello.made_ns != self._made_ns:  # a ring of its own: its sessions count from the start
            self._made_ns = hello.made_ns
            self.decoding = Decoding(self.name, self.server, lost=self.decoding.lost)
            self._ring_end = self._spill_end = 0
        if not self.resumed_us:
            self.resumed_us = (hello.recorded_ns or hello.made_ns) // 1000 + self._wall_us

    async def _piece(self, kind: int, body: bytes, outlet: Outlet) -> None:
        now = self._wall_us = wall_us(self._wall_us)
        as_of_ns = 0
        if kind == messages.KNOWN:
            told = self.decoding.known(body, now)
        elif kind == messages.RECORDS:
            piece = messages.read_piece(body)
            as_of_ns = piece.as_of_ns
            fresh = _fresh(piece, self._ring_end)
            told = self.decoding.records(fresh, now, piece.end - len(piece.data))
            self._ring_end = max(self._ring_end, piece.end)
            told += self.decoding.tick(time.clock_gettime_ns(time.CLOCK_BOOTTIME), now)
        elif kind == messages.SPILLED:
            piece = messages.read_piece(body)
            told = self.decoding.spilled(_fresh(piece, self._spill_end), now)
            self._spill_end = max(self._spill_end, piece.end)
        elif kind == messages.UNSEEN:
            unseen = messages.read_unseen(body)
            self._unseen = unseen.number
            begin, end = unseen.from_ns // 1000 + now, unseen.until_ns // 1000 + now
            told = [ObservationGap(end, self.name, self.server, "", begin, end, 0, unseen.reason)]
        else:
            raise Malformed(f"a message of kind {kind}")
        ticket = await self._record(told, outlet)
        if kind == messages.RECORDS and as_of_ns:
            self._complete_us = max(self._complete_us, (as_of_ns - BEHIND_NS) // 1000 + now)
        if ticket or as_of_ns or kind == messages.UNSEEN:
            self._tickets.append((ticket, LetGo(self._floor(), self._spill_end, self._unseen, max(0, as_of_ns - BEHIND_NS))))
            self._ticketed.set()

    def _floor(self) -> int:
        """What a reader that begins anew would need: from the beginning of statements that are open, within reason."""
        floor = self.decoding.floor()
        if floor is None or self._ring_end - floor > self._ring_bytes // _RING_SHARE:
            return self._ring_end
        return floor

    async def _record(self, told: Sequence[Observation], outlet: Outlet) -> int:
        if not told:
            return 0
        ticket = await outlet.record([self._as_asked(one) for one in told])
        self._observed += len(told)
        newest = max((_ended_us(one) for one in told), default=0)
        self._lag_us = max(0, now_us() - newest)
        return ticket

    def _as_asked(self, seen: Observation) -> Observation:
        """What the policy says of texts; and where a client's cgroup is, which the kernel gave a number only."""
        if isinstance(seen, StatementObserved):
            if not self._policy.full:
                return msgspec.structs.replace(seen, text="")
            if len(seen.text) * 4 > self._policy.bytes_max and len(encoded := seen.text.encode()) > self._policy.bytes_max:
                return msgspec.structs.replace(seen, text=encoded[: self._policy.bytes_max].decode("utf-8", "ignore"))
        elif isinstance(seen, SessionObserved) and seen.client_cgroup:
            return msgspec.structs.replace(seen, client_cgroup_path=self._cgroups.path(seen.client_cgroup))
        return seen

    # -- what it need not keep -----------------------------------------------------------------------------------------------------

    async def _let_go(self, outlet: Outlet, writer: asyncio.StreamWriter) -> None:
        """In the order of the tickets, and only what is recorded for good. Raises OSError, LogUnavailable."""
        ring_end = 0
        while True:
            while not self._tickets:
                self._ticketed.clear()
                await self._ticketed.wait()
            ticket, said = 0, self._tickets[-1][1]  # the newest says all
            while self._tickets:
                ticket = self._tickets.popleft()[0] or ticket
            if ticket:
                await outlet.recorded(ticket)
            ring_end = max(ring_end, said.ring_end)  # an open statement holds back only what was not let go of yet
            writer.write(messages.let_go(replace(said, ring_end=ring_end)))
            await writer.drain()


def _fresh(piece: messages.Piece, read: int) -> bytes:
    """Less what was read before: a witness that begins anew hands over all that was not let go of."""
    begin = piece.end - len(piece.data)
    return piece.data[max(0, read - begin) :] if begin < read else piece.data


def _ended_us(seen: Observation) -> int:
    return seen.at_us + max(0, seen.duration_us) if isinstance(seen, StatementObserved) else seen.at_us
