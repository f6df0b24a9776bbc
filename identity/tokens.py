"""In come a token, the rules of its issuer and the keys of its issuer; out come its claims, signed, or why not. Touches nothing.

The JOSE is joserfc's. Around it stands what a library leaves to its caller: RFC 9068 §4, RFC 8705 §3.1, and the traps that real
issuers set (docs/oidc.md).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Final

from joserfc import jwk, jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwa import JWSAlgModel
from joserfc.util import urlsafe_b64decode

from identity.refusal import Refusal
from identity.settings import ACCESS_TOKEN_TYPES, TOKEN_BYTES_MAX, IssuerRules, Path
from identity.strict_json import Json, Object, json_object

KEYS_MAX: Final = 64  # in one JWKS; Keycloak publishes 2 to 6, Google 2, Entra about 10
KEYS_TRIED_MAX: Final = 4  # keys that one signature is held against, where no `kid` tells them apart; 0.3-0.6 ms each
RSA_BITS: Final = range(2048, 8192 + 1)  # NIST SP 800-131A; above, one verification costs a connection's worth of CPU
IDENTIFIER_CHARACTERS_MAX: Final = 512  # OIDC Core §2 says 255 for `sub`; a Kubernetes service account's can be 340
AUDIENCES_MAX: Final = 16

_CURVE_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_KEY_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}

_MINT: Final = object()


# -- keys ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    kid: str  # "" when it has none
    algorithms: frozenset[str]  # of settings.ALGORITHMS, "Ed25519" for both names; what this key may verify, and nothing else
    key: jwk.RSAKey | jwk.ECKey | jwk.OKPKey


@dataclass(frozen=True, slots=True)
class KeySet:
    keys: tuple[VerifyingKey, ...]
    ignored: tuple[str, ...] = ()  # why the others do not verify, for the log

    def knows(self, kid: str) -> bool:
        """Whether a token with this `kid` could be verified; without one, any key could."""
        return bool(self.keys) if not kid else any(key.kid == kid for key in self.keys)


def key_set(document: bytes) -> KeySet | Refusal:
    """Read a JWKS (RFC 7517 §5). A key that cannot verify is passed over and named in `ignored`; it does not spoil the others."""
    read = json_object(document)
    if isinstance(read, Refusal):
        return Refusal(f"the JWKS is {read.reason}")
    members = read.get("keys")
    if not isinstance(members, tuple):
        return Refusal("the JWKS has no array of keys")
    if len(members) > KEYS_MAX:
        return Refusal(f"the JWKS holds more than {KEYS_MAX} keys")
    keys: list[VerifyingKey] = []
    ignored: list[str] = []
    for number, member in enumerate(members):
        key = _verifying_key(member)
        if isinstance(key, Refusal):
            ignored.append(f"key {number}: {key.reason}")
        else:
            keys.append(key)
    return KeySet(tuple(keys), tuple(ignored))


def _verifying_key(member: Json) -> VerifyingKey | Refusal:
    if not isinstance(member, Mapping):
        return Refusal("not an object")
    kty, use, operations, alg, kid = (member.get(name) for name in ("kty", "use", "key_ops", "alg", "kid"))
    if use is not None and use != "sig":
        return Refusal("not for signatures")  # Keycloak publishes RSA-OAEP keys with use: enc beside the others
    if operations is not None and not (isinstance(operations, tuple) and "verify" in operations):
        return Refusal("key_ops does not hold verify")
    if not isinstance(kty, str) or kty not in _KEY_MEMBERS:
        return Refusal("of a type that cannot verify here")  # oct above all: HMAC with a published key
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= IDENTIFIER_CHARACTERS_MAX):
        return Refusal("kid is not a string of a fair length")
    if any(name in member for name in ("d", "k", "p", "q")):
        return Refusal("its private part is published, so that anybody can sign with it")
    needed = {name: member.get(name) for name in _KEY_MEMBERS[kty]}
    values = {name: value for name, value in needed.items() if isinstance(value, str) and len(value) <= 2048}
    if len(values) != len(needed):
        return Refusal("a member is missing")
    algorithms = _algorithms_of(kty, values)
    if isinstance(algorithms, Refusal):
        return algorithms
    if alg is not None:
        # RFC 8725 §3.1. Spring's keys have no alg: then the type decides.
        algorithms &= {_one_name(alg)} if isinstance(alg, str) else frozenset()
        if not algorithms:
            return Refusal("its alg does not belong to its type")
    try:
        key = jwk.import_key({"kty": kty, **values})
    except (JoseError, ValueError, TypeError, KeyError):
        return Refusal("not a valid key")
    assert not isinstance(key, jwk.OctKey)
    return VerifyingKey(kid if isinstance(kid, str) else "", algorithms, key)


def _algorithms_of(kty: str, values: Mapping[str, str]) -> frozenset[str] | Refusal:
    if kty == "RSA":
        try:
            bits = int.from_bytes(urlsafe_b64decode(values["n"].encode("ascii"))).bit_length()
            exponent = int.from_bytes(urlsafe_b64decode(values["e"].encode("ascii")))
        except ValueError:
            return Refusal("not a valid key")
        if bits not in RSA_BITS:
            return Refusal(f"an RSA key of {bits} bits")
        if not 3 <= exponent < 2**32 or exponent % 2 == 0:
            return Refusal("an RSA exponent that is not used")
        return _RSA_ALGORITHMS
    if kty == "EC":
        algorithm = _CURVE_ALGORITHMS.get(values["crv"])
        return frozenset({algorithm}) if algorithm else Refusal("a curve that is not used")
    return frozenset({"Ed25519"}) if values["crv"] == "Ed25519" else Refusal("a curve that is not used")  # Ed448, X25519


def _one_name(algorithm: str) -> str:
    return "Ed25519" if algorithm == "EdDSA" else algorithm  # RFC 9864 §2.2; Ed448 is left out above


# -- tokens ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peek:
    """What a token says of itself, unverified: enough to choose a row and to ask for its keys, and good for nothing else."""

    issuer: str  # "" when it names none
    subject: str
    kid: str


@dataclass(frozen=True, slots=True)
class SignedClaims:
    """The claims of a token that holds under `rules`. Only `verify` makes it."""

    rules: IssuerRules
    claims: Object = field(repr=False)  # a person's data: not for the log
    credential: str  # SHA-256 of the jti in hex; of the whole token where it has none
    expires_at_us: int  # the first moment at which it holds no more: exp and the leeway
    mint: InitVar[object]

    def __post_init__(self, mint: object) -> None:
        if mint is not _MINT:
            raise TypeError("SignedClaims are made by identity.tokens.verify, from a token")


@dataclass(frozen=True, slots=True)
class _Parts:
    header: Object
    claims_json: bytes
    kid: str
    alg: str
    typ: str | None


def peek(token: str) -> Peek | Refusal:
    parts = _parts(token, TOKEN_BYTES_MAX)
    if isinstance(parts, Refusal):
        return parts
    claims = json_object(parts.claims_json)
    if isinstance(claims, Refusal):
        return Refusal(f"the token's claims are {claims.reason}")
    issuer, subject = claims.get("iss", ""), claims.get("sub", "")
    if not isinstance(issuer, str) or not isinstance(subject, str):
        return Refusal("the token's iss or sub is not a string")
    return Peek(issuer, subject, parts.kid)


def rows_for(peeked: Peek, rows: Iterable[IssuerRules]) -> tuple[IssuerRules, ...] | Refusal:
    """Return the rows under which the token may be verified: those of its issuer, or, where it names none, of its trust domain."""
    if peeked.issuer:
        # OIDC Discovery §4.3, RFC 9068 §4: exactly. CVE-2024-53861 was a substring.
        found = tuple(row for row in rows if row.issuer == peeked.issuer)
    else:
        found = tuple(
            row
            for row in rows
            if ("iss",) not in row.required and row.subject_prefix and peeked.subject.startswith(row.subject_prefix)
        )
    return found or Refusal("the token's issuer is not configured here")


def verify(token: str, rules: IssuerRules, keys: KeySet, now_us: int, certificate_sha256: bytes = b"") -> SignedClaims | Refusal:
    """Return the claims if the token is an access token for us, of this issuer, and holds now.

    `certificate_sha256`: the digest of the DER certificate with which the peer proved itself on this connection; empty without one.
    """
    parts = _parts(token, rules.token_bytes_max)
    if isinstance(parts, Refusal):
        return parts
    if (refusal := _typ(parts, rules)) is not None:
        return refusal
    # RFC 8725 §3.1: from our list, never from the issuer's metadata, which names HS256 and none
    if parts.alg not in rules.algorithms and _one_name(parts.alg) not in {_one_name(name) for name in rules.algorithms}:
        return Refusal("the token's alg is not allowed for its issuer")
    if (refusal := _signature(token, parts, keys)) is not None:
        return refusal
    claims = json_object(parts.claims_json)
    if isinstance(claims, Refusal):
        return Refusal(f"the token's claims are {claims.reason}")
    # What is quoted from here on is signed.
    for check in (_issuer, _audience, _presence, _marks, _subject):
        if (refusal := check(claims, rules)) is not None:
            return refusal
    if (refusal := _confirmation(claims, rules, certificate_sha256)) is not None:
        return refusal
    end = _times(claims, rules, now_us)
    if isinstance(end, Refusal):
        return end
    jti = claims.get("jti")
    if jti is not None and not (isinstance(jti, str) and 0 < len(jti) <= IDENTIFIER_CHARACTERS_MAX):
        return Refusal("jti is not a string of a fair length")
    credential = hashlib.sha256((jti if isinstance(jti, str) else token).encode("utf-8")).hexdigest()
    return SignedClaims(rules, claims, credential, end, _MINT)


def at(claims: Json, path: Path) -> Json:
    """The value at a path of keys; None where there is none."""
    value = claims
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def scopes(claims: Object) -> frozenset[str] | Refusal:
    """`scope` as a string (RFC 8693 §4.2) or an array (Spring), or `scp` (Entra, Hydra)."""
    found: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        if isinstance(value, str):
            found.update(value.split(" "))
        elif isinstance(value, tuple) and all(isinstance(item, str) for item in value):
            found.update(item for item in value if isinstance(item, str))
        elif value is not None:
            return Refusal(f"{name} is neither a string nor an array of strings")
    return frozenset(found - {""})


def shown(value: Json) -> str:
    """A signed value in a sentence for the log: one line of ASCII, and short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parts(token: str, bytes_max: int) -> _Parts | Refusal:
    if len(token) > bytes_max:
        return Refusal(f"the token is longer than {bytes_max} bytes")
    segments = token.split(".", 3)
    if len(segments) != 3 or not all(segments) or not token.isascii():
        return Refusal("not a signed token in compact form")  # five parts would be encrypted
    try:
        header_json, claims_json, _ = (urlsafe_b64decode(segment.encode("ascii")) for segment in segments)
    except ValueError:
        return Refusal("not a signed token in compact form")
    header = json_object(header_json)
    if isinstance(header, Refusal):
        return Refusal(f"the token's header is {header.reason}")
    # RFC 7515 §4.1.11, RFC 7797: we understand no extension, so a token that needs one is refused (CVE-2026-32597)
    if "crit" in header or "b64" in header:
        return Refusal("the token needs an extension (crit)")
    alg, typ, kid = header.get("alg"), header.get("typ"), header.get("kid", "")
    if not isinstance(alg, str) or not (typ is None or isinstance(typ, str)) or not isinstance(kid, str):
        return Refusal("alg, typ or kid is not a string")
    if len(kid) > IDENTIFIER_CHARACTERS_MAX:
        return Refusal("kid is too long")
    return _Parts(header, claims_json, kid, alg, typ)


def _typ(parts: _Parts, rules: IssuerRules) -> Refusal | None:
    # RFC 9068 §4: at+jwt or application/at+jwt; RFC 7515 §4.1.9: media types know no case
    kind = (parts.typ or "").lower()
    allowed = {name.lower() for name in rules.types}
    if kind in allowed or (kind in ACCESS_TOKEN_TYPES and allowed & set(ACCESS_TOKEN_TYPES)):
        return None
    return Refusal("the token's typ is not one of its issuer's row: it may be an ID token, a logout token or a security event")


class _Algorithms(jws.JWSRegistry):
    """joserfc's algorithms without its limits (ours come first), without HMAC and none, and with `EdDSA` bound to Ed25519."""

    max_header_length = TOKEN_BYTES_MAX
    max_signature_length = TOKEN_BYTES_MAX

    def get_alg(self, name: str) -> JWSAlgModel:
        name = _one_name(name)
        if name not in _RSA_ALGORITHMS and name not in _CURVE_ALGORITHMS.values() and name != "Ed25519":
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


_ALGORITHMS: Final = _Algorithms(strict_check_header=False)


def _signature(token: str, parts: _Parts, keys: KeySet) -> Refusal | None:
    # The key's own algorithms decide, so that no token picks how its key is used. Keys in the header (jwk, jku, x5u) are not read.
    algorithm = _one_name(parts.alg)
    named = [key for key in keys.keys if not parts.kid or key.kid == parts.kid]
    if not named:
        return Refusal("the token's kid is not among the issuer's keys")
    fitting = [key for key in named if algorithm in key.algorithms]
    if not fitting:
        return Refusal("the token's alg does not belong to its key")
    if len(fitting) > KEYS_TRIED_MAX:
        return Refusal("the token has no kid and its issuer too many keys to try")
    for key in fitting:
        try:
            jws.deserialize_compact(token, key.key, registry=_ALGORITHMS)
        except (JoseError, ValueError):
            continue
        return None
    return Refusal("the token's signature does not match")


def _issuer(claims: Object, rules: IssuerRules) -> Refusal | None:
    issuer = claims.get("iss")
    if issuer is None and ("iss",) not in rules.required:
        return None
    return None if issuer == rules.issuer else Refusal(f"iss is {shown(issuer)}, which is not its row's")


def _audience(claims: Object, rules: IssuerRules) -> Refusal | None:
    # RFC 9068 §4. An audience beside ours could use the token here, so it must have been named.
    value = claims.get("aud")
    audiences = (value,) if isinstance(value, str) else value
    if not isinstance(audiences, tuple) or not audiences or len(audiences) > AUDIENCES_MAX:
        return Refusal(f"aud is {shown(value)}; it must name {rules.audience}")
    if not all(isinstance(name, str) for name in audiences) or rules.audience not in audiences:
        return Refusal(f"aud is {shown(value)}; it must name {rules.audience}")
    others = [name for name in audiences if name != rules.audience and name not in rules.audiences_also]
    return Refusal(f"aud also names {shown(others[0])}, which audiences_also does not") if others else None


def _presence(claims: Object, rules: IssuerRules) -> Refusal | None:
    for path in rules.required:
        if at(claims, path) is None:
            return Refusal(f"the claim {'.'.join(path)} is missing")
    for path in rules.forbidden:
        if at(claims, path) is not None or (len(path) == 1 and path[0] in claims):
            return Refusal(f"the claim {'.'.join(path)} belongs to another kind of token")
    return None


def _marks(claims: Object, rules: IssuerRules) -> Refusal | None:
    kind = claims.get("typ")  # Keycloak: Bearer, DPoP, ID, Refresh, Offline, Logout
    if kind is not None and kind not in rules.claim_types:
        return Refusal(f"the claim typ is {shown(kind)}, not that of an access token")
    for mark in rules.equals:
        value = at(claims, mark.path)
        values = value if isinstance(value, tuple) else (value,)
        if not any(item in mark.values for item in values if isinstance(item, str)):
            return Refusal(f"the claim {'.'.join(mark.path)} is {shown(value)}, which its row does not allow")
    if rules.scopes:
        granted = scopes(claims)
        if isinstance(granted, Refusal):
            return granted
        missing = [scope for scope in rules.scopes if scope not in granted]
        if missing:
            return Refusal(f"the scope {missing[0]} was not granted")
    return None


def _subject(claims: Object, rules: IssuerRules) -> Refusal | None:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= IDENTIFIER_CHARACTERS_MAX or not subject.isprintable():
        return Refusal("sub is not a printable string of a fair length")
    if not subject.startswith(rules.subject_prefix):
        return Refusal(f"sub is {shown(subject)}, which does not start with {rules.subject_prefix}")
    return None


def _confirmation(claims: Object, rules: IssuerRules, certificate_sha256: bytes) -> Refusal | None:
    if "cnf" not in claims:
        return Refusal("the token is bound to no certificate, and its row asks for that") if rules.certificate_required else None
    members = claims["cnf"]
    if not isinstance(members, Mapping):
        return Refusal("cnf is not an object")
    # RFC 9449 §6.1 and RFC 7800 §3: keys that cannot be proven to hold on a Postgres connection
    for name in ("jkt", "jwk", "jwe", "jku", "kid"):
        if name in members:
            return Refusal(f"the token is bound to a key by cnf.{name}, which cannot be proven here; ask for a plain one")
    thumbprint = members.get("x5t#S256")  # RFC 8705 §3.1
    if not isinstance(thumbprint, str):
        return Refusal("the token is bound by a cnf that is not known here")
    if not certificate_sha256:
        return Refusal("the token is bound to a certificate, and the connection has none")
    try:
        expected = urlsafe_b64decode(thumbprint.encode("ascii"))
    except ValueError:
        return Refusal("cnf.x5t#S256 is not base64url")
    if not hmac.compare_digest(expected, certificate_sha256):
        return Refusal("the token is bound to another certificate than the connection's")
    return None


def _times(claims: Object, rules: IssuerRules, now_us: int) -> int | Refusal:
    values: dict[str, int | None] = {}
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        # RFC 7519 §2 allows fractions; no issuer sends them, and a bool or a string is a mistake that others have accepted
        if name in claims and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40):
            return Refusal(f"{name} is not a whole number of seconds")
        values[name] = value if isinstance(value, int) else None
    exp, nbf, iat = values["exp"], values["nbf"], values["iat"]
    if exp is None:
        return Refusal("the claim exp is missing")
    leeway_us = rules.leeway_seconds * 1_000_000
    end_us = exp * 1_000_000 + leeway_us
    if now_us >= end_us:
        return Refusal("the token has expired")
    if nbf is not None and nbf * 1_000_000 > now_us + leeway_us:
        return Refusal("the token is not valid yet (nbf)")
    if iat is not None and iat * 1_000_000 > now_us + leeway_us:
        return Refusal("the token comes from the future (iat)")
    # Keycloak gives up to 10 h and, with lifespan 0, exp == iat; Kubernetes a year
    lifetime_us = (exp - iat) * 1_000_000 if iat is not None else exp * 1_000_000 - now_us - leeway_us
    if iat is not None and lifetime_us <= 0:
        return Refusal("the token has no lifetime (exp is not after iat)")
    if lifetime_us > rules.lifetime_max_seconds * 1_000_000:
        return Refusal(f"the token lives longer than {rules.lifetime_max_seconds} s")
    return end_us
