"""Makes what docker-compose.yml needs before anything starts: certificates, secrets, and a configuration for each process.

    python deploy/setup.py FOLDER [NAME=VALUE ...]

What is there already stays, so that it may run at each start. Each subfolder is one reader's: `postgres`, `keycloak`, `pgwarden`.
NAME=VALUE replaces a word of the templates (VALUES below), for a topology that stands elsewhere than in containers; `@process@` in
it becomes the process's name. As root each subfolder is given to the account that its container runs as.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from identity.agent_keys import create, create_operator_key

HERE: Final = Path(__file__).parent
LIFE_DAYS: Final = 825

PROCESSES: Final = ("gateway-1", "gateway-2", "watchdog", "collector", "worker-1", "worker-2", "api")
ACCOUNTS: Final = {"postgres": 999, "keycloak": 1000, "pgwarden": 10001}  # of the images' own users

LOG: Final = "postgres-log"  # a folder that postgres writes and pgwarden reads, and nobody else

VALUES: Final[Mapping[str, str]] = {
    "state": "/var/lib/pgwarden",
    "gateway_listen": "0.0.0.0:6432",
    "api_listen": "0.0.0.0:8470",
    "dashboard_listen": "0.0.0.0:8471",
    "kafka": "kafka:9092",
    "postgres_host": "postgres",
    "postgres_port": "5432",
    "postgres_log": "/var/log/pgwarden",
    "issuer": "https://keycloak:8443/realms/agents",
    "replication": "1",
}


def main(arguments: list[str]) -> int:
    folder, *changes = arguments
    values = {**VALUES, **dict(change.split("=", 1) for change in changes)}
    if unknown := values.keys() - VALUES.keys():
        sys.stderr.write(f"setup.py: there is no {sorted(unknown)[0]}; write some of {', '.join(VALUES)}\n")
        return 2
    for reader in (*ACCOUNTS, LOG):
        (Path(folder) / reader).mkdir(mode=0o700, parents=True, exist_ok=True)
    make(Path(folder), values)
    if os.geteuid() == 0:
        give_away(Path(folder))
    return 0


def make(folder: Path, values: Mapping[str, str]) -> None:
    pgwarden, postgres, keycloak = (folder / name for name in ("pgwarden", "postgres", "keycloak"))
    certificates(folder)
    database_password = secret(pgwarden / "database-password")
    secret(postgres / "superuser-password")
    reporter_secret = secret(pgwarden / "reporter-secret")
    operator = word(pgwarden / "operator.key", lambda: create_operator_key()[0])
    approver = word(pgwarden / "approver.key", lambda: create_operator_key()[0])
    word(pgwarden / "loader.key", lambda: create()[0])
    write(postgres / "10-shop.sql", filled("postgres.sql", {"password": database_password}), 0o600)
    write(keycloak / "realm.json", filled("realm.json", {"reporter_secret": reporter_secret}), 0o600)
    for process in PROCESSES:
        words = {
            **values,
            "process": process,
            "name": process if process.startswith("gateway") else "gateway-1",
            "folder": str(pgwarden),
            "operator_sha256": sha256(operator),
            "approver_sha256": sha256(approver),
        }
        write(pgwarden / f"{process}.toml", filled("pgwarden.toml", words), 0o600)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def secret(path: Path) -> str:
    return word(path, lambda: secrets.token_urlsafe(24))


def word(path: Path, made: Callable[[], str]) -> str:
    """The word in this file, made when it is missing."""
    if not path.exists():
        write(path, made() + "\n", 0o600)
    return path.read_text().strip()


def filled(template: str, words: Mapping[str, str]) -> str:
    text = (HERE / template).read_text()
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


def write(path: Path, content: str | bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
        out.flush()
        os.fsync(descriptor)
    draft.replace(path)


def give_away(folder: Path) -> None:
    for reader, account in ACCOUNTS.items():
        for path in (folder / reader, *(folder / reader).iterdir()):
            os.chown(path, account, account)
    # What postgres writes there takes the folder's group: log_file_mode is 0640.
    os.chown(folder / LOG, ACCOUNTS["postgres"], ACCOUNTS["pgwarden"])
    (folder / LOG).chmod(0o2750)


# -- certificates: an authority whose key is forgotten at once, and one certificate a server ---------------------------------------


def certificates(folder: Path) -> None:
    if (folder / "pgwarden" / "ca.pem").exists():
        return
    authority_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgwarden deployment")])
    authority = (
        _builder(name, name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    for reader, server in (("postgres", "postgres"), ("keycloak", "keycloak"), ("pgwarden", "gateway")):
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in (server, f"{server}-1", f"{server}-2", "localhost")]
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = (
            _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server)]), name, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        write(folder / reader / "server.key", private, 0o600)
        write(folder / reader / "server.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    write(
        folder / "pgwarden" / "ca.pem", authority.public_bytes(serialization.Encoding.PEM), 0o644
    )  # last: it says that all are made


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=LIFE_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
