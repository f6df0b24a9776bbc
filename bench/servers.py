"""What is measured: a PostgreSQL 18 of our own, PgBouncer and the gateway before it, each a real process with one agent in it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import psycopg

from identity import agent_keys
from ingest.events import AgentRegistered, GrantApproved, GrantRequested, Rule, Scope
from ingest.log import batches, topics
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import KafkaSettings, LogSettings, RecorderSettings
from pgwarden.postgres import Postgres, PostgresSettings, die_with_parent, free_port
from pgwarden.settings import SOCKET_FILE
from pgwarden.tls import CertificateFiles

AGENT: Final = "bench"
DATABASE: Final = "bench"
START_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 20.0

_ROOT: Final = Path(__file__).parents[1]
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_GATEWAY: Final = """
state = "state"
[gateway]
name = "gateway-1"
listen = "127.0.0.1:{port}"
tls = "optional"
"""

_CONNECTION: Final = """
[connections.{level}]
host = "127.0.0.1"
port = {database_port}
database = "{database}"
user = "{role}"
password = "file:password"
sslmode = "disable"
durability = "{level}"
"""

# Session mode, as a driver needs that prepares statements and uses cursors. The rest is its default, but for what it logs.
_PGBOUNCER: Final = """
[databases]
{database} = host=127.0.0.1 port={database_port} dbname={database} user={role} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = session
client_tls_sslmode = allow
client_tls_cert_file = {folder}/certificate.pem
client_tls_key_file = {folder}/key.pem
log_connections = 0
log_disconnections = 0
log_stats = 0
"""

_KAFKA: Final = """
[log]
backend = "kafka"
[kafka]
bootstrap = ["{bootstrap}"]
tls = false
topic_prefix = "{prefix}"
replication = 1
in_sync_min = 1
"""


class CannotMeasure(Exception):
    """Something that the benchmark needs is missing or does not start. Says what to do, or what it said."""


@dataclass(frozen=True, slots=True)
class Role:
    """The database role and the agent have one name and one password, so that every way to the database asks for the same."""

    name: str
    password: str
    key_id: str
    verifier: str


def role() -> Role:
    key, key_id, verifier = agent_keys.create()
    return Role(AGENT, key, key_id, verifier)


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise CannotMeasure(f"{name} is not here: apt install {'pgbouncer' if name == 'pgbouncer' else 'postgresql-contrib'}")
    return found


class ProcessClock:
    """The CPU time of another process, all its threads, those that ended too: clock_getcpuclockid(3). Nanoseconds."""

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise CannotMeasure(f"the CPU clock of process {pid}: {os.strerror(error)}")
        self._clock = clock.value

    def ns(self) -> int:
        return time.clock_gettime_ns(self._clock)


class LogGrowth:
    """The bytes of whole batches in a partition's segments, without the zeros written ahead of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sealed: dict[str, int] = {}

    def total_bytes(self) -> int:
        files = sorted(self._folder.glob("*.seg"))
        for file in files[:-1]:
            self._sealed.setdefault(file.name, _batch_bytes(file))
        return sum(self._sealed.values()) + (_batch_bytes(files[-1]) if files else 0)


def _batch_bytes(file: Path) -> int:
    data = file.read_bytes()
    place = 0
    while place + batches.HEADER_BYTES <= len(data) and data[place] == batches.DURABLE:
        place += batches.HEADER_BYTES + batches.header(data, place).length
    return place


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process; the name of the connection is the level of durability."""

    port: int
    pid: int
    state: Path
    certificate: CertificateFiles

    def status(self) -> Mapping[str, object]:
        return _status(self.state)

    def settled(self) -> int:
        """Wait until no session is left and all is on disk; return the count of statements so far."""
        until = time.monotonic() + STOP_SECONDS_MAX
        while True:
            status = self.status()
            log, counters = status["log"], status["counters"]
            assert isinstance(log, dict)
            assert isinstance(counters, dict)
            if not status["sessions"] and not log["pending_bytes"]:
                return int(counters["statements"])
            if time.monotonic() > until:
                raise CannotMeasure(f"the gateway does not come to rest: {status}")
            time.sleep(0.02)


@contextmanager
def postgres(folder: Path, owner: Role) -> Iterator[Postgres]:
    """With the database and its owner. Not durable: nothing here measures what PostgreSQL writes."""
    settings = PostgresSettings(durable=False, shared_buffers_mb=256)
    with Postgres(folder / "postgres", settings) as server:
        server.execute(
            "postgres",
            f"CREATE ROLE {owner.name} LOGIN NOSUPERUSER PASSWORD '{owner.verifier}'",
            f"CREATE DATABASE {DATABASE} OWNER {owner.name}",
        )
        yield server


@contextmanager
def gateway(folder: Path, server: Postgres, owner: Role, levels: Sequence[str], more: str = "") -> Iterator[Gateway]:
    """`more`: further tables of its configuration. Its one agent is on record where its own segments are the log."""
    port = free_port()
    folder.mkdir(mode=0o700)
    state = folder / "state"
    config = _GATEWAY.format(port=port) + "".join(
        _CONNECTION.format(level=level, database_port=server.port, database=DATABASE, role=owner.name) for level in levels
    )
    _write(folder / "pgwarden.toml", config + more)
    _write(folder / "password", owner.password)
    asyncio.run(_register(state / "log", owner, levels))
    command = [sys.executable, "-m", "pgwarden", "gateway", "-c", str(folder / "pgwarden.toml")]
    with _process(command, folder / "output", environment={**os.environ, "PYTHONPATH": str(_ROOT)}) as process:

        def answers() -> bool:
            try:
                return bool(_status(state))
            except OSError:
                return False

        _wait(answers, process, folder / "output")
        files = CertificateFiles(state / "tls" / "certificate.pem", state / "tls" / "key.pem")
        yield Gateway(port, process.pid, state, files)


def kafka(bootstrap: str) -> tuple[KafkaSettings, str]:
    """Topics of a benchmark's own on this broker, which stay; and the tables of a configuration that uses them."""
    prefix = f"bench-{secrets.token_hex(4)}."
    settings = KafkaSettings((bootstrap,), tls=False, topic_prefix=prefix, replication=1, in_sync_min=1)
    topics.apply(settings)
    return settings, _KAFKA.format(bootstrap=bootstrap, prefix=prefix)


@contextmanager
def pgbouncer(folder: Path, server: Postgres, owner: Role, certificate: CertificateFiles) -> Iterator[tuple[int, int]]:
    """Its port and its pid. It refuses to run as root, so root runs it as `nobody`."""
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    port = free_port()
    folder.mkdir(mode=0o700)
    _write(
        folder / "pgbouncer.ini",
        _PGBOUNCER.format(
            database=DATABASE, database_port=server.port, role=owner.name, password=owner.password, port=port, folder=folder
        ),
    )
    _write(folder / "users", f'"{owner.name}" "{owner.verifier}"\n')
    _write(folder / "certificate.pem", certificate.certificate.read_text())
    _write(folder / "key.pem", certificate.key.read_text())
    if account is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    command = [program("pgbouncer"), "-q", str(folder / "pgbouncer.ini")]
    with _process(command, folder.with_suffix(".output"), account=account) as process:
        dsn = psycopg.conninfo.make_conninfo(
            host="127.0.0.1", port=port, dbname=DATABASE, user=owner.name, password=owner.password, connect_timeout=5
        )

        def answers() -> bool:
            try:
                psycopg.connect(dsn).close()
            except psycopg.OperationalError:
                return False
            return True

        _wait(answers, process, folder.with_suffix(".output"))
        yield port, process.pid


async def _register(log_folder: Path, owner: Role, levels: Sequence[str]) -> None:
    """An agent that may read what pgbench reads, on each connection: what the API would have recorded."""
    log = SegmentLog(log_folder, LogSettings())
    now_us = time.time_ns() // 1000
    recorder = Recorder(log, "bench", now_us, RecorderSettings())
    recorder.record(
        "identity",
        AGENT,
        AgentRegistered(now_us, AGENT, "runs pgbench", "bench", "", "", "", owner.key_id, owner.verifier, "bench"),
    )
    for level in levels:
        # pgbench looks in the catalogs for its tables before it begins.
        scope = Scope(level, (Rule("public", ("*",), ("select",)),), introspection=True)
        recorder.record("identity", AGENT, GrantRequested(now_us, level, AGENT, scope, 0, "benchmark", "bench"))
        recorder.record("identity", AGENT, GrantApproved(now_us, level, AGENT, "other", 0))
    await recorder.close()
    await log.close()


@contextmanager
def _process(
    command: Sequence[str],
    output: Path,
    *,
    environment: Mapping[str, str] | None = None,
    account: pwd.struct_passwd | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=_ROOT if account is None else "/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            user=account.pw_uid if account is not None else None,
            group=account.pw_gid if account is not None else None,
            extra_groups=[] if account is not None else None,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - one system call, prepared
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(answers: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + START_SECONDS_MAX
    while not answers():
        if process.poll() is not None or time.monotonic() > until:
            raise CannotMeasure(f"it does not answer: {output.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _status(state: Path) -> Mapping[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(state / SOCKET_FILE))
        data = b""
        while more := client.recv(65536):
            data += more
    answer: Mapping[str, object] = orjson.loads(data)
    return answer


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
