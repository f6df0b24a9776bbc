/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What the program writes into its ring, and what it is told. `layout.py` has the same structures; a test holds them together. */
#pragma once

#include <linux/types.h>

enum kind {
	SESSION = 1,	/* a backend serves a client: once for each, at its first statement or its first "ready" */
	START = 2,	/* a statement starts, or failed before it could; its record is no longer than its text, unless that is long */
	CHUNK = 3,	/* more of its text */
	END = 4,
	EXIT = 5,	/* the backend is gone */
	CONNECTED = 6,	/* a process of this machine has connected to a watched port */
};

enum what {
	STATEMENT = 1,
	FAILED = 2,	/* never ran: `location` bytes of the message ran before it */
	NESTED = 3,	/* SQL of a function, a rule, a cursor */
	FUNCTION_CALL = 4,	/* the fast path: `command` is the function's OID, there is no text */
	REPLICATION = 5,
	RESUMED = 6,	/* a portal that was left before its end goes on */
};

enum outcome {
	OK = 1,
	ERROR = 2,
	SUSPENDED = 3,
	GONE = 4,	/* with its backend */
};

enum flag {
	MORE = 1,	/* a CHUNK follows */
	CUT = 2,	/* the text was longer than what may be sent of it */
	UNREADABLE = 4,	/* the text could not be read */
	OVER = 8,	/* of an announced session: its backend is gone */
};

struct header {
	__u64 time_ns;	/* CLOCK_BOOTTIME */
	__u64 start_ns;	/* of the process; with the pid it names one for ever */
	__u64 sequence;	/* counts the records of a session, also those that found no room */
	__u32 pid;
	__u16 kind;
	__u16 flags;
};

struct text_fields {
	struct header header;
	__u64 statement;	/* `sequence` of its START */
	__u64 query_id;	/* of a RESUMED: the rows that its portal had given before */
	__u64 portal;	/* address: tells portals of a session apart */
	__s32 location;	/* in the message, -1 = not known */
	__s32 length;	/* 0 = up to its end */
	__u32 command;	/* CmdType, or the function's OID */
	__u32 text_bytes;	/* in this record */
	__u16 what;
	__u16 chunk;
	__u32 skipped;	/* bytes of the message that the text leaves out before it */
};

#define TEXT_FIELDS sizeof(struct text_fields)
#define SMALL 512	/* of most statements, header included */
#define LARGE 4096

struct small_text {
	struct text_fields fields;
	char text[SMALL - TEXT_FIELDS];
};

struct large_text {
	struct text_fields fields;
	char text[LARGE - TEXT_FIELDS];
};

struct end {
	struct header header;
	__u64 statement;
	__u64 duration_ns;
	__u64 rows;
	__u32 sqlstate;	/* PostgreSQL's packing: six bits a character */
	__u16 outcome;
	__u16 what;
};

struct peer {
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u16 unused;
	__u8 local[16];
	__u8 remote[16];
};

#define PATH_PARTS 8
#define PATH_PART 40

struct process {
	__u64 start_ns;
	__u64 cgroup;	/* of the v2 hierarchy */
	__u64 exe_inode;
	__u32 pid;	/* 0 = not on this machine, or not known */
	__u32 uid;
	char comm[16];
	char exe[PATH_PARTS][PATH_PART];	/* last part first */
};

struct session_record {
	struct header header;
	struct peer peer;
	struct process client;	/* of a unix socket; over TCP a CONNECTED tells */
	__u64 started_s;	/* MyStartTime, since 1970 */
	__s64 started_us;	/* MyStartTimestamp, since 2000 */
	__u32 postmaster;
	__u32 own_pid;	/* in the server's own pid namespace */
	char database[64];
	char user[64];
	char application[64];
};

struct connected {
	struct header header;
	struct peer peer;
	struct process client;
};

enum probe {
	AT_READY,
	AT_PORTAL_RUN,
	AT_END_COMMAND,
	AT_ABORT,
	AT_ERRSTART,
	AT_ERRCODE,
	AT_RETHROW,
	AT_THROW,
	AT_FUNCTION_CALL,
	AT_REPLICATION,
	AT_EXECUTOR,
	AT_UTILITY,
	PROBES,
};

struct binary {	/* one probed server binary; its index is the probes' cookie */
	__u64 at[PROBES];	/* address of each site, as linked */
	__u64 my_proc_port;	/* of the variables, as linked */
	__u64 my_start_time;
	__u64 my_start_timestamp;
	__u64 debug_query_string;
	__u64 application_name;
	__u32 port_database;	/* offsets within PostgreSQL's structures */
	__u32 port_user;
	__u32 portal_stmts;
	__u32 portal_at_start;
	__u32 stmt_location;	/* stmt_len follows it */
	__u32 error_sqlstate;
	__u32 chunks;	/* of one text, LARGE each */
	__u32 nested;	/* whether NESTED is sent */
};

enum counter { MADE, LOST, UNATTRIBUTED, UNREADABLE_TEXTS, FULL_SESSIONS, COUNTERS };
