"""One row of rules an issuer: what its tokens must look like, and which claim means what. The defaults are RFC 9068, strictly."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from identity.roles import Role

Path: TypeAlias = tuple[str, ...]
"""Keys from the outside in. Never a dotted string: `kubernetes.io` and `https://sts.amazonaws.com/` are one key each."""

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""All that a row may name. No HMAC: its key would have to be shared with the issuer. No Ed448. `EdDSA` means Ed25519 (RFC 9864)."""

ACCESS_TOKEN_TYPES: Final = ("at+jwt", "application/at+jwt")  # RFC 9068 §2.1

LEEWAY_SECONDS_MAX: Final = 30
TOKEN_BYTES_MAX: Final = 16_384  # 61 long groups in Keycloak are 3.8 kB; a Postgres startup packet may be 10 kB


class RulesInvalid(ValueError):
    def __init__(self, name: str, wrong: tuple[str, ...]) -> None:
        super().__init__(f"issuer {name}: " + "; ".join(wrong))
        self.wrong = wrong  # each as `key: what to write`


@dataclass(frozen=True, slots=True)
class Equals:
    """The claim at `path` must be one of `values`; of an array, one member must be."""

    path: Path
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IssuerRules:
    """How tokens of one issuer are read.

    Raises:
        RulesInvalid: The rules contradict each other or would accept what is no access token. Says all that is wrong.
    """

    # Who signs
    name: str  # the row's name in the configuration
    issuer: str  # the token's `iss`, byte for byte: a trailing slash, a port and the case count
    audience: str  # ours: the token must be meant for it
    audiences_also: tuple[str, ...] = ()  # others that may stand beside ours in an array, never instead of it
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
    jwks_uri: str = ""  # "" = what the issuer's metadata says
    jwks: str = ""  # the JWKS itself as JSON, for an issuer that cannot be reached; "" = fetch it
    jwks_hosts: tuple[str, ...] = ()  # hosts, beside the issuer's own, that its metadata may name for keys
    ca_file: str = ""  # PEM roots for the issuer's TLS; "" = certifi's
    insecure_http: bool = False  # plain http, to loopback only, for development

    # What is an access token
    types: tuple[str, ...] = ACCESS_TOKEN_TYPES  # header `typ`, in any case; "" = absent
    claim_types: tuple[str, ...] = ("Bearer",)  # where the claim `typ` is there (Keycloak), it must be one of these
    required: tuple[Path, ...] = (("iss",), ("exp",), ("sub",), ("client_id",), ("iat",), ("jti",))  # RFC 9068 §2.2; aud always
    forbidden: tuple[Path, ...] = (
        ("nonce",),
        ("at_hash",),
        ("c_hash",),
        ("s_hash",),
        ("events",),
    )  # an ID token, a SET, a logout token
    equals: tuple[Equals, ...] = ()
    scopes: tuple[str, ...] = ()  # each must be among the token's
    lifetime_max_seconds: int = 3600  # exp - iat, or exp - now where there is no iat
    leeway_seconds: int = 30  # clocks that disagree
    token_bytes_max: int = 8192
    certificate_required: bool = False  # refuse a token that is not bound to the connection's certificate (RFC 8705)

    # Who acts
    agent: tuple[Path, ...] = (("client_id",), ("azp",))  # alternatives; those that are there must agree
    pinned: tuple[Path, ...] = (("sub",),)  # what the registry's `subject` pins; several values are joined by a space
    workload: bool = False  # tokens name a workload, never a person (Kubernetes, CI, SPIFFE): `sub` is always its own
    subject_prefix: str = ""  # `sub` must start so; tells trust domains apart where tokens have no `iss` (SPIFFE)
    own_account_claim: Path = ()  # is there exactly when `sub` is the client's own account (Keycloak: client_id)
    own_account_suffix: str = ""  # `sub` of the own account is the client and this (Auth0: @clients)
    without_act: Literal["refuse", "actor"] = (
        "refuse"  # a person's `sub`, a client and no `act`: refuse, or the client is the actor
    )
    actor: Path = ("act",)  # RFC 8693 §4.1; () = such tokens are refused
    on_behalf_of: Path = ("sub",)  # the person, once it is known that another acts
    groups: Path = ("groups",)
    group_separator: str = ""  # splits groups that come as one string; "" = the string is one group
    invocation: Path = ()
    task: Path = ()

    # People
    operator_groups: tuple[str, ...] = ()  # a person in one of these is an administrator
    responder_groups: tuple[str, ...] = ()  # a responder; who is in several groups has the widest role
    viewer_groups: tuple[str, ...] = ()
    operator_clients: tuple[str, ...] = ()  # and came through one of these clients, which are no agents

    def __post_init__(self) -> None:
        wrong = _contradictions(self)
        if wrong:
            raise RulesInvalid(self.name, tuple(wrong))

    def groups_of_role(self) -> Mapping[Role, frozenset[str]]:
        """Empty where nobody of this issuer is an operator."""
        groups: dict[Role, tuple[str, ...]] = {
            "viewer": self.viewer_groups,
            "responder": self.responder_groups,
            "administrator": self.operator_groups,
        }
        return {role: frozenset(names) for role, names in groups.items() if names}


def rules(name: str, table: Mapping[str, object]) -> IssuerRules | tuple[str, ...]:
    """Return the row that a configuration table describes, or everything that is wrong with it, each as `key: what to write`.

    A claim is a string (`"sub"`) or a list of keys (`["kubernetes.io", "namespace"]`); `agent` also takes a list of lists, its
    alternatives. `jwks` is the document itself; reading a file is the caller's task.
    """
    values: dict[str, object] = {}
    wrong: list[str] = []
    known = {field.name: str(field.type) for field in fields(IssuerRules) if field.name != "name"}
    for key, raw in table.items():
        kind = known.get(key)
        if kind is None:
            wrong.append(f"{key}: no such setting; known are {', '.join(sorted(known))}")
            continue
        value = _value(key, kind, raw)
        if isinstance(value, _Wrong):
            wrong.append(f"{key}: {value.sentence}")
        else:
            values[key] = value
    wrong.extend(f"{key}: missing; write it as a string" for key in ("issuer", "audience") if key not in table)
    if wrong:
        return tuple(wrong)
    try:
        return IssuerRules(name=name, **values)  # type: ignore[arg-type]  # each value was read by its field's type above
    except RulesInvalid as invalid:
        return invalid.wrong


@dataclass(frozen=True, slots=True)
class _Wrong:
    sentence: str


def _value(key: str, kind: str, raw: object) -> object | _Wrong:
    """Turn TOML's lists into tuples, by the field's type."""
    if kind == "bool":
        return raw if isinstance(raw, bool) else _Wrong("write true or false")
    if kind == "int":
        return raw if isinstance(raw, int) and not isinstance(raw, bool) else _Wrong("write a whole number")
    if kind == "Path":
        path = _path(raw)
        return path if path is not None else _Wrong('write a claim, as "groups" or ["realm_access", "roles"]')
    if kind == "tuple[Path, ...]":
        if key == "agent" and isinstance(raw, list) and raw and all(isinstance(part, str) for part in raw):
            return (tuple(raw),)  # one path; alternatives are a list of lists
        paths = [_path(item) for item in raw] if isinstance(raw, list) else [_path(raw)]
        found = tuple(path for path in paths if path)
        return found if len(found) == len(paths) else _Wrong('write claims, as ["sub"] or [["kubernetes.io", "namespace"]]')
    if kind == "tuple[str, ...]":
        if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
            return tuple(raw)
        return _Wrong("write a list of strings")
    if kind == "tuple[Equals, ...]":
        return _equals(raw)
    return raw if isinstance(raw, str) else _Wrong("write a string")


def _path(raw: object) -> Path | None:
    if isinstance(raw, str):
        return (raw,) if raw else ()
    if isinstance(raw, list) and all(isinstance(part, str) and part for part in raw):
        return tuple(raw)
    return None


def _equals(raw: object) -> tuple[Equals, ...] | _Wrong:
    remedy = _Wrong('write a list as [{ path = ["typ"], values = ["Bearer"] }]')
    if not isinstance(raw, list):
        return remedy
    found: list[Equals] = []
    for item in raw:
        if not isinstance(item, Mapping) or set(item) != {"path", "values"}:
            return remedy
        path, values = _path(item["path"]), item["values"]
        if not path or not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            return remedy
        found.append(Equals(path, tuple(values)))
    return tuple(found)


def _contradictions(row: IssuerRules) -> list[str]:
    wrong: list[str] = []
    if not row.issuer:
        wrong.append("issuer: write the token's iss, exactly as it stands there")
    if not row.audience:
        wrong.append("audience: write what tokens for this gateway have as aud")  # an empty one would be everybody's
    unknown = [name for name in row.algorithms if name not in ALGORITHMS]
    if unknown or not row.algorithms:
        wrong.append(f"algorithms: {', '.join(unknown) or 'none'} cannot be used; choose of {', '.join(ALGORITHMS)}")
    if not row.types:
        wrong.append('types: write at least one header typ, "" for absent')
    # Where `typ` does not say "access token", something else must: ID tokens, SETs and logout tokens have the same key and issuer.
    loose = [kind for kind in row.types if kind.lower() not in ACCESS_TOKEN_TYPES]
    if loose and not (row.equals or row.scopes or row.workload):
        wrong.append(
            f"types: {', '.join(repr(kind) for kind in loose)} is not said of access tokens only; add a mark that is: equals"
            ' (Keycloak: [{ path = ["typ"], values = ["Bearer"] }]), scopes, or workload = true'
        )
    if ("exp",) not in row.required:
        wrong.append("required: exp cannot be left out")
    if ("sub",) not in row.required:
        wrong.append("required: sub cannot be left out")  # nothing else tells an agent from its successor of the same name
    if not row.agent or not all(row.agent):
        wrong.append("agent: write the claim that names the agent")
    if not row.pinned or not all(row.pinned):
        wrong.append('pinned: write the claims that the registry pins, as ["sub"]')
    if ("iss",) not in row.required and not row.subject_prefix:
        wrong.append("subject_prefix: where iss is not required, write how sub starts")
    if not 0 <= row.leeway_seconds <= LEEWAY_SECONDS_MAX:
        wrong.append(f"leeway_seconds: at most {LEEWAY_SECONDS_MAX}")
    if not 0 < row.lifetime_max_seconds <= 86_400:
        wrong.append("lifetime_max_seconds: from 1 to 86400; nothing but its end stops a token that is taken away")
    if not 0 < row.token_bytes_max <= TOKEN_BYTES_MAX:
        wrong.append(f"token_bytes_max: at most {TOKEN_BYTES_MAX}")
    if row.without_act not in ("refuse", "actor"):
        wrong.append('without_act: write "refuse" or "actor"')
    if row.groups_of_role() and not row.operator_clients:
        # After a Keycloak exchange an agent holds a token that looks like the person's own, her groups with it.
        wrong.append(
            "operator_clients: with groups of operators, name the clients that people use, so that no agent passes for one"
        )
    if row.jwks and row.jwks_uri:
        wrong.append("jwks_uri: leave it out where jwks is given")
    if not row.jwks:
        wrong.extend(_address("issuer", row.issuer, row.insecure_http) if not row.jwks_uri else ())
        wrong.extend(_address("jwks_uri", row.jwks_uri, row.insecure_http) if row.jwks_uri else ())
    return wrong


def _address(key: str, url: str, insecure_http: bool) -> list[str]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return [f"{key}: not a URL"]
    if not host or parts.query or parts.fragment or parts.username is not None:
        return [f"{key}: write a URL with a host, and without user, query and fragment"]
    if parts.scheme == "https":
        return []
    if parts.scheme != "http":
        return [f"{key}: write an https URL"]  # CVE-2026-48522: never file:, ftp:, data:
    if not insecure_http:
        return [f"{key}: write an https URL, or set insecure_http = true for an issuer on this machine"]
    return [] if loopback(host) else [f"{key}: insecure_http is for 127.0.0.1, ::1 and localhost only"]


def loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class KeysSettings:
    """How an issuer's keys are fetched and kept."""

    soft_ttl_seconds: float = 300.0  # then they are fetched again: a key that was taken away is a revocation only once we look
    hard_ttl_seconds: float = 86_400.0  # an issuer that cannot be reached for longer verifies nobody
    unknown_kid_interval_seconds: float = 30.0  # between fetches that unknown kids cause: no amplifier for garbage
    retry_seconds_min: float = 1.0  # after a fetch that failed; doubles up to the next
    retry_seconds_max: float = 30.0
    fetch_seconds_max: float = 5.0  # metadata and keys together; a login waits for it
    document_bytes_max: int = 2**20
