from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store
from ingest.events import TOPICS
from ingest.follow import Follower, Gap
from ingest.log import EventLog


@dataclass(frozen=True, slots=True)
class Rebuilt:
    checksum: str
    frames: int
    events: int
    seconds: float


async def rebuild(log: EventLog, settings: AnalyticsSettings) -> Rebuilt:
    """Read the whole log, as far as it reaches now, into new tables, which then take the place of the old ones.

    Raises:
        TablesBusy: A running API holds the tables.
        LogCorrupt, LogUnavailable: The log cannot be read to its end. The old tables stay.
    """
    began = time.monotonic()
    store = await asyncio.to_thread(Store.open, settings, fresh=True)
    whole = False
    frames = events = 0
    gaps: list[Gap] = []
    follower = Follower(log, TOPICS, {}, on_gap=gaps.append)
    try:
        ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
        while any(follower.offsets[place] < end for place, end in ends.items()):
            batch = await follower.poll(settings.poll_records_max, 1.0)
            if batch:
                ingested = Batch(batch, dict(follower.offsets), dict(follower.seen), tuple(gaps))
                await asyncio.to_thread(store.ingest, ingested)
                gaps.clear()
            frames += len(batch)
            events += sum(len(frame.events) for _, frame in batch)
        checksum = await asyncio.to_thread(store.checksum)
        whole = True
    finally:
        follower.close()
        await asyncio.to_thread(store.close if whole else store.discard)
    return Rebuilt(checksum, frames, events, time.monotonic() - began)
