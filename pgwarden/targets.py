"""A connection of the configuration -> what the gateway connects to."""

from __future__ import annotations

from gateway.tls import client_context
from gateway.upstream import Target
from pgwarden.config import ConnectionConfig


def target(connection: ConnectionConfig) -> Target:
    """Raises OSError, ssl.SSLError when the root certificate cannot be used."""
    return Target(
        name=connection.name,
        host=connection.host,
        port=connection.port,
        database=connection.database,
        role=connection.user,
        password=connection.password.reveal,
        tls=client_context(connection.sslmode, connection.sslrootcert),
        search_path=connection.search_path,
        durability=connection.durability,
    )
