"""SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, one value in and one out at a time. Randomness is handed in.

The server side knows a verifier only, as PostgreSQL does; a name that does not exist has one too, which no key fits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from identity.agent_keys import Verifier

SCRAM_SHA_256: Final = "SCRAM-SHA-256"
SCRAM_SHA_256_PLUS: Final = "SCRAM-SHA-256-PLUS"
_NONCE_CHARACTERS_MAX: Final = 256  # PostgreSQL's own is 24; a pooler's stack overflowed on a long one


class ScramRefused(Exception):
    """The exchange failed. The text is for the log; the peer is told that authentication failed and no more."""


@dataclass(frozen=True, slots=True)
class ScramProof:
    """What a finished exchange yields: RFC 5802 §3's ClientKey, whose hash is the verifier's StoredKey, and the last message."""

    client_key: bytes = field(repr=False)
    server_final: bytes


class ScramServer:
    """client-first -> server-first, client-final -> server-final, or ScramRefused. RFC 5802 §5."""

    def __init__(self, verifier: Verifier, nonce: str, channel_binding: bytes | None) -> None:
        """`channel_binding`: the certificate's hash (RFC 5929 tls-server-end-point), None where there is no TLS."""
        self._verifier = verifier
        self._nonce = nonce
        self._channel_binding = channel_binding
        self._gs2_header = b""
        self._bound = False
        self._transcript = b""
        self._full_nonce = ""

    def mechanisms(self) -> list[str]:
        return [SCRAM_SHA_256] if self._channel_binding is None else [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]

    def start(self, mechanism: str, client_first: bytes) -> bytes:
        """Return server-first-message."""
        if mechanism not in self.mechanisms():
            raise ScramRefused(f"mechanism {mechanism!a} was not offered")
        flag, _, rest = client_first.partition(b",")
        authzid, _, bare = rest.partition(b",")
        if mechanism == SCRAM_SHA_256_PLUS:
            if flag != b"p=tls-server-end-point":
                raise ScramRefused("channel binding of an unknown type")
            self._bound = True
        elif flag == b"y" and self._channel_binding is not None:
            raise ScramRefused("the client believes that no channel binding was offered: somebody stands between")  # RFC 5802 §6
        elif flag not in (b"n", b"y"):
            raise ScramRefused("malformed client-first-message")
        if authzid:
            raise ScramRefused("an authorization identity is not supported")
        attributes = bare.split(b",")
        if len(attributes) < 2 or not attributes[0].startswith(b"n=") or not attributes[1].startswith(b"r="):
            raise ScramRefused("malformed client-first-message")
        client_nonce = attributes[1][2:].decode("ascii", "replace")
        if not client_nonce or len(client_nonce) > _NONCE_CHARACTERS_MAX:
            raise ScramRefused("nonce too long or empty")
        self._gs2_header = flag + b"," + authzid + b","
        self._full_nonce = client_nonce + self._nonce
        server_first = f"r={self._full_nonce},s={_base64(self._verifier.salt)},i={self._verifier.iterations}".encode(
            "ascii", "replace"
        )
        self._transcript = bare + b"," + server_first
        return server_first

    def finish(self, client_final: bytes) -> ScramProof:
        without_proof, _, proof_text = client_final.rpartition(b",p=")
        attributes = without_proof.split(b",")
        if len(attributes) < 2 or not attributes[0].startswith(b"c=") or not attributes[1].startswith(b"r="):
            raise ScramRefused("malformed client-final-message")
        binding = self._gs2_header + (self._channel_binding or b"" if self._bound else b"")
        if not hmac.compare_digest(_unbase64(attributes[0][2:].decode("ascii", "replace")), binding):
            raise ScramRefused("channel binding does not match: somebody stands between")
        if not hmac.compare_digest(attributes[1][2:], self._full_nonce.encode("ascii", "replace")):
            raise ScramRefused("nonce does not match")
        transcript = self._transcript + b"," + without_proof
        signature = hmac.digest(self._verifier.stored_key, transcript, "sha256")
        proof = _unbase64(proof_text.decode("ascii", "replace"))
        if len(proof) != len(signature):
            raise ScramRefused("malformed proof")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            raise ScramRefused("wrong key")
        server_signature = hmac.digest(self._verifier.server_key, transcript, "sha256")
        return ScramProof(client_key, b"v=" + _base64(server_signature).encode("ascii"))


class ScramClient:
    """client-first, server-first -> client-final, then the server's signature is checked: it must know the key too."""

    def __init__(self, password: str, nonce: str, iterations_max: int, channel_binding: bytes | None = None) -> None:
        self._password = password.encode("utf-8")
        self._nonce = nonce
        self._iterations_max = iterations_max
        self._channel_binding = channel_binding
        self._gs2_header = b"n,," if channel_binding is None else b"p=tls-server-end-point,,"
        self._bare = f"n=,r={nonce}".encode("ascii")
        self._server_signature = b""

    @property
    def mechanism(self) -> str:
        return SCRAM_SHA_256 if self._channel_binding is None else SCRAM_SHA_256_PLUS

    def first(self) -> bytes:
        return self._gs2_header + self._bare

    def final(self, server_first: bytes) -> bytes:
        attributes = dict(part.split("=", 1) for part in server_first.decode("ascii", "replace").split(",") if "=" in part)
        nonce, salt_text, iterations_text = attributes.get("r", ""), attributes.get("s", ""), attributes.get("i", "")
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce) or len(nonce) > 2 * _NONCE_CHARACTERS_MAX:
            raise ScramRefused("the server's nonce does not continue ours")
        if not iterations_text.isdigit() or len(iterations_text) > 9 or not 1 <= int(iterations_text) <= self._iterations_max:
            raise ScramRefused(f"the server asks for {iterations_text[:12]!a} iterations, at most {self._iterations_max} are done")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, _unbase64(salt_text), int(iterations_text))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        binding = _base64(self._gs2_header + (self._channel_binding or b""))
        without_proof = f"c={binding},r={nonce}".encode("ascii")
        transcript = self._bare + b"," + server_first + b"," + without_proof
        signature = hmac.digest(hashlib.sha256(client_key).digest(), transcript, "sha256")
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), transcript, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return without_proof + b",p=" + _base64(proof).encode("ascii")

    def check(self, server_final: bytes) -> None:
        signature = _unbase64(server_final[2:].decode("ascii", "replace").partition(",")[0]) if server_final[:2] == b"v=" else b""
        if not self._server_signature or not hmac.compare_digest(signature, self._server_signature):
            raise ScramRefused("the server does not know the password: it may be an impostor")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ScramRefused("malformed base64") from error
