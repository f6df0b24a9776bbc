from __future__ import annotations

import random

import pytest

from analytics.enforcement import FOR_EVER_US, Effects, State, order_id, step, tick
from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    Event,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantRevoked,
    SessionClosed,
    SessionEndOrdered,
    SessionOpened,
)
from tests.analytics.scenario import stamp

Step = tuple[Event, str, int]


def opened(
    session: str, agent: str = "reporter", at_us: int = 100, *, boot: int = 1, expires_at_us: int = 0, **more: object
) -> Step:
    event = SessionOpened(at_us, stamp(session, agent, **more), "token", "c", expires_at_us, "", "", "3.0", "group")
    return event, "gw", boot


def closed(session: str, agent: str = "reporter") -> Step:
    return SessionClosed(150, session, agent, "client", "", 0, 0, 0, 0), "gw", 1


def revoked(agent: str = "reporter", at_us: int = 200) -> Step:
    return AgentRevoked(at_us, agent, "leaked", "op"), "api", 1


def reinstated(agent: str = "reporter", at_us: int = 300) -> Step:
    return AgentReinstated(at_us, agent, "found", "op"), "api", 1


def fold(*steps: Step, state: State | None = None, now_us: int = 1000) -> tuple[State, list[SessionEndOrdered]]:
    state = state or State()
    effects: list[SessionEndOrdered] = []
    for event, writer, boot in steps:
        state, more = step(state, event, writer, boot, now_us)
        effects += more
    return state, effects


def test_revoking_an_agent_ends_its_sessions_and_no_others() -> None:
    _, orders = fold(opened("a1"), opened("a2"), opened("b1", "loader"), revoked())
    assert [(order.session, order.agent, order.cause) for order in orders] == [
        ("a1", "reporter", "agent revoked"),
        ("a2", "reporter", "agent revoked"),
    ]
    assert {order.cause_at_us for order in orders} == {200}
    assert {order.reason for order in orders} == {"leaked"}


def test_a_session_that_opens_while_its_agent_is_revoked_is_ended() -> None:
    _, orders = fold(revoked(at_us=200), opened("late", at_us=230))
    assert [order.session for order in orders] == ["late"]


def test_a_session_seen_after_the_reinstatement_but_opened_before_it_is_ended() -> None:
    _, orders = fold(revoked(at_us=200), reinstated(at_us=300), opened("between", at_us=250), opened("before", at_us=100))
    assert {order.session for order in orders} == {"between", "before"}


def test_a_session_opened_after_the_reinstatement_goes_on() -> None:
    _, orders = fold(revoked(at_us=200), reinstated(at_us=300), opened("new", at_us=301))
    assert orders == []


def test_retiring_is_for_good() -> None:
    retired: Step = (AgentRetired(200, "reporter", "gone", "op"), "api", 1)
    _, orders = fold(retired, reinstated(), opened("a", at_us=5000))
    assert [order.cause for order in orders] == ["agent retired"]


def test_revoking_a_grant_ends_the_sessions_that_rest_on_it() -> None:
    state, orders = fold(
        opened("on-it", grants=("g1", "g2")),
        opened("not-on-it", grants=("g2",)),
        (GrantRevoked(200, "g1", "reporter", "op", "done"), "api", 1),
    )
    assert [(order.session, order.cause) for order in orders] == [("on-it", "grant revoked")]
    _, late = fold(opened("late", at_us=190, grants=("g1",)), state=state)
    assert [(order.session, order.cause) for order in late] == [("late", "grant revoked")]


def test_a_session_ends_when_a_grant_of_it_runs_out_and_not_before() -> None:
    state, _ = fold((GrantApproved(50, "g1", "reporter", "bob", 900), "api", 1), opened("a", grants=("g1",)))
    state, early = tick(state, 899)
    state, due = tick(state, 900)
    _, again = tick(state, 901)
    assert (list(early), list(again)) == ([], [])
    assert [(order.session, order.cause, order.cause_at_us) for order in due] == [("a", "grant expired", 900)]


def test_an_approval_that_is_seen_after_the_session_counts() -> None:
    state, _ = fold(opened("a", grants=("g1",)), (GrantApproved(50, "g1", "reporter", "bob", 900), "api", 1))
    assert [order.cause for order in tick(state, 900)[1]] == ["grant expired"]


def test_a_session_ends_when_its_token_expires() -> None:
    state, _ = fold(opened("a", expires_at_us=700))
    _, orders = tick(state, 700)
    assert [(order.cause, order.cause_at_us) for order in orders] == [("token expired", 700)]


def test_the_earlier_of_token_and_grant_is_the_cause() -> None:
    approved: Step = (GrantApproved(50, "g1", "reporter", "bob", 600), "api", 1)
    state, _ = fold(approved, opened("a", grants=("g1",), expires_at_us=700))
    assert [order.cause for order in tick(state, 10_000)[1]] == ["grant expired"]


def test_a_closed_session_is_not_ended_again() -> None:
    _, orders = fold(opened("a"), closed("a"), revoked())
    assert orders == []


def test_one_session_is_ordered_once_whatever_else_ends() -> None:
    state, orders = fold(
        opened("a", grants=("g1",), expires_at_us=700),
        revoked(),
        revoked(at_us=220),
        (GrantRevoked(230, "g1", "reporter", "op", "x"), "api", 1),
    )
    assert len(orders) == 1
    assert tick(state, 10_000)[1] == ()


def test_the_same_conclusion_has_the_same_name() -> None:
    _, first = fold(opened("a"), revoked(), now_us=1)
    _, second = fold(revoked(), opened("a"), now_us=2)
    assert first[0].order == second[0].order == order_id("a", "agent revoked", "reporter")
    assert first[0].order != order_id("b", "agent revoked", "reporter")


@pytest.mark.parametrize("shows", [GatewayStarted(400, "gw", 2, "1"), SessionClosed(1, "x", "y", "", "", 0, 0, 0, 0)])
def test_a_later_boot_ends_the_sessions_of_earlier_ones_without_orders(shows: Event) -> None:
    state, orders = fold(opened("old", boot=1), (shows, "gw", 2))
    assert (dict(state.sessions), orders) == ({}, [])
    state, orders = fold(opened("late", boot=1), opened("new", boot=2), state=state)
    assert (set(state.sessions), orders) == ({"new"}, [])


def test_a_gateway_that_stopped_has_no_sessions() -> None:
    state, _ = fold(opened("a", boot=3), (GatewayStopped(400, "gw", 3), "gw", 3), opened("b", boot=3))
    assert dict(state.sessions) == {}


def test_another_gateways_restart_changes_nothing() -> None:
    state, _ = fold(opened("a"), (GatewayStarted(400, "gw-2", 9, "1"), "gw-2", 9))
    assert set(state.sessions) == {"a"}


def test_the_conclusions_do_not_depend_on_how_the_topics_are_read_side_by_side() -> None:
    identity: list[Step] = [
        (GrantApproved(10, "g1", "reporter", "bob", 900), "api", 1),
        revoked("loader", 200),
        reinstated("loader", 300),
        (GrantRevoked(310, "g2", "reporter", "op", "x"), "api", 1),
        (AgentRetired(400, "idle", "x", "op"), "api", 1),
    ]
    sessions = [
        opened("r1", at_us=100, grants=("g1",)),
        opened("r2", at_us=100, grants=("g2",)),
        opened("l1", "loader", at_us=150, grants=("g3",)),
        opened("l2", "loader", at_us=350, grants=("g3",)),
        opened("i1", "idle", at_us=350, grants=()),
        closed("r2"),
        opened("r3", at_us=305, grants=("g2",)),
    ]
    seen: set[tuple[tuple[str, ...], ...]] = set()
    for seed in range(200):
        chance = random.Random(seed)
        left, right, merged = list(identity), list(sessions), []
        while left or right:
            # Whatever was recorded before a session's event is read before it: that much the runner sees to.
            due = right and left and _at(left[0]) <= _at(right[0])
            merged.append((left if left and (not right or due or chance.random() < 0.5) else right).pop(0))
        state, orders = fold(*merged)
        state, due = tick(state, 900)
        # r2 closed by itself: whether an order was made before that is a matter of who came first.
        ended = sorted((order.session, order.order) for order in (*orders, *due) if order.session != "r2")
        seen.add(tuple(ended))
    assert len(seen) == 1
    assert [session for session, _ in next(iter(seen))] == ["i1", "l1", "r1", "r3"]


def _at(one: Step) -> int:
    at_us = one[0].at_us  # type: ignore[union-attr]
    assert isinstance(at_us, int)
    return at_us


def test_events_that_come_twice_change_nothing() -> None:
    steps = [opened("a", grants=("g1",)), (GrantApproved(50, "g1", "reporter", "bob", 900), "api", 1), revoked()]
    once, orders = fold(*steps)
    twice, again = fold(*(one for one in steps for _ in range(2)))
    assert (once, orders) == (twice, again)


def test_nothing_is_due_where_nothing_expires() -> None:
    state, _ = fold(opened("a"))
    effects: Effects
    state, effects = tick(state, FOR_EVER_US - 1)
    assert (effects, state.due_us) == ((), FOR_EVER_US)
