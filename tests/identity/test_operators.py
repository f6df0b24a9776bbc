"""Who may give commands: holders of an operator key, and people whose token says so. All others wait longer and longer."""

from __future__ import annotations

import hashlib

import pytest

from identity import authentication
from identity.agent_keys import create_operator_key
from identity.claims import OperatorClaims
from identity.keys import JwksCache
from identity.operators import Holder, Operator, Operators, Settings, Throttled
from identity.refusal import Refusal
from identity.roles import Role
from identity.settings import IssuerRules
from tests.identity import token_shapes

MINUTE_US = 60_000_000
NOW_US = token_shapes.NOW_US
PEER = "127.0.0.1"
ALICE, ALICE_SHA256 = create_operator_key()
BOB, BOB_SHA256 = create_operator_key()


class People:
    """Knows one token, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def prove(self, token: str, now_us: int) -> OperatorClaims | Refusal:
        self.asked += 1
        return Refusal("the token's signature does not match")


def operators(people: People | None = None, **limits: float) -> Operators:
    settings = Settings(**limits)  # type: ignore[arg-type]
    return Operators(
        {"alice": Holder(ALICE_SHA256, "administrator"), "bob": Holder(BOB_SHA256, "viewer")}, (people or People()).prove, settings
    )


@pytest.mark.parametrize(("key", "name", "role"), [(ALICE, "alice", "administrator"), (BOB, "bob", "viewer")], ids=["alice", "bob"])
async def test_a_key_names_its_holder_and_their_role(key: str, name: str, role: Role) -> None:
    assert await operators().authenticate(f"Bearer {key}", PEER, NOW_US) == Operator(name, name, "key", role, "")


async def test_the_scheme_knows_no_case() -> None:
    assert isinstance(await operators().authenticate(f"bearer {ALICE}", PEER, NOW_US), Operator)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {create_operator_key()[0]}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE_SHA256}",
        f"Bearer {hashlib.sha256(ALICE_SHA256.encode()).hexdigest()}",
        "Bearer " + "a" * 20_000,
    ],
    ids=["none", "empty", "no scheme", "Basic", "nobody's", "longer", "shorter", "the hash", "the hash's hash", "absurd"],
)
async def test_anything_else_is_refused_and_its_text_repeated_nowhere(header: str) -> None:
    refusal = await operators().authenticate(header, PEER, NOW_US)
    assert isinstance(refusal, Refusal)
    credential = header.rpartition(" ")[2]
    assert not credential or credential not in refusal.reason


async def test_where_no_operator_is_configured_no_key_opens() -> None:
    refusal = await Operators({}, People().prove).authenticate(f"Bearer {ALICE}", PEER, NOW_US)
    assert isinstance(refusal, Refusal)


async def test_a_key_is_never_taken_for_a_token() -> None:
    people = People()
    await operators(people).authenticate(f"Bearer {create_operator_key()[0]}", PEER, NOW_US)
    assert people.asked == 0


ROW = IssuerRules(
    name="people",
    issuer="https://idp.example",
    audience="pgwarden",
    jwks=token_shapes.jwks(token_shapes.RSA.jwk()).decode(),
    operator_groups=("/pgwarden/operators",),
    responder_groups=("/pgwarden/responders",),
    viewer_groups=("/pgwarden/viewers", "/staff"),
    operator_clients=("console",),
)


async def prove(token: str, now_us: int) -> OperatorClaims | Refusal:
    return await authentication.operator(token, (ROW,), JwksCache(), now_us)


async def test_a_person_in_a_group_of_operators_is_named_by_issuer_and_subject() -> None:
    token = token_shapes.signed(token_shapes.rfc9068(sub="f3a1", client_id="console", groups=["/pgwarden/operators"], name="Ada"))
    operator = await Operators({}, prove).authenticate(f"Bearer {token}", PEER, NOW_US)
    assert operator == Operator("people:f3a1", "Ada", "token", "administrator", "https://idp.example")


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["/staff"], "viewer"),
        (["/pgwarden/responders"], "responder"),
        (["/staff", "/pgwarden/responders", "/pgwarden/viewers"], "responder"),
        (["/pgwarden/operators", "/staff", "/pgwarden/responders"], "administrator"),
    ],
)
async def test_a_person_in_several_groups_has_the_widest_role_of_them(groups: list[str], role: Role) -> None:
    token = token_shapes.signed(token_shapes.rfc9068(sub="f3a1", client_id="console", groups=groups))
    operator = await Operators({}, prove).authenticate(f"Bearer {token}", PEER, NOW_US)
    assert isinstance(operator, Operator)
    assert operator.role == role


@pytest.mark.parametrize(
    "claims", [{"groups": ["/pgwarden"]}, {"client_id": "reporter"}, {"sub": "console"}, {"act": {"sub": "reporter"}}, {"exp": 1}]
)
async def test_others_with_a_token_of_the_same_issuer_are_no_operators(claims: dict[str, object]) -> None:
    person: dict[str, object] = {"sub": "f3a1", "client_id": "console", "groups": ["/pgwarden/operators"]}
    token = token_shapes.signed(token_shapes.rfc9068(**(person | claims)))
    assert isinstance(await Operators({}, prove).authenticate(f"Bearer {token}", PEER, NOW_US), Refusal)


async def test_after_too_many_failures_a_peers_tokens_are_not_even_looked_at() -> None:
    people = People()
    door = operators(people, failures_burst=3, failures_per_minute=1)
    answers = [await door.authenticate("Bearer a.b.c", PEER, NOW_US) for _ in range(5)]
    assert [isinstance(answer, Throttled) for answer in answers] == [False, False, False, True, True]
    assert people.asked == 3
    assert isinstance(answers[4], Throttled)
    assert answers[4].retry_after_seconds == 60


async def test_other_peers_are_not_held_up() -> None:
    door = operators(failures_burst=1, failures_per_minute=1)
    for _ in range(3):
        await door.authenticate("Bearer a.b.c", "10.0.0.1", NOW_US)
    assert not isinstance(await door.authenticate("Bearer a.b.c", "10.0.0.2", NOW_US), Throttled)


async def test_a_right_key_opens_even_after_too_many_failures() -> None:
    # Else anybody on this machine could keep an operator from the kill switch.
    door = operators(failures_burst=1, failures_per_minute=1)
    for _ in range(5):
        await door.authenticate("Bearer wrong", PEER, NOW_US)
    assert isinstance(await door.authenticate(f"Bearer {ALICE}", PEER, NOW_US), Operator)


async def test_a_peer_that_waits_may_try_again() -> None:
    people = People()
    door = operators(people, failures_burst=1, failures_per_minute=1)
    for at_us in (NOW_US, NOW_US, NOW_US + 59_000_000, NOW_US + MINUTE_US):
        await door.authenticate("Bearer a.b.c", PEER, at_us)
    assert people.asked == 2


async def test_a_clock_that_steps_back_gives_no_attempts() -> None:
    people = People()
    door = operators(people, failures_burst=1, failures_per_minute=1)
    for at_us in (NOW_US, NOW_US - 3600 * 1_000_000, NOW_US - 3600 * 1_000_000):
        await door.authenticate("Bearer a.b.c", PEER, at_us)
    assert people.asked == 1


async def test_the_peers_that_are_remembered_are_bounded() -> None:
    door = operators(failures_burst=1, failures_per_minute=1, peers_max=10)
    for number in range(100):
        await door.authenticate("", f"10.0.0.{number}", NOW_US)
    assert len(door._failures) == 10
