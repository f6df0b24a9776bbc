"""A gateway's log on this machine in and out of Kafka: its record goes to the brokers, identities and orders come from them.

Everything keeps its order and its bytes. `sessions` and `statements` are shipped, one batch at a time, each again until the brokers
have acknowledged it: after a fault a frame may be there twice, which readers tell by its name, but never out of its turn.
`identity` and `commands` are mirrored: record n of the brokers becomes record n here, so that where the mirror stands is simply
where the file ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from ingest.clock import mono_us, now_us
from ingest.events import GatewayReported
from ingest.log import Entry, EventLog, LogCorrupt, LogUnavailable, Partition, Record
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.relay_lines import GatewayWord, RelayState
from ingest.settings import RecorderSettings, RelaySettings

SHIPPED: Final = ("sessions", "statements")
MIRRORED: Final = ("identity", "commands")
GROUP: Final = "relay"

_POLL_SECONDS: Final = 1.0
_RETRY_SECONDS_MIN: Final = 0.1
_RETRY_SECONDS_MAX: Final = 5.0  # what holds the longest outage up at its end
_PROBE_SECONDS: Final = 1.0  # between two questions to the brokers when all is quiet
_ANSWER_SECONDS_MAX: Final = 10.0
_COUNT_RECORDS: Final = 2_000  # looked at by one call; they are in the page cache, and their values are not kept
_COUNT_SECONDS: Final = 0.05  # between two looks; the gateway itself knows what it has written since
_TRIM_SECONDS: Final = 600.0  # between two looks for segments that are old enough to go; each reads some 20 records


class _Author(msgspec.Struct, frozen=True, array_like=True):
    """The first fields of a frame: whose it is."""

    version: int
    writer: str
    boot: int


_authors: Final = msgspec.msgpack.Decoder(_Author)


def _author(record: Record) -> tuple[str, int]:
    try:
        author = _authors.decode(record.value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogCorrupt(f"{record.topic}/{record.partition}, record {record.offset}: {error}") from error
    return author.writer, author.boot


def _runs(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Neighbours of one boot. Sent again behind frames of the next boot, those of the one before would pass for new ones."""
    return (list(run) for _, run in itertools.groupby(records, _author))


def _entries(records: Iterable[Record]) -> list[Entry]:
    return [Entry(record.topic, record.key, record.value) for record in records]


class _Troubles:
    """What is in the way now, by who met it."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._sentences: dict[str, str] = {}

    def __str__(self) -> str:
        return "; ".join(self._sentences.values())

    def met(self, where: str, error: Exception | str) -> None:
        sentence = f"{where}: {str(error) or type(error).__name__}"
        if self._sentences.get(where) != sentence:
            self._sentences[where] = sentence
            self._on_change()

    def over(self, where: str) -> None:
        if self._sentences.pop(where, None) is not None:
            self._on_change()


async def _once(work: Callable[[], Awaitable[None]], where: str, troubles: _Troubles) -> None:
    """Try until it is done."""
    pause = _RETRY_SECONDS_MIN
    while True:
        try:
            await work()
        except (LogUnavailable, LogCorrupt) as error:
            troubles.met(where, error)
        else:
            troubles.over(where)
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _RETRY_SECONDS_MAX)


async def _for_ever(where: str, troubles: _Troubles, work: Callable[[], Awaitable[None]]) -> None:
    """Begin again after each fault of either log, later each time."""
    pause = _RETRY_SECONDS_MIN
    while True:
        began = time.monotonic()
        try:
            await work()
        except (LogUnavailable, LogCorrupt) as error:
            troubles.met(where, error)
        if time.monotonic() - began > 2 * _RETRY_SECONDS_MAX:
            pause = _RETRY_SECONDS_MIN
        await asyncio.sleep(pause)
        pause = min(2 * pause, _RETRY_SECONDS_MAX)


class Shipper:
    """The local log's record -> the brokers. `shipped` and the bytes behind are told by `on_change`."""

    def __init__(
        self, here: EventLog, brokers: EventLog, settings: RelaySettings, troubles: _Troubles, on_change: Callable[[], None]
    ) -> None:
        self._here = here
        self._brokers = brokers
        self._settings = settings
        self._troubles = troubles
        self._on_change = on_change
        self._counted: dict[Partition, int] = {}  # where the counting stands
        self._is_counted = False
        self._bytes_counted = 0
        self._bytes_shipped = 0
        self._known = asyncio.Event()
        self.shipped: dict[Partition, int] = {}  # empty until it is known

    @property
    def backlog_bytes(self) -> int:
        """-1 while what an earlier process left has not been counted."""
        return max(0, self._bytes_counted - self._bytes_shipped) if self._is_counted else -1

    @property
    def backlog_records(self) -> int:
        if not self._is_counted:
            return -1
        return sum(max(0, counted - self.shipped.get(place, counted)) for place, counted in self._counted.items())

    def ends(self) -> dict[Partition, int]:
        return {place: end for topic in SHIPPED for place, end in self._here.end_offsets(topic).items()}

    def has_shipped(self, ends: Mapping[Partition, int]) -> bool:
        return bool(self.shipped) and all(self.shipped.get(place, 0) >= end for place, end in ends.items())

    async def ship(self) -> None:
        """Until a log fails. Raises LogUnavailable, LogCorrupt."""
        subscription = self._here.subscribe(SHIPPED, GROUP)
        try:
            if not self.shipped:
                self.shipped = await subscription.committed()
                self._known.set()
                self._on_change()
            while True:
                records = await subscription.poll(self._settings.batch_records_max, _POLL_SECONDS)
                for run in _runs(records):
                    await self._send(run)
                    done = {(record.topic, record.partition): record.offset + 1 for record in run}
                    self.shipped.update(done)
                    self._bytes_shipped += sum(len(record.key) + len(record.value) for record in run)
                    self._on_change()
                    # Before the next run is sent: should this process end now, the one after it begins with this run again.
                    await _once(lambda done=done: subscription.commit(done), "remembering", self._troubles)  # type: ignore[misc]
                self._troubles.over("shipping")
        finally:
            subscription.close()

    async def _send(self, run: Sequence[Record]) -> None:
        entries = _entries(run)
        first = run[0]

        async def append() -> None:
            try:
                await self._brokers.append(entries)
            except (LogUnavailable, LogCorrupt, ValueError) as error:  # ValueError: larger than they take, until they take it
                raise LogUnavailable(f"{first.topic}/{first.partition}, from record {first.offset}: {error}") from error

        await _once(append, "shipping", self._troubles)

    async def count(self) -> None:
        """Look at what is to be shipped before its turn comes. Until a log fails. Raises LogUnavailable, LogCorrupt."""
        await self._known.wait()
        self._counted = dict(self.shipped)
        self._bytes_counted = self._bytes_shipped
        ends = self.ends()
        subscription = self._here.assign(dict(self._counted))
        try:
            while True:
                if not self._is_counted and all(self._counted.get(place, 0) >= end for place, end in ends.items()):
                    self._is_counted = True
                    self._on_change()
                records = await subscription.poll(_COUNT_RECORDS, 0)
                for record in records:
                    self._counted[(record.topic, record.partition)] = record.offset + 1
                    self._bytes_counted += len(record.key) + len(record.value)
                if not records:
                    await asyncio.sleep(_COUNT_SECONDS)
                elif self._is_counted:
                    self._on_change()
        finally:
            subscription.close()


class Mirror:
    """One topic of the brokers -> the local log, whose only writer this is."""

    def __init__(self, topic: str, here: SegmentLog, brokers: EventLog, troubles: _Troubles, on_change: Callable[[], None]) -> None:
        self._topic = topic
        self._place: Partition = (topic, 0)  # one partition, one order for all
        self._here = here
        self._brokers = brokers
        self._troubles = troubles
        self._on_change = on_change
        self._moved = asyncio.Event()
        self.next_offset = -1  # of the brokers' log and of ours; -1 = not known yet

    async def mirror(self) -> None:
        """Until a log fails. Raises LogUnavailable, LogCorrupt."""
        self._troubles.over(self._topic)
        await self._here.claim((self._topic,))
        # The end as it is in the files: an append that failed may have stored a part of what it was given.
        begin = self._here.end_offsets(self._topic)[self._place]
        await self._compare(begin)
        self._move(begin)
        subscription = self._brokers.assign({self._place: begin})
        try:
            while True:
                records = await subscription.poll(_COUNT_RECORDS, _POLL_SECONDS)
                for expected, record in enumerate(records, self.next_offset):
                    if record.offset != expected:
                        raise LogCorrupt(f"the brokers no longer have its records {expected} to {record.offset - 1}")
                if records:
                    await self._here.append(_entries(records))
                    self._move(self.next_offset + len(records))
        finally:
            subscription.close()

    async def reached(self, offset: int, seconds: float) -> bool:
        """Whether everything below this offset was mirrored before so much time was over."""
        try:
            async with asyncio.timeout(seconds):
                while self.next_offset < offset:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _move(self, offset: int) -> None:
        self.next_offset = offset
        self._moved.set()
        self._on_change()

    async def _compare(self, begin: int) -> None:
        """What stands last here must stand there: a gateway that goes on behind another log's facts would obey nobody's."""
        if begin == self._here.begin_offsets(self._topic)[self._place]:
            return  # nothing stands here: nothing yet, or all of it was given up and the next segment is still empty
        last = {self._place: begin - 1}
        there = (await self._brokers.offsets(self._topic))[self._place]
        if there < begin:
            raise LogCorrupt(f"the brokers have {there} records, and this machine has {begin}: {_OTHER}")
        here, other = self._here.assign(dict(last)), self._brokers.assign(dict(last))
        try:
            mine, theirs = await here.poll(1, _ANSWER_SECONDS_MAX), await other.poll(1, _ANSWER_SECONDS_MAX)
        finally:
            here.close()
            other.close()
        if not mine or not theirs:
            raise LogUnavailable(f"{'the brokers do' if mine else 'this machine does'} not show record {begin - 1}")
        if (mine[0].key, mine[0].value) != (theirs[0].key, theirs[0].value):
            raise LogCorrupt(f"record {begin - 1} is another here than with the brokers: {_OTHER}")


_OTHER: Final = "these are two logs; check kafka.bootstrap and kafka.topic_prefix, or move this topic's folder away"


class Relay:
    """One a gateway, on one event loop. `run` until cancelled; then `finish`, `close`.

    `on_change` is called on the loop whenever `state()` is another.
    """

    def __init__(
        self,
        here: SegmentLog,
        connect: Callable[[], Awaitable[EventLog]],
        gateway: str,
        settings: RelaySettings,
        on_change: Callable[[], None],
    ) -> None:
        """`here` is this object's from now on. `connect` raises LogUnavailable while there are no brokers."""
        self._here = here
        self._connect = connect
        self._gateway = gateway
        self._settings = settings
        self._on_change = on_change
        self._troubles = _Troubles(on_change)
        self._brokers: EventLog | None = None
        self._shipper: Shipper | None = None
        self._shipping: list[asyncio.Task[None]] = []
        self._reports: Recorder | None = None
        self._unreported: GatewayReported | None = None
        self._needed: Mapping[str, int] = {}
        self._contact_mono_us = 0
        self._identity_offset = 0
        self._closed = False

    def state(self) -> RelayState:
        shipper = self._shipper
        return RelayState(
            os.getpid(),
            self._contact_mono_us,
            self._identity_offset,
            {topic: offset for (topic, _), offset in shipper.shipped.items()} if shipper is not None else {},
            shipper.backlog_bytes if shipper is not None else -1,
            shipper.backlog_records if shipper is not None else -1,
            str(self._troubles),
        )

    async def run(self) -> None:
        """Until cancelled; nothing that a log can do ends it. Shipping goes on until close()."""
        await _once(self._claim, "starting", self._troubles)
        await _once(self._reach_brokers, "connecting", self._troubles)
        brokers = self._brokers
        assert brokers is not None
        self._reports = Recorder(brokers, f"{self._gateway}.relay", now_us(), RecorderSettings())
        shipper = self._shipper = Shipper(self._here, brokers, self._settings, self._troubles, self._on_change)
        mirrors = {topic: Mirror(topic, self._here, brokers, self._troubles, self._on_change) for topic in MIRRORED}
        for where, work in (("shipping", shipper.ship), ("counting", shipper.count)):
            self._shipping.append(asyncio.create_task(_for_ever(where, self._troubles, work)))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_shipping())
            for topic, mirror in mirrors.items():
                group.create_task(_for_ever(topic, self._troubles, mirror.mirror))
            group.create_task(_for_ever("trimming", self._troubles, lambda: self._trim(mirrors["commands"])))
            group.create_task(_for_ever("asking", self._troubles, lambda: self._ask(brokers, mirrors["identity"])))

    async def _trim(self, commands: Mirror) -> None:
        """Give up what is old here, safe there, and not needed at the gateway's next start, for which `identity` stays whole."""
        while True:
            await asyncio.sleep(min(_TRIM_SECONDS, self._settings.keep_seconds / 4))
            before_us = now_us() - int(self._settings.keep_seconds * 1e6)
            shipped = self._shipper.shipped if self._shipper is not None else {}
            safe = {place: min(offset, self._needed.get(place[0], 0)) for place, offset in shipped.items()}
            if commands.next_offset >= 0:
                safe[("commands", 0)] = commands.next_offset
            for (topic, number), end in safe.items():
                offset = await self._first_since(before_us, (topic, number), end)
                await asyncio.to_thread(self._here.trim, topic, number, offset)

    async def _first_since(self, at_us: int, place: Partition, end: int) -> int:
        """The first record below `end` that was written at that time or later; `end` where there is none."""
        begin = self._here.begin_offsets(place[0])[place]
        while begin < end:
            middle = (begin + end) // 2
            subscription = self._here.assign({place: middle})
            try:
                records = await subscription.poll(1, _ANSWER_SECONDS_MAX)
            finally:
                subscription.close()
            if records and records[0].at_us < at_us:
                begin = middle + 1
            else:
                end = middle
        return end

    async def _watch_shipping(self) -> None:
        done, _ = await asyncio.wait(self._shipping, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # what no log can do has ended it: so ends this process, and another begins

    def heard(self, word: GatewayWord) -> None:
        """Publish the gateway's report. While an earlier one is on its way the newest waits, and the others are dropped."""
        self._needed = word.needed
        self._unreported = word.report
        self._publish()

    def _publish(self) -> None:
        report, reports = self._unreported, self._reports
        if report is None or reports is None or self._closed or reports.state().pending_events:
            return
        self._unreported = None
        if self._shipper is not None and self._shipper.backlog_bytes >= 0:
            report = msgspec.structs.replace(report, backlog_bytes=self._shipper.backlog_bytes)
        reports.when_durable(reports.record("observations", self._gateway, report), self._publish)

    async def finish(self, seconds: float) -> bool:
        """Whether the brokers had what is in the local log now before so much time was over. After `run` was cancelled."""
        shipper = self._shipper
        if shipper is None:
            return False
        ends = shipper.ends()
        until = time.monotonic() + seconds
        while not shipper.has_shipped(ends):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.01)
        return True

    async def close(self) -> None:
        self._closed = True
        for task in self._shipping:
            task.cancel()
        await asyncio.gather(*self._shipping, return_exceptions=True)
        for closing in (self._reports, self._brokers, self._here):
            if closing is not None:
                try:
                    await closing.close()
                except LogUnavailable as error:
                    self._troubles.met("closing", error)

    async def _claim(self) -> None:
        """A relay before this one may still be finishing; what it has shipped is known once it is gone."""
        await self._here.claim(MIRRORED)

    async def _reach_brokers(self) -> None:
        self._brokers = await self._connect()

    async def _ask(self, brokers: EventLog, identity: Mirror) -> None:
        """Whether all that was acknowledged in `identity` before the question is here by now: only then is this machine current."""
        while True:
            asked_mono_us = mono_us()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                    ((_, end),) = (await brokers.offsets("identity")).items()
            except TimeoutError as error:
                raise LogUnavailable(f"no answer for {_ANSWER_SECONDS_MAX:g} s") from error
            if identity.next_offset > end:
                raise LogCorrupt(
                    f"the brokers have {end} records of identity, and this machine has {identity.next_offset}: {_OTHER}"
                )
            if await identity.reached(end, _ANSWER_SECONDS_MAX):
                self._contact_mono_us, self._identity_offset = asked_mono_us, end
                self._troubles.over("asking")
                self._on_change()
                await asyncio.sleep(min(_PROBE_SECONDS, self._settings.stale_seconds_max / 4))
