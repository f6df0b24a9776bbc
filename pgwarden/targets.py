"""A connection of the configuration -> what the gateway connects to."""

from __future__ import annotations

from gateway.control import Control
from gateway.settings import GatewaySettings
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


def control(connection: ConnectionConfig, settings: GatewaySettings, application_name: str) -> Control:
    """Raises as target()."""
    root = str(connection.sslrootcert) if connection.sslrootcert is not None else ""
    if not root and connection.sslmode.startswith("verify"):
        root = "system"  # libpq 16: the system's trust store, as for the sessions
    return Control(target(connection), connection.sslmode, root, settings, application_name)
