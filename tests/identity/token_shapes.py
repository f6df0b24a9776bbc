"""Signs tokens in the shapes that issuers really give them, with `cryptography` alone: the code under test uses joserfc."""

from __future__ import annotations

import base64
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from identity.refusal import Refusal
from identity.settings import IssuerRules, rules
from identity.tokens import KeySet, SignedClaims, key_set, verify

NOW = 1_800_000_000
NOW_US = NOW * 1_000_000
DOCUMENT = Path(__file__).parents[2] / "docs" / "oidc.md"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass(frozen=True)
class SigningKey:
    kid: str
    alg: str
    private: Any

    def jwk(self, **changes: object) -> dict[str, object]:
        """The public key; a change to None leaves a member out."""
        members: dict[str, object] = {"kid": self.kid, "alg": self.alg, "use": "sig"}
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            members |= {"kty": "RSA", "n": b64(_big_endian(numbers.n)), "e": b64(_big_endian(numbers.e))}
        elif isinstance(public, ec.EllipticCurvePublicKey):
            point, size = public.public_numbers(), (public.key_size + 7) // 8
            curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521", "secp256k1": "secp256k1"}[public.curve.name]
            members |= {"kty": "EC", "crv": curve, "x": b64(point.x.to_bytes(size)), "y": b64(point.y.to_bytes(size))}
        else:
            curve = "Ed25519" if isinstance(public, ed25519.Ed25519PublicKey) else "Ed448"
            members |= {"kty": "OKP", "crv": curve, "x": b64(public.public_bytes_raw())}
        return {name: value for name, value in (members | changes).items() if value is not None}

    def signature(self, message: bytes, alg: str) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            digest = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[alg[-3:]]()
            scheme = padding.PSS(padding.MGF1(digest), digest.digest_size) if alg.startswith("PS") else padding.PKCS1v15()
            return self.private.sign(message, scheme, digest)
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            digest = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[alg[-3:]]()
            r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(digest)))
            size = (self.private.key_size + 7) // 8
            return r.to_bytes(size) + s.to_bytes(size)
        return self.private.sign(message)


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


RSA = SigningKey("rsa-1", "RS256", rsa.generate_private_key(65537, 2048))
RSA_OTHER = SigningKey("rsa-2", "RS256", rsa.generate_private_key(65537, 2048))
P256 = SigningKey("p256", "ES256", ec.generate_private_key(ec.SECP256R1()))
P384 = SigningKey("p384", "ES384", ec.generate_private_key(ec.SECP384R1()))
ED25519 = SigningKey("ed", "EdDSA", ed25519.Ed25519PrivateKey.generate())
ED448 = SigningKey("ed448", "EdDSA", ed448.Ed448PrivateKey.generate())


def jwks(*keys: dict[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def keys_of(*keys: dict[str, object]) -> KeySet:
    found = key_set(jwks(*keys))
    assert isinstance(found, KeySet), found
    return found


KEYS = keys_of(RSA.jwk(), P256.jwk(), P384.jwk(), ED25519.jwk())


def signed(
    claims: dict[str, object] | bytes, key: SigningKey = RSA, header: dict[str, object] | bytes | None = None, **changes: object
) -> str:
    """A token; `changes` are made to the header, and None leaves a member out."""
    members: dict[str, object] = {"typ": "at+jwt", "alg": key.alg, "kid": key.kid}
    if isinstance(header, dict):
        members = dict(header)
    members = {name: value for name, value in (members | changes).items() if value is not None}
    # Keycloak's header has spaces
    header_json = header if isinstance(header, bytes) else json.dumps(members, separators=(",", " : ")).encode()
    claims_json = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    message = f"{b64(header_json)}.{b64(claims_json)}"
    return f"{message}.{b64(key.signature(message.encode(), str(members.get('alg', key.alg))))}"


def without(claims: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in claims.items() if name not in names}


def row(name: str, **changes: object) -> IssuerRules:
    """A row as docs/oidc.md shows it."""
    found = rules(name, documented()[name] | changes)
    assert isinstance(found, IssuerRules), found
    return found


def documented() -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for block in DOCUMENT.read_text(encoding="utf-8").split("```toml\n")[1:]:
        for name, table in tomllib.loads(block.split("```")[0])["issuers"].items():
            assert name not in tables, f"{name} is shown twice"
            tables[name] = table
    return tables


def proven(token: str, rules: IssuerRules, keys: KeySet = KEYS, now_us: int = NOW_US, certificate: bytes = b"") -> SignedClaims:
    found = verify(token, rules, keys, now_us, certificate)
    assert isinstance(found, SignedClaims), found
    return found


def refused(token: str, rules: IssuerRules, keys: KeySet = KEYS, now_us: int = NOW_US, certificate: bytes = b"") -> str:
    found = verify(token, rules, keys, now_us, certificate)
    assert isinstance(found, Refusal), "the token was taken"
    return found.reason


# -- RFC 9068 §2.2, by the letter

STRICT = IssuerRules(name="strict", issuer="https://idp.example", audience="pgwarden")


def rfc9068(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = {
        "iss": "https://idp.example",
        "aud": "pgwarden",
        "sub": "reporter",
        "client_id": "reporter",
        "iat": NOW - 10,
        "exp": NOW + 290,
        "jti": "a3f1",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


# -- Keycloak 26.7.3

ACCOUNT = "8b1f5f5e-8a0c-4c7c-9a53-5b9a5d2b7b10"  # the service account's user
PERSON = "f3a1c0de-0000-4000-8000-00000000beef"
KEYCLOAK = "https://idp.example/realms/agents"


def keycloak_default(**changes: object) -> dict[str, object]:
    """Client credentials, nothing set up: typ JWT in the header, aud account."""
    claims: dict[str, object] = {
        "exp": NOW + 290,
        "iat": NOW - 10,
        "jti": "trrtcc:0c5c6a2e-6a53-4c9c-8a34-59e7f2a0a0f1",
        "iss": KEYCLOAK,
        "aud": "account",
        "sub": ACCOUNT,
        "typ": "Bearer",
        "azp": "reporter",
        "acr": "1",
        "realm_access": {"roles": ["default-roles-agents", "offline_access", "uma_authorization"]},
        "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
        "scope": "profile email",
        "email_verified": False,
        "clientHost": "127.0.0.1",
        "preferred_username": "service-account-reporter",
        "clientAddress": "127.0.0.1",
        "client_id": "reporter",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def keycloak_set_up(**changes: object) -> dict[str, object]:
    claims = keycloak_default(aud="pgwarden", realm_access=None, resource_access=None, scope="profile email groups")
    claims["groups"] = ["/analytics", "/analytics/eu"]
    return {name: value for name, value in (claims | changes).items() if value is not None}


def keycloak_person(**changes: object) -> dict[str, object]:
    """A person's own: azp and sid, no client_id."""
    claims = keycloak_default(
        aud=["pgwarden", "account"],
        sub=PERSON,
        azp="pgwarden-console",
        jti="onrtac:77d1",
        sid="5d6f",
        client_id=None,
        clientHost=None,
        clientAddress=None,
        preferred_username="ada",
        groups=["/pgwarden/operators"],
    )
    return {name: value for name, value in (claims | changes).items() if value is not None}


def keycloak_exchanged(**changes: object) -> dict[str, object]:
    """What an agent gets for a person's token: hers but for azp, and without act."""
    return keycloak_person(azp="reporter", jti="ntrtte:91aa", aud="pgwarden", **changes)


# -- Spring Authorization Server 7.1.2: no typ, no client_id, scope an array

SPRING = "https://auth.example"


def spring(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = {
        "sub": "reporter",
        "aud": "reporter",
        "nbf": NOW - 10,
        "scope": ["pgwarden"],
        "iss": SPRING,
        "exp": NOW + 290,
        "iat": NOW - 10,
        "jti": "2f0c5d0e-9a51-4f2b-a7a3-2b0e4f1a8a11",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def spring_token(claims: dict[str, object]) -> str:
    return signed(claims, header={"kid": RSA.kid, "alg": "RS256"})


# -- npm oidc-provider 9.13.3


def oidc_provider(**changes: object) -> dict[str, object]:
    claims: dict[str, object] = {
        "jti": "6vM3pYpXkqcNqNqkq8rL1",
        "sub": "reporter",
        "iat": NOW - 10,
        "exp": NOW + 290,
        "scope": "pgwarden",
        "client_id": "reporter",
        "iss": "https://op.example",
        "aud": "https://pgwarden.example",
        "groups": ["analytics"],
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def agents(*registered: tuple[str, str, str]) -> Any:
    """`agent_of` over (agent, client, pinned subject), matching as the registry does."""

    def agent_of(issuer: str, client: str, subject: str) -> str | None:
        found = [name for name, of_client, pin in registered if of_client == client and pin in ("", subject)]
        return found[0] if len(found) == 1 else None

    return agent_of
