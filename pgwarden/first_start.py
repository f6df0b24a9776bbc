"""An empty folder in; out come a configuration, keys and addresses with which `pgwarden up` runs everything on this machine.

What is there already is kept: a second start finds the same agents, keys and records.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from identity import agent_keys
from pgwarden.postgres import Postgres
from pgwarden.settings import SAMPLES_FILE
from pgwarden.small_files import write_private
from pgwarden.tls import CertificateFiles, self_signed

CONNECTION: Final = "shop"
ROLE: Final = "pgwarden"
KEY_AGENTS: Final = ("ingestion", "migration")  # prove themselves by an agent key
TOKEN_AGENT: Final = "reporting"  # noqa: S105 - by an access token
POSTGRES_LOG: Final = {
    "log_statement": "all",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    # A day of it is kept: a file an hour, each written over when its hour comes again.
    "log_filename": "postgresql-%H.log",
    "log_rotation_age": "60",
    "log_truncate_on_rotation": "on",
}
SAMPLES: Final = (*KEY_AGENTS, TOKEN_AGENT)
_SQL: Final = Path(__file__).parent / "samples"


class StateUnusable(Exception):
    """The state folder holds something that this start does not fit. Says what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    gateway: int = 6432
    api: int = 8470
    dashboard: int = 8471
    issuer: int = 8472

    @classmethod
    def from_base(cls, base: int) -> Ports:
        return cls(base, base + 1, base + 2, base + 3)


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder and what stands in it."""

    state: Path
    ports: Ports
    tls: CertificateFiles
    new_operator_key: str  # shown once; "" when it was made earlier

    @property
    def config(self) -> Path:
        return self.state / "pgwarden.toml"

    @property
    def operator_key_file(self) -> Path:
        return self.state / "operator.key"

    @property
    def services(self) -> Path:
        """libpq's connection services: `PGSERVICEFILE=... psql service=ingestion`."""
        return self.state / "pg_service.conf"

    @property
    def role_password_file(self) -> Path:
        return self.state / "shop.password"

    @property
    def issuer_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.issuer}"

    @property
    def client_secret_file(self) -> Path:
        return self.state / "agents" / f"{TOKEN_AGENT}.secret"

    def key_file(self, agent: str) -> Path:
        return self.state / "agents" / f"{agent}.key"


def settle(state: Path, port_base: int | None) -> Home:
    """Make the folder and every secret that is not there yet.

    Raises:
        StateUnusable: The folder was made for other ports, or holds somebody's own record. It was not touched.
    """
    state = state.absolute()
    if (state / "log").exists() and not (state / SAMPLES_FILE).exists():
        raise StateUnusable(
            f"{state} holds a record of your own, where the samples must not write; start with -c and its configuration,"
            " or name another folder with --state"
        )
    state.mkdir(parents=True, exist_ok=True)
    # As root, the embedded database runs under an account of its own, which goes through here to its data and reads nothing.
    state.chmod(0o711 if os.geteuid() == 0 else 0o700)
    ports = _ports(state, port_base)
    new_key = ""
    if not (state / "operator.key").exists():
        new_key, _ = agent_keys.create_operator_key()
        write_private(state / "operator.key", new_key + "\n")
    home = Home(state, ports, self_signed(state / "tls"), new_key)
    (state / "agents").mkdir(mode=0o700, exist_ok=True)
    for agent in KEY_AGENTS:
        if not home.key_file(agent).exists():
            write_private(home.key_file(agent), agent_keys.create()[0] + "\n")
    for file in (home.client_secret_file, home.role_password_file):
        if not file.exists():
            write_private(file, secrets.token_urlsafe(32) + "\n")
    _write_services(home)
    return home


def _ports(state: Path, port_base: int | None) -> Ports:
    """The issuer's address is part of what the log says of the reporting agent, so a folder keeps its ports."""
    note = state / SAMPLES_FILE
    wanted = Ports.from_base(port_base) if port_base is not None else None
    try:
        kept = Ports(**json.loads(note.read_text(encoding="ascii")))
    except FileNotFoundError:
        ports = wanted or Ports()
        write_private(note, json.dumps({name: getattr(ports, name) for name in Ports.__slots__}) + "\n")
        return ports
    except (ValueError, TypeError) as error:
        raise StateUnusable(f"{note} cannot be read ({error}); name another folder with --state") from error
    if wanted is not None and wanted != kept:
        raise StateUnusable(
            f"{state} was made with the gateway on port {kept.gateway}, and its agents are registered with those addresses;"
            f" start without --port-base, or name another folder with --state"
        )
    return kept


def _write_services(home: Home) -> None:
    """For psql and every other client of libpq. Only the name of a password file stands in it."""
    passwords = home.state / "pgpass"
    lines = [f"127.0.0.1:{home.ports.gateway}:{CONNECTION}:{agent}:{_line(home.key_file(agent))}" for agent in KEY_AGENTS]
    write_private(passwords, "\n".join(lines) + "\n")
    services = [
        f"[{agent}]\nhost=127.0.0.1\nport={home.ports.gateway}\ndbname={CONNECTION}\nuser={agent}\npassfile={passwords}\n"
        f"sslmode=verify-full\nsslrootcert={home.tls.certificate}\n"
        for agent in KEY_AGENTS
    ]
    write_private(home.services, "\n".join(services))


def write_configuration(home: Home, postgres_port: int, postgres_log: Path) -> None:
    """The file is written at each start: the database takes another free port each time.

    `postgres_log`: the folder of the server's log.
    """
    digest = agent_keys.operator_key_sha256(_line(home.operator_key_file))
    write_private(
        home.config,
        f"""\
# Written by "pgwarden up" at each start; changes are lost. To front a database of your own, run: pgwarden init
state = "."

[gateway]
listen = "127.0.0.1:{home.ports.gateway}"

[api]
listen = "127.0.0.1:{home.ports.api}"

[dashboard]
listen = "127.0.0.1:{home.ports.dashboard}"

[connections.{CONNECTION}]
host = "127.0.0.1"
port = {postgres_port}
database = "{CONNECTION}"
user = "{ROLE}"
password = "file:shop.password"
sslmode = "disable" # never leaves this machine

[collectors.server-log]
kind = "log"
server = "sample"
connections = ["{CONNECTION}"]
path = "{postgres_log}"

[issuers.development]
issuer = "{home.issuer_url}"
audience = "pgwarden"
insecure_http = true

[agents.ingestion]
description = "Reads orders and customers into a search index"
owner = "search team"
key = "file:agents/ingestion.key"

[[agents.ingestion.grants]]
connection = "{CONNECTION}"
reason = "the index holds orders and customers"
rules = [{{ schema = "public", tables = ["orders", "customers"], operations = ["select"] }}]

[agents.reporting]
description = "Revenue by city, best sellers, and a walk through the year's orders"
owner = "finance team"
issuer = "development"
client = "reporting"

[[agents.reporting.grants]]
connection = "{CONNECTION}"
reason = "the daily report"
rules = [{{ schema = "public", tables = ["orders", "customers", "products"], operations = ["select"] }}]

[agents.migration]
description = "Makes and fills the tables of the schema app"
owner = "application team"
key = "file:agents/migration.key"

[[agents.migration.grants]]
connection = "{CONNECTION}"
reason = "the application's own schema"
rules = [
    {{ schema = "app", tables = ["*"], operations = ["select", "insert", "update", "delete", "ddl", "copy"] }},
    {{ schema = "public", tables = ["orders"], operations = ["select"] }},
]

[operators.local]
key_sha256 = "{digest}"
""",
    )


def forget_checkpoints(home: Home) -> None:
    """Let the collector begin anew: the server ran only while we did, and what we do in it before then is nobody's shadow."""
    for checkpoint in (home.state / "collectors").glob("*.checkpoint"):
        checkpoint.unlink()


def fill(server: Postgres, home: Home) -> None:
    """Make the sample database and the gateway's role, when they are not there yet."""
    password = _line(home.role_password_file)
    role, draft = sql.Identifier(ROLE), sql.Identifier(f"{CONNECTION}_draft")
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        # What travels, and what a log could show, is the verifier.
        verifier = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256").decode()
        known = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone()
        change = "ALTER ROLE {} LOGIN PASSWORD {}" if known is not None else "CREATE ROLE {} LOGIN PASSWORD {}"
        connection.execute(sql.SQL(change).format(role, sql.Literal(verifier)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (CONNECTION,)).fetchone() is not None:
            return
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(draft))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(draft))
        server.execute(f"{CONNECTION}_draft", *((_SQL / name).read_text(encoding="utf-8") for name in ("schema.sql", "seed.sql")))
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(draft, sql.Identifier(CONNECTION)))


def _line(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
