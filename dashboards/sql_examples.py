"""Questions to begin with, on page "SQL". A test asks each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, str]] = {
    "Who was refused most, and why": """select agent, count(*) as refused, any_value(reason) as for_example
from statements
where decision = 'deny' and started_at > now() - interval 7 days
group by agent
order by refused desc""",
    "Statements an hour": """select date_trunc('hour', started_at) as hour, count(*) as statements,
    count(*) filter (where decision = 'deny') as refused
from executions_all
where started_at > now() - interval 1 day
group by hour
order by hour""",
    "Which tables each agent touched": """select agent, relation, count(*) as statements, sum(rows) as rows
from (select agent, rows, unnest(relations) as relation from statements where started_at > now() - interval 1 day)
group by agent, relation
order by agent, statements desc""",
    "The slowest statements of the day": """select agent, duration_us / 1000 as ms, rows, left(text, 200) as text
from statements
where started_at > now() - interval 1 day
order by duration_us desc nulls last
limit 20""",
    "Sessions that were ended, and how fast": """select session, agent, kill_cause, kill_requested_at,
    epoch_us(kill_backend_gone_at) - epoch_us(kill_requested_at) as gone_after_us
from sessions
where state = 'killed'
order by kill_requested_at desc""",
    "Who approved what an agent may do": """select agent, connection, approver, state, expires_at, reason
from grants
order by agent, requested_at desc""",
    "Work done for each person": """select on_behalf_of as person, count(distinct agent) as agents, count(*) as statements,
    sum(rows) as rows
from executions_all
where on_behalf_of <> '' and started_at > now() - interval 7 days
group by person
order by statements desc""",
    "How far the tables go": "select max(recorded_at) as newest_record from offsets",
}
