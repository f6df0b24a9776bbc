"""Bytes from a client, and from a server, into a session: nothing undecided goes on, and nothing but commands comes out."""

from __future__ import annotations

from gateway.session import Session, ToServer
from gateway.settings import GatewaySettings
from gateway.wire import messages
from identity.scope import Authority, LiveGrant
from ingest import sql
from ingest.events import Rule, Scope

GRANT = LiveGrant("g-1", "a", Scope("shop", (Rule("public", ("orders",), ("select",)),)), "b", 0)
PIECES = (
    messages.query("SELECT id FROM orders"),
    messages.query("DELETE FROM orders"),
    messages.parse("", "SELECT 1"),
    messages.parse("s", "DELETE FROM orders"),
    messages.message(b"B", b"\0\0\0\0\0\0\0\0"),
    messages.message(b"B", b"\0s\0\0\0\0\0\0\0"),
    messages.message(b"E", b"\0\0\0\0\0"),
    messages.message(b"D", b"S\0"),
    messages.message(b"C", b"Ss\0"),
    messages.message(b"d", b"DELETE"),
    messages.message(b"c", b""),
    messages.SYNC,
)
ANSWERS = (
    messages.message(b"1", b""),
    messages.message(b"2", b""),
    messages.message(b"3", b""),
    messages.message(b"C", b"SELECT 1\0"),
    messages.message(b"Z", b"I"),
    messages.message(b"Z", b"T"),
    messages.message(b"s", b""),
    messages.message(b"G", b"\0\0\0"),
    messages.message(b"E", b"SERROR\0C42601\0Mpgwarden_refused_1\0\0"),
    messages.message(b"D", b"\0\0"),
)


def one_input(data: bytes) -> None:
    """Each byte below 24 chooses a piece for the client, below 44 one for the server; the others are raw, to whom the last one went."""
    session = Session(
        Authority("a", "shop", ("public",), (GRANT,)), 1, "strict", GatewaySettings(), sql.parse, frozenset, {"search_path": "x"}
    )
    to_client = False
    for byte in data[:400]:
        if byte < 2 * len(PIECES):
            commands, to_client = session.from_client(PIECES[byte // 2], 1, 1), False
        elif byte < 2 * (len(PIECES) + len(ANSWERS)):
            commands, to_client = session.from_server(ANSWERS[byte // 2 - len(PIECES)], 1, 1), True
        elif to_client:
            commands = session.from_server(bytes([byte]), 1, 1)
        else:
            commands = session.from_client(bytes([byte]), 1, 1)
        for command in commands:
            if isinstance(command, ToServer):
                assert b"DELETE FROM" not in command.data
    session.server_lost(1, 1)
