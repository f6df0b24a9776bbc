"""What holds an agent back short of a revocation, and which findings do so by themselves: a fold over identity events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, assert_never

from ingest.events import AgentHeld, AgentReleased, AgentThrottled, AgentUnthrottled, ResponseChosen

ResponseKind: TypeAlias = Literal["observe", "throttle", "approval", "revoke"]
"""`approval`: the agent's statements are refused until an operator releases it."""
RESPONSES: Final[tuple[ResponseKind, ...]] = ("observe", "throttle", "approval", "revoke")
EVERY: Final = "*"  # detector, or agent

RestraintEvent: TypeAlias = ResponseChosen | AgentThrottled | AgentUnthrottled | AgentHeld | AgentReleased


@dataclass(frozen=True, slots=True)
class Throttle:
    per_minute: int  # statements, of the agent at each gateway
    at_us: int
    by: str
    reason: str
    finding: str  # "" = an operator's own


@dataclass(frozen=True, slots=True)
class Hold:
    at_us: int
    by: str
    reason: str
    finding: str


@dataclass(frozen=True, slots=True)
class Chosen:
    response: ResponseKind
    at_us: int
    by: str


class Restraints:
    """As the registry: events of one agent come in their order, and one that comes twice changes nothing."""

    def __init__(self) -> None:
        self._throttles: dict[str, Throttle] = {}
        self._holds: dict[str, Hold] = {}
        self._chosen: dict[tuple[str, str], Chosen] = {}
        self._newest_us: dict[tuple[str, str], int] = {}  # of what is said of an agent, throttles and holds apart
        self.throttles: Mapping[str, Throttle] = MappingProxyType(self._throttles)
        self.holds: Mapping[str, Hold] = MappingProxyType(self._holds)
        self.chosen: Mapping[tuple[str, str], Chosen] = MappingProxyType(self._chosen)

    def apply(self, event: RestraintEvent) -> bool:
        """False when it told nothing new."""
        match event:
            case ResponseChosen():
                name = (event.detector, event.agent)
                if (known := self._chosen.get(name)) is not None and event.at_us <= known.at_us:
                    return False
                self._chosen[name] = Chosen(response_kind(event.response), event.at_us, event.operator)
            case AgentThrottled():
                if not self._is_newer("throttle", event.agent, event.at_us):
                    return False
                self._throttles[event.agent] = Throttle(event.per_minute, event.at_us, event.operator, event.reason, event.finding)
            case AgentUnthrottled():
                if not self._is_newer("throttle", event.agent, event.at_us):
                    return False
                self._throttles.pop(event.agent, None)
            case AgentHeld():
                if not self._is_newer("hold", event.agent, event.at_us):
                    return False
                self._holds[event.agent] = Hold(event.at_us, event.operator, event.reason, event.finding)
            case AgentReleased():
                if not self._is_newer("hold", event.agent, event.at_us):
                    return False
                self._holds.pop(event.agent, None)
            case _:
                assert_never(event)
        return True

    def _is_newer(self, kind: str, agent: str, at_us: int) -> bool:
        if at_us <= self._newest_us.get((kind, agent), 0):
            return False
        self._newest_us[(kind, agent)] = at_us
        return True

    def response(self, detector: str, agent: str) -> ResponseKind:
        """What was chosen most closely: for both, for the detector, for the agent, for all; `observe` where nothing was."""
        for name in ((detector, agent), (detector, EVERY), (EVERY, agent), (EVERY, EVERY)):
            if (chosen := self._chosen.get(name)) is not None:
                return chosen.response
        return "observe"


def response_kind(text: str) -> ResponseKind:
    """A response that a later version added and this one cannot give is only observed."""
    return next((response for response in RESPONSES if response == text), "observe")
