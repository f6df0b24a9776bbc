"""The API's answers as types."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Generic, TypeVar

import msgspec

# Answers are read by name. Fields that this dashboard does not know are passed over, so that an API may grow before it does; a
# null says that something is not known, and reads as the field's default.


class Rule(msgspec.Struct, frozen=True):
    schema: str
    tables: tuple[str, ...]
    operations: tuple[str, ...]


class Scope(msgspec.Struct, frozen=True):
    connection: str
    rules: tuple[Rule, ...] = ()
    functions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    introspection: bool = False


class Grant(msgspec.Struct, frozen=True):
    grant: str
    agent: str
    scope: Scope
    state: str  # requested | approved | denied | revoked | expired
    reason: str = ""
    seconds: int = 0  # life from approval; 0 = until revoked
    requested_by: str = ""
    requested_at: datetime | None = None
    approver: str | None = None
    expires_at: datetime | None = None


class Agent(msgspec.Struct, frozen=True):
    agent: str
    state: str  # active | revoked | retired
    description: str = ""
    owner: str = ""
    issuer: str = ""
    client: str = ""
    subject: str = ""
    key_id: str = ""
    registered_at: datetime | None = None
    state_at: datetime | None = None
    state_by: str = ""
    state_reason: str = ""
    last_seen_at: datetime | None = None
    live_sessions: int = 0
    statements: int = 0  # let through, in the last 24 hours
    denied: int = 0  # in the last 24 hours


class Session(msgspec.Struct, frozen=True):
    session: str
    agent: str
    state: str = ""  # closed | killed | lost; of an open one idle | active | in transaction, or live where its gateway is silent
    connection: str = ""
    gateway: str = ""
    database: str = ""
    client: str = ""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    close_reason: str = ""
    kill_cause: str = ""
    statements: int = 0
    denied: int = 0
    errors: int = 0
    rows: int = 0
    bytes_in: int | None = None
    bytes_out: int | None = None
    duration_us: int | None = None
    task: str = ""
    invocation: str = ""
    on_behalf_of: str = ""
    backend_pid: int = 0
    method: str = ""
    tls: str = ""
    application_name: str = ""


class Kill(msgspec.Struct, frozen=True):
    """The proof of a session's end. No `backend_gone_at`: it did not come within the time limit."""

    session: str
    agent: str
    cause: str = ""
    reason: str = ""
    ended_by: str = ""  # gateway | watchdog
    requested_at: datetime | None = None
    decided_at: datetime | None = None
    client_closed_at: datetime | None = None
    backend_gone_at: datetime | None = None


class Attempt(msgspec.Struct, frozen=True):
    """A connection that did not become a session. `claimed` was not proven."""

    attempted_at: datetime
    claimed: str = ""
    agent: str = ""
    connection: str = ""
    client: str = ""
    sqlstate: str = ""
    reason: str = ""


class Statement(msgspec.Struct, frozen=True):
    started_at: datetime
    session: str
    agent: str
    execution: int = 0
    connection: str = ""
    text: str = ""
    text_mode: str = "full"
    fingerprint: str = ""
    verbs: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    decision: str = ""  # allow | deny
    rule: str = ""
    reason: str = ""
    text_bytes: int = 0  # of the whole text, where `text` is its beginning
    outcome: str = ""  # "" while it runs
    sqlstate: str = ""
    tag: str = ""
    rows: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    duration_us: int | None = None
    task: str = ""
    invocation: str = ""
    on_behalf_of: str = ""
    client: str = ""
    approvers: tuple[str, ...] = ()


class Moment(msgspec.Struct, frozen=True):
    """One entry of a session's timeline."""

    at: datetime
    kind: str  # opened | statement | running | denied | cancel requested | end ordered | killed | lost | closed
    text: str = ""
    execution: int = 0
    outcome: str = ""
    sqlstate: str = ""
    reason: str = ""
    rows: int | None = None
    duration_us: int | None = None


class Rate(msgspec.Struct, frozen=True):
    """One agent's minute. `statements` were let through; `denied` were not, and are not among them."""

    minute_at: datetime
    agent: str
    statements: int = 0
    denied: int = 0
    errors: int = 0
    rows: int = 0


class Recording(msgspec.Struct, frozen=True):
    available: bool
    since_at: datetime | None = None
    reason: str = ""
    refused: int = 0
    backlog_bytes: int = 0  # on gateways' disks, and not with the brokers yet


class Touched(msgspec.Struct, frozen=True):
    """A table that an agent touched."""

    relation: str
    verbs: tuple[str, ...] = ()
    statements: int = 0
    denied: int = 0
    rows: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None


class Hour(msgspec.Struct, frozen=True):
    """Statements of an agent in one hour of the week, UTC."""

    hour: int  # 0 = Monday 0:00 to 1:00
    statements: int = 0


class Me(msgspec.Struct, frozen=True):
    """Who the API takes this viewer for."""

    operator: str
    name: str = ""
    role: str = ""  # viewer | responder | administrator


class FindingEvent(msgspec.Struct, frozen=True):
    recorded_at: datetime
    kind: str = ""  # recurred | acknowledged | confirmed
    operator: str = ""
    said: str = ""
    times: int = 0


class Finding(msgspec.Struct, frozen=True):
    finding: str
    raised_at: datetime
    detector: str = ""
    agent: str = ""
    session: str = ""
    severity: str = ""  # info | warning | critical
    state: str = ""  # open | acknowledged | muted | confirmed
    summary: str = ""
    times: int = 1
    last_at: datetime | None = None
    numbers: dict[str, float] = {}  # each with its unit last in the name
    offsets: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()  # names of events
    triaged_by: str = ""
    triaged_at: datetime | None = None
    note: str = ""
    history: tuple[FindingEvent, ...] = ()


class Restraint(msgspec.Struct, frozen=True):
    """What holds an agent back short of a revocation."""

    agent: str
    since_at: datetime | None = None
    operator: str = ""  # pgwarden itself, where it answers a finding
    reason: str = ""
    finding: str = ""  # "": an operator's own decision
    per_minute: int = 0  # statements at each gateway; 0: held, so that none is let through


class Restraints(msgspec.Struct, frozen=True):
    throttled: tuple[Restraint, ...] = ()
    held: tuple[Restraint, ...] = ()

    def of(self, agent: str) -> tuple[Restraint, ...]:
        return tuple(each for each in (*self.held, *self.throttled) if each.agent == agent)


class Told(msgspec.Struct, frozen=True):
    """What one event of a record of the log tells."""

    at: datetime
    kind: str
    event: str = ""  # its name
    agent: str = ""
    session: str = ""
    execution: int | None = None
    text: str = ""
    reason: str = ""
    outcome: str = ""


class Mute(msgspec.Struct, frozen=True):
    detector: str
    agent: str  # "*": every agent
    muted_at: datetime | None = None
    until_at: datetime | None = None
    operator: str = ""
    reason: str = ""


class Witness(msgspec.Struct, frozen=True):
    """A collector on a server."""

    witness: str
    server: str
    kind: str = ""
    sees: str = ""  # statements | sessions
    state: str = ""  # seeing | blind | silent | starting | stopped
    reason: str = ""
    blind_since_at: datetime | None = None
    complete_at: datetime | None = None
    canary_at: datetime | None = None
    observed: int = 0
    lost: int = 0
    lag_us: int = 0


class TopicPlace(msgspec.Struct, frozen=True):
    """How far the tables are in a partition of the log."""

    topic: str
    partition: int = 0
    log_offset: int = 0
    table_offset: int = 0
    behind: int = 0


class Coverage(msgspec.Struct, frozen=True):
    items: tuple[Witness, ...] = ()
    topics: tuple[TopicPlace, ...] = ()
    reconciliation: dict[str, int] = {}  # by the names of docs/api.md; empty where the API does not say


class ObservationGap(msgspec.Struct, frozen=True):
    kind: str  # lost | blind | not looking
    noticed_at: datetime | None = None
    witness: str = ""
    server: str = ""
    session_id: str = ""
    from_at: datetime | None = None
    until_at: datetime | None = None
    lost: int = 0
    reason: str = ""


class Observed(msgspec.Struct, frozen=True):
    """A session that collectors saw on a server, and what reconciliation made of it."""

    server: str
    session_id: str
    began_at: datetime | None = None
    ended_at: datetime | None = None
    user_name: str = ""
    database: str = ""
    client: str = ""
    application_name: str = ""
    backend_pid: int = 0
    client_pid: int = 0
    client_uid: int = -1
    client_exe: str = ""
    client_cgroup_path: str = ""
    witnesses: tuple[str, ...] = ()
    verdict: str = ""  # audited | ours | declared | shadow | hijacked | unexplained | pending
    verdict_reason: str = ""
    session: str = ""  # the gateway's, where it opened one
    agent: str = ""
    source: str = ""
    kill_requested_at: datetime | None = None
    kill_decided_at: datetime | None = None
    backend_gone_at: datetime | None = msgspec.field(default=None, name="kill_backend_gone_at")


class Source(msgspec.Struct, frozen=True):
    source: str
    kind: str = ""
    state: str = ""  # declared | withdrawn
    roles: tuple[str, ...] = ()
    client: str = ""
    executable: str = ""
    server: str = ""
    application_name: str = ""
    reason: str = ""
    declared_by: str = ""
    declared_at: datetime | None = None


class KnownColumn(msgspec.Struct, frozen=True):
    """Of a table or view that SQL may ask."""

    table_name: str
    column_name: str
    data_type: str


class SqlColumn(msgspec.Struct, frozen=True):
    name: str
    type: str


class SqlAnswer(msgspec.Struct, frozen=True):
    columns: tuple[SqlColumn, ...]
    rows: tuple[tuple[object, ...], ...]
    truncated: bool = False
    snapshot_at: str = ""


class Projection(msgspec.Struct, frozen=True):
    lag_us: int = 0  # how old the newest answer may be
    lag_records: int = 0
    error: str = ""


class GatewayHealth(msgspec.Struct, frozen=True):
    gateway: str
    reachable: bool = True
    reason: str = ""
    started_at: datetime | None = None
    sessions: int = 0
    log: Recording | None = None


class ProcessHealth(msgspec.Struct, frozen=True):
    """A relay, worker, watchdog or collector process beside the gateways."""

    process: str
    name: str = ""
    up: bool = True
    reason: str = ""


class CollectorHealth(msgspec.Struct, frozen=True):
    collector: str
    kind: str = ""
    server: str = ""
    state: str = ""
    reason: str = ""


class InspectionHealth(msgspec.Struct, frozen=True):
    inspection: str
    lag_records: int = 0
    error: str = ""


class Health(msgspec.Struct, frozen=True):
    problems: tuple[str, ...] = ()
    log: Recording | None = None  # None: no gateway says
    gaps: int = 0  # places where frames are missing from the log
    projection: Projection = Projection()
    gateways: tuple[GatewayHealth, ...] = ()
    processes: tuple[ProcessHealth, ...] = ()
    collectors: tuple[CollectorHealth, ...] = ()
    inspections: tuple[InspectionHealth, ...] = ()


PAGE_ROWS_MAX: Final = 1000  # the API's own bound

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    items: tuple[T, ...]
    next: str | None = None
