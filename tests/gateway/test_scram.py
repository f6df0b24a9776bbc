from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.scram import ScramClient, ScramRefused, ScramServer
from identity import agent_keys
from identity.agent_keys import Verifier
from identity.principal import ProvenKey
from identity.refusal import Refusal

KEY, KEY_ID, VERIFIER_TEXT = agent_keys.create()
PARSED = agent_keys.parse_verifier(VERIFIER_TEXT)
assert not isinstance(PARSED, Refusal)
VERIFIER: Verifier = PARSED


def _exchange(key: str, verifier: Verifier, server_binding: bytes | None, client_binding: bytes | None) -> bytes:
    server = ScramServer(verifier, "servernonce", server_binding)
    client = ScramClient(key, "clientnonce", 100_000, client_binding)
    proof = server.finish(client.final(server.start(client.mechanism, client.first())))
    client.check(proof.server_final)
    return proof.client_key


@pytest.mark.parametrize("binding", [None, b"\x01" * 32])
def test_both_sides_prove_that_they_know_the_key(binding: bytes | None) -> None:
    client_key = _exchange(KEY, VERIFIER, binding, binding)
    assert ProvenKey("reporter", KEY_ID, VERIFIER.stored_key, client_key).agent == "reporter"


def test_another_key_is_refused() -> None:
    with pytest.raises(ScramRefused, match="wrong key"):
        _exchange(agent_keys.create()[0], VERIFIER, None, None)


def test_no_key_fits_a_name_that_does_not_exist_and_its_salt_stays_the_same() -> None:
    decoy = agent_keys.decoy("nobody", b"seed")
    assert agent_keys.decoy("nobody", b"seed") == decoy
    with pytest.raises(ScramRefused, match="wrong key"):
        _exchange(KEY, decoy, None, None)


def test_a_certificate_in_between_is_noticed() -> None:
    with pytest.raises(ScramRefused, match="somebody stands between"):
        _exchange(KEY, VERIFIER, b"\x01" * 32, b"\x02" * 32)


def test_a_client_that_was_told_of_no_channel_binding_is_refused_where_it_was_offered() -> None:
    server = ScramServer(VERIFIER, "servernonce", b"\x01" * 32)
    with pytest.raises(ScramRefused, match="somebody stands between"):
        server.start("SCRAM-SHA-256", b"y,,n=,r=abc")


def test_a_server_that_does_not_know_the_password_is_noticed() -> None:
    server = ScramServer(VERIFIER, "servernonce", None)
    client = ScramClient(KEY, "clientnonce", 100_000)
    server.finish(client.final(server.start(client.mechanism, client.first())))
    with pytest.raises(ScramRefused, match="impostor"):
        client.check(b"v=" + base64.b64encode(b"\0" * 32))


@pytest.mark.parametrize(
    "server_first",
    [
        b"r=other,s=YQ==,i=4096",
        b"r=clientnonce,s=YQ==,i=4096",
        b"r=clientnonceX,s=YQ==,i=100001",
        b"r=clientnonceX,s=YQ==,i=0",
        b"r=clientnonceX,s=YQ==,i=-5",
        b"r=clientnonce" + b"x" * 10_000 + b",s=YQ==,i=4096",
        b"r=clientnonceX,s=?,i=4096",
        b"",
        b"\xff\xfe",
    ],
)
def test_a_hostile_server_is_refused_before_work_is_done_for_it(server_first: bytes) -> None:
    with pytest.raises(ScramRefused):
        ScramClient(KEY, "clientnonce", 100_000).final(server_first)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else(first: bytes, final: bytes) -> None:
    server = ScramServer(VERIFIER, "servernonce", b"\x01" * 32)
    with pytest.raises(ScramRefused):
        server.start("SCRAM-SHA-256", first)
        server.finish(final)
