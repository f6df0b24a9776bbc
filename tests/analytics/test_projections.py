from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.projections.grants import scope_json
from analytics.projections.schema import TABLES, VIEWS
from analytics.settings import AnalyticsSettings
from analytics.store import Batch, Store
from identity.registry import Registry
from ingest.events import (
    TOPICS,
    AgentKeyReplaced,
    AgentRegistered,
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    AllReinstated,
    AllRevoked,
    FindingAcknowledged,
    FindingConfirmed,
    FindingRecurred,
    FindingsMuted,
    FindingsUnmuted,
    Frame,
    GatewayStopped,
    GrantApproved,
    GrantDenied,
    GrantNarrowed,
    GrantRequested,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    IdentityEvent,
    RecordingStopped,
    Scope,
    SessionRevoked,
    StatementParameters,
    SubjectReinstated,
    SubjectRevoked,
)
from ingest.follow import Follower, Gap
from ingest.log import Record
from ingest.log.segments import SegmentLog
from ingest.settings import LogSettings
from tests.analytics.scenario import MINUTE, START_US, Writer, stamp, story


async def frames_of(log: SegmentLog) -> tuple[list[tuple[Record, Frame]], Follower]:
    follower = Follower(log, TOPICS, {})
    ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
    frames: list[tuple[Record, Frame]] = []
    while any(follower.offsets[place] < end for place, end in ends.items()):
        frames += await follower.poll(100, 1.0)
    return frames, follower


async def ingest_all(log: SegmentLog, store: Store, gaps: tuple[Gap, ...] = ()) -> None:
    frames, follower = await frames_of(log)
    store.ingest(Batch(frames, follower.offsets, follower.seen, gaps))


async def ingest_news(follower: Follower, log: SegmentLog, store: Store) -> None:
    frames: list[tuple[Record, Frame]] = []
    ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
    while any(follower.offsets[place] < end for place, end in ends.items()):
        frames += await follower.poll(100, 1.0)
    store.ingest(Batch(frames, follower.offsets, follower.seen, ()))


def rows(store: Store, sql: str) -> list[dict[str, object]]:
    found = store.read(sql, {})
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.fixture
def empty(settings: AnalyticsSettings):
    store = Store.open(settings)
    yield store
    store.close()


def test_a_finished_execution_has_its_whole_stamp_its_text_and_what_came_of_it(store: Store) -> None:
    (row,) = rows(store, "select * from statements where session = 's1' and execution = 1")
    assert {
        name: row[name] for name in ("text", "verbs", "relations", "decision", "rule", "outcome", "rows", "bytes_out", "tag")
    } == {
        "text": "SELECT * FROM orders",
        "verbs": ["SELECT"],
        "relations": ["public.orders"],
        "decision": "allow",
        "rule": "rule-1",
        "outcome": "ok",
        "rows": 10,
        "bytes_out": 200,
        "tag": "SELECT 10",
    }
    expected = stamp("s1", "reporter")
    for name in ("session", "agent", "subject", "issuer", "on_behalf_of", "invocation", "task", "connection", "role", "client"):
        assert row[name] == getattr(expected, name), name
    for name in ("actors", "unverified", "grants", "approvers"):
        assert row[name] == list(getattr(expected, name)), name
    assert (row["backend_pid"], row["upstream_port"], row["gateway"], row["boot"]) == (4711, 41000, "gw-1", 1)
    started, finished = row["started_at"], row["finished_at"]
    assert isinstance(started, datetime)
    assert isinstance(finished, datetime)
    assert ((finished - started).microseconds, row["duration_us"]) == (500, 500)
    assert row["backend_start"] == datetime.fromtimestamp((START_US - MINUTE) / 1e6, tz=UTC).replace(tzinfo=None)


def test_a_denied_execution_is_terminal(store: Store) -> None:
    (row,) = rows(store, "select * from statements where decision = 'deny'")
    assert (row["session"], row["outcome"], row["sqlstate"], row["reason"]) == (
        "s1",
        "denied",
        "42501",
        "secrets is not in your scope",
    )


def test_an_execution_without_an_end_runs_until_its_gateway_starts_again_and_is_unknown_then(store: Store) -> None:
    open_ = rows(store, "select session, execution, outcome from running order by session")
    assert open_ == [
        {"session": "s2", "execution": 2, "outcome": "unknown"},  # of boot 1; boot 2 has begun
        {"session": "s3", "execution": 1, "outcome": None},
    ]


async def test_an_end_that_is_read_late_still_counts(log: SegmentLog, empty: Store) -> None:
    await story(log)
    frames, follower = await frames_of(log)
    late = [pair for pair in frames if pair[0].topic == "statements"]
    first = [pair for pair in frames if pair[0].topic != "statements"]
    empty.ingest(Batch([*first, *late[:2]], follower.offsets, follower.seen))
    assert rows(empty, "select outcome from running where session = 's2' and execution = 1") == [{"outcome": "unknown"}]
    empty.ingest(Batch(late[2:], follower.offsets, follower.seen))
    assert rows(empty, "select outcome from statements where session = 's2' and execution = 1") == [{"outcome": "error"}]


def test_sessions_are_live_closed_killed_or_lost(store: Store) -> None:
    states = rows(store, "select session, state, close_reason, kill_cause from sessions order by session")
    assert [tuple(row.values()) for row in states] == [
        ("s1", "killed", "killed", "agent revoked"),
        ("s2", "lost", "lost", None),
        ("s3", "live", None, None),
    ]


async def test_a_gateway_that_stopped_without_closing_a_session_has_lost_it(log: SegmentLog, empty: Store) -> None:
    gateway = Writer(log)
    gateway.started()
    under = stamp("s", "reporter")
    gateway.opened(under)
    gateway.defined(under, 1, "select 1")
    gateway.began(under, 1, 1)
    gateway.add("gw-1", GatewayStopped(gateway.at(MINUTE), "gw-1", 1))
    await gateway.write()
    await ingest_all(log, empty)
    assert rows(empty, "select state from sessions") == [{"state": "lost"}]
    assert rows(empty, "select outcome from statements") == [{"outcome": "unknown"}]


def test_a_kill_has_its_four_times(store: Store) -> None:
    (row,) = rows(store, "select * from kills")
    times = [row[name] for name in ("requested_at", "decided_at", "client_closed_at", "backend_gone_at")]
    assert times == sorted(times, key=str)
    assert None not in times


async def test_a_kill_without_proof_has_no_backend_gone_at(log: SegmentLog, empty: Store) -> None:
    from ingest.events import SessionKilled

    gateway = Writer(log)
    gateway.add("reporter", SessionKilled(START_US, "s", "reporter", "ordered", START_US, START_US, START_US, 0, 1, "x"))
    await gateway.write()
    await ingest_all(log, empty)
    assert rows(empty, "select backend_gone_at from kills") == [{"backend_gone_at": None}]


def test_rates_count_each_agents_minutes(store: Store) -> None:
    found = rows(store, "select agent, statements, denied, finished, errors, rows from rates order by minute, agent")
    assert [tuple(row.values()) for row in found] == [
        ("loader", 2, 0, 1, 1, 0),
        ("reporter", 2, 1, 2, 0, 17),
        ("loader", 1, 0, 0, 0, 0),
    ]


def test_session_counts_agree_with_the_executions(store: Store) -> None:
    counted = rows(store, "select session, statements, denied, errors, rows from session_counts order by session")
    told = rows(
        store,
        """select session, count(*) filter (decision = 'allow') as statements, count(*) filter (decision = 'deny') as denied,
            count(*) filter (outcome = 'error') as errors, coalesce(sum(rows), 0)::bigint as rows
            from statements group by session order by session""",
    )
    assert counted == told


def test_attempts_orders_findings_and_gateways_have_their_rows(store: Store) -> None:
    assert rows(store, "select claimed, sqlstate from attempts") == [{"claimed": "reporter", "sqlstate": "28000"}]
    assert rows(store, "select order_id, session from orders") == [{"order_id": "o-1", "session": "s1"}]
    assert rows(store, "select finding, severity, evidence from findings") == [
        {"finding": "f-1", "severity": "warning", "evidence": ["gw-1/1/sessions/0/0"]}
    ]
    assert [row["boot"] for row in rows(store, "select boot from gateways order by boot")] == [1, 2]


async def test_orders_and_findings_that_are_recorded_again_are_the_same(log: SegmentLog, empty: Store) -> None:
    api = Writer(log, "api")
    for _ in range(2):
        api.ordered("s1", "reporter", "o-9")
        api.ordered("s1", "reporter", "o-9")
        api.raised("f-9", "reporter")
        await api.write()
        await ingest_all(log, empty)
    assert len(rows(empty, "from orders")) == len(rows(empty, "from findings")) == 1


async def test_outages_and_missing_frames_are_recording_gaps(log: SegmentLog, empty: Store) -> None:
    gateway = Writer(log)
    gateway.add("gw-1", RecordingStopped(gateway.at(MINUTE), "gw-1", START_US, 12, "the disk is full"))
    await gateway.write()
    gap = Gap("sessions", 0, 0, "gw-1", 1, 3, 7)
    await ingest_all(log, empty, (gap,))
    kinds = rows(empty, "select kind, writer, refused from recording_gaps order by kind")
    assert [tuple(row.values()) for row in kinds] == [
        ("frames missing", "gw-1", None),
        ("recording stopped", "gw-1", 12),
    ]


async def test_an_end_whose_beginning_is_lost_is_shown_all_the_same_and_once(log: SegmentLog, empty: Store) -> None:
    gateway = Writer(log)
    under = stamp("s", "reporter")
    gateway.finished(under, 5, rows=3)
    await gateway.write()
    await ingest_all(log, empty)
    gateway.finished(under, 5, rows=99)
    await gateway.write()
    frames, follower = await frames_of(log)
    empty.ingest(Batch(frames[1:], follower.offsets, follower.seen))
    assert rows(empty, "select execution, outcome, rows, statement, agent from statements") == [
        {"execution": 5, "outcome": "ok", "rows": 3, "statement": None, "agent": "reporter"}
    ]


async def test_parameters_are_kept_where_they_are_recorded(log: SegmentLog, empty: Store) -> None:
    gateway = Writer(log)
    under = stamp("s", "reporter")
    gateway.add("reporter", StatementParameters(1, ("a", None, "it's \u0000 \u2028")), under)
    await gateway.write()
    await ingest_all(log, empty)
    assert rows(empty, "select * from parameters") == [
        {"session": "s", "execution": 1, "values": ["a", None, "it's \u0000 \u2028"]}
    ]


async def test_hostile_text_and_wild_numbers_stop_nothing(log: SegmentLog, empty: Store) -> None:
    gateway = Writer(log)
    under = stamp("s'; drop table texts; --", 'a"b\\', backend_start_us=2**62, task="\u0000\U0001f600")
    gateway.opened(under, expires_at_us=2**62)
    gateway.defined(under, 2**62, "select '\"\\\u0000\n", relations=("weird.'x",))
    gateway.began(under, 2**62, 2**62)
    gateway.finished(under, 2**62)
    await gateway.write()
    await ingest_all(log, empty)
    (row,) = rows(empty, "select * from statements")
    assert (row["session"], row["agent"], row["task"]) == (under.session, under.agent, under.task)
    assert (row["text"], row["relations"]) == ("select '\"\\\u0000\n", ["weird.'x"])
    assert row["backend_start"] == datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001


def test_no_key_verifier_is_projected(store: Store) -> None:
    for table in TABLES:
        assert "SCRAM-SHA-256" not in str(store.read(f"select * from {table}", {}).rows), table


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_can_be_read(store: Store, view: str) -> None:
    assert store.read(f"select * from {view}", {}).columns


async def test_agents_and_grants_stand_where_the_registry_says(log: SegmentLog, empty: Store) -> None:
    registry = Registry()
    api = Writer(log, "api")
    for number in range(300):
        chance = random.Random(number)
        agent, grant = f"agent-{number}", f"grant-{number}"
        for _ in range(chance.randrange(1, 12)):
            event = _some_identity_event(chance, api.at(1), agent, grant)
            registry.apply(event)
            api.add(agent, event)
    await api.write()
    await ingest_all(log, empty)
    agents = {str(row["agent"]): row for row in rows(empty, "select * from agents")}
    assert set(agents) == {agent.id for agent in registry.agents.values() if agent.known}
    for name, row in agents.items():
        agent_ = registry.agents[name]
        assert (row["state"], row["key_id"], row["state_by"], row["description"]) == (
            agent_.state,
            agent_.key_id,
            agent_.state_by,
            agent_.description,
        ), name
    grants = {str(row["grant"]): row for row in rows(empty, "select * from grants")}
    assert set(grants) == set(registry.grants)
    for name, row in grants.items():
        grant_ = registry.grants[name]
        assert (row["state"], row["approver"] or "", row["ended_by"] or "", row["narrowed_by"] or "", row["scope"]) == (
            grant_.state,
            grant_.approver,
            grant_.ended_by,
            grant_.narrowed_by,
            scope_json(grant_.scope),
        ), name


async def test_what_is_revoked_now_is_what_the_registry_says(log: SegmentLog, empty: Store) -> None:
    registry, api, chance, follower = Registry(), Writer(log, "api"), random.Random(7), Follower(log, TOPICS, {})
    names = [(issuer, name) for issuer in ("i-1", "i-2") for name in ("ada", "bob", "eve")]
    for _ in range(400):
        issuer, name = chance.choice(names)
        at_us = api.at(1)
        said = ("r", f"op-{at_us}")
        kinds: list[IdentityEvent] = [
            SubjectRevoked(at_us, issuer, name, *said),
            SubjectReinstated(at_us, issuer, name, *said),
            GroupRevoked(at_us, issuer, name, *said),
            GroupReinstated(at_us, issuer, name, *said),
            AllRevoked(at_us, *said),
            AllReinstated(at_us, *said),
        ]
        event = chance.choice(kinds)
        registry.apply(event)
        api.add("*", event)
        if chance.random() < 0.1:
            await api.write()
            await ingest_news(follower, log, empty)
            subjects = {("subject", *of): registry.subject(*of) for of in names}
            groups = {("group", *of): registry.group(*of) for of in names}
            expected = {
                of: (standing.by, standing.revoked_at_us)
                for of, standing in (subjects | groups | {("all", "", ""): registry.everything}).items()
                if standing is not None and standing.standing
            }
            found = rows(empty, "select *, epoch_us(revoked_at) as revoked_us from revocations")
            assert {(r["kind"], r["issuer"], r["name"]): (r["operator"], r["revoked_us"]) for r in found} == expected


async def test_a_revoked_session_is_listed_until_it_has_ended_and_an_agent_until_it_is_reinstated(
    log: SegmentLog, empty: Store
) -> None:
    api, gateway, follower = Writer(log, "api"), Writer(log), Follower(log, TOPICS, {})
    lives, over = stamp("lives", "reporter"), stamp("over", "reporter")
    gateway.opened(lives)
    gateway.opened(over)
    gateway.closed(over)
    await gateway.write()
    for event in (
        AgentRegistered(1, "reporter", "d", "o", "", "", "", "k", "v", "op"),
        AgentRevoked(2, "reporter", "odd", "op"),
        *(SessionRevoked(3 + n, name, "reporter", "odd", "op") for n, name in enumerate(("lives", "over", "not-seen-yet"))),
    ):
        api.add("reporter", event)
    await api.write()
    await ingest_news(follower, log, empty)
    listed = rows(empty, "select kind, name from revocations order by all")
    assert [(row["kind"], row["name"]) for row in listed] == [
        ("agent", "reporter"),
        ("session", "lives"),
        ("session", "not-seen-yet"),
    ]
    api.add("reporter", AgentReinstated(9, "reporter", "", "op"))
    await api.write()
    await ingest_news(follower, log, empty)
    assert {row["kind"] for row in rows(empty, "select kind from revocations")} == {"session"}


def _some_identity_event(chance: random.Random, at_us: int, agent: str, grant: str) -> IdentityEvent:
    operator = f"op-{at_us}"
    kinds: list[IdentityEvent] = [
        AgentRegistered(at_us, agent, f"d-{at_us}", "o", "", "", "", f"k-{at_us}", "v", operator),
        AgentRegistered(at_us, agent, f"d-{at_us}", "o", "", "", "", f"k-{at_us}", "v", operator),
        AgentKeyReplaced(at_us, agent, f"k-{at_us}", "v", operator),
        AgentRevoked(at_us, agent, "r", operator),
        AgentReinstated(at_us, agent, "r", operator),
        AgentRetired(at_us, agent, "r", operator),
        GrantRequested(at_us, grant, agent, Scope("c", ()), 0, "r", operator),
        GrantRequested(at_us, grant, agent, Scope("c", ()), 0, "r", operator),
        GrantApproved(at_us, grant, agent, operator, 0),
        GrantDenied(at_us, grant, agent, operator, "r"),
        GrantRevoked(at_us, grant, agent, operator, "r"),
        GrantNarrowed(at_us, grant, agent, Scope("c", (), (f"public.f{at_us}",)), operator, "r"),
    ]
    return chance.choice(kinds)


def test_a_grant_whose_time_is_over_is_expired(tmp_path: Path) -> None:
    from ingest.frames import Framer

    framer = Framer("api", 1, events_max=10, bytes_max=10_000)
    framer.add("identity", "a", GrantRequested(1, "g", "a", Scope("c", ()), 1, "r", "x"))
    framer.add("identity", "a", GrantApproved(2, "g", "a", "bob", 3))
    (entry,) = framer.cut()
    from ingest.frames import decode

    store = Store.open(AnalyticsSettings(tmp_path / "t"))
    try:
        store.ingest(Batch([(Record("identity", 0, 0, 5, entry.key, entry.value), decode(entry.value))], {("identity", 0): 1}, {}))
        assert rows(store, "select state from grants") == [{"state": "expired"}]
    finally:
        store.close()


@pytest.mark.parametrize("seed", range(4))
async def test_tables_do_not_depend_on_batches_nor_on_how_topics_are_read_side_by_side(tmp_path: Path, seed: int) -> None:
    log = SegmentLog(tmp_path / "log", LogSettings())
    chance = random.Random(seed)
    await story(log)
    await _noise(log, chance)
    frames, follower = await frames_of(log)
    whole = Store.open(AnalyticsSettings(tmp_path / "whole"))
    pieces = Store.open(AnalyticsSettings(tmp_path / "pieces"))
    try:
        whole.ingest(Batch(frames, follower.offsets, follower.seen))
        by_topic = {topic: [pair for pair in frames if pair[0].topic == topic] for topic in TOPICS}
        while any(by_topic.values()):
            batch: list[tuple[Record, Frame]] = []
            for _ in range(chance.randrange(1, 6)):
                topic = chance.choice([topic for topic, left in by_topic.items() if left] or ["identity"])
                if by_topic[topic]:
                    batch.append(by_topic[topic].pop(0))
            pieces.ingest(Batch(batch, follower.offsets, follower.seen))
        assert pieces.checksum() == whole.checksum()
        assert whole.counts()["executions"] > 50
    finally:
        whole.close()
        pieces.close()
        await log.close()


async def _noise(log: SegmentLog, chance: random.Random) -> None:
    for boot in (3, 4):
        gateway = Writer(log, "gw-1", boot, START_US + boot * 60 * MINUTE)
        gateway.started()
        stamps = [stamp(f"n{boot}-{number}", chance.choice(["reporter", "loader"])) for number in range(6)]
        for under in stamps:
            gateway.opened(under)
            gateway.defined(under, 1, f"select {chance.random()}")
        for execution in range(1, 12):
            for under in stamps:
                gateway.at(chance.randrange(20) * 1_000_000)
                if chance.random() < 0.2:
                    gateway.denied(under, execution, 1)
                else:
                    gateway.began(under, execution, 1)
                    if chance.random() < 0.9:
                        gateway.finished(under, execution, chance.choice(["ok", "error", "skipped"]), rows=chance.randrange(9))
                if chance.random() < 0.3:
                    await gateway.write()
        for under in stamps[:3]:
            gateway.closed(under)
        await gateway.write()


async def test_a_finding_shows_what_became_of_it(log: SegmentLog, empty: Store) -> None:
    api = Writer(log, "api")
    for finding, agent in (("f-1", "a"), ("f-2", "b"), ("f-3", "c"), ("f-4", "d")):
        api.raised(finding, agent)
    raised_us = api.now_us
    for _ in range(2):  # the same is recorded again after a crash
        recurred = FindingRecurred(api.at(5), "f-1", "a", 9, raised_us + 9, "nine times", (("rows", 12.5),), ("statements/0/7",))
        api.add("a", recurred)
    api.add("a", FindingAcknowledged(api.at(5), "f-1", "a", "alice", "mine"))
    api.add("b", FindingAcknowledged(api.at(5), "f-2", "b", "alice", ""))
    api.add("b", FindingConfirmed(api.at(5), "f-2", "b", "bob", "it was"))
    api.add("*", FindingsMuted(api.at(5), "burst", "*", raised_us + MINUTE, "alice", "a test"))
    api.add("d", FindingsMuted(api.at(5), "other", "d", raised_us + MINUTE, "alice", "another detector"))
    await api.write()
    await ingest_all(log, empty)
    shown = rows(empty, "select finding, state, times, triaged_by, note, numbers, summary from findings order by finding")
    assert [tuple(row.values()) for row in shown[:3]] == [
        ("f-1", "acknowledged", 9, "alice", "mine", '{"rows": 12.5}', "nine times"),
        ("f-2", "confirmed", 1, "bob", "it was", "{}", "many denials"),
        ("f-3", "muted", 1, "", "", "{}", "many denials"),
    ]
    assert len(rows(empty, "from finding_events where kind = 'recurred'")) == 1
    api.add("*", FindingsUnmuted(api.at(5), "burst", "*", "alice", "it is over"))
    await api.write()
    await ingest_all(log, empty)
    assert [row["state"] for row in rows(empty, "select state from findings where finding in ('f-3', 'f-4')")] == ["open", "open"]
    assert [row["detector"] for row in rows(empty, "select detector from mutes")] == ["other"]


async def test_a_mute_of_an_old_log_silences_no_finding_of_nobody(log: SegmentLog, empty: Store) -> None:
    api = Writer(log, "api")
    for agent in ("", "*"):
        api.add(agent, FindingsMuted(api.at(5), "burst", agent, api.now_us + 60 * MINUTE, "alice", "an old job"))
    api.raised("f-1", "")
    api.raised("f-2", "a")
    await api.write()
    await ingest_all(log, empty)
    shown = rows(empty, "select finding, state from findings order by finding")
    assert [tuple(row.values()) for row in shown] == [("f-1", "open"), ("f-2", "muted")]
