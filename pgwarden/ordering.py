"""What enforcement concludes goes into topic `commands`, whoever enforces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ingest.events import SessionEndOrdered
from ingest.recorder import Recorder


def ordering(recorder: Recorder) -> Callable[[SessionEndOrdered], Awaitable[None]]:
    """What it returns does so once the order is durable, and raises LogUnavailable when it may not be."""

    async def order(event: SessionEndOrdered) -> None:
        await recorder.recorded(recorder.record("commands", event.session, event))

    return order
