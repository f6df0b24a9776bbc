"""What live tests share: a server on its own copy of a binary, probed, and what is decoded of its ring."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.collectors.collector import Observation
from ingest.collectors.ebpf import libbpf, versions
from ingest.collectors.ebpf.attach import Probes, ProbeSettings
from ingest.collectors.ebpf.decode import Decoding
from ingest.collectors.ebpf.ring import Ring
from ingest.collectors.ebpf.server import ServerUnknown
from tests.ingest.collectors.ebpf.servers import DEBIAN_15, OTHERS, Server, copy_of, home

Needs = Callable[[str, bool], None]


class Watched:
    """A server, its probes, and all that was seen of it so far."""

    def __init__(self, server: Server, **settings: object) -> None:
        self.server = server
        self.settings = ProbeSettings(f"test-{secrets.token_hex(4)}", server.data, **settings)  # type: ignore[arg-type]
        self.probes = Probes(self.settings)
        self.probes.look()
        self.ring = Ring(self.probes.fds["ring"], self.settings.ring_bytes)
        self.spill = Ring(self.probes.fds["spill"], self.settings.spill_bytes)
        self.decoding = Decoding("ebpf", "server")
        self.seen: list[Observation] = []

    def look(self) -> list[Observation]:
        """Decode what is new, and let it go."""
        wall_us = time.time_ns() // 1000 - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        until = self.spill.produced
        while True:
            span = self.ring.read(self.ring.consumed)
            self.seen += self.decoding.records(span.data, wall_us)
            self.ring.let_go(span.end)
            if span.caught_up:
                break
        spilled = self.spill.read(self.spill.consumed, until - self.spill.consumed)
        self.seen += self.decoding.spilled(spilled.data, wall_us)
        self.spill.let_go(spilled.end)
        return self.seen

    def counter(self, number: int) -> int:
        value = libbpf.lookup(self.probes.fds["counters"], number.to_bytes(4, "little"), 8)
        assert value is not None
        return int.from_bytes(value, "little")

    def close(self) -> None:
        self.ring.close()
        self.spill.close()
        self.probes.remove()


@pytest.fixture(scope="session")
def bpf(needs: Needs) -> None:
    """Loading a program and attaching a uprobe, really tried: on a file of our own, that nobody runs."""
    try:
        probes = Probes(ProbeSettings(f"try-{secrets.token_hex(4)}", Path("/nowhere"), ring_bytes=2**16, spill_bytes=2**16))
        probes.remove()
    except (libbpf.BpfRefused, OSError, ServerUnknown) as refused:
        print(refused)
        needs("ebpf", False)


def binaries_of(version: int) -> Path:
    return {15: DEBIAN_15, 18: Path("/")}.get(version, OTHERS / str(version) / "bin" / "postgres")


@pytest.fixture(scope="session", params=sorted(versions.KNOWN))
def server(request: pytest.FixtureRequest, needs: Needs, bpf: None) -> Iterator[Server]:
    """Each known version; 14, 16 and 17 where `make postgres-versions` fetched them."""
    version: int = request.param
    needs(f"postgres-{version}", binaries_of(version).exists())
    place = home()
    try:
        with Server(place, copy_of(version, place)) as running:
            running.version = version
            yield running
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="session")
def watched(server: Server) -> Iterator[Watched]:
    """For all tests that need no probes of their own: each looks for its own sessions, by their application_name."""
    made = Watched(server, nested=True)
    try:
        yield made
    finally:
        made.close()
