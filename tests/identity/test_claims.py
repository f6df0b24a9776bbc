from __future__ import annotations

import dataclasses
import hashlib

import pytest

from identity.claims import OperatorClaims, operator, principal
from identity.principal import Principal, ProvenKey, labelled, of_key
from identity.refusal import Refusal
from identity.settings import IssuerRules
from tests.identity.token_shapes import (
    ACCOUNT,
    KEYCLOAK,
    NOW,
    PERSON,
    RSA,
    STRICT,
    agents,
    keycloak_person,
    proven,
    rfc9068,
    row,
    signed,
)

REPORTER = agents(("reporter", "reporter", ""))
LABELLED = dataclasses.replace(STRICT, invocation=("invocation",), task=("task",))


def acting(claims: dict[str, object], rules: IssuerRules = STRICT, agent_of=REPORTER) -> Principal:
    found = principal(proven(signed(claims), rules), rules, agent_of)
    assert isinstance(found, Principal), found
    return found


def refusal(claims: dict[str, object], rules: IssuerRules = STRICT, agent_of=REPORTER) -> str:
    found = principal(proven(signed(claims), rules), rules, agent_of)
    assert isinstance(found, Refusal), found
    return found.reason


def test_a_client_acts_for_itself() -> None:
    found = acting(rfc9068())
    assert (found.agent, found.subject, found.issuer, found.client) == ("reporter", "reporter", STRICT.issuer, "reporter")
    assert (found.on_behalf_of, found.actors, found.unverified) == ("", (), ())
    assert found.method == "token"
    assert found.credential == hashlib.sha256(b"a3f1").hexdigest()
    assert found.expires_at_us == (NOW + 320) * 1_000_000


def test_a_client_that_is_not_registered_is_refused() -> None:
    reason = refusal(rfc9068(sub="stranger", client_id="stranger"))
    assert reason == "no agent is registered for client 'stranger' with subject 'stranger'"


def test_a_token_that_names_no_client_is_refused() -> None:
    rules = dataclasses.replace(STRICT, required=(("iss",), ("exp",), ("sub",)))
    assert refusal(rfc9068(client_id=None), rules) == "the token names no client"


def test_the_registry_is_asked_with_the_tokens_issuer() -> None:
    asked = []
    principal(proven(signed(rfc9068()), STRICT), STRICT, lambda *question: asked.append(question))
    assert {issuer for issuer, _, _ in asked} == {STRICT.issuer}


def test_claims_are_read_by_the_rules_that_they_were_verified_by() -> None:
    claims = proven(signed(rfc9068()), STRICT)
    with pytest.raises(ValueError, match="verified for strict"):
        principal(claims, dataclasses.replace(STRICT, name="other"), REPORTER)


# -- who acts --------------------------------------------------------------------------------------------------------------------


def test_the_outermost_act_is_the_agent_and_the_subject_is_on_whose_behalf() -> None:
    found = acting(rfc9068(sub=PERSON, act={"sub": "reporter"}))
    assert (found.agent, found.subject, found.on_behalf_of, found.actors) == ("reporter", PERSON, PERSON, ("reporter",))


def test_inner_actors_are_history_and_decide_nothing() -> None:
    chain = {
        "sub": "reporter",
        "act": {"sub": "planner", "client_id": "planner", "act": {"sub": "chat", "iss": "https://elsewhere.example"}},
    }
    both = agents(("reporter", "reporter", ""), ("planner", "planner", ""))
    found = acting(rfc9068(sub=PERSON, act=chain), agent_of=both)
    assert found.agent == "reporter"
    assert found.actors == ("reporter", "planner", "chat")
    # without the outer one being registered, an inner one does not help
    assert "no agent" in refusal(rfc9068(sub=PERSON, client_id="reporter", act=chain), agent_of=agents(("planner", "planner", "")))


def test_eight_actors_are_read_and_nine_refused() -> None:
    def nested(depth: int) -> dict[str, object]:
        act: dict[str, object] = {"sub": "inner"}
        for _ in range(depth - 2):
            act = {"sub": "inner", "act": act}
        return {"sub": "reporter", "act": act}

    assert len(acting(rfc9068(sub=PERSON, act=nested(8))).actors) == 8
    assert refusal(rfc9068(sub=PERSON, act=nested(9))) == "act is nested deeper than 8"


@pytest.mark.parametrize(
    "act", ["", [], {}, {"sub": ""}, {"sub": 7}, {"client_id": "reporter"}, {"sub": "reporter", "act": "x"}, 7, True]
)
def test_an_act_that_cannot_be_read_is_refused(act: object) -> None:
    assert "act" in refusal(rfc9068(sub=PERSON, act=act))


def test_an_actor_can_be_a_plain_name() -> None:
    rules = dataclasses.replace(STRICT, actor=("actor",))
    found = acting(rfc9068(sub=PERSON, actor="reporter"), rules)
    assert (found.agent, found.on_behalf_of, found.actors) == ("reporter", PERSON, ("reporter",))


def test_an_actor_of_another_issuer_is_refused() -> None:
    act = {"sub": "reporter", "client_id": "reporter", "iss": "https://other.example"}
    assert "another issuer" in refusal(rfc9068(sub=PERSON, act=act))
    acting(rfc9068(sub=PERSON, act=act | {"iss": STRICT.issuer}))


def test_an_actor_that_is_not_the_client_is_refused() -> None:
    both = agents(("reporter", "reporter", ""), ("planner", "planner", ""))
    assert "the token was given to 'reporter'" in refusal(
        rfc9068(sub=PERSON, act={"sub": "x", "client_id": "planner"}), agent_of=both
    )
    assert "is not known as the account" in refusal(rfc9068(sub=PERSON, act={"sub": "planner"}), agent_of=both)


def test_an_actor_known_by_its_pinned_account_is_its_client() -> None:
    pinned = agents(("reporter", "reporter", ACCOUNT))
    assert acting(rfc9068(sub=PERSON, act={"sub": ACCOUNT}), agent_of=pinned).agent == "reporter"
    assert "no agent" in refusal(rfc9068(sub=PERSON, act={"sub": "another account"}), agent_of=pinned)


def test_an_act_that_names_the_subject_itself_is_no_delegation() -> None:
    found = acting(rfc9068(act={"sub": "reporter"}))
    assert (found.agent, found.on_behalf_of) == ("reporter", "")


def test_a_row_can_refuse_delegation() -> None:
    assert "does not allow" in refusal(rfc9068(act={"sub": "reporter"}), dataclasses.replace(STRICT, actor=()))


def test_two_clients_in_one_token_are_refused() -> None:
    assert refusal(rfc9068(azp="planner")) == "the token names two clients, 'reporter' and 'planner'"
    assert acting(rfc9068(azp="reporter")).client == "reporter"


def test_several_pins_are_joined_by_a_space_and_none_may_hold_one() -> None:
    rules = dataclasses.replace(STRICT, pinned=(("a",), ("b", "c")))
    asked: list[str] = []
    claims = proven(signed(rfc9068(a="x", b={"c": "y"})), rules)
    principal(claims, rules, lambda issuer, client, subject: asked.append(subject))
    assert asked[0] == "x y"
    assert "holds a space" in refusal(rfc9068(a="x y", b={"c": "z"}), rules)
    assert "b.c is not" in refusal(rfc9068(a="x"), rules)


# -- groups and labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "separator", "groups"),
    [
        (None, "", ()),
        ([], "", ()),
        (["/analytics", "analytics"], "", ("/analytics", "analytics")),
        (["a", "a", ""], "", ("a",)),
        ("analytics writers", "", ("analytics writers",)),
        ("analytics writers", " ", ("analytics", "writers")),
        ("", " ", ()),
    ],
)
def test_groups_come_as_an_array_or_as_a_string(claim: object, separator: str, groups: tuple[str, ...]) -> None:
    assert acting(rfc9068(groups=claim), dataclasses.replace(STRICT, group_separator=separator)).groups == groups


@pytest.mark.parametrize("claim", [7, {"a": 1}, ["a", 7], [["a"]], ["a\nb"], ["g" * 513], [""] * 513])
def test_groups_that_are_no_names_are_refused(claim: object) -> None:
    assert "groups" in refusal(rfc9068(groups=claim))


def test_groups_can_stand_deeper() -> None:
    rules = dataclasses.replace(STRICT, groups=("realm_access", "roles"))
    assert acting(rfc9068(realm_access={"roles": ["a"]}), rules).groups == ("a",)


@pytest.mark.parametrize(
    ("claim", "label"), [(None, ""), ("run-7", "run-7"), (7, "7"), (["PROJ-7"], "PROJ-7"), (["a", "b"], "a,b"), ([], "")]
)
def test_a_label_is_a_text_a_number_or_an_array(claim: object, label: str) -> None:
    found = acting(rfc9068(invocation=claim, task=claim), LABELLED)
    assert (found.invocation, found.task) == (label, label)


@pytest.mark.parametrize("claim", ["x" * 257, "a\nb", True, {"a": 1}, [["a"]], 1.5])
def test_a_label_that_would_spoil_a_record_is_refused(claim: object) -> None:
    assert "printable text" in refusal(rfc9068(task=claim), LABELLED)


def test_startup_options_fill_what_no_claim_says_and_are_marked() -> None:
    found = acting(rfc9068(task="signed"), LABELLED)
    named = labelled(found, invocation="run-7", task="said", on_behalf_of="ada")
    assert isinstance(named, Principal)
    assert (named.invocation, named.task, named.on_behalf_of) == ("run-7", "signed", "ada")
    assert named.unverified == ("on_behalf_of", "invocation")
    assert (named.agent, named.expires_at_us) == (found.agent, found.expires_at_us)
    for bad in ("x" * 257, "a\x00b"):
        assert isinstance(labelled(found, task=bad), Refusal)


# -- proofs are types ------------------------------------------------------------------------------------------------------------


def test_a_principal_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="from a proof"):
        Principal(agent="a", subject="a", issuer="", client="", method="token", credential="x", mint=object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(acting(rfc9068()), agent="admin")


def test_a_proven_key_needs_the_key_behind_the_verifier() -> None:
    client_key = b"k" * 32
    stored_key = hashlib.sha256(client_key).digest()
    found = of_key(ProvenKey("reporter", "k1", stored_key, client_key))
    assert (found.agent, found.subject, found.method, found.credential) == ("reporter", "key:k1", "scram", "k1")
    assert "kkkk" not in repr(ProvenKey("reporter", "k1", stored_key, client_key))
    for wrong in (b"", b"x" * 32, stored_key):
        with pytest.raises(ValueError, match="does not belong"):
            ProvenKey("reporter", "k1", stored_key, wrong)


# -- operators -------------------------------------------------------------------------------------------------------------------

PEOPLE = row("keycloak_people")


def operating(claims: dict[str, object], rules: IssuerRules = PEOPLE) -> OperatorClaims | Refusal:
    return operator(proven(signed(claims, typ="JWT"), rules), rules)


def test_a_person_in_a_group_of_operators_is_one_under_her_sub() -> None:
    found = operating(keycloak_person())
    assert isinstance(found, OperatorClaims)
    assert (found.id, found.name, found.subject, found.issuer) == (f"keycloak_people:{PERSON}", "ada", PERSON, KEYCLOAK)
    renamed = operating(keycloak_person(preferred_username="root"))
    assert isinstance(renamed, OperatorClaims)
    assert renamed.id == found.id


def test_a_name_that_cannot_be_shown_is_not() -> None:
    found = operating(keycloak_person(preferred_username="a\x1b[2J"))
    assert isinstance(found, OperatorClaims)
    assert found.name == PERSON


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"groups": ["operators"]}, "is in no group of operators"),
        ({"groups": None}, "is in no group of operators"),
        ({"azp": "reporter"}, "is not one that operators use"),
        ({"act": {"sub": "reporter"}}, "an agent acts here"),
        ({"client_id": "pgwarden-console"}, "a client's own account"),
        ({"sub": "pgwarden-console"}, "a client's own account"),
    ],
)
def test_who_is_no_person_of_the_operators_is_none(changes: dict[str, object], reason: str) -> None:
    found = operating(keycloak_person(**changes))
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_a_row_without_operator_groups_makes_no_operators() -> None:
    found = operator(proven(signed(rfc9068(), RSA), STRICT), STRICT)
    assert found == Refusal("issuer strict names no operator groups")


def test_operator_claims_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="made by"):
        OperatorClaims("a", "a", "a", "a", (), 0, "viewer", object())
