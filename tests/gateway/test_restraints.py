"""What holds an agent back short of a revocation, at a real gateway before a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from ingest.events import AgentHeld, AgentReleased, AgentRevoked, AgentThrottled, AgentUnthrottled, SessionKilled, StatementDenied

if TYPE_CHECKING:
    from conftest import Warden  # type: ignore[import-not-found]


def _now() -> int:
    return time.time_ns() // 1000


def _hold(warden: Warden, agent: str) -> None:
    warden.record(AgentHeld(_now(), agent, "finding f-1", "pgwarden", "f-1"))
    warden.settle()


def test_a_held_agents_statements_are_refused_until_it_is_released_and_its_session_stays(warden: Warden) -> None:
    warden.agent("odd")
    warden.agent("good")
    odd, good = warden.connect("odd"), warden.connect("good")
    odd.execute("SELECT 1")
    _hold(warden, "odd")
    for prepare in (False, True):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"held.*pgwarden release odd"):
            odd.execute("SELECT id FROM orders LIMIT 1", prepare=prepare)
    with warden.connect("odd") as late, pytest.raises(psycopg.errors.InsufficientPrivilege, match="held"):
        late.execute("SELECT 1")
    assert good.execute("SELECT 1").fetchone() == (1,)
    warden.record(AgentReleased(_now(), "odd", "explained", "olga"))
    warden.settle()
    assert odd.execute("SELECT 1").fetchone() == (1,)
    assert any(isinstance(event, StatementDenied) and event.rule == "held" for _, event in warden.events("statements"))
    odd.close()
    good.close()


def test_a_hold_ends_nothing_that_runs_and_lets_a_transaction_be_rolled_back(warden: Warden) -> None:
    warden.agent("odd")
    odd = warden.connect("odd")
    odd.autocommit = False
    odd.execute("SELECT 1")
    answers: list[object] = []
    thread = threading.Thread(
        target=lambda: answers.append(odd.execute("SELECT count(*) FROM generate_series(1, 4000000)").fetchone())
    )
    thread.start()
    time.sleep(0.3)
    _hold(warden, "odd")
    thread.join(10)
    assert len(answers) == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="held"):
        odd.execute("SELECT 1")
    odd.rollback()
    odd.close()


def test_a_throttled_agents_statements_are_paced_in_their_order_and_others_are_not(warden: Warden) -> None:
    warden.agent("fast")
    warden.agent("good")
    one, two, good = warden.connect("fast"), warden.connect("fast"), warden.connect("good")
    warden.record(AgentThrottled(_now(), "fast", 300, "finding f-1", "pgwarden", "f-1"))  # one in 200 ms
    warden.settle()
    began = time.monotonic()
    with one.pipeline():
        cursors = [one.execute("SELECT %s::int", (number,)) for number in range(6)]
    assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(6)]
    assert two.execute("SELECT 1").fetchone() == (1,)  # of the same agent: behind the others
    paced = time.monotonic() - began
    assert paced >= 6 * 0.2 - 0.05
    began = time.monotonic()
    for _ in range(7):
        good.execute("SELECT 1")
    assert time.monotonic() - began < paced
    warden.record(AgentThrottled(_now(), "fast", 1, "slower", "olga"))
    warden.settle()
    one.execute("SELECT 1")
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(one.execute("SELECT 8").fetchone()))
    thread.start()
    time.sleep(0.3)
    assert answers == []  # its turn would come within a minute
    warden.record(AgentUnthrottled(_now(), "fast", "explained", "olga"))
    thread.join(10)
    assert answers == [(8,)]
    for connection in (one, two, good):
        connection.close()


def test_a_session_that_waits_for_its_turn_is_killed_all_the_same(warden: Warden) -> None:
    warden.agent("fast")
    fast = warden.connect("fast")
    warden.record(AgentThrottled(_now(), "fast", 1, "too fast", "olga"))
    warden.settle()
    fast.execute("SELECT 1")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            fast.execute("SELECT 2")
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    warden.record(AgentRevoked(_now(), "fast", "enough", "pgwarden", "", "f-1"))
    thread.join(10)
    assert isinstance(errors[0], psycopg.errors.AdminShutdown)
    until = time.monotonic() + 5
    while not (killed := warden.session_events(SessionKilled)) and time.monotonic() < until:
        time.sleep(0.05)
    (proof,) = killed
    assert isinstance(proof, SessionKilled)
    assert 0 < proof.backend_gone_us - proof.requested_us < 1_500_000
