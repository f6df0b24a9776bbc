"""Any bytes to `ingest.sql.parse`: it answers, and what it answers can be judged, encoded and shown.

python tests/fuzz/fuzz_sql.py FILE...     replays inputs
"""

from __future__ import annotations

import sys

import msgspec

from identity.scope import Allow, Authority, Deny, LiveGrant, decide
from ingest import sql
from ingest.events import Rule, Scope

_EVERYTHING = Scope("shop", (Rule("public", ("*",), ("select", "insert", "update", "delete", "ddl", "copy", "call")),))
_AUTHORITY = Authority("fuzz", "shop", ("public",), (LiveGrant("g", "fuzz", _EVERYTHING, "alice", 0),))


def one_input(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    parsed = sql.parse(text)
    sql.parses_inline(text)
    if isinstance(parsed, sql.Unparsable):
        assert len(parsed.sqlstate) == 5
        assert parsed.message
        assert 0 <= parsed.position <= len(text) + 1
        return
    msgspec.msgpack.encode(parsed)
    end = 0
    for statement in parsed.statements:
        assert end <= statement.start <= statement.end <= len(data)
        end = statement.end
        decision = decide(statement, _AUTHORITY, {}, frozenset())
        shown = decision.rule if isinstance(decision, Allow) else decision.reason
        assert shown.isascii()
        assert shown.isprintable()
        if isinstance(decision, Deny):
            assert len(decision.sqlstate) == 5
        if statement.refusal:
            assert isinstance(decision, Deny)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            one_input(file.read())
