"""pgwarden.toml -> `Config`, or every problem in it at once. The only module that reads configuration and its secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from identity.settings import IssuerRules
from ingest.events import Scope
from pgwarden.references import Secret

Durability: TypeAlias = Literal["fast", "group", "strict"]
TextMode: TypeAlias = Literal["full", "fingerprint"]
TlsMode: TypeAlias = Literal["required", "optional"]
SslMode: TypeAlias = Literal["disable", "require", "verify-ca", "verify-full"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a part listens. Port 0 takes any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    listen: Address
    allow_remote: bool
    tls: TlsMode
    tls_certificate: Path | None  # None together with `tls_key`: self-signed, made in state/tls/ at first start
    tls_key: Path | None
    durability: Durability
    statement_text: TextMode
    parameters: bool


@dataclass(frozen=True, slots=True)
class ApiConfig:
    listen: Address
    allow_remote: bool


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    listen: Address
    allow_remote: bool


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    name: str  # what a client gives as dbname
    host: str
    port: int
    database: str
    user: str
    password: Secret
    sslmode: SslMode
    sslrootcert: Path | None  # None: the system's trust store
    search_path: tuple[str, ...]
    durability: Durability  # the gateway's where the file names none


@dataclass(frozen=True, slots=True)
class GrantConfig:
    scope: Scope
    seconds: int  # life from approval; 0 = until revoked
    reason: str


@dataclass(frozen=True, slots=True)
class AgentConfig:
    name: str
    description: str
    owner: str
    issuer: str  # the issuer's URL, as events record it; "" without an OIDC identity
    client: str
    subject: str  # pinned `sub`; "" = not pinned
    key_verifier: str  # SCRAM-SHA-256$...; "" where `key` is given, or neither
    key: Secret | None  # the verifier is made from it when the agent is registered
    grants: tuple[GrantConfig, ...]


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    name: str
    key_sha256: str  # 64 lower-case hex digits


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one line of a file, and what to write instead."""

    path: str
    line: int
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}; {self.remedy}"


class ConfigInvalid(Exception):
    """The configuration cannot be used. Holds every problem of it, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    state: Path  # absolute
    gateway: GatewayConfig
    api: ApiConfig
    dashboard: DashboardConfig
    connections: Mapping[str, ConnectionConfig]  # by name
    issuers: Mapping[str, IssuerRules]  # by the name of its table
    agents: Mapping[str, AgentConfig]
    operators: Mapping[str, OperatorConfig]
    warnings: tuple[Problem, ...] = ()  # allowed, but less than safe; each start prints them
