"""A configuration -> what its databases, issuers and brokers say when they are asked, by the very code that would use them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gateway import upstream
from gateway.settings import GatewaySettings
from identity.keys import JwksCache
from identity.refusal import Refusal
from identity.settings import IssuerRules
from ingest.log import LogUnavailable
from pgwarden.config import Config, ConnectionConfig
from pgwarden.logs import hush_client, open_log
from pgwarden.printable import printable
from pgwarden.targets import target

PROTOCOL_3_0 = 196608


@dataclass(frozen=True, slots=True)
class Answer:
    """`warning` says what works and should not stay so."""

    name: str  # of the table: connections.shop
    works: bool
    found: str
    warning: str = ""


def look(config: Config) -> Sequence[Answer]:
    """Ask all of them at once. Takes as long as the slowest, which has a limit."""
    return asyncio.run(_look(config))


async def _look(config: Config) -> Sequence[Answer]:
    keys = JwksCache()
    try:
        return await asyncio.gather(
            *(_connection(connection) for connection in config.connections.values()),
            *(_issuer(rules, keys) for rules in config.issuers.values()),
            *([] if config.kafka is None else [_brokers(config)]),
        )
    finally:
        await keys.close()


async def _connection(connection: ConnectionConfig) -> Answer:
    name = f"connections.{connection.name}"
    to = target(connection)
    parameters = {"user": connection.user, "database": connection.database, "application_name": "pgwarden verify-config"}
    settings = GatewaySettings()
    try:
        opened = await upstream.connect(to, PROTOCOL_3_0, parameters, settings)
    except upstream.UpstreamRefused as refused:
        return Answer(name, False, printable(refused.reason))
    tls = opened.channel.tls
    version = printable(opened.parameters.get("server_version", "of an unknown version"))
    encryption = "in clear text" if tls is None else f"{tls.version()}"
    await opened.channel.finish(settings.drain_seconds_max)
    warning = ""
    if opened.parameters.get("is_superuser") == "on":
        warning = f"{printable(connection.user)} is a superuser; make a role that may do only what its agents may"
    return Answer(name, True, f"PostgreSQL {version}, {encryption}, logged in as {printable(connection.user)}", warning)


async def _issuer(rules: IssuerRules, keys: JwksCache) -> Answer:
    name = f"issuers.{rules.name}"
    found = await keys.keys(rules, "")
    if isinstance(found, Refusal):
        return Answer(name, False, printable(found.reason))
    if not found.keys:
        return Answer(name, False, "it has no key that verifies")
    ignored = f"; not used: {printable('; '.join(found.ignored))}" if found.ignored else ""
    return Answer(name, True, f"{len(found.keys)} keys{ignored}" if len(found.keys) != 1 else f"1 key{ignored}")


async def _brokers(config: Config) -> Answer:
    """As every part asks them at its start."""
    assert config.kafka is not None
    hush_client()
    try:
        log = await open_log(config)
        await log.close()
    except LogUnavailable as error:
        return Answer("kafka", False, printable(str(error), 1000))
    encryption = "over TLS" if config.kafka.tls else "in clear text"
    return Answer("kafka", True, f"{printable(', '.join(config.kafka.bootstrap))}, {encryption}, with every topic of the log")
