"""Writes logs as the gateway and the API would: real events in real frames, in segment files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ingest.events import (
    AgentRegistered,
    Event,
    FindingRaised,
    FindingRecurred,
    FindingsMuted,
    GatewayStarted,
    GrantApproved,
    GrantRequested,
    Outcome,
    Rule,
    Scope,
    SessionClosed,
    SessionDenied,
    SessionEndOrdered,
    SessionKilled,
    SessionObserved,
    SessionOpened,
    SourceDeclared,
    Stamp,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementObserved,
    StatementStarted,
)
from ingest.frames import TOPIC_OF, Framer
from ingest.log import EventLog

START_US = 1_795_000_000_000_000  # November 2026
SECOND = 1_000_000
MINUTE = 60 * SECOND
STORY_EVENTS = 38  # that story() records
OBSERVED = "6afd0000.1267"  # a session of the server, as collectors name it


def stamp(session: str, agent: str, **changes: object) -> Stamp:
    fields: dict[str, object] = {
        "session": session,
        "agent": agent,
        "subject": f"sub-{agent}",
        "issuer": "https://idp.example",
        "on_behalf_of": "alice",
        "actors": (agent, "orchestrator"),
        "invocation": "run-7",
        "task": "nightly report",
        "unverified": ("task",),
        "grants": (f"g-{agent}",),
        "approvers": ("bob",),
        "connection": "shop",
        "database": "shop",
        "role": "pgwarden",
        "client": "127.0.0.1:50000",
        "backend_pid": 4711,
        "backend_start_us": START_US - MINUTE,
        "upstream_port": 41000,
    }
    return Stamp(**(fields | changes))  # type: ignore[arg-type]


@dataclass
class Writer:
    """One process that writes the log: its frames are numbered as the recorder numbers them."""

    log: EventLog
    name: str = "gw-1"
    boot: int = 1
    now_us: int = START_US
    framer: Framer = field(init=False)

    def __post_init__(self) -> None:
        self.framer = Framer(self.name, self.boot, events_max=100, bytes_max=64 * 1024)

    def at(self, us: int = 0) -> int:
        self.now_us += us
        return self.now_us

    def add(self, key: str, event: Event, under: Stamp | None = None) -> None:
        self.framer.add(TOPIC_OF[type(event)], key, event, under)

    async def write(self) -> None:
        """Everything added so far, one frame a topic and key."""
        await self.log.append(self.framer.cut())

    # -- what a gateway records ------------------------------------------------------------------------------------------------

    def started(self) -> None:
        self.add(self.name, GatewayStarted(self.at(), self.name, self.boot, "0.1"))

    def opened(
        self,
        under: Stamp,
        *,
        expires_at_us: int = 0,
        method: str = "token",
        groups: tuple[str, ...] = (),
        knew_us: int = 0,
    ) -> None:
        self.add(
            under.agent,
            SessionOpened(self.at(), under, method, "cred", expires_at_us, "psql", "TLSv1.3", "3.0", "group", groups, knew_us),
        )

    def closed(self, under: Stamp, reason: str = "client") -> None:
        self.add(under.agent, SessionClosed(self.at(), under.session, under.agent, reason, "", 100, 2000, 3, 5 * SECOND))

    def killed(self, under: Stamp, cause: str = "agent revoked") -> None:
        t = self.at()
        self.add(
            under.agent,
            SessionKilled(t, under.session, under.agent, cause, t - 90_000, t - 80_000, t - 50_000, t - 10_000, 4711, "leaked"),
        )

    def denied_connection(self, agent: str, reason: str = "agent reporter is revoked") -> None:
        self.add(agent, SessionDenied(self.at(), agent, agent, "shop", "127.0.0.1:5", "28000", reason, "token"))

    def defined(
        self,
        under: Stamp,
        number: int,
        text: str,
        verbs: Sequence[str] = ("SELECT",),
        relations: Sequence[str] = ("public.orders",),
    ) -> None:
        event = StatementDefined(number, text, "full", len(text), f"{number:016x}", tuple(verbs), tuple(relations), ())
        self.add(under.agent, event, under)

    def began(self, under: Stamp, execution: int, statement: int) -> None:
        self.add(under.agent, StatementStarted(self.at(1000), execution, statement, "rule-1"), under)

    def finished(self, under: Stamp, execution: int, outcome: Outcome = "ok", rows: int = 10, sqlstate: str = "") -> None:
        self.add(under.agent, StatementFinished(execution, outcome, sqlstate, f"SELECT {rows}", rows, 0, rows * 20, 500), under)

    def denied(self, under: Stamp, execution: int, statement: int, reason: str = "secrets is not in your scope") -> None:
        event = StatementDenied(self.at(1000), execution, statement, "42501", "default", reason)
        self.add(under.agent, event, under)

    # -- what the API records --------------------------------------------------------------------------------------------------

    def registered(self, agent: str, owner: str = "team-a") -> None:
        event = AgentRegistered(self.at(), agent, f"{agent} agent", owner, "idp", "", agent, "k1", "SCRAM-SHA-256$secret", "op")
        self.add(agent, event)

    def granted(self, agent: str, *, grant: str = "", expires_at_us: int = 0) -> None:
        scope = Scope("shop", (Rule("public", ("orders",), ("select",)),))
        name = grant or f"g-{agent}"
        self.add(agent, GrantRequested(self.at(), name, agent, scope, 3600, "monthly report", "alice"))
        self.add(agent, GrantApproved(self.at(), name, agent, "bob", expires_at_us))

    def ordered(self, session: str, agent: str, order: str = "o-1") -> None:
        self.add(session, SessionEndOrdered(self.at(), order, session, agent, "agent revoked", self.now_us, "leaked"))

    def raised(self, finding: str, agent: str) -> None:
        self.add(agent, FindingRaised(self.at(), finding, "burst", agent, "", "warning", "many denials", ("gw-1/1/sessions/0/0",)))

    def recurred(self, finding: str, agent: str) -> None:
        self.add(agent, FindingRecurred(self.at(), finding, agent, 2, self.now_us, "many denials again"))

    def muted(self, detector: str, agent: str) -> None:
        self.add(agent, FindingsMuted(self.at(), detector, agent, self.now_us + 3600 * SECOND, "alice", "a test runs"))

    def declared(self, source: str) -> None:
        self.add("*", SourceDeclared(self.at(), source, "backup", "", ("backup",), "local", "", "", "nightly", "alice"))

    # -- what a collector records ----------------------------------------------------------------------------------------------

    def saw_session(self, session_id: str) -> None:
        event = SessionObserved(self.at(), self.name, "db1", session_id, 4711, "pgwarden", "shop", "127.0.0.1:41000", "x")
        self.add(f"db1/{session_id}", event)

    def saw_statement(self, session_id: str, sequence: int, text: str) -> None:
        client = ("pgwarden", "shop", "127.0.0.1:41000")
        seen = (self.at(1000), self.name, "db1", session_id, sequence, "statement", text, len(text), "", 0, -1, "", -1, *client)
        self.add(f"db1/{session_id}", StatementObserved(*seen))


async def story(log: EventLog) -> None:
    """Two agents: `reporter` works, tries what it may not, and is revoked in a session; `loader` works on. One gateway restarts."""
    api = Writer(log, "api", 1)
    for agent in ("reporter", "loader", "idle"):
        api.registered(agent)
        api.granted(agent)
    await api.write()

    one = Writer(log, "gw-1", 1, START_US + MINUTE)
    one.started()
    s1, s2 = stamp("s1", "reporter"), stamp("s2", "loader", on_behalf_of="")
    one.opened(s1)
    one.opened(s2)
    one.defined(s1, 1, "SELECT * FROM orders")
    one.defined(s1, 2, "SELECT * FROM secrets", relations=("public.secrets",))
    one.defined(s2, 1, "INSERT INTO public.customers VALUES (1)", ("INSERT",), ("public.customers",))
    one.began(s1, 1, 1)
    one.finished(s1, 1)
    one.denied(s1, 2, 2)
    one.began(s2, 1, 1)
    await one.write()
    one.finished(s2, 1, "error", 0, "23505")
    one.began(s1, 3, 1)
    one.finished(s1, 3, rows=7)
    one.began(s2, 2, 1)
    await one.write()
    one.at(MINUTE)
    api.ordered("s1", "reporter")
    await api.write()
    one.killed(s1)
    one.closed(s1, "killed")
    one.denied_connection("reporter")
    await one.write()

    two = Writer(log, "gw-1", 2, one.now_us + MINUTE)
    two.started()
    s3 = stamp("s3", "loader")
    two.opened(s3)
    two.defined(s3, 1, "SELECT 1", relations=())
    two.began(s3, 1, 1)
    await two.write()
    api.raised("f-1", "reporter")
    api.recurred("f-1", "reporter")
    api.muted("quiet", "idle")
    api.declared("nightly-backup")
    await api.write()

    witness = Writer(log, "shop-log", 1, two.now_us)
    witness.saw_session(OBSERVED)
    witness.saw_statement(OBSERVED, 1, "SELECT * FROM orders")
    witness.saw_statement(OBSERVED, 2, "SELECT 1")
    await witness.write()
