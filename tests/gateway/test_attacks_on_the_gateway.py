"""Attacks on a running gateway: revocation in every state, floods, a client that does not read, a server that lies."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from gateway.wire.startup import encode_startup
from ingest.events import AgentRevoked, Rule, SessionDenied, SessionKilled
from tests.system import raw_client as raw
from tests.system.raw_client import COPY_DONE, FLUSH, SYNC, RawClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Warden  # type: ignore[import-not-found]

WRITE = Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy"))
LONG = "SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e"


@pytest.fixture
def open_warden(make_warden: Callable[..., Warden]) -> Warden:
    warden = make_warden(tls="optional")
    warden.agent("bad", WRITE)
    return warden


def _raw(warden: Warden, agent: str = "bad") -> RawClient:
    return RawClient(warden.port, agent, warden.keys[agent])


def _revoke(warden: Warden) -> None:
    warden.record(AgentRevoked(time.time_ns() // 1000, "bad", "misbehaves", "olga"))


def _backends(database: object) -> int:
    with psycopg.connect(database.superuser_dsn) as direct:  # type: ignore[attr-defined]
        row = direct.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'pgwarden/bad%%'",
            (database.name,),  # type: ignore[attr-defined]
        ).fetchone()
    assert row is not None
    return int(row[0])


def _notes(database: object, note: str) -> int:
    with psycopg.connect(database.dsn) as direct:  # type: ignore[attr-defined]
        row = direct.execute("SELECT count(*) FROM orders WHERE note = %s", (note,)).fetchone()
    assert row is not None
    return int(row[0])


def _resident_bytes(warden: Warden) -> int:
    assert warden.process is not None
    with open(f"/proc/{warden.process.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


UPDATE = "UPDATE orders SET note = 'late' WHERE id = 1"
STATES: dict[str, Callable[[RawClient], object]] = {
    "between login and the first query": lambda _: None,
    "in a transaction": lambda client: client.send(raw.query("BEGIN") + raw.query(UPDATE)),
    "in COPY": lambda client: client.send(raw.query("BEGIN") + raw.query(UPDATE) + raw.query("COPY orders FROM STDIN")),
    "behind COPY, not yet begun": lambda client: client.send(raw.query("COPY orders FROM STDIN") + COPY_DONE + raw.query(LONG)),
    "a portal suspended": lambda client: client.send(
        raw.query("BEGIN") + raw.run(UPDATE) + raw.parse("SELECT id FROM orders") + raw.bind("", "p") + raw.execute("p", 1) + SYNC
    ),
    "in a pipeline without a Sync": lambda client: client.send(raw.run(UPDATE) + FLUSH),
    "in a long pipeline": lambda client: client.send(
        raw.query("BEGIN") + raw.query(UPDATE) + raw.query(LONG) * 50 + raw.query("COMMIT")
    ),
    "while a long text is parsed": lambda client: client.send(raw.query("BEGIN") + raw.query(f"SELECT {'1,' * 20_000} 1") * 20),
    "half a message sent": lambda client: client.send(raw.query("BEGIN") + raw.query(UPDATE) + raw.query("COMMIT")[:-3]),
    "not reading": lambda client: client.send(
        raw.query("BEGIN; " + UPDATE) + raw.query("SELECT repeat('x', 9000) FROM orders a, orders b") * 9
    ),
    "gone with statements under way": lambda client: (
        client.send(raw.query("BEGIN") + raw.query(UPDATE) + raw.query(LONG) * 9),
        client.vanish(),
    ),
}


@pytest.mark.slow
def test_revoked_in_any_state_its_backend_is_gone_and_nothing_is_committed(open_warden: Warden, database: object) -> None:
    clients = []
    for state in STATES.values():
        client = _raw(open_warden)
        state(client)
        clients.append(client)
    time.sleep(0.3)
    assert _backends(database) >= len(STATES) - 1
    _revoke(open_warden)
    until = time.monotonic() + 2.0
    while (left := _backends(database)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == 0
    assert _notes(database, "late") == 0
    for client in clients:
        client.socket.close()
    time.sleep(0.2)
    killed = [event for event in open_warden.session_events(SessionKilled) if isinstance(event, SessionKilled)]
    assert len(killed) == len(STATES)
    assert all(event.backend_gone_us for event in killed)
    assert max(event.backend_gone_us - event.requested_us for event in killed) < 1_500_000


@pytest.mark.slow
def test_refusals_before_any_proof_are_slowed_down(open_warden: Warden) -> None:
    """Each is recorded: whoever may not even log in must not fill the disk with them."""
    until = time.monotonic() + 2.0
    for _ in range(25):
        sock = socket.create_connection(("127.0.0.1", open_warden.port), timeout=5)
        sock.sendall(encode_startup(0x00030000, {"user": "x", "database": "shop", "search_path": "evil"}))
        while sock.recv(4096):
            pass
        sock.close()
    assert time.monotonic() > until, "twenty a minute are answered at once"
    until = time.monotonic() + 5  # the last refusal is told before its record is on disk
    while len(found := open_warden.session_events(SessionDenied)) < 25 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(found) == 25


@pytest.mark.slow
def test_a_fleet_of_a_hundred_and_fifty_comes_in_at_once(open_warden: Warden) -> None:
    errors: list[BaseException] = []
    opened: list[RawClient] = []

    def knock() -> None:
        try:
            opened.append(_raw(open_warden))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=knock) for _ in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in opened:
        client.close()
    assert not errors, (len(errors), errors[0])


@pytest.mark.slow
def test_neither_a_slow_reader_nor_a_greedy_writer_fills_the_memory(open_warden: Warden) -> None:
    client = _raw(open_warden)
    client.send(raw.query("SELECT 1"))
    client.until(b"Z")
    before = _resident_bytes(open_warden)
    client.send(raw.query("SELECT repeat('x', 1000000) FROM orders"))
    greedy = _raw(open_warden)
    greedy.socket.settimeout(1.0)
    with pytest.raises(TimeoutError):
        while True:
            greedy.send(raw.query("SELECT repeat('y', 1000) FROM orders") * 1_000)
    time.sleep(0.5)
    grown = _resident_bytes(open_warden) - before
    assert grown < 60_000_000, grown
    with open_warden.connect("bad") as other:
        assert other.execute("SELECT 1").fetchone() == (1,)
    client.socket.close()
    greedy.socket.close()
