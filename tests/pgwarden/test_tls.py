from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgwarden.tls import CertificateFiles, fingerprint, self_signed


def connect(files: CertificateFiles, trusted: Path, name: str, address: str = "127.0.0.1") -> None:
    """A handshake on loopback in which the client checks everything that there is to check."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cafile=str(trusted))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    with socket.create_server((address, 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                try:
                    server.wrap_socket(accepted, server_side=True).close()
                except (ssl.SSLError, OSError):
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()) as raw, client.wrap_socket(raw, server_hostname=name):
                pass
        finally:
            thread.join(5)


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost"])
def test_a_strict_client_that_trusts_the_file_accepts_it_for_this_machine(tmp_path: Path, name: str) -> None:
    files = self_signed(tmp_path)
    connect(files, files.certificate, name)


def test_a_client_refuses_it_for_another_name_and_another_certificate(tmp_path: Path) -> None:
    files, other = self_signed(tmp_path / "one"), self_signed(tmp_path / "two")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(files, files.certificate, "db.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(files, other.certificate, "localhost")


def test_the_key_is_the_owners_alone(tmp_path: Path) -> None:
    files = self_signed(tmp_path / "tls")
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


def test_it_is_made_once(tmp_path: Path) -> None:
    first = fingerprint(self_signed(tmp_path).certificate)
    assert fingerprint(self_signed(tmp_path).certificate) == first


def test_it_is_renewed_before_it_expires(tmp_path: Path) -> None:
    first = fingerprint(self_signed(tmp_path).certificate)
    assert fingerprint(self_signed(tmp_path, now=datetime.now(UTC) + timedelta(days=780)).certificate) == first
    assert fingerprint(self_signed(tmp_path, now=datetime.now(UTC) + timedelta(days=800)).certificate) != first


def test_a_key_that_does_not_fit_or_that_others_could_read_is_not_used(tmp_path: Path) -> None:
    files = self_signed(tmp_path / "one")
    first = fingerprint(files.certificate)
    files.key.write_bytes(self_signed(tmp_path / "two").key.read_bytes())
    second = fingerprint(self_signed(tmp_path / "one").certificate)
    files.key.chmod(0o644)
    third = fingerprint(self_signed(tmp_path / "one").certificate)
    assert len({first, second, third}) == 3


def test_several_that_start_at_once_get_one_certificate(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: fingerprint(self_signed(tmp_path).certificate), range(8)))
    assert len(set(made)) == 1


def test_the_fingerprint_is_openssls(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(files.certificate)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.sub(r".*=", "", said).strip() == fingerprint(files.certificate)
