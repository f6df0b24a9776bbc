"""The registry as a fold: what an agent may do follows from the record, whatever order its parts are read in."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from identity import commands
from identity.commands import Accepted, Fresh, Known, Requests, decide
from identity.principal import MINT, Principal
from identity.refusal import Refusal
from identity.registry import SESSIONS_MAX, Ending, Grant, Registry, Standing
from identity.scope import Authority
from ingest.events import (
    AgentKeyReplaced,
    AgentRegistered,
    AgentReinstated,
    AgentRetired,
    AgentRevoked,
    AllReinstated,
    AllRevoked,
    GrantApproved,
    GrantDenied,
    GrantNarrowed,
    GrantRequested,
    GrantRevoked,
    GroupReinstated,
    GroupRevoked,
    IdentityEvent,
    Rule,
    Scope,
    SessionRevoked,
    SubjectReinstated,
    SubjectRevoked,
)

SCOPE = Scope("shop", (Rule("public", ("orders",), ("select",)),))
SECOND = 1_000_000


def registered(agent: str = "reporter", at_us: int = 10, client: str = "", subject: str = "") -> AgentRegistered:
    issuer = "https://idp.example" if client else ""
    return AgentRegistered(at_us, agent, "reads", "team", issuer, subject, client, "k1", "SCRAM-SHA-256$...", "alice")


def granted(grant: str = "g-1", agent: str = "reporter", at_us: int = 20, expires_at_us: int = 0) -> list[IdentityEvent]:
    return [
        GrantRequested(at_us, grant, agent, SCOPE, 60 if expires_at_us else 0, "monthly report", "alice"),
        GrantApproved(at_us + 1, grant, agent, "bob", expires_at_us),
    ]


def folded(*events: IdentityEvent) -> Registry:
    registry = Registry()
    for event in events:
        registry.apply(event)
    return registry


def may_act(registry: Registry, now_us: int = 1000, agent: str = "reporter") -> bool:
    return isinstance(registry.authority(agent, "shop", ("public",), now_us), Authority)


def standing(*grants: str, session: str = "s-1", agent: str = "reporter", knew_us: int = 500, **more: object) -> Standing:
    named: dict[str, Any] = {"issuer": "", "subject": "key:k1", "on_behalf_of": "", "groups": frozenset(), **more}
    return Standing(session=session, agent=agent, grants=grants, identity_at_us=knew_us, **named)


def cause_of(registry: Registry, session: Standing, now_us: int = 1000) -> str:
    ending = registry.ending(session, now_us)
    return "" if ending is None else ending.cause


def why_not(registry: Registry, now_us: int = 1000, connection: str = "shop") -> str:
    refusal = registry.authority("reporter", connection, ("public",), now_us)
    assert isinstance(refusal, Refusal)
    return refusal.reason


def test_an_active_agent_acts_within_its_approved_grants_and_is_told_who_approved_them() -> None:
    authority = folded(registered(), *granted(expires_at_us=5000)).authority("reporter", "shop", ("app", "public"), 1000)
    assert isinstance(authority, Authority)
    assert (authority.agent, authority.connection, authority.search_path) == ("reporter", "shop", ("app", "public"))
    (grant,) = authority.grants
    assert (grant.id, grant.agent, grant.scope, grant.approver, grant.expires_at_us) == ("g-1", "reporter", SCOPE, "bob", 5000)


def test_a_requested_grant_allows_nothing() -> None:
    assert why_not(folded(registered(), granted()[0])) == "agent reporter holds no live grant on connection shop"


def test_a_denied_grant_stays_denied_even_if_an_approval_follows() -> None:
    request, approval = granted()
    registry = folded(registered(), request, GrantDenied(21, "g-1", "reporter", "bob", "too wide"), approval)
    assert registry.grants["g-1"].state == "denied"
    assert not may_act(registry)


def test_a_grant_on_another_connection_allows_nothing_here() -> None:
    assert "connection stock" in why_not(folded(registered(), *granted()), connection="stock")


def test_a_grant_ends_in_the_microsecond_in_which_it_expires() -> None:
    registry = folded(registered(), *granted(expires_at_us=5000))
    assert may_act(registry, 4999)
    assert not may_act(registry, 5000)


def test_an_expired_grant_keeps_its_approved_state_since_nobody_took_it_back() -> None:
    grant = folded(registered(), *granted(expires_at_us=5000)).grants["g-1"]
    assert (grant.state, grant.expired(5000), grant.live(5000)) == ("approved", True, False)


def test_a_revoked_agent_keeps_its_grants_and_can_use_none_until_it_is_reinstated() -> None:
    registry = folded(registered(), *granted(), AgentRevoked(30, "reporter", "odd queries", "alice"))
    assert registry.grants["g-1"].live(1000)
    assert why_not(registry) == "agent reporter is revoked: odd queries"
    registry.apply(AgentReinstated(40, "reporter", "explained", "bob"))
    assert may_act(registry)


def test_a_retired_name_never_comes_back() -> None:
    registry = folded(registered(), *granted(), AgentRetired(30, "reporter", "project over", "alice"))
    for event in (
        AgentReinstated(40, "reporter", "", "alice"),
        registered(at_us=50),
        AgentKeyReplaced(60, "reporter", "k2", "v2", "a"),
    ):
        assert registry.apply(event) is False
    assert registry.agents["reporter"].state == "retired"
    assert registry.agents["reporter"].key_id == "k1"
    assert not may_act(registry)


def test_a_retired_name_stays_retired_where_the_log_begins_after_its_registration() -> None:
    registry = folded(AgentRetired(30, "reporter", "project over", "alice"), registered(at_us=50), *granted(at_us=60))
    assert registry.agents["reporter"].state == "retired"
    assert not may_act(registry)


def test_a_revocation_holds_where_the_log_begins_after_the_registration() -> None:
    registry = folded(AgentRevoked(30, "reporter", "odd", "alice"))
    assert registry.agents["reporter"].known is False
    registry.apply(registered(at_us=10))
    assert registry.agents["reporter"].state == "revoked"


@pytest.mark.parametrize(
    "event",
    [
        AgentKeyReplaced(1, "ghost", "k", "v", "alice"),
        AgentReinstated(1, "ghost", "", "alice"),
        GrantApproved(1, "g-9", "ghost", "bob", 0),
        GrantDenied(1, "g-9", "ghost", "bob", "no"),
        GrantRevoked(1, "g-9", "ghost", "bob", "no"),
    ],
)
def test_an_event_about_what_was_never_seen_changes_nothing(event: IdentityEvent) -> None:
    registry = Registry()
    assert registry.apply(event) is False
    assert (dict(registry.agents), dict(registry.grants)) == ({}, {})


def test_a_grant_of_an_agent_that_was_never_seen_allows_nothing() -> None:
    assert why_not(folded(*granted())) == "agent reporter is not registered"


def test_an_approval_that_names_another_agent_is_not_the_grants() -> None:
    request, _ = granted()
    registry = folded(registered(), request, GrantApproved(21, "g-1", "intruder", "bob", 0))
    assert registry.grants["g-1"].state == "requested"


HISTORY: list[IdentityEvent] = [
    registered(),
    *granted(expires_at_us=9000),
    AgentRevoked(30, "reporter", "odd", "alice"),
    AgentReinstated(40, "reporter", "explained", "bob"),
    AgentKeyReplaced(45, "reporter", "k2", "v2", "alice"),
    *granted("g-2", at_us=50),
    GrantRevoked(60, "g-2", "reporter", "alice", "not needed"),
    AgentRevoked(70, "reporter", "again", "alice"),
    AgentReinstated(80, "reporter", "", "bob"),
    AgentKeyReplaced(85, "reporter", "k3", "v3", "alice"),
]


def state_of(registry: Registry) -> tuple[object, object]:
    names = (registry.everything, registry.subject("https://idp.example", "ada"), registry.group("https://idp.example", "staff"))
    return (dict(registry.agents), *names), dict(registry.grants)


@pytest.mark.parametrize(("start", "stop"), list(itertools.combinations(range(len(HISTORY) + 1), 2)))
def test_any_stretch_of_the_log_may_be_read_a_second_time(start: int, stop: int) -> None:
    registry = folded(*HISTORY)
    before = state_of(registry)
    for event in HISTORY[start:stop]:
        registry.apply(event)
    assert state_of(registry) == before


def test_agents_may_be_read_in_any_order() -> None:
    first: list[IdentityEvent] = [registered("a", client="one"), *granted("g-a", "a")]
    second: list[IdentityEvent] = [registered("b", client="two"), *granted("g-b", "b"), AgentRevoked(90, "b", "", "x")]
    assert state_of(folded(*first, *second)) == state_of(folded(*second, *first))


def test_a_new_key_takes_the_place_of_the_old_one_even_while_the_agent_is_revoked() -> None:
    registry = folded(
        registered(), AgentRevoked(30, "reporter", "leak", "alice"), AgentKeyReplaced(31, "reporter", "k2", "v2", "a")
    )
    assert (registry.agents["reporter"].key_id, registry.agents["reporter"].state) == ("k2", "revoked")


# -- OIDC identities ---------------------------------------------------------------------------------------------------------------


def test_a_client_without_a_pinned_subject_is_its_agent_with_any_subject() -> None:
    registry = folded(registered(client="app"))
    assert registry.agent_of("https://idp.example", "app", "sub-1") == "reporter"
    assert registry.agent_of("https://idp.example", "app", "") == "reporter"


def test_a_pinned_agent_is_found_with_its_subject_only() -> None:
    registry = folded(registered(client="app", subject="sub-1"))
    assert registry.agent_of("https://idp.example", "app", "sub-1") == "reporter"
    assert registry.agent_of("https://idp.example", "app", "sub-2") is None
    assert registry.agent_of("https://idp.example", "app", "") is None


@pytest.mark.parametrize(
    ("issuer", "client"),
    [("https://idp.example/", "app"), ("https://other.example", "app"), ("https://idp.example", "App"), ("", ""), ("", "app")],
)
def test_issuer_and_client_must_match_byte_for_byte(issuer: str, client: str) -> None:
    registry = folded(registered(client="app"), registered("keyed"))
    assert registry.agent_of(issuer, client, "sub-1") is None


def test_an_identity_that_two_agents_claim_is_neithers() -> None:
    registry = folded(registered("a", client="app"), registered("b", client="app", subject="sub-1"))
    assert registry.agent_of("https://idp.example", "app", "sub-1") is None
    assert registry.agent_of("https://idp.example", "app", "sub-2") == "a"


def test_a_retired_agents_token_still_names_it_so_that_the_refusal_can_say_why() -> None:
    registry = folded(registered(client="app"), AgentRetired(30, "reporter", "over", "alice"))
    assert registry.agent_of("https://idp.example", "app", "s") == "reporter"
    assert why_not(registry) == "agent reporter was retired: over"


# -- sessions ----------------------------------------------------------------------------------------------------------------------


def test_a_session_goes_on_while_all_that_it_rests_on_stands() -> None:
    registry = folded(registered(), *granted(), *granted("g-2"))
    assert cause_of(registry, standing("g-1", "g-2")) == ""


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (AgentRevoked(600, "reporter", "odd", "alice"), "agent revoked"),
        (AgentRetired(600, "reporter", "over", "alice"), "agent retired"),
        (GrantRevoked(600, "g-2", "reporter", "alice", "not needed"), "grant revoked"),
    ],
)
def test_a_session_ends_with_the_first_thing_it_rests_on(event: IdentityEvent, cause: str) -> None:
    registry = folded(registered(), *granted(), *granted("g-2"), event)
    ending = registry.ending(standing("g-1", "g-2"), 1000)
    assert ending is not None
    assert (ending.cause, ending.at_us) == (cause, 600)
    assert cause_of(registry, standing("g-1", "g-2")) == cause


def test_a_session_does_not_outlive_a_grant_that_runs_out() -> None:
    registry = folded(registered(), *granted(expires_at_us=5000), *granted("g-2"))
    assert cause_of(registry, standing("g-1", "g-2"), 4999) == ""
    ending = registry.ending(standing("g-1", "g-2"), 6000)
    assert ending is not None
    assert (ending.cause, ending.at_us, ending.grant) == ("grant expired", 5000, "g-1")


def test_a_session_that_rests_on_a_grant_of_another_agent_ends() -> None:
    registry = folded(registered(), registered("other"), *granted(agent="other"))
    assert cause_of(registry, standing("g-1")) == "grant unknown"


def test_a_session_of_an_agent_that_is_not_in_the_record_ends() -> None:
    assert cause_of(Registry(), standing(agent="ghost")) == "agent unknown"


def test_a_session_opened_before_a_reinstatement_ends_although_the_agent_may_act_again() -> None:
    registry = folded(registered(), *granted(), AgentRevoked(30, "reporter", "odd", "a"), AgentReinstated(40, "reporter", "", "a"))
    for knew_us in (0, 21, 29):
        assert cause_of(registry, standing("g-1", knew_us=knew_us)) == "agent revoked"
    assert cause_of(registry, standing("g-1", knew_us=40)) == ""


def test_a_grant_expires_once() -> None:
    registry = folded(registered(), *granted(expires_at_us=5000), *granted("g-2", expires_at_us=7000), *granted("g-3"))
    assert [grant.id for grant in registry.expired_between(4999, 7000)] == ["g-1", "g-2"]
    assert [grant.id for grant in registry.expired_between(5000, 6999)] == []


# -- more than one agent, and less -------------------------------------------------------------------------------------------------

IDP = "https://idp.example"
BOTH = [
    ((SubjectRevoked(600, IDP, "ada", "left", "a"), SubjectReinstated(700, IDP, "ada", "", "a")), "subject revoked"),
    ((GroupRevoked(600, IDP, "contractors", "leak", "a"), GroupReinstated(700, IDP, "contractors", "", "a")), "group revoked"),
    ((AllRevoked(600, "attack", "a"), AllReinstated(700, "", "a")), "all revoked"),
    ((AgentRevoked(600, "reporter", "odd", "a"), AgentReinstated(700, "reporter", "", "a")), "agent revoked"),
]
ADAS: dict[str, Any] = {"issuer": IDP, "subject": "ada", "groups": frozenset({"staff", "contractors"})}
FOR_ADA: dict[str, Any] = ADAS | {"subject": "svc", "on_behalf_of": "ada"}


def principal(issuer: str = IDP, subject: str = "ada", on_behalf_of: str = "", groups: tuple[str, ...] = ()) -> Principal:
    return Principal(
        agent="reporter",
        subject=subject,
        issuer=issuer,
        client="app",
        method="token",
        credential="c",
        on_behalf_of=on_behalf_of,
        groups=groups,
        mint=MINT,
    )


def barred(registry: Registry, **of: Any) -> str:
    ending = registry.barred(principal(**of))
    return "" if ending is None else ending.cause


@pytest.mark.parametrize(("turn", "cause"), BOTH)
@pytest.mark.parametrize("acts", [ADAS, FOR_ADA])
def test_who_is_revoked_may_not_act_until_it_is_taken_back(
    turn: tuple[IdentityEvent, IdentityEvent], cause: str, acts: dict[str, Any]
) -> None:
    revoked, reinstated = turn
    registry = folded(registered(), *granted(), revoked)
    proven = acts | {"groups": tuple(acts["groups"])}
    assert (barred(registry, **proven), cause_of(registry, standing("g-1", **acts))) == (cause, cause)
    registry.apply(reinstated)
    assert barred(registry, **proven) == ""
    # Whoever was let in before ends all the same; whoever was let in with this known goes on.
    knew = {knew_us: cause_of(registry, standing("g-1", knew_us=knew_us, **acts)) for knew_us in (0, 599, 700)}
    assert knew == {0: cause, 599: cause, 700: ""}


@pytest.mark.parametrize(
    "acts",
    [
        {"issuer": "https://other.example", "subject": "ada", "groups": frozenset({"contractors"})},
        {"issuer": "", "subject": "key:k1", "on_behalf_of": "ada"},
        {"issuer": IDP, "subject": "Ada", "groups": frozenset({"Contractors", "contractors/x"})},
    ],
)
def test_a_subject_and_a_group_are_those_of_one_issuer_byte_for_byte(acts: dict[str, Any]) -> None:
    registry = folded(registered(), *granted(), BOTH[0][0][0], BOTH[1][0][0])
    assert cause_of(registry, standing("g-1", **acts)) == ""
    assert barred(registry, **(acts | {"groups": tuple(acts.get("groups", ()))})) == ""


def test_an_ending_says_what_was_revoked_when_and_why() -> None:
    registry = folded(registered(), *granted(), SubjectRevoked(600, IDP, "ada", "left the firm", "a"))
    assert registry.ending(standing("g-1", **FOR_ADA), 1000) == Ending(
        "subject revoked", 600, f"subject ada of {IDP} is revoked: left the firm"
    )


def test_a_revoked_session_ends_and_its_agent_may_open_another() -> None:
    registry = folded(registered(), *granted(), SessionRevoked(600, "s-1", "reporter", "odd", "a"))
    assert cause_of(registry, standing("g-1")) == "session revoked"
    assert cause_of(registry, standing("g-1", session="s-2")) == ""
    assert may_act(registry)


def test_what_was_revoked_one_by_one_stays_so_when_the_rest_is_reinstated() -> None:
    turns = {cause: turn for turn, cause in BOTH}
    for kept, (revoked, _) in turns.items():
        registry = folded(registered(), *granted())
        for first, _ in turns.values():
            registry.apply(first)
        for cause, (_, back) in turns.items():
            if cause != kept:
                registry.apply(back)
        assert barred(registry, groups=("contractors",)) == kept, revoked


def test_while_everything_is_revoked_no_agent_has_authority_by_any_door() -> None:
    registry = folded(registered(), *granted(), AllRevoked(600, "attack", "a"))
    assert not may_act(registry)
    assert why_not(registry) == "everything is revoked: attack"
    registry.apply(AllReinstated(700, "", "a"))
    assert may_act(registry)


def test_revoked_sessions_are_remembered_up_to_a_limit() -> None:
    registry = Registry()
    for n in range(SESSIONS_MAX + 2):
        registry.apply(SessionRevoked(n + 1, f"s-{n}", "reporter", "x", "a"))
    assert len(registry._sessions) == SESSIONS_MAX


def test_the_newest_event_is_the_newest_whatever_it_told() -> None:
    registry = folded(registered(), *granted(), AllReinstated(900, "", "a"), AgentRevoked(30, "ghost", "x", "a"))
    assert registry.identity_at_us == 900


def test_a_narrowed_grant_allows_what_is_left_and_ends_no_session() -> None:
    wide = Scope("shop", (Rule("public", ("orders", "lines"), ("select", "insert")),))
    asked = GrantRequested(20, "g-1", "reporter", wide, 0, "work", "alice")
    first = GrantNarrowed(600, "g-1", "reporter", Scope("shop", (Rule("public", ("orders",), ("select", "insert")),)), "bob", "x")
    second = GrantNarrowed(700, "g-1", "reporter", SCOPE, "bob", "y")
    registry = folded(registered(), asked, GrantApproved(21, "g-1", "reporter", "bob", 0), first, second)
    assert not any(registry.apply(again) for again in (first, second, asked)), "what was seen before widens nothing"
    authority = registry.authority("reporter", "shop", ("public",), 1000)
    assert isinstance(authority, Authority)
    assert [grant.scope for grant in authority.grants] == [SCOPE]
    assert (registry.grants["g-1"].narrowed_at_us, registry.grants["g-1"].narrowed_by) == (700, "bob")
    assert cause_of(registry, standing("g-1")) == ""


def test_a_thousand_sessions_of_many_groups_are_reviewed_in_moments() -> None:
    registry = folded(registered(), *granted(), *(GroupRevoked(100 + n, IDP, f"r{n}", "x", "a") for n in range(1000)))
    groups = frozenset(f"g{n}" for n in range(512))
    sessions = [standing("g-1", session=f"s{n}", knew_us=50, issuer=IDP, groups=groups) for n in range(1000)]
    began = time.process_time()
    assert [registry.ending(session, 1000) for session in sessions] == [None] * 1000
    assert time.process_time() - began < 2  # measured 0.04 s


# -- random lives ------------------------------------------------------------------------------------------------------------------

AGENTS = st.sampled_from(["a", "b", "c"])
OPERATORS = st.sampled_from(["alice", "bob"])
KNOWN = Known(frozenset({"shop"}), {"idp": "https://idp.example"})


class Lives(RuleBasedStateMachine):
    """Operators give commands at random, and the clock runs, and sometimes steps back."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.requests = Requests(1000)
        self.log: list[IdentityEvent] = []
        self.now_us = 1_000 * SECOND
        self.grants = 0
        self.retired: set[str] = set()
        self.revoked: set[str] = set()
        self.names_revoked: set[str] = set()

    def give(self, command: commands.Command, operator: str) -> IdentityEvent | None:
        self.grants += 1
        fresh = Fresh(f"g-{self.grants}", f"k-{self.grants}", f"v-{self.grants}")
        verdict = decide(command, "", operator, self.registry, self.requests, KNOWN, fresh, self.now_us)
        if not isinstance(verdict, Accepted):
            return None
        assert self.registry.apply(verdict.event), "an accepted command must change something"
        assert not self.log or verdict.event.at_us > self.log[-1].at_us, "times rise, whatever the clock does"
        self.log.append(verdict.event)
        return verdict.event

    @rule(agent=AGENTS, operator=OPERATORS)
    def register(self, agent: str, operator: str) -> None:
        event = self.give(commands.RegisterAgent(agent, "", "team", key=True), operator)
        assert event is None or agent not in self.retired | self.revoked

    @rule(agent=AGENTS, operator=OPERATORS)
    def revoke(self, agent: str, operator: str) -> None:
        if self.give(commands.RevokeAgent(agent, "odd"), operator):
            self.revoked.add(agent)

    @rule(agent=AGENTS, operator=OPERATORS)
    def reinstate(self, agent: str, operator: str) -> None:
        if self.give(commands.ReinstateAgent(agent, ""), operator):
            self.revoked.discard(agent)

    @rule(agent=AGENTS, operator=OPERATORS)
    def retire(self, agent: str, operator: str) -> None:
        if self.give(commands.RetireAgent(agent, "over"), operator):
            self.retired.add(agent)

    @rule(
        operator=OPERATORS,
        command=st.sampled_from(
            [
                commands.RevokeAll("attack"),
                commands.ReinstateAll(""),
                commands.RevokeSubject("idp", "ada", "left"),
                commands.ReinstateSubject("idp", "ada", ""),
                commands.RevokeGroup("idp", "staff", "leak"),
                commands.ReinstateGroup("idp", "staff", ""),
            ]
        ),
    )
    def many_at_once(self, command: commands.Command, operator: str) -> None:
        if self.give(command, operator) is None:
            return
        match command:
            case commands.RevokeAll() | commands.RevokeSubject() | commands.RevokeGroup():
                self.names_revoked.add(type(command).__name__.removeprefix("Revoke"))
            case _:
                self.names_revoked.remove(type(command).__name__.removeprefix("Reinstate"))

    @rule(agent=AGENTS, operator=OPERATORS)
    def replace_key(self, agent: str, operator: str) -> None:
        event = self.give(commands.ReplaceKey(agent), operator)
        if isinstance(event, AgentKeyReplaced):
            assert self.registry.agents[agent].key_id == event.key_id

    @rule(agent=AGENTS, operator=OPERATORS, seconds=st.sampled_from([0, 1, 60]))
    def ask(self, agent: str, operator: str, seconds: int) -> None:
        self.give(commands.RequestGrant(agent, SCOPE, seconds, "work"), operator)

    @rule(data=st.data(), operator=OPERATORS, what=st.sampled_from(["approve", "deny", "revoke"]))
    def answer(self, data: st.DataObject, operator: str, what: str) -> None:
        if not self.registry.grants:
            return
        grant = data.draw(st.sampled_from(sorted(self.registry.grants)))
        asked_by = self.registry.grants[grant].requested_by
        match what:
            case "approve":
                event = self.give(commands.ApproveGrant(grant), operator)
            case "deny":
                event = self.give(commands.DenyGrant(grant, "no"), operator)
            case _:
                self.give(commands.RevokeGrant(grant, "no"), operator)
                event = None
        assert event is None or operator != asked_by

    @rule(seconds=st.sampled_from([-30, 0, 1, 59, 600]))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * SECOND

    @rule(start=st.integers(0, 30), count=st.integers(1, 30))
    def part_of_the_log_is_read_again(self, start: int, count: int) -> None:
        before = state_of(self.registry)
        for event in self.log[start : start + count]:
            self.registry.apply(event)
        assert state_of(self.registry) == before

    @invariant()
    def who_is_out_can_do_nothing(self) -> None:
        for agent in ("a", "b", "c"):
            authority = self.registry.authority(agent, "shop", (), self.now_us)
            if agent in self.retired | self.revoked or "All" in self.names_revoked:
                assert isinstance(authority, Refusal)
            if isinstance(authority, Authority):
                held = [self.registry.grants[grant.id] for grant in authority.grants]
                assert all(self.stands(grant, agent) for grant in held)

    @invariant()
    def who_is_revoked_by_whatever_name_is_barred(self) -> None:
        if "a" not in self.registry.agents:
            return
        out = "a" in self.retired | self.revoked or "All" in self.names_revoked
        for name, acts in (("Subject", {"on_behalf_of": "ada"}), ("Group", {"subject": "x", "groups": ("staff",)})):
            of = replace(principal(), agent="a", mint=MINT, **({"subject": "svc"} | acts))
            assert (self.registry.barred(of) is not None) == (out or name in self.names_revoked)

    def stands(self, grant: Grant, agent: str) -> bool:
        ended = {event.grant for event in self.log if isinstance(event, GrantRevoked | GrantDenied)}
        approved = {event.grant: event.expires_at_us for event in self.log if isinstance(event, GrantApproved)}
        return (
            grant.agent == agent
            and grant.approver != grant.requested_by
            and grant.id not in ended
            and grant.id in approved
            and not 0 < approved[grant.id] <= self.now_us
        )

    @invariant()
    def a_replay_gives_the_same_registry(self) -> None:
        assert state_of(folded(*self.log)) == state_of(self.registry)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
