"""Make keys for agents and operators, and what may be stored of them.

An agent key is a PostgreSQL password: `pgw_<key id>_<secret>`, whole. Only its SCRAM verifier is kept, and no secret can be
derived from that: the secret holds 256 random bits, so neither a slow hash nor a long iteration count would add anything.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from identity.refusal import Refusal

ITERATIONS: Final = 4096  # RFC 7677 §4 asks for at least this; PostgreSQL's own default
ITERATIONS_MAX: Final = 1_000_000  # a client computes them at every login
SALT_BYTES: Final = 16  # PostgreSQL's SCRAM_DEFAULT_SALT_LEN
SALT_BYTES_MAX: Final = 64
DIGEST_BYTES: Final = 32

_KEY_ID_BYTES: Final = 8  # not secret; 13 letters of base32
_SECRET_BYTES: Final = 32
_AGENT_KEY: Final = re.compile(r"pgw_([a-z2-7]{13})_([a-z2-7]{52})")
_OPERATOR_KEY: Final = re.compile(r"pgwop_([a-z2-7]{52})")
_VERIFIER: Final = re.compile(
    r"SCRAM-SHA-256\$([1-9][0-9]{0,6}):([A-Za-z0-9+/]+={0,2})\$([A-Za-z0-9+/]+={0,2}):([A-Za-z0-9+/]+={0,2})"
)


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server needs to check a SCRAM-SHA-256 proof, and no more (RFC 5803 §2)."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes


def create() -> tuple[str, str, str]:
    """A new agent key, its id and its verifier. The key is shown once, to the one who asked, and kept nowhere."""
    id_ = _letters(secrets.token_bytes(_KEY_ID_BYTES))
    key = f"pgw_{id_}_{_letters(secrets.token_bytes(_SECRET_BYTES))}"
    return key, id_, _verifier(key, secrets.token_bytes(SALT_BYTES))


def key_id(key: str) -> str | Refusal:
    """The public part of an agent key."""
    match = _AGENT_KEY.fullmatch(key)
    if match is None:
        return Refusal("an agent key reads pgw_<13 letters>_<52 letters>; make one with POST /v1/agents/{id}/key")
    return match[1]


def verifier(key: str) -> str | Refusal:
    """PostgreSQL's verifier of an agent key, under a new salt.

    Only keys of ours: their letters are ASCII, so SASLprep (RFC 4013) would change nothing, and they are strong. A password
    that a person made up would have to be prepared first, and could be guessed from the verifier.
    """
    if isinstance(id_ := key_id(key), Refusal):
        return id_
    return _verifier(key, secrets.token_bytes(SALT_BYTES))


def verifier_id(verifier: str) -> str:
    """An id for a key that is known by its verifier alone."""
    return "v" + _letters(hashlib.sha256(verifier.encode()).digest()[:_KEY_ID_BYTES])


def parse_verifier(text: str) -> Verifier | Refusal:
    match = _VERIFIER.fullmatch(text)
    if match is None:
        return Refusal("a verifier reads SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, as in pg_authid.rolpassword")
    iterations = int(match[1])
    if not ITERATIONS <= iterations <= ITERATIONS_MAX:
        return Refusal(f"a verifier's iterations lie between {ITERATIONS} and {ITERATIONS_MAX}")
    try:
        salt, stored_key, server_key = (base64.b64decode(match[n], validate=True) for n in (2, 3, 4))
    except binascii.Error:
        return Refusal("a verifier's salt and keys are base64")
    if not 1 <= len(salt) <= SALT_BYTES_MAX or len(stored_key) != DIGEST_BYTES or len(server_key) != DIGEST_BYTES:
        return Refusal(f"a verifier has a salt of up to {SALT_BYTES_MAX} bytes and two keys of {DIGEST_BYTES}")
    return Verifier(iterations, salt, stored_key, server_key)


def decoy(name: str, seed: bytes) -> Verifier:
    """A verifier that no key fits, the same at each attempt: an unknown name must look like a known one.

    `seed` is random, secret and lives as long as the gateway (PostgreSQL's mock authentication nonce).
    """

    def derived(use: bytes) -> bytes:
        return hmac.digest(seed, use + b"\0" + name.encode("utf-8", "surrogateescape"), "sha256")

    return Verifier(ITERATIONS, derived(b"salt")[:SALT_BYTES], derived(b"stored key"), derived(b"server key"))


def create_operator_key() -> tuple[str, str]:
    """A new operator key, and the SHA-256 in hex that goes into the configuration."""
    key = f"pgwop_{_letters(secrets.token_bytes(_SECRET_BYTES))}"
    return key, operator_key_sha256(key)


def operator_key_sha256(key: str) -> str:
    """One fast hash is enough: the key is 256 random bits, not a password that somebody chose."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_operator_key(text: str) -> bool:
    """Whether the shape is right. Says nothing of whether anybody holds it."""
    return _OPERATOR_KEY.fullmatch(text) is not None


def _verifier(key: str, salt: bytes) -> str:
    salted = hashlib.pbkdf2_hmac("sha256", key.encode("ascii"), salt, ITERATIONS)  # RFC 5802 §3
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${ITERATIONS}:{_base64(salt)}${_base64(stored_key)}:{_base64(server_key)}"


def _letters(random: bytes) -> str:
    return base64.b32encode(random).decode("ascii").rstrip("=").lower()


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
