from __future__ import annotations

import pytest

from analytics.inspection import Effect, Respond
from analytics.responses import LIMITED, Responses
from analytics.settings import ResponsesSettings
from identity.commands import HoldAgent, RevokeAgent, ThrottleAgent
from ingest.events import Event, FindingRaised, FindingsMuted, FindingsUnmuted, Frame, ResponseChosen
from ingest.log import Record
from tests.analytics.scenario import MINUTE, START_US


def chosen(response: str, detector: str = "hot loop", agent: str = "a", at_us: int = START_US) -> ResponseChosen:
    return ResponseChosen(at_us, detector, agent, response, "op")


def raised(number: int = 1, at_us: int = START_US + MINUTE, detector: str = "hot loop", agent: str = "a") -> FindingRaised:
    return FindingRaised(at_us, f"f-{number}", detector, agent, "s1", "warning", "a loop", ())


def tell(responses: Responses, *events: Event, now_us: int = START_US + MINUTE) -> list[Effect]:
    frame = Frame(1, "api", 1, 1, (), tuple((-1, event) for event in events))
    return list(responses.step(Record("findings", 0, 1, now_us, b"", b""), frame, now_us))


@pytest.mark.parametrize(
    ("response", "command"),
    [("throttle", ThrottleAgent), ("approval", HoldAgent), ("revoke", RevokeAgent)],
)
def test_a_finding_is_answered_as_was_chosen_and_named(response: str, command: type) -> None:
    (effect,) = tell(Responses(ResponsesSettings()), chosen(response), raised())
    assert isinstance(effect, Respond)
    assert isinstance(effect.command, command)
    assert (effect.key, effect.command.agent, effect.command.finding) == ("finding:f-1", "a", "f-1")
    assert "f-1 (hot loop): a loop" in effect.command.reason


def test_nothing_is_answered_unless_it_was_chosen() -> None:
    assert tell(Responses(ResponsesSettings()), raised()) == []
    assert tell(Responses(ResponsesSettings()), chosen("revoke"), chosen("observe", at_us=START_US + 1), raised()) == []
    assert tell(Responses(ResponsesSettings()), chosen("revoke", agent="b"), raised()) == []
    assert tell(Responses(ResponsesSettings()), chosen("revoke", detector="volume"), raised()) == []


def test_the_closest_choice_counts() -> None:
    responses = Responses(ResponsesSettings())
    tell(responses, chosen("revoke", "*", "*"), chosen("throttle", "hot loop", "*"), chosen("observe", "hot loop", "a"))
    assert tell(responses, raised()) == []
    (for_b,) = tell(responses, raised(2, agent="b"))
    (other,) = tell(responses, raised(3, detector="volume"))
    assert isinstance(for_b, Respond)
    assert isinstance(for_b.command, ThrottleAgent)
    assert isinstance(other, Respond)
    assert isinstance(other.command, RevokeAgent)


def test_an_old_finding_that_is_read_again_is_not_answered() -> None:
    assert tell(Responses(ResponsesSettings()), chosen("revoke"), raised(), now_us=START_US + 20 * MINUTE) == []


def test_what_is_muted_is_not_answered_until_it_no_longer_is() -> None:
    responses = Responses(ResponsesSettings())
    tell(responses, chosen("revoke"), FindingsMuted(START_US, "hot loop", "*", START_US + 9 * MINUTE, "op", "why"))
    assert tell(responses, raised()) == []
    tell(responses, FindingsUnmuted(START_US + 1, "hot loop", "*", "op", ""))
    assert len(tell(responses, raised(2))) == 1


def test_a_finding_of_nobody_is_not_answered() -> None:
    assert tell(Responses(ResponsesSettings()), chosen("revoke", "*", "*"), raised(agent="")) == []


def test_beyond_so_many_an_hour_nothing_is_answered_and_that_is_told_once() -> None:
    responses = Responses(ResponsesSettings(an_hour_max=3))
    tell(responses, chosen("revoke", "*", "*"))
    effects = [effect for number in range(9) for effect in tell(responses, raised(number))]
    assert [type(effect) for effect in effects] == [Respond, Respond, Respond, FindingRaised]
    limited = effects[-1]
    assert isinstance(limited, FindingRaised)
    assert (limited.detector, limited.severity) == (LIMITED, "critical")
    assert tell(responses, replace_agent(limited)) == []  # nor does it answer itself
    later_us = START_US + 62 * MINUTE
    assert len(tell(responses, raised(10, later_us), now_us=later_us)) == 1


def replace_agent(finding: FindingRaised) -> FindingRaised:
    return FindingRaised(finding.at_us, "f-x", finding.detector, "a", "", "critical", finding.summary, ())


def test_a_restart_keeps_what_was_chosen_muted_and_answered() -> None:
    settings = ResponsesSettings(an_hour_max=2)
    before = Responses(settings)
    tell(before, chosen("revoke"), FindingsMuted(START_US, "hot loop", "b", START_US + 9 * MINUTE, "op", "why"), raised())
    after = Responses(settings)
    after.restore(before.encode())
    assert len(tell(after, raised(2))) == 1
    assert isinstance(tell(after, raised(3))[0], FindingRaised)
    with pytest.raises(ValueError, match="not what this version keeps"):
        Responses(ResponsesSettings()).restore(b"\xc1")
