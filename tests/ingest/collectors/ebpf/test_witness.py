"""`pgwarden witness` as a process, and the collector that reads it, over kills, restarts and floods."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from ingest.collectors.collector import Observation
from ingest.collectors.ebpf import privileges
from ingest.collectors.ebpf.reader import EbpfCollector
from ingest.collectors.ebpf.witness import KEPT
from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, StatementObserved, WitnessConnected
from tests.conftest import fill, mounted
from tests.ingest.collectors.ebpf.servers import Server, copy_of, home

pytestmark = pytest.mark.slow

AwaitFor = Callable[..., Awaitable[object]]


class Witness:
    """The process, and what it is told."""

    def __init__(self, server: Server, *options: str, client: str = "root", folder: Path | None = None) -> None:
        """`folder`: of its socket."""
        self.name = f"test-{secrets.token_hex(4)}"
        self.socket = (folder or server.home) / f"{self.name}.sock"
        self.command = [sys.executable, "-m", "pgwarden", "witness", "--data", str(server.data), "--socket", str(self.socket)]
        self.command += ["--client", client, "--name", self.name, *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=Path(__file__).parents[4], stderr=subprocess.PIPE)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def talker(self) -> int:
        """The half that talks."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def attached(self) -> bool:
        """Whether the last of its probes is in place."""
        return any(Path(f"/sys/fs/bpf/pgwarden/{self.name}").glob("*/probe-*-replication"))

    def end(self, number: int = signal.SIGTERM) -> bytes:
        assert self.process is not None
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split() if self.process.poll() is None else []
        talker = int(children[0]) if children else 0
        self.process.send_signal(number)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.wait(10)
        self.process.stderr.close()
        while talker and Path(f"/proc/{talker}").exists():
            time.sleep(0.01)
        return said

    def remove(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end()
        subprocess.run([*self.command, "--remove"], cwd=Path(__file__).parents[4], capture_output=True, check=False)


class Kept:
    """An outlet that keeps all in memory."""

    def __init__(self, for_good: bool = True) -> None:
        self.seen: list[Observation] = []
        self.for_good = for_good

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        self.seen += [one for one in observations if not isinstance(one, WitnessConnected)]
        return len(self.seen)

    async def recorded(self, ticket: int) -> None:
        assert ticket <= len(self.seen)
        if not self.for_good:
            await asyncio.Event().wait()

    def texts(self, application: str) -> list[str]:
        ids = {one.session_id for one in self.seen if isinstance(one, SessionObserved) and one.application_name == application}
        return [one.text for one in self.seen if isinstance(one, StatementObserved) and one.session_id in ids]

    def names(self) -> set[tuple[str, int, int]]:
        return {(one.session_id, one.sequence, one.at_us) for one in self.seen if isinstance(one, StatementObserved)}

    def gaps(self) -> list[ObservationGap]:
        return [one for one in self.seen if isinstance(one, ObservationGap)]


@contextlib.asynccontextmanager
async def reading(path: Path, outlet: Kept) -> AsyncIterator[EbpfCollector]:
    collector = EbpfCollector("ebpf", "server", path)
    task = asyncio.create_task(collector.run(outlet))
    try:
        yield collector
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(scope="module")
def own(bpf: None) -> Iterator[Server]:
    place = home()
    try:
        with Server(place, copy_of(18, place)) as running:
            yield running
    finally:
        shutil.rmtree(place)


@pytest.fixture
def witness(own: Server) -> Iterator[Witness]:
    made = Witness(own)
    made.start()
    try:
        yield made
    finally:
        made.remove()


def run(server: Server, application: str, *texts: str) -> None:
    with psycopg.connect(server.dsn(application_name=application), autocommit=True) as connection:
        for text in texts:
            connection.execute(text.encode())


async def test_what_runs_is_handed_over_and_the_watermark_passes_it(own: Server, witness: Witness, await_for: AwaitFor) -> None:
    outlet = Kept()
    async with reading(witness.socket, outlet) as collector:
        await await_for(lambda: collector.state().seeing)
        began_us = time.time_ns() // 1000
        await asyncio.to_thread(run, own, "plain", "select 1", "select 2")
        ended_us = time.time_ns() // 1000
        await await_for(lambda: collector.state().complete_us > ended_us, 5)
        assert outlet.texts("plain") == ["select 1", "select 2"]  # at the moment that the watermark passes it, not later
        assert began_us < outlet.seen[-1].at_us <= ended_us + 100_000
        assert collector.state().lost == 0
        with psycopg.connect(own.dsn()):
            await await_for(lambda: (status := collector.status) is not None and status.verified)


async def test_each_half_keeps_only_what_it_needs(witness: Witness, own: Server, await_for: AwaitFor) -> None:
    async with reading(witness.socket, Kept()) as collector:
        await await_for(lambda: collector.state().seeing)
        for pid, uid, capabilities in ((witness.pid, 0, KEPT), (witness.talker, 65534, frozenset[int]())):
            said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            mask = sum(1 << number for number in capabilities)
            assert {int(said[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {mask}
            assert {int(said[name], 16) for name in ("CapInh", "CapAmb")} == {0}
            assert said["NoNewPrivs"] == "1"
            assert set(said["Uid"].split()) == {str(uid)}
        for pid in (witness.pid, witness.talker):  # neither has a socket but the unix one
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            inodes = {link[8:-1] for link in links if link.startswith("socket:")}
            for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"):
                lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
                assert not inodes & {word for line in lines for word in line.split()[-9:]}
    assert privileges.CAP_SYS_ADMIN in KEPT


async def test_a_process_of_another_user_is_told_nothing(own: Server, await_for: AwaitFor) -> None:
    witness = Witness(own, client="daemon")
    witness.start()
    try:
        await await_for(witness.socket.exists)
        with socket.socket(socket.AF_UNIX) as peer:  # root may open any socket: the file's mode does not stop it
            peer.settimeout(10)
            peer.connect(str(witness.socket))
            assert peer.recv(1) == b""
        said = witness.end()
        assert b"a process of user 0 asked; only user 1 is answered" in said
    finally:
        witness.remove()


async def test_what_runs_while_the_witness_is_killed_is_seen_by_the_next(
    own: Server, witness: Witness, await_for: AwaitFor
) -> None:
    outlet = Kept()
    async with reading(witness.socket, outlet) as collector:
        await await_for(lambda: collector.state().seeing)
        with psycopg.connect(own.dsn(application_name="through"), autocommit=True) as through:
            through.execute("select 'before'")
            await await_for(lambda: outlet.texts("through") == ["select 'before'"])
            witness.end(signal.SIGKILL)
            through.execute("select 'while it was dead'")
            await asyncio.to_thread(run, own, "came and went", "select 'whole'")
            await await_for(lambda: not collector.state().seeing)
            witness.start()
            through.execute("select 'after'")
            await await_for(lambda: len(outlet.texts("through")) == 3)
        assert outlet.texts("through") == ["select 'before'", "select 'while it was dead'", "select 'after'"]
        assert outlet.texts("came and went") == ["select 'whole'"]
        assert outlet.gaps() == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Whoever calls `exhaust` of it leaves neither room nor a name on it."""
    with mounted(tmp_path / "disk", "size=1m,nr_inodes=32") as place:
        yield place


def exhaust(disk: Path) -> None:
    fill(disk)
    with contextlib.suppress(OSError):
        for number in range(100):
            (disk / str(number)).touch()


@pytest.mark.faults
async def test_a_full_disk_takes_nothing_from_the_witness_and_one_without_room_for_its_socket_says_so(
    own: Server, full_disk: Path, await_for: AwaitFor
) -> None:
    witness, other = Witness(own, folder=full_disk), Witness(own, folder=full_disk)
    witness.start()
    outlet = Kept()
    try:
        async with reading(witness.socket, outlet) as collector:
            await await_for(lambda: collector.state().seeing)
            exhaust(full_disk)
            await asyncio.to_thread(run, own, "full", "select 'on a full disk'")
            await await_for(lambda: outlet.texts("full") == ["select 'on a full disk'"])
            witness.end(signal.SIGKILL)
            await asyncio.to_thread(run, own, "dead", "select 'while it was dead'")
            witness.start()
            await await_for(lambda: outlet.texts("dead") == ["select 'while it was dead'"])
            assert outlet.gaps() == []
            other.start()
            assert other.process is not None
            _, said = other.process.communicate(timeout=60)
            assert other.process.returncode == 1
            assert f"it cannot listen at {other.socket} (No space left on device)" in said.decode()
    finally:
        witness.remove()


async def test_what_no_collector_has_recorded_is_seen_by_the_next(own: Server, witness: Witness, await_for: AwaitFor) -> None:
    first, second = Kept(for_good=False), Kept()
    with psycopg.connect(own.dsn(application_name="long"), autocommit=True) as long:
        async with reading(witness.socket, first) as collector:
            await await_for(lambda: collector.state().seeing)
            long.execute("select 1")
            await await_for(lambda: first.texts("long") == ["select 1"])
            long.pgconn.send_query(b"select pg_sleep(1.5)")  # begun under the first, ended under the second
            await asyncio.sleep(0.5)
        await asyncio.to_thread(run, own, "unread", "select 'nobody reads'")
        while long.pgconn.get_result() is not None:
            pass
        async with reading(witness.socket, second) as collector:
            await await_for(lambda: "select pg_sleep(1.5)" in second.texts("long"), 10)
            await await_for(lambda: second.texts("unread") == ["select 'nobody reads'"])
            assert 0 < collector.resumed_us < time.time_ns() // 1000
            assert second.gaps() == []
            assert first.names() <= second.names()  # what the first one's crash took is told again, as the same
            assert second.texts("long") == ["select 1", "select pg_sleep(1.5)"]


async def test_a_flood_that_nobody_reads_is_counted_and_each_loss_is_its_sessions(own: Server, await_for: AwaitFor) -> None:
    witness = Witness(own, "--ring-mib", "1")
    witness.start()
    outlet = Kept()
    try:
        await await_for(witness.attached)
        for number in range(3):
            await asyncio.to_thread(run, own, f"flood {number}", *[f"select '{'x' * 380}'"] * 1500)
        async with reading(witness.socket, outlet) as collector:
            await await_for(lambda: collector.state().lost > 0)
            await asyncio.to_thread(run, own, "after", "select 'after'")
            await await_for(lambda: outlet.texts("after") == ["select 'after'"])

            def balanced() -> bool:
                status = collector.status
                return status is not None and status.made == collector.decoding.read + collector.decoding.lost

            await await_for(balanced, 20)
            status = collector.status
            assert status is not None
            assert (status.lost, status.unattributed) == (collector.decoding.lost, 0)
        sessions = {one.session_id: one.application_name for one in outlet.seen if isinstance(one, SessionObserved)}
        assert set(sessions.values()) >= {"flood 0", "flood 1", "flood 2", "after"}
        lost = {name: sum(gap.lost for gap in outlet.gaps() if sessions.get(gap.session_id) == name) for name in sessions.values()}
        connections = [gap for gap in outlet.gaps() if not gap.session_id]  # records of who connected, which are no session's
        assert all(f"pid {os.getpid()}" in gap.reason for gap in connections)
        assert sum(lost.values()) + sum(gap.lost for gap in connections) == status.lost
        assert sum(gap.lost for gap in connections) <= 2
        assert lost["flood 2"] == 3002  # the ring was full long before: its beginning, two for each statement, its end
        assert outlet.texts("flood 2") == []
        assert len([one for one in outlet.seen if isinstance(one, SessionUnobserved) and one.session_id in sessions]) == len(
            sessions
        )
    finally:
        witness.remove()


async def test_a_server_whose_binary_was_replaced_is_probed_anew(await_for: AwaitFor, bpf: None) -> None:
    place = home()
    try:
        with Server(place, copy_of(18, place)) as server:
            witness = Witness(server)
            witness.start()
            outlet = Kept()
            try:
                async with reading(witness.socket, outlet) as collector:
                    await await_for(lambda: collector.state().seeing)
                    fresh = server.bin / "postgres.new"
                    shutil.copy2(server.bin / "postgres", fresh)
                    fresh.rename(server.bin / "postgres")  # as a package's upgrade does
                    await asyncio.to_thread(run, server, "old", "select 'the old binary still runs'")
                    await await_for(lambda: outlet.texts("old") != [])
                    await asyncio.to_thread(server.stop)
                    await await_for(lambda: not collector.state().seeing)
                    assert "start it" in collector.state().reason
                    await asyncio.to_thread(server.start)
                    await await_for(lambda: collector.state().seeing)
                    await asyncio.to_thread(run, server, "new", "select 'the new one'")
                    await await_for(lambda: outlet.texts("new") == ["select 'the new one'"])
                    assert [gap.reason.split(";")[0] for gap in outlet.gaps()] == ["the server was started anew"]
            finally:
                witness.remove()
    finally:
        shutil.rmtree(place)


async def test_texts_of_a_tls_session_are_plain(await_for: AwaitFor, bpf: None, needs: Callable[[str, bool], None]) -> None:
    needs("postgres-15", Path("/usr/lib/postgresql/15/bin/postgres").exists())
    place = home()
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
             "-keyout", str(place / "server.key"), "-out", str(place / "server.crt")],
            check=True, capture_output=True,
        )  # fmt: skip
        server = Server(
            place, copy_of(15, place), ssl="on", ssl_key_file=str(place / "server.key"), ssl_cert_file=str(place / "server.crt")
        )
        shutil.chown(place / "server.key", "postgres")
        with server:
            witness = Witness(server)
            witness.start()
            outlet = Kept()
            try:
                async with reading(witness.socket, outlet) as collector:
                    await await_for(lambda: collector.state().seeing)
                    with psycopg.connect(server.dsn(application_name="tls", sslmode="require"), autocommit=True) as connection:
                        assert connection.pgconn.ssl_in_use
                        connection.execute("select 'under TLS'")
                    await await_for(lambda: outlet.texts("tls") == ["select 'under TLS'"])
            finally:
                witness.remove()
    finally:
        shutil.rmtree(place)


def test_without_privileges_it_says_what_it_lacks(own: Server) -> None:
    witness = Witness(own)
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--reuid", "65534", "--clear-groups", *witness.command],
        cwd=Path(__file__).parents[4], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "HOME": "/"},
    )  # fmt: skip
    if "Permission denied" in done.stderr and "python" in done.stderr:
        pytest.skip("this interpreter is not for other users")
    assert done.returncode == 1, done.stderr
    assert "it lacks CAP_BPF, CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE" in done.stderr
