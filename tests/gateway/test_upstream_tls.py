"""The leg to Postgres over TLS, against Debian's server: the embedded one is built without it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgwarden.tls import self_signed
from tests import broker as brokers

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True, slots=True)
class TlsServer:
    host: str
    port: int
    name: str
    role: str
    password: str
    certificate: Path


@pytest.fixture
def tls_server(needs: Callable[[str, bool], None]) -> Iterator[TlsServer]:
    needs("tls-postgres", (PROGRAMS / "initdb").exists())
    home = Path(tempfile.mkdtemp(prefix="pgwarden-tls-"))
    home.chmod(0o755)
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    password = secrets.token_urlsafe(16)
    (home / "password").write_text(password)
    files = self_signed(home / "tls")
    (home / "tls").chmod(0o755)
    data = home / "data"
    if account is not None:
        for path in (home, home / "password", files.key, files.certificate, home / "tls"):
            os.chown(path, account.pw_uid, account.pw_gid)
    who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account is not None else {}
    port = brokers.port()
    subprocess.run(
        [PROGRAMS / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={home / 'password'}", "-N"],
        check=True,
        capture_output=True,
        **who,
    )
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(
            f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nssl = on\nfsync = off\n"
            f"ssl_cert_file = '{files.certificate}'\nssl_key_file = '{files.key}'\n"
        )
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen([PROGRAMS / "postgres", "-D", data], stdout=log, stderr=log, **who)
    try:
        made = TlsServer("127.0.0.1", port, "postgres", "postgres", password, files.certificate)
        _wait(made)
        yield made
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: SIGTERM would wait for the gateway's own connections
        server.wait(20)
        shutil.rmtree(home)


def _wait(server: TlsServer) -> None:
    for _ in range(100):
        try:
            with psycopg.connect(
                host=server.host, port=server.port, user=server.role, password=server.password, dbname="postgres", sslmode="require"
            ) as connection:
                connection.execute("CREATE TABLE orders (id int)")
                return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def _configured(make_warden: Callable[..., Warden], server: TlsServer, sslmode: str, root: Path) -> Warden:
    more = (
        f'[connections.secure]\nhost = "{server.host}"\nport = {server.port}\ndatabase = "{server.name}"\nuser = "{server.role}"\n'
        f'password = "file:tls-password"\nsslmode = "{sslmode}"\nsslrootcert = "{root}"\n'
    )
    warden = make_warden(more=more, start=False)
    (warden.folder / "tls-password").write_text(server.password)
    (warden.folder / "tls-password").chmod(0o600)
    warden.start()
    warden.agent("reporter", connection="secure")
    return warden


def test_the_upstream_leg_is_encrypted_verified_and_bound_to_the_certificate(
    make_warden: Callable[..., Warden], tls_server: TlsServer
) -> None:
    warden = _configured(make_warden, tls_server, "verify-full", tls_server.certificate)
    with warden.connect("reporter", dbname="secure") as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        pid = connection.info.backend_pid
        with psycopg.connect(
            host=tls_server.host, port=tls_server.port, user="postgres", password=tls_server.password, sslmode="require"
        ) as direct:
            assert direct.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = %s", (pid,)).fetchone() == (True, "TLSv1.3")


def test_a_server_with_another_certificate_is_not_spoken_to(
    make_warden: Callable[..., Warden], tls_server: TlsServer, tmp_path: Path
) -> None:
    stranger = self_signed(tmp_path / "stranger").certificate
    warden = _configured(make_warden, tls_server, "verify-full", stranger)
    with pytest.raises(psycopg.OperationalError, match="not ready|cannot be reached"):
        warden.connect("reporter", dbname="secure")


def test_a_cancel_request_goes_over_tls_too(make_warden: Callable[..., Warden], tls_server: TlsServer) -> None:
    warden = _configured(make_warden, tls_server, "verify-full", tls_server.certificate)
    with warden.connect("reporter", dbname="secure") as connection:
        timer = threading.Timer(0.4, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT count(*) FROM generate_series(1, 1000000000)")
        timer.join()
