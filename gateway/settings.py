"""The gateway's limits and choices. On by default; each number has its reason beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Durability: TypeAlias = Literal["fast", "group", "strict", "replicated"]
"""`fast`: a statement's record is on disk within the recorder's linger. `group`: forwarded at once, its answer is held back until
the record is on disk. `strict`: on disk before a byte is forwarded. `replicated`: with the brokers before a byte is forwarded."""
BEFORE_FORWARDING: Final[frozenset[Durability]] = frozenset({"strict", "replicated"})


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    gateway: str = "gateway-1"  # names this gateway in events; two gateways never share a name
    listen_host: str = "127.0.0.1"
    listen_port: int = 6432
    clear_text_from_loopback: bool = False  # agent keys only; a token never travels without TLS
    durability: Durability = "group"
    statement_text: Literal["full", "fingerprint"] = "full"
    parameters: bool = False

    startup_bytes_max: int = 10_000  # PostgreSQL's MAX_STARTUP_PACKET_LENGTH
    authentication_bytes_max: int = 65_535  # PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH
    login_seconds_max: float = 10.0  # from accept to the first ReadyForQuery; PostgreSQL allows 60
    first_bytes_seconds_max: float = 5.0
    record_seconds_max: float = 5.0  # for the record of a login to become safe; shorter than a login, so that the client is told
    connections_max: int = 1_000
    logins_max: int = 256  # at once, not yet proven
    logins_per_address_max: int = 64  # at once; a fleet behind one address starts together
    logins_waiting_per_address_max: int = 128  # behind those, unread; with them fewer than `logins_max`, so that others come in
    failures_per_minute_max: int = 20  # per address, then answers are delayed; a lockout would let anyone stop an agent
    failure_delay_seconds: float = 1.0

    statement_bytes_max: int = 256 * 1024  # libpg_query needs about 100 times that in memory
    script_statements_max: int = 1_000  # of one text, each decided and recorded by itself: 24,000 hold up everybody for 0.3 s
    scripts_cached_bytes_max: int = 8 * 2**20
    script_cached_bytes_max: int = 16 * 1024  # one long statement must not evict everyone's
    session_texts_max: int = 512  # numbered texts a session; beyond it numbering begins anew
    session_texts_bytes_max: int = 1 * 2**20  # of those texts; a thousand sessions remember together
    name_bytes_max: int = 63  # NAMEDATALEN - 1: PostgreSQL compares no more of a statement's name
    prepared_max: int = 2_000  # a session
    pipeline_max: int = 20_000  # messages in flight a session; then its client waits
    control_bytes_max: int = 10_000  # Execute, Describe, Close, Sync, Flush, CopyFail: as PostgreSQL
    message_bytes_max: int = 2**30 - 2  # PostgreSQL's own limit
    parameters_recorded_bytes_max: int = 16 * 1024

    held_bytes_max: int = 1 * 2**20  # held back for a record, each direction; then the other side is not read
    held_seconds_max: float = 10.0  # for a record that does not reach the disk, or the brokers; then the session ends
    idle_seconds_max: float = 3_600.0
    unshipped_seconds_max: float = 30.0  # without word of the brokers, for a session that they have not heard of; the API waits 60
    keepalive_seconds: int = 60
    unacknowledged_ms: int = 30_000  # TCP_USER_TIMEOUT: a vanished peer ends its session

    upstream_connect_seconds_max: float = 5.0
    cancel_seconds_max: float = 10.0  # libpq cannot give up waiting for a cancel by itself
    cancels_per_minute_max: int = 120  # from one address with a wrong key
    kill_seconds_max: float = 4.0  # for the proof that a backend is gone; the command waits for 5
    prove_again_seconds: float = 1.0  # between two attempts to prove an end that could not be proven in time
    bookmark_seconds: float = 60.0  # between two notes of where the next start begins to read; a minute is read in a second or two
    drain_seconds_max: float = 0.25  # reading on after the last word, so that it is not lost in a reset
    catalog_seconds: float = 30.0  # how often the user-defined function names are read anew
    scram_iterations_max: int = 100_000  # a hostile server may ask for any number; a million take 0.4 s
