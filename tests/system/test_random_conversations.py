"""Messages in any order, in any pieces, from a client that reads or does not: whatever Postgres makes of them, the record says it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from gateway.wire import messages
from ingest.events import Rule
from tests.gateway import conftest as gateway_fixtures
from tests.system import raw_client as raw
from tests.system.checker import violations
from tests.system.raw_client import COPY_DONE, FLUSH, SYNC, RawClient

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.gateway.conftest import Warden

make_warden = gateway_fixtures.make_warden

TEXTS = (
    "SELECT 1",
    "SELECT 1/0",
    "SELECT 2; SELECT 3",
    "SELECT 2; SELECT 1/0; SELECT 3",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "SELECT id FROM orders LIMIT 5",
    "UPDATE orders SET note = 'x' WHERE id = 1",
    "SELECT nothing FROM orders",
    "SELECT 'leakleak' FROM secrets",
    "SELEKT 'leakleak'",
    "PREPARE a AS SELECT 'by sql'",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "COPY orders FROM STDIN",
    "COPY (SELECT 1) TO STDOUT",
    "FETCH 1 FROM p",
    "DECLARE p CURSOR FOR SELECT id FROM orders",
)


def _message(chance: random.Random) -> bytes:
    name, portal = chance.choice(["", "a", "b"]), chance.choice(["", "p"])
    return chance.choice(
        [
            lambda: raw.query(chance.choice(TEXTS)),
            lambda: raw.query(chance.choice(TEXTS)),
            lambda: raw.parse(chance.choice(TEXTS), name),
            lambda: raw.bind(name, portal),
            lambda: raw.bind(name, portal) + raw.execute(portal, chance.choice([0, 1])),
            lambda: raw.execute(portal, chance.choice([0, 1, 2])),
            lambda: raw.parse(chance.choice(TEXTS), name) + raw.bind(name, portal) + raw.execute(portal) + SYNC,
            lambda: raw.close(chance.choice("SP"), chance.choice([name, portal])),
            lambda: messages.message(b"D", chance.choice([b"S", b"P"]) + name.encode() + b"\0"),
            lambda: SYNC,
            lambda: SYNC,
            lambda: FLUSH,
            lambda: raw.copy_data(chance.choice(["bad\n", "x"])),
            lambda: COPY_DONE,
            lambda: raw.copy_fail("no"),
            lambda: messages.message(b"F", b"\0\0\0\0\0\0\0\0\0\0"),
        ]
    )()


def _converse(warden: Warden, chance: random.Random) -> None:
    client = RawClient(warden.port, "fuzzer", warden.keys["fuzzer"])
    client.socket.settimeout(0.02)
    try:
        for _ in range(chance.randrange(2, 12)):
            data = b"".join(_message(chance) for _ in range(chance.randrange(1, 6)))
            cut = chance.randrange(len(data))
            for piece in (data[:cut], data[cut:]) if chance.random() < 0.3 else (data,):
                client.send(piece)
                if chance.random() < 0.5:
                    try:
                        client.socket.recv(65536)
                    except TimeoutError:
                        pass
        client.send(COPY_DONE + SYNC)
        time.sleep(0.05)
        client.vanish() if chance.random() < 0.3 else client.close()
    except OSError:
        client.socket.close()


@pytest.mark.slow
def test_random_conversations_are_recorded_as_the_server_ran_them(
    make_warden: Callable[..., Warden],
    postgres: object,
    database: Database,
) -> None:
    warden = make_warden(tls="optional")
    warden.agent("fuzzer", Rule("public", ("orders",), ("select", "insert", "update", "delete", "copy")))
    # The same conversations each time; PGWARDEN_TESTS_SEED=random goes looking for others.
    wanted = os.environ.get("PGWARDEN_TESTS_SEED", "1")
    seed = random.randrange(2**32) if wanted == "random" else int(wanted)
    chance = random.Random(seed)
    until = time.monotonic() + 12
    conversations = 0
    while time.monotonic() < until and conversations < 50:
        _converse(warden, chance)
        conversations += 1
    until = time.monotonic() + 10
    while warden.status()["sessions"] and time.monotonic() < until:
        time.sleep(0.1)
    assert not warden.status()["sessions"]
    warden.stop()
    events = warden.events("statements")
    log = [entry for entry in postgres.log_entries() if entry.get("dbname") == database.name]  # type: ignore[attr-defined]
    assert conversations > 10
    assert violations(events, log, database.name, ["leakleak"], texts_repeat=True)[:5] == [], f"seed {seed}"
    assert "track lost" not in str(warden.events("sessions")), f"seed {seed}"
