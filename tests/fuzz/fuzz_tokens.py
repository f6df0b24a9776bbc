"""Bytes as a token, as its header and claims under a true signature, and as a JWKS: taken or refused, and never anything else."""

from __future__ import annotations

from identity import claims, tokens
from identity.refusal import Refusal
from identity.strict_json import json_object
from identity.tokens import KeySet, SignedClaims
from tests.identity.token_shapes import KEYS, NOW_US, P256, STRICT, signed


def one_input(data: bytes) -> None:
    text = data.decode("latin-1")
    assert isinstance(tokens.peek(text), Refusal | tokens.Peek)
    assert isinstance(tokens.verify(text, STRICT, KEYS, NOW_US), Refusal), "nobody signed this"
    assert isinstance(tokens.key_set(data), KeySet | Refusal)
    assert isinstance(tokens.key_set(b'{"keys":[' + data + b"]}"), KeySet | Refusal)
    json_object(data)

    header, _, body = data.partition(b"\0")
    if header and body:
        for token in (signed(body, P256), signed(body, P256, header=header)):
            found = tokens.verify(token, STRICT, KEYS, NOW_US)
            if isinstance(found, SignedClaims):
                claims.principal(found, STRICT, lambda issuer, client, subject: client)
