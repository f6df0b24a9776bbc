"""TLS contexts for both legs, and the certificate's hash that SCRAM binds to."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises OSError, ssl.SSLError when the files are missing or do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["postgresql"])  # IANA's name; required for direct TLS
    context.load_cert_chain(certificate, key)
    return context


def client_context(sslmode: str, root_certificate: Path | None) -> ssl.SSLContext | None:
    """libpq's sslmodes, less those that fall back to clear text by themselves."""
    if sslmode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = sslmode == "verify-full"
    context.verify_mode = ssl.CERT_NONE if sslmode == "require" else ssl.CERT_REQUIRED
    if root_certificate is not None:
        context.load_verify_locations(root_certificate)
    elif sslmode != "require":
        context.load_default_certs()
    return context


def end_point(certificate_der: bytes) -> bytes | None:
    """RFC 5929 §4.1 tls-server-end-point; None where the certificate's signature has no single hash (Ed25519)."""
    algorithm = x509.load_der_x509_certificate(certificate_der).signature_hash_algorithm
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    return hashlib.new(name, certificate_der).digest()


def end_point_of_file(certificate: Path) -> bytes | None:
    leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    return end_point(leaf.public_bytes(Encoding.DER))
