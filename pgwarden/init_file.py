"""`pgwarden init`: a commented pgwarden.toml, private, with one operator whose key is told once."""

from __future__ import annotations

import os
from pathlib import Path

from identity import agent_keys
from identity.roles import Role
from pgwarden import settings

TEMPLATE = """\
# pgwarden: who may reach which database, and what is recorded of it. Times are seconds, paths are relative to this file.
# Every setting is described in docs/configuration.md; what is commented out shows its default.
# Check this file with: pgwarden verify-config -c {name}

# The log, tables, keys and run files.
state = "{state}"

[gateway]
# What the record calls this gateway. It keeps its name for life.
#name = "gateway-1"
# Where agents connect, in place of PostgreSQL.
#listen = "127.0.0.1:6432"
# Needed for an address that other machines can reach:
#allow_remote = false
# "optional" takes agent keys (never tokens) in clear text from this machine.
#tls = "required"
# PEM files; left empty, a self-signed certificate is made in the state folder at first start.
#tls_certificate = ""
#tls_key = ""
# fast: recorded in memory, on disk within 50 ms. group: the answer is held back until the record is on disk.
# strict: the record is on disk before the statement goes on. replicated: with the brokers, where the log is in Kafka.
#durability = "group"
# "fingerprint" keeps no text of statements.
#statement_text = "full"
# Values of parameters are often personal data.
#parameters = false

[api]
#listen = "127.0.0.1:8470"

[dashboard]
#listen = "127.0.0.1:8471"

[log]
# "segments" keeps the record on this machine. "kafka", for several gateways, wants a table [kafka]: see docs/kafka.md.
#backend = "segments"

# One table for each database. Clients give the table's name (here: shop) as the name of the database.
[connections.shop]
host = "<the host name or IP address of your PostgreSQL>"
port = 5432
database = "<the name of the database>"
user = "<the role that the gateway logs in as>"
# Never the password itself: env:NAME, or file:PATH with mode 0600.
password = "env:SHOP_PASSWORD"
# How the server's certificate is checked, and the PEM certificates to trust; left empty, the system's.
sslmode = "verify-full"
#sslrootcert = ""
# Where unqualified names are looked up. Agents cannot change it.
search_path = ["public"]

# A second witness, which finds what goes round the gateway: here the server's own log. See docs/collectors.md, and pgwarden doctor.
#[collectors.shop-log]
#kind = "log"
#server = "main"
#connections = ["shop"]
#path = "/var/log/postgresql"

# What collectors see is held against the record: see docs/reconcile.md. Declare backups and the like before this is turned on.
[reconcile]
#kill_shadow = false

# What findings lead to by themselves, and how often: see docs/findings.md.
[responses]
#age_seconds_max = 600
#an_hour_max = 20
# Statements a minute at each gateway, of an agent that a finding throttles.
#throttle_per_minute = 30

# Who reads the record is recorded too; the same look again within this many seconds is counted.
[looks]
#repeat_seconds = 60.0

# Who signs the tokens of agents, one table for each. Without one, agents use keys.
#[issuers.keycloak]
#issuer = "https://idp.example/realms/agents"
#audience = "pgwarden"

# First agents and their grants. More are registered with: pgwarden agents register
# What is not granted is denied. A revocation is never undone by this file.
#[agents.reporter]
#description = "Writes the daily report"
#owner = "data team"
#issuer = "keycloak"
#client = "reporter"
#
#[[agents.reporter.grants]]
#connection = "shop"
## How long it lives; 0 is until it is revoked.
#seconds = 0
#reason = "the daily report reads orders"
#rules = [{{ schema = "public", tables = ["orders"], operations = ["select"] }}]

# Who may do what: a viewer reads, a responder also revokes, an administrator also approves and registers. The SHA-256 is of a key
# that was shown when this file was written; another is made by running pgwarden init with another path.
[operators.{operator}]
key_sha256 = "{key_sha256}"
role = "{role}"
"""


def write(path: Path, operator: str, role: Role) -> str:
    """Write the file with mode 0600, and return the operator's key, which is kept nowhere.

    Raises:
        FileExistsError: Something is there already; it was not touched.
        OSError: It cannot be written.
    """
    key, key_sha256 = agent_keys.create_operator_key()
    # The samples' agents hold keys and grants: their record must not become the one of somebody's own database.
    state = ".pgwarden-own" if (path.parent / ".pgwarden" / settings.SAMPLES_FILE).exists() else ".pgwarden"
    text = TEMPLATE.format(name=path.name, state=state, operator=_bare(operator), key_sha256=key_sha256, role=role)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # a umask may have taken more away
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return key


def _bare(operator: str) -> str:
    """A key of TOML; names of operators may hold `.` and `@`, which want quotes."""
    return operator if operator.replace("-", "").replace("_", "").isalnum() else f'"{operator}"'
