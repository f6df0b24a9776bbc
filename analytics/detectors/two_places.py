"""One identity, at the same time from a host that it never used and from the one that it does: its key may have been copied."""

from __future__ import annotations

from typing import Final

from analytics.detectors.agent import Agent, Settings
from analytics.detectors.suspicion import Suspicion, shown

NAME: Final = "two places"
NEW_HOSTS_A_DAY_MAX: Final = 0.2  # an agent whose host changes with every run is nowhere in particular


def opened(agent: Agent, session: str, host: str, day: int, settings: Settings) -> Suspicion | None:
    others = sorted(
        {known.host for id_, known in agent.sessions.items() if id_ != session and not known.over and known.host != host}
    )
    if not agent.hosts.is_new(host, day, settings.names_max):
        return None
    expected = agent.hosts.expected(day)
    agent.hosts.took_up(day)
    if not others or agent.days < 2 or expected > NEW_HOSTS_A_DAY_MAX:
        return None
    return Suspicion(
        NAME,
        "warning",
        f"it is connected from {shown(host)}, where it had never been, while it is also connected from {shown(others[0])}",
        (("hosts_known", len(agent.hosts.names)), ("new_hosts_a_day", round(expected, 3))),
        host,
    )
