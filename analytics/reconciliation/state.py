"""What reconciliation holds: sessions as their gateways opened them and as servers had them, statements that wait, and who looked.

`State` is kept through a restart, so a field is added with a default and never renamed. All of it is bounded by ReconcileSettings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from analytics.inspection import Effect
from analytics.reconciliation.alignment import Observed, Recorded, Text
from analytics.reconciliation.witnessed import Witness
from analytics.settings import ReconcileSettings
from identity.sources import Source, Sources

SECOND: Final = 1_000_000
COUNTED: Final = (
    "sessions_seen",
    "sessions_audited",
    "sessions_ours",
    "sessions_declared",
    "sessions_shadow",
    "sessions_hijacked",
    "sessions_unexplained",
    "statements_seen",
    "statements_matched",
    "unaudited",
    "phantom",
    "miscounted",
    "never_began",
    "statements_not_seen_by_one",
    "statements_not_compared",
    "statements_beyond_the_limit",
    "statements_passed_over",
    "waiting_limit_reached",
    "texts_forgotten",
    "live_sessions_forgotten",
    "own_backends_forgotten",
)
"""All that is counted, by the names that GET /v1/coverage tells."""


@dataclass(slots=True)
class Lane:
    """One collector's sight of one gateway session."""

    recorded: list[Recorded] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)
    newest: int = -1  # the highest `sequence`
    over: bool = False  # it has told the session's end
    ignore_us: int = 0  # what it saw up to then was beyond the limit
    begun: dict[int, Recorded] = field(default_factory=dict)  # matched by a begin alone: the end may be told later
    unaudited: dict[str, int] = field(default_factory=dict)  # by digest, so that two collectors name the same one alike

    @property
    def waiting(self) -> int:
        return len(self.recorded) + len(self.observed)


@dataclass(slots=True)
class Opened:
    """A session that a gateway opened."""

    session: str
    agent: str
    connection: str
    session_id: str
    role: str
    upstream_port: int
    gateway: str
    at_us: int
    place: str
    event: str
    closed_us: int = 0  # when its end was seen here
    denied: int = 0
    texts: dict[int, Text] = field(default_factory=dict)
    defined: dict[str, int] = field(default_factory=dict)
    lanes: dict[str, Lane] = field(default_factory=dict)  # by collector
    open: dict[int, Recorded] = field(default_factory=dict)  # executions without an end
    waiting: dict[int, list[str]] = field(default_factory=dict)  # by execution: collectors that have not told of it
    told: dict[str, int] = field(default_factory=dict)  # findings, by kind
    miscounted: dict[int, int] = field(default_factory=dict)  # executions that are told, whoever saw them
    boot: int = 0  # of the gateway; 0 while only what ran in it was told, which a later boot may tell of


@dataclass(slots=True)
class Own:
    """A backend that is nobody's session, by the word of the process that opened it."""

    who: str
    connection: str  # "" for a collector's, which names the server
    server: str
    session_id: str  # "" where its start was not known
    backend_pid: int
    upstream_port: int
    at_us: int
    gateway: str  # "" = not a gateway's
    boot: int = 0  # of that gateway


@dataclass(slots=True)
class Seen:
    """A session of a server, by all who saw it."""

    server: str
    session_id: str
    user: str
    database: str
    client: str
    application_name: str
    backend_type: str
    backend_pid: int
    client_pid: int
    client_start_us: int
    client_uid: int
    client_exe: str
    at_us: int
    seen_us: int
    place: str
    event: str
    ended_us: int = 0
    verdict: str = ""
    finding: str = ""
    ordered: bool = False
    early: list[tuple[str, Observed]] = field(default_factory=list)  # what it ran, before a gateway's word of it
    unkept_us: int = 0  # the newest of what was not kept of that


@dataclass(slots=True)
class State:
    sources: list[Source] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)  # `server` "/" name
    opened: dict[str, Opened] = field(default_factory=dict)  # by the gateway's name for it
    by_place: dict[str, str] = field(default_factory=dict)  # connection "/" session_id -> session
    seen: dict[str, Seen] = field(default_factory=dict)  # server "/" session_id
    own: list[Own] = field(default_factory=list)
    roles: dict[str, int] = field(default_factory=dict)  # connection "/" role, as gateways log in
    hosts: dict[str, int] = field(default_factory=dict)  # server "/" address that gateways come from
    processes: dict[str, tuple[int, int]] = field(default_factory=dict)  # server "/" gateway "/" boot -> pid and start
    reports: dict[str, tuple[int, int]] = field(default_factory=dict)  # gateway -> up to when its record is whole; when it said so
    written: int = 0  # when a gateway last wrote anything
    since_us: int = 0  # the record's first moment: what began before it may be anybody's
    forgotten_us: int = 0  # sessions of gateways that were opened up to then are not all remembered
    counts: dict[str, int] = field(default_factory=dict)


class Held:
    """The state, and what is made anew from it; owned by one step, which hands it to whatever has a question to answer."""

    def __init__(self, settings: ReconcileSettings) -> None:
        self.settings = settings
        self.state = State()
        self.sources = Sources()
        self.pending: dict[str, None] = {}  # sessions of servers without a verdict
        self.busy: dict[str, None] = {}  # sessions of gateways with something to be explained
        self.effects: list[Effect] = []  # that were not given out
        self.now_us = 0
        self._eyes: dict[tuple[str, str], list[Witness]] = {}  # as `eyes` gives them
        self._servers: dict[str, list[str]] = {}
        self._connections: dict[str, list[str]] = {}
        self._own: dict[int, list[Own]] = {}  # those of state.own, by pid
        self.waiting = 0  # statements, over all lanes and all that is early; whoever adds or takes off says so

    def encode(self) -> bytes:
        self.state.sources = list(self.sources.all.values())
        return msgspec.msgpack.encode(self.state)

    def restore(self, data: bytes) -> None:
        """Take up what `encode` gave.

        Raises:
            ValueError: It is no such thing.
        """
        try:
            self.state = msgspec.msgpack.decode(data, type=State)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"the state of reconcile cannot be read: {error}") from error
        self.sources = Sources(self.state.sources)
        self.pending = dict.fromkeys(key for key, seen in self.state.seen.items() if not seen.verdict)
        self.busy = dict.fromkeys(self.state.opened)
        self.waiting = sum(lane.waiting for opened in self.state.opened.values() for lane in opened.lanes.values())
        self.waiting += sum(len(seen.early) for seen in self.state.seen.values())
        self._own = {}
        for own in self.state.own:
            self._own.setdefault(own.backend_pid, []).append(own)
        self.witnesses_changed()

    def count(self, what: str, more: int = 1) -> None:
        self.state.counts[what] = self.state.counts.get(what, 0) + more

    # -- who looks at what -----------------------------------------------------------------------------------------------------

    def witness(self, name: str, server: str) -> Witness | None:
        return self.state.witnesses.get(f"{server}/{name}")

    def witnesses_changed(self) -> None:
        """One came, or looks at other connections: to be called before anything is asked of them."""
        self._eyes, self._servers, self._connections = {}, {}, {}

    def eyes(self, witness: str, connection: str) -> list[Witness]:
        """The collectors of this name that look at the connection: one for each server of it."""
        key = (witness, connection)
        if (known := self._eyes.get(key)) is None:
            witnesses = self.state.witnesses.values()
            known = self._eyes[key] = [one for one in witnesses if one.name == witness and connection in one.connections]
        return known

    def servers_of(self, connection: str) -> list[str]:
        if (known := self._servers.get(connection)) is None:
            looking = {one.server for one in self.state.witnesses.values() if connection in one.connections}
            known = self._servers[connection] = sorted(looking)
        return known

    def connections_of(self, server: str) -> list[str]:
        if (known := self._connections.get(server)) is None:
            looked_at = {name for one in self.state.witnesses.values() if one.server == server for name in one.connections}
            known = self._connections[server] = sorted(looked_at)
        return known

    def gateways(self, server: str, name: str) -> Opened | None:
        """The session that a gateway opened under this name on one of the server's connections."""
        for connection in self.connections_of(server):
            session = self.state.by_place.get(f"{connection}/{name}")
            if session is not None:
                return self.state.opened[session]
        return None

    # -- our own backends ------------------------------------------------------------------------------------------------------

    def add_own(self, own: Own) -> None:
        """The oldest is forgotten beyond `sessions_max`."""
        self.state.own.append(own)
        self._own.setdefault(own.backend_pid, []).append(own)
        if len(self.state.own) > self.settings.sessions_max:
            oldest = self.state.own.pop(0)
            alike = self._own[oldest.backend_pid]
            del alike[0]  # they stand in the same order
            if not alike:
                del self._own[oldest.backend_pid]
            self.count("own_backends_forgotten")

    def own_of(self, backend_pid: int) -> Sequence[Own]:
        """Those that had this pid, the oldest first."""
        return self._own.get(backend_pid, ())

    # -- what may still come ---------------------------------------------------------------------------------------------------

    def late(self, since_us: int) -> bool:
        return self.now_us - since_us >= self.settings.lateness_seconds * SECOND

    def record_is_whole(self, gateway: str, at_us: int) -> bool:
        """Whether all that this gateway had to tell up to then is in the log. Where the log is not Kafka, it is after a moment."""
        whole_us, _ = self.state.reports.get(gateway, (at_us, 0))
        return whole_us >= at_us or self.now_us - at_us >= self.settings.record_lateness_seconds_max * SECOND

    # -- memory ----------------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """What ended first goes first, beyond `sessions_max` of each side."""
        most = self.settings.sessions_max
        if len(self.state.opened) > most:
            over = sorted(self.state.opened.values(), key=lambda one: (not one.closed_us, one.closed_us or one.at_us, one.session))
            for opened in over[: len(self.state.opened) - most]:
                if not opened.closed_us:
                    self.count("live_sessions_forgotten")
                self.state.forgotten_us = max(self.state.forgotten_us, opened.at_us)
                self.waiting -= sum(lane.waiting for lane in opened.lanes.values())
                del self.state.opened[opened.session]
                self.state.by_place.pop(f"{opened.connection}/{opened.session_id}", None)
                self.busy.pop(opened.session, None)
        if len(self.state.seen) > most:
            gone = sorted(
                self.state.seen.items(), key=lambda item: (not item[1].ended_us, item[1].ended_us or item[1].at_us, item[0])
            )
            for key, seen in gone[: len(self.state.seen) - most]:
                self.waiting -= len(seen.early)
                del self.state.seen[key]
                self.pending.pop(key, None)
