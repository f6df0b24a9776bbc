"""Each start of a gateway has a number above all before it, whatever the clock says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ingest.events import GatewayStarted
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

FAR_AHEAD_US = 4_000_000_000_000_000  # the year 2096


def test_a_clock_that_was_set_back_does_not_make_new_records_look_like_old_ones(make_warden: Callable[..., Warden]) -> None:
    warden = make_warden(start=False)

    async def a_start_while_the_clock_was_wrong() -> None:
        log = SegmentLog(warden.folder / "state/log", LogSettings())
        recorder = Recorder(log, "gateway-1", FAR_AHEAD_US, RecorderSettings())
        started = GatewayStarted(FAR_AHEAD_US, "gateway-1", FAR_AHEAD_US, "0")
        await recorder.recorded(recorder.record("sessions", "gateway-1", started))
        await recorder.close()
        await log.close()

    (warden.folder / "state").mkdir(mode=0o700)
    asyncio.run(a_start_while_the_clock_was_wrong())
    for _ in range(2):
        warden.start()
        assert warden.stop() == 0
    starts = [event.boot for event in warden.session_events(GatewayStarted) if isinstance(event, GatewayStarted)]
    assert starts[0] == FAR_AHEAD_US
    assert starts == sorted(set(starts))
    assert len(starts) == 3
