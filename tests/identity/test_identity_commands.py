"""What comes of a command: one event, or every reason why none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from identity import commands
from identity.commands import CONFIG, Accepted, Command, Fresh, Known, Rejected, Repeated, Requests, Settings, Verdict, decide
from identity.registry import Registry
from ingest.events import (
    AgentKeyReplaced,
    AgentRegistered,
    AgentReinstated,
    AgentRevoked,
    GrantApproved,
    GrantRequested,
    IdentityEvent,
    Rule,
    Scope,
)

SECOND = 1_000_000
LIMITS = Settings()
NOW_US = 1_800_000_000 * SECOND
KNOWN = Known(frozenset({"shop", "stock"}), {"keycloak": "https://idp.example/realms/agents"})
SCOPE = Scope("shop", (Rule("public", ("orders",), ("select",)),))
REPORTER = commands.RegisterAgent("reporter", "monthly figures", "finance")
ASK = commands.RequestGrant("reporter", SCOPE, 3600, "month's end")


class House:
    """A registry and what was asked of it, without a log: what was accepted is applied."""

    def __init__(self, *given: tuple[Command, str]) -> None:
        self.registry = Registry()
        self.requests = Requests(1000)
        self.now_us = NOW_US
        self.made = 0
        for command, operator in given:
            assert isinstance(self.give(command, operator), Accepted)

    def give(self, command: Command, operator: str = "alice", key: str = "", settings: Settings = LIMITS) -> Verdict:
        self.made += 1
        fresh = Fresh(f"g-{self.made}", f"k-{self.made}", f"v-{self.made}")
        verdict = decide(command, key, operator, self.registry, self.requests, KNOWN, fresh, self.now_us, settings)
        if isinstance(verdict, Accepted):
            self.apply(verdict.event)
        return verdict

    def apply(self, event: IdentityEvent) -> None:
        self.registry.apply(event)
        self.requests.apply(event)

    def event(self, command: Command, operator: str = "alice", key: str = "") -> IdentityEvent:
        verdict = self.give(command, operator, key)
        assert isinstance(verdict, Accepted), verdict
        return verdict.event

    def rejected(self, command: Command, operator: str = "alice", key: str = "", settings: Settings = LIMITS) -> Rejected:
        verdict = self.give(command, operator, key, settings)
        assert isinstance(verdict, Rejected), verdict
        return verdict


# -- agents ------------------------------------------------------------------------------------------------------------------------


def test_registering_an_agent_records_who_answers_for_it_and_who_registered_it() -> None:
    event = House().event(REPORTER, "alice")
    assert event == AgentRegistered(NOW_US, "reporter", "monthly figures", "finance", "", "", "", "", "", "alice")


def test_a_key_is_recorded_only_where_one_was_asked_for() -> None:
    event = House().event(replace(REPORTER, key=True))
    assert isinstance(event, AgentRegistered)
    assert (event.key_id, event.scram_verifier) == ("k-1", "v-1")


@pytest.mark.parametrize("issuer", ["keycloak", "https://idp.example/realms/agents"])
def test_the_record_names_an_issuer_by_its_url(issuer: str) -> None:
    event = House().event(replace(REPORTER, issuer=issuer, client="reporter", subject="s"))
    assert isinstance(event, AgentRegistered)
    assert (event.issuer, event.client, event.subject) == ("https://idp.example/realms/agents", "reporter", "s")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"agent": ""}, "agent: write"),
        ({"agent": "Reporter"}, "agent: write"),
        ({"agent": "-x"}, "agent: write"),
        ({"agent": "a" * 64}, "agent: write"),
        ({"agent": "x\n{"}, "agent: write"),
        ({"agent": CONFIG}, "agent: the name config"),
        ({"agent": "unused"}, "agent: the name unused"),
        ({"owner": " "}, "owner: missing"),
        ({"owner": "o" * 257}, "owner: at most"),
        ({"description": "a\x1b[2Jb"}, "description: holds characters"),
        ({"description": "\u202eevil"}, "description: holds characters"),
        ({"description": "\ud800"}, "description: holds characters"),
        ({"issuer": "okta", "client": "c"}, 'issuer: "okta" is not configured; configured are keycloak'),
        ({"issuer": "keycloak"}, "client: an OIDC identity needs"),
        ({"client": "c"}, "client: an OIDC identity needs"),
        ({"subject": "s"}, "subject: pins"),
    ],
)
def test_what_is_wrong_with_an_agent_is_said(change: dict[str, str], problem: str) -> None:
    rejected = House().rejected(replace(REPORTER, **change))  # type: ignore[arg-type]
    assert rejected.kind == "invalid"
    assert any(found.startswith(problem) for found in rejected.problems), rejected.problems


def test_a_name_is_registered_once() -> None:
    house = House((REPORTER, "alice"))
    assert house.rejected(replace(REPORTER, owner="sales")).kind == "conflict"


def test_a_retired_name_is_never_registered_again() -> None:
    house = House((REPORTER, "alice"), (commands.RetireAgent("reporter", "project over"), "alice"))
    rejected = house.rejected(REPORTER)
    assert (rejected.kind, "never comes back" in rejected.error) == ("conflict", True)


@pytest.mark.parametrize(
    ("subject", "taken"), [("", True), ("s-1", True), ("s-2", False)], ids=["any subject", "the same subject", "another subject"]
)
def test_two_agents_never_share_an_oidc_identity(subject: str, taken: bool) -> None:
    first = replace(REPORTER, issuer="keycloak", client="app", subject="s-1")
    house = House((first, "alice"), (commands.RetireAgent("reporter", "over"), "alice"))  # not even with a retired one
    verdict = house.give(replace(first, agent="other", subject=subject))
    assert isinstance(verdict, Rejected) is taken


def test_a_key_cannot_be_given_to_an_agent_that_is_not_registered() -> None:
    assert House().rejected(commands.ReplaceKey("ghost")).kind == "missing"


def test_revoking_again_is_recorded_again() -> None:
    house = House((REPORTER, "alice"), (commands.RevokeAgent("reporter", "odd"), "alice"))
    assert isinstance(house.event(commands.RevokeAgent("reporter", "still odd"), "bob"), AgentRevoked)
    assert house.registry.agents["reporter"].state_reason == "still odd"


@pytest.mark.parametrize("command", [commands.RevokeAgent, commands.RetireAgent])
@pytest.mark.parametrize("reason", ["", "  \n", "x" * 1001, "bell\a"])
def test_ending_an_agent_needs_a_reason(command: type[commands.RevokeAgent], reason: str) -> None:
    house = House((REPORTER, "alice"))
    assert house.rejected(command("reporter", reason)).kind == "invalid"
    assert house.registry.agents["reporter"].state == "active"


def test_reinstating_needs_no_reason_but_somebody_to_reinstate() -> None:
    house = House((REPORTER, "alice"))
    assert house.rejected(commands.ReinstateAgent("reporter", "")).kind == "conflict"
    house.event(commands.RevokeAgent("reporter", "odd"))
    assert isinstance(house.event(commands.ReinstateAgent("reporter", "")), AgentReinstated)


@pytest.mark.parametrize(
    "command",
    [
        commands.ReplaceKey("reporter"),
        commands.RevokeAgent("reporter", "odd"),
        commands.ReinstateAgent("reporter", ""),
        commands.RetireAgent("reporter", "over"),
        ASK,
    ],
)
def test_nothing_is_done_to_or_for_a_retired_agent(command: Command) -> None:
    house = House((REPORTER, "alice"), (commands.RetireAgent("reporter", "over"), "alice"))
    assert house.rejected(command).kind == "conflict"


def test_the_times_of_an_agents_events_rise_even_where_the_clock_steps_back() -> None:
    house = House((REPORTER, "alice"))
    house.now_us -= 3600 * SECOND
    for command in (
        commands.RevokeAgent("reporter", "odd"),
        commands.ReinstateAgent("reporter", ""),
        commands.ReplaceKey("reporter"),
    ):
        event = house.event(command)
        assert event.at_us > NOW_US
    assert house.registry.agents["reporter"].state == "active"
    assert house.registry.agents["reporter"].key_id == "k-4"


# -- grants ------------------------------------------------------------------------------------------------------------------------


def asked(operator: str = "alice") -> tuple[House, str]:
    house = House((REPORTER, "root"))
    event = house.event(ASK, operator)
    assert isinstance(event, GrantRequested)
    return house, event.grant


def test_asking_for_a_grant_records_scope_time_reason_and_who_asks() -> None:
    house, grant = asked("alice")
    found = house.registry.grants[grant]
    assert (found.scope, found.seconds, found.reason, found.requested_by) == (SCOPE, 3600, "month's end", "alice")


def test_a_grant_runs_from_its_approval() -> None:
    house, grant = asked()
    house.now_us += 86_400 * SECOND
    event = house.event(commands.ApproveGrant(grant), "bob")
    assert isinstance(event, GrantApproved)
    assert event.expires_at_us == house.now_us + 3600 * SECOND


def test_a_grant_of_no_seconds_runs_until_it_is_revoked() -> None:
    house = House((REPORTER, "root"), (replace(ASK, seconds=0), "alice"))
    event = house.event(commands.ApproveGrant("g-2"), "bob")
    assert isinstance(event, GrantApproved)
    assert event.expires_at_us == 0


@pytest.mark.parametrize("make", [commands.ApproveGrant, lambda grant: commands.DenyGrant(grant, "no")])
def test_nobody_answers_their_own_request(make: type[commands.ApproveGrant]) -> None:
    house, grant = asked("alice")
    rejected = house.rejected(make(grant), "alice")
    assert (rejected.kind, "another operator" in rejected.error) == ("forbidden", True)
    assert house.registry.grants[grant].state == "requested"


def test_the_configuration_file_answers_its_own_requests() -> None:
    house, grant = asked(CONFIG)
    assert isinstance(house.event(commands.ApproveGrant(grant), CONFIG), GrantApproved)


def test_who_asked_may_take_the_request_back() -> None:
    house, grant = asked("alice")
    house.event(commands.RevokeGrant(grant, "not needed"), "alice")
    assert house.rejected(commands.ApproveGrant(grant), "bob").kind == "conflict"


def test_a_grant_of_a_retired_agent_is_not_approved() -> None:
    house, grant = asked()
    house.event(commands.RetireAgent("reporter", "over"))
    assert house.rejected(commands.ApproveGrant(grant), "bob").kind == "conflict"
    house.event(commands.DenyGrant(grant, "agent is gone"), "bob")


@pytest.mark.parametrize("state", ["approved", "denied", "revoked"])
def test_a_request_is_answered_once(state: str) -> None:
    house, grant = asked()
    answers: dict[str, Command] = {
        "approved": commands.ApproveGrant(grant),
        "denied": commands.DenyGrant(grant, "no"),
        "revoked": commands.RevokeGrant(grant, "no"),
    }
    house.event(answers[state], "bob")
    assert house.rejected(commands.ApproveGrant(grant), "carol").kind == "conflict"
    assert house.rejected(commands.DenyGrant(grant, "no"), "carol").kind == "conflict"


@pytest.mark.parametrize("first", [commands.DenyGrant("g-2", "no"), commands.RevokeGrant("g-2", "no")])
def test_what_is_denied_or_revoked_cannot_be_revoked(first: Command) -> None:
    house, _ = asked()
    house.event(first, "bob")
    assert house.rejected(commands.RevokeGrant("g-2", "again"), "bob").kind == "conflict"


@pytest.mark.parametrize(
    "command", [commands.ApproveGrant("g-9"), commands.DenyGrant("g-9", "no"), commands.RevokeGrant("g-9", "no")]
)
def test_a_grant_that_nobody_asked_for_is_missing(command: Command) -> None:
    assert House((REPORTER, "alice")).rejected(command).kind == "missing"


@pytest.mark.parametrize("command", [commands.DenyGrant("g-2", " "), commands.RevokeGrant("g-2", "")])
def test_denying_and_revoking_need_a_reason(command: Command) -> None:
    house, _ = asked()
    assert house.rejected(command, "bob").kind == "invalid"


@pytest.mark.parametrize(("seconds", "fine"), [(-1, False), (0, True), (10 * 366 * 86_400, True), (10 * 366 * 86_400 + 1, False)])
def test_a_grant_lasts_from_no_time_to_ten_years(seconds: int, fine: bool) -> None:
    verdict = House((REPORTER, "root")).give(replace(ASK, seconds=seconds))
    assert isinstance(verdict, Accepted) is fine


def scope_of(schema: str = "public", tables: tuple[str, ...] = ("orders",), operations: tuple[str, ...] = ("select",)) -> Scope:
    return Scope("shop", (Rule(schema, tables, operations),))


@pytest.mark.parametrize(
    ("scope", "problem"),
    [
        (Scope("nowhere", SCOPE.rules), 'scope.connection: "nowhere" is not configured; configured are shop, stock'),
        (Scope("shop", ()), "scope.rules: the scope allows nothing"),
        (scope_of(schema=""), 'scope.rules[0].schema: "" is no schema'),
        (scope_of(schema="*"), 'scope.rules[0].schema: "*" is no schema'),
        (scope_of(tables=()), "scope.rules[0].tables: empty"),
        (scope_of(tables=("",)), 'scope.rules[0].tables: "" cannot be a name'),
        (scope_of(tables=("t" * 64,)), "scope.rules[0].tables: "),
        (scope_of(tables=("a\0b",)), 'scope.rules[0].tables: "a\\u0000b" cannot be a name'),
        (scope_of(operations=()), "scope.rules[0].operations: empty"),
        (scope_of(operations=("select", "SELECT")), 'scope.rules[0].operations: "SELECT" is no operation'),
        (scope_of(operations=("*",)), 'scope.rules[0].operations: "*" is no operation'),
        (scope_of(operations=("select", "select")), "scope.rules[0].operations: name each once"),
        (Scope("shop", SCOPE.rules, functions=("total",)), 'scope.functions: "total" must be written schema.name'),
        (Scope("shop", SCOPE.rules, functions=(".total",)), 'scope.functions: ".total" must be written schema.name'),
        (Scope("shop", SCOPE.rules, channels=("",)), 'scope.channels: "" cannot be a name'),
        (Scope("shop", SCOPE.rules * 101), "scope.rules: write at most 100"),
        (scope_of(tables=("t",) * 1001), "scope.rules[0].tables: write at most 1000"),
    ],
)
def test_what_is_wrong_with_a_scope_is_said(scope: Scope, problem: str) -> None:
    rejected = House((REPORTER, "root")).rejected(replace(ASK, scope=scope))
    assert rejected.kind == "invalid"
    assert any(found.startswith(problem) for found in rejected.problems), rejected.problems


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = Scope("nowhere", (Rule("public", (), ("drop",)),), functions=("total",))
    rejected = House((REPORTER, "root")).rejected(commands.RequestGrant("ghost", wrong, -1, ""))
    fields = [problem.partition(":")[0] for problem in rejected.problems]
    assert fields == [
        "agent",
        "scope.connection",
        "scope.rules[0].tables",
        "scope.rules[0].operations",
        "scope.functions",
        "seconds",
        "reason",
    ]


def test_a_scope_of_channels_or_reading_the_catalogue_alone_is_a_scope() -> None:
    for scope in (Scope("shop", (), channels=("news",)), Scope("shop", (), introspection=True)):
        assert isinstance(House((REPORTER, "root")).give(replace(ASK, scope=scope)), Accepted)


def test_the_grants_of_an_agent_are_bounded_and_those_that_ended_do_not_count() -> None:
    limits = Settings(grants_per_agent_max=2)
    house = House((REPORTER, "root"), (ASK, "alice"), (ASK, "alice"))
    assert house.rejected(ASK, settings=limits).kind == "conflict"
    house.event(commands.RevokeGrant("g-2", "not needed"))
    assert isinstance(house.give(ASK, settings=limits), Accepted)


# -- repetition --------------------------------------------------------------------------------------------------------------------


def test_the_same_call_under_the_same_key_changes_nothing() -> None:
    house = House((REPORTER, "root"))
    event = house.event(ASK, "alice", "key-1")
    house.now_us += SECOND
    assert house.give(ASK, "alice", "key-1") == Repeated(event)
    assert len(house.registry.grants) == 1


def test_without_a_key_every_call_is_new() -> None:
    house = House((REPORTER, "root"), (ASK, "alice"), (ASK, "alice"))
    assert len(house.registry.grants) == 2


@pytest.mark.parametrize(
    ("command", "operator"),
    [
        (replace(ASK, seconds=7200), "alice"),
        (replace(ASK, scope=Scope("stock", SCOPE.rules)), "alice"),
        (replace(ASK, scope=Scope("shop", (Rule("public", ("orders",), ("select", "insert")),))), "alice"),
        (commands.RevokeAgent("reporter", "month's end"), "alice"),
        (ASK, "bob"),
    ],
    ids=["other time", "other connection", "other operations", "other command", "other operator"],
)
def test_the_same_key_with_another_content_is_a_conflict(command: Command, operator: str) -> None:
    house = House((REPORTER, "root"))
    house.event(ASK, "alice", "key-1")
    assert house.rejected(command, operator, "key-1").kind == "conflict"


def test_a_repetition_is_known_after_a_restart() -> None:
    house = House((REPORTER, "root"))
    event = house.event(ASK, "alice", "key:with:colons")
    reborn = House()
    for recorded in (AgentRegistered(1, "reporter", "", "o", "", "", "", "", "", "root"), event, event):
        reborn.apply(recorded)
    assert reborn.give(ASK, "alice", "key:with:colons") == Repeated(event)


def test_a_repetition_is_answered_even_when_the_command_would_be_refused_by_now() -> None:
    house, grant = asked("alice")
    event = house.event(commands.ApproveGrant(grant), "bob", "key-1")
    assert house.give(commands.ApproveGrant(grant), "bob", "key-1") == Repeated(event)


def test_a_rejected_call_leaves_its_key_free() -> None:
    house = House((REPORTER, "root"))
    house.rejected(replace(ASK, seconds=-1), "alice", "key-1")
    house.event(ASK, "alice", "key-1")


def test_the_oldest_keys_are_forgotten_but_those_of_the_configuration_never() -> None:
    requests = Requests(2)
    kept = AgentKeyReplaced(1, "a", "k", "v", CONFIG, "config:k:0123456789abcdef")
    requests.apply(kept)
    for number in range(5):
        requests.apply(AgentKeyReplaced(2, "a", "k", "v", "alice", f"key-{number}:0123456789abcdef"))
    assert requests.event("config:k") == kept
    assert [requests.event(f"key-{number}") is not None for number in range(5)] == [False, False, False, True, True]


def test_the_record_of_a_call_never_holds_what_was_said_in_it() -> None:
    stamp = commands.request("key-1", "alice", commands.RevokeAgent("reporter", "secret reason"))
    key, _, digest = stamp.rpartition(":")
    assert (key, len(digest)) == ("key-1", 16)
    assert int(digest, 16) >= 0
