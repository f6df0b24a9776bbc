"""The inspection step that learns what each agent usually does, asks the detectors, and groups what they say into findings.

Time is the agents' own: the times in the events. A finding that is seen again within its cooldown recurs, and is told when the
count has doubled or the cooldown is over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from analytics.detectors import (
    drift,
    ended_invocation,
    errors,
    hot_loop,
    hours,
    new_operation,
    new_shape,
    new_table,
    outside_task,
    probing,
    rate,
    two_places,
    unbounded,
    unused_grant,
    volume,
)
from analytics.detectors.agent import DAY_US, HOUR_US, MINUTE_US, UNKNOWN, WINDOW_US, Agent, Role, Session, Settings, Shape, Window
from analytics.detectors.suspicion import Suspicion
from analytics.detectors.unused_grant import Held
from analytics.inspection import Effect
from ingest.events import (
    AgentRegistered,
    AgentRetired,
    FindingRaised,
    FindingRecurred,
    Frame,
    GrantApproved,
    GrantDenied,
    GrantRevoked,
    SessionClosed,
    SessionOpened,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementStarted,
    Topic,
)
from ingest.frames import event_id
from ingest.log import Record

DETECTORS: Final = frozenset(
    module.NAME
    for module in (
        drift,
        ended_invocation,
        errors,
        hot_loop,
        hours,
        new_operation,
        new_shape,
        new_table,
        outside_task,
        probing,
        rate,
        two_places,
        unbounded,
        unused_grant,
        volume,
    )
)
SETTINGS: Final = Settings()
OPEN_MAX: Final = 10_000  # findings within their cooldown; beyond it the oldest is over
RULES_MAX: Final = 500  # of one agent, a day


class _Open(msgspec.Struct, array_like=True):
    """A finding within its cooldown."""

    finding: str
    agent: str
    first_us: int
    last_us: int
    times: int
    told: int
    summary: str
    numbers: tuple[tuple[str, float], ...]
    offset: str
    severity: str = ""


class _State(msgspec.Struct, array_like=True):
    agents: dict[str, Agent] = msgspec.field(default_factory=dict)  # the longest silent first, more or less
    roles: dict[str, Role] = msgspec.field(default_factory=dict)
    owners: dict[str, str] = msgspec.field(default_factory=dict)
    grants: dict[str, Held] = msgspec.field(default_factory=dict)
    open: dict[str, _Open] = msgspec.field(default_factory=dict)  # by detector, agent and subject; the oldest first
    looked_us: int = 0  # for cooldowns that are over
    looked_day: int = 0  # for grants that nobody uses


class Detection:
    """An Inspection."""

    name = "detectors"
    version = 1
    topics: tuple[Topic, ...] = ("identity", "sessions", "statements")

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self._settings = settings
        self._state = _State()
        self._effects: list[Effect] = []
        self._record: Record | None = None  # that is read
        self._frame: Frame | None = None
        self._index = 0

    def status(self) -> dict[str, int]:
        return {"agents": len(self._state.agents), "findings_in_cooldown": len(self._state.open)}

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    def restore(self, data: bytes) -> None:
        try:
            self._state = msgspec.msgpack.decode(data, type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"it is not what this version keeps: {error}") from error

    def step(self, record: Record, frame: Frame, now_us: int) -> Sequence[Effect]:
        self._record = record
        self._frame = frame
        if record.topic == "statements":
            self._statements(frame)
        elif record.topic == "sessions":
            self._sessions(frame)
        else:
            self._identity(frame)
        return self._taken()

    def tick(self, now_us: int) -> Sequence[Effect]:
        state = self._state
        if now_us - state.looked_us >= MINUTE_US:
            state.looked_us = now_us
            for key in [key for key, known in state.open.items() if self._over(known, now_us)]:
                self._close(key)
        day = now_us // DAY_US
        if day != state.looked_day:
            state.looked_day = day
            for grant, held in state.grants.items():
                if (found := unused_grant.day_over(grant, held, day * DAY_US, self._settings)) is not None:
                    self._say(held.agent, found, day * DAY_US, "", f"grant {grant} {held.since_us}")
        return self._taken()

    def _taken(self) -> Sequence[Effect]:
        if not self._effects:
            return ()
        effects, self._effects = self._effects, []
        return effects

    # -- what the log says -----------------------------------------------------------------------------------------------------

    def _identity(self, frame: Frame) -> None:
        state = self._state
        for _, event in frame.events:
            match event:
                case AgentRegistered():
                    state.owners[event.agent] = event.owner
                case AgentRetired():
                    state.agents.pop(event.agent, None)
                    state.owners.pop(event.agent, None)
                    state.grants = {grant: held for grant, held in state.grants.items() if held.agent != event.agent}
                case GrantApproved():
                    state.grants[event.grant] = Held(event.agent, event.at_us, used=False)
                case GrantRevoked() | GrantDenied():
                    state.grants.pop(event.grant, None)
                case _:
                    pass

    def _sessions(self, frame: Frame) -> None:
        for self._index, (_, event) in enumerate(frame.events):
            if isinstance(event, SessionOpened):
                stamp = event.stamp
                agent = self._agent(stamp)
                known = stamp.session in agent.sessions
                session = self._session(agent, stamp)
                if known:
                    continue
                self._advance(stamp.agent, agent, event.at_us)
                day = event.at_us // DAY_US
                self._suspect(
                    stamp.agent,
                    two_places.opened(agent, stamp.session, session.host, day, self._settings),
                    event.at_us,
                    stamp.session,
                )
                found = ended_invocation.opened(agent, stamp.invocation, event.at_us, self._settings)
                self._suspect(stamp.agent, found, event.at_us, stamp.session)
            elif isinstance(event, SessionClosed):
                known_agent = self._state.agents.get(event.agent)
                if known_agent is not None and (closed := known_agent.sessions.get(event.session)) is not None and not closed.over:
                    closed.over = True
                    ended_invocation.closed(known_agent, closed.invocation, event.at_us)

    def _statements(self, frame: Frame) -> None:
        if not frame.stamps:
            return
        name = frame.stamps[0].agent
        agent = self._agent(frame.stamps[0])
        sessions = [self._session(agent, stamp) for stamp in frame.stamps]
        settings = self._settings
        day = agent.day
        for self._index, (place, event) in enumerate(frame.events):
            if place < 0:
                continue
            session = sessions[place]
            if type(event) is StatementStarted:
                at_us = event.at_us
                if at_us >= agent.minute_us + MINUTE_US:
                    self._advance(name, agent, at_us)
                    day = agent.day
                elif at_us > agent.newest_us:
                    agent.newest_us = at_us
                shape = session.statements.get(event.statement, UNKNOWN)
                if event.statement in session.fresh:
                    self._used(name, agent, session, event.statement, shape, frame, place)
                running = session.running
                running[event.execution] = shape
                if len(running) > settings.running_max:
                    del running[next(iter(running))]
                agent.today_statements += 1
                window = agent.window
                window.statements += 1
                if window.statements >= rate.STATEMENTS_MIN and not window.statements & window.statements - 1:
                    role = self._state.roles[agent.role]
                    self._suspect(name, rate.counted(agent, role, settings), at_us, frame.stamps[place].session)
                fingerprint = shape.fingerprint
                times = agent.in_minute.get(fingerprint, 0) + 1
                if times > 1 or len(agent.in_minute) < settings.shapes_a_minute_max:
                    agent.in_minute[fingerprint] = times
                    if times >= 64 and fingerprint and not times & times - 1:
                        self._loop(name, agent, hot_loop.repeated(agent, fingerprint, times, settings), at_us, frame, place)
                if agent.rules.get(event.rule) != day:
                    self._uses(agent, event.rule, day, frame.stamps[place], at_us)
            elif type(event) is StatementFinished:
                shape = session.running.pop(event.execution, UNKNOWN)
                window = agent.window
                rows = event.rows
                if rows:
                    window.rows += rows
                    agent.today_rows += rows
                    if window.rows >= volume.ROWS_MIN:
                        self._suspect(name, volume.counted(agent, settings), agent.newest_us, frame.stamps[place].session)
                window.bytes += event.bytes_in + event.bytes_out
                if event.outcome == "error":
                    self._failed(name, agent, shape, event.sqlstate, frame, place)
                elif rows or shape.unbounded:
                    if rows >= volume.ROWS_MIN:
                        self._suspect(name, volume.finished(agent, rows, settings), agent.newest_us, frame.stamps[place].session)
                    found = unbounded.finished(agent, shape, rows, day, settings)
                    if found is not None:
                        self._suspect(name, found, agent.newest_us, frame.stamps[place].session)
            elif type(event) is StatementDenied:
                if event.at_us >= agent.minute_us + MINUTE_US:
                    self._advance(name, agent, event.at_us)
                    day = agent.day
                shape = session.statements.get(event.statement, UNKNOWN)
                session.fresh.pop(event.statement, None)  # what it could not do is no habit
                agent.window.statements += 1
                fingerprint = shape.fingerprint
                times = agent.in_minute[fingerprint] = agent.in_minute.get(fingerprint, 0) + 1
                self._failed(name, agent, shape, event.sqlstate, frame, place)
            elif type(event) is StatementDefined:
                self._defined(session, event)

    # -- one agent -------------------------------------------------------------------------------------------------------------

    def _agent(self, stamp: Stamp) -> Agent:
        state = self._state
        agent = state.agents.get(stamp.agent)
        if agent is None:
            agent = state.agents[stamp.agent] = Agent(role=f"{state.owners.get(stamp.agent, '')}\0{stamp.connection}")
            if len(state.agents) > self._settings.agents_max:
                del state.agents[min(state.agents, key=lambda name: state.agents[name].newest_us)]
            if agent.role not in state.roles and len(state.roles) >= self._settings.roles_max:
                agent.role = ""
            state.roles.setdefault(agent.role, Role())
        return agent

    def _session(self, agent: Agent, stamp: Stamp) -> Session:
        session = agent.sessions.get(stamp.session)
        if session is None:
            host = stamp.client.rpartition(":")[0]
            session = agent.sessions[stamp.session] = Session(host, stamp.task, stamp.invocation)
            if len(agent.sessions) > self._settings.sessions_max:
                over = next((id_ for id_, known in agent.sessions.items() if known.over), next(iter(agent.sessions)))
                del agent.sessions[over]
        return session

    def _defined(self, session: Session, event: StatementDefined) -> None:
        settings = self._settings
        operation = new_operation.operation_of(event.verbs)
        shape = Shape(event.fingerprint, operation, event.relations[:32], event.unbounded)
        session.statements[event.statement] = shape
        session.fresh[event.statement] = None
        if len(session.statements) > settings.statements_max:
            oldest = next(iter(session.statements))
            del session.statements[oldest]
            session.fresh.pop(oldest, None)

    def _used(self, name: str, agent: Agent, session: Session, number: int, shape: Shape, frame: Frame, place: int) -> None:
        """The first execution of a text in a session. A text has no time of its own: it is defined just before."""
        del session.fresh[number]
        settings, day, at_us = self._settings, agent.day, agent.newest_us
        role = self._state.roles[agent.role]
        id_ = frame.stamps[place].session
        for catalog in shape.relations:
            if catalog.startswith(probing.CATALOGS) and catalog not in agent.tables.names and agent.days > 1:
                self._suspect(name, probing.tried(agent, catalog, settings), at_us, id_)
        self._suspect(name, outside_task.defined(agent, session, shape, day, settings), at_us, id_)
        self._suspect(name, new_table.defined(agent, role, shape, day, settings), at_us, id_)
        self._suspect(name, new_shape.defined(agent, role, shape, day, settings), at_us, id_)
        self._suspect(name, new_operation.defined(agent, role, shape, day, settings), at_us, id_)

    def _failed(self, name: str, agent: Agent, shape: Shape, sqlstate: str, frame: Frame, place: int) -> None:
        settings, at_us, session = self._settings, agent.newest_us, frame.stamps[place].session
        if sqlstate in probing.SQLSTATES:
            target = shape.relations[0] if shape.relations else shape.fingerprint
            self._suspect(name, probing.tried(agent, target, settings), at_us, session)
        else:
            agent.window.errors += 1
            if agent.window.errors >= errors.ERRORS_MIN:
                self._suspect(name, errors.failed(agent, settings), at_us, session)
        fingerprint = shape.fingerprint
        times = agent.failed[fingerprint] = agent.failed.get(fingerprint, 0) + 1
        if times >= hot_loop.FAILURES_MIN and not times % 10:
            self._loop(name, agent, hot_loop.failed(agent, fingerprint, times, settings), at_us, frame, place)
        if len(agent.failed) > settings.shapes_a_minute_max:
            agent.failed.clear()

    def _loop(self, name: str, agent: Agent, found: Suspicion | None, at_us: int, frame: Frame, place: int) -> None:
        if found is not None:
            agent.loop_us = at_us
            self._suspect(name, found, at_us, frame.stamps[place].session)

    def _uses(self, agent: Agent, rule: str, day: int, stamp: Stamp, at_us: int) -> None:
        """Which grants let it through, once a day for each rule."""
        if len(agent.rules) >= RULES_MAX:
            agent.rules.clear()
        agent.rules[rule] = day
        for grant in stamp.grants:
            held = self._state.grants.get(grant)
            if held is not None and grant in rule:
                held.since_us, held.used, held.told = max(held.since_us, at_us), True, False

    def _advance(self, name: str, agent: Agent, at_us: int) -> None:
        """A minute is over, and perhaps more."""
        agent.newest_us = max(agent.newest_us, at_us)
        if at_us < agent.minute_us + MINUTE_US:
            return
        if agent.in_minute:
            agent.repeats.learn(max(agent.in_minute.values()))
            agent.failures.learn(max(agent.failed.values()) if agent.failed else 0)
            agent.in_minute.clear()
            agent.failed.clear()
        agent.minute_us = at_us - at_us % MINUTE_US
        window = agent.window
        if at_us >= window.begin_us + WINDOW_US:
            if window.statements:
                agent.rate.learn(window.statements)
                self._state.roles[agent.role].rate.learn(window.statements, 2_000)
                agent.rows.learn(math.log1p(window.rows))
                agent.rows_peak = max(window.rows, agent.rows_peak * 0.9995)
                agent.read_peak *= 0.9995
                agent.errors.learn(window.errors)
            agent.window = Window(at_us - at_us % WINDOW_US, self._offset)
        hour = at_us // HOUR_US
        if hour == agent.hour:
            return
        if agent.hour:
            agent.refusals.learn(agent.refused)
        agent.new_shapes = agent.refused = 0
        agent.targets.clear()
        agent.hour = hour
        if any(session.over for session in agent.sessions.values()):
            agent.sessions = {id_: session for id_, session in agent.sessions.items() if not session.over}
        if (day := at_us // DAY_US) != agent.day:
            self._day(name, agent, day, at_us)
        self._suspect(name, hours.hour_began(agent, at_us, self._settings), at_us, "")

    def _day(self, name: str, agent: Agent, day: int, at_us: int) -> None:
        if agent.day:
            self._suspect(name, drift.day_over(agent), at_us, "")
        else:
            agent.first_us = at_us
        agent.day = day
        agent.days += 1
        agent.weekdays[(day + 3) % 7 >= 5] += 1
        agent.today_statements = agent.today_rows = agent.new_tables = 0
        if agent.days == self._settings.warm_up_days + 1:
            self._state.roles[agent.role].agents += 1
        if not agent.days % 7:
            agent.tables.forget(day, self._settings.forget_days)
            agent.shapes.forget(day, self._settings.forget_days)

    @property
    def _offset(self) -> str:
        record = self._record
        return f"{record.topic}/{record.partition}/{record.offset}" if record is not None else ""

    # -- findings --------------------------------------------------------------------------------------------------------------

    def _suspect(self, agent: str, found: Suspicion | None, at_us: int, session: str) -> None:
        if found is not None:
            assert self._frame is not None
            self._say(agent, found, at_us, session, event_id(self._frame, self._index))

    def _say(self, agent: str, found: Suspicion, at_us: int, session: str, evidence: str) -> None:
        opened = self._state.open
        key = f"{found.detector}\0{agent}\0{found.subject}"
        known = opened.get(key)
        if known is not None and self._over(known, at_us):
            self._close(key)
            known = None
        if known is not None:
            known.times += 1
            known.last_us = max(known.last_us, at_us)
            known.summary, known.numbers, known.offset = found.summary, found.numbers, self._offset
            if known.times >= 2 * known.told:
                self._recurred(known, at_us)
            return
        finding = "f-" + hashlib.sha256(f"{key}\0{evidence}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
        began = self._state.agents[agent].window.offset if agent in self._state.agents else ""
        offsets = tuple(dict.fromkeys(offset for offset in (began, self._offset) if offset))
        opened[key] = _Open(finding, agent, at_us, at_us, 1, 1, found.summary, found.numbers, self._offset, found.severity)
        self._effects.append(
            FindingRaised(
                at_us,
                finding,
                found.detector,
                agent,
                session,
                found.severity,
                found.summary,
                (evidence,),
                tuple((name, float(value)) for name, value in found.numbers),
                offsets,
            )
        )
        if len(opened) > OPEN_MAX:
            self._close(next(iter(opened)))

    def _over(self, known: _Open, at_us: int) -> bool:
        cooldown_us = self._settings.cooldown_seconds * 1_000_000
        return at_us >= known.last_us + cooldown_us or at_us >= known.first_us + self._settings.finding_seconds_max * 1_000_000

    def _close(self, key: str) -> None:
        known = self._state.open.pop(key)
        if known.times > known.told:
            self._recurred(known, known.last_us)

    def _recurred(self, known: _Open, at_us: int) -> None:
        known.told = known.times
        numbers = tuple((name, float(value)) for name, value in known.numbers)
        offsets = (known.offset,) if known.offset else ()
        self._effects.append(
            FindingRecurred(
                at_us, known.finding, known.agent, known.times, known.last_us, known.summary, numbers, offsets, known.severity
            )
        )
