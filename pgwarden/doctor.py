"""Which collectors can run here, why not, and what to do: asked of the server, the files and the kernel, and proven by a canary.

Where the collectors run, it asks them: a look of its own would be one more session that no gateway opened.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ingest.clock import now_us
from ingest.collectors import kernel
from ingest.collectors.canary import CanaryFailed, Server, canary
from ingest.collectors.collector import Collector, Observation
from ingest.collectors.ebpf.running import servers
from ingest.collectors.server_settings import shortcomings
from ingest.collectors.sight import NOT_YET, Sight
from ingest.events import WitnessConnected
from pgwarden.collector_process import collector_of, connector
from pgwarden.config import CollectorConfig, Config
from pgwarden.neighbours import ask

BEGIN_SECONDS: Final = 0.5  # until a collector has looked once
SEEN_SECONDS_MAX: Final = 5.0
_VERSION_MIN: Final = {"jsonlog": 150000, "csvlog": 140000}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    name: str  # of the collector's table; "" of a kind that is not configured
    kind: str
    server: str
    sees: str
    works: bool
    reasons: tuple[str, ...]  # why it does not, each with what to do
    dim: tuple[str, ...] = ()  # what it sees late, or in less detail


def look(config: Config | None) -> Sequence[Diagnosis]:
    """One for each collector that is configured, and one for each kind that is not."""
    return asyncio.run(_look(config))


async def _look(config: Config | None) -> Sequence[Diagnosis]:
    collectors: Mapping[str, CollectorConfig] = config.collectors if config is not None else {}
    found: list[Diagnosis] = []
    if config is not None and collectors:
        running = await ask(config.state, "collector")
        told = running.status.get("collectors") if running.status is not None else None
        if isinstance(told, list):
            found = [_told(one) for one in told if isinstance(one, dict)]
        else:
            found = list(await asyncio.gather(*(_diagnosis(one, config) for one in collectors.values())))
    kinds = {one.kind for one in collectors.values()}
    if "log" not in kinds:
        found.append(
            _unset("log", 'write [collectors.NAME] with kind = "log": it needs log_statement = all, and leave to read the files')
        )
    if "ebpf" not in kinds:
        hinders, here = _hinders_ebpf(), servers()
        if not hinders and not kernel.may_attach():
            hinders = ["it needs CAP_SYS_ADMIN: run pgwarden witness as root, beside the server"]
        able = "; ".join(f"PostgreSQL {one.major} at {one.data}" for one in here if one.major)
        hinders = hinders or [f'nothing hinders it ({able}): run pgwarden witness, and write [collectors.NAME] with kind = "ebpf"']
        found.append(_unset("ebpf", *hinders))
    if "activity" not in kinds:
        found.append(_unset("activity", 'write [collectors.NAME] with kind = "activity": it needs a role with pg_monitor'))
    return found


def sufficient(found: Sequence[Diagnosis]) -> bool:
    """Whether statements are seen, or would be."""
    return any(one.works and one.sees == "statements" for one in found)


def _unset(kind: str, *reasons: str) -> Diagnosis:
    return Diagnosis("", kind, "", "sessions" if kind == "activity" else "statements", False, ("it is not configured", *reasons))


def _told(said: Mapping[str, object]) -> Diagnosis:
    reason, dim = str(said.get("reason", "")), said.get("dim")
    return Diagnosis(
        str(said.get("name", "")),
        str(said.get("kind", "")),
        str(said.get("server", "")),
        str(said.get("sees", "")),
        not reason,
        (reason,) if reason else (),
        tuple(str(one) for one in dim) if isinstance(dim, list) else (),
    )


def _hinders_ebpf() -> list[str]:
    """Of this machine: its kernel, and its servers' binaries."""
    found = [str(one) for one in kernel.lacks()]
    here = servers()
    if not here:
        found.append("no PostgreSQL runs on this machine: run pgwarden witness on the machine of the server")
    found += [f"the server of process {one.pid} {one.data}".rstrip() + f": {one.reason}" for one in here if not one.major]
    return found


class _Seen:
    """An outlet that keeps nothing: what is seen now is no record."""

    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        self._sight.told(observations)
        return 0

    async def recorded(self, ticket: int) -> None:
        del ticket


async def _diagnosis(one: CollectorConfig, config: Config) -> Diagnosis:
    with tempfile.TemporaryDirectory(prefix="pgwarden-doctor-") as folder:
        # Only what comes, and a place of its own: the collector's checkpoint is nobody else's.
        connect = connector(one, config.connections)
        collector = collector_of(replace(one, from_start=False), Path(folder), connect)
        sight = Sight(collector.sees, now_us(), SEEN_SECONDS_MAX)
        task = asyncio.create_task(collector.run(_Seen(sight)))
        server: Server | None = None
        try:
            await asyncio.sleep(BEGIN_SECONDS)
            async with canary(connect, "doctor") as bird:
                server = await bird.server()
                sight.sent(now_us(), bird.session.session_id, bird.digest)
                await bird.send()
                await bird.server()  # the next statement shows how the canary ended
                await _until_seen(sight)
        except CanaryFailed as error:
            sight.not_sent(str(error))
        finally:
            task.cancel()
            await asyncio.wait((task,))
    return _judged(one, collector, sight, server)


def _judged(one: CollectorConfig, collector: Collector, sight: Sight, server: Server | None) -> Diagnosis:
    reasons: list[str] = []
    dim: list[str] = []
    if server is not None and one.kind == "log":
        if server.version < _VERSION_MIN[one.format]:
            reasons.append(f"the server is PostgreSQL {server.version // 10000}: {one.format} needs 15, and csvlog 14")
        for found in shortcomings(one.format, server.settings, server.overrides):
            (reasons if found.blinds else dim).append(str(found))
    reason = sight.reason(collector.state(), now_us() + int(SEEN_SECONDS_MAX * 2e6))
    if reason not in ("", NOT_YET) and not (reasons and reason.startswith("a canary")):
        reasons.append(reason)
        if one.kind == "ebpf":
            reasons += _hinders_ebpf()
    if one.kind == "ebpf":
        dim += [f"probes of {', '.join(at.stepped)} cost ten times as much as others" for at in servers() if at.stepped]
    return Diagnosis(one.name, one.kind, one.server, collector.sees, not reasons, tuple(reasons), tuple(dim))


async def _until_seen(sight: Sight) -> None:
    for _ in range(int(SEEN_SECONDS_MAX / 0.05)):
        if not sight.waits:
            return
        await asyncio.sleep(0.05)
