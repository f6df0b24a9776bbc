from __future__ import annotations

import pytest

from analytics.nobody import UNANSWERED
from identity.commands import (
    Accepted,
    ChooseResponse,
    Command,
    Fresh,
    HoldAgent,
    Known,
    Rejected,
    ReleaseAgent,
    Requests,
    RevokeAgent,
    Settings,
    ThrottleAgent,
    UnthrottleAgent,
    decide,
)
from identity.registry import Registry
from identity.restraints import Hold, Restraints, Throttle
from ingest.events import AgentHeld, AgentRegistered, AgentReleased, AgentRetired, AgentRevoked, AgentThrottled, ResponseChosen

NOW_US = 1_000_000
SETTINGS = Settings()
KNOWN = Known(frozenset({"shop"}), {}, frozenset({"hot loop", *UNANSWERED}), UNANSWERED)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for number, agent in enumerate(("a", "b", "gone")):
        registry.apply(AgentRegistered(1 + number, agent, "", "team", "", "", "", "", "", "op"))
    registry.apply(AgentRetired(9, "gone", "over", "op"))
    return registry


def said(registry: Registry, command: Command, settings: Settings = SETTINGS) -> Accepted | Rejected:
    verdict = decide(command, "", "olga", registry, Requests(10), KNOWN, Fresh(), NOW_US, settings)
    assert not isinstance(verdict, Accepted) or registry.apply(verdict.event)
    assert isinstance(verdict, Accepted | Rejected)
    return verdict


def test_a_hold_stands_until_it_is_released(registry: Registry) -> None:
    assert isinstance(said(registry, HoldAgent("a", "odd", "f-1")), Accepted)
    assert registry.restraints.holds["a"] == Hold(NOW_US, "olga", "odd", "f-1")
    assert "b" not in registry.restraints.holds
    assert isinstance(said(registry, ReleaseAgent("a", "")), Accepted)
    assert not registry.restraints.holds
    assert isinstance(said(registry, ReleaseAgent("a", "")), Rejected)


def test_a_throttle_is_changed_and_taken_back(registry: Registry) -> None:
    said(registry, ThrottleAgent("a", 60, "fast"))
    said(registry, ThrottleAgent("a", 30, "still"))
    assert registry.restraints.throttles["a"] == Throttle(30, NOW_US + 1, "olga", "still", "")
    assert isinstance(said(registry, UnthrottleAgent("a", "")), Accepted)
    assert not registry.restraints.throttles
    assert isinstance(said(registry, UnthrottleAgent("a", "")), Rejected)


def test_a_revocation_names_the_finding_that_it_answers(registry: Registry) -> None:
    verdict = said(registry, RevokeAgent("a", "odd", "f-1"))
    assert isinstance(verdict, Accepted)
    assert isinstance(verdict.event, AgentRevoked)
    assert verdict.event.finding == "f-1"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (HoldAgent("nobody", "odd"), "missing"),
        (HoldAgent("gone", "odd"), "conflict"),
        (HoldAgent("a", " "), "invalid"),
        (HoldAgent("a", "\x1b[2J"), "invalid"),
        (ThrottleAgent("a", 0, "fast"), "invalid"),
        (ThrottleAgent("a", 100_001, "fast"), "invalid"),
        (ChooseResponse("hot lop", "a", "revoke"), "invalid"),
        (ChooseResponse("hot loop", "nobody", "revoke"), "invalid"),
        (ChooseResponse("hot loop", "a", "kill"), "invalid"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(registry: Registry, command: Command, kind: str) -> None:
    verdict = said(registry, command)
    assert isinstance(verdict, Rejected)
    assert verdict.kind == kind


def test_no_response_is_chosen_for_what_is_no_agents_and_the_refusal_says_what_to_set(registry: Registry) -> None:
    for response in ("throttle", "approval", "revoke"):
        for agent in ("*", "a"):
            verdict = said(registry, ChooseResponse("shadow", agent, response))
            assert isinstance(verdict, Rejected)
            assert verdict.kind == "invalid"
            assert "kill_shadow = true under [reconcile]" in verdict.error
    assert isinstance(said(registry, ChooseResponse("response limit", "*", "revoke")), Rejected)
    assert isinstance(said(registry, ChooseResponse("shadow", "*", "observe")), Accepted)  # takes an older choice back


def test_the_closest_choice_counts(registry: Registry) -> None:
    for detector, agent, response in (("*", "*", "revoke"), ("*", "a", "throttle"), ("hot loop", "*", "approval")):
        assert isinstance(said(registry, ChooseResponse(detector, agent, response)), Accepted)
    restraints = registry.restraints
    assert restraints.response("hot loop", "a") == "approval"
    assert restraints.response("volume", "a") == "throttle"
    assert restraints.response("volume", "b") == "revoke"
    assert Restraints().response("volume", "b") == "observe"
    full = said(registry, ChooseResponse("hot loop", "b", "revoke"), Settings(responses_max=3))
    assert isinstance(full, Rejected)


def test_what_was_seen_before_changes_nothing() -> None:
    restraints = Restraints()
    events = (
        AgentHeld(1, "a", "odd", "op"),
        AgentReleased(2, "a", "", "op"),
        AgentThrottled(3, "a", 60, "fast", "op"),
        ResponseChosen(4, "x", "a", "revoke", "op"),
        ResponseChosen(5, "x", "a", "unheard of", "op"),
    )
    assert all(restraints.apply(event) for event in events)
    assert not any(restraints.apply(event) for event in events)
    assert not restraints.holds
    assert restraints.response("x", "a") == "observe"  # what only a later version can do is not done
