from __future__ import annotations

import ast
import dataclasses
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from identity import principal, strict_json
from identity.refusal import Refusal
from identity.settings import Equals, IssuerRules, RulesInvalid, rules
from identity.tokens import KeySet, Peek, SignedClaims, key_set, peek, rows_for, verify
from tests.fuzz.fuzz_tokens import one_input
from tests.identity.token_shapes import (
    ED448,
    ED25519,
    KEYS,
    NOW,
    NOW_US,
    P256,
    P384,
    RSA,
    RSA_OTHER,
    STRICT,
    SigningKey,
    b64,
    jwks,
    keys_of,
    proven,
    refused,
    rfc9068,
    signed,
)

ROOT = Path(__file__).parents[2]


def test_an_access_token_by_the_letter_of_rfc_9068_is_taken() -> None:
    found = proven(signed(rfc9068()), STRICT)
    assert found.claims["client_id"] == "reporter"
    assert found.credential == hashlib.sha256(b"a3f1").hexdigest()
    assert found.expires_at_us == (NOW + 290 + 30) * 1_000_000


@pytest.mark.parametrize(
    ("key", "alg"),
    [(RSA, "RS256"), (RSA, "PS256"), (P256, "ES256"), (ED25519, "EdDSA"), (ED25519, "Ed25519")],
    ids=["RS256", "PS256", "ES256", "EdDSA", "Ed25519"],
)
def test_each_algorithm_of_the_default_row_verifies(key: SigningKey, alg: str) -> None:
    keys = keys_of(key.jwk(alg=None))
    proven(signed(rfc9068(), key, alg=alg), STRICT, keys)


@pytest.mark.parametrize(("jwk_alg", "token_alg"), [("EdDSA", "Ed25519"), ("Ed25519", "EdDSA")])
def test_eddsa_and_ed25519_are_one_name(jwk_alg: str, token_alg: str) -> None:
    row = dataclasses.replace(STRICT, algorithms=("EdDSA",))
    proven(signed(rfc9068(), ED25519, alg=token_alg), row, keys_of(ED25519.jwk(alg=jwk_alg)))


# -- the signature ---------------------------------------------------------------------------------------------------------------


def test_a_token_without_a_signature_is_refused() -> None:
    for segments in ("{}.{}.", "{}.{}", "{}.{}.AA"):
        token = segments.format(b64(b'{"alg":"none","typ":"at+jwt"}'), b64(json.dumps(rfc9068()).encode()))
        assert isinstance(verify(token, STRICT, KEYS, NOW_US), Refusal)


@pytest.mark.parametrize("name", ["none", "None", "NONE", "HS256", "HS512", "", "RS1", "RS384", "ES256K", "A128KW"])
def test_an_algorithm_outside_the_row_is_refused(name: str) -> None:
    assert refused(_with_alg(name), STRICT) == "the token's alg is not allowed for its issuer"


def _with_alg(name: str) -> str:
    header, claims = json.dumps({"alg": name, "typ": "at+jwt", "kid": RSA.kid}), json.dumps(rfc9068())
    return f"{b64(header.encode())}.{b64(claims.encode())}.{b64(b'x' * 32)}"


def test_hmac_with_the_public_key_as_its_secret_is_refused() -> None:
    public = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    message = f"{b64(json.dumps({'alg': 'HS256', 'typ': 'at+jwt', 'kid': RSA.kid}).encode())}.{b64(json.dumps(rfc9068()).encode())}"
    token = f"{message}.{b64(hmac.digest(public, message.encode(), 'sha256'))}"
    assert refused(token, STRICT) == "the token's alg is not allowed for its issuer"
    with pytest.raises(RulesInvalid, match="HS256 cannot be used"):
        dataclasses.replace(STRICT, algorithms=("HS256",))


def test_a_secret_key_in_a_jwks_never_verifies() -> None:
    keys = keys_of({"kty": "oct", "k": b64(b"s" * 32), "kid": "rsa-1", "alg": "RS256"}, RSA_OTHER.jwk())
    assert [key.kid for key in keys.keys] == ["rsa-2"]


def test_a_changed_claim_breaks_the_signature() -> None:
    header, _, signature = signed(rfc9068()).split(".")
    forged = b64(json.dumps(rfc9068(sub="admin", client_id="admin")).encode())
    assert refused(f"{header}.{forged}.{signature}", STRICT) == "the token's signature does not match"


def test_a_key_of_another_issuer_with_the_same_kid_is_refused() -> None:
    stranger = SigningKey("rsa-1", "RS256", RSA_OTHER.private)
    assert refused(signed(rfc9068(), stranger), STRICT) == "the token's signature does not match"


def test_the_keys_type_decides_the_algorithm_and_not_the_token() -> None:
    # the same kid on an RSA key, the token says ES256
    token = signed(rfc9068(), P256, kid=RSA.kid)
    assert refused(token, STRICT) == "the token's alg does not belong to its key"
    # a key whose JWK says RS256 does not verify PS256
    assert refused(signed(rfc9068(), RSA, alg="PS256"), STRICT) == "the token's alg does not belong to its key"
    # and a curve knows one algorithm
    row = dataclasses.replace(STRICT, algorithms=("ES256", "ES384"))
    assert refused(signed(rfc9068(), P384, alg="ES256", kid="p384"), row) == "the token's alg does not belong to its key"


def test_a_key_for_encryption_never_verifies() -> None:
    keys = keys_of(
        RSA.jwk(use="enc", alg="RSA-OAEP"), RSA_OTHER.jwk(use="enc", alg=None), P256.jwk(use=None, key_ops=["deriveKey"])
    )
    assert keys.keys == ()
    assert refused(signed(rfc9068()), STRICT, keys) == "the token's kid is not among the issuer's keys"


def test_ed448_is_refused() -> None:
    keys = keys_of(ED448.jwk(), ED448.jwk(alg=None, kid="other"))
    assert keys.keys == ()
    for name in ("EdDSA", "Ed448"):
        assert isinstance(verify(signed(rfc9068(), ED448, alg=name), STRICT, keys, NOW_US), Refusal)


def test_keys_in_the_tokens_header_are_not_read() -> None:
    thief = RSA_OTHER
    token = signed(rfc9068(), thief, kid=None, jwk=thief.jwk(), jku="https://evil.example/jwks", x5u="https://evil.example/x5u")
    assert isinstance(verify(token, STRICT, keys_of(RSA.jwk()), NOW_US), Refusal)


def test_a_token_without_kid_is_held_against_few_keys_only() -> None:
    token = signed(rfc9068(), kid=None)
    proven(token, STRICT, keys_of(RSA_OTHER.jwk(), RSA.jwk(kid=None)))
    many = keys_of(*[RSA.jwk(kid=str(number)) for number in range(5)])
    assert refused(token, STRICT, many) == "the token has no kid and its issuer too many keys to try"


def test_a_kid_that_two_keys_share_is_tried_with_both() -> None:
    proven(signed(rfc9068()), STRICT, keys_of(RSA_OTHER.jwk(kid="rsa-1"), RSA.jwk()))


@pytest.mark.parametrize("extension", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": True}])
def test_a_token_that_needs_an_extension_is_refused(extension: dict[str, object]) -> None:
    assert refused(signed(rfc9068(), **extension), STRICT) == "the token needs an extension (crit)"


# -- its form --------------------------------------------------------------------------------------------------------------------


def test_a_huge_token_is_refused_unread() -> None:
    assert refused(signed(rfc9068(groups=["g" * 1000] * 12)), STRICT) == "the token is longer than 8192 bytes"
    assert isinstance(verify("a" * 50_000_000, STRICT, KEYS, NOW_US), Refusal)


@pytest.mark.parametrize(
    "claims",
    [
        b'{"iss":"https://idp.example","aud":"pgwarden","sub":"a","sub":"b","client_id":"c","iat":1,"exp":2,"jti":"j"}',
        b'{"sub":"a","cnf":{"jkt":"a","jkt":"b"}}',
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'["sub"]',
        b'"sub"',
        b"\xff\xfe",
        b'{"sub":"\\ud800"}',
        b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"exp":' + b"9" * 5000 + b"}",
        b'{"sub":"a"} trailing',
    ],
    ids=[
        "named twice",
        "named twice inside",
        "NaN",
        "Infinity",
        "array",
        "string",
        "not UTF-8",
        "surrogate",
        "very deep",
        "deep",
        "huge integer",
        "trailing",
    ],
)
def test_claims_that_two_readers_could_read_differently_are_refused(claims: bytes) -> None:
    assert refused(signed(claims), STRICT).startswith("the token's claims are ")
    assert isinstance(peek(signed(claims)), Refusal)


def test_a_header_member_named_twice_is_refused() -> None:
    token = signed(rfc9068(), header=b'{"alg":"none","alg":"RS256","typ":"at+jwt","kid":"rsa-1"}')
    assert refused(token, STRICT) == "the token's header is JSON in which a member is named twice"


@pytest.mark.parametrize("change", ["{}=", "{}\n", " {}", "{}.x", "{}.x.y", "\u00e9{}"])
def test_what_is_not_the_compact_form_is_refused(change: str) -> None:
    assert isinstance(verify(change.format(signed(rfc9068())), STRICT, KEYS, NOW_US), Refusal)


@pytest.mark.parametrize("header", [{"alg": 7}, {"alg": None}, {"typ": 7}, {"kid": 7}, {"kid": ["rsa-1"]}, {"kid": "k" * 513}])
def test_a_header_of_another_shape_is_refused(header: dict[str, object]) -> None:
    whole = {"alg": "RS256", "typ": "at+jwt", "kid": "rsa-1"} | header
    token = signed(rfc9068(), header=json.dumps(whole).encode())
    assert refused(token, STRICT) in ("alg, typ or kid is not a string", "kid is too long")
    assert isinstance(peek(token), Refusal)


@pytest.mark.parametrize("claims", [{"iss": 7}, {"iss": ["a"]}, {"sub": 7}, {"sub": {}}])
def test_a_token_whose_issuer_or_subject_is_no_string_has_no_row(claims: dict[str, object]) -> None:
    assert peek(signed(rfc9068(**claims))) == Refusal("the token's iss or sub is not a string")


@pytest.mark.parametrize("jti", [7, "", "j" * 513, ["a"]])
def test_a_jti_that_is_no_name_is_refused(jti: object) -> None:
    assert refused(signed(rfc9068(jti=jti)), STRICT) == "jti is not a string of a fair length"


def test_another_spelling_of_the_same_signature_is_refused() -> None:
    # the last character of 256 bytes in base64url carries 4 bits that mean nothing: one token, one text
    token = signed(rfc9068())
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    assert refused(twin, STRICT) == "not a signed token in compact form"


def test_every_truncation_of_a_token_is_refused() -> None:
    token = signed(rfc9068(), P256)
    for length in range(len(token)):
        assert isinstance(verify(token[:length], STRICT, KEYS, NOW_US), Refusal)


# -- what kind of token ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"])
def test_the_type_of_access_tokens_is_known_in_any_case(typ: str) -> None:
    proven(signed(rfc9068(), typ=typ), STRICT)


@pytest.mark.parametrize("typ", [None, "JWT", "secevent+jwt", "logout+jwt", "dpop+jwt", "at+jwt ", "xat+jwt", ""])
def test_another_type_is_refused_by_default(typ: str | None) -> None:
    assert "typ is not one" in refused(signed(rfc9068(), typ=typ), STRICT)


@pytest.mark.parametrize("mark", ["nonce", "at_hash", "c_hash", "s_hash", "events"])
def test_a_claim_of_another_kind_of_token_is_refused(mark: str) -> None:
    for value in ("x", {}, None):
        claims = {**rfc9068(), mark: value}
        assert "belongs to another kind of token" in refused(signed(claims), STRICT)


@pytest.mark.parametrize("name", ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"])
def test_each_claim_that_rfc_9068_requires_is_required(name: str) -> None:
    assert name in refused(signed(rfc9068(**{name: None})), STRICT)


def test_a_row_that_takes_looser_types_needs_a_mark_of_access_tokens() -> None:
    with pytest.raises(RulesInvalid, match="add a mark"):
        dataclasses.replace(STRICT, types=("JWT",))
    marked = dataclasses.replace(STRICT, types=("JWT",), scopes=("pgwarden",))
    proven(signed(rfc9068(scope="openid pgwarden"), typ="JWT"), marked)
    assert refused(signed(rfc9068(scope="openid"), typ="JWT"), marked) == "the scope pgwarden was not granted"


def test_a_claim_that_a_row_fixes_must_have_its_value() -> None:
    row = dataclasses.replace(STRICT, equals=(Equals(("a", "b"), ("x", "y")),))
    proven(signed(rfc9068(a={"b": "y"})), row)
    proven(signed(rfc9068(a={"b": ["z", "x"]})), row)
    for value in ({"b": "z"}, {"b": ["z"]}, {"b": None}, "x", None, {"b": True}):
        assert "a.b" in refused(signed(rfc9068(a=value)), row)


# -- for whom, by whom, when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "audience",
    [
        "other",
        "",
        [],
        ["other"],
        ["pgwarden", "other"],
        "pgwarden2",
        "PGWARDEN",
        1,
        True,
        {"pgwarden": 1},
        [["pgwarden"]],
        ["pgwarden"] * 17,
    ],
)
def test_an_audience_that_is_not_exactly_ours_is_refused(audience: object) -> None:
    assert "aud" in refused(signed(rfc9068(aud=audience)), STRICT)


def test_an_array_of_our_audience_alone_is_ours() -> None:
    proven(signed(rfc9068(aud=["pgwarden"])), STRICT)


def test_another_audience_stands_beside_ours_only_where_the_row_names_it() -> None:
    row = dataclasses.replace(STRICT, audiences_also=("account",))
    proven(signed(rfc9068(aud=["account", "pgwarden"])), row)
    assert "must name pgwarden" in refused(signed(rfc9068(aud="account")), row)
    assert "'third'" in refused(signed(rfc9068(aud=["account", "pgwarden", "third"])), row)


@pytest.mark.parametrize(
    "issuer",
    [
        "https://idp.example/",
        "https://IDP.example",
        "https://idp.exampl",
        "https://idp.example:443",
        "http://idp.example",
        ["https://idp.example"],
        "",
    ],
)
def test_an_issuer_that_differs_by_a_byte_is_refused(issuer: object) -> None:
    assert "iss" in refused(signed(rfc9068(iss=issuer)), STRICT)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", ["1800000100", 1800000100.5, True, -1, [1800000100], 2**60])
def test_a_time_that_is_no_whole_number_is_refused(name: str, value: object) -> None:
    assert refused(signed(rfc9068(**{name: value})), STRICT) == f"{name} is not a whole number of seconds"


def test_a_token_holds_until_exp_and_the_leeway_and_not_a_microsecond_longer() -> None:
    token = signed(rfc9068())
    end_us = (NOW + 290 + STRICT.leeway_seconds) * 1_000_000
    assert proven(token, STRICT, now_us=end_us - 1).expires_at_us == end_us
    assert refused(token, STRICT, now_us=end_us) == "the token has expired"


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_a_token_holds_from_its_time_less_the_leeway(name: str) -> None:
    proven(signed(rfc9068(**{name: NOW + 30})), STRICT)
    assert name in refused(signed(rfc9068(**{name: NOW + 31})), STRICT)


def test_a_token_that_lives_too_long_is_refused() -> None:
    proven(signed(rfc9068(exp=NOW - 10 + 3600)), STRICT)
    assert refused(signed(rfc9068(exp=NOW - 10 + 3601)), STRICT) == "the token lives longer than 3600 s"
    assert "no lifetime" in refused(signed(rfc9068(iat=NOW, exp=NOW)), STRICT)


def test_without_iat_the_rest_of_its_life_is_capped() -> None:
    row = dataclasses.replace(STRICT, required=(("iss",), ("exp",), ("sub",)))
    proven(signed(rfc9068(iat=None, exp=NOW + 3600)), row)
    assert "lives longer" in refused(signed(rfc9068(iat=None, exp=NOW + 86_400)), row)


@pytest.mark.parametrize("subject", ["", " " * 600, "a\nb", "a\x00b", 7, ["a"], "a\u202eb"])
def test_a_subject_that_would_spoil_a_record_is_refused(subject: object) -> None:
    assert "sub" in refused(signed(rfc9068(sub=subject)), STRICT)


# -- bound tokens: RFC 8705 §3.1 ---------------------------------------------------------------------------------------------------

CERTIFICATE = hashlib.sha256(b"the client's certificate").digest()


def test_a_bound_token_needs_its_certificate_on_the_connection() -> None:
    token = signed(rfc9068(cnf={"x5t#S256": b64(CERTIFICATE)}))
    proven(token, STRICT, certificate=CERTIFICATE)
    assert "the connection has none" in refused(token, STRICT)
    assert "another certificate" in refused(token, STRICT, certificate=hashlib.sha256(b"another").digest())


def test_a_row_can_ask_for_bound_tokens() -> None:
    row = dataclasses.replace(STRICT, certificate_required=True)
    assert "bound to no certificate" in refused(signed(rfc9068()), row, certificate=CERTIFICATE)
    proven(signed(rfc9068(cnf={"x5t#S256": b64(CERTIFICATE)})), row, certificate=CERTIFICATE)


@pytest.mark.parametrize("cnf", [None, "x", [], {}, {"x5t#S256": 7}, {"x5t#S256": "***"}, {"x5t": "abc"}])
def test_a_binding_that_cannot_be_read_is_refused(cnf: object) -> None:
    assert isinstance(verify(signed({**rfc9068(), "cnf": cnf}), STRICT, KEYS, NOW_US, CERTIFICATE), Refusal)


# -- keys ------------------------------------------------------------------------------------------------------------------------


def test_a_key_that_cannot_verify_is_named_and_spoils_no_other() -> None:
    small = SigningKey("small", "RS256", rsa.generate_private_key(65537, 1024))
    koblitz = SigningKey("koblitz", "ES256K", ec.generate_private_key(ec.SECP256K1()))
    published = RSA_OTHER.jwk() | {"d": b64(b"secret")}
    keys = keys_of(
        small.jwk(),
        koblitz.jwk(),
        published,
        P256.jwk(alg="RS256"),
        P256.jwk(x="AAAA"),
        {"kty": "AKP"},
        {"kty": "RSA"},
        RSA.jwk(kid=7),
        RSA.jwk(),
    )
    assert [key.kid for key in keys.keys] == ["rsa-1"]
    assert len(keys.ignored) == 8
    assert "1024 bits" in keys.ignored[0]
    assert "private part is published" in keys.ignored[2]


@pytest.mark.parametrize("exponent", [0, 1, 2, 4, 2**32 + 1, 2**2047 + 1])
def test_an_exponent_that_costs_or_proves_nothing_is_ignored(exponent: int) -> None:
    keys = keys_of(RSA.jwk(e=b64(exponent.to_bytes(max(1, (exponent.bit_length() + 7) // 8)))))
    assert keys.ignored == ("key 0: an RSA exponent that is not used",)


@pytest.mark.parametrize(
    "document", [b"", b"[]", b'{"keys":{}}', b'{"keys":"x"}', b'{"keys":[],"keys":[]}', json.dumps({"keys": [{}] * 65}).encode()]
)
def test_a_document_that_is_no_jwks_is_refused(document: bytes) -> None:
    assert isinstance(key_set(document), Refusal)


def test_members_of_a_jwks_that_are_no_keys_are_passed_over() -> None:
    keys = key_set(jwks(RSA.jwk())[:-2] + b',7,null,"x",[]]}')
    assert isinstance(keys, KeySet)
    assert len(keys.keys) == 1
    assert len(keys.ignored) == 4


def test_a_set_knows_the_kids_that_could_verify() -> None:
    assert KEYS.knows("rsa-1")
    assert KEYS.knows("")
    assert not KEYS.knows("rsa-9")
    assert not keys_of(RSA.jwk(use="enc")).knows("")


# -- which row -------------------------------------------------------------------------------------------------------------------


def test_a_token_is_held_against_the_rows_of_its_issuer_only() -> None:
    other = dataclasses.replace(STRICT, name="other", issuer="https://idp.example/")
    second = dataclasses.replace(STRICT, name="second")
    peeked = peek(signed(rfc9068()))
    assert peeked == Peek("https://idp.example", "reporter", "rsa-1")
    assert isinstance(peeked, Peek)
    assert rows_for(peeked, [other, STRICT, second]) == (STRICT, second)
    assert isinstance(rows_for(peeked, [other]), Refusal)


def test_a_token_without_issuer_is_known_by_its_trust_domain() -> None:
    svid = dataclasses.replace(STRICT, name="td", required=(("exp",), ("sub",)), subject_prefix="spiffe://td/")
    peeked = Peek("", "spiffe://td/reporter", "")
    assert rows_for(peeked, [STRICT, svid]) == (svid,)
    assert isinstance(rows_for(Peek("", "spiffe://td2/reporter", ""), [STRICT, svid]), Refusal)


# -- rows ------------------------------------------------------------------------------------------------------------------------


def test_a_row_says_all_that_is_wrong_with_it_at_once() -> None:
    wrong = rules(
        "x",
        {
            "issuer": "ftp://idp.example",
            "audience": "pgwarden",
            "algorithms": ["HS256"],
            "leeway_seconds": 60,
            "lifetime_max_seconds": 0,
            "required": ["iat"],
            "types": ["JWT"],
            "operator_groups": ["a"],
        },
    )
    assert isinstance(wrong, tuple)
    assert {sentence.partition(":")[0] for sentence in wrong} == {
        "issuer", "algorithms", "leeway_seconds", "lifetime_max_seconds", "required", "types", "operator_clients", "subject_prefix",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unknown", 1), ("issuer", 1), ("audience", ["a"]), ("algorithms", "RS256"), ("types", [1]), ("equals", [{"path": "a"}]),
        ("equals", "a"), ("agent", [1]), ("agent", []), ("leeway_seconds", True), ("insecure_http", 1), ("groups", 1),
        ("without_act", "trust"),
    ],
)  # fmt: skip
def test_a_setting_of_the_wrong_type_is_named(key: str, value: object) -> None:
    wrong = rules("x", {"issuer": "https://idp.example", "audience": "pgwarden"} | {key: value})
    assert isinstance(wrong, tuple)
    assert wrong[0].startswith(f"{key}: ")


def test_plain_http_is_for_this_machine_and_only_when_asked_for() -> None:
    for issuer, insecure, fine in (
        ("http://127.0.0.1:1", True, True), ("http://[::1]:1", True, True), ("http://localhost", True, True),
        ("http://127.0.0.1:1", False, False), ("http://10.0.0.1", True, False), ("http://127.0.0.1.evil.example", True, False),
        ("http://localhost@evil.example", True, False), ("file:///etc/passwd", True, False), ("https://", False, False),
        ("https://idp.example?x", False, False), ("https://idp.example", False, True),
    ):  # fmt: skip
        read = rules("x", {"issuer": issuer, "audience": "pgwarden", "insecure_http": insecure})
        assert isinstance(read, IssuerRules) == fine, issuer


def test_a_path_is_a_list_of_keys_and_alternatives_are_a_list_of_lists() -> None:
    def agent(value: object) -> object:
        read = rules("x", {"issuer": "https://idp.example", "audience": "pgwarden", "agent": value})
        return read.agent if isinstance(read, IssuerRules) else read

    assert agent("sub") == (("sub",),)
    assert agent(["kubernetes.io", "namespace"]) == (("kubernetes.io", "namespace"),)
    assert agent([["azp"], ["appid"]]) == (("azp",), ("appid",))


# -- proofs are types ------------------------------------------------------------------------------------------------------------


def test_signed_claims_cannot_be_made_without_a_token() -> None:
    with pytest.raises(TypeError, match="made by"):
        SignedClaims(STRICT, {}, "x", 1, object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(proven(signed(rfc9068()), STRICT), expires_at_us=2**60)


def test_claims_cannot_be_changed_after_they_were_verified() -> None:
    claims = proven(signed(rfc9068(groups=["a"], cnf_like={"a": 1})), STRICT).claims
    with pytest.raises(TypeError):
        claims["sub"] = "admin"  # type: ignore[index]
    assert claims["groups"] == ("a",)


def test_claims_are_not_in_the_representation() -> None:
    assert "reporter" not in repr(proven(signed(rfc9068()), STRICT))


def test_only_claims_and_principal_hold_the_mint() -> None:
    using = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        if path.relative_to(ROOT).parts[0] in ("ingest", "identity", "gateway", "analytics", "dashboards", "pgwarden"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
            attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            if "MINT" in names | attributes or (path.stem == "principal" and path.parent.name == "identity"):
                using.append(str(path.relative_to(ROOT)))
    assert using == ["identity/claims.py", "identity/principal.py"]
    assert principal.MINT is not None


def test_json_is_frozen_to_the_bottom() -> None:
    read = strict_json.json_object(b'{"a":[{"b":[1,"x",null,true,1.5]}]}')
    assert not isinstance(read, Refusal)
    inner = read["a"]
    assert isinstance(inner, tuple)
    with pytest.raises(TypeError):
        inner[0]["b"] = 1  # type: ignore[index,call-overload]


# -- hostile bytes ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600))
def test_no_bytes_make_the_verifier_fail(data: bytes) -> None:
    one_input(data)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["iss", "aud", "sub", "client_id", "exp", "iat", "nbf", "jti", "cnf", "scope", "act", "typ", "groups", "azp"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_signed_claims_of_any_shape_are_taken_or_refused(changes: dict[str, object]) -> None:
    found = verify(signed({**rfc9068(), **changes}, P256), STRICT, KEYS, NOW_US)
    assert isinstance(found, (SignedClaims, Refusal))
    if isinstance(found, SignedClaims):
        assert found.claims["iss"] == STRICT.issuer
        assert found.claims["aud"] in ("pgwarden", ("pgwarden",))
