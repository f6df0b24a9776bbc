"""Twelve traps that real issuers set, each with a token in the shape that the issuer gives it, by the rows of docs/oidc.md."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from identity import tokens
from identity.claims import OperatorClaims, operator, principal
from identity.principal import Principal
from identity.refusal import Refusal
from identity.settings import IssuerRules, rules
from identity.tokens import Peek, SignedClaims, peek, rows_for, scopes
from tests.identity.token_shapes import (
    ACCOUNT,
    DOCUMENT,
    ED25519,
    KEYCLOAK,
    KEYS,
    NOW,
    P384,
    PERSON,
    RSA,
    STRICT,
    SigningKey,
    agents,
    b64,
    documented,
    keycloak_default,
    keycloak_exchanged,
    keycloak_person,
    keycloak_set_up,
    keys_of,
    oidc_provider,
    proven,
    refused,
    rfc9068,
    row,
    signed,
    spring,
    spring_token,
    without,
)

REPORTER = agents(("reporter", "reporter", ""))
PINNED = agents(("reporter", "reporter", ACCOUNT))

KEYCLOAK_SET_UP = row("keycloak")
KEYCLOAK_PLAIN = row("keycloak_plain")
KEYCLOAK_EXCHANGE = row("keycloak_exchange")
KEYCLOAK_PEOPLE = row("keycloak_people")
SPRING = row("spring")
OIDC_PROVIDER = row("oidc_provider")


def acting(token: str, rules: IssuerRules, agent_of=REPORTER) -> Principal:
    found = principal(proven(token, rules), rules, agent_of)
    assert isinstance(found, Principal), found
    return found


def refusal(token: str, rules: IssuerRules, agent_of=REPORTER) -> str:
    found = principal(proven(token, rules), rules, agent_of)
    assert isinstance(found, Refusal), found
    return found.reason


# -- the rows --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(documented()))
def test_each_documented_row_is_a_row(name: str) -> None:
    assert isinstance(rules(name, documented()[name]), IssuerRules)


def test_there_is_a_row_for_each_issuer_we_speak_of() -> None:
    assert set(documented()) >= {
        "keycloak", "spring", "oidc_provider", "kubernetes", "github", "gitlab", "entra", "auth0", "spiffe", "aws", "google",
    }  # fmt: skip


def test_every_setting_of_a_row_has_a_line_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = {cell.strip(" `") for line in text.splitlines() if line.startswith("| `") for cell in line.split("|")[1].split(",")}
    settings = {field.name for field in dataclasses.fields(IssuerRules)} - {"name", "jwks"} | {"jwks_file"}
    assert lines == settings


# -- tokens as they come ---------------------------------------------------------------------------------------------------------


def test_keycloak_set_up_is_taken_by_its_row() -> None:
    found = acting(signed(keycloak_set_up()), KEYCLOAK_SET_UP, PINNED)
    assert (found.agent, found.subject, found.client) == ("reporter", ACCOUNT, "reporter")
    assert found.groups == ("/analytics", "/analytics/eu")
    assert found.on_behalf_of == ""
    assert acting(signed(keycloak_set_up()), KEYCLOAK_SET_UP, REPORTER) == found


def test_keycloak_without_the_type_is_taken_by_the_plain_row() -> None:
    claims = keycloak_default(aud=["account", "pgwarden"])
    assert acting(signed(claims, typ="JWT"), KEYCLOAK_PLAIN).agent == "reporter"


def test_spring_is_taken_by_its_row() -> None:
    found = acting(spring_token(spring(aud="pgwarden")), SPRING)
    assert (found.agent, found.client, found.on_behalf_of) == ("reporter", "reporter", "")


def test_oidc_provider_is_taken_by_its_row() -> None:
    assert acting(signed(oidc_provider(), ED25519), OIDC_PROVIDER).groups == ("analytics",)


# -- 1 ---------------------------------------------------------------------------------------------------------------------------


def test_trap_1_the_default_audience_of_an_issuer_is_not_ours() -> None:
    assert "aud is 'account'" in refused(signed(keycloak_default()), KEYCLOAK_SET_UP)
    assert "aud is None" in refused(signed(keycloak_default(aud=None)), KEYCLOAK_SET_UP)  # fullScopeAllowed=false
    assert "aud is 'account'" in refused(signed(keycloak_default(), typ="JWT"), KEYCLOAK_PLAIN)
    assert "aud is 'reporter'" in refused(spring_token(spring()), SPRING)
    for audience in ("pgwarden", ["pgwarden"]):
        proven(signed(keycloak_set_up(aud=audience)), KEYCLOAK_SET_UP)


# -- 2 ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_trap_2_the_type_is_known_in_any_case_and_with_its_prefix(typ: str) -> None:
    proven(signed(keycloak_set_up(), typ=typ), KEYCLOAK_SET_UP)


def test_trap_2_another_type_is_a_setting_of_the_issuer() -> None:
    assert "typ" in refused(signed(keycloak_set_up(), typ="JWT"), KEYCLOAK_SET_UP)
    assert "typ" in refused(signed(oidc_provider(), typ=None), OIDC_PROVIDER)


SECURITY_EVENT = {
    "iss": KEYCLOAK,
    "aud": "pgwarden",
    "iat": NOW - 1,
    "jti": "set-1",
    "txn": "t",
    "sub_id": {"format": "complex"},
    "events": {"https://schemas.openid.net/secevent/caep/event-type/session-revoked": {}},
}
LOGOUT_TOKEN = keycloak_person(
    aud="pgwarden", typ="Logout", sid="5d6f", events={"http://schemas.openid.net/event/backchannel-logout": {}}, azp=None
)
ID_TOKEN = keycloak_set_up(typ="ID", at_hash="x0", scope=None)
DPOP_BOUND = keycloak_set_up(typ="DPoP", cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "kc-jkt-type": "dpop"})


@pytest.mark.parametrize("rules", [KEYCLOAK_SET_UP, KEYCLOAK_PLAIN, KEYCLOAK_EXCHANGE, KEYCLOAK_PEOPLE], ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("claims", "typ"),
    [
        (SECURITY_EVENT, "secevent+jwt"),
        (LOGOUT_TOKEN, "logout+jwt"),
        (ID_TOKEN, "JWT"),
        (DPOP_BOUND, "at+jwt"),
        (DPOP_BOUND, "JWT"),
    ],
    ids=["security event", "logout token", "ID token", "DPoP-bound", "DPoP-bound, plain"],
)
def test_trap_2_other_tokens_of_the_same_key_and_issuer_are_refused(
    claims: dict[str, object], typ: str, rules: IssuerRules
) -> None:
    refused(signed(claims, typ=typ), rules)


@pytest.mark.parametrize(
    "claims", [SECURITY_EVENT, LOGOUT_TOKEN, ID_TOKEN, DPOP_BOUND], ids=["security event", "logout token", "ID token", "DPoP-bound"]
)
@pytest.mark.parametrize("rules", [KEYCLOAK_SET_UP, KEYCLOAK_PLAIN, KEYCLOAK_EXCHANGE, KEYCLOAK_PEOPLE], ids=lambda row: row.name)
def test_trap_2_their_claims_give_them_away_even_under_a_type_that_fits(claims: dict[str, object], rules: IssuerRules) -> None:
    complete = keycloak_set_up() | claims | {"aud": "pgwarden"}
    reason = refused(signed(complete, typ=rules.types[0]), rules)
    assert any(word in reason for word in ("another kind of token", "not that of an access token", "cannot be proven"))


def test_trap_2_in_spring_only_azp_and_sid_tell_an_id_token() -> None:
    id_token = spring(aud="pgwarden", azp="reporter", sid="s1", auth_time=NOW - 20)
    assert "another kind of token" in refused(spring_token(id_token), SPRING)
    assert "scope" in refused(spring_token(without(id_token, "azp", "sid", "scope")), SPRING)


# -- 3 ---------------------------------------------------------------------------------------------------------------------------


def test_trap_3_client_id_and_azp_must_agree() -> None:
    assert "two clients" in refusal(signed(keycloak_set_up(azp="planner")), KEYCLOAK_SET_UP)


def test_trap_3_the_preferred_username_names_nobody() -> None:
    victim = agents(("victim", "victim", ""), ("service-account-victim", "service-account-victim", ""))
    claims = keycloak_set_up(preferred_username="service-account-victim")
    assert "no agent is registered" in refusal(signed(claims), KEYCLOAK_SET_UP, victim)


def test_trap_3_a_client_made_anew_under_its_old_name_is_refused() -> None:
    anew = keycloak_set_up(sub="00000000-aaaa-4bbb-8ccc-dddddddddddd")
    assert "no agent is registered" in refusal(signed(anew), KEYCLOAK_SET_UP, PINNED)


def test_trap_3_a_renamed_client_is_refused_until_somebody_says_so() -> None:
    renamed = keycloak_set_up(azp="summarizer", client_id="summarizer")
    assert "no agent is registered" in refusal(signed(renamed), KEYCLOAK_SET_UP, PINNED)


# -- 4 ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent_of", [REPORTER, PINNED], ids=["not pinned", "pinned"])
def test_trap_4_an_exchanged_token_without_act_is_refused_by_default(agent_of) -> None:
    assert "client_id is missing" in refused(signed(keycloak_exchanged()), KEYCLOAK_SET_UP)
    strict = dataclasses.replace(KEYCLOAK_EXCHANGE, without_act="refuse")
    assert "is not known as the own account" in refusal(signed(keycloak_exchanged()), strict, agent_of)


def test_trap_4_or_the_client_is_the_actor_and_the_person_is_never_blamed() -> None:
    found = acting(signed(keycloak_exchanged()), KEYCLOAK_EXCHANGE)
    assert (found.agent, found.client, found.on_behalf_of, found.actors) == ("reporter", "reporter", PERSON, ("reporter",))
    assert found.groups == ("/pgwarden/operators",)


def test_trap_4_a_person_who_bears_an_agents_name_is_not_the_agent() -> None:
    # registered is an agent whose client is called like the person's sub
    named = agents(("ada", PERSON, ""))
    assert "no agent is registered" in refusal(signed(keycloak_exchanged()), KEYCLOAK_EXCHANGE, named)


def test_trap_4_an_agent_with_an_operators_exchanged_token_is_no_operator() -> None:
    exchanged = keycloak_exchanged()
    found = operator(proven(signed(exchanged, typ="JWT"), KEYCLOAK_PEOPLE), KEYCLOAK_PEOPLE)
    assert isinstance(found, Refusal)
    own = operator(proven(signed(keycloak_person(), typ="JWT"), KEYCLOAK_PEOPLE), KEYCLOAK_PEOPLE)
    assert isinstance(own, OperatorClaims)


def test_trap_4_an_act_written_by_a_mapper_names_the_agent() -> None:
    claims = keycloak_exchanged(act={"sub": ACCOUNT, "client_id": "reporter"})
    for agent_of in (REPORTER, PINNED):
        found = acting(signed(claims), KEYCLOAK_EXCHANGE, agent_of)
        assert (found.agent, found.on_behalf_of, found.actors) == ("reporter", PERSON, ("reporter",))
    own = acting(signed(keycloak_set_up(act={"sub": ACCOUNT, "client_id": "reporter"})), KEYCLOAK_SET_UP, PINNED)
    assert (own.agent, own.on_behalf_of) == ("reporter", "")


def test_trap_4_springs_chain_names_the_last_actor() -> None:
    inner = {"iss": "https://auth.example", "sub": "planner"}
    act = {"iss": "https://auth.example", "sub": "reporter", "act": inner}
    found = acting(spring_token(spring(sub=PERSON, aud="pgwarden", act=act)), SPRING)
    assert (found.agent, found.on_behalf_of, found.actors) == ("reporter", PERSON, ("reporter", "planner"))
    # the person's sub is a registered client's name by chance: still the actor acts
    both = agents(("reporter", "reporter", ""), ("planner", PERSON, ""))
    assert acting(spring_token(spring(sub=PERSON, aud="pgwarden", act=act)), SPRING, both).agent == "reporter"


# -- 5 ---------------------------------------------------------------------------------------------------------------------------


def test_trap_5_algorithms_come_from_the_row() -> None:
    keys = keys_of(P384.jwk(), RSA.jwk(alg=None))
    assert "alg is not allowed" in refused(signed(keycloak_set_up(), P384), KEYCLOAK_SET_UP, keys)
    allowed = row("keycloak", algorithms=["ES384"])
    proven(signed(keycloak_set_up(), P384), allowed, keys)
    assert "alg is not allowed" in refused(signed(keycloak_set_up()), allowed, keys)


def test_trap_5_a_jwk_without_alg_and_use_is_known_by_its_type() -> None:
    keys = keys_of(RSA.jwk(alg=None, use=None))
    proven(spring_token(spring(aud="pgwarden")), SPRING, keys)


def test_trap_5_keycloaks_encryption_key_does_not_verify() -> None:
    other = SigningKey("enc-1", "RS256", RSA.private)
    keys = keys_of(other.jwk(use="enc", alg="RSA-OAEP"), RSA.jwk(kid="sig-1"))
    assert "kid is not among" in refused(signed(keycloak_set_up(), other), KEYCLOAK_SET_UP, keys)


# -- 6 ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "issuer",
    ["https://idp.example/realms/Agents", "https://idp.example/realms/agents/", "https://idp.example:443/realms/agents",
     "http://evil.example/realms/agents", "https://idp.example//realms/agents", "https://idp.example/realms/agents2"],
)  # fmt: skip
def test_trap_6_the_issuer_is_compared_byte_for_byte(issuer: str) -> None:
    token = signed(keycloak_set_up(iss=issuer))
    assert "iss is" in refused(token, KEYCLOAK_SET_UP)
    peeked = peek(token)
    assert isinstance(peeked, Peek)
    assert isinstance(rows_for(peeked, [KEYCLOAK_SET_UP]), Refusal)


def test_trap_6_a_trailing_slash_that_belongs_there_is_kept() -> None:
    auth0 = row("auth0")
    claims = rfc9068(iss="https://tenant.eu.auth0.com/", aud="https://pgwarden.example", sub="reporter@clients")
    proven(signed(claims), auth0)
    assert "iss is" in refused(signed(claims | {"iss": "https://tenant.eu.auth0.com"}), auth0)


# -- 7 ---------------------------------------------------------------------------------------------------------------------------

DIGEST = hashlib.sha256(b"the client's certificate").digest()
THUMBPRINT = b64(DIGEST)


@pytest.mark.parametrize(
    ("cnf", "taken"),
    [
        ({"x5t#S256": THUMBPRINT}, True),
        ({"x5t#S256": THUMBPRINT, "kc-jkt-type": "x"}, True),
        ({"kc-jkt-type": "x"}, False),
        ({"jkt": "abc"}, False),
        ({"jkt": "abc", "x5t#S256": THUMBPRINT}, False),
        ({"x5t#S256": "A" * 43}, False),
    ],
)
def test_trap_7_a_binding_holds_or_the_token_is_refused(cnf: dict[str, object], taken: bool) -> None:
    token = signed(keycloak_set_up(cnf=cnf))
    if taken:
        proven(token, KEYCLOAK_SET_UP, certificate=DIGEST)
    else:
        refused(token, KEYCLOAK_SET_UP, certificate=DIGEST)
    refused(token, KEYCLOAK_SET_UP)  # and without a certificate, never


# -- 8 and 9 ---------------------------------------------------------------------------------------------------------------------


def test_traps_8_and_9_a_token_is_judged_by_itself_and_never_by_an_introspection_that_may_be_wrong() -> None:
    # Introspection by a client outside aud says false of a good token, and true of an agent's successor: nothing here asks it.
    sources = [path.read_text(encoding="utf-8") for path in Path(tokens.__file__).parent.glob("*.py")]
    assert any("well-known/openid-configuration" in source for source in sources)
    assert not any("introspection_endpoint" in source or "/introspect" in source for source in sources)
    # What a session rests on is the token's own end and the pinned sub.
    found = acting(signed(keycloak_set_up()), KEYCLOAK_SET_UP, PINNED)
    assert found.subject == ACCOUNT
    assert found.expires_at_us == (NOW + 290 + 30) * 1_000_000


# -- 10 --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        (keycloak_set_up(exp=NOW + 36_000), "lives longer"),
        (keycloak_set_up(exp=NOW + 365 * 86_400), "lives longer"),
        (keycloak_set_up(iat=NOW, exp=NOW), "no lifetime"),
        (keycloak_set_up(exp=str(NOW + 290)), "whole number"),
        (keycloak_set_up(exp=NOW + 290.5), "whole number"),
        (keycloak_set_up(iat=NOW + 31), "from the future"),
        (spring(aud="pgwarden", nbf=NOW + 31, iss=KEYCLOAK, client_id="reporter"), "not valid yet"),
    ],
)
def test_trap_10_lifetimes_are_capped_and_times_are_whole_numbers(claims: dict[str, object], word: str) -> None:
    assert word in refused(signed(claims), KEYCLOAK_SET_UP)


# -- 11 --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "a pgwarden"},
        {"scope": ["a", "pgwarden"]},
        {"scp": "a pgwarden"},
        {"scp": ["pgwarden", "a"]},
        {"scope": "a", "scp": ["pgwarden"]},
    ],
)
def test_trap_11_scope_is_a_string_an_array_or_scp(claims: dict[str, object]) -> None:
    rules = dataclasses.replace(STRICT, scopes=("a", "pgwarden"))
    found = proven(signed(rfc9068(**claims)), rules)
    assert scopes(found.claims) == {"a", "pgwarden"}


@pytest.mark.parametrize("scope", [7, ["pgwarden", 7], {"pgwarden": 1}])
def test_trap_11_a_scope_of_another_shape_is_refused(scope: object) -> None:
    assert "scope is neither" in refused(signed(rfc9068(scope=scope)), dataclasses.replace(STRICT, scopes=("pgwarden",)))


def test_trap_11_no_groups_is_no_error_and_a_slash_is_part_of_the_name() -> None:
    assert acting(signed(keycloak_set_up(groups=None)), KEYCLOAK_SET_UP).groups == ()
    slashed = dataclasses.replace(KEYCLOAK_PEOPLE, operator_groups=("pgwarden/operators",))
    assert isinstance(operator(proven(signed(keycloak_person(), typ="JWT"), slashed), slashed), Refusal)


# -- 12 --------------------------------------------------------------------------------------------------------------------------


def test_trap_12_may_act_gives_nothing() -> None:
    other = agents(("planner", "planner", ""), ("reporter", "reporter", ""))
    plain = acting(signed(keycloak_set_up()), KEYCLOAK_SET_UP, other)
    allowed = acting(signed(keycloak_set_up(may_act={"sub": "planner", "client_id": "planner"})), KEYCLOAK_SET_UP, other)
    assert allowed == plain
    hers = keycloak_person(aud="pgwarden", may_act={"sub": "reporter"})
    assert "no agent is registered" in refusal(signed(hers), KEYCLOAK_EXCHANGE, REPORTER)


def test_trap_12_what_an_agent_says_of_its_task_is_a_label() -> None:
    claims = keycloak_set_up(task=["PROJ-7"], scope="profile task:PROJ-7", act_as="admin")
    found = acting(signed(claims), KEYCLOAK_SET_UP)
    assert found.task == "PROJ-7"
    assert dataclasses.asdict(found) | {"task": ""} == dataclasses.asdict(acting(signed(keycloak_set_up()), KEYCLOAK_SET_UP)) | {
        "task": ""
    }


# -- workloads -------------------------------------------------------------------------------------------------------------------


def kubernetes(**changes: object) -> dict[str, object]:
    return rfc9068(
        iss="https://kubernetes.default.svc.cluster.local",
        aud=["pgwarden"],
        sub="system:serviceaccount:agents:reporter",
        client_id=None,
        nbf=NOW - 10,
        **{
            "kubernetes.io": {
                "namespace": "agents",
                "serviceaccount": {"name": "reporter", "uid": "uid-1"},
                "pod": {"name": "p", "uid": "pod-7"},
            }
        },
    ) | dict(changes)


def test_a_kubernetes_service_account_is_pinned_by_its_uid() -> None:
    rules = row("kubernetes")
    registered = agents(("reporter", "system:serviceaccount:agents:reporter", "uid-1"))
    found = acting(signed(kubernetes(), typ=None), rules, registered)
    assert (found.agent, found.invocation, found.on_behalf_of) == ("reporter", "pod-7", "")
    made_anew = {"serviceaccount": {"name": "reporter", "uid": "uid-2"}}
    assert "no agent" in refusal(signed(kubernetes(**{"kubernetes.io": made_anew}), typ=None), rules, registered)
    assert "lives longer" in refused(signed(kubernetes(exp=NOW + 31_536_000), typ=None), rules)


def test_a_github_workflow_is_the_agent_and_who_started_it_is_not() -> None:
    rules = row("github")
    claims = rfc9068(
        iss="https://token.actions.githubusercontent.com", sub="repo:acme@1/etl@2:ref:refs/heads/main", client_id=None,
        repository_id="4711", job_workflow_ref="acme/etl/.github/workflows/load.yml@refs/heads/main", run_id="99",
        workflow_ref="acme/etl/load.yml", actor="ada", actor_id="5",
    )  # fmt: skip
    registered = agents(("loader", "4711", "acme/etl/.github/workflows/load.yml@refs/heads/main"))
    found = acting(signed(claims, typ="JWT"), rules, registered)
    assert (found.agent, found.invocation, found.on_behalf_of, found.actors) == ("loader", "99", "", ())
    forked = claims | {"job_workflow_ref": "acme/etl/.github/workflows/load.yml@refs/pull/7/merge"}
    assert "no agent" in refusal(signed(forked, typ="JWT"), rules, registered)


def test_a_gitlab_job_is_pinned_by_the_kind_and_name_of_its_ref() -> None:
    rules = row("gitlab")
    claims = rfc9068(
        iss="https://gitlab.example", sub="project_path:g/p:ref_type:branch:ref:main", client_id=None, project_id="7", ref="main",
        ref_type="branch", ref_protected="true", job_id="1001", sha="c0ffee",
    )  # fmt: skip
    registered = agents(("loader", "7", "branch main"))
    found = acting(signed(claims, typ="JWT"), rules, registered)
    assert (found.agent, found.invocation, found.task) == ("loader", "1001", "c0ffee")
    assert "no agent" in refusal(signed(claims | {"ref_type": "tag"}, typ="JWT"), rules, registered)
    assert "ref_protected" in refused(signed(claims | {"ref_protected": "false"}, typ="JWT"), rules)


ENTRA = {
    "iss": "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0",
    "aud": "66666666-7777-8888-9999-000000000000",
    "sub": "pairwise",
    "oid": "object-1",
    "tid": "11111111-2222-3333-4444-555555555555",
    "azp": "app-1",
    "uti": "u1",
    "iat": NOW - 10,
    "exp": NOW + 4000,
}


def test_an_entra_agent_is_known_by_its_object_and_a_person_is_only_on_whose_behalf() -> None:
    alone, for_people = row("entra"), row("entra_for_people")
    app = ENTRA | {"idtyp": "app", "roles": ["Reader"], "xms_act_fct": "9 11"}
    found = acting(signed(app, typ="JWT"), alone, agents(("reporter", "app-1", "object-1")))
    assert (found.agent, found.groups, found.on_behalf_of) == ("reporter", ("Reader",), "")
    assert "no agent" in refusal(signed(app | {"oid": "object-2"}, typ="JWT"), alone, agents(("reporter", "app-1", "object-1")))
    user = ENTRA | {"idtyp": "user", "scp": "pgwarden", "oid": "person-1"}
    assert "idtyp" in refused(signed(user, typ="JWT"), alone)
    served = acting(signed(user, typ="JWT"), for_people, agents(("reporter", "app-1", "")))
    assert (served.agent, served.on_behalf_of) == ("reporter", "person-1")


def test_an_auth0_client_is_its_own_account_by_the_suffix() -> None:
    rules = row("auth0")
    claims = rfc9068(
        iss="https://tenant.eu.auth0.com/", aud=["https://pgwarden.example", "https://tenant.eu.auth0.com/userinfo"],
        sub="reporter@clients", permissions=["read:orders"],
    )  # fmt: skip
    found = acting(signed(claims), rules)
    assert (found.agent, found.groups, found.on_behalf_of) == ("reporter", ("read:orders",), "")
    assert "not known as the own account" in refusal(signed(claims | {"sub": "auth0|5f7c"}), rules)


def test_an_svid_has_only_sub_aud_and_exp() -> None:
    rules = row("spiffe")
    registered = agents(("reporter", "spiffe://example.org/agents/reporter", ""))
    claims = {"sub": "spiffe://example.org/agents/reporter", "aud": ["pgwarden"], "exp": NOW + 300}
    for typ in (None, "JWT", "JOSE"):
        found = acting(signed(claims, typ=typ, kid=None), rules, registered)
        assert found.agent == "reporter"
    assert "does not start with" in refused(signed(claims | {"sub": "spiffe://example.org.evil/agents/reporter"}, typ=None), rules)
    assert "iss is" in refused(signed(claims | {"iss": "https://evil.example"}, typ=None), rules)
    with_issuer = acting(signed(claims | {"iss": "https://oidc-discovery.example.org"}, typ=None), rules, registered)
    assert with_issuer.agent == "reporter"


def test_an_aws_role_has_its_labels_under_a_key_with_slashes() -> None:
    rules = row("aws")
    role = "arn:aws:iam::123456789012:role/reporter"
    claims = rfc9068(
        iss="https://0123abcd.tokens.sts.global.api.aws", sub=role, client_id=None,
        **{"https://sts.amazonaws.com/": {"lambda_source_function_arn": "arn:aws:lambda:f", "request_tags": {"task": "PROJ-7"}}},
    )  # fmt: skip
    found = acting(signed(claims, P384, typ="JWT"), rules, agents(("reporter", role, "")))
    assert (found.agent, found.invocation, found.task) == ("reporter", "arn:aws:lambda:f", "PROJ-7")


def test_a_google_account_is_its_number_and_not_its_address() -> None:
    rules = row("google")
    claims = rfc9068(
        iss="https://accounts.google.com", aud="https://pgwarden.example", sub="1171", azp="1171", client_id=None, email="r@p.iam"
    )
    found = acting(signed(claims, typ="JWT"), rules, agents(("reporter", "1171", "")))
    assert found.agent == "reporter"
    assert "no agent" in refusal(
        signed(claims | {"sub": "1172"}, typ="JWT"), rules, agents(("reporter", "1171", ""), ("x", "r@p.iam", ""))
    )


def test_what_one_row_takes_another_issuers_row_does_not() -> None:
    shapes = [signed(keycloak_set_up()), spring_token(spring(aud="pgwarden")), signed(oidc_provider())]
    rows = [KEYCLOAK_SET_UP, SPRING, OIDC_PROVIDER]
    for shape, own in zip(shapes, rows, strict=True):
        for other in rows:
            if other is own:
                assert isinstance(proven(shape, other, KEYS), SignedClaims)
            else:
                refused(shape, other)
