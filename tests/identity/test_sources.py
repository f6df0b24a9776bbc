from __future__ import annotations

import pytest

from identity.commands import (
    Accepted,
    DeclareSource,
    Fresh,
    Known,
    Rejected,
    Repeated,
    Requests,
    WithdrawSource,
    decide,
)
from identity.registry import EVERYONE, Registry, key_of
from identity.sources import Connection, address
from ingest.events import SourceDeclared

KNOWN = Known(frozenset({"shop"}), {})
BACKUP = DeclareSource("nightly", "backup", ("backup",), "pg_dump", client="10.0.0.0/24")


class Desk:
    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = Requests(100)
        self.now_us = 1_000

    def give(self, command: DeclareSource | WithdrawSource, key: str = "") -> Accepted | Repeated | Rejected:
        self.now_us += 1
        verdict = decide(command, key, "alice", self.registry, self.requests, KNOWN, Fresh(), self.now_us)
        if isinstance(verdict, Accepted):
            self.registry.apply(verdict.event)
            self.requests.apply(verdict.event)
        return verdict


def seen(role: str = "backup", client: str = "10.0.0.7:5000", exe: str = "", name: str = "x", server: str = "main") -> Connection:
    return Connection(server, role, client, exe, name)


def test_a_connection_is_of_the_source_that_it_fits_until_that_is_withdrawn() -> None:
    desk = Desk()
    assert isinstance(desk.give(BACKUP), Accepted)
    source = desk.registry.sources.of(seen())
    assert source is not None
    assert (source.name, source.kind, source.declared_by) == ("nightly", "backup", "alice")
    assert isinstance(desk.give(WithdrawSource("nightly", "moved")), Accepted)
    assert desk.registry.sources.of(seen()) is None
    assert isinstance(desk.give(BACKUP), Accepted)
    assert desk.registry.sources.of(seen()) is not None


@pytest.mark.parametrize(
    ("command", "connection"),
    [
        (BACKUP, seen(role="pgwarden")),
        (BACKUP, seen(client="10.0.1.7:5000")),
        (BACKUP, seen(client="local")),
        (BACKUP, seen(client="")),
        (BACKUP, seen(client="[::1]:5000")),
        (DeclareSource("s", "backup", ("backup",), "r", client="local"), seen()),
        (DeclareSource("s", "backup", ("backup",), "r", executable="/usr/bin/pg_dump"), seen(exe="/tmp/pg_dump")),
        (DeclareSource("s", "backup", ("backup",), "r", executable="/usr/bin/pg_dump"), seen(exe="")),
        (DeclareSource("s", "backup", ("backup",), "r", client="10.0.0.7", application_name="pg_dump"), seen(name="psql")),
        (DeclareSource("s", "backup", ("backup",), "r", client="10.0.0.7", server="other"), seen()),
    ],
)
def test_a_connection_that_misses_one_thing_is_of_no_source(command: DeclareSource, connection: Connection) -> None:
    desk = Desk()
    assert isinstance(desk.give(command), Accepted)
    assert desk.registry.sources.of(connection) is None


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.0.0.7:5000", "10.0.0.7"),
        ("[fe80::1%eth0]:5000", "fe80::1"),
        ("::1:5000", "::1"),
        ("::ffff:10.0.0.7:5000", "10.0.0.7"),
        ("local", None),
        ("", None),
        ("host.example:5000", None),
    ],
)
def test_the_address_of_a_client(client: str, expected: str | None) -> None:
    found = address(client)
    assert (str(found) if found is not None else None) == expected


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (DeclareSource("Nightly!", "backup", ("b",), "r", client="local"), "source"),
        (DeclareSource("s", "holiday", ("b",), "r", client="local"), "kind"),
        (DeclareSource("s", "backup", (), "r", client="local"), "roles"),
        (DeclareSource("s", "backup", ("b",), "", client="local"), "reason"),
        (DeclareSource("s", "backup", ("b",), "r", client="10.0.0.7/24"), "client"),
        (DeclareSource("s", "backup", ("b",), "r", client="db.example"), "client"),
        (DeclareSource("s", "backup", ("b",), "r", executable="pg_dump"), "executable"),
        (DeclareSource("s", "backup", ("b",), "r"), "client"),
        (DeclareSource("s", "backup", ("b",), "r", application_name="pg_dump"), "client"),  # anybody can say that
        (DeclareSource("s", "backup", ("b",), "r", client="local", application_name="a\x1b[2J"), "application_name"),
    ],
)
def test_a_declaration_that_says_too_little_or_something_wrong_is_refused_with_what_to_write(
    command: DeclareSource, field: str
) -> None:
    verdict = Desk().give(command)
    assert isinstance(verdict, Rejected)
    assert (verdict.kind, [problem.partition(":")[0] for problem in verdict.problems]) == ("invalid", [field])


def test_a_source_is_declared_once_and_a_repeated_call_changes_nothing() -> None:
    desk = Desk()
    first = desk.give(BACKUP, "k")
    again = desk.give(BACKUP, "k")
    assert isinstance(first, Accepted)
    assert again == Repeated(first.event)
    assert isinstance(desk.give(BACKUP), Rejected)
    assert isinstance(desk.give(WithdrawSource("other", "r")), Rejected)
    assert isinstance(first.event, SourceDeclared)
    assert key_of(first.event) == EVERYONE
