"""What the threads of a log on Kafka share: how long they wait, and how they reach the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

OVERHEAD_BYTES: Final = 1024  # of a batch around one record, generously; and of a request around its batches
RETRIED_SECONDS: Final = 0.25  # between two attempts to connect
ABANDON_SECONDS: Final = 2.0  # for kafka-python's own thread to end


def tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(call)
