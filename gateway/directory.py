"""Follows the identity and command topics: the registry as it is now, and word of every change to those who rest on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, get_args

from identity.registry import Registry, key_of
from ingest.events import IdentityEvent, SessionEndOrdered
from ingest.follow import Follower
from ingest.log import EventLog

_IDENTITY_EVENTS: Final = get_args(IdentityEvent)


class Directory:
    """Owned by one event loop. `on_change(agent or EVERYONE, at_us)` and `on_order(order)` are called as soon as a fact is read."""

    def __init__(
        self,
        log: EventLog,
        registry: Registry,
        on_change: Callable[[str, int], None],
        on_order: Callable[[SessionEndOrdered], None],
    ) -> None:
        self._log = log
        self._registry = registry
        self._on_change = on_change
        self._on_order = on_order
        offsets = dict(log.end_offsets("commands"))  # orders of earlier boots concern sessions that are over
        self._ends = log.end_offsets("identity")
        self._follower = Follower(log, ("identity", "commands"), offsets)

    @property
    def identity_offset(self) -> int:
        """The first record of `identity` that is not in the registry yet."""
        return self._follower.offsets[("identity", 0)]

    async def catch_up(self) -> None:
        """Return once everything that was recorded before this object was made is known.

        Raises:
            LogCorrupt, LogUnavailable: The registry cannot be known, so nobody can be let in.
        """
        while any(self._follower.offsets.get(place, 0) < end for place, end in self._ends.items()):
            await self._take(0.2)

    async def follow(self) -> None:
        """Run until cancelled. Raises LogCorrupt, LogUnavailable as above."""
        while True:
            await self._take(1.0)
            await asyncio.sleep(0)

    async def _take(self, seconds: float) -> None:
        for _, frame in await self._follower.poll(timeout_seconds=seconds):
            for _, event in frame.events:
                if isinstance(event, SessionEndOrdered):
                    self._on_order(event)
                elif isinstance(event, _IDENTITY_EVENTS):
                    self._registry.apply(event)
                    self._on_change(key_of(event), event.at_us)

    def close(self) -> None:
        self._follower.close()
