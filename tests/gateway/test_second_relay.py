"""A relay that somebody starts by hand beside the gateway's own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ingest import relay_lines
from ingest.settings import KafkaSettings

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def heard(warden: Warden) -> relay_lines.RelayState:
    """The first line of whoever listens at the relay's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(warden.folder / "state/run/relay.sock"))
        with client.makefile("rb") as lines:
            return relay_lines.state(lines.readline())


def test_a_second_relay_waits_and_leaves_the_first_its_socket(
    make_warden: Callable[..., Warden], kafka_settings: KafkaSettings, wait_for: Callable[..., object]
) -> None:
    warden = make_warden(kafka=kafka_settings)
    own = wait_for(lambda: heard(warden).pid, seconds=20)
    said = warden.folder / "second.out"
    with said.open("wb") as output:
        second = subprocess.Popen(
            [sys.executable, "-m", "pgwarden", "relay", "-c", str(warden.folder / "pgwarden.toml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: "waiting for another relay to end" in said.read_text(), seconds=60)
        assert heard(warden).pid == own
        second.terminate()
        assert second.wait(30) == 0
        assert heard(warden).pid == own
    finally:
        if second.poll() is None:
            second.kill()
            second.wait()
