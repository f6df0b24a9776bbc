"""What tests of several folders share: a real PostgreSQL, a fresh database in it, a free port, and waiting with an end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import hypothesis
import psycopg
import pytest
from psycopg import sql

from ingest.log import topics
from ingest.settings import KafkaSettings
from pgwarden.postgres import Postgres, PostgresSettings
from tests import broker as brokers
from tests.broker import Broker, Cluster, jars, make_certificates

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)

T = TypeVar("T")

TABLES = """
CREATE TABLE public.customers (id bigint PRIMARY KEY, name text NOT NULL, city text NOT NULL);
CREATE TABLE public.orders (
    id bigint PRIMARY KEY, customer bigint NOT NULL REFERENCES public.customers, amount numeric(12,2) NOT NULL, note text
);
CREATE TABLE public.secrets (id bigint PRIMARY KEY, secret text NOT NULL);
INSERT INTO public.customers SELECT n, 'customer ' || n, (ARRAY['Oslo', 'Lima', 'Kyoto'])[1 + n % 3]
    FROM generate_series(1, 10) AS n;
INSERT INTO public.orders SELECT n, 1 + n % 10, n * 1.5, 'note ' || n FROM generate_series(1, 100) AS n;
INSERT INTO public.secrets SELECT n, 'secret ' || n FROM generate_series(1, 3) AS n;
"""


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test: three tables in `public`, a schema `app` that belongs to `role`. `role` may do all it needs."""

    host: str
    port: int
    name: str
    role: str  # LOGIN, NOSUPERUSER; what the gateway logs in as
    password: str
    superuser: str
    superuser_password: str

    @property
    def dsn(self) -> str:
        """As the role, straight to PostgreSQL."""
        return psycopg.conninfo.make_conninfo(
            host=self.host, port=self.port, dbname=self.name, user=self.role, password=self.password, connect_timeout=5
        )

    @property
    def superuser_dsn(self) -> str:
        return psycopg.conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            dbname=self.name,
            user=self.superuser,
            password=self.superuser_password,
            connect_timeout=5,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL 18 with `log_statement = all` and its log as JSON lines (`postgres.log_entries()`)."""
    # Not tmp_path: pytest's directories are closed to the account that the server runs as when the tests run as root.
    home = Path(tempfile.mkdtemp(prefix="pgwarden-test-"))
    home.chmod(0o711)
    settings = PostgresSettings(
        durable=False,
        jsonlog=True,
        connections_max=200,
        parameters={"log_statement": "all", "log_connections": "all", "log_disconnections": "on", "log_duration": "off"},
    )
    try:
        with Postgres(home / "postgres", settings) as server:
            yield server
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def fresh_database(host: str, port: int, superuser: str, superuser_password: str) -> Iterator[Database]:
    """A fresh database and its role on this server; both are gone afterwards, with every session still open in them."""
    tag = secrets.token_hex(4)
    made = Database(
        host=host,
        port=port,
        name=f"shop_{tag}",
        role=f"app_{tag}",
        password=secrets.token_urlsafe(18),
        superuser=superuser,
        superuser_password=superuser_password,
    )
    name, role = sql.Identifier(made.name), sql.Identifier(made.role)
    server = psycopg.conninfo.make_conninfo(made.superuser_dsn, dbname="postgres")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}").format(role, sql.Literal(made.password))
        )
    with psycopg.connect(made.superuser_dsn, autocommit=True) as connection:
        connection.execute(TABLES)
        for grant in (
            "CREATE SCHEMA app AUTHORIZATION {}",
            "GRANT USAGE ON SCHEMA public TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {}",
            "GRANT TEMPORARY ON DATABASE {} TO {}",
        ):
            parts = (name, role) if grant.count("{}") == 2 else (role,)
            connection.execute(sql.SQL(grant).format(*parts))
    try:
        yield made
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    with fresh_database(postgres.host, postgres.port, postgres.superuser, postgres.password) as made:
        yield made


@pytest.fixture
def free_port() -> int:
    return brokers.port()


def _wait_for(predicate: Callable[[], T], seconds: float = 30.0, message: str = "") -> T:
    until = time.monotonic() + seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > until:
            source = message or inspect.getsource(predicate).strip()
            pytest.fail(f"not within {seconds:g} s: {source}")
        time.sleep(0.01)


async def _await_for(predicate: Callable[[], T | Awaitable[T]], seconds: float = 30.0, message: str = "") -> T:
    until = time.monotonic() + seconds
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > until:
            source = message or inspect.getsource(predicate).strip()
            pytest.fail(f"not within {seconds:g} s: {source}")
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A process of pgwarden closes its files to others; in a test that runs its command here, that must end with the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def small_disk(tmp_path: Path, needs: Callable[[str, bool], None]) -> Iterator[Path]:
    """A disk of 24 MiB, for `fill`."""
    needs("root", os.geteuid() == 0)
    with mounted(tmp_path / "disk", "size=24m") as place:
        yield place


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk of its own in memory, with tmpfs(5)'s options, at a folder that is made for it."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte of it; who removes the file that is returned has them back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 65536)
    return ballast


@pytest.fixture
def wait_for() -> Callable[..., object]:
    """`wait_for(predicate, seconds)` returns the predicate's first true answer, or fails the test; it blocks the thread."""
    return _wait_for


@pytest.fixture
def await_for() -> Callable[..., Awaitable[object]]:
    """The same for a running event loop: `await await_for(predicate, seconds)`; the predicate may be async."""
    return _await_for


def _kafka_lib(needs: Callable[[str, bool], None]) -> Path:
    """The jars of Kafka; a test that needs a broker is skipped on a machine without them, or without Java."""
    found = jars()
    needs("kafka", found is not None)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def broker(needs: Callable[[str, bool], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Apache Kafka with every listener that tests/broker.py has, for all tests: none may stop, kill or pause it."""
    folder = tmp_path_factory.mktemp("kafka")
    with Broker(folder / "broker", _kafka_lib(needs), certificates=make_certificates(folder / "certificates")) as running:
        yield running


@pytest.fixture
def own_broker(needs: Callable[[str, bool], None], tmp_path: Path) -> Iterator[Broker]:
    """A broker of one test, which may kill, pause and restart it. Clear text only; 3 s to start."""
    with Broker(tmp_path / "broker", _kafka_lib(needs)) as running:
        yield running


@pytest.fixture
def cluster(needs: Callable[[str, bool], None], tmp_path: Path) -> Iterator[Cluster]:
    """Three brokers of one test; any one may be gone."""
    with Cluster(tmp_path / "cluster", _kafka_lib(needs)) as running:
        yield running


@pytest.fixture
def kafka_settings(broker: Broker) -> Iterator[KafkaSettings]:
    """The log's topics on the broker of all tests, under a prefix of this test's own; they are gone after it."""
    settings = brokers.settings(broker, f"test-{secrets.token_hex(4)}.")
    topics.apply(settings)
    try:
        yield settings
    finally:
        brokers.remove_topics(settings)


@pytest.fixture(scope="session")
def needs() -> Callable[[str, bool], None]:
    """`needs("chromium", found)` skips a test on a machine that lacks what it needs, and fails it where that must be there.

    What must be there stands in PGWARDEN_TESTS_REQUIRE, by commas; CI sets it to all that its machine has.
    """

    def check(thing: str, found: bool) -> None:
        if not found and thing in os.environ.get("PGWARDEN_TESTS_REQUIRE", "").split(","):
            pytest.fail(f"{thing} must be here, and is not")
        if not found:
            pytest.skip(f"this machine has no {thing}")

    return check
