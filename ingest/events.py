"""Every fact that pgwarden records: frozen, past tense, one class a fact.

A recorded field is never renamed, reordered or removed, and a tag is never used again: add a field with a default at the end,
or add an event. Encoded as MessagePack arrays, so the order of fields is the format.

Times are wall-clock microseconds since 1970 (`_us`), taken by the shell that records; durations come from a monotonic clock.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

Topic: TypeAlias = Literal["identity", "sessions", "statements", "commands", "findings", "observations", "witness", "looks"]
TOPICS: Final[tuple[Topic, ...]] = (
    "identity",
    "sessions",
    "statements",
    "commands",
    "findings",
    "observations",
    "witness",
    "looks",
)

Outcome: TypeAlias = Literal["ok", "error", "skipped", "suspended", "unknown"]
"""How one execution ended. `skipped`: Postgres passed over it after an earlier error. `suspended`: a portal was left before its
end. `unknown`: the gateway or the server went away before the answer came."""
Resolution: TypeAlias = Literal["committed", "aborted", "not executed"]
"""What evidence says of an execution whose outcome is `unknown`."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """Who a session acts for. Each frame carries the stamps of its events, so that a frame can be read without any other."""

    session: str
    agent: str
    subject: str  # the token's `sub`, or `key:<key id>`
    issuer: str  # "" for an agent key
    on_behalf_of: str  # "" when nobody is named
    actors: tuple[str, ...]  # RFC 8693 §4.1 `act` chain, outermost first
    invocation: str
    task: str
    unverified: tuple[str, ...]  # which of the above came from startup options, not from a signed claim
    grants: tuple[str, ...]
    approvers: tuple[str, ...]  # of those grants, in the same order
    connection: str
    database: str
    role: str  # the database role that the gateway logged in as
    client: str  # address:port
    backend_pid: int
    backend_start_us: int
    upstream_port: int  # the gateway's local port of the upstream connection: Postgres logs it as remote_port


# -- identity: agents, grants, revocations (topic "identity", key = agent, or "*" where it concerns more) --------------------------


class _Fact(msgspec.Struct, frozen=True, array_like=True):
    pass


class AgentRegistered(_Fact, frozen=True, tag=1):
    at_us: int
    agent: str
    description: str
    owner: str  # the person or team that answers for it
    issuer: str  # "" when it has no OIDC identity
    subject: str  # pinned `sub`; "" = the first `sub` seen for `client` is not pinned
    client: str  # the token's `client_id` (or the issuer rule's agent path); "" when it has no OIDC identity
    key_id: str  # "" when it has no key
    scram_verifier: str  # PostgreSQL's SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>; no secret can be derived from it
    operator: str
    request: str = ""  # Idempotency-Key


class AgentKeyReplaced(_Fact, frozen=True, tag=2):
    at_us: int
    agent: str
    key_id: str
    scram_verifier: str
    operator: str
    request: str = ""


class AgentRevoked(_Fact, frozen=True, tag=3):
    at_us: int
    agent: str
    reason: str
    operator: str
    request: str = ""
    finding: str = ""  # that it answers; "" = an operator's own decision


class AgentReinstated(_Fact, frozen=True, tag=4):
    at_us: int
    agent: str
    reason: str
    operator: str
    request: str = ""


class AgentRetired(_Fact, frozen=True, tag=5):
    """Offboarded for good: the name can never act again, nor be registered again."""

    at_us: int
    agent: str
    reason: str
    operator: str
    request: str = ""


class AllRevoked(_Fact, frozen=True, tag=6):
    """Break glass: nobody may act until AllReinstated. Key "*"; what was revoked one by one stays so afterwards."""

    at_us: int
    reason: str
    operator: str
    request: str = ""


class AllReinstated(_Fact, frozen=True, tag=7):
    at_us: int
    reason: str
    operator: str
    request: str = ""


class SubjectRevoked(_Fact, frozen=True, tag=8):
    """One issuer's subject may not act, through whichever agent: as the token's `sub`, or as the one it acts on behalf of."""

    at_us: int
    issuer: str
    subject: str
    reason: str
    operator: str
    request: str = ""


class SubjectReinstated(_Fact, frozen=True, tag=9):
    at_us: int
    issuer: str
    subject: str
    reason: str
    operator: str
    request: str = ""


class GroupRevoked(_Fact, frozen=True, tag=14):
    """No token of this issuer that names this group may act."""

    at_us: int
    issuer: str
    group: str
    reason: str
    operator: str
    request: str = ""


class GroupReinstated(_Fact, frozen=True, tag=15):
    at_us: int
    issuer: str
    group: str
    reason: str
    operator: str
    request: str = ""


class SessionRevoked(_Fact, frozen=True, tag=16):
    """This one session must end; its agent may open another."""

    at_us: int
    session: str
    agent: str
    reason: str
    operator: str
    request: str = ""


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """One line of a scope: these operations on these tables of this schema. `"*"` as a table means every table of the schema."""

    schema: str
    tables: tuple[str, ...]
    operations: tuple[str, ...]  # of identity.scope.OPERATIONS


class Scope(msgspec.Struct, frozen=True, array_like=True):
    """What a grant allows, on one connection. What is not named is denied."""

    connection: str
    rules: tuple[Rule, ...]
    functions: tuple[str, ...] = ()  # beyond the built-in safe list; `schema.name`
    channels: tuple[str, ...] = ()  # LISTEN and NOTIFY
    introspection: bool = False  # may read pg_catalog and information_schema


class GrantRequested(_Fact, frozen=True, tag=10):
    at_us: int
    grant: str
    agent: str
    scope: Scope
    seconds: int  # life from approval; 0 = until revoked
    reason: str
    requested_by: str  # operator or agent
    request: str = ""


class GrantApproved(_Fact, frozen=True, tag=11):
    at_us: int
    grant: str
    agent: str
    approver: str
    expires_at_us: int  # 0 = never
    request: str = ""


class GrantDenied(_Fact, frozen=True, tag=12):
    at_us: int
    grant: str
    agent: str
    operator: str
    reason: str
    request: str = ""


class GrantRevoked(_Fact, frozen=True, tag=13):
    at_us: int
    grant: str
    agent: str
    operator: str
    reason: str
    request: str = ""


class GrantNarrowed(_Fact, frozen=True, tag=17):
    """From here on the grant allows `scope`, a part of what it allowed before; sessions that rest on it go on within that."""

    at_us: int
    grant: str
    agent: str
    scope: Scope
    operator: str
    reason: str
    request: str = ""


class SourceDeclared(_Fact, frozen=True, tag=18):
    """Connections round the gateway that are meant to be: a backup, a replica, a migration, a monitor. Key "*".

    A connection is of this source when all that is named here fits; "" and () fit everything. An application name is the client's
    own word, so it may narrow a source and never make one.
    """

    at_us: int
    source: str
    kind: str  # "backup" | "replication" | "migration" | "monitoring" | "administration"
    server: str  # as a collector names it; "" = any
    roles: tuple[str, ...]  # the database roles that it logs in as
    client: str  # an address or network (CIDR), or "local" for the server's Unix socket; "" = any
    executable: str  # the path of the client's program, where a collector can tell; "" = any
    application_name: str  # "" = any
    reason: str
    operator: str
    request: str = ""


class SourceWithdrawn(_Fact, frozen=True, tag=19):
    at_us: int
    source: str
    reason: str
    operator: str
    request: str = ""


class ResponseChosen(_Fact, frozen=True, tag=80):
    """What a finding of this detector about this agent leads to by itself, from here on."""

    at_us: int
    detector: str  # "*" = every detector
    agent: str  # "*" = every agent
    response: str  # "observe" | "throttle" | "approval" | "revoke"
    operator: str
    request: str = ""


class AgentThrottled(_Fact, frozen=True, tag=81):
    """Its statements are paced until AgentUnthrottled."""

    at_us: int
    agent: str
    per_minute: int  # statements, at each gateway
    reason: str
    operator: str
    finding: str = ""
    request: str = ""


class AgentUnthrottled(_Fact, frozen=True, tag=82):
    at_us: int
    agent: str
    reason: str
    operator: str
    request: str = ""


class AgentHeld(_Fact, frozen=True, tag=83):
    """Its statements are refused until AgentReleased; what runs goes on, and its sessions stay."""

    at_us: int
    agent: str
    reason: str
    operator: str
    finding: str = ""
    request: str = ""


class AgentReleased(_Fact, frozen=True, tag=84):
    at_us: int
    agent: str
    reason: str
    operator: str
    request: str = ""


# -- sessions (topic "sessions", key = agent) ------------------------------------------------------------------------------------


class SessionOpened(_Fact, frozen=True, tag=20):
    at_us: int
    stamp: Stamp
    method: str  # "scram" | "token"
    credential: str  # key id, or the SHA-256 of the token's jti; never the credential
    expires_at_us: int  # the earliest end of what it rests on; 0 = none
    application_name: str  # the client's own word
    tls: str  # protocol version, "" in clear
    protocol: str  # "3.0", "3.2"
    durability: str
    groups: tuple[str, ...] = ()  # of the token
    identity_at_us: int = 0  # `at_us` of the newest identity event that the gateway knew when it let the session in; 0 = not told


class SessionDenied(_Fact, frozen=True, tag=21):
    """An attempt to connect that did not become a session. `claimed` is what the client said, not what was proven."""

    at_us: int
    claimed: str
    agent: str  # "" when not proven
    connection: str
    client: str
    sqlstate: str
    reason: str  # for the operator; the client saw less
    method: str


class SessionClosed(_Fact, frozen=True, tag=22):
    at_us: int
    session: str
    agent: str
    reason: str  # "client", "server", "protocol", "timeout", "killed", "shutdown", ...
    sqlstate: str
    bytes_in: int
    bytes_out: int
    executions: int
    duration_us: int


class SessionKilled(_Fact, frozen=True, tag=23):
    """The proof of an end. `backend_gone_us` is 0 when the proof did not come within the time limit."""

    at_us: int
    session: str
    agent: str
    cause: str  # "agent revoked", "grant expired", "token expired", "ordered", ...
    requested_us: int  # when the fact that caused it was recorded
    decided_us: int
    client_closed_us: int
    backend_gone_us: int
    backend_pid: int
    reason: str


class StatementCancelled(_Fact, frozen=True, tag=24):
    at_us: int
    session: str
    agent: str
    client: str  # who sent the CancelRequest


class RecordingStopped(_Fact, frozen=True, tag=25):
    """Recorded once the log takes records again: from `since_us` to `at_us` no statement was let through for want of a record."""

    at_us: int
    writer: str
    since_us: int
    refused: int
    reason: str


class GatewayStarted(_Fact, frozen=True, tag=26):
    """All sessions of an earlier boot of this gateway are over: an execution without an outcome is `unknown`."""

    at_us: int
    gateway: str
    boot: int
    version: str


class LogRecovered(_Fact, frozen=True, tag=28):
    """At its start a writer found the end of a partition as a crash left it. What was dropped, nobody was told was durable."""

    at_us: int
    writer: str
    topic: str
    partition: int
    dropped_bytes: int
    confirmed_batches: int  # whole, perhaps not durable: written again


class GatewayStopped(_Fact, frozen=True, tag=27):
    at_us: int
    gateway: str
    boot: int


class BackendOpened(_Fact, frozen=True, tag=29):
    """A backend that a gateway opened and that is no agent's session: told, so that nobody takes it for somebody else's.

    Key = gateway.
    """

    at_us: int
    gateway: str
    boot: int
    purpose: str  # "control": to look and to end; "refused": a login that led to no session
    connection: str
    role: str
    backend_pid: int
    backend_start_us: int  # 0 = not known
    upstream_port: int  # the gateway's local port of that connection; 0 = not known


# -- statements (topic "statements", key = agent; always under a stamp) ----------------------------------------------------------


class StatementDefined(_Fact, frozen=True, tag=30):
    """The text behind a number, once a session. `text` is empty where the policy keeps fingerprints only."""

    statement: int
    text: str
    text_mode: str  # "full" | "fingerprint"
    text_bytes: int
    fingerprint: str  # libpg_query's, 16 hex digits; "" when the text does not parse
    verbs: tuple[str, ...]
    relations: tuple[str, ...]
    functions: tuple[str, ...]
    unbounded: bool = False  # changes or reads every row of a table: no condition, no limit
    digest: str = ""  # SHA-256 of the text, 32 hex digits, also where the text itself is not kept: collectors' is the same
    whole: str = ""  # that of the query string which it is a part of; "" where it is all of it


class StatementStarted(_Fact, frozen=True, tag=31):
    """An execution that was allowed and is about to be forwarded."""

    at_us: int
    execution: int  # counts up in a session
    statement: int
    rule: str
    continues: int = 0  # the execution whose portal it goes on with after its end: it runs nothing anew; 0 = none


class StatementDenied(_Fact, frozen=True, tag=32):
    """An execution that was not forwarded. Terminal."""

    at_us: int
    execution: int
    statement: int
    sqlstate: str
    rule: str
    reason: str


class StatementFinished(_Fact, frozen=True, tag=33):
    execution: int
    outcome: Outcome
    sqlstate: str
    tag: str  # CommandComplete's, "" when there was none
    rows: int
    bytes_in: int  # COPY data and bound parameters
    bytes_out: int
    duration_us: int


class StatementParameters(_Fact, frozen=True, tag=34):
    """Only where the policy asks for parameters; off by default."""

    execution: int
    values: tuple[str | None, ...]


class OutcomeResolved(_Fact, frozen=True, tag=35):
    """What became of an execution whose outcome was `unknown`. The outcome itself stays as it was recorded."""

    at_us: int
    execution: int
    resolution: Resolution
    evidence: str  # the rule and the facts that it rests on, in one sentence


# -- commands (topic "commands", key = session) -----------------------------------------------------------------------------------


class SessionEndOrdered(_Fact, frozen=True, tag=40):
    """Enforcement's conclusion: this session must end. `order` is derived from its cause, so doing it twice is harmless."""

    at_us: int
    order: str
    session: str
    agent: str
    cause: str
    cause_at_us: int
    reason: str


class BackendEndOrdered(_Fact, frozen=True, tag=41):
    """A backend that no gateway opened must end. `order` is derived from its cause. Key = `session_id`."""

    at_us: int
    order: str
    connection: str  # by whose credential the watchdog reaches that server
    server: str
    session_id: str  # PostgreSQL's: see StatementObserved
    backend_pid: int
    backend_start_us: int
    cause: str
    reason: str
    finding: str


# -- findings (topic "findings", key = agent) -------------------------------------------------------------------------------------


class FindingRaised(_Fact, frozen=True, tag=50):
    at_us: int
    finding: str  # deterministic id
    detector: str
    agent: str
    session: str
    severity: str  # "info" | "warning" | "critical"
    summary: str  # one sentence that a person can judge
    evidence: tuple[str, ...]  # event ids
    numbers: tuple[tuple[str, float], ...] = ()  # what it rests on, each with its unit last in the name
    offsets: tuple[str, ...] = ()  # of the evidence in the log: `<topic>/<partition>/<offset>`


class FindingRecurred(_Fact, frozen=True, tag=51):
    """The same again, within the finding's cooldown: told once, when the cooldown is over or the count has doubled."""

    at_us: int
    finding: str
    agent: str
    times: int  # in all, since it was raised
    last_us: int
    summary: str
    numbers: tuple[tuple[str, float], ...] = ()
    offsets: tuple[str, ...] = ()
    severity: str = ""  # as the finding's; "" = of before it was said


class FindingAcknowledged(_Fact, frozen=True, tag=52):
    """Somebody looks after it."""

    at_us: int
    finding: str
    agent: str
    operator: str
    note: str
    request: str = ""


class FindingConfirmed(_Fact, frozen=True, tag=53):
    """It was what it said."""

    at_us: int
    finding: str
    agent: str
    operator: str
    note: str
    request: str = ""


class FindingsMuted(_Fact, frozen=True, tag=54):
    """Until then, what this detector finds of this agent is recorded and asks nobody for attention, nor for a response."""

    at_us: int
    detector: str
    agent: str  # "*" = every agent
    until_us: int
    operator: str
    reason: str
    finding: str = ""  # the one that it was muted from
    request: str = ""


class FindingsUnmuted(_Fact, frozen=True, tag=55):
    at_us: int
    detector: str
    agent: str
    operator: str
    reason: str
    request: str = ""


class SessionJudged(_Fact, frozen=True, tag=63):
    """What reconciliation made of a session that a collector saw. Key = `server` "/" `session_id`. The latest stands."""

    at_us: int
    server: str
    session_id: str  # PostgreSQL's: see StatementObserved
    verdict: str  # "audited" | "ours" | "declared" | "shadow" | "hijacked" | "unexplained": see docs/reconcile.md
    session: str  # the gateway's; "" = none
    agent: str  # "" = none
    source: str  # the declared one; "" = none
    reason: str  # one sentence


# -- observations: what others than the gateway saw or did -------------------------------------------------------------------------


class SessionReaped(_Fact, frozen=True, tag=60):
    """A backend that its own gateway did not end, ended by the watchdog. Key = agent. A proof, as SessionKilled is."""

    at_us: int
    session: str
    agent: str
    gateway: str  # the one that should have
    boot: int
    cause: str  # as SessionKilled's, or "gateway gone"
    requested_us: int  # when the fact that caused it was recorded; for "gateway gone" when the gateway was missed first
    decided_us: int
    backend_gone_us: int  # 0 when the proof did not come within the time limit
    backend_pid: int
    reason: str
    watchdog: str  # who did it


class GatewayReported(_Fact, frozen=True, tag=61):
    """A gateway's word on itself, every second or so, where the log is Kafka. Key = gateway."""

    at_us: int
    gateway: str
    boot: int
    pid: int
    available: bool  # whether statements can be recorded
    since_us: int  # when that began
    reason: str  # "" while available
    refused: int  # statements, while it was not
    pending_bytes: int  # recorded and not yet on this gateway's disk
    backlog_bytes: int  # on its disk and not yet with the brokers
    identity_at_us: int  # `at_us` of the newest identity event that it acts on
    sessions: int
    statements: int
    denied: int
    sessions_opened: int
    sessions_denied: int
    killed: int


class BackendReaped(_Fact, frozen=True, tag=62):
    """A backend that no gateway opened, ended by the watchdog. Key = `session_id`. A proof, as SessionKilled is."""

    at_us: int
    order: str
    server: str
    session_id: str
    backend_pid: int
    requested_us: int  # when the order was recorded
    decided_us: int
    backend_gone_us: int  # 0 when the proof did not come within the time limit
    reason: str
    finding: str
    watchdog: str


class WatchdogConnected(_Fact, frozen=True, tag=64):
    """A backend that a watchdog opened, to look and to end: told, so that nobody takes it for somebody else's. Key = watchdog."""

    at_us: int
    watchdog: str
    connection: str
    role: str
    backend_pid: int
    backend_start_us: int
    upstream_port: int  # its local port of that connection; 0 = not known


class ProcessReported(_Fact, frozen=True, tag=100):
    """A worker's or watchdog's word on itself, every few seconds, where the log is Kafka. Key = name."""

    at_us: int
    process: str  # as the command that runs it
    name: str  # as it writes frames
    boot: int
    pid: int
    reason: str  # why it is not well; "" while it is
    stopping: bool = False  # its last word: it was told to end


# -- witness: what collectors saw the database do (topic "witness", key = `server` "/" `session_id`, or `server` alone) ------------


class WitnessStarted(_Fact, frozen=True, tag=70):
    """A collector begins to look. Before `at_us` it may have seen nothing; what it resumes, `resumed_us` says."""

    at_us: int
    witness: str  # the collector's name
    kind: str  # "log" | "ebpf" | "activity"
    server: str  # the name that the configuration gives the PostgreSQL cluster
    connections: tuple[str, ...]  # of that cluster, as gateways name them
    sees: str  # "statements" | "sessions": all that may be asked of it
    version: str
    resumed_us: int = 0  # what was done since then is seen, though nobody looked; 0 = nothing


class WitnessStopped(_Fact, frozen=True, tag=71):
    at_us: int
    witness: str
    kind: str
    server: str


class WitnessReported(_Fact, frozen=True, tag=72):
    """A collector's word on itself, every second or so."""

    at_us: int
    witness: str
    kind: str
    server: str
    seeing: bool  # its last canary was seen, and nothing hinders it
    reason: str  # "" while it sees
    complete_us: int  # all that ended on the server before this time has been recorded: the watermark
    canary_us: int  # when the last canary that it saw was sent; 0 = none yet
    observed: int  # since it started
    lost: int
    lag_us: int  # of the last observation, from its end on the server to here


class WitnessBlinded(_Fact, frozen=True, tag=73):
    at_us: int
    witness: str
    kind: str
    server: str
    since_us: int
    reason: str  # and what to do


class WitnessRestored(_Fact, frozen=True, tag=74):
    at_us: int
    witness: str
    kind: str
    server: str
    blind_since_us: int


class SessionObserved(_Fact, frozen=True, tag=75):
    """A session that PostgreSQL opened, whoever asked for it. What a collector cannot know is "" or 0."""

    at_us: int  # when it began
    witness: str
    server: str
    session_id: str
    backend_pid: int  # as PostgreSQL names it, in its own pid namespace
    user: str
    database: str
    client: str  # address:port, or "local"
    application_name: str
    backend_type: str = ""  # as in pg_stat_activity; "" = client backend
    client_pid: int = 0  # the process that connected, where that is on this machine
    client_start_us: int = 0
    client_uid: int = -1
    client_exe: str = ""
    client_cgroup: int = 0  # inode of its cgroup folder
    client_cgroup_path: str = ""


class SessionUnobserved(_Fact, frozen=True, tag=76):
    """Its end."""

    at_us: int
    witness: str
    server: str
    session_id: str
    reason: str = ""


class StatementObserved(_Fact, frozen=True, tag=77):
    """One execution, as the database ran it: the same for every collector.

    `session_id` is the log's: hex(epoch of backend start) "." hex(pid). A gateway's Stamp has both numbers.
    """

    at_us: int  # when it began
    witness: str
    server: str
    session_id: str
    sequence: int  # rises within a session
    source: str  # "statement" | "nested" | "function call" | "replication" | "audit": what it is the text of
    text: str  # "" where there is none, or where the policy keeps digests only
    text_bytes: int  # of the whole text; more than `text` has where it was cut
    digest: str  # SHA-256 of the whole text, 32 hex digits; "" where it was cut
    query_id: int  # PostgreSQL's; 0 = not known
    rows: int  # -1 = not known
    sqlstate: str  # "" = no error
    duration_us: int  # -1 = not known
    user: str
    database: str
    client: str
    outcome_known: bool = True  # False: this collector saw the begin only


class ObservationGap(_Fact, frozen=True, tag=78):
    """What a collector knows that it did not see. `session_id` is "" where it cannot say whose it was."""

    at_us: int
    witness: str
    server: str
    session_id: str
    from_us: int
    until_us: int
    lost: int  # observations at least; 0 = not known how many
    reason: str


class WitnessConnected(_Fact, frozen=True, tag=79):
    """A session that the collectors' own process opened: no gateway did, and yet it is nobody's shadow. Told right after its begin.

    What it calls itself (`application_name`) anybody can say; this event only the process that writes the witness's record can.
    """

    at_us: int
    witness: str  # the collector that it is for
    server: str
    session_id: str
    backend_pid: int
    user: str
    purpose: str  # "canary" | "activity"
    digest: str  # of the canary, one of its statements: SHA-256 of the text, 32 hex digits; "" for "activity"


# -- looks: who read the record (topic "looks", key = operator) --------------------------------------------------------------------


class RecordRead(_Fact, frozen=True, tag=90):
    """One look at the audit: a question by name, SQL, or an export."""

    at_us: int
    operator: str
    question: str
    parameters: str  # as JSON; the SQL itself for "sql"
    rows: int  # that it showed; -1 = not counted
    through: str  # "api" | "dashboard" | "command line" | "metrics"; the caller's own word
    times: int = 1  # the first of its kind is told at once, its repeats within a while together: then `rows` is their sum
    since_us: int = 0  # when the first of those repeats was; 0 = at `at_us`


IdentityEvent: TypeAlias = (
    AgentRegistered
    | AgentKeyReplaced
    | AgentRevoked
    | AgentReinstated
    | AgentRetired
    | GrantRequested
    | GrantApproved
    | GrantDenied
    | GrantRevoked
    | GrantNarrowed
    | AllRevoked
    | AllReinstated
    | SubjectRevoked
    | SubjectReinstated
    | GroupRevoked
    | GroupReinstated
    | SessionRevoked
    | SourceDeclared
    | SourceWithdrawn
    | ResponseChosen
    | AgentThrottled
    | AgentUnthrottled
    | AgentHeld
    | AgentReleased
)
SessionEvent: TypeAlias = (
    SessionOpened
    | SessionDenied
    | SessionClosed
    | SessionKilled
    | StatementCancelled
    | RecordingStopped
    | GatewayStarted
    | GatewayStopped
    | LogRecovered
    | BackendOpened
)
StatementEvent: TypeAlias = (
    StatementDefined | StatementStarted | StatementDenied | StatementFinished | StatementParameters | OutcomeResolved
)
CommandEvent: TypeAlias = SessionEndOrdered | BackendEndOrdered
FindingEvent: TypeAlias = (
    FindingRaised | FindingRecurred | FindingAcknowledged | FindingConfirmed | FindingsMuted | FindingsUnmuted | SessionJudged
)
ObservationEvent: TypeAlias = SessionReaped | GatewayReported | BackendReaped | WatchdogConnected | ProcessReported
WitnessEvent: TypeAlias = (
    WitnessStarted
    | WitnessStopped
    | WitnessReported
    | WitnessBlinded
    | WitnessRestored
    | SessionObserved
    | SessionUnobserved
    | StatementObserved
    | ObservationGap
    | WitnessConnected
)
Event: TypeAlias = (
    IdentityEvent | SessionEvent | StatementEvent | CommandEvent | FindingEvent | ObservationEvent | WitnessEvent | RecordRead
)


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Events of one key, in order: one record of the log.

    `(writer, boot, seq)` names the frame within its topic for ever: a frame that is appended twice is the same frame, and a missing
    `seq` is a gap. Each event stands beside the index of its stamp in `stamps`, -1 for none.
    """

    version: int
    writer: str
    boot: int
    seq: int
    stamps: tuple[Stamp, ...]
    events: tuple[tuple[int, Event], ...]
    step: int = 1  # `seq` minus that of the writer's frame before it in the same partition (see frames.py)
