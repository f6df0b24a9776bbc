"""The records of source/records.h, as `struct` formats. Little-endian: pgwarden runs where the kernel is."""

from __future__ import annotations

import struct
from typing import Final

# enum kind
SESSION: Final = 1
START: Final = 2
CHUNK: Final = 3
END: Final = 4
EXIT: Final = 5
CONNECTED: Final = 6

# enum what
STATEMENT: Final = 1
FAILED: Final = 2
NESTED: Final = 3
FUNCTION_CALL: Final = 4
REPLICATION: Final = 5
RESUMED: Final = 6

# enum outcome
OK: Final = 1
ERROR: Final = 2
SUSPENDED: Final = 3
GONE: Final = 4

# enum flag
MORE: Final = 1
CUT: Final = 2
UNREADABLE: Final = 4
OVER: Final = 8

HEADER: Final = struct.Struct("<QQQIHH")  # time_ns, start_ns, sequence, pid, kind, flags
TEXT: Final = struct.Struct(
    "<32xQQQiiIIHHI"
)  # statement, query_id, portal, location, length, command, text_bytes, what, chunk, skipped
ENDED: Final = struct.Struct("<32xQQQIHH")  # statement, duration_ns, rows, sqlstate, outcome, what
PEER: Final = struct.Struct("<HHH2x16s16s")  # family, local_port, remote_port, local, remote
PROCESS: Final = struct.Struct("<QQQII16s320s")  # start_ns, cgroup, exe_inode, pid, uid, comm, exe
SESSION_TAIL: Final = struct.Struct("<QqII64s64s64s")  # started_s, started_us, postmaster, own_pid, database, user, application
NAME: Final = struct.Struct("<QQ")  # start_ns, pid: the key of an announced session
PEER_AT: Final = HEADER.size
PROCESS_AT: Final = PEER_AT + PEER.size
SESSION_TAIL_AT: Final = PROCESS_AT + PROCESS.size
CONNECTED_BYTES: Final = SESSION_TAIL_AT
SESSION_BYTES: Final = SESSION_TAIL_AT + SESSION_TAIL.size
PATH_PART: Final = 40

PROBES: Final = (
    "ready",
    "portal_run",
    "end_command",
    "abort_transaction",
    "errstart",
    "errcode",
    "rethrow",
    "throw",
    "function_call",
    "replication",
    "executor",
    "utility",
)
"""Programs, in the order of enum probe."""
BINARY: Final = struct.Struct("<12Q5Q8I")  # as struct binary
COUNTERS: Final = ("made", "lost", "unattributed", "unreadable_texts", "full_sessions")

# linux/bpf.h: each record in the ring has a header of 8 bytes, and takes a multiple of 8.
RING_HEADER: Final = struct.Struct("<II")
RING_BUSY: Final = 1 << 31
RING_DISCARDED: Final = 1 << 30
RING_LENGTH: Final = RING_DISCARDED - 1
