"""Keys: strong, told apart from everything else, and stored only as what cannot be turned back."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity import agent_keys
from identity.agent_keys import Verifier
from identity.refusal import Refusal


def parsed(text: str) -> Verifier:
    verifier = agent_keys.parse_verifier(text)
    assert isinstance(verifier, Verifier)
    return verifier


def accepts(verifier: Verifier, password: str) -> bool:
    """A SCRAM client's proof, checked as a server does: RFC 5802 §3."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), verifier.salt, verifier.iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return hashlib.sha256(client_key).digest() == verifier.stored_key and server_key == verifier.server_key


def test_the_verifier_of_a_new_key_accepts_that_key_and_no_other() -> None:
    (key, _, verifier), (other, _, _) = agent_keys.create(), agent_keys.create()
    assert accepts(parsed(verifier), key)
    assert not accepts(parsed(verifier), other)


def test_the_verifier_is_the_one_that_postgresql_would_make() -> None:
    # RFC 7677 §3, the example exchange: user "pencil" with this salt; StoredKey and ServerKey as PostgreSQL 18 stores them.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = parsed(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert (verifier.iterations, verifier.salt) == (4096, salt)
    assert accepts(verifier, "pencil")


def test_a_key_holds_256_random_bits_behind_its_id() -> None:
    key, key_id, _ = agent_keys.create()
    prefix, id_, secret = key.split("_")
    assert (prefix, id_, agent_keys.key_id(key)) == ("pgw", key_id, key_id)
    assert len(base64.b32decode(secret.upper() + "====")) == 32


def test_no_two_keys_share_an_id_a_secret_or_a_salt() -> None:
    made = [agent_keys.create() for _ in range(50)]
    assert len({key.split("_")[2] for key, _, _ in made}) == 50
    assert len({key_id for _, key_id, _ in made}) == 50
    assert len({parsed(verifier).salt for _, _, verifier in made}) == 50


def test_the_verifier_holds_nothing_of_the_key() -> None:
    key, _, verifier = agent_keys.create()
    secret = key.rsplit("_", 1)[1]
    assert secret not in verifier
    assert base64.b64encode(base64.b32decode(secret.upper() + "====")).decode() not in verifier


WELL_FORMED = "pgw_" + "a" * 13 + "_" + "a" * 52


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        "pgw_abc_def",
        "pgwop_" + "a" * 52,
        WELL_FORMED + "\n",
        WELL_FORMED[:-1],
        WELL_FORMED.upper(),
        WELL_FORMED[:-1] + "ä",
    ],
)
def test_what_we_did_not_make_is_no_agent_key(text: str) -> None:
    assert isinstance(agent_keys.key_id(WELL_FORMED), str)
    for refused in (agent_keys.key_id(text), agent_keys.verifier(text)):
        assert isinstance(refused, Refusal)
        assert not text or text not in refused.reason


def test_the_same_key_gets_another_salt_each_time_and_the_same_id() -> None:
    key, key_id, _ = agent_keys.create()
    first, second = agent_keys.verifier(key), agent_keys.verifier(key)
    assert isinstance(first, str)
    assert isinstance(second, str)
    assert first != second
    assert accepts(parsed(first), key)
    assert accepts(parsed(second), key)
    assert agent_keys.key_id(key) == key_id


@pytest.mark.parametrize(
    "text",
    [
        "md5" + "0" * 32,
        "SCRAM-SHA-256$4096:c2FsdA==$short:short",
        "SCRAM-SHA-256$4095:"
        + base64.b64encode(bytes(16)).decode()
        + ("$" + base64.b64encode(bytes(32)).decode())
        + ":"
        + "A" * 44,
        "SCRAM-SHA-1$4096:c2FsdA==$" + "A" * 44 + ":" + "A" * 44,
        "SCRAM-SHA-256$9999999:c2FsdA==$" + "A" * 43 + "=:" + "A" * 43 + "=",
        "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "A" * 43 + "=\n",
    ],
)
def test_a_verifier_that_postgresql_would_not_store_is_refused(text: str) -> None:
    assert isinstance(agent_keys.parse_verifier(text), Refusal)


@given(st.text())
def test_any_text_is_a_verifier_or_a_refusal(text: str) -> None:
    assert isinstance(agent_keys.parse_verifier(text), Verifier | Refusal)


def test_a_decoy_looks_the_same_at_each_attempt_and_different_for_each_name() -> None:
    seed = bytes(32)
    assert agent_keys.decoy("ghost", seed) == agent_keys.decoy("ghost", seed)
    assert agent_keys.decoy("ghost", seed).salt != agent_keys.decoy("spirit", seed).salt
    assert agent_keys.decoy("ghost", seed).salt != agent_keys.decoy("ghost", bytes(31) + b"\1").salt
    real = parsed(agent_keys.create()[2])
    decoy = agent_keys.decoy("ghost", seed)
    assert (decoy.iterations, len(decoy.salt), len(decoy.stored_key)) == (real.iterations, len(real.salt), len(real.stored_key))


def test_an_operator_key_is_stored_as_its_sha256() -> None:
    key, stored = agent_keys.create_operator_key()
    assert stored == hashlib.sha256(key.encode()).hexdigest()
    assert agent_keys.is_operator_key(key)
    assert not agent_keys.is_operator_key(agent_keys.create()[0])


def test_a_verifier_has_an_id_of_its_own() -> None:
    one, two = agent_keys.create()[2], agent_keys.create()[2]
    assert agent_keys.verifier_id(one) == agent_keys.verifier_id(one) != agent_keys.verifier_id(two)
