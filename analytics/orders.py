"""Orders go out; back come the names of those that are recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from ingest.events import SessionEndOrdered
from ingest.log import LogUnavailable

Order: TypeAlias = Callable[[SessionEndOrdered], Awaitable[None]]
"""Returns once the order is durable in topic `commands`; raises LogUnavailable when it may not be: it is called again."""

ORDERS_AT_ONCE: Final = 256


async def recorded(orders: Sequence[SessionEndOrdered], order: Order) -> list[str]:
    """The names of those that are durable now; the others are to be offered again. Raises whatever else `order` does."""
    results = await asyncio.gather(*(order(each) for each in orders), return_exceptions=True)
    for result in results:
        if result is not None and not isinstance(result, LogUnavailable):
            raise result
    return [each.order for each, result in zip(orders, results, strict=True) if result is None]
