from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analytics.enforcement import FOR_EVER_US, REPEATS_MAX, Effects, State, order_id, step, tick
from ingest.events import (
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    AllReinstated,
    AllRevoked,
    Event,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantNarrowed,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    Scope,
    SessionClosed,
    SessionEndOrdered,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    SessionRevoked,
    SubjectReinstated,
    SubjectRevoked,
)
from tests.analytics.scenario import stamp

Step = tuple[Event, str, int]


def opened(
    session: str,
    agent: str = "reporter",
    at_us: int = 100,
    *,
    boot: int = 1,
    expires_at_us: int = 0,
    groups: tuple[str, ...] = (),
    knew_us: int = 0,
    writer: str = "gw",
    **more: object,
) -> Step:
    under = stamp(session, agent, **more)
    event = SessionOpened(at_us, under, "token", "c", expires_at_us, "", "", "3.0", "group", groups, knew_us)
    return event, writer, boot


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
    before = [opened("knew", knew_us=199), opened("knew-nothing")]
    _, orders = fold(revoked(at_us=200), reinstated(at_us=300), *before)
    assert {order.session for order in orders} == {"knew", "knew-nothing"}


def test_a_session_that_was_let_in_after_the_reinstatement_goes_on() -> None:
    for steps in ([revoked(), reinstated(), opened("new", knew_us=300)], [opened("new", knew_us=300), revoked(), reinstated()]):
        assert fold(*steps)[1] == []


def test_what_a_gateway_knew_counts_and_not_what_its_clock_showed() -> None:
    _, orders = fold(
        opened("clock-behind", at_us=1, knew_us=300), opened("clock-ahead", at_us=9000, knew_us=10), revoked(at_us=200)
    )
    assert [order.session for order in orders] == ["clock-ahead"]


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
        opened("l2", "loader", at_us=350, grants=("g3",), knew_us=310),
        opened("i1", "idle", at_us=350, grants=()),
        closed("r2"),
        opened("r3", at_us=305, grants=("g2",)),
    ]
    seen: set[tuple[tuple[str, ...], ...]] = set()
    for seed in range(200):
        chance = random.Random(seed)
        left, right, merged = list(identity), list(sessions), []
        while left or right:
            merged.append((left if left and (not right or chance.random() < 0.5) else right).pop(0))
        state, orders = fold(*merged)
        state, due = tick(state, 900)
        # r2 closed by itself: whether an order was made before that is a matter of who came first.
        ended = sorted((order.session, order.order) for order in (*orders, *due) if order.session != "r2")
        seen.add(tuple(ended))
    assert len(seen) == 1
    assert [session for session, _ in next(iter(seen))] == ["i1", "l1", "r1", "r3"]


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


# -- more than one agent, and less -------------------------------------------------------------------------------------------------

IDP, OTHER = "https://idp.example", "https://other.example"


def by(event: Event) -> Step:
    return event, "api", 1


def test_revoking_a_subject_ends_what_acts_as_it_or_for_it_at_that_issuer_alone() -> None:
    _, orders = fold(
        opened("as-it", "a", issuer=IDP, subject="ada", on_behalf_of=""),
        opened("for-it", "b", issuer=IDP, subject="svc", on_behalf_of="ada"),
        opened("elsewhere", "a", issuer=OTHER, subject="ada", on_behalf_of="ada"),
        opened("of-a-key", "a", issuer="", subject="key:1", on_behalf_of="ada"),
        opened("another", "a", issuer=IDP, subject="bob", on_behalf_of=""),
        by(SubjectRevoked(200, IDP, "ada", "left", "op")),
    )
    assert [(order.session, order.cause, order.reason) for order in orders] == [
        ("as-it", "subject revoked", "left"),
        ("for-it", "subject revoked", "left"),
    ]


def test_revoking_a_group_ends_what_its_tokens_opened_at_that_issuer_alone() -> None:
    _, orders = fold(
        opened("in", issuer=IDP, groups=("staff", "contractors")),
        opened("out", issuer=IDP, groups=("staff",)),
        opened("elsewhere", issuer=OTHER, groups=("contractors",)),
        by(GroupRevoked(200, IDP, "contractors", "leak", "op")),
    )
    assert [(order.session, order.cause) for order in orders] == [("in", "group revoked")]


def test_revoking_everything_ends_everything_that_did_not_know_of_it() -> None:
    _, orders = fold(
        opened("a", "a"),
        opened("b", "b", issuer=""),
        by(AllRevoked(200, "attack", "op")),
        opened("late", "c", knew_us=150),
        by(AllReinstated(300, "over", "op")),
        opened("later", "c", knew_us=299),
        opened("after", "c", knew_us=300),
    )
    # `later` cannot be: who knew that everything is revoked lets nobody in.
    assert [(order.session, order.cause) for order in orders] == [(name, "all revoked") for name in ("a", "b", "late")]


def test_revoking_a_session_ends_it_and_no_other_of_its_agent() -> None:
    end = by(SessionRevoked(200, "a1", "reporter", "odd", "op"))
    for steps in ([opened("a1"), opened("a2"), end], [end, opened("a2"), opened("a1")]):
        assert [(order.session, order.cause, order.cause_at_us) for order in fold(*steps)[1]] == [("a1", "session revoked", 200)]


def test_narrowing_a_grant_orders_no_end() -> None:
    _, orders = fold(opened("a", grants=("g1",)), by(GrantNarrowed(200, "g1", "reporter", Scope("shop", ()), "op", "less")))
    assert orders == []


def test_a_session_ends_for_what_ended_it_first_in_the_record() -> None:
    ends = [revoked(at_us=200), by(GroupRevoked(210, IDP, "g", "x", "op")), by(AllRevoked(220, "y", "op"))]
    session = opened("a", issuer=IDP, groups=("g",))
    for steps in ([*ends, session], [session, *ends], [ends[0], session, *ends[1:]]):
        assert [order.cause for order in fold(*steps)[1]] == ["agent revoked"]
    knew = opened("a", issuer=IDP, groups=("g",), knew_us=205)
    for steps in ([*ends, knew], [knew, *ends]):
        assert [order.cause for order in fold(*steps)[1]] == ["group revoked"]


def test_a_session_whose_time_was_over_before_it_was_revoked_ends_for_that() -> None:
    _, orders = fold(opened("a", expires_at_us=150), revoked(at_us=200))
    assert [(order.cause, order.cause_at_us) for order in orders] == [("token expired", 150)]


@pytest.mark.parametrize("repeats", [REPEATS_MAX, REPEATS_MAX + 1, 3 * REPEATS_MAX])
def test_a_session_that_is_read_after_more_revocations_than_are_remembered_ends_all_the_same(repeats: int) -> None:
    ends = [revoked(at_us=200 + n) for n in range(repeats)]
    before, knew_all_but_one = opened("before"), opened("late", knew_us=200 + repeats - 2)
    ordered = [order for steps in ([before, *ends], [*ends, before], [*ends, knew_all_but_one]) for order in fold(*steps)[1]]
    assert [(order.session, order.cause) for order in ordered] == [(name, "agent revoked") for name in ("before", "before", "late")]
    assert ordered[0].cause_at_us == 200
    assert ordered[1].cause_at_us == 200 + max(0, repeats - REPEATS_MAX)
    assert ordered[2].cause_at_us == 200 + repeats - 1


def test_a_grant_that_was_approved_after_the_end_had_not_run_out_before_it() -> None:
    # Such an approval, of a time that is over already, is no API's; the conclusion must not depend on when it is read all the same.
    ends = [revoked(at_us=200), by(GrantApproved(210, "g1", "reporter", "bob", 150))]
    session = opened("a", grants=("g1",))
    for steps in ([*ends, session], [session, *ends], [ends[0], session, ends[1]]):
        assert [order.cause for order in fold(*steps)[1]] == ["agent revoked"]


def test_which_grant_ran_out_is_told_only_when_all_that_the_gateway_knew_is_read() -> None:
    approved = by(GrantApproved(50, "g1", "reporter", "bob", 900))
    state, _ = fold(opened("a", grants=("g1",), expires_at_us=900, knew_us=50))
    assert tick(state, 950)[1] == ()
    fold(approved, state=state)
    assert [order.cause for order in tick(state, 951)[1]] == ["grant expired"]


@pytest.mark.parametrize(
    "end",
    [
        SessionClosed(1, "a", "reporter", "client", "", 0, 0, 0, 0),
        SessionKilled(1, "a", "reporter", "ordered", 0, 0, 0, 1, 1, ""),
        SessionReaped(1, "a", "reporter", "gw", 1, "gateway gone", 0, 0, 1, 1, "", "dog"),
    ],
)
def test_a_session_that_ended_leaves_nothing_behind(end: Event) -> None:
    state, _ = fold(opened("a", expires_at_us=700), (end, "gw", 1))
    assert (state, tick(state, 10_000)[1]) == (fold(opened("b"), (SessionClosed(1, "b", "", "", "", 0, 0, 0, 0), "gw", 1))[0], ())


def test_ten_thousand_sessions_that_come_and_go_leave_no_room_taken() -> None:
    state = State()
    for n in range(10_000):
        step(state, *opened(f"s{n}", expires_at_us=10**15), 0)
        step(state, *closed(f"s{n}"), 0)
    assert state.due_us == 10**15
    assert len(state._due) <= 1025


# -- any order, any partition ------------------------------------------------------------------------------------------------------

AGENTS = ("a", "b")
NAMES = ("ada", "bob")


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Step], list[list[Step]]]:
    """What an API recorded, and what gateways recorded at the same time, each knowing of it as much as it had read by then."""
    identity: list[Step] = []
    partitions: list[list[Step]] = [[], []]
    lives: list[tuple[str, str, str]] = []
    at_us = 1000
    boots = {"gw-1": 1, "gw-2": 1}
    names = {"agent": st.sampled_from(AGENTS), "name": st.sampled_from(NAMES), "issuer": st.sampled_from([IDP, OTHER, ""])}
    kinds = ["agent", "agent back", "retire", "grant", "approve", "subject", "group", "all", "back", "session"]
    for _ in range(draw(st.integers(1, 25))):
        at_us += 10
        agent, name, issuer = draw(names["agent"]), draw(names["name"]), draw(names["issuer"])
        what = draw(st.sampled_from([*kinds, "open", "open", "open", "open", "close", "restart"]))
        grant = f"{agent}-{draw(st.integers(1, 2))}"
        identity_event: Event | None = None
        match what:
            case "agent":
                identity_event = AgentRevoked(at_us, agent, f"r{at_us}", "op")
            case "agent back":
                identity_event = AgentReinstated(at_us, agent, "", "op")
            case "retire":
                identity_event = AgentRetired(at_us, agent, f"r{at_us}", "op")
            case "grant":
                identity_event = GrantRevoked(at_us, grant, agent, "op", f"r{at_us}")
            case "approve":
                identity_event = GrantApproved(at_us, grant, agent, "op", draw(st.sampled_from([0, 1100, 1300])))
            case "subject":
                identity_event = SubjectRevoked(at_us, issuer, name, f"r{at_us}", "op")
            case "group":
                identity_event = GroupRevoked(at_us, issuer, name, f"r{at_us}", "op")
            case "all":
                identity_event = AllRevoked(at_us, f"r{at_us}", "op")
            case "back":
                identity_event = draw(
                    st.sampled_from(
                        [
                            AllReinstated(at_us, "", "op"),
                            SubjectReinstated(at_us, issuer, name, "", "op"),
                            GroupReinstated(at_us, issuer, name, "", "op"),
                        ]
                    )
                )
            case "session" if lives:
                session, of, _ = draw(st.sampled_from(lives))
                identity_event = SessionRevoked(at_us, session, of, f"r{at_us}", "op")
            case "open":
                gateway = draw(st.sampled_from(sorted(boots)))
                read = identity[: draw(st.integers(0, len(identity)))]
                more: dict[str, Any] = {"issuer": issuer, "subject": name, "on_behalf_of": draw(st.sampled_from(["", *NAMES]))}
                session = f"s{at_us}"
                partitions[AGENTS.index(agent)].append(
                    opened(
                        session,
                        agent,
                        at_us,
                        boot=boots[gateway],
                        writer=gateway,
                        expires_at_us=draw(st.sampled_from([0, 1050, 1200])),
                        groups=tuple(draw(st.sets(st.sampled_from(NAMES)))),
                        knew_us=read[-1][0].at_us if read else 0,  # type: ignore[union-attr]
                        grants=tuple(draw(st.lists(st.sampled_from([f"{agent}-1", f"{agent}-2"]), unique=True))),
                        **more,
                    )
                )
                lives.append((session, agent, gateway))
            case "close" if lives:
                session, of, gateway = lives.pop(draw(st.integers(0, len(lives) - 1)))
                over: Step = (SessionClosed(at_us, session, of, "", "", 0, 0, 0, 0), gateway, boots[gateway])
                partitions[AGENTS.index(of)].append(over)
            case "restart":
                gateway = draw(st.sampled_from(sorted(boots)))
                boots[gateway] += 1
                lives = [life for life in lives if life[2] != gateway]
                for partition in partitions:  # every partition is told
                    partition.append((GatewayStarted(at_us, gateway, boots[gateway], "1"), gateway, boots[gateway]))
            case _:
                pass
        if identity_event is not None:
            identity.append(by(identity_event))
    # Of a name that was revoked more often than is remembered, what ends a session is told by what is read first; see below.
    assume(max(Counter(_name_of(event) for event, _, _ in identity).values(), default=0) <= REPEATS_MAX)
    return identity, partitions


def _name_of(event: Event) -> tuple[str, str, str]:
    """What it revokes; of everything else its kind."""
    match event:
        case AgentRevoked() | AgentRetired():
            return "agent", event.agent, ""
        case GrantRevoked():
            return "grant", event.grant, ""
        case SubjectRevoked():
            return "subject", event.issuer, event.subject
        case GroupRevoked():
            return "group", event.issuer, event.group
        case AllRevoked():
            return "all", "", ""
        case _:
            return "", type(event).__name__, str(id(event))


def conclusions(state: State, orders: Sequence[SessionEndOrdered]) -> set[SessionEndOrdered]:
    """Of the sessions that live on: whether one that closed by itself was ordered to end before is a matter of who came first."""
    return {order for order in orders if order.session in state.sessions}


def merged(data: st.DataObject, *topics: list[Step]) -> list[Step]:
    left = [list(topic) for topic in topics]
    out: list[Step] = []
    while rest := [topic for topic in left if topic]:
        out.append(data.draw(st.sampled_from(rest)).pop(0))
    return out


def ended(steps: Sequence[Step]) -> set[SessionEndOrdered]:
    state, orders = fold(*steps, now_us=2000)
    state, due = tick(state, 2000)
    return conclusions(state, [*orders, *due])


@settings(max_examples=300, deadline=None)
@given(histories(), st.data())
def test_any_order_of_the_topics_gives_the_same_orders(history: tuple[list[Step], list[list[Step]]], data: st.DataObject) -> None:
    identity, partitions = history
    expected = ended([*identity, *partitions[0], *partitions[1]])
    assert ended([*partitions[0], *partitions[1], *identity]) == expected
    assert ended(merged(data, identity, *partitions)) == expected


@settings(max_examples=300, deadline=None)
@given(histories(), st.data())
def test_partitions_apart_conclude_what_one_fold_of_them_all_does(
    history: tuple[list[Step], list[list[Step]]], data: st.DataObject
) -> None:
    identity, partitions = history
    apart = [ended(merged(data, identity, partition)) for partition in partitions]
    assert set.union(*apart) == ended(merged(data, identity, *partitions))


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_a_partition_that_is_taken_over_is_weighed_against_all_that_was_known(
    history: tuple[list[Step], list[list[Step]]], data: st.DataObject
) -> None:
    identity, partitions = history
    read = data.draw(st.integers(0, len(identity)))
    known, _ = fold(*identity[:read])
    state, orders = fold(*merged(data, identity[read:], partitions[0]), state=known.of_identity(), now_us=2000)
    state, due = tick(state, 2000)
    assert conclusions(state, [*orders, *due]) == ended([*identity, *partitions[0]])


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_frames_that_come_twice_order_nothing_twice(history: tuple[list[Step], list[list[Step]]], data: st.DataObject) -> None:
    identity, partitions = history
    steps = merged(data, identity, *partitions)
    _, once = fold(*steps)
    at = data.draw(st.integers(0, len(steps)))
    again = steps[at : at + data.draw(st.integers(0, 5))]
    _, twice = fold(*steps[:at], *again, *steps[at:])
    orders = [order.order for order in twice]
    assert len(orders) == len(set(orders))
    assert {order.order for order in once} <= set(orders)
