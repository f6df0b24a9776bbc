"""Every setting of pgwarden.toml on one line: its name, default, unit and one sentence. `config.py` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Final

from analytics.settings import ReconcileSettings, ResponsesSettings
from identity.looks_settings import LooksSettings
from identity.settings import IssuerRules
from ingest.settings import PARTITIONS, KafkaSettings, RelaySettings
from pgwarden.webhook_kinds import KINDS

# Limits on the file itself. A fleet of 1,000 agents with three grants each takes about 500 KB.
FILE_BYTES_MAX: Final = 1 << 20
LINE_CHARACTERS_MAX: Final = 8192  # tomllib takes quadratic time over the parts of one dotted key
PROBLEMS_MAX: Final = 200
TEXT_CHARACTERS_MAX: Final = 500
PATH_CHARACTERS_MAX: Final = 4096  # PATH_MAX of Linux
LIST_ITEMS_MAX: Final = 1000
NEAREST_NAMES_MAX: Final = 200  # a misspelt name is compared with at most so many
NEAREST_CHARACTERS_MAX: Final = 100
SECONDS_MAX: Final = 10 * 365 * 86400

BACKLOG_BYTES_MIN: Final = 2**20  # less would refuse statements at each hiccup of a broker
BACKLOG_BYTES_MAX: Final = 2**50
TEXT_BYTES_MAX: Final = 16 * 2**20  # of one statement in the record; a frame may be so long
CANARY_SECONDS_MIN: Final = 5
CANARY_SECONDS_MAX: Final = 3600
STALE_SECONDS_MAX: Final = 3600.0  # a revocation may stay unknown to a gateway for as long
BROKERS_MAX: Final = 100
REPLICATION_MAX: Final = 16
RETENTION_DAYS_MAX: Final = 36_500
PARTITIONS_MAX: Final = 1000  # of one topic
TOPIC_PREFIX_CHARACTERS_MAX: Final = 200  # a topic's name has at most 249

WEBHOOKS_MAX: Final = 16  # each reads the log for itself
WEBHOOK_SECONDS_MIN: Final = 0.1
WEBHOOK_SECONDS_MAX: Final = 60.0
WEBHOOK_ATTEMPTS_MAX: Final = 10_000  # a month and more of them

NAME_BYTES_MAX: Final = 63  # as PostgreSQL's own names (NAMEDATALEN - 1)
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of unix(7), less its terminating zero
SOCKET_FILE: Final = "run/gateway.sock"
BOOKMARK_FILE: Final = "run/gateway.bookmark"  # where the gateway's next start begins to read its own record
RELAY_SOCKET_FILE: Final = "run/relay.sock"
RELAY_PARENT: Final = "PGWARDEN_RELAY_PARENT"  # in its environment: the process that it ends with
RELAY_FINISH_SECONDS_MAX: Final = 5.0  # for what is in the log already to reach the brokers, after the gateway's end
WATCHDOG_SOCKET_FILE: Final = "run/watchdog.sock"
WORKER_SOCKET_FILE: Final = "run/worker.sock"
WEBHOOKS_SOCKET_FILE: Final = "run/webhooks.sock"
COLLECTOR_SOCKET_FILE: Final = "run/collector.sock"
API_SOCKET_FILE: Final = "run/api.sock"
SAMPLES_FILE: Final = "ports.json"  # in a state folder that `pgwarden up` filled with samples

UNITS_NEVER_SHOWN: Final = frozenset({"reference", "verifier", "hex"})  # somebody may have written the secret itself


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    default: object  # as the file would write it, lists as tuples; None: it must be written
    unit: str
    sentence: str


def _from(kind: type[IssuerRules | RelaySettings | KafkaSettings], name: str, unit: str, sentence: str) -> Setting:
    """The default is the one of `kind`."""
    default = next(field.default for field in fields(kind) if field.name == name)
    return Setting(name, None if default is MISSING else default, unit, sentence)


def _issuer(name: str, unit: str, sentence: str) -> Setting:
    return _from(IssuerRules, name, unit, sentence)


def _relay(name: str, unit: str, sentence: str) -> Setting:
    return _from(RelaySettings, name, unit, sentence)


def _kafka(name: str, unit: str, sentence: str) -> Setting:
    return _from(KafkaSettings, name, unit, sentence)


def _partitions(topic: str) -> Setting:
    sentence = f"How many partitions the topic `{topic}` has; once it is there, the number is fixed."
    return Setting(f"{topic}_partitions", PARTITIONS[topic], "partitions", sentence)


FILE: Final = (Setting("state", ".pgwarden", "path", "The folder of the log, tables, keys and run files, relative to the file."),)

GATEWAY: Final = (
    Setting("name", "gateway-1", "name", "What the record calls this gateway; two that write one record never share a name."),
    Setting("listen", "127.0.0.1:6432", "HOST:PORT", "Where agents connect; port 0 takes any free one."),
    Setting("allow_remote", False, "boolean", "Lets `listen` name an address beyond this machine."),
    Setting("tls", "required", "required, optional", "`optional` takes agent keys in clear text from loopback; tokens need TLS."),
    Setting("tls_certificate", "", "path", "The PEM certificate chain for clients; empty makes a self-signed one at first start."),
    Setting("tls_key", "", "path", "The certificate's unencrypted PEM key, mode 0600; it goes with `tls_certificate`."),
    Setting("durability", "group", "fast, group, strict, replicated", "How safely a statement is recorded before it may act."),
    Setting("statement_text", "full", "full, fingerprint", "Whether the record holds a statement's text, or its fingerprint only."),
    Setting("parameters", False, "boolean", "Whether the record holds the values of parameters, which are often personal data."),
)

API: Final = (
    Setting("listen", "127.0.0.1:8470", "HOST:PORT", "Where the API listens, in clear text: put TLS in front of a remote one."),
    Setting("allow_remote", False, "boolean", "Lets `listen` name an address beyond this machine."),
)

DASHBOARD: Final = (
    Setting("listen", "127.0.0.1:8471", "HOST:PORT", "Where the dashboard listens, as the API in clear text."),
    Setting("allow_remote", False, "boolean", "Lets `listen` name an address beyond this machine."),
    Setting(
        "issuer", "", "text", "The issuer, by its table's name, through which people sign in; without it the operator key acts."
    ),
    Setting("client_id", "", "text", "The dashboard's client there; it stands among the issuer's `operator_clients`."),
    Setting("client_secret", "", "reference", "That client's secret, as `env:NAME` or `file:PATH`, never the secret itself."),
    Setting("address", "", "URL", "Where browsers find the dashboard; people are led back to `/oauth2callback` below it."),
    Setting("scope", "openid profile", "text", "What is asked of the issuer."),
)

METRICS: Final = (
    Setting("listen", "127.0.0.1:8474", "HOST:PORT", "Where `pgwarden metrics` listens, in clear text and without any credential."),
    Setting("allow_remote", False, "boolean", "Lets `listen` name an address beyond this machine."),
)

LOG: Final = (
    Setting(
        "backend", "segments", "segments, kafka", "Where the record is: files on this machine, or the brokers that [kafka] names."
    ),
    _relay(
        "backlog_bytes_max",
        "bytes",
        "What of the record may wait on a gateway's disk for the brokers; beyond it no statement goes on.",
    ),
    _relay("stale_seconds_max", "seconds", "A gateway that has not heard from the brokers for so long admits no new session."),
)

KAFKA: Final = (
    Setting("bootstrap", None, "list of HOST:PORT", "Some of the brokers; they name the others."),
    _kafka("tls", "boolean", "Whether the brokers are asked over TLS, their certificates and names checked."),
    Setting("allow_plaintext", False, "boolean", "Lets `tls` be false though a broker is beyond this machine."),
    _kafka("ca_file", "path", "The PEM certificates to trust for the brokers; empty takes the system's."),
    _kafka("certificate_file", "path", "A PEM client certificate, where the brokers want one; it goes with `key_file`."),
    _kafka("key_file", "path", "The certificate's unencrypted PEM key, mode 0600."),
    _kafka("sasl", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", "How pgwarden logs in to the brokers; empty does not."),
    _kafka("user", "text", "Whom it logs in as; it goes with `sasl`."),
    Setting("password", "", "reference", "That user's password, as `env:NAME` or `file:PATH`, never the password itself."),
    _kafka("topic_prefix", "text", "What the names of the topics begin with."),
    _kafka("replication", "brokers", "How many brokers keep a copy of each record."),
    _kafka("in_sync_min", "brokers", "How many of them have a record before it counts as written."),
    _kafka(
        "retention_days",
        "days",
        "How long sessions, statements, findings, observations, witness and looks are kept; the rest is for ever.",
    ),
    _partitions("sessions"),
    _partitions("statements"),
    _partitions("findings"),
    _partitions("observations"),
    _partitions("witness"),
    _partitions("looks"),
)

CONNECTION: Final = (
    Setting("host", None, "name or address", "Where PostgreSQL is; not a socket folder."),
    Setting("port", 5432, "port number", "PostgreSQL's port."),
    Setting("database", None, "name", "The database; clients give the connection's name instead."),
    Setting("user", None, "name", "The role that the gateway logs in as; agents never learn its password."),
    Setting("password", None, "reference", "That role's password, as `env:NAME` or `file:PATH`, never the password itself."),
    Setting("sslmode", "verify-full", "disable, require, verify-ca, verify-full", "How TLS to PostgreSQL is checked."),
    Setting("sslrootcert", "", "path", "The PEM certificates to trust; empty takes the system's."),
    Setting("search_path", ("public",), "list of schemas", "Where unqualified names are looked up; agents cannot change it."),
    Setting(
        "durability",
        "",
        "fast, group, strict, replicated",
        "As `gateway.durability`, for this connection; empty takes the gateway's.",
    ),
)

COLLECTOR: Final = (
    Setting(
        "kind", None, "log, ebpf, activity", "How it looks: by the server's log, by the kernel's probes, or by pg_stat_activity."
    ),
    Setting(
        "server", None, "name", "What the record calls the PostgreSQL server that it looks at; all collectors of one server agree."
    ),
    Setting("connections", None, "list of connections", "Which connections lead to that server, by the names of their tables."),
    Setting("path", "", "path", "For `log` the folder of the server's log files, for `ebpf` the socket of `pgwarden witness`."),
    Setting("format", "jsonlog", "jsonlog, csvlog", "For `log`, which of the server's log formats is read."),
    Setting(
        "statement_text", "full", "full, digest", "Whether the record holds a statement's text as it was seen, or its SHA-256 only."
    ),
    Setting("text_bytes_max", 64 * 2**10, "bytes", "What of a text is recorded; its digest is of the whole."),
    Setting("from_start", False, "boolean", "For `log`, whether the first start reads what the files hold already."),
    Setting("canary_seconds", 60, "seconds", "Between two statements that prove that it sees."),
    Setting("user", "", "name", "The role that canaries and `activity` log in as; empty takes that of the first connection."),
    Setting("password", "", "reference", "That role's password, as `env:NAME` or `file:PATH`, never the password itself."),
)

_RECONCILE: Final = ReconcileSettings()

RECONCILE: Final = (
    Setting(
        "kill_shadow", _RECONCILE.kill_shadow, "boolean", "Ends what no gateway opened and no source declares, by the watchdog."
    ),
    Setting("compare_addresses", _RECONCILE.compare_addresses, "boolean", "A session must come from its gateway's own port."),
    Setting("patience_ms", _RECONCILE.patience_ms, "milliseconds", "How long a session waits for a gateway's word of it."),
    Setting("lateness_seconds", _RECONCILE.lateness_seconds, "seconds", "The same for one that bears a gateway's name."),
    Setting("sessions_max", _RECONCILE.sessions_max, "sessions", "How many are remembered, of gateways and of servers each."),
    Setting("statements_max", _RECONCILE.statements_max, "statements", "How many of one session wait for their counterpart."),
    Setting("waiting_max", _RECONCILE.waiting_max, "statements", "How many of all sessions together wait for theirs."),
)

_RESPONSES: Final = ResponsesSettings()

RESPONSES: Final = (
    Setting("age_seconds_max", _RESPONSES.age_seconds_max, "seconds", "A finding that is older when it is read is not answered."),
    Setting(
        "an_hour_max", _RESPONSES.an_hour_max, "answers", "How many findings are answered within an hour, of all agents together."
    ),
    Setting(
        "throttle_per_minute", _RESPONSES.throttle_per_minute, "statements", "How fast an agent may go that a finding throttles."
    ),
)

_LOOKS: Final = LooksSettings()

LOOKS: Final = (
    Setting("repeat_seconds", _LOOKS.repeat_seconds, "seconds", "The same look again within this is counted, not recorded anew."),
    Setting("repeats_max", _LOOKS.repeats_max, "looks", "How many different ones are remembered for that."),
    Setting("record_seconds_max", _LOOKS.record_seconds_max, "seconds", "How long an answer waits until its look is recorded."),
)

AGENT: Final = (
    Setting("description", None, "text", "What the agent does."),
    Setting("owner", None, "text", "The person or team that answers for it."),
    Setting("issuer", "", "name of an issuer", "Whose tokens name this agent; it goes with `client`."),
    Setting("client", "", "text", "The client of those tokens, as the issuer's `agent` finds it."),
    Setting("subject", "", "text", "The one `sub` that those tokens may carry; empty takes any."),
    Setting("key", "", "reference", "An agent key that exists already, as `env:NAME` or `file:PATH`; only its verifier is kept."),
    Setting("key_verifier", "", "verifier", "The SCRAM-SHA-256 verifier of an agent key, instead of `key`."),
)

GRANT: Final = (
    Setting("connection", None, "name of a connection", "Where the grant holds."),
    Setting("seconds", 0, "seconds", "How long the grant lives from its approval; 0 is until it is revoked."),
    Setting("reason", None, "text", "Why the agent needs it; the record of each statement leads here."),
    Setting("rules", (), "list of rules", "Which operations on which tables: each has a `schema`, `tables` and `operations`."),
    Setting("functions", (), "list of functions", "Functions beyond the built-in safe list, each as `schema.name`."),
    Setting("channels", (), "list of channels", "Channels of LISTEN and NOTIFY."),
    Setting("introspection", False, "boolean", "Whether the agent may read pg_catalog and information_schema."),
)

RULE: Final = (
    Setting("schema", None, "name", "The schema."),
    Setting("tables", None, "list of tables", 'Its tables, or `["*"]` for all of them.'),
    Setting("operations", None, "list of operations", "Some of `select`, `insert`, `update`, `delete`, `ddl`, `copy`, `call`."),
)

OPERATOR: Final = (
    Setting("key_sha256", None, "hex", "The SHA-256 of an operator key, as `pgwarden init` makes it."),
    Setting("role", "administrator", "viewer, responder, administrator", "What this operator may do."),
)


WEBHOOK: Final = (
    Setting("url", None, "URL", "Where events are sent to: https, or http to this machine alone."),
    Setting("secret", None, "reference", "What signs them, `whsec_…`, as `env:NAME` or `file:PATH`, never the secret itself."),
    Setting("secret_previous", "", "reference", "The secret before it, which signs too while the receiver changes over."),
    Setting("events", KINDS, "list of kinds", "Some of `findings`, `kills`, `revocations`, `blindness`."),
    Setting("severity", "warning", "info, warning, critical", "Findings of less than this are not sent."),
    Setting("timeout_seconds", 15.0, "seconds", "For one attempt, from connecting to the end of the answer."),
    Setting("attempts", 0, "attempts", "After so many an event is given up; 0 tries until it is taken."),
    Setting("source", "/pgwarden", "URI reference", "What stands as `source` in each event."),
    Setting("ca_file", "", "path", "The PEM certificates to trust for the receiver; empty takes the system's."),
)

ISSUER: Final = (
    _issuer("issuer", "URL", "The token's `iss`, byte for byte: a trailing slash, a port and the case count."),
    _issuer("audience", "text", "What tokens for this gateway have as `aud`."),
    _issuer("audiences_also", "list of texts", "Others that may stand beside ours in the array, never instead of it."),
    _issuer("algorithms", "list of algorithms", "Which signatures count, whatever the issuer's metadata says."),
    _issuer("jwks_uri", "URL", "Where the keys are; empty asks the issuer's metadata."),
    Setting("jwks_file", "", "path", "The keys themselves as a JWKS file, for an issuer that cannot be reached."),
    _issuer("jwks_hosts", "list of hosts", "Hosts, beside the issuer's own, that its metadata may name for keys."),
    _issuer("ca_file", "path", "The PEM certificates to trust for the issuer's TLS; empty takes certifi's."),
    _issuer("insecure_http", "boolean", "Allows plain http to an issuer on loopback, for development."),
    _issuer("types", "list of types", 'Which header `typ` an access token may have, in any case; "" is none.'),
    _issuer("claim_types", "list of types", "Where the claim `typ` is there, as in Keycloak, which it may be."),
    _issuer("required", "list of claims", "Which claims must be there."),
    _issuer("forbidden", "list of claims", "Which claims must not be there: they mark an ID token, an event or a logout token."),
    _issuer("equals", "list of rules", "Claims that must have one of some values, each a `path` and `values`."),
    _issuer("scopes", "list of scopes", "Scopes that the token must all have."),
    _issuer("lifetime_max_seconds", "seconds", "The longest life of a token that is accepted."),
    _issuer("leeway_seconds", "seconds", "How far clocks may disagree."),
    _issuer("token_bytes_max", "bytes", "The longest token that is looked at."),
    _issuer("certificate_required", "boolean", "Refuses tokens that are not bound to the connection's certificate (RFC 8705)."),
    _issuer("agent", "list of claims", "Where the client's name is; those claims that are there must agree."),
    _issuer("pinned", "list of claims", "What `agents.NAME.subject` pins; several values are joined by a space."),
    _issuer("workload", "boolean", "Says that tokens name a workload, never a person: `sub` is always its own."),
    _issuer("subject_prefix", "text", "How `sub` must start, where tokens have no `iss`."),
    _issuer("own_account_claim", "claim", "A claim that is there exactly when `sub` is the client's own account."),
    _issuer("own_account_suffix", "text", "What follows the client's name in the `sub` of its own account."),
    _issuer("without_act", "refuse, actor", "What a person's `sub` with a client and no `act` means: nothing, or the client acts."),
    _issuer("actor", "claim", "Where the acting party is (RFC 8693); an empty list refuses such tokens."),
    _issuer("on_behalf_of", "claim", "Where the person is, once it is known that another acts."),
    _issuer("groups", "claim", "Where the groups are."),
    _issuer("group_separator", "text", "What splits groups that come as one string; empty takes the string as one group."),
    _issuer("invocation", "claim", "Where the run of the agent is named."),
    _issuer("task", "claim", "Where its task is named."),
    _issuer("operator_groups", "list of groups", "Groups whose people are administrators; they go with `operator_clients`."),
    _issuer("responder_groups", "list of groups", "Groups whose people are responders; they go with `operator_clients`."),
    _issuer("viewer_groups", "list of groups", "Groups whose people are viewers; they go with `operator_clients`."),
    _issuer("operator_clients", "list of clients", "The clients that operators use, which are no agents."),
)

TABLES: Final[Mapping[str, tuple[Setting, ...]]] = MappingProxyType(
    {
        "": FILE,
        "gateway": GATEWAY,
        "api": API,
        "dashboard": DASHBOARD,
        "metrics": METRICS,
        "log": LOG,
        "kafka": KAFKA,
        "connections.NAME": CONNECTION,
        "collectors.NAME": COLLECTOR,
        "reconcile": RECONCILE,
        "responses": RESPONSES,
        "looks": LOOKS,
        "issuers.NAME": ISSUER,
        "agents.NAME": AGENT,
        "agents.NAME.grants": GRANT,
        "agents.NAME.grants.rules": RULE,
        "operators.NAME": OPERATOR,
        "webhooks.NAME": WEBHOOK,
    }
)
"""By the name that documents give the table."""
