"""The gateway's own certificate, for when nobody gave it one: self-signed, made at first start, for this machine's names only."""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class TlsSettings:
    life_days: int = 825  # the longest that Apple's TLS takes from a private authority; others have no limit
    renew_days: int = 30  # made anew at a start when less than this is left


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    certificate: Path  # PEM; what clients name as sslrootcert
    key: Path  # PEM, 0600


def self_signed(folder: Path, settings: TlsSettings | None = None, now: datetime | None = None) -> CertificateFiles:
    """Return the certificate and key in `folder`, made when missing, unusable or about to expire.

    It is a leaf (CA:FALSE) that is its own anchor: whoever trusts the file trusts this one key and nothing that it could sign.
    Several processes may call this at once.
    """
    settings = settings or TlsSettings()
    now = now or datetime.now(UTC)
    files = CertificateFiles(folder / "certificate.pem", folder / "key.pem")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _usable(files, now + timedelta(days=settings.renew_days)):
            _make(files, now, settings)
    return files


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the (first) certificate in a PEM file, as `openssl x509 -fingerprint -sha256` prints it."""
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    digest = hashlib.sha256(loaded.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))


def _usable(files: CertificateFiles, until: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        key_mode = files.key.stat().st_mode & 0o777
    except (OSError, ValueError, TypeError):  # TypeError: the key has a passphrase
        return False
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fits = certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    return fits and key_mode & 0o077 == 0 and certificate.not_valid_after_utc > until


def _make(files: CertificateFiles, now: datetime, settings: TlsSettings) -> None:
    key = ec.generate_private_key(ec.SECP256R1())  # every TLS library has it
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgwarden")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks disagree
        .not_valid_after(now + timedelta(days=settings.life_days))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    x509.IPAddress(ipaddress.ip_address("::1")),
                    x509.DNSName("localhost"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)  # RFC 5280 §4.2.1.2
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Between the two a reader sees a pair that does not fit, and `_usable` says so.
    _replace(files.key, pem, 0o600)
    _replace(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)  # whatever the umask says
        out.write(content)
        out.flush()
        os.fsync(descriptor)
    draft.replace(path)
