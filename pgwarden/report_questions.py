"""What `pgwarden report` asks the record: the SQL of each section of an agent's month."""

# ruff: noqa: S608  # the name is an agent's, which has no quote in it, and the rest are dates

from __future__ import annotations

from datetime import date


def questions(agent: str, begin: date, end: date) -> dict[str, str]:
    """The SQL of each section. `agent` is a name that an agent may have: it holds no quote."""
    month = "{at} >= timestamp '" + begin.isoformat() + "' and {at} < timestamp '" + end.isoformat() + "'"
    of = f"agent = '{agent}'"

    def during(column: str) -> str:
        return month.replace("{at}", column)

    return {
        "agent": f"select * from agents where {of}",
        "totals": f"""select coalesce(sum(statements), 0) as statements, coalesce(sum(denied), 0) as denied,
            coalesce(sum(errors), 0) as errors, coalesce(sum(rows), 0) as rows from rates where {of} and {during("minute")}""",
        "days": f"""select cast(minute as date) as day, sum(statements) as statements, sum(denied) as denied
            from rates where {of} and {during("minute")} group by day order by day""",
        "grants": f"""select * from grants where {of} and requested_at < timestamp '{end.isoformat()}'
            and (ended_at is null or ended_at >= timestamp '{begin.isoformat()}')
            and (expires_at is null or expires_at >= timestamp '{begin.isoformat()}') order by requested_at""",
        "used": f"""select relation, list_sort(list_distinct(flatten(list(verbs)))) as verbs, sum(statements) as statements,
            sum(denied) as denied, sum(rows) as rows, min(first_at) as first_at, max(last_at) as last_at
            from (select c.*, x.verbs, unnest(x.relations) as relation from statement_counts c
                join texts x on x.session = c.session and x.statement = c.statement where c.{of} and {during("c.day")})
            group by relation order by statements desc, relation limit 500""",
        "sessions": f"""select s.session, s.opened_at, s.closed_at, s.state, s.connection, s.on_behalf_of, s.task, s.client,
            s.grants, s.approvers, coalesce(c.statements, 0) as statements, coalesce(c.denied, 0) as denied,
            coalesce(c.errors, 0) as errors, s.close_reason
            from sessions s left join session_counts c using (session) where s.{of} and {during("s.opened_at")}
            order by s.opened_at limit 500""",
        "session_count": f"""select count(*) as sessions, count(distinct on_behalf_of) filter (on_behalf_of <> '') as people
            from sessions where {of} and {during("opened_at")}""",
        "refusals": f"""select reason, sqlstate, rule, count(*) as times, min(started_at) as first_at, max(started_at) as last_at
            from executions_all where {of} and decision = 'deny' and {during("started_at")}
            group by reason, sqlstate, rule order by times desc limit 200""",
        "attempts": f"""select attempted_at, client, connection, sqlstate, reason from attempts
            where (agent = '{agent}' or claimed = '{agent}') and {during("attempted_at")} order by attempted_at limit 200""",
        "findings": f"""select raised_at, severity, detector, summary, times, state, triaged_by, note, finding
            from findings where {of} and {during("raised_at")} order by raised_at limit 500""",
        "decisions": f"""select decided_at, what, operator, reason from (
            select decided_at, 'agent ' || kind as what, operator, reason from agent_events where {of}
            union all select decided_at, 'grant ' || grant_id || ' ' || kind, operator, reason from grant_events where {of}
            union all select decided_at, kind || ' ' || name || case when revoked then ' revoked' else ' reinstated' end, operator,
                reason from revocation_events where {of} or kind = 'all')
            where {during("decided_at")} order by decided_at limit 500""",
        "kills": f"""select recorded_at, session, cause, reason, requested_at, decided_at, client_closed_at, backend_gone_at,
            ended_by from kills where {of} and {during("recorded_at")} order by recorded_at limit 500""",
        "recording_gaps": f"""select kind, writer, since_at, until_at, refused, reason from recording_gaps
            where coalesce(until_at, since_at) >= timestamp '{begin.isoformat()}'
            and coalesce(since_at, until_at) < timestamp '{end.isoformat()}' order by coalesce(since_at, until_at) limit 200""",
        "witnesses": "select witness, server, kind, sees, state, started_at, complete_at from witnesses order by witness",
        "observation_gaps": f"""select kind, witness, server, from_at, until_at, lost, reason from observation_gaps
            where coalesce(until_at, from_at, noticed_at) >= timestamp '{begin.isoformat()}'
            and coalesce(from_at, noticed_at) < timestamp '{end.isoformat()}' order by noticed_at limit 200""",
        "verdicts": f"""select coalesce(verdict, 'not judged') as verdict, count(*) as sessions from observed_sessions
            where {of} and {during("began_at")} group by verdict order by sessions desc""",
        "offsets": "select topic, partition, next_offset, recorded_at from offsets order by topic, partition",
    }
