"""Which connections round the gateway are meant to be: a fold over what operators declared, and whose a connection is."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

from ingest.events import SourceDeclared, SourceWithdrawn

KINDS: Final = ("backup", "replication", "migration", "monitoring", "administration")
LOCAL: Final = "local"
"""The client of a connection over the server's Unix socket."""

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Source:
    """A declared source; SourceDeclared says what each field means."""

    name: str
    kind: str
    server: str
    roles: tuple[str, ...]
    client: str
    executable: str
    application_name: str
    reason: str
    declared_by: str
    declared_at_us: int
    withdrawn_at_us: int = 0  # 0 = it stands
    withdrawn_by: str = ""
    withdrawn_reason: str = ""

    @property
    def stands(self) -> bool:
        return not self.withdrawn_at_us


@dataclass(frozen=True, slots=True)
class Connection:
    """A session of a server, as far as a collector could tell. What it could not is "" and fits only where anything fits."""

    server: str
    role: str
    client: str  # address:port, or "local"
    executable: str
    application_name: str


class Sources:
    """Owned by one task. `all` is a view that follows the fold, withdrawn ones included."""

    def __init__(self, known: Iterable[Source] = ()) -> None:
        self._sources: dict[str, Source] = {source.name: source for source in known}
        self.all: Mapping[str, Source] = MappingProxyType(self._sources)

    def declared(self, event: SourceDeclared) -> bool:
        """Take it in. False when it told nothing new. A name that was withdrawn may be declared anew."""
        before = self._sources.get(event.source)
        if before is not None and (before.stands or event.at_us <= before.withdrawn_at_us):
            return False
        self._sources[event.source] = Source(
            name=event.source,
            kind=event.kind,
            server=event.server,
            roles=event.roles,
            client=event.client,
            executable=event.executable,
            application_name=event.application_name,
            reason=event.reason,
            declared_by=event.operator,
            declared_at_us=event.at_us,
        )
        return True

    def withdrawn(self, event: SourceWithdrawn) -> bool:
        source = self._sources.get(event.source)
        if source is None or not source.stands or event.at_us < source.declared_at_us:
            return False
        self._sources[event.source] = replace(
            source, withdrawn_at_us=event.at_us, withdrawn_by=event.operator, withdrawn_reason=event.reason
        )
        return True

    def standing(self) -> Iterator[Source]:
        return (source for source in self._sources.values() if source.stands)

    def of(self, connection: Connection) -> Source | None:
        """The standing source that this connection is of; the first by name, so that the answer is the same in every reading."""
        fitting = [source for source in self.standing() if fits(source, connection)]
        return min(fitting, key=lambda source: source.name, default=None)


def fits(source: Source, connection: Connection) -> bool:
    return (
        source.server in ("", connection.server)
        and connection.role in source.roles
        and _from(source.client, connection.client)
        and source.executable in ("", connection.executable)
        and source.application_name in ("", connection.application_name)
    )


def network(text: str) -> _Network | None:
    """An address or network in CIDR; None where it is neither. Bits beyond the prefix are a mistake, not a wider network."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def address(client: str) -> _Address | None:
    """Of `address:port`, the address in brackets or not; None for `local` and what is no address."""
    host = client.rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    # The server listens on both families with one socket: the same client is 10.0.0.7 or ::ffff:10.0.0.7.
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _from(wanted: str, client: str) -> bool:
    if not wanted:
        return True
    if wanted == LOCAL or client == LOCAL:
        return wanted == client
    inside, found = network(wanted), address(client)
    return inside is not None and found is not None and found.version == inside.version and found in inside
