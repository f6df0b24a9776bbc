"""`make bench-witness`: what the witness costs a backend, what reading it costs, and whether it keeps up. As root, one minute."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from ingest.collectors.collector import Observation
from ingest.collectors.ebpf.attach import Probes, ProbeSettings
from ingest.collectors.ebpf.decode import Decoding
from ingest.collectors.ebpf.reader import EbpfCollector
from ingest.collectors.ebpf.ring import Ring
from ingest.events import WitnessConnected
from tests.ingest.collectors.ebpf.servers import Server, copy_of, home

STATEMENT = b"select note from things where id = 500"
PIECE = 250  # statements of one message, in the flood


class _Wire:
    """One connection, in clear: a driver's own work would blur what is measured."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self.pid = self._connection.info.backend_pid
        self.socket = socket.socket(fileno=os.dup(self._connection.fileno()))
        self.socket.setblocking(True)

    def ask(self, *messages: tuple[bytes, bytes]) -> None:
        """Until ReadyForQuery, which ends what the server sends."""
        self.socket.sendall(b"".join(kind + (len(body) + 4).to_bytes(4, "big") + body for kind, body in messages))
        tail = b""
        while tail[-6:-1] != b"Z\0\0\0\5":
            tail = (tail + self.socket.recv(65_536))[-6:]


def _cpu_ns(pid: int) -> int:
    """On a CPU so far: /proc/PID/schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def backend(server: Server, probes: ProbeSettings, rounds: int, statements: int) -> None:
    executes = (b"B", b"\0s\0\0\0\0\0\0\0"), (b"E", b"\0\0\0\0\0"), (b"S", b"")
    print(f"backend CPU, us a statement: {rounds} pairs of {statements} statements, without and with probes, in turn")
    for protocol in ("simple", "prepared"):
        wire = _Wire(server.dsn())
        wire.ask((b"P", b"s\0" + STATEMENT + b"\0\0\0"), (b"S", b""))
        messages = ((b"Q", STATEMENT + b"\0"),) if protocol == "simple" else executes
        for _ in range(2000):
            wire.ask(*messages)
        without, extra = [], []
        for number in range(rounds):
            spent = {}
            for on in (False, True) if number % 2 else (True, False):
                attached = Probes(probes) if on else None
                if attached is not None:
                    attached.look()
                for _ in range(200):
                    wire.ask(*messages)
                began = _cpu_ns(wire.pid)
                for _ in range(statements):
                    wire.ask(*messages)
                spent[on] = (_cpu_ns(wire.pid) - began) / statements / 1000
                if attached is not None:
                    attached.remove()
            without.append(spent[False])
            extra.append(spent[True] - spent[False])
        low, middle, high = (sorted(extra)[place] for place in (rounds // 4, rounds // 2, rounds * 3 // 4))
        off = statistics.median(without)
        print(f"  {protocol:<9} without {off:6.1f}   difference of pairs {middle:+5.2f}  (quartiles {low:+.2f}, {high:+.2f})")


def decoding(server: Server, probes: ProbeSettings, statements: int) -> None:
    attached = Probes(probes)
    attached.look()
    wire = _Wire(server.dsn())
    for _ in range(statements):
        wire.ask((b"Q", STATEMENT + b"\0"))
    ring = Ring(attached.fds["ring"], probes.ring_bytes)
    began = time.process_time()
    position, pieces = ring.consumed, []
    while not (span := ring.read(position)).caught_up or span.data:
        pieces.append(span.data)
        position = span.end
    handed = time.process_time() - began
    took = []
    for _ in range(5):
        decoded = Decoding("bench", "bench")
        began = time.process_time()
        told = sum(len(decoded.records(piece, 0)) for piece in pieces)
        took.append(time.process_time() - began)
    events, size = decoded.read, sum(map(len, pieces))
    print(
        f"decoding, CPU us an event: {min(took) / events * 1e6:.2f} ({events} records, {size / events:.0f} bytes each, {told} told)"
    )
    print(f"  taking them from the ring {handed / events * 1e6:.2f}")
    ring.close()
    attached.remove()


class _Counted:
    def __init__(self) -> None:
        self.observations = 0

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        self.observations += len(observations)
        return self.observations

    async def recorded(self, ticket: int) -> None:
        del ticket


async def flood(server: Server, probes: ProbeSettings, folder: Path, rate: int, seconds: float) -> None:
    path = folder / "witness.sock"
    command = [sys.executable, "-m", "pgwarden", "witness", "--data", str(server.data), "--socket", str(path), "--client", "root"]
    process = subprocess.Popen([*command, "--name", probes.name])
    collector, outlet = EbpfCollector("bench", "bench", path), _Counted()
    running = asyncio.create_task(collector.run(outlet))
    try:
        while not (collector.state().seeing and collector.status is not None and collector.status.postmaster):
            await asyncio.sleep(0.1)
        talker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        generator = [sys.executable, "-m", "bench.witness", "--generate", server.dsn(), str(rate), str(seconds)]
        before, cpu, talked, began = collector.status.made, time.process_time(), _cpu_ns(talker), time.monotonic()
        generating = await asyncio.create_subprocess_exec(*generator)
        await generating.wait()
        elapsed = time.monotonic() - began - 0.3  # the generator's own start
        while collector.decoding.read < (collector.status.made - before) or collector.state().lag_us < 0:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)
        status = collector.status
        events = status.made - before
        spent, handed = time.process_time() - cpu, (_cpu_ns(talker) - talked) / 1e9
        print(f"flood: {events} events in {elapsed:.1f} s, {events / elapsed:.0f} a second: {status.lost} lost")
        print(
            f"  CPU us an event: the collector {spent / events * 1e6:.2f}, the witness's talking half {handed / events * 1e6:.2f}"
        )
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        process.terminate()
        process.wait(10)
        subprocess.run([*command, "--name", probes.name, "--remove"], check=False)


def generate(dsn: str, rate: int, seconds: float) -> None:
    """Statements at half that many events a second, on one connection, in messages of many."""
    wire = _Wire(dsn)
    message = (b"Q", b";".join([b"select 1"] * PIECE) + b"\0")
    pause = 2 * PIECE / rate
    began = time.monotonic()
    sent = 0
    while (now := time.monotonic() - began) < seconds:
        if now < sent * pause:
            time.sleep(sent * pause - now)
        wire.ask(message)
        sent += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.witness")
    parser.add_argument("--generate", nargs=3, metavar=("DSN", "RATE", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--postgres", type=int, default=15, choices=(14, 15, 16, 17, 18), help="whose binary (15)")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--statements", type=int, default=4000)
    parser.add_argument("--rate", type=int, default=100_000, help="events a second of the flood")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    if asked.generate:
        generate(asked.generate[0], int(asked.generate[1]), float(asked.generate[2]))
        return 0
    if os.geteuid() != 0:
        print("bench: it takes root to attach probes", file=sys.stderr)
        return 1
    folder = home()
    try:
        with Server(folder, copy_of(asked.postgres, folder)) as server:  # a copy: a probe slows every server of the same file
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("create table things (id int primary key, note text)")
                connection.execute("insert into things select n, 'note ' || n from generate_series(1, 1000) n")
                connection.execute("analyze things")
            probes = ProbeSettings(f"bench-{secrets.token_hex(4)}", server.data)
            backend(server, probes, asked.rounds, asked.statements)
            decoding(server, probes, 10_000)
            asyncio.run(flood(server, probes, folder, asked.rate, asked.seconds))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
