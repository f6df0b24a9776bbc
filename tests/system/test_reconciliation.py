"""Gateway, API, watchdog and log collector as processes, a real PostgreSQL: what is honest raises nothing, who goes round is named."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgwarden.postgres import Postgres
from tests.conftest import Database
from tests.system.house import House, Housed, collector
from tests.system.test_record_equals_server_log import Agent


@pytest.fixture
def house(database: Database, postgres: Postgres, housed: Housed) -> Iterator[House]:
    with housed(database, collector("log", f'path = "{postgres.log_path.parent}"')) as made:
        yield made


@pytest.mark.slow
def test_all_that_the_protocol_allows_is_explained_and_nothing_else(
    house: House, database: Database, wait_for: Callable[..., object], needs: Callable[[str, bool], None]
) -> None:
    needs("pgbench", shutil.which("pgbench") is not None)
    agents = [Agent(house, number) for number in range(3)]  # type: ignore[arg-type]
    for agent in agents:
        house.agent(agent.name)
    wait_for(lambda: all(house.knows(agent.name) for agent in agents), 20, "the gateway knows the agents")
    for agent in agents:
        for scenario in agent.scenarios():
            scenario()
    for mode in ("simple", "extended", "prepared"):
        house.pgbench(agents[0].name, mode)

    wait_for(lambda: house.judged(database.role), 60, "every session is judged")
    time.sleep(8)  # what is not explained by now is told by now: 5 s of lateness, a second of the watermark
    assert [finding["summary"] for finding in house.findings()] == []
    verdicts = wait_for(house.verdicts, 20, "no session waits for its verdict")
    assert isinstance(verdicts, Counter)
    assert set(verdicts) <= {"audited", "ours", "declared"}, verdicts
    assert verdicts["audited"] > 30
    ran = [one for one in house.get("/v1/statements?decision=allow") if one["outcome"] in ("ok", "error")]
    recorded = len(ran)
    assert recorded > 1_000
    wait_for(lambda: house.compared().get("statements_matched", 0) > 0.9 * recorded, 60, "they are matched")
    assert not {"statements_beyond_the_limit", "statements_not_compared", "live_sessions_forgotten"} & set(house.compared())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psql", "pgwarden/reporting/0123456789ab01234567"])
def test_an_agent_that_learned_the_password_and_goes_straight_to_postgres_is_named_and_ended(
    house: House, database: Database, wait_for: Callable[..., object], name: str
) -> None:
    began = time.time()
    stolen = psycopg.connect(database.dsn, application_name=name, autocommit=True)
    assert stolen.execute("SELECT count(*) FROM orders").fetchone() is not None
    wait_for(lambda: time.sleep(0.1) or house.findings(), 20, "it is found")  # each question is work for the API that is to find it
    seconds = time.time() - began
    (finding,) = house.findings()
    raised = datetime.fromisoformat(finding["raised_at"]).timestamp() - began
    assert finding["detector"] == "shadow"  # from the gateway's own machine: only its process could tell the two apart
    summary = finding["summary"]
    assert f"role {database.role} on database {database.name} from 127.0.0.1:" in summary
    assert name in summary
    print(
        f"a shadow that calls itself {name} is found {raised:.2f} s after it began to connect, in the tables after {seconds:.2f} s"
    )

    def ended() -> list[dict[str, Any]]:
        return [one for one in house.get("/v1/observations/sessions?verdict=shadow") if one["kill_backend_gone_at"]]

    wait_for(ended, 20, "its end is proven")
    with pytest.raises(psycopg.OperationalError):
        stolen.execute("SELECT 1")
    assert [one["killed_by"] for one in ended()] == ["watchdog"]
    stolen.close()
