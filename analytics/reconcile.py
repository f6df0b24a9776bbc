"""The gateways' record held against what collectors saw: verdicts on sessions, and findings where the two differ.

A session is known on both sides by its server and by PostgreSQL's own name for it, hex(start) "." hex(pid), which no client can
choose. What a session calls itself (application_name) proves nothing: it makes us wait longer for its gateway's word, and no more.

Both sides may be late, and neither is believed to be silent before its time: a collector tells by its watermark up to when its
word is whole, a gateway's word stands in the log a moment after what it tells of, or with the brokers, of which it tells itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

import msgspec

from analytics.alignment import Context, Explained, Observed, Pair, Recorded, Text, Unrecorded, Unseen, agrees, explain, heads
from analytics.inspection import Effect
from analytics.settings import ReconcileSettings
from analytics.witnessed import Witness
from identity.sources import Connection, Source, Sources, address
from ingest.collectors.collector import digest, session_id
from ingest.events import (
    BackendEndOrdered,
    BackendOpened,
    Event,
    FindingRaised,
    FindingRecurred,
    Frame,
    GatewayReported,
    GatewayStopped,
    ObservationGap,
    OutcomeResolved,
    SessionClosed,
    SessionJudged,
    SessionObserved,
    SessionOpened,
    SessionUnobserved,
    SourceDeclared,
    SourceWithdrawn,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementStarted,
    Topic,
    WatchdogConnected,
    WitnessBlinded,
    WitnessConnected,
    WitnessReported,
    WitnessRestored,
    WitnessStarted,
    WitnessStopped,
)
from ingest.frames import event_id
from ingest.log import Record

_Statement: TypeAlias = StatementDefined | StatementStarted | StatementFinished | StatementDenied | OutcomeResolved
Verdict: TypeAlias = str
HOSTS_MAX: Final = 1_000  # addresses of gateways
FINAL: Final = frozenset({"audited", "ours", "hijacked"})  # what comes later changes nothing of these
_SERVERS_OWN: Final = ("", "client backend", "walsender")  # all other backend types are PostgreSQL's processes
_NAMED_OURS: Final = "pgwarden/"
_SECOND: Final = 1_000_000
_NEAR_US: Final = 60 * _SECOND  # between a backend's start and the word of whoever opened it without knowing the start
_SAME_START_US: Final = 2 * _SECOND  # a process's start is the boot's, turned into wall clock at different moments
_START_US: Final = 2 * _SECOND  # around a collector's start nothing is claimed
_TAG_ROWS: Final = re.compile(r"[A-Z ]+(?:0 )?([0-9]{1,18})")
SEVERITY: Final = {
    "shadow": "critical",
    "hijacked": "critical",
    "unaudited": "critical",
    "phantom": "critical",
    "miscounted": "warning",
}


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
    processes: dict[str, tuple[int, int]] = field(default_factory=dict)  # server "/" gateway -> pid and start of its process
    reports: dict[str, tuple[int, int]] = field(default_factory=dict)  # gateway -> up to when its record is whole; when it said so
    written: int = 0  # when a gateway last wrote anything
    since_us: int = 0  # the record's first moment: what began before it may be anybody's
    forgotten_us: int = 0  # sessions of gateways that were opened up to then are not all remembered
    counts: dict[str, int] = field(default_factory=dict)


class Reconcile:
    """An inspection step; see analytics/inspection.py. One a process."""

    name = "reconcile"
    version = 1
    topics: tuple[Topic, ...] = ("identity", "sessions", "statements", "observations", "witness")

    def __init__(self, settings: ReconcileSettings) -> None:
        self._settings = settings
        self._state = State()
        self._sources = Sources()
        self._pending: dict[str, None] = {}  # sessions of servers without a verdict
        self._busy: dict[str, None] = {}  # sessions of gateways with something to be explained
        self._effects: list[Effect] = []
        self._unordered = False
        self._now_us = 0

    # -- the shell's side ------------------------------------------------------------------------------------------------------

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        self._now_us = now_us
        if not self._state.since_us:
            self._state.since_us = record.at_us
        if record.topic in ("sessions", "statements"):
            self._state.written = max(self._state.written, record.at_us)
        place = f"{record.topic}/{record.partition}/{record.offset}"
        for index, (stamp, event) in enumerate(frame.events):
            self._take(event, frame.stamps[stamp] if stamp >= 0 else None, frame, index, place, record.at_us)
        return self._given_out()

    def tick(self, now_us: int) -> Sequence[Effect]:
        self._now_us = now_us
        if self._unordered:  # judged before this was wanted
            self._unordered = False
            for seen in self._state.seen.values():
                if seen.verdict in ("shadow", "hijacked") and self._gateways(seen.server, seen.session_id) is None:
                    self._order(seen)
        for key in list(self._pending):
            self._judge(key)
        for session in list(self._busy):
            self._compare(session)
        self._forget()
        return self._given_out()

    def encode(self) -> bytes:
        self._state.sources = list(self._sources.all.values())
        return msgspec.msgpack.encode(self._state)

    def restore(self, data: bytes) -> None:
        try:
            self._state = msgspec.msgpack.decode(data, type=State)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"the state of reconcile cannot be read: {error}") from error
        self._sources = Sources(self._state.sources)
        self._pending = dict.fromkeys(key for key, seen in self._state.seen.items() if not seen.verdict)
        self._busy = dict.fromkeys(self._state.opened)
        self._unordered = self._settings.kill_shadow

    def status(self) -> dict[str, int]:
        """How much is held, and what was counted: of sessions and statements, and of what was beyond a limit."""
        return {
            "gateway_sessions": len(self._state.opened),
            "server_sessions": len(self._state.seen),
            "without_verdict": len(self._pending),
            **self._state.counts,
        }

    def _given_out(self) -> Sequence[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _count(self, what: str, more: int = 1) -> None:
        self._state.counts[what] = self._state.counts.get(what, 0) + more

    # -- events ----------------------------------------------------------------------------------------------------------------

    def _take(self, event: Event, stamp: Stamp | None, frame: Frame, index: int, place: str, record_us: int) -> None:
        match event:
            case SourceDeclared():
                self._sources.declared(event)
            case SourceWithdrawn():
                self._sources.withdrawn(event)
            case SessionOpened():
                self._opened(event.stamp, event.at_us, frame.writer, place, event_id(frame, index))
            case SessionClosed():
                if (opened := self._state.opened.get(event.session)) is not None and not opened.closed_us:
                    opened.closed_us = self._now_us
                    self._busy[event.session] = None
            case BackendOpened():
                self._own_backend(
                    Own(
                        f"gateway {event.gateway}: {event.purpose}",
                        event.connection,
                        "",
                        session_id(event.backend_start_us, event.backend_pid) if event.backend_start_us else "",
                        event.backend_pid,
                        event.upstream_port,
                        event.at_us,
                        event.gateway if event.purpose == "control" else "",
                    ),
                    event.role,
                )
            case WatchdogConnected():
                name = session_id(event.backend_start_us, event.backend_pid) if event.backend_start_us else ""
                who = f"watchdog {event.watchdog}"
                own = Own(who, event.connection, "", name, event.backend_pid, event.upstream_port, event.at_us, "")
                self._own_backend(own, event.role)
            case WitnessConnected():
                who = f"collector {event.witness}: {event.purpose}"
                own = Own(who, "", event.server, event.session_id, event.backend_pid, 0, event.at_us, "")
                self._own_backend(own, "")
            case StatementDefined() | StatementStarted() | StatementFinished() | StatementDenied() | OutcomeResolved():
                if stamp is not None:
                    # Its opening may stand in another partition and come later; the stamp says all that is needed of it.
                    opened = self._opened(stamp, record_us, frame.writer, place, event_id(frame, index))
                    if opened.lanes:
                        self._statement(event, opened, place)
            case GatewayReported():
                whole_us = event.at_us if not event.backlog_bytes and not event.pending_bytes else 0
                self._state.reports[event.gateway] = (
                    max(whole_us, self._state.reports.get(event.gateway, (0, 0))[0]),
                    self._now_us,
                )
            case GatewayStopped():
                self._state.reports.pop(event.gateway, None)
            case WitnessStarted():
                self._witness_started(event)
            case WitnessStopped():
                self._witness_stopped(event)
            case WitnessReported():
                self._witness_reported(event)
            case WitnessBlinded():
                if (witness := self._witness(event.witness, event.server)) is not None:
                    witness.blinded(event.since_us, event.reason)
            case WitnessRestored():
                if (witness := self._witness(event.witness, event.server)) is not None:
                    witness.restored(event.at_us)
            case ObservationGap():
                if (witness := self._witness(event.witness, event.server)) is not None:
                    witness.missed(event.from_us, event.until_us, event.session_id, event.reason)
            case SessionObserved():
                self._session_observed(event, place, event_id(frame, index))
            case SessionUnobserved():
                self._session_unobserved(event)
            case StatementObserved():
                self._statement_observed(event, place, event_id(frame, index))
            case _:
                pass

    # -- collectors ------------------------------------------------------------------------------------------------------------

    def _witness(self, name: str, server: str) -> Witness | None:
        return self._state.witnesses.get(f"{server}/{name}")

    def _witness_started(self, event: WitnessStarted) -> None:
        key = f"{event.server}/{event.witness}"
        witness = self._state.witnesses.get(key)
        if witness is None:
            witness = self._state.witnesses[key] = Witness(
                event.witness, event.kind, event.server, event.connections, event.sees == "statements"
            )
        witness.connections, witness.statements = event.connections, event.sees == "statements"
        witness.began(event.at_us, event.resumed_us)
        for opened in self._state.opened.values():
            if opened.connection in witness.connections and witness.statements and not opened.closed_us:
                # What it ran before is no lane's; what it runs in this moment may be told or not.
                opened.lanes.setdefault(witness.name, Lane(ignore_us=(event.resumed_us or event.at_us) + _START_US))

    def _witness_stopped(self, event: WitnessStopped) -> None:
        witness = self._witness(event.witness, event.server)
        if witness is None:
            return
        witness.running = False
        for opened in self._state.opened.values():
            if opened.connection in witness.connections and (lane := opened.lanes.pop(witness.name, None)) is not None:
                for ran in lane.recorded:
                    self._settled(opened, witness.name, ran, "excused")

    def _witness_reported(self, event: WitnessReported) -> None:
        if (witness := self._witness(event.witness, event.server)) is not None:
            witness.complete_us = max(witness.complete_us, event.complete_us)
            witness.reported_us = max(witness.reported_us, event.at_us)
            witness.seeing = event.seeing

    def _servers_of(self, connection: str) -> list[str]:
        return sorted({one.server for one in self._state.witnesses.values() if connection in one.connections})

    def _connections_of(self, server: str) -> list[str]:
        return sorted({name for one in self._state.witnesses.values() if one.server == server for name in one.connections})

    # -- the gateways' record --------------------------------------------------------------------------------------------------

    def _opened(self, stamp: Stamp, at_us: int, gateway: str, place: str, name: str) -> Opened:
        known = self._state.opened.get(stamp.session)
        if known is not None:
            return known
        opened = Opened(
            stamp.session,
            stamp.agent,
            stamp.connection,
            session_id(stamp.backend_start_us, stamp.backend_pid),
            stamp.role,
            stamp.upstream_port,
            gateway,
            at_us,
            place,
            name,
        )
        self._state.roles[f"{opened.connection}/{opened.role}"] = 1
        for witness in self._state.witnesses.values():
            if opened.connection in witness.connections and witness.statements and witness.running:
                opened.lanes[witness.name] = Lane()
        self._state.opened[opened.session] = opened
        self._state.by_place[f"{opened.connection}/{opened.session_id}"] = opened.session
        for server in self._servers_of(opened.connection):
            key = f"{server}/{opened.session_id}"
            seen = self._state.seen.get(key)
            if seen is not None and seen.verdict not in FINAL:
                self._judge(key)
        return opened

    def _own_backend(self, own: Own, role: str) -> None:
        self._state.own.append(own)
        if role:
            self._state.roles[f"{own.connection}/{role}"] = 1
        if len(self._state.own) > self._settings.sessions_max:
            del self._state.own[0]
            self._count("own_backends_forgotten")
        for key in list(self._pending):
            if self._state.seen[key].backend_pid == own.backend_pid:
                self._judge(key)

    def _statement(self, event: _Statement, opened: Opened, place: str) -> None:
        match event:
            case StatementDefined():
                self._defined(event, opened)
            case StatementStarted():
                self._started(event, opened, place)
            case StatementFinished():
                self._finished(event, opened)
            case StatementDenied():
                opened.denied += 1
            case OutcomeResolved():
                self._resolved(event, opened)
            case _:
                assert_never(event)

    def _defined(self, event: StatementDefined, opened: Opened) -> None:
        name = event.digest or (digest(event.text.encode("utf-8")) if event.text_mode == "full" else "")
        start = event.text[: self._settings.text_characters_max]
        opened.texts[event.statement] = Text(name, event.whole, start, event.text_bytes, event.verbs == ("PREPARE",))
        for one in (name, event.whole):
            if one:
                opened.defined[one] = 1
        while len(opened.texts) > self._settings.texts_max:
            oldest = opened.texts.pop(next(iter(opened.texts)))
            opened.defined.pop(oldest.digest, None)
            self._count("texts_forgotten")

    def _started(self, event: StatementStarted, opened: Opened, place: str) -> None:
        runs = event.rule != "empty" and not event.continues
        ran = Recorded(event.execution, event.statement, event.at_us, place, runs, bool(event.continues))
        opened.open[event.execution] = ran
        opened.waiting[event.execution] = list(opened.lanes)
        for name, lane in opened.lanes.items():
            lane.recorded.append(ran)
            self._bound(opened, name, lane)
        self._busy[opened.session] = None

    def _finished(self, event: StatementFinished, opened: Opened) -> None:
        ran = opened.open.pop(event.execution, None)
        if ran is None:
            return
        ran.outcome, ran.sqlstate = event.outcome, event.sqlstate
        ran.ended_us = ran.started_us + event.duration_us
        counted = _TAG_ROWS.fullmatch(event.tag)
        # A portal that was run in pieces tells its last piece in the tag, and the collector its first.
        ran.rows = event.rows if counted is None or int(counted[1]) == event.rows else -1
        self._busy[opened.session] = None
        self._pair(opened)

    def _resolved(self, event: OutcomeResolved, opened: Opened) -> None:
        if event.resolution != "aborted":
            return
        for lane in opened.lanes.values():
            for ran in lane.recorded:
                if ran.number == event.execution:
                    ran.undone = True

    # -- what collectors saw ---------------------------------------------------------------------------------------------------

    def _session_observed(self, event: SessionObserved, place: str, name: str) -> None:
        key = f"{event.server}/{event.session_id}"
        seen = self._state.seen.get(key)
        if seen is None:
            seen = self._state.seen[key] = Seen(
                event.server,
                event.session_id,
                event.user,
                event.database,
                event.client,
                event.application_name,
                event.backend_type,
                event.backend_pid,
                event.client_pid,
                event.client_start_us,
                event.client_uid,
                event.client_exe,
                event.at_us,
                self._now_us,
                place,
                name,
            )
            self._count("sessions_seen")
        else:
            self._more_known(key, seen, event)
        self._judge(key)

    def _session_unobserved(self, event: SessionUnobserved) -> None:
        key = f"{event.server}/{event.session_id}"
        if (seen := self._state.seen.get(key)) is not None and not seen.ended_us:
            seen.ended_us = self._now_us
        opened = self._gateways(event.server, event.session_id)
        if opened is not None and (lane := opened.lanes.get(event.witness)) is not None:
            lane.over = True
            self._busy[opened.session] = None

    def _statement_observed(self, event: StatementObserved, place: str, name: str) -> None:
        if event.source == "nested":
            return
        self._count("statements_seen")
        key = f"{event.server}/{event.session_id}"
        if key not in self._state.seen:  # it began before its collector looked
            start_us, pid = _start_and_pid(event.session_id)
            began = SessionObserved(
                start_us, event.witness, event.server, event.session_id, pid, event.user, event.database, event.client, ""
            )
            self._session_observed(began, place, name)
        observed = Observed(
            event.sequence,
            event.at_us,
            self._now_us,
            f"{place} {name}",
            event.source,
            event.digest,
            event.text[: self._settings.text_characters_max],
            event.text_bytes,
            event.rows,
            event.sqlstate,
            event.outcome_known,
        )
        opened = self._gateways(event.server, event.session_id)
        if opened is not None:
            self._observed(opened, event.witness, observed)
            return
        seen = self._state.seen[key]
        if seen.verdict in ("", "unexplained"):
            seen.early.append((event.witness, observed))
            if len(seen.early) > self._settings.statements_max:
                del seen.early[0]
                self._count("statements_beyond_the_limit")

    def _observed(self, opened: Opened, witness: str, observed: Observed) -> None:
        lane = opened.lanes.get(witness)
        if lane is None or observed.at_us <= lane.ignore_us:
            return
        if observed.sequence <= lane.newest:
            self._told_again(opened, lane, observed)
            return
        lane.newest = observed.sequence
        lane.observed.append(observed)
        self._bound(opened, witness, lane)
        self._busy[opened.session] = None
        self._pair(opened)

    def _told_again(self, opened: Opened, lane: Lane, observed: Observed) -> None:
        """A statement that was told as begun is told once more with its end; what is told twice for a restart is the same again."""
        for place, before in enumerate(lane.observed):
            if before.sequence == observed.sequence:
                if not before.known:
                    lane.observed[place] = observed
                return
        ran = lane.begun.pop(observed.sequence, None)
        if ran is not None:
            self._matched(opened, lane, Pair((ran,), observed, agrees((ran,), observed)))

    def _bound(self, opened: Opened, witness: str, lane: Lane) -> None:
        """What is beyond the limit is left out on both sides, counted, and nothing is claimed of that time."""
        most = self._settings.statements_max
        if len(lane.recorded) <= most and len(lane.observed) <= most:
            return
        self._count("statements_beyond_the_limit", len(lane.recorded) + len(lane.observed))
        for ran in lane.recorded:
            self._settled(opened, witness, ran, "excused")
        lane.ignore_us = self._now_us + _SECOND
        lane.recorded.clear()
        lane.observed.clear()

    # -- statements ------------------------------------------------------------------------------------------------------------

    def _gateways(self, server: str, name: str) -> Opened | None:
        """The session that a gateway opened under this name on one of the server's connections."""
        for connection in self._connections_of(server):
            session = self._state.by_place.get(f"{connection}/{name}")
            if session is not None:
                return self._state.opened[session]
        return None

    def _pair(self, opened: Opened) -> None:
        for name, lane in opened.lanes.items():
            if lane.recorded and lane.observed:
                for pair in heads(lane.recorded, lane.observed, self._context(opened, name)):
                    self._matched(opened, lane, pair, name)

    def _context(self, opened: Opened, witness: str) -> Context:
        eyes = [one for one in self._state.witnesses.values() if one.name == witness and opened.connection in one.connections]

        ignore_us = opened.lanes[witness].ignore_us

        def excused(ran: Recorded) -> bool:
            ended_us = ran.ended_us or self._now_us
            if not eyes or ran.started_us <= ignore_us + _SECOND:
                return True
            return any(not one.saw_all(opened.session_id, ran.started_us - _SECOND, ended_us + _SECOND) for one in eyes)

        return Context(opened.texts, opened.defined, opened.denied, excused)

    def _compare(self, session: str) -> None:
        opened = self._state.opened[session]
        self._pair(opened)
        idle = True
        for name, lane in opened.lanes.items():
            if not lane.recorded and not lane.observed:
                continue
            settled_r = self._settled_recorded(opened, name, lane)
            settled_o = self._settled_observed(opened, lane)
            while settled_r or settled_o:
                before = len(lane.recorded), len(lane.observed)
                context = self._context(opened, name)
                found = explain(lane.recorded, lane.observed, settled_r, settled_o, context)
                for one in found:
                    self._explained(opened, name, lane, one)
                settled_r = max(0, settled_r - (before[0] - len(lane.recorded)))
                settled_o = max(0, settled_o - (before[1] - len(lane.observed)))
                if before == (len(lane.recorded), len(lane.observed)):
                    break
            idle = idle and not lane.recorded and not lane.observed
        if idle:
            self._busy.pop(session, None)
        if opened.closed_us and self._over(opened, idle):
            self._drop(opened)

    def _settled_recorded(self, opened: Opened, witness: str, lane: Lane) -> int:
        """How many from the first on: all that the collector will ever tell of them is here."""
        eyes = next(
            (one for one in self._state.witnesses.values() if one.name == witness and opened.connection in one.connections), None
        )
        if eyes is None:
            return 0
        slack_us = int(self._settings.observation_lateness_seconds * _SECOND)
        settled = 0
        for ran in lane.recorded:
            if not ran.over and not (opened.closed_us and self._late(opened.closed_us)):
                break
            seen_to_its_end = eyes.complete_us - slack_us > (ran.ended_us or ran.started_us) and not eyes.blind()
            if not (lane.over or seen_to_its_end):
                break
            settled += 1
        return settled

    def _settled_observed(self, opened: Opened, lane: Lane) -> int:
        """How many from the first on: all that the gateway will ever tell of them is here."""
        over = bool(opened.closed_us) and self._late(opened.closed_us)
        if opened.open and not over:
            return 0  # a statement under way may be what was seen
        settled = 0
        for seen in lane.observed:
            if not over and not (self._late(seen.seen_us) and self._record_is_whole(opened.gateway, seen.seen_us)):
                break
            settled += 1
        return settled

    def _late(self, since_us: int) -> bool:
        return self._now_us - since_us >= self._settings.lateness_seconds * _SECOND

    def _record_is_whole(self, gateway: str, at_us: int) -> bool:
        """Whether all that this gateway had to tell up to then is in the log. Where the log is not Kafka, it is after a moment."""
        whole_us, _ = self._state.reports.get(gateway, (at_us, 0))
        return whole_us >= at_us or self._now_us - at_us >= self._settings.record_lateness_seconds_max * _SECOND

    def _explained(self, opened: Opened, witness: str, lane: Lane, one: Explained) -> None:
        match one:
            case Pair():
                self._matched(opened, lane, one, witness)
            case Unseen(ran, claimed):
                self._settled(opened, witness, ran, "missed" if claimed else "excused")
            case Unrecorded(observed, claimed):
                if claimed:
                    self._unaudited(opened, witness, lane, observed)
                else:
                    self._count("never_began")

    def _matched(self, opened: Opened, lane: Lane, pair: Pair, witness: str = "") -> None:
        for ran in pair.recorded:
            if witness:
                self._settled(opened, witness, ran, "seen")
        self._count("statements_matched", len(pair.recorded))
        if not pair.observed.known and len(pair.recorded) == 1 and pair.recorded[0].outcome != "unknown":
            lane.begun[pair.observed.sequence] = pair.recorded[0]
            if len(lane.begun) > 100:
                del lane.begun[next(iter(lane.begun))]
        if pair.agrees:
            return
        ran, seen = pair.recorded[-1], pair.observed
        if ran.number in opened.miscounted:
            return  # by another collector, or at its begin
        opened.miscounted[ran.number] = 1
        if len(opened.miscounted) > self._settings.statements_max:
            del opened.miscounted[next(iter(opened.miscounted))]
        failed = next((one for one in pair.recorded if one.outcome == "error"), ran)
        recorded = f"{failed.outcome} {failed.sqlstate}".strip() + (f", {failed.rows} rows" if failed.rows >= 0 else "")
        observed = (seen.sqlstate or "ok") + (f", {seen.rows} rows" if seen.rows >= 0 else "")
        summary = (
            f"execution {ran.number} of session {opened.session} is recorded as {recorded}, and the database ended it as {observed}"
        )
        self._find(
            opened,
            "miscounted",
            f"{ran.number}",
            summary,
            (seen.place, ran.place),
            (("recorded_rows", float(failed.rows)), ("observed_rows", float(seen.rows))),
        )

    def _settled(self, opened: Opened, witness: str, ran: Recorded, how: str) -> None:
        """What one collector's word on an execution comes to: only when all are silent did it not run."""
        waiting = opened.waiting.get(ran.number)
        if waiting is None:
            return
        if how == "missed":
            self._count("statements_not_seen_by_one")
        if how == "seen":
            del opened.waiting[ran.number]  # it ran: what the others missed is their own loss
            return
        if witness in waiting:
            waiting.remove(witness)
            waiting.append("" if how == "missed" else "-")
        if any(name not in ("", "-") for name in waiting):
            return
        del opened.waiting[ran.number]
        if "" not in waiting:
            return
        text = opened.texts.get(ran.statement)
        summary = (
            f"execution {ran.number} of session {opened.session} is on record as run ({ran.outcome}), and the database never ran it"
        )
        named = text.digest if text is not None else ""
        self._find(opened, "phantom", f"{ran.number}", f"{summary}{_shown(text.start if text else '', named)}", (ran.place,), ())

    def _unaudited(self, opened: Opened, witness: str, lane: Lane, observed: Observed) -> None:
        named = observed.digest or hashlib.sha256(observed.start.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        times = lane.unaudited[named] = lane.unaudited.get(named, 0) + 1
        told = any(other is not lane and other.unaudited.get(named, 0) >= times for other in opened.lanes.values())
        if len(lane.unaudited) > self._settings.texts_max:
            del lane.unaudited[next(iter(lane.unaudited))]
        if told:
            return  # another collector has seen the same
        summary = f"in session {opened.session} the database ran a {observed.source} that is not on record"
        self._find(
            opened, "unaudited", f"{named}/{times}", f"{summary}{_shown(observed.start, observed.digest)}", (observed.place,), ()
        )

    def _over(self, opened: Opened, idle: bool) -> bool:
        waited = self._now_us - opened.closed_us
        if idle and self._late(opened.closed_us) and all(lane.over for lane in opened.lanes.values()):
            return True
        return waited >= self._settings.end_seconds * _SECOND and (idle or waited >= 10 * self._settings.end_seconds * _SECOND)

    def _drop(self, opened: Opened) -> None:
        for lane in opened.lanes.values():
            if lane.recorded or lane.observed:
                self._count("statements_not_compared", len(lane.recorded) + len(lane.observed))
        # Its name stays for a while: a collector may be behind.
        opened.lanes.clear()
        opened.texts.clear()
        opened.defined.clear()
        opened.open.clear()
        opened.waiting.clear()
        self._busy.pop(opened.session, None)

    # -- sessions --------------------------------------------------------------------------------------------------------------

    def _judge(self, key: str) -> None:
        seen = self._state.seen[key]
        if seen.verdict in FINAL:
            return
        opened = self._gateways(seen.server, seen.session_id)
        if opened is not None:
            self._judge_opened(key, seen, opened)
            return
        if seen.verdict in ("shadow", "declared"):
            return
        if (own := self._own_of(seen)) is not None:
            self._learn(seen, own)
            self._verdict(key, seen, "ours", reason=f"opened by {own.who}, by its own word")
            return
        if seen.backend_type not in _SERVERS_OWN:
            self._verdict(key, seen, "ours", reason=f"PostgreSQL's own process: {seen.backend_type}")
            return
        source = self._sources.of(Connection(seen.server, seen.user, seen.client, seen.client_exe, seen.application_name))
        if source is not None:
            self._verdict(key, seen, "declared", source=source.name, reason=f"declared as {source.kind} by {source.declared_by}")
            return
        self._pending[key] = None
        if seen.at_us < self._state.since_us:
            self._verdict(key, seen, "unexplained", reason="it began before the record does")
            return
        if seen.at_us <= self._state.forgotten_us:
            self._verdict(key, seen, "unexplained", reason="it is of a time of which not every session is remembered")
            return
        waited_us = self._now_us - seen.seen_us
        if seen.application_name.startswith(_NAMED_OURS) and not self._written_since(seen.seen_us):
            patience_us = self._settings.lateness_seconds * _SECOND
        else:
            patience_us = self._settings.patience_ms * 1000
        if waited_us < patience_us:
            return
        late = self._late_gateways(seen.seen_us)
        if late and waited_us < self._settings.record_lateness_seconds_max * _SECOND:
            return
        self._not_ours(key, seen, late)

    def _written_since(self, seen_us: int) -> bool:
        """Whether a gateway has written since, so long after that its word of this session would stand before it."""
        return self._state.written >= seen_us + 2 * _SECOND

    def _late_gateways(self, at_us: int) -> list[str]:
        """Those whose record is not with the brokers up to then, by their own word, and that were heard of a moment ago."""
        return sorted(
            gateway
            for gateway, (whole_us, said_us) in self._state.reports.items()
            if whole_us < at_us and self._now_us - said_us < self._settings.record_lateness_seconds_max * _SECOND
        )

    def _more_known(self, key: str, seen: Seen, event: SessionObserved) -> None:
        """A collector tells of a session that was known by less: by what it ran, or by one that knows no processes."""
        new = (event.client_pid and not seen.client_pid) or (event.client and not seen.client)
        seen.user = seen.user or event.user
        seen.database = seen.database or event.database
        seen.client = seen.client or event.client
        seen.application_name = seen.application_name or event.application_name
        seen.backend_type = seen.backend_type or event.backend_type
        if event.client_pid and not seen.client_pid:
            seen.client_pid, seen.client_start_us = event.client_pid, event.client_start_us
            seen.client_uid, seen.client_exe = event.client_uid, event.client_exe
        if not new:
            return
        if seen.verdict == "audited" and (opened := self._gateways(seen.server, seen.session_id)) is not None:
            self._judge_opened(key, seen, opened)
        elif seen.verdict == "ours" and (own := self._own_of(seen)) is not None:
            self._learn(seen, own)

    def _learn(self, seen: Seen, own: Own) -> None:
        """Where a gateway's connections come from: its control connections are its own by its own word."""
        if not own.gateway:
            return
        if seen.client_pid:
            self._state.processes[f"{seen.server}/{own.gateway}"] = (seen.client_pid, seen.client_start_us)
        host = address(seen.client)
        if host is not None and len(self._state.hosts) < HOSTS_MAX:
            self._state.hosts[f"{seen.server}/{host}"] = 1

    def _judge_opened(self, key: str, seen: Seen, opened: Opened) -> None:
        host = address(seen.client)
        port = seen.client.rpartition(":")[2]
        process = self._state.processes.get(f"{seen.server}/{opened.gateway}")
        stranger = ""
        if self._settings.compare_addresses and opened.upstream_port and host is not None and port != str(opened.upstream_port):
            stranger = f"it comes from {seen.client}, and the gateway's port is {opened.upstream_port}"
        elif seen.client_pid and process is not None and not _same_process(process, seen):
            stranger = f"process {seen.client_pid} ({seen.client_exe}) holds it, and the gateway is process {process[0]}"
        if stranger:
            self._verdict(key, seen, "hijacked", opened=opened, reason=stranger)
            self._find_session(
                key, seen, "hijacked", f"session {opened.session} of agent {opened.agent} is not its gateway's: {stranger}", opened
            )
        else:
            if host is not None and len(self._state.hosts) < HOSTS_MAX:
                self._state.hosts[f"{seen.server}/{host}"] = 1
            self._verdict(key, seen, "audited", opened=opened, reason=f"opened by gateway {opened.gateway}")
        early, seen.early = seen.early, []
        for witness, observed in early:
            self._observed(opened, witness, observed)

    def _own_of(self, seen: Seen) -> Own | None:
        connections = self._connections_of(seen.server)
        for own in reversed(self._state.own):
            if own.backend_pid != seen.backend_pid or (own.server != seen.server and own.connection not in connections):
                continue
            if own.session_id:
                if own.session_id == seen.session_id:
                    return own
            elif seen.client.endswith(f":{own.upstream_port}") and abs(own.at_us - seen.at_us) <= _NEAR_US:
                return own
        return None

    def _not_ours(self, key: str, seen: Seen, late: list[str]) -> None:
        who = self._described(seen)
        host = address(seen.client)
        hosts = {name.partition("/")[2] for name in self._state.hosts if name.startswith(f"{seen.server}/")}
        ours = {name: one for name, one in self._state.processes.items() if name.startswith(f"{seen.server}/")}
        elsewhere = ""
        if any(f"{connection}/{seen.user}" in self._state.roles for connection in self._connections_of(seen.server)):
            if seen.client_pid and ours and not any(_same_process(one, seen) for one in ours.values()):
                elsewhere = f"the gateway's role {seen.user} is used by another process: {who}"
            elif host is not None and hosts and str(host) not in hosts:
                elsewhere = f"the gateway's role {seen.user} is used from another address: {who}"
        kind = "hijacked" if elsewhere else "shadow"
        summary = elsewhere or f"no gateway opened a session that was seen on server {seen.server}: {who}"
        if late:
            summary += f"; the record of gateway {', '.join(late)} is late"
        self._verdict(key, seen, kind, reason=summary)
        self._find_session(key, seen, kind, summary, None)
        if not late:
            self._order(seen)

    def _described(self, seen: Seen) -> str:
        said = f"role {seen.user or 'unknown'} on database {seen.database or 'unknown'} from {seen.client or 'unknown'}"
        if seen.client_pid:
            said += f", process {seen.client_pid} ({seen.client_exe or 'unknown'}) of user id {seen.client_uid}"
        if seen.application_name:
            said += f", which calls itself {seen.application_name[:64]!a}"
        return said

    def _order(self, seen: Seen) -> None:
        """Its end, where that is wanted. Only what is known to be nobody's, and only while it lives."""
        connections = self._connections_of(seen.server)
        if not self._settings.kill_shadow or seen.ended_us or seen.ordered or not connections:
            return
        seen.ordered = True
        name = f"{seen.server}/{seen.session_id}"
        self._effects.append(
            BackendEndOrdered(
                at_us=self._now_us,
                order=f"shadow {name}",
                connection=connections[0],
                server=seen.server,
                session_id=seen.session_id,
                backend_pid=seen.backend_pid,
                backend_start_us=_start_and_pid(seen.session_id)[0],
                cause=seen.verdict,
                reason="no gateway opened it, and no source is declared that it fits",
                finding=seen.finding,
            )
        )

    def _verdict(
        self, key: str, seen: Seen, verdict: Verdict, *, opened: Opened | None = None, source: str = "", reason: str
    ) -> None:
        self._pending.pop(key, None)
        if verdict not in ("", "unexplained"):
            seen.early = seen.early if opened is not None else []
        if seen.verdict == verdict:
            return
        seen.verdict = verdict
        self._count(f"sessions_{verdict}")
        self._effects.append(
            SessionJudged(
                self._now_us,
                seen.server,
                seen.session_id,
                verdict,
                opened.session if opened is not None else "",
                opened.agent if opened is not None else "",
                source,
                reason,
            )
        )

    # -- findings --------------------------------------------------------------------------------------------------------------

    def _find_session(self, key: str, seen: Seen, kind: str, summary: str, opened: Opened | None) -> None:
        seen.finding = _name(kind, key)
        self._effects.append(
            FindingRaised(
                at_us=self._now_us,
                finding=seen.finding,
                detector=kind,
                agent=opened.agent if opened is not None else "",
                session=opened.session if opened is not None else "",
                severity=SEVERITY[kind],
                summary=summary,
                evidence=(seen.event, *((opened.event,) if opened is not None else ())),
                numbers=(("client_pid", float(seen.client_pid)), ("backend_pid", float(seen.backend_pid))),
                offsets=(seen.place, *((opened.place,) if opened is not None else ())),
            )
        )

    def _find(
        self, opened: Opened, kind: str, what: str, summary: str, places: Sequence[str], numbers: tuple[tuple[str, float], ...]
    ) -> None:
        times = opened.told[kind] = opened.told.get(kind, 0) + 1
        self._count(kind)
        most = self._settings.findings_per_session_max
        if times > most:
            if times & (times - 1) == 0:  # each time that it has doubled
                last = _name(kind, f"{opened.connection}/{opened.session_id}/many")
                self._effects.append(FindingRecurred(self._now_us, last, opened.agent, times, self._now_us, summary))
            return
        if times == most:
            what, summary = "many", f"{summary}; what follows of this kind in this session is counted"
        events = tuple(place.partition(" ")[2] for place in places if " " in place)
        self._effects.append(
            FindingRaised(
                at_us=self._now_us,
                finding=_name(kind, f"{opened.connection}/{opened.session_id}/{what}"),
                detector=kind,
                agent=opened.agent,
                session=opened.session,
                severity=SEVERITY[kind],
                summary=summary,
                evidence=(opened.event, *events),
                numbers=numbers,
                offsets=tuple(place.partition(" ")[0] for place in places),
            )
        )

    # -- memory ----------------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        most = self._settings.sessions_max
        if len(self._state.opened) > most:
            over = sorted(self._state.opened.values(), key=lambda one: (not one.closed_us, one.closed_us or one.at_us, one.session))
            for opened in over[: len(self._state.opened) - most]:
                if not opened.closed_us:
                    self._count("live_sessions_forgotten")
                self._state.forgotten_us = max(self._state.forgotten_us, opened.at_us)
                del self._state.opened[opened.session]
                self._state.by_place.pop(f"{opened.connection}/{opened.session_id}", None)
                self._busy.pop(opened.session, None)
        if len(self._state.seen) > most:
            gone = sorted(
                self._state.seen.items(), key=lambda item: (not item[1].ended_us, item[1].ended_us or item[1].at_us, item[0])
            )
            for key, _ in gone[: len(self._state.seen) - most]:
                del self._state.seen[key]
                self._pending.pop(key, None)


def _start_and_pid(name: str) -> tuple[int, int]:
    """Of PostgreSQL's name for a session: microseconds, in whole seconds, and the pid; zeros where it is no such name."""
    start, _, pid = name.partition(".")
    try:
        return int(start, 16) * _SECOND, int(pid, 16)
    except ValueError:
        return 0, 0


def _same_process(process: tuple[int, int], seen: Seen) -> bool:
    pid, start_us = process
    return pid == seen.client_pid and abs(start_us - seen.client_start_us) <= _SAME_START_US


def _name(kind: str, what: str) -> str:
    return f"{kind}-{hashlib.sha256(what.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _shown(start: str, named: str) -> str:
    """A statement, as a sentence can hold it: what an agent wrote, escaped and short."""
    if start:
        return f": {start[:200]!a}"
    return f": SHA-256 {named}" if named else ""
