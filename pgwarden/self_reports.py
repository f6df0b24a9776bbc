"""A process's word on itself in the log, for an API on another machine: where the log is Kafka nobody else can be asked there."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final

from ingest.clock import now_us
from ingest.events import ProcessReported
from ingest.log import LogUnavailable
from ingest.recorder import Recorder

REPORT_SECONDS: Final = 5.0


async def report(recorder: Recorder, process: str, name: str, boot: int, reason: Callable[[], str]) -> None:
    """Until cancelled; then say that it ends. `reason`: why it is not well, "" while it is."""
    try:
        while True:
            _say(recorder, ProcessReported(now_us(), process, name, boot, os.getpid(), reason()))
            await asyncio.sleep(REPORT_SECONDS)
    finally:
        _say(recorder, ProcessReported(now_us(), process, name, boot, os.getpid(), "", stopping=True))


def _say(recorder: Recorder, word: ProcessReported) -> None:
    with contextlib.suppress(LogUnavailable):  # its silence tells
        recorder.record("observations", word.name, word, flush=False)
