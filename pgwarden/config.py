"""pgwarden.toml -> `Config`, or every problem in it at once. The only module that reads configuration and its secrets."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast, get_args
from urllib.parse import urlsplit

from analytics.settings import ReconcileSettings, ResponsesSettings
from identity import agent_keys, commands
from identity.looks_settings import LooksSettings
from identity.refusal import Refusal
from identity.roles import ROLES, Role
from identity.scope import OPERATIONS
from identity.settings import IssuerRules, loopback
from identity.settings import rules as issuer_rules
from ingest.events import Rule, Scope
from ingest.settings import PARTITIONS, KafkaSettings, RelaySettings, Sasl
from pgwarden import settings
from pgwarden.config_file import ConfigInvalid, Problem, Report, Table, parse, read
from pgwarden.printable import printable
from pgwarden.references import Secret
from pgwarden.small_files import Content, Unreadable, content, reason_of
from pgwarden.webhook_attempts import SECRET_BYTES_MAX, SECRET_BYTES_MIN, signing_key
from pgwarden.webhook_kinds import KINDS, SEVERITIES, Kind, Severity

__all__ = ["ConfigInvalid", "Problem", "load", "loads"]

Durability: TypeAlias = Literal["fast", "group", "strict", "replicated"]
Backend: TypeAlias = Literal["segments", "kafka"]
TextMode: TypeAlias = Literal["full", "fingerprint"]
CollectorKind: TypeAlias = Literal["log", "ebpf", "activity"]
LogFormat: TypeAlias = Literal["jsonlog", "csvlog"]
ObservedText: TypeAlias = Literal["full", "digest"]
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
    name: str  # in the record; two gateways never share it
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
class SignInConfig:
    """How people sign in to the dashboard."""

    issuer: str  # its table's name
    client_id: str
    client_secret: Secret
    address: str  # where browsers find the dashboard, without a path
    scope: str


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    listen: Address
    allow_remote: bool
    sign_in: SignInConfig | None = None  # None: whoever shows the access word acts with the operator key


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    listen: Address
    allow_remote: bool


@dataclass(frozen=True, slots=True)
class LogConfig:
    backend: Backend
    relay: RelaySettings


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
class CollectorConfig:
    name: str
    kind: CollectorKind
    server: str
    connections: tuple[str, ...]  # of Config.connections, at least one
    path: Path | None  # not None where `kind` is "log" or "ebpf"
    format: LogFormat
    statement_text: ObservedText
    text_bytes_max: int
    from_start: bool
    canary_seconds: int
    user: str  # "" = as the first of `connections`, and with its password
    password: Secret | None


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
    role: Role


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    name: str
    url: str
    secret: Secret  # "whsec_..."
    secret_previous: Secret | None
    events: tuple[Kind, ...]
    severity: Severity
    timeout_seconds: float
    attempts: int  # 0 = until it is taken
    source: str
    ca_file: Path | None  # None: the system's trust store


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    state: Path  # absolute
    gateway: GatewayConfig
    api: ApiConfig
    dashboard: DashboardConfig
    log: LogConfig
    kafka: KafkaSettings | None  # exactly where log.backend is "kafka"
    connections: Mapping[str, ConnectionConfig]  # by name
    collectors: Mapping[str, CollectorConfig]
    issuers: Mapping[str, IssuerRules]  # by the name of its table
    agents: Mapping[str, AgentConfig]
    operators: Mapping[str, OperatorConfig]
    metrics: MetricsConfig | None = None  # exactly where the file has [metrics]
    reconcile: ReconcileSettings = field(default_factory=ReconcileSettings)
    responses: ResponsesSettings = field(default_factory=ResponsesSettings)
    looks: LooksSettings = field(default_factory=LooksSettings)
    webhooks: Mapping[str, WebhookConfig] = field(default_factory=lambda: MappingProxyType({}))  # by name
    warnings: tuple[Problem, ...] = ()  # allowed, but less than safe; each start prints them


OPERATOR_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
_CONNECTION_NAME: Final = re.compile(r"[a-z0-9_][a-z0-9._-]{0,62}")
_HOST_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_GATEWAY_NAME: Final = commands.AGENT_NAME  # both name keys of the record
_TOPIC_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]*")
_DURABILITIES: Final = get_args(Durability)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LIMITS: Final = commands.Settings()

_Named: TypeAlias = Mapping[str, object]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """
    Raises:
        ConfigInvalid: The file or something that it names is wrong; says all of it.
    """
    return loads(read(path), path, environ)


def loads(text: str, path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """As `load`, for a text that stands, or would stand, at `path`: what it names is relative to that folder.

    Raises:
        ConfigInvalid: As `load`.
    """
    values, report = parse(text, printable(str(path)))
    path = Path(os.path.abspath(path))  # not resolve(): a link to the file means the folder of the link
    config = _Reading(report, path, environ).config(values)
    report.finish()
    return config


class _Reading:
    """One look at one file. Every method returns something of the right type, so that the next can look on; what is wrong stands
    in the report, and `loads` raises before anybody sees it."""

    def __init__(self, report: Report, path: Path, environ: Mapping[str, str]) -> None:
        self.report = report
        self.path = path
        self.folder = path.parent
        self.environ = environ

    def config(self, values: Mapping[str, object]) -> Config:
        file = Table(self.report, values, (), settings.FILE)
        state = self.state(file)
        log = self.log(file.table("log", settings.LOG))
        kafka = self.kafka(file, log)
        gateway = self.gateway(file.table("gateway", settings.GATEWAY), log, kafka)
        api_table = file.table("api", settings.API)
        api = ApiConfig(*self.listen(api_table, "operator keys"))
        api_table.finish()
        dashboard_table = file.table("dashboard", settings.DASHBOARD)
        dashboard_listen = self.listen(dashboard_table, "operator keys")
        metrics = self.metrics(file)
        listens = {"gateway": gateway.listen, "api": api.listen, "dashboard": dashboard_listen[0]}
        self.distinct(file, {**listens, "metrics": metrics.listen} if metrics is not None else listens)
        connection_tables = file.named_tables("connections", settings.CONNECTION)
        connections = {name: self.connection(name, table, gateway, log, kafka) for name, table in connection_tables.items()}
        collector_tables = file.named_tables("collectors", settings.COLLECTOR)
        collectors = {name: self.collector(name, table, connections) for name, table in collector_tables.items()}
        reconcile = self.reconcile(file.table("reconcile", settings.RECONCILE), collectors)
        responses = self.responses(file.table("responses", settings.RESPONSES))
        looks = self.looks(file.table("looks", settings.LOOKS))
        issuer_tables = file.named_tables("issuers", settings.ISSUER)
        issuers = {name: rules for name, table in issuer_tables.items() if (rules := self.issuer(name, table)) is not None}
        dashboard = DashboardConfig(*dashboard_listen, self.sign_in(dashboard_table, issuer_tables, issuers))
        dashboard_table.finish()
        agent_tables = file.named_tables("agents", settings.AGENT)
        issuer_urls = {name: table.values.get("issuer") for name, table in issuer_tables.items()}
        agents = {name: self.agent(name, table, connections, issuer_urls) for name, table in agent_tables.items()}
        self.one_agent_a_client(agent_tables)
        operators = {name: self.operator(name, table) for name, table in file.named_tables("operators", settings.OPERATOR).items()}
        self.one_operator_a_key(file, operators)
        webhook_tables = file.named_tables("webhooks", settings.WEBHOOK)
        webhooks = {name: made for name, table in webhook_tables.items() if (made := self.webhook(name, table)) is not None}
        if len(webhook_tables) > settings.WEBHOOKS_MAX:
            reason = f"there are more than {settings.WEBHOOKS_MAX} [webhooks.NAME]"
            self.report.problem(("webhooks",), reason, "send to one receiver that passes events on")
        file.finish()
        if not connections:
            self.report.warning((), "there is no [connections.NAME]: agents can reach no database", "write one for each database")
        if not operators and not any(rules.groups_of_role() for rules in issuers.values()):
            remedy = 'write [operators.NAME] with key_sha256, which "pgwarden init" makes'
            self.report.warning((), "there is no [operators.NAME]: nobody can approve a grant or revoke an agent", remedy)
        return Config(
            path=self.path,
            state=state,
            gateway=gateway,
            api=api,
            dashboard=dashboard,
            log=log,
            kafka=kafka,
            connections=MappingProxyType(connections),
            collectors=MappingProxyType(collectors),
            issuers=MappingProxyType(issuers),
            agents=MappingProxyType(agents),
            operators=MappingProxyType(operators),
            metrics=metrics,
            reconcile=reconcile,
            responses=responses,
            looks=looks,
            webhooks=MappingProxyType(webhooks),
            warnings=tuple(self.report.warnings),
        )

    def reconcile(self, table: Table, collectors: Mapping[str, CollectorConfig]) -> ReconcileSettings:
        chosen = ReconcileSettings(
            kill_shadow=table.flag("kill_shadow"),
            compare_addresses=table.flag("compare_addresses"),
            patience_ms=table.whole("patience_ms", 100, 60_000),
            lateness_seconds=table.number("lateness_seconds", 1.0, 600.0),
            sessions_max=table.whole("sessions_max", 100, 1_000_000),
            statements_max=table.whole("statements_max", 100, 1_000_000),
            waiting_max=table.whole("waiting_max", 1_000, 10_000_000),
        )
        if chosen.kill_shadow and not collectors:
            table.warning("is true, and there is no [collectors.NAME]: nobody sees a shadow", "write one", "kill_shadow")
        table.finish()
        return chosen

    def responses(self, table: Table) -> ResponsesSettings:
        chosen = ResponsesSettings(
            age_seconds_max=table.whole("age_seconds_max", 10, 86_400),
            an_hour_max=table.whole("an_hour_max", 0, 10_000),
            throttle_per_minute=table.whole("throttle_per_minute", 1, 100_000),
        )
        table.finish()
        return chosen

    def looks(self, table: Table) -> LooksSettings:
        chosen = LooksSettings(
            repeat_seconds=table.number("repeat_seconds", 0.0, 3600.0),
            repeats_max=table.whole("repeats_max", 1, 1_000_000),
            record_seconds_max=table.number("record_seconds_max", 0.1, 60.0),
        )
        table.finish()
        return chosen

    def state(self, file: Table) -> Path:
        state = Path(os.path.abspath(file.path("state", self.folder) or self.folder / ".pgwarden"))
        shown = printable(str(state))
        socket_bytes = len(os.fsencode(state / settings.WATCHDOG_SOCKET_FILE))
        if socket_bytes > settings.SOCKET_PATH_BYTES_MAX:
            limit = settings.SOCKET_PATH_BYTES_MAX - len(settings.WATCHDOG_SOCKET_FILE) - 1
            file.problem(f"is {shown}, too long for a unix socket in it", f"write a path of at most {limit} bytes", "state")
            return state
        try:
            status = state.stat()
        except FileNotFoundError:
            return state  # made at first start
        except OSError as error:
            file.problem(f"is {shown}, which cannot be used: {reason_of(error)}", "write a folder that you own", "state")
            return state
        if not stat.S_ISDIR(status.st_mode):
            file.problem(f"is {shown}, which is not a folder", "write the path of a folder, or of none yet", "state")
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            # Whoever writes there changes the record and the gateway's key.
            file.problem(f"is {shown}, which others may change", f"run: chmod 700 {shown}", "state")
        elif (state / settings.SAMPLES_FILE).exists() and state != Path(os.path.abspath(self.folder)):
            file.problem(
                f"is {shown}, the folder of the samples, whose agents would reach your databases",
                "write the path of another folder",
                "state",
            )
        return state

    def log(self, table: Table) -> LogConfig:
        config = LogConfig(
            backend=cast(Backend, table.choice("backend", ("segments", "kafka"))),
            relay=RelaySettings(
                backlog_bytes_max=table.whole("backlog_bytes_max", settings.BACKLOG_BYTES_MIN, settings.BACKLOG_BYTES_MAX),
                stale_seconds_max=table.number("stale_seconds_max", 1, settings.STALE_SECONDS_MAX),
            ),
        )
        if config.backend == "segments":
            for key in ("backlog_bytes_max", "stale_seconds_max"):
                if table.written(key):
                    table.problem('is set, and log.backend is "segments"', f"delete {key}: there are no brokers to wait for", key)
        table.finish()
        return config

    def kafka(self, file: Table, log: LogConfig) -> KafkaSettings | None:
        """The settings where the log is in Kafka, wrong or not; else None."""
        if log.backend != "kafka":
            if file.written("kafka"):
                remedy = 'write backend = "kafka" below [log], or delete [kafka]'
                self.report.problem(("kafka",), '[kafka] stands here, and log.backend is "segments"', remedy)
                file.taken.add("kafka")
            return None
        if not file.written("kafka"):
            remedy = 'write a table [kafka] with bootstrap = ["HOST:PORT"]'
            self.report.problem(("log", "backend"), 'log.backend is "kafka", and there is no [kafka]', remedy)
        table = file.table("kafka", settings.KAFKA)
        bootstrap = self.brokers(table) if file.written("kafka") else {}
        tls = table.flag("tls")
        allow_plaintext = table.flag("allow_plaintext")
        beyond = [host for host in bootstrap.values() if not loopback(host)]
        sasl = cast(Sasl, table.choice("sasl", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")))
        if not tls and beyond:
            what = "the record crosses the network in clear text" + (", the password too" if sasl == "PLAIN" else "")
            if allow_plaintext:
                table.warning(f"is false, and {printable(beyond[0])} is another machine: {what}", "write tls = true", "tls")
            else:
                remedy = "write tls = true, or add allow_plaintext = true to this table"
                table.problem(f"is false, and {printable(beyond[0])} is another machine", remedy, "tls")
        ca_file = self.roots(table, "ca_file")
        certificate = table.path("certificate_file", self.folder)
        key = table.path("key_file", self.folder)
        for name in ("ca_file", "certificate_file", "key_file"):
            if not tls and table.values.get(name):
                table.problem("is set, and tls is false", f"delete {name}, or write tls = true", name)
        self.pair(table, "certificate_file", certificate, "key_file", key)
        user = table.text("user")
        password = table.secret("password", self.folder, self.environ)
        if sasl:
            for name, what in (("user", '"…", whom the brokers know'), ("password", '"env:NAME" or "file:PATH"')):
                if not table.values.get(name):
                    table.problem(f'is missing, and sasl is "{sasl}"', f"write {name} = {what}", name)
        else:
            for name in ("user", "password"):
                if table.values.get(name):
                    table.problem("is set without sasl", 'write sasl = "SCRAM-SHA-512", or another that the brokers offer', name)
        prefix = table.text("topic_prefix", settings.TOPIC_PREFIX_CHARACTERS_MAX)
        if table.values.get("topic_prefix") == "":
            prefix = ""
        elif _TOPIC_PREFIX.fullmatch(prefix) is None:
            table.problem(f'is "{printable(prefix)}"', "write letters, digits, '.', '_' and '-' only", "topic_prefix")
        replication = table.whole("replication", 1, settings.REPLICATION_MAX)
        in_sync_min = table.whole("in_sync_min", 1, settings.REPLICATION_MAX)
        if in_sync_min > replication:
            where = "in_sync_min" if table.written("in_sync_min") else "replication"
            remedy = f"write in_sync_min = {max(1, replication - 1)}"
            reason = f"in_sync_min is {in_sync_min} and replication {replication}: nothing could ever be written"
            self.report.problem(("kafka", where), f"kafka.{reason}", remedy)
        elif in_sync_min == replication > 1:
            remedy = f"write in_sync_min = {replication - 1}"
            table.warning(
                f"is {in_sync_min}, as replication is: nothing can be written while one broker is away", remedy, "in_sync_min"
            )
        made = KafkaSettings(
            bootstrap=tuple(bootstrap),
            tls=tls,
            ca_file=str(ca_file or ""),
            certificate_file=str(certificate or ""),
            key_file=str(key or ""),
            sasl=sasl,
            user=user,
            password=password.reveal if password is not None else str,
            topic_prefix=prefix,
            partitions=MappingProxyType(
                {
                    topic: table.whole(f"{topic}_partitions", 1, settings.PARTITIONS_MAX)
                    if f"{topic}_partitions" in table.defaults
                    else number
                    for topic, number in PARTITIONS.items()
                }
            ),
            replication=replication,
            in_sync_min=in_sync_min,
            retention_days=table.whole("retention_days", 1, settings.RETENTION_DAYS_MAX),
        )
        table.finish()
        return made

    def brokers(self, table: Table) -> Mapping[str, str]:
        """The host of each HOST:PORT."""
        hosts = {}
        texts = table.texts("bootstrap", settings.BROKERS_MAX)
        for index, text in enumerate(texts):
            host, colon, port = text.rpartition(":")
            bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            fits = colon and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535
            if not fits or not bare or (":" in host and bare == host) or not _is_host(bare):
                table.problem(f'is "{printable(text)}"', 'write a host and a port, as "kafka-1.example:9093"', "bootstrap", index)
            hosts[text] = bare
        if table.values.get("bootstrap") == []:
            table.problem("is empty", 'write bootstrap = ["HOST:PORT"]', "bootstrap")
        return hosts

    def durability(self, table: Table, default: Durability, log: LogConfig, kafka: KafkaSettings | None) -> Durability:
        chosen = cast(Durability, table.choice("durability", _DURABILITIES) or default)
        if chosen == "replicated" and table.written("durability"):
            if log.backend != "kafka":
                remedy = 'write durability = "strict", or backend = "kafka" below [log]'
                table.problem('is "replicated", and log.backend is "segments": there is one copy', remedy, "durability")
            elif kafka is not None and kafka.in_sync_min == 1:
                remedy = "write replication = 3 and in_sync_min = 2 below [kafka]"
                table.warning('is "replicated", and kafka.in_sync_min is 1: one broker is enough', remedy, "durability")
        return chosen

    def gateway(self, table: Table, log: LogConfig, kafka: KafkaSettings | None) -> GatewayConfig:
        name = table.text("name")
        if _GATEWAY_NAME.fullmatch(name) is None:
            table.problem(f'is "{printable(name)}", which is no name for a gateway', _names_remedy(""), "name")
        elif log.backend == "kafka" and not table.written("name"):
            remedy = 'write name = "…", another one for each gateway'
            table.problem('is missing, and log.backend is "kafka": several gateways write one record', remedy, "name")
        listen, allow_remote = self.listen(table, "")
        certificate = table.path("tls_certificate", self.folder)
        key = table.path("tls_key", self.folder)
        self.pair(table, "tls_certificate", certificate, "tls_key", key)
        config = GatewayConfig(
            name=name,
            listen=listen,
            allow_remote=allow_remote,
            tls=cast(TlsMode, table.choice("tls", ("required", "optional"))),
            tls_certificate=certificate,
            tls_key=key,
            durability=self.durability(table, "group", log, kafka),
            statement_text=cast(TextMode, table.choice("statement_text", ("full", "fingerprint"))),
            parameters=table.flag("parameters"),
        )
        table.finish()
        return config

    def listen(self, table: Table, clear_text: str) -> tuple[Address, bool]:
        """Where a part listens. `clear_text` names what others could then read or send without TLS, "" where nothing."""
        text = table.text("listen")
        allow_remote = table.flag("allow_remote")
        address = _address(text)
        if address is None:
            port = str(table.defaults["listen"]).rpartition(":")[2]
            table.problem(f'is "{printable(text)}"', f'write an IP address and a port, as listen = "127.0.0.1:{port}"', "listen")
            return Address("127.0.0.1", 0), allow_remote
        if loopback(address.host):
            return address, allow_remote
        if not allow_remote:
            remedy = f'write listen = "127.0.0.1:{address.port}", or add allow_remote = true to this table'
            table.problem(f"is {address}, which other machines can reach", remedy, "listen")
        elif clear_text:
            remedy = "put a TLS proxy in front, and let it alone reach this address"
            table.warning(f"is {address}: other machines can reach it in clear text, {clear_text} included", remedy, "listen")
        return address, allow_remote

    def metrics(self, file: Table) -> MetricsConfig | None:
        if not file.written("metrics"):
            file.taken.add("metrics")
            return None
        table = file.table("metrics", settings.METRICS)
        metrics = MetricsConfig(*self.listen(table, "the names of agents"))
        table.finish()
        return metrics

    def sign_in(self, table: Table, issuer_tables: _Named, issuers: Mapping[str, IssuerRules]) -> SignInConfig | None:
        """How people sign in, where `issuer` is written; the other settings go with it."""
        issuer, client, address, scope = (table.text(key) for key in ("issuer", "client_id", "address", "scope"))
        secret = table.secret("client_secret", self.folder, self.environ)
        if not issuer:
            for key in ("client_id", "client_secret", "address", "scope"):
                if table.written(key):
                    table.problem("is set without issuer", 'write issuer = "…", the name of an [issuers.NAME] table', key)
            return None
        if issuer not in issuer_tables:
            reason = f'is "{printable(issuer)}", and there is no [issuers.{printable(issuer)}]'
            table.problem(reason, self.one_of(issuer, issuer_tables), "issuer")
        remedies = {
            "client_id": 'write client_id = "…", the dashboard\'s client at the issuer',
            "client_secret": 'write client_secret = "env:NAME" or "file:PATH"',
            "address": 'write address = "https://…", where browsers find the dashboard',
        }
        for key, remedy in remedies.items():
            if not table.written(key):
                table.problem("is missing, though issuer is set", remedy, key)
        rules = issuers.get(issuer)
        if rules is not None and client and client not in rules.operator_clients:
            remedy = f'write operator_clients = ["{printable(client)}"] below [issuers.{printable(issuer)}]'
            table.problem(f'is "{printable(client)}", whose tokens the API takes from nobody', remedy, "client_id")
        if "openid" not in scope.split():
            table.problem("does not ask for openid, so nobody is told who signs in", 'write scope = "openid profile"', "scope")
        parts = urlsplit(address)
        if address and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query):
            table.problem("is no address of a site", 'write address = "https://pgwarden.example"', "address")
        elif parts.scheme == "http" and not loopback(parts.hostname or ""):
            # The code that stands for the person, and then their token, would cross the network in clear text.
            table.problem("leads over the network in clear text", "write an https:// address, and put TLS in front", "address")
        return None if secret is None else SignInConfig(issuer, client, secret, address.rstrip("/"), scope)

    def distinct(self, file: Table, addresses: Mapping[str, Address]) -> None:
        seen: dict[Address, str] = {}
        for name, address in addresses.items():
            if address.port and (first := seen.setdefault(address, name)) != name:
                self.report.problem((name, "listen"), f"{name}.listen is {address}, as {first}.listen is", "write another port")

    def pair(self, table: Table, certificate_setting: str, certificate: Path | None, key_setting: str, key: Path | None) -> None:
        """Both or neither, and they go together."""
        if certificate is not None and key is None:
            remedy = f"write {key_setting}, the path of the certificate's key"
            table.problem(f"is set without {key_setting}", remedy, certificate_setting)
        elif key is not None and certificate is None:
            remedy = f"write {certificate_setting}, the path of the key's certificate"
            table.problem(f"is set without {certificate_setting}", remedy, key_setting)
        if certificate is None or key is None:
            return
        fine = self.pem(table, certificate_setting, certificate) is not None
        found = self.pem(table, key_setting, key)
        if found is None:
            return
        shown = printable(str(key))
        if found.mode & 0o077:
            table.problem(f"is {shown}, which others may read", f"run: chmod 600 {shown}", key_setting)
        if b"ENCRYPTED" in found.data:
            remedy = "decrypt it with: openssl pkey -in KEY -out PLAIN, and chmod 600 PLAIN"
            table.problem(f"is {shown}, which has a passphrase", remedy, key_setting)
        elif fine:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
            except (ssl.SSLError, OSError) as error:
                reason = getattr(error, "reason", None) or type(error).__name__
                shown_reason = str(reason).lower().replace("_", " ")
                remedy = "write a PEM certificate chain, leaf first, and its own key"
                table.problem(f"does not go with {key_setting}: {shown_reason}", remedy, certificate_setting)

    def roots(self, table: Table, key: str) -> Path | None:
        """A file of certificates to trust."""
        path = table.path(key, self.folder)
        if path is None or self.pem(table, key, path) is None:
            return path
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except (ssl.SSLError, OSError):
            table.problem(f"is {printable(str(path))}, which holds no certificate", "name a file of PEM certificates", key)
        return path

    def pem(self, table: Table, key: str, path: Path) -> Content | None:
        return self.file(table, key, path, "a PEM file")

    def file(self, table: Table, key: str, path: Path, what: str) -> Content | None:
        """What is in a file that a setting names, else None, and the problem is in the report."""
        found = content(path, settings.FILE_BYTES_MAX)
        if isinstance(found, Unreadable):
            table.problem(f"is {printable(str(path))}, {found.reason}", f"write the path of {what}", key)
            return None
        return found

    def connection(
        self, name: str, table: Table, gateway: GatewayConfig, log: LogConfig, kafka: KafkaSettings | None
    ) -> ConnectionConfig:
        if _CONNECTION_NAME.fullmatch(name) is None:
            table.problem("is no name for a connection", _names_remedy("_"))
        host = table.text("host")
        if host and not _is_host(host):
            remedy = "write a host name or an IP address; a socket folder cannot be used, since the record needs the port"
            table.problem(f'is "{printable(host)}"', remedy, "host")
        sslmode = cast(SslMode, table.choice("sslmode", ("disable", "require", "verify-ca", "verify-full")))
        if sslmode != "verify-full" and host and not loopback(host):
            lost = {
                "disable": "statements and rows cross the network in clear text",
                "require": "anybody on the way can pose as the server",
                "verify-ca": "any server with a certificate of that authority can pose as this one",
            }[sslmode]
            table.warning(f'is "{sslmode}": {lost}', 'write sslmode = "verify-full" and sslrootcert', "sslmode")
        durability = self.durability(table, gateway.durability, log, kafka)
        config = ConnectionConfig(
            name=name,
            host=host,
            port=table.whole("port", 1, 65535),
            database=self.identifier(table, "database"),
            user=self.identifier(table, "user"),
            password=table.secret("password", self.folder, self.environ) or Secret("", "missing"),
            sslmode=sslmode,
            sslrootcert=self.roots(table, "sslrootcert"),
            search_path=self.search_path(table),
            durability=durability,
        )
        table.finish()
        return config

    def collector(self, name: str, table: Table, connections: _Named) -> CollectorConfig:
        if commands.AGENT_NAME.fullmatch(name) is None:
            table.problem("is no name for a collector", _names_remedy(""))
        kind = cast(CollectorKind, table.choice("kind", get_args(CollectorKind)))
        server = table.text("server")
        if server and commands.AGENT_NAME.fullmatch(server) is None:
            table.problem(f'is "{printable(server)}", which is no name for a server', _names_remedy(""), "server")
        names = table.texts("connections")
        for index, connection in enumerate(names):
            if connection not in connections:
                shown = printable(connection)
                reason = f'is "{shown}", and there is no [connections.{shown}]'
                table.problem(reason, self.one_of(connection, connections), "connections", index)
        if table.values.get("connections") == []:
            table.problem("is empty", 'write connections = ["NAME"]', "connections")
        path = table.path("path", self.folder)
        if path is None and kind != "activity":
            what = "the folder of the server's log files" if kind == "log" else "the socket of pgwarden witness"
            table.problem(f'is missing, and kind is "{kind}"', f'write path = "…", {what}', "path")
        elif path is not None and kind == "activity":
            table.problem('is set, and kind is "activity"', "delete path: pg_stat_activity is asked over a connection", "path")
        for key in ("format", "from_start"):
            if kind != "log" and table.written(key):
                table.problem(f'is set, and kind is "{kind}"', f"delete {key}: only log files have one", key)
        user = self.identifier(table, "user")
        password = table.secret("password", self.folder, self.environ)
        if user and not table.values.get("password"):
            table.problem("is set without password", 'write password = "env:NAME" or "file:PATH"', "user")
        elif table.values.get("password") and not user:
            table.problem("is set without user", "write user, the role that it belongs to", "password")
        config = CollectorConfig(
            name=name,
            kind=kind,
            server=server,
            connections=names,
            path=path,
            format=cast(LogFormat, table.choice("format", get_args(LogFormat))),
            statement_text=cast(ObservedText, table.choice("statement_text", get_args(ObservedText))),
            text_bytes_max=table.whole("text_bytes_max", 0, settings.TEXT_BYTES_MAX),
            from_start=table.flag("from_start"),
            canary_seconds=table.whole("canary_seconds", settings.CANARY_SECONDS_MIN, settings.CANARY_SECONDS_MAX),
            user=user,
            password=password,
        )
        table.finish()
        return config

    def search_path(self, table: Table) -> tuple[str, ...]:
        schemas = self.identifiers(table, "search_path")
        if "$user" in schemas:
            table.problem('holds "$user"', "write the schema's own name", "search_path", schemas.index("$user"))
        for index, schema in enumerate(schemas):
            if schema in ("pg_catalog", "pg_temp"):
                # pg_catalog is searched first unless it is named; a temporary table could then stand in for a table of the grant.
                table.problem(
                    f'holds "{schema}"', "leave it out; PostgreSQL searches pg_catalog first by itself", "search_path", index
                )
        return schemas

    def identifier(self, table: Table, key: str) -> str:
        text = table.text(key)
        if len(text.encode()) > settings.NAME_BYTES_MAX:
            table.problem(f"is longer than {settings.NAME_BYTES_MAX} bytes", "write the name as PostgreSQL has it", key)
        return text

    def identifiers(self, table: Table, key: str, items_max: int = settings.LIST_ITEMS_MAX) -> tuple[str, ...]:
        texts = table.texts(key, items_max)
        for text in texts:
            if len(text.encode()) > settings.NAME_BYTES_MAX:
                reason = f'holds "{printable(text)}", longer than {settings.NAME_BYTES_MAX} bytes'
                table.problem(reason, "write the name as PostgreSQL has it", key)
        return texts

    def issuer(self, name: str, table: Table) -> IssuerRules | None:
        if commands.AGENT_NAME.fullmatch(name) is None:
            table.problem("is no name for an issuer", _names_remedy(""))
        before = len(self.report.problems)
        known = {setting.name for setting in settings.ISSUER}
        row = {key: value for key, value in table.values.items() if key in known}
        table.taken.update(row)
        table.finish()
        self.roots(table, "ca_file")
        if "jwks_file" in row:
            del row["jwks_file"]
            path = table.path("jwks_file", self.folder)
            found = self.file(table, "jwks_file", path, "a JWKS file") if path is not None else None
            row["jwks"] = found.data.decode("utf-8", "replace") if found is not None else ""
        for key, value in row.items():
            if isinstance(value, str) and key != "jwks":
                table.checked(value, key)
        if isinstance(ca_file := row.get("ca_file"), str) and ca_file:
            row["ca_file"] = str(table.path("ca_file", self.folder) or "")
        rules = issuer_rules(name, row)
        if isinstance(rules, IssuerRules):
            return rules if len(self.report.problems) == before else None
        said = set(rules)
        # What is of the wrong type hides what contradicts the rest: look again without it.
        for sentence in rules:
            row.pop(sentence.partition(": ")[0], None)
        again = issuer_rules(name, {"issuer": "https://missing.invalid", "audience": "missing", **row})
        said |= set() if isinstance(again, IssuerRules) else set(again)
        for sentence in sorted(said):
            key, _, remedy = sentence.partition(": ")
            key = "jwks_file" if key == "jwks" else key
            if any(problem.reason.startswith(f"{table.name(key)} ") for problem in self.report.problems[before:]):
                continue
            if not table.written(key):
                table.problem("is missing", remedy.removeprefix("missing; ").replace("write it", f"write {key}"), key)
            else:
                table.problem("cannot be used", remedy, key)
        return None

    def agent(self, name: str, table: Table, connections: _Named, issuer_urls: _Named) -> AgentConfig:
        if commands.AGENT_NAME.fullmatch(name) is None:
            table.problem("is no name for an agent", _names_remedy(""))
        elif name == commands.CONFIG:
            table.problem("is a name that the record gives to this file", "write another name")
        issuer, client, subject = (table.text(part, _LIMITS.name_characters_max) for part in ("issuer", "client", "subject"))
        if issuer and issuer not in issuer_urls:
            table.problem(
                f'is "{printable(issuer)}", and there is no [issuers.{printable(issuer)}]',
                self.one_of(issuer, issuer_urls),
                "issuer",
            )
        if issuer and not client:
            table.problem("is missing, though issuer is set", 'write client = "…", the client that the tokens name', "client")
        elif client and not issuer:
            table.problem("is missing, though client is set", 'write issuer = "…", the name of an [issuers.NAME] table', "issuer")
        elif subject and not issuer:
            table.problem("is set without issuer and client", "write issuer and client, or delete subject", "subject")
        key = table.secret("key", self.folder, self.environ)
        if key is not None and isinstance(agent_keys.key_id(key.reveal()), Refusal):
            remedy = f'write a key that "pgwarden agents key {printable(name)}" made into {key.source}'
            table.problem(f"names {key.source}, which holds no agent key", remedy, "key")
        verifier = table.text("key_verifier")
        if verifier and isinstance(refused := agent_keys.parse_verifier(verifier), Refusal):
            table.problem("is no verifier", f"correct it: {refused.reason}", "key_verifier")
        if verifier and table.written("key"):
            table.problem("is set together with key", "write one of the two", "key_verifier")
        if not issuer and not verifier and not table.written("key"):
            remedy = f'write issuer and client, or key, or run "pgwarden agents key {printable(name)}" later'
            table.warning("has neither a key nor a token's client: it cannot connect", remedy)
        url = issuer_urls.get(issuer, "")
        grants = table.tables("grants", settings.GRANT, f"[[{table.name('grants')}]] above each grant")
        config = AgentConfig(
            name=name,
            description=table.text("description"),
            owner=table.text("owner", _LIMITS.name_characters_max),
            issuer=url if isinstance(url, str) else "",
            client=client,
            subject=subject,
            key_verifier=verifier,
            key=key,
            grants=tuple(self.grant(grant, connections) for grant in grants),
        )
        for index, (grant, config_grant) in enumerate(zip(grants, config.grants, strict=True)):
            if config_grant in config.grants[:index]:
                grant.problem("repeats an earlier grant of this agent", "delete it")
        table.finish()
        return config

    def grant(self, table: Table, connections: _Named) -> GrantConfig:
        connection = table.text("connection")
        if connection and connection not in connections:
            shown = printable(connection)
            table.problem(
                f'is "{shown}", and there is no [connections.{shown}]', self.one_of(connection, connections), "connection"
            )
        example = 'rules = [{ schema = "public", tables = ["orders"], operations = ["select"] }]'
        rules = tuple(self.rule(rule) for rule in table.tables("rules", settings.RULE, example, _LIMITS.rules_max))
        functions = self.functions(table)
        channels = self.identifiers(table, "channels", _LIMITS.channels_max)
        introspection = table.flag("introspection")
        if not any(table.values.get(key) for key in ("rules", "functions", "channels", "introspection")):
            table.problem("allows nothing", f"write {example}")
        config = GrantConfig(
            scope=Scope(connection, rules, functions, channels, introspection),
            seconds=table.whole("seconds", 0, settings.SECONDS_MAX),
            reason=table.text("reason"),
        )
        table.finish()
        return config

    def rule(self, table: Table) -> Rule:
        schema = self.identifier(table, "schema")
        if schema == "*":
            table.problem('is "*"', "write one rule for each schema", "schema")
        tables = self.identifiers(table, "tables")
        for index, name in enumerate(tables):
            if schema and name.startswith(f"{schema}."):
                remedy = f'write "{printable(name.removeprefix(f"{schema}."))}"; the schema stands in schema'
                table.problem(f'is "{printable(name)}"', remedy, "tables", index)
        if "*" in tables and len(tables) > 1:
            table.problem('holds "*" beside other tables', 'write tables = ["*"] for all, or only the others', "tables")
        operations = table.texts("operations")
        for index, operation in enumerate(operations):
            if operation not in OPERATIONS:
                near = self.report.nearest(operation.lower(), OPERATIONS)
                remedy = f'write "{near}"' if near else f"write one of {', '.join(OPERATIONS)}"
                table.problem(f'is "{printable(operation)}", which is no operation', remedy, "operations", index)
        for key in ("tables", "operations"):
            if table.values.get(key) == []:
                table.problem("is empty", f'write {key} = ["{"orders" if key == "tables" else "select"}"], or delete the rule', key)
        table.finish()
        return Rule(schema, tables, operations)

    def functions(self, table: Table) -> tuple[str, ...]:
        functions = table.texts("functions")
        for function in functions:
            schema, dot, name = function.partition(".")
            fits = all(0 < len(part.encode()) <= settings.NAME_BYTES_MAX for part in (schema, name))
            if not dot or not fits or "(" in name:
                remedy = 'write its schema and name without arguments, as "public.order_total"'
                table.problem(f'holds "{printable(function)}"', remedy, "functions")
        return functions

    def one_of(self, wrong: str, names: Collection[str]) -> str:
        if near := self.report.nearest(wrong, names):
            return f'write "{printable(near)}"'
        if len(names) > settings.NEAREST_NAMES_MAX:
            return "write the name of a table that is there"
        shown: Sequence[str] = [f'"{printable(name)}"' for name in sorted(names)[:10]]
        return f"write one of {', '.join(shown)}" if shown else "write that table first"

    def one_agent_a_client(self, tables: Mapping[str, Table]) -> None:
        """Two agents for one client: which of them acts would be a matter of chance."""
        seen: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for name, table in tables.items():
            issuer, client, subject = (table.values.get(key, "") for key in ("issuer", "client", "subject"))
            if not (isinstance(issuer, str) and isinstance(client, str) and isinstance(subject, str) and issuer and client):
                continue
            others = seen.setdefault((issuer, client), [])
            for other, pinned in others:
                if not subject or not pinned or subject == pinned:
                    remedy = "give each agent a client of its own, or pin each with subject"
                    table.problem(f"is the same client as that of the agent {printable(other)}", remedy, "client")
                    break
            others.append((name, subject))

    def operator(self, name: str, table: Table) -> OperatorConfig:
        if OPERATOR_NAME.fullmatch(name) is None:
            table.problem("is no name for an operator", _names_remedy("@"))
        elif name == commands.CONFIG:
            table.problem("is a name that the record gives to this file", "write the name of a person or team")
        elif name == commands.OURSELVES:
            table.problem("is a name that the record gives to answers to findings", "write the name of a person or team")
        digest = table.text("key_sha256")
        if digest and _SHA256.fullmatch(digest) is None:
            # Not repeated: it may be the key itself.
            remedy = 'write the 64 lower-case hex digits that "pgwarden init" prints, not the key'
            table.problem("is no SHA-256", remedy, "key_sha256")
        role = cast(Role, table.choice("role", ROLES))
        table.finish()
        return OperatorConfig(name, digest, role)

    def webhook(self, name: str, table: Table) -> WebhookConfig | None:
        if commands.AGENT_NAME.fullmatch(name) is None:
            table.problem("is no name for a webhook", _names_remedy(""))
        before = len(self.report.problems)
        url = table.text("url")
        if url and (remedy := _webhook_url_remedy(url)):
            table.problem("cannot be used", remedy, "url")  # not repeated: it may hold a secret
        secrets = []
        for key in ("secret", "secret_previous"):
            secret = table.secret(key, self.folder, self.environ)
            if secret is not None and signing_key(secret.reveal()) is None:
                bytes_ = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes"
                remedy = f'write "whsec_" and the base64 of {bytes_} into {secret.source}'
                table.problem(f"names {secret.source}, which holds no secret for webhooks", remedy, key)
            secrets.append(secret)
        events = table.texts("events")
        for index, kind in enumerate(events):
            if kind not in KINDS:
                near = self.report.nearest(kind.lower(), KINDS)
                remedy = f'write "{near}"' if near else f"write some of {', '.join(KINDS)}"
                table.problem(f'holds "{printable(kind)}", which is no kind of event', remedy, "events", index)
        if table.values.get("events") == []:
            table.problem("is empty", 'write events = ["findings", "kills"], or delete it for all', "events")
        severity = table.choice("severity", SEVERITIES)
        timeout_seconds = table.number("timeout_seconds", settings.WEBHOOK_SECONDS_MIN, settings.WEBHOOK_SECONDS_MAX)
        attempts = table.whole("attempts", 0, settings.WEBHOOK_ATTEMPTS_MAX)
        source = table.text("source")
        ca_file = self.roots(table, "ca_file")
        table.finish()
        present, previous = secrets
        if present is None or len(self.report.problems) > before:
            return None
        return WebhookConfig(
            name=name,
            url=url,
            secret=present,
            secret_previous=previous,
            events=cast(tuple[Kind, ...], events),
            severity=cast(Severity, severity),
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            source=source,
            ca_file=ca_file,
        )

    def one_operator_a_key(self, file: Table, operators: Mapping[str, OperatorConfig]) -> None:
        seen: dict[str, str] = {}
        for name, operator in operators.items():
            if operator.key_sha256 and (first := seen.setdefault(operator.key_sha256, name)) != name:
                # The record could not tell who acted, and one could approve what the other asked for.
                place = ("operators", name, "key_sha256")
                reason = f"operators.{printable(name)}.key_sha256 is the key of {printable(first)}"
                self.report.problem(place, reason, "make each operator a key of their own")


def _address(text: str) -> Address | None:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if host == "localhost":
        return Address(host, int(port))
    try:
        return Address(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        return None


def _webhook_url_remedy(url: str) -> str:
    """ "" where it can be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "write a URL, as https://alerts.example/pgwarden"
    if not url.isascii() or not _is_host(host) or parts.scheme not in ("http", "https"):
        return "write a URL, as https://alerts.example/pgwarden"
    if parts.username is not None or parts.fragment:
        return "write it without a user, a password and a fragment: requests are signed"
    if parts.scheme == "http" and not loopback(host):
        return "write https: the events would cross the network in clear text"
    return ""


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # Four numbers that are no address, such as 10.0.0.300, are no name either.
        return len(text) <= 253 and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return True


def _names_remedy(also: str) -> str:
    return (
        f"write 1 to {settings.NAME_BYTES_MAX} of a-z, 0-9, '.', '_', '-'"
        + (f", '{also}'" if also == "@" else "")
        + ", starting with a letter or digit"
    )
