"""Which sessions are live, which must end, and whose gateway is gone: recorded facts in, conclusions out."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from gateway.live_sessions import LiveSessions, Moment
from gateway.stamp import APPLICATION_NAME_BYTES_MAX, bears, control_name, stamped_application_name, watchdog_name
from identity.registry import Registry
from ingest.events import (
    AgentRegistered,
    AgentReinstated,
    AgentRevoked,
    AllRevoked,
    GatewayReported,
    GatewayStarted,
    GatewayStopped,
    GrantApproved,
    GrantRequested,
    GrantRevoked,
    Rule,
    Scope,
    SessionClosed,
    SessionEndOrdered,
    SessionKilled,
    SessionOpened,
    SessionReaped,
    SessionRevoked,
    Stamp,
)

SECOND = 1_000_000
START = Moment(1_795_000_000 * SECOND, 5 * SECOND)
ORPHAN_US = 10 * SECOND
GATEWAY = "gateway-1"
BOOT = START.wall_us - SECOND
CONTROL = {(1, 1): control_name(GATEWAY, BOOT)}


def later(seconds: float, start: Moment = START) -> Moment:
    return Moment(start.wall_us + int(seconds * SECOND), start.mono_us + int(seconds * SECOND))


def stamp(session: str = "s1", agent: str = "worker", pid: int = 4711) -> Stamp:
    return Stamp(
        session,
        agent,
        "sub",
        "",
        "",
        (),
        "",
        "",
        (),
        (f"g-{agent}",),
        ("oscar",),
        "shop",
        "shop",
        "role",
        "127.0.0.1:5",
        pid,
        77,
        1,
    )


def opened(
    session: str = "s1", agent: str = "worker", *, expires_at_us: int = 0, method: str = "scram", pid: int = 4711
) -> SessionOpened:
    return SessionOpened(START.wall_us, stamp(session, agent, pid), method, "k", expires_at_us, "psql", "", "3.0", "group")


def closed(session: str = "s1") -> SessionClosed:
    return SessionClosed(START.wall_us, session, "worker", "client", "", 0, 0, 0, 0)


def killed(gone_us: int, session: str = "s1") -> SessionKilled:
    return SessionKilled(START.wall_us, session, "worker", "agent revoked", 1, 2, 3, gone_us, 4711, "leaked")


def ours(session: str) -> dict[tuple[int, int], str]:
    return {(4711, 77): stamped_application_name("worker", session)}


@pytest.fixture
def live() -> LiveSessions:
    """One gateway, two agents with a grant each, no session."""
    live = LiveSessions(Registry(), 1_000, 10)
    for agent in ("worker", "other"):
        known(live, agent)
    live.apply(GatewayStarted(START.wall_us, GATEWAY, BOOT, "1"), GATEWAY, BOOT, START)
    return live


def known(live: LiveSessions, agent: str, expires_at_us: int = 0) -> None:
    at = START.wall_us - 60 * SECOND
    scope = Scope("shop", (Rule("public", ("orders",), ("select",)),))
    live.identity(AgentRegistered(at, agent, "", "team", "", "", "", "k", "v", "olga"), START)
    live.identity(GrantRequested(at, f"g-{agent}", agent, scope, 0, "", "olga"), START)
    live.identity(GrantApproved(at, f"g-{agent}", agent, "oscar", expires_at_us), START)


def due(live: LiveSessions, seconds: float) -> list[str]:
    return [session.id for session in live.due(SECOND // 2, later(seconds))]


def test_a_revoked_agents_sessions_are_due_after_the_patience_and_no_others(live: LiveSessions) -> None:
    live.apply(opened("s1"), GATEWAY, BOOT, START)
    live.apply(opened("s2", "other"), GATEWAY, BOOT, START)
    live.identity(AgentRevoked(START.wall_us + 1, "worker", "leaked", "olga"), START)
    assert due(live, 0.4) == []
    assert due(live, 0.6) == ["s1"]
    end = live.must_end["s1"]
    assert (end.cause, end.requested_us) == ("agent revoked", START.wall_us + 1)


def test_an_end_that_its_gateway_has_recorded_is_nobodys_business(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    live.identity(AgentRevoked(START.wall_us + 1, "worker", "leaked", "olga"), START)
    live.apply(killed(START.wall_us + 5), GATEWAY, BOOT, later(0.1))
    assert due(live, 9) == []
    assert not live.sessions


def test_a_kill_without_proof_is_due_although_the_session_is_called_closed(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    live.apply(killed(0), GATEWAY, BOOT, START)
    live.apply(closed(), GATEWAY, BOOT, START)
    assert due(live, 0.6) == ["s1"]
    reaped = SessionReaped(1, "s1", "worker", GATEWAY, BOOT, "agent revoked", 1, 2, 3, 4711, "", "watchdog")
    live.apply(reaped, "watchdog", 1, later(1))
    assert not live.sessions


def test_a_step_of_the_wall_clock_shortens_no_patience(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    live.identity(AgentRevoked(START.wall_us + 1, "worker", "leaked", "olga"), START)
    stepped = Moment(later(3_600).wall_us, START.mono_us + SECOND // 10)
    assert live.due(SECOND // 2, stepped) == []


def test_a_session_let_in_before_a_revocation_that_was_taken_back_still_ends(live: LiveSessions) -> None:
    live.apply(replace_identity(opened(), START.wall_us), GATEWAY, BOOT, START)
    live.identity(AgentRevoked(START.wall_us + 10, "worker", "leaked", "olga"), START)
    live.identity(AgentReinstated(START.wall_us + 20, "worker", "", "olga"), START)
    assert due(live, 0.6) == ["s1"]
    live.apply(replace_identity(opened("s2"), START.wall_us + 20), GATEWAY, BOOT, START)
    assert due(live, 0.6) == ["s1"]


def replace_identity(event: SessionOpened, at_us: int) -> SessionOpened:
    return msgspec.structs.replace(event, identity_at_us=at_us)


def test_what_is_not_known_ends_nothing() -> None:
    live = LiveSessions(Registry(), 1_000, 10)
    live.apply(opened(), GATEWAY, BOOT, START)
    assert due(live, 60) == []
    known(live, "worker")
    assert due(live, 60) == []
    live.identity(GrantRevoked(START.wall_us + 1, "g-worker", "worker", "olga", "no longer needed"), START)
    assert due(live, 60) == ["s1"]


def test_break_glass_concerns_everybody_and_a_sessions_revocation_that_session(live: LiveSessions) -> None:
    for session, agent in (("s1", "worker"), ("s2", "other"), ("s3", "other")):
        live.apply(opened(session, agent), GATEWAY, BOOT, START)
    live.identity(SessionRevoked(START.wall_us + 1, "s2", "other", "odd", "olga"), START)
    assert set(live.must_end) == {"s2"}
    live.identity(AllRevoked(START.wall_us + 2, "fire", "olga"), START)
    assert {session: end.cause for session, end in live.must_end.items()} == {
        "s1": "all revoked",
        "s2": "session revoked",
        "s3": "all revoked",
    }


def test_an_order_counts_whether_it_is_read_before_or_after_the_session(live: LiveSessions) -> None:
    live.apply(opened("s1"), GATEWAY, BOOT, START)
    for session in ("s1", "s2"):
        live.apply(SessionEndOrdered(1, f"o-{session}", session, "worker", "by hand", 9, "x"), "api", 1, START)
    live.apply(opened("s2"), GATEWAY, BOOT, START)
    assert due(live, 0.6) == ["s1", "s2"]
    assert live.must_end["s2"].requested_us == 9


def test_what_is_remembered_of_unknown_sessions_has_a_bound(live: LiveSessions) -> None:
    for number in range(11):
        live.apply(SessionEndOrdered(1, "o", f"s{number}", "worker", "by hand", 9, "x"), "api", 1, START)
    live.apply(opened("s0"), GATEWAY, BOOT, START)
    live.apply(opened("s1"), GATEWAY, BOOT, START)
    assert due(live, 1) == ["s1"]


@pytest.mark.parametrize(("method", "cause"), [("token", "token expired"), ("scram", "grant expired")])
def test_a_session_whose_time_is_over_is_due(live: LiveSessions, method: str, cause: str) -> None:
    live.apply(opened(expires_at_us=START.wall_us + 2 * SECOND, method=method), GATEWAY, BOOT, START)
    live.tick(later(1.9))
    assert not live.must_end
    live.tick(later(2.1))
    assert live.must_end["s1"].cause == cause
    assert live.must_end["s1"].requested_us == START.wall_us + 2 * SECOND
    assert due(live, 2.5) == []
    assert due(live, 2.7) == ["s1"]


def test_a_grant_that_runs_out_ends_the_sessions_that_rest_on_it() -> None:
    live = LiveSessions(Registry(), 1_000, 10)
    known(live, "worker", expires_at_us=START.wall_us + SECOND)
    live.apply(opened(), GATEWAY, BOOT, START)
    live.tick(later(0.5))
    assert not live.must_end
    live.tick(later(1.5))
    assert live.must_end["s1"].cause == "grant expired"


def test_sessions_beyond_the_limit_are_counted_not_kept() -> None:
    live = LiveSessions(Registry(), 1, 10)
    live.apply(opened("s1"), GATEWAY, BOOT, START)
    live.apply(opened("s2"), GATEWAY, BOOT, START)
    assert (len(live.sessions), live.untracked) == (1, 1)


# -- gateways that are gone --------------------------------------------------------------------------------------------------------


def test_a_gateway_with_a_control_connection_is_not_gone_however_silent(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    for second in range(0, 3_600, 60):
        assert live.looked("shop", {**ours("s1"), **CONTROL}, ORPHAN_US, later(second)) == []


def test_sessions_of_a_gateway_without_a_control_connection_are_orphans_after_the_bound(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(1)) == []
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(10.9)) == []
    (orphan,) = live.looked("shop", ours("s1"), ORPHAN_US, later(11))
    assert (orphan.session.id, orphan.there, orphan.missed) == ("s1", True, later(1))
    (gone,) = live.looked("shop", {}, ORPHAN_US, later(12))
    assert not gone.there


def test_a_connection_that_came_back_or_a_look_that_failed_begins_the_time_anew(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    live.looked("shop", ours("s1"), ORPHAN_US, later(1))
    live.looked("shop", {**ours("s1"), **CONTROL}, ORPHAN_US, later(5))
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(12)) == []
    live.blind("shop")
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(23)) == []
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(33)) != []


def test_a_gateway_that_records_is_not_gone_even_without_a_control_connection(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    live.looked("shop", ours("s1"), ORPHAN_US, later(1))
    live.apply(GatewayReported(1, GATEWAY, BOOT, 1, True, 0, "", 0, 0, 0, 0, 1, 0, 0, 0, 0, 0), GATEWAY, BOOT, later(9))
    assert live.looked("shop", ours("s1"), ORPHAN_US, later(12)) == []


def test_a_backend_that_bears_another_name_is_left_alone(live: LiveSessions) -> None:
    """A pid and a start that fit are not enough: the stamp must be the session's."""
    live.apply(opened(), GATEWAY, BOOT, START)
    for name in ("psql", "pgwarden/worker/s2", "other/worker/s1", ""):
        live.blind("shop")
        live.looked("shop", {(4711, 77): name}, ORPHAN_US, later(1))
        assert live.looked("shop", {(4711, 77): name}, ORPHAN_US, later(60)) == []
        assert live.strangers == {"s1"}
    live.looked("shop", {(4711, 77): "psql", **CONTROL}, ORPHAN_US, later(61))
    assert live.strangers == frozenset()


def test_another_process_under_the_same_number_is_not_the_sessions(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    other = {(4711, 78): stamped_application_name("worker", "s1")}
    live.looked("shop", other, ORPHAN_US, later(1))
    (orphan,) = live.looked("shop", other, ORPHAN_US, later(60))
    assert not orphan.there


def test_another_boots_connection_does_not_stand_for_this_one(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    others = {(1, 1): control_name(GATEWAY, BOOT + 1), (2, 1): control_name("gateway-2", BOOT)}
    live.looked("shop", {**ours("s1"), **others}, ORPHAN_US, later(1))
    assert len(live.looked("shop", {**ours("s1"), **others}, ORPHAN_US, later(12))) == 1


def test_a_gateway_from_before_boots_stood_in_the_name_may_be_any(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    old = {(1, 1): "pgwarden/control"}
    live.looked("shop", {**ours("s1"), **old}, ORPHAN_US, later(1))
    assert live.looked("shop", {**ours("s1"), **old}, ORPHAN_US, later(99)) == []


@pytest.mark.parametrize(
    "over", [GatewayStarted(START.wall_us, GATEWAY, BOOT + 5, "1"), GatewayStopped(START.wall_us, GATEWAY, BOOT)]
)
def test_what_an_earlier_boot_left_is_forgotten_once_its_backend_is_gone(
    live: LiveSessions, over: GatewayStarted | GatewayStopped
) -> None:
    live.apply(opened("s1"), GATEWAY, BOOT, START)
    live.apply(opened("s2", pid=4712), GATEWAY, BOOT, START)
    live.apply(over, GATEWAY, over.boot, START)
    live.looked("shop", ours("s1"), ORPHAN_US, later(1))
    assert set(live.sessions) == {"s1"}
    (orphan,) = live.looked("shop", ours("s1"), ORPHAN_US, later(12))
    assert orphan.there


def test_events_that_come_twice_change_nothing(live: LiveSessions) -> None:
    reaped = SessionReaped(1, "s1", "worker", GATEWAY, BOOT, "gateway gone", 1, 2, 3, 4711, "", "watchdog")
    for _ in range(2):
        live.apply(opened(), GATEWAY, BOOT, START)
    live.apply(reaped, "watchdog", 1, START)
    live.apply(opened(), GATEWAY, BOOT, START)
    live.apply(closed(), GATEWAY, BOOT, START)
    assert not live.sessions
    assert live.on("shop") == 0
    assert live.connections() == frozenset()


# -- names -------------------------------------------------------------------------------------------------------------------------


def test_names_of_connections_fit_and_tell_gateways_apart() -> None:
    long = ["a" * 40 + letter for letter in "xy"] + ["gäteway", "gâteway", "a b", "a/b", ""]
    names = [control_name(gateway, BOOT) for gateway in [*long, "gateway-1", "gateway-2"]]
    names += [control_name("gateway-1", boot) for boot in (0, 1, 36, BOOT + 1, 2**63 - 1)]
    assert len(set(names)) == len(names)
    for name in [*names, watchdog_name("w" * 200), watchdog_name("watchdog")]:
        assert len(name.encode()) <= APPLICATION_NAME_BYTES_MAX
        assert name.isascii()


def test_no_agents_name_makes_a_session_look_like_a_gateway() -> None:
    session = "01a2049f7a7c1619decd"
    for agent in ("control", "control.x", "watchdog"):
        name = stamped_application_name(agent, session)
        assert bears(name, session)
        assert name != control_name(session, BOOT)
        assert name not in {control_name("gateway-1", boot) for boot in (BOOT, 0)}
    assert not bears(control_name("gateway-1", BOOT), session)


def test_the_fold_keeps_what_it_hands_out_frozen(live: LiveSessions) -> None:
    live.apply(opened(), GATEWAY, BOOT, START)
    before = live.sessions["s1"]
    assert replace(before) == before
    with pytest.raises(TypeError):
        live.sessions["s1"] = before  # type: ignore[index]
