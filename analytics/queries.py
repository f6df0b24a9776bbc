"""Every question by name: parameters in, rows out. All values are bound; the SQL is made of constants alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias, TypeVar

from analytics.settings import AnalyticsSettings
from analytics.store import ReadTooLong, Rows, Store, TablesBroken, Value
from identity.roles import Role
from ingest.clock import now_us

Kind: TypeAlias = Literal["text", "integer", "time", "flag"]
Given: TypeAlias = Mapping[str, "str | int | bool"]
Item: TypeAlias = dict[str, object]

LIMIT_DEFAULT: Final = 100
LIMIT_LONG: Final = 1_000  # where a page that is cut would mislead
FIRST_LOOK: Final = timedelta(days=1)  # where a filter is costly
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US_MAX: Final = 253_402_300_799_999_999  # the year 9999


class QuestionInvalid(Exception):
    """The question is not asked right. Says what to write."""


class QuestionFailed(Exception):
    """There is no answer now. Says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    kind: Kind
    sentence: str
    where: str = ""  # the condition that it adds to the question, or "" where the question itself names it
    required: bool = False
    costly: bool = False  # as a filter it wants every execution looked at: the last day's are looked at first
    choices: tuple[str, ...] = ()
    default: int | None = None
    least: int = 0
    most: int = _US_MAX


@dataclass(frozen=True, slots=True)
class Order:
    """Rows come in this order, which is total: the last row of a page is the cursor to the next."""

    columns: tuple[tuple[str, Kind], ...]
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    sentence: str
    parameters: tuple[Parameter, ...]
    sql: str  # with $where, and $page where the page is cut inside; else the page is cut around it
    order: Order
    renamed: Mapping[str, str] | None = None
    json_columns: tuple[str, ...] = ()
    limit_default: int = LIMIT_DEFAULT
    role: Role = "viewer"  # who may ask it


@dataclass(frozen=True, slots=True)
class _Asked:
    sql: str
    bound: Mapping[str, object]
    limit: int
    first_look: tuple[str, Mapping[str, object]] | None  # the same for the newest day alone: if it fills the page, it is the page


@dataclass(frozen=True, slots=True)
class Answer:
    items: list[Item]
    next: str | None  # give it as `before` to get the next page


@dataclass(frozen=True, slots=True)
class Page:
    columns: tuple[str, ...]
    types: tuple[str, ...]  # DuckDB's
    rows: list[tuple[Value, ...]]
    next: str | None


Made = TypeVar("Made", Answer, Page)
Done = TypeVar("Done")

_AGENT: Final = Parameter("agent", "text", "Of this agent alone.", "agent = $agent")
_SERVER: Final = Parameter("server", "text", "Of this server alone.", "server = $server")
_WITNESS: Final = Parameter("witness", "text", "Of this collector alone.", "witness = $witness")
_WITNESS_STATES: Final = ("seeing", "blind", "silent", "starting", "stopped")
_OBSERVED_SOURCES: Final = ("statement", "nested", "function call", "replication", "audit")
_VERDICTS: Final = ("audited", "ours", "declared", "shadow", "hijacked", "unexplained", "pending")
_SINCE: Final = "Not before this time, in microseconds since 1970."
_UNTIL: Final = "Before this time, in microseconds since 1970."
_TEXTS: Final = "(session, statement) in (select (session, statement) from texts where $condition)"

_AGENTS_SQL: Final = """
    with live as (
        select agent, count(*) as live_sessions from sessions
        where state = 'live' and session in (select session from session_records where closed_at is null) group by agent
    ), day as (
        select agent, sum(statements)::bigint as statements, sum(denied)::bigint as denied, sum(errors)::bigint as errors
        from rates where minute >= $now - interval 24 hours group by agent
    ), seen as (
        select agent, max(at_) as last_seen_at from (
            select agent, max(last_at) as at_ from rates group by agent
            union all
            select agent, max(greatest(opened_at, coalesce(closed_at, opened_at))) from session_records group by agent
        ) group by agent
    ), answer as (
        select a.*, s.last_seen_at, coalesce(l.live_sessions, 0) as live_sessions, coalesce(d.statements, 0) as statements,
            coalesce(d.denied, 0) as denied, coalesce(d.errors, 0) as errors
        from agents a left join live l using (agent) left join day d using (agent) left join seen s using (agent)
    )
    select * from answer where $where"""

# The page is cut from each table by itself, where DuckDB can pass over most of it, and before the texts are joined: else every
# execution would meet every text. Of `executions` it is cut by row number, so that only the page's rows are read whole: with a
# filter by text that is 43 ms at ten million executions instead of 250.
_STATEMENTS_SQL: Final = """
    with page as (
        select * from (
            (select * from executions where rowid in (select rowid from executions where $where $page))
            union all by name
            (select * from running where $where $page)
        ) $page
    )
    select e.* exclude (writer), e.writer as gateway, left(x.text, $text_max) as text, x.text_mode, x.text_bytes, x.fingerprint,
        x.verbs, x.relations, x.functions, r.resolution, r.evidence as resolution_evidence
    from page e left join texts x on x.session = e.session and x.statement = e.statement
    left join resolutions r on r.session = e.session and r.execution = e.execution"""

_STATEMENT_SQL: Final = """
    select e.* exclude (writer), e.writer as gateway, x.text, x.text_mode, x.text_bytes, x.fingerprint, x.verbs, x.relations,
        x.functions, p.values as parameters, r.resolution, r.evidence as resolution_evidence
    from (select * from executions_all where $where) e
    left join texts x on x.session = e.session and x.statement = e.statement
    left join parameters p on p.session = e.session and p.execution = e.execution
    left join resolutions r on r.session = e.session and r.execution = e.execution"""

_SESSIONS_SQL: Final = """
    select s.*, coalesce(c.statements, 0) as statements, coalesce(c.denied, 0) as denied, coalesce(c.errors, 0) as errors,
        coalesce(c.rows, 0) as rows, c.last_at as last_statement_at
    from (select * from sessions where $where $page) s left join session_counts c using (session)"""

_TIMELINE_SQL: Final = """
    with what as (
        select opened_at as at_, 0 as rank, 0 as execution, 'opened' as kind,
            'from ' || client || ' to ' || connection || ', ' || method as text, null as outcome, null as decision,
            null as sqlstate, null as reason, null::bigint as rows, null::bigint as duration_us, null as resolution,
            null as resolution_evidence
        from session_records where session = $session
        union all by name
        select started_at as at_, 1 as rank, execution,
            case when decision = 'deny' then 'denied' when outcome is null then 'running' else 'statement' end as kind,
            coalesce(nullif(left(x.text, $text_max), ''), x.fingerprint, '') as text, outcome, decision, sqlstate, reason, rows,
            duration_us, r.resolution, r.evidence as resolution_evidence
        from (select * from executions_all where session = $session) e
        left join (select * from texts where session = $session) x on x.statement = e.statement
        left join (select execution, resolution, evidence from resolutions where session = $session) r using (execution)
        union all by name
        select cancelled_at as at_, 2 as rank, 0 as execution, 'cancel requested' as kind, 'from ' || client as text
        from cancellations where session = $session
        union all by name
        select ordered_at as at_, 3 as rank, 0 as execution, 'end ordered' as kind, cause as text, reason
        from orders where session = $session
        union all by name
        select recorded_at as at_, 4 as rank, 0 as execution, 'killed' as kind,
            cause || case when ended_by = 'watchdog' then ', by the watchdog' else '' end
                || case when backend_gone_at is null then ', not proven' else ', the backend is gone' end as text, reason
        from kills where session = $session
        union all by name
        select closed_at as at_, 5 as rank, 0 as execution,
            case when close_reason = 'lost' then 'lost' else 'closed' end as kind, close_reason as text,
            close_sqlstate as sqlstate, duration_us
        from sessions where session = $session and closed_at is not null
    )
    select at_, kind, text, execution, decision, outcome, resolution, resolution_evidence, sqlstate, reason, rows, duration_us, rank
    from what where $where"""

_TEXTS_SQL: Final = """
    select session, statement, coalesce(nullif(left(text, $characters_max), ''), fingerprint) from texts
    where (session, statement) in (select (unnest($sessions::varchar[]), unnest($statements::bigint[])))"""

QUESTIONS: Final[Mapping[str, Question]] = {
    question.name: question
    for question in (
        Question(
            "agents",
            "Each agent: its state and since when and by whom, when it was last seen, its live sessions, and its last 24 hours.",
            (
                _AGENT,
                Parameter("state", "text", "In this state alone.", "state = $state", choices=("active", "revoked", "retired")),
            ),
            _AGENTS_SQL,
            Order((("agent", "text"),), descending=False),
        ),
        Question(
            "unused_agents",
            "Agents that were never seen, or not for so many days: candidates for offboarding.",
            (
                Parameter(
                    "days",
                    "integer",
                    "Not seen for this many days.",
                    "state <> 'retired' and (last_seen_at is null or last_seen_at < $now - to_days($days::integer))",
                    default=30,
                    most=36_500,
                ),
            ),
            _AGENTS_SQL,
            Order((("agent", "text"),), descending=False),
        ),
        Question(
            "grants",
            "Each grant: what it allows, who asked and why, who approved it, and where it stands.",
            (
                _AGENT,
                Parameter(
                    "state",
                    "text",
                    "In this state alone.",
                    "state = $state",
                    choices=("requested", "approved", "denied", "revoked", "expired"),
                ),
                Parameter("connection", "text", "On this connection alone.", "connection = $connection"),
            ),
            "select * from grants where $where",
            Order((("requested_at", "time"), ("grant", "text"))),
            json_columns=("scope",),
        ),
        Question(
            "revocations",
            "What is revoked now, newest first: agents, subjects and groups of issuers, sessions that still live, everything.",
            (
                Parameter(
                    "kind",
                    "text",
                    "Of this kind alone.",
                    "kind = $kind",
                    choices=("agent", "all", "group", "session", "subject"),
                ),
                _AGENT,
            ),
            "select * from revocations where $where",
            Order((("revoked_at", "time"), ("kind", "text"), ("issuer", "text"), ("name", "text"))),
        ),
        Question(
            "changes",
            "What was decided about agents, grants, subjects, groups, sessions and everything, by whom and why, newest first.",
            (_AGENT,),
            """select * from (
                    select decided_at, 'agent ' || kind as change, agent, null as "grant", operator, reason, place, 1 as part,
                        null as issuer, null as name
                    from agent_events
                    union all
                    select decided_at, 'grant ' || kind, agent, grant_id, operator, reason, place, 2, null, null from grant_events
                    union all
                    select decided_at, kind || case when revoked then ' revoked' else ' reinstated' end, nullif(agent, ''), null,
                        operator, reason, place, 3, nullif(issuer, ''), nullif(name, '')
                    from revocation_events
                ) where $where""",
            Order((("decided_at", "time"), ("place", "integer"), ("part", "integer"))),
        ),
        Question(
            "live_sessions",
            "Sessions that are open now, newest first.",
            (_AGENT,),
            _SESSIONS_SQL.replace(
                "$where", "state = 'live' and session in (select session from session_records where closed_at is null) and $where"
            ),
            Order((("opened_at", "time"), ("session", "text"))),
            {"backend_start": "backend_start_at"},
        ),
        Question(
            "sessions",
            "Each session: who it acted for, from where, on what it rested, what it did and how it ended; newest first.",
            (
                _AGENT,
                Parameter("session", "text", "This session alone.", "session = $session"),
                Parameter("connection", "text", "On this connection alone.", "connection = $connection"),
                Parameter("state", "text", "In this state alone.", "state = $state", choices=("live", "closed", "killed", "lost")),
                Parameter("since_us", "time", _SINCE, "opened_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "opened_at < $until_us"),
            ),
            _SESSIONS_SQL,
            Order((("opened_at", "time"), ("session", "text"))),
            {"backend_start": "backend_start_at"},
        ),
        Question(
            "timeline",
            "One session from its opening to its end, in order.",
            (Parameter("session", "text", "The session.", required=True),),
            _TIMELINE_SQL,
            Order((("at_", "time"), ("rank", "integer"), ("execution", "integer")), descending=False),
            {"at_": "at"},
            limit_default=LIMIT_LONG,
        ),
        Question(
            "statements",
            "Executions, newest first: who, what, what was decided and why, and what came of it.",
            (
                _AGENT,
                Parameter("session", "text", "Of this session alone.", "session = $session"),
                Parameter("connection", "text", "On this connection alone.", "connection = $connection"),
                Parameter("on_behalf_of", "text", "On behalf of this person alone.", "on_behalf_of = $on_behalf_of"),
                Parameter("invocation", "text", "Of this run of an agent alone.", "invocation = $invocation"),
                Parameter("task", "text", "In this task alone, as the agent names it.", "task = $task"),
                Parameter("approver", "text", "Let through by a grant of this approver.", "list_contains(approvers, $approver)"),
                Parameter("decision", "text", "allow or deny.", "decision = $decision", choices=("allow", "deny")),
                Parameter(
                    "outcome",
                    "text",
                    "How it ended; running where it has not.",
                    "coalesce(outcome, 'running') = $outcome",
                    choices=("ok", "error", "skipped", "suspended", "unknown", "denied", "running"),
                ),
                Parameter("sqlstate", "text", "With this SQLSTATE alone.", "sqlstate = $sqlstate"),
                Parameter(
                    "text",
                    "text",
                    "Whose text has this in it, in any case.",
                    _TEXTS.replace("$condition", "contains(lower(text), lower($text))"),
                    costly=True,
                ),
                Parameter(
                    "fingerprint",
                    "text",
                    "Of this shape alone.",
                    _TEXTS.replace("$condition", "fingerprint = $fingerprint"),
                    costly=True,
                ),
                Parameter(
                    "relation",
                    "text",
                    "That name this table, `schema.name` or `name`.",
                    _TEXTS.replace("$condition", "names_relation(relations, $relation)"),
                    costly=True,
                ),
                Parameter("since_us", "time", _SINCE, "started_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "started_at < $until_us"),
            ),
            _STATEMENTS_SQL,
            Order((("started_at", "time"), ("session", "text"), ("execution", "integer"))),
            {"backend_start": "backend_start_at"},
        ),
        Question(
            "statement",
            "One execution, with the whole text and, where they are recorded, its parameters.",
            (
                Parameter("session", "text", "The session.", "session = $session", required=True),
                Parameter("execution", "integer", "Its number in the session.", "execution = $execution", required=True),
            ),
            _STATEMENT_SQL,
            Order((("started_at", "time"), ("session", "text"), ("execution", "integer"))),
            {"backend_start": "backend_start_at"},
        ),
        Question(
            "rates",
            "Each minute of each agent, newest first: statements let through, denied, failed, and rows.",
            (
                Parameter(
                    "minutes",
                    "integer",
                    "Of the last so many minutes.",
                    "minute > date_trunc('minute', $now) - to_minutes($minutes)",
                    default=60,
                    least=1,
                    most=44_640,
                ),
                _AGENT,
            ),
            "select * exclude (last_at) from rates where $where",
            Order((("minute", "time"), ("agent", "text"))),
            {"minute": "minute_at"},
            limit_default=LIMIT_LONG,
        ),
        Question(
            "denials",
            "What was refused, by agent and reason: how often, and when first and last.",
            (
                _AGENT,
                Parameter(
                    "days",
                    "integer",
                    "Of the last so many days.",
                    "started_at >= $now - to_days($days::integer)",
                    default=7,
                    least=1,
                    most=3_650,
                ),
            ),
            """select agent, reason, sqlstate, rule, count(*) as denials, min(started_at) as first_at, max(started_at) as last_at
                from executions where decision = 'deny' and $where group by agent, reason, sqlstate, rule""",
            Order((("denials", "integer"), ("agent", "text"), ("reason", "text"), ("sqlstate", "text"), ("rule", "text"))),
        ),
        Question(
            "attempts",
            "Connections that did not become sessions, newest first. What is claimed was not proven.",
            (
                _AGENT,
                Parameter("claimed", "text", "That claimed to be this.", "claimed = $claimed"),
                Parameter("client", "text", "From this address.", "client = $client"),
            ),
            "select * from attempts where $where",
            Order((("attempted_at", "time"), ("place", "integer"))),
        ),
        Question(
            "kills",
            "Sessions that were ended, by whom, with the four times and what passed between them; no backend_gone_at: not proven.",
            (_AGENT, Parameter("session", "text", "Of this session alone.", "session = $session")),
            """select recorded_at, session, agent, cause, reason, ended_by, watchdog, requested_at, decided_at,
                    client_closed_at, backend_gone_at,
                    epoch_us(decided_at) - epoch_us(requested_at) as decided_after_us,
                    epoch_us(client_closed_at) - epoch_us(requested_at) as client_closed_after_us,
                    epoch_us(backend_gone_at) - epoch_us(requested_at) as backend_gone_after_us, backend_pid
                from kills where $where""",
            Order((("recorded_at", "time"), ("session", "text"))),
        ),
        Question(
            "relation_agents",
            "Who touched a table: each agent, how often, how often in vain, and when first and last.",
            (
                Parameter("relation", "text", "The table, `schema.name` or `name`.", required=True),
                Parameter(
                    "days",
                    "integer",
                    "In the last so many days.",
                    "day >= date_trunc('day', $now - to_days($days::integer))",
                    default=30,
                    least=1,
                    most=3_650,
                ),
            ),
            """select agent, sum(statements)::bigint as statements, sum(denied)::bigint as denied,
                    count(distinct session) as sessions, sum(rows)::bigint as rows, min(first_at) as first_at,
                    max(last_at) as last_at
                from statement_counts
                where (session, statement) in (
                    select (session, statement) from texts where names_relation(relations, $relation)
                ) and $where group by agent""",
            Order((("statements", "integer"), ("agent", "text"))),
        ),
        Question(
            "agent_relations",
            "What an agent touched: each table, how often, how often in vain, and when first and last.",
            (
                Parameter("agent", "text", "The agent.", "agent = $agent", required=True),
                Parameter(
                    "days",
                    "integer",
                    "In the last so many days.",
                    "day >= date_trunc('day', $now - to_days($days::integer))",
                    default=30,
                    least=1,
                    most=3_650,
                ),
            ),
            """select relation, list_sort(list_distinct(flatten(list(verbs)))) as verbs, sum(statements)::bigint as statements,
                    sum(denied)::bigint as denied, sum(rows)::bigint as rows, min(first_at) as first_at, max(last_at) as last_at
                from (
                    select c.*, x.verbs, unnest(x.relations) as relation
                    from (select * from statement_counts where $where) c
                    join texts x on x.session = c.session and x.statement = c.statement
                ) group by relation""",
            Order((("statements", "integer"), ("relation", "text"))),
        ),
        Question(
            "agent_hours",
            "When an agent works: its statements in each hour of the week, UTC; hour 0 is the one after Sunday's midnight.",
            (
                Parameter("agent", "text", "The agent.", "agent = $agent", required=True),
                Parameter(
                    "days",
                    "integer",
                    "In the last so many days.",
                    "minute >= $now - to_days($days::integer)",
                    default=28,
                    least=1,
                    most=366,
                ),
            ),
            """select (isodow(minute) - 1) * 24 + hour(minute) as hour, sum(statements)::bigint as statements,
                    sum(denied)::bigint as denied
                from rates where $where group by hour""",
            Order((("hour", "integer"),), descending=False),
        ),
        Question(
            "recording_gaps",
            "When nothing could be recorded (and so nothing was let through), and which frames the log has lost.",
            (),
            "select *, coalesce(until_at, since_at) as noticed_at from recording_gaps where $where",
            Order((("noticed_at", "time"), ("reason", "text"))),
        ),
        Question(
            "gateways",
            "Each boot of each gateway, newest first; no stopped_at means that it runs, or ended without a word.",
            (),
            "select gateway, boot, started_at, stopped_at, version from gateways where $where",
            Order((("boot", "integer"), ("gateway", "text"))),
        ),
        Question(
            "findings",
            "What the detectors raised, newest first.",
            (
                _AGENT,
                Parameter("finding", "text", "This finding alone.", "finding = $finding"),
                Parameter("detector", "text", "Of this detector alone.", "detector = $detector"),
                Parameter(
                    "severity", "text", "Of this weight alone.", "severity = $severity", choices=("info", "warning", "critical")
                ),
                Parameter(
                    "state",
                    "text",
                    "In this state alone.",
                    "state = $state",
                    choices=("open", "acknowledged", "muted", "confirmed"),
                ),
                Parameter("since_us", "time", "Seen again, or first, no earlier than this.", "last_at >= $since_us"),
            ),
            "select * from findings where $where",
            Order((("raised_at", "time"), ("finding", "text"))),
            json_columns=("numbers",),
        ),
        Question(
            "finding_history",
            "What became of one finding, newest first: recurrences, who acknowledged and confirmed it.",
            (Parameter("finding", "text", "Of this one.", "finding = $finding", required=True),),
            """select place, instant(at_us) as recorded_at, kind, operator, said, times, instant(last_us) as last_at, numbers,
                offsets
            from finding_events where $where""",
            Order((("recorded_at", "time"), ("place", "integer"))),
            json_columns=("numbers",),
        ),
        Question(
            "mutes",
            "What asks nobody for attention now, and until when.",
            (
                _AGENT,
                Parameter("detector", "text", "Of this detector alone.", "detector = $detector"),
            ),
            "select * from mutes where until_at > $now and $where",
            Order((("muted_at", "time"), ("detector", "text"), ("agent", "text"))),
        ),
        Question(
            "coverage",
            "Each collector: what it sees, whether it sees now, how far its record is complete, its last canary, what it lost.",
            (_SERVER, _WITNESS, Parameter("state", "text", "In this state alone.", "state = $state", choices=_WITNESS_STATES)),
            "select * from witnesses where $where",
            Order((("server", "text"), ("witness", "text")), descending=False),
        ),
        Question(
            "coverage_gaps",
            "What collectors did not see, newest first: lost observations, blindness, and times in which none looked.",
            (
                _SERVER,
                _WITNESS,
                Parameter("kind", "text", "Of this kind alone.", "kind = $kind", choices=("lost", "blind", "not looking")),
                Parameter("session_id", "text", "Of this session of the server alone.", "session_id = $session_id"),
                Parameter("since_us", "time", _SINCE, "noticed_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "noticed_at < $until_us"),
            ),
            "select * from observation_gaps where $where",
            Order((("noticed_at", "time"), ("witness", "text"), ("server", "text"), ("session_id", "text"), ("kind", "text"))),
        ),
        Question(
            "observed_sessions",
            "The sessions that collectors saw, newest first: who connected, from where, and what reconciliation made of it.",
            (
                _SERVER,
                Parameter("session_id", "text", "This session of the server alone.", "session_id = $session_id"),
                Parameter("session", "text", "The gateway's session alone.", "session = $session"),
                _AGENT,
                Parameter("user_name", "text", "Of this database role alone.", "user_name = $user_name"),
                Parameter("source", "text", "Of this declared source alone.", "source = $source"),
                Parameter("verdict", "text", "With this verdict alone.", "verdict = $verdict", choices=_VERDICTS),
                Parameter("since_us", "time", _SINCE, "began_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "began_at < $until_us"),
            ),
            "select * from observed_sessions where $where",
            Order((("began_at", "time"), ("server", "text"), ("session_id", "text"))),
        ),
        Question(
            "observed_statements",
            "What the database ran in one of its sessions, as each collector saw it, newest first.",
            (
                Parameter(
                    "session_id",
                    "text",
                    "The session of the server, as collectors name it.",
                    "session_id = $session_id",
                    required=True,
                ),
                _SERVER,
                _WITNESS,
                Parameter("source", "text", "Of this kind alone.", "source = $source", choices=_OBSERVED_SOURCES),
                Parameter("since_us", "time", _SINCE, "began_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "began_at < $until_us"),
            ),
            "select * replace (left(text, $text_max) as text) from observed_statements where $where",
            Order((("began_at", "time"), ("place", "integer"), ("witness", "text"))),
        ),
        Question(
            "sources",
            "The declared sources: connections round the gateway that are meant to be, by whom and why.",
            (
                Parameter("source", "text", "This one alone.", "source = $source"),
                Parameter("state", "text", "In this state alone.", "state = $state", choices=("declared", "withdrawn")),
            ),
            "select * from sources where $where",
            Order((("source", "text"),), descending=False),
        ),
        Question(
            "columns",
            "What can be asked by SQL: each table and view, its columns in their order, and DuckDB's type of each.",
            (Parameter("table", "text", "Of this table or view alone.", "table_name = $table"),),
            """select table_name, ordinal_position, column_name, data_type from information_schema.columns
                where table_catalog = current_database() and table_schema = 'main' and table_name <> 'looks' and $where""",
            Order((("table_name", "text"), ("ordinal_position", "integer")), descending=False),
            limit_default=LIMIT_LONG,
        ),
        Question(
            "looks",
            "Who read the record, newest first: what they asked, how much it showed, and through what.",
            (
                Parameter("operator", "text", "Of this operator alone.", "operator = $operator"),
                Parameter(
                    "question", "text", "At this alone: the name of a question, `sql`, or an export.", "question = $question"
                ),
                Parameter("mentions", "text", "Whose parameters have this in them.", "contains(parameters, $mentions)"),
                Parameter("since_us", "time", _SINCE, "read_at >= $since_us"),
                Parameter("until_us", "time", _UNTIL, "read_at < $until_us"),
            ),
            "select * from looks where $where",
            Order((("read_at", "time"), ("place", "integer"), ("partition", "integer"))),
            json_columns=("parameters",),
            role="administrator",
        ),
    )
}

_PAGE_AROUND: Final = "select * from ($question) where $after $order limit $page_rows"
_HIDDEN: Final = frozenset({"place", "part", "rank", "partition"})  # of use for the order alone


class Queries:
    """Questions run in threads of their own, so many at once; the others wait in a line with an end. Calls may overlap."""

    def __init__(self, store: Store, settings: AnalyticsSettings, now_us: Callable[[], int] = now_us) -> None:
        self._store = store
        self._settings = settings
        self._now_us = now_us
        self._threads = ThreadPoolExecutor(settings.questions_at_once, thread_name_prefix="question")
        self._waiting = 0

    async def ask(self, name: str, given: Given) -> Answer:
        """
        Raises:
            QuestionInvalid: There is no such question, or a parameter is wrong.
            QuestionFailed: It took too long, too many wait, or the tables do not answer.
        """
        return await self._read(name, given, _answer)

    async def page(self, name: str, given: Given) -> Page:
        """The same rows as ask() gives, with the values and under the names that the tables have.

        Raises:
            QuestionInvalid, QuestionFailed: As ask().
        """
        return await self._read(name, given, lambda question, page: page)

    async def _read(self, name: str, given: Given, make: Callable[[Question, Page], Made]) -> Made:
        question = QUESTIONS.get(name)
        if question is None:
            raise QuestionInvalid(f"there is no question {name[:100]!r}; GET /v1/questions names them all")
        asked = _asked(question, given, self._settings, self._now_us())
        return await self._in_line(lambda: make(question, self._page(question, asked)))

    async def _in_line(self, work: Callable[[], Done]) -> Done:
        if self._waiting >= self._settings.questions_waiting_max:
            raise QuestionFailed(f"{self._waiting} questions are waiting; try again in a few seconds")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    async def texts(self, asked: Collection[tuple[str, int]], characters_max: int) -> dict[tuple[str, int], str]:
        """Of each (session, statement) that is known its text, cut, or its fingerprint where texts are not kept.

        Raises:
            QuestionFailed: As ask().
        """
        sessions, statements = [session for session, _ in asked], [statement for _, statement in asked]
        bound = {"sessions": sessions, "statements": statements, "characters_max": characters_max}
        rows = (await self._in_line(lambda: self._rows(_TEXTS_SQL, bound))).rows
        return {(str(session), int(str(statement))): str(text) for session, statement, text in rows if text}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _rows(self, sql: str, bound: Mapping[str, object]) -> Rows:
        try:
            return self._store.read(sql, bound, self._settings.question_seconds_max)
        except ReadTooLong as error:
            raise QuestionFailed(
                f"the answer took more than {self._settings.question_seconds_max:g} s; narrow it by time"
            ) from error
        except MemoryError as error:
            raise QuestionFailed("the answer needs more memory than it may use; narrow it, for example by time") from error
        except TablesBroken as error:
            raise QuestionFailed(f"the tables do not answer: {error}") from error

    def _page(self, question: Question, asked: _Asked) -> Page:
        limit = asked.limit
        found = self._rows(*asked.first_look) if asked.first_look else None
        if found is None or len(found.rows) <= limit:
            found = self._rows(asked.sql, asked.bound)
        kept: list[tuple[Value, ...]] = []
        size = 0
        following = None
        text_at = found.columns.index("text") if "text" in found.columns else None
        for row in found.rows:
            text = row[text_at] if text_at is not None else ""
            size += len(text) if isinstance(text, str) else 0
            if len(kept) == limit or (kept and size > self._settings.answer_bytes_max):
                following = _cursor(question.order, dict(zip(found.columns, kept[-1], strict=True)))
                break
            kept.append(row)
        return Page(found.columns, found.types, kept, following)


def _asked(question: Question, given: Given, settings: AnalyticsSettings, now_us: int) -> _Asked:
    known = {parameter.name for parameter in question.parameters} | {"limit", "before"}
    unknown = sorted(set(given) - known)
    if unknown:
        # A misspelt filter must not become no filter.
        raise QuestionInvalid(f"{unknown[0][:100]}: no such parameter of {question.name}; it takes {', '.join(sorted(known))}")
    where: list[str] = []
    bound: dict[str, object] = {}
    for parameter in question.parameters:
        value = given.get(parameter.name, parameter.default)
        if value is None or value == "":
            if parameter.required:
                raise QuestionInvalid(f"{parameter.name}: missing; {parameter.sentence}")
            continue
        bound[parameter.name] = _value(parameter, value)
        if parameter.where:
            where.append(parameter.where)
    limit_parameter = Parameter("limit", "integer", "", least=1, most=settings.answer_rows_max)
    default = min(question.limit_default, settings.answer_rows_max)
    asked = given.get("limit", "")
    limit = int(str(_value(limit_parameter, default if asked == "" else asked)))
    before = given.get("before")
    if before:
        comparison, keys = _after_cursor(question.order, str(before))
        bound |= keys
    else:
        comparison = ""
    bound["page_rows"] = limit + 1  # one more than is shown tells whether there is a next page
    direction = " desc" if question.order.descending else ""
    order = "order by " + ", ".join(f'"{column}"{direction}' for column, _ in question.order.columns)
    conditions = " and ".join(where) or "true"
    first_look = None
    if "$now" in question.sql or "$now" in conditions:
        bound["now"] = _time(now_us)
    if "$text_max" in question.sql:
        bound["text_max"] = settings.answer_text_max
    if "$page" in question.sql:
        inner = f"{conditions} and {comparison}" if comparison else conditions
        sql = question.sql.replace("$page", f"{order} limit $page_rows") + " " + order
        if any(parameter.costly and parameter.name in bound for parameter in question.parameters):
            ends = [end for name in ("until_us", "key0") if isinstance(end := bound.get(name), datetime)]
            since = {"first_look": min([_time(now_us), *ends]) - FIRST_LOOK}
            first_look = (sql.replace("$where", f"{inner} and started_at >= $first_look"), bound | since)
        sql = sql.replace("$where", inner)
    else:
        sql = _PAGE_AROUND.replace("$question", question.sql.replace("$where", conditions)).replace("$after", comparison or "true")
        sql = sql.replace("$order", order)
    return _Asked(sql, bound, limit, first_look)


def _value(parameter: Parameter, value: object) -> object:
    """The value to bind."""
    name = parameter.name
    if parameter.kind == "text":
        if not isinstance(value, str) or len(value) > 10_000:
            raise QuestionInvalid(f"{name}: write at most 10,000 characters")
        if parameter.choices and value not in parameter.choices:
            raise QuestionInvalid(f"{name}: write one of {', '.join(parameter.choices)}")
        return value
    if parameter.kind == "flag":
        if str(value).lower() not in ("true", "false"):
            raise QuestionInvalid(f"{name}: write true or false")
        return str(value).lower() == "true"
    try:
        number = int(str(value))
    except ValueError as error:
        raise QuestionInvalid(f"{name}: write a whole number") from error
    if not parameter.least <= number <= parameter.most:
        raise QuestionInvalid(f"{name}: write a number from {parameter.least} to {parameter.most}")
    return _time(number) if parameter.kind == "time" else number


# -- pages -----------------------------------------------------------------------------------------------------------------------


def _cursor(order: Order, values: Mapping[str, Value]) -> str:
    keys = [_us(value) if isinstance(value := values[column], datetime) else value for column, _ in order.columns]
    return base64.urlsafe_b64encode(json.dumps(keys, separators=(",", ":")).encode()).decode().rstrip("=")


def _after_cursor(order: Order, cursor: str) -> tuple[str, dict[str, object]]:
    """The condition for what follows the cursor, and its values."""
    wrong = QuestionInvalid("before: write what an earlier answer gave as next")
    try:
        keys = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(keys, list) or len(keys) != len(order.columns):
        raise wrong
    bound: dict[str, object] = {}
    for index, (key, (_, kind)) in enumerate(zip(keys, order.columns, strict=True)):
        if kind == "text":
            if not isinstance(key, str):
                raise wrong
            bound[f"key{index}"] = key
        else:
            if not isinstance(key, int) or isinstance(key, bool) or not -(2**63) <= key < 2**63:
                raise wrong
            if kind == "time" and not 0 <= key <= _US_MAX:
                raise wrong
            bound[f"key{index}"] = _time(key) if kind == "time" else key
    columns = ", ".join(f'"{column}"' for column, _ in order.columns)
    values = ", ".join(f"${name}" for name in bound)
    first = order.columns[0][0]
    sign = "<" if order.descending else ">"
    # The first condition is implied; it is there for the zone maps, which cannot use the second.
    return f'"{first}" {sign}= $key0 and ({columns}) {sign} ({values})', bound


# -- values ----------------------------------------------------------------------------------------------------------------------


def _answer(question: Question, page: Page) -> Answer:
    return Answer([_item(question, dict(zip(page.columns, row, strict=True))) for row in page.rows], page.next)


def shown_names(question: Question, columns: Sequence[str]) -> dict[str, str]:
    """What the columns are called in an answer; those that are of use for the order alone are left out."""
    renamed = question.renamed or {}
    return {name: renamed.get(name, name) for name in columns if name not in _HIDDEN}


def _item(question: Question, values: Mapping[str, Value]) -> Item:
    renamed = question.renamed or {}
    return {
        renamed.get(name, name): json.loads(value) if name in question.json_columns and isinstance(value, str) else _plain(value)
        for name, value in values.items()
        if name not in _HIDDEN
    }


def _plain(value: Value) -> object:
    return iso(value) if isinstance(value, datetime) else value


def iso(at: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return at.isoformat(timespec="microseconds") + "Z"


def _time(us: int) -> datetime:
    """As the tables have it: UTC, without saying so."""
    return (_EPOCH + timedelta(microseconds=us)).replace(tzinfo=None)


def _us(at: datetime) -> int:
    return (at.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def described() -> Sequence[Item]:
    """The questions, for whoever wants to ask one."""
    return [
        {
            "name": question.name,
            "sentence": question.sentence,
            "role": question.role,
            "parameters": [
                {
                    "name": parameter.name,
                    "kind": parameter.kind,
                    "sentence": parameter.sentence,
                    "required": parameter.required,
                    "choices": list(parameter.choices),
                    "default": parameter.default,
                }
                for parameter in (*question.parameters, *_paging(question))
            ],
        }
        for question in QUESTIONS.values()
    ]


def _paging(question: Question) -> tuple[Parameter, ...]:
    return (
        Parameter("limit", "integer", "How many at most.", default=question.limit_default, least=1),
        Parameter("before", "text", "What an earlier answer gave as next: the page after it."),
    )
