/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What PostgreSQL executes, seen from inside its backends: after TLS, after the parser, whatever the protocol; and which process
 * of this machine opened the connection.
 *
 * A statement starts in PortalRun(isTopLevel = true), which every way of running one goes through, and ends in EndCommand, in
 * AbortCurrentTransaction, or, left unfinished, at the next PortalRun or ReadyForQuery. Where a statement failed before it could
 * run, errcode() tells its message's text and AbortCurrentTransaction that the error was not caught.
 */
#include "kernel.h"
#include "records.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define PIDTYPE_TGID 1
#define FATAL 22	/* elog.h, the same in 14 to 18 */
#define CHUNKS_MAX 16
#define SOURCE_BEFORE_STMTS 32	/* portal.h, the same in 14 to 18: sourceText, commandTag, qc, stmts */

/* The state of one backend. Only its own process touches it, so it needs no lock. */
struct session {
	__u64 start_ns;
	__u64 sequence;
	__u64 begun_ns;	/* of the open statement */
	__u64 statement;	/* its sequence */
	__u64 source;	/* address of the message whose statements run, 0 = none since it was ready */
	__u64 failing;	/* of the message that an error is about */
	__s32 location;	/* of the last statement of `source` */
	__s32 consumed;	/* where it ends */
	__u32 open;	/* enum what, 0 = none */
	__u32 runs;	/* of the executor in the open statement */
	__u32 sqlstate;
	__u32 level;
	__u32 client;	/* whether there is one: background and parallel workers have none */
	__u32 announced;
	struct small_text text;	/* being made here, so that its record takes no more of the ring than it has bytes */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct binary);
} binaries SEC(".maps");

struct {	/* whose children are looked at: probes hit every server that runs the same file */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} postmasters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u32);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct session);
} sessions SEC(".maps");

struct name {
	__u64 start_ns;
	__u64 pid;
};

struct {	/* what was said of each session, for whoever begins to read later; the reader removes those that are gone */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct name);
	__type(value, struct session_record);
} announced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct process);
} connecting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} ring SEC(".maps");

struct {	/* headers of what `ring` had no room for: so a flood cannot hide whose records it pushed out */
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} spill SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(map_flags, BPF_F_MMAPABLE);
} counters SEC(".maps");

struct {	/* when these maps were made, up to when what they brought is recorded for good, the wall clock less CLOCK_BOOTTIME in us */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
	__uint(map_flags, BPF_F_MMAPABLE);
} made SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);
	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Nobody is woken: an interrupt for each record would cost more than all the rest; the reader looks every few milliseconds. */
static __always_inline void *room(__u64 bytes)
{
	return bpf_ringbuf_reserve(&ring, bytes, 0);
}

static __always_inline void give(void *record)
{
	count(MADE);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void lost(struct header *header)
{
	count(MADE);
	count(LOST);
	if (bpf_ringbuf_output(&spill, header, sizeof *header, BPF_RB_NO_WAKEUP))
		count(UNATTRIBUTED);
}

static __always_inline void head(struct header *h, struct session *s, __u64 now, __u16 kind)
{
	h->time_ns = now;
	h->start_ns = s->start_ns;
	h->sequence = s->sequence++;
	h->pid = bpf_get_current_pid_tgid() >> 32;
	h->kind = kind;
	h->flags = 0;
}

/* -- processes and sockets ------------------------------------------------------------------------------------------------------- */

static __always_inline void describe(struct process *p, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *at, *parent;
	p->pid = BPF_CORE_READ(task, tgid);
	p->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	p->uid = BPF_CORE_READ(task, cred, uid.val);
	p->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	BPF_CORE_READ_INTO(&p->comm, task, comm);
	p->exe_inode = BPF_CORE_READ(exe, f_inode, i_ino);
	at = BPF_CORE_READ(exe, f_path.dentry);
#pragma unroll
	for (int i = 0; i < PATH_PARTS; i++) {
		parent = BPF_CORE_READ(at, d_parent);
		if (!at || at == parent)
			break;	/* the root of the mount */
		bpf_probe_read_kernel_str(p->exe[i], PATH_PART, BPF_CORE_READ(at, d_name.name));
		at = parent;
	}
}

static __always_inline void ends_of(struct peer *p, struct sock *sk)
{
	p->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (p->family == AF_INET) {
		*(__u32 *)p->local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(__u32 *)p->remote = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else if (p->family == AF_INET6) {
		BPF_CORE_READ_INTO(&p->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&p->remote, sk, __sk_common.skc_v6_daddr);
	} else {
		return;
	}
	p->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	p->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
}

/* SYN_SENT is set in the caller's own context, by connect(2), io_uring and TCP fast open alike; at ESTABLISHED the port exists. */
SEC("tp_btf/inet_sock_set_state")
int tcp_state(__u64 *context)
{
	struct sock *sk = (void *)context[0];
	int before = context[1], now = context[2];
	__u64 key = (__u64)sk;
	if (now == TCP_SYN_SENT) {
		__u16 port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
		struct process p = {};
		if (!bpf_map_lookup_elem(&ports, &port))
			return 0;
		describe(&p, (void *)bpf_get_current_task());
		bpf_map_update_elem(&connecting, &key, &p, BPF_ANY);
		return 0;
	}
	if (before != TCP_SYN_SENT)
		return 0;
	struct process *p = bpf_map_lookup_elem(&connecting, &key);
	if (!p)
		return 0;
	if (now == TCP_ESTABLISHED) {
		struct header h = { .time_ns = bpf_ktime_get_boot_ns(), .start_ns = p->start_ns, .pid = p->pid, .kind = CONNECTED };
		struct connected *r = room(sizeof *r);
		if (r) {
			__builtin_memset(r, 0, sizeof *r);
			r->header = h;
			ends_of(&r->peer, sk);
			r->client = *p;
			give(r);
		} else {
			lost(&h);
		}
	}
	bpf_map_delete_elem(&connecting, &key);
	return 0;
}

/* -- sessions -------------------------------------------------------------------------------------------------------------------- */

static __always_inline struct binary *binary(struct pt_regs *ctx)
{
	__u32 index = bpf_get_attach_cookie(ctx);
	return bpf_map_lookup_elem(&binaries, &index);
}

/* A variable's value: its distance from the probed instruction is known, wherever the binary was loaded. */
static __always_inline __u64 variable(struct pt_regs *ctx, struct binary *b, __u32 probe, __u64 address)
{
	__u64 value = 0;
	bpf_probe_read_user(&value, sizeof value, (void *)(REGISTER_IP(ctx) - b->at[probe] + address));
	return value;
}

static __always_inline struct session *known(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct session *s = bpf_map_lookup_elem(&sessions, &pid);
	return s && s->client ? s : 0;
}

static __always_inline void fill(struct session_record *r, struct pt_regs *ctx, struct binary *b, __u32 probe)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 port = variable(ctx, b, probe, b->my_proc_port);
	int fd = -1;
	__u64 text = 0;
	struct pid *own = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(own, level);
	struct upid upid = {};
	bpf_probe_read_kernel(&upid, sizeof upid,
			      (void *)own + bpf_core_field_offset(struct pid, numbers) + (level & 31) * bpf_core_type_size(struct upid));
	r->own_pid = upid.nr;
	r->postmaster = BPF_CORE_READ(task, real_parent, tgid);
	r->started_s = variable(ctx, b, probe, b->my_start_time);
	r->started_us = variable(ctx, b, probe, b->my_start_timestamp);
	bpf_probe_read_user(&fd, sizeof fd, (void *)port);	/* Port.sock is its first member */
	if (fd >= 0) {
		struct file **files = BPF_CORE_READ(task, files, fdt, fd), *file = 0;
		bpf_probe_read_kernel(&file, sizeof file, files + fd);
		struct socket *socket = BPF_CORE_READ(file, private_data);
		struct sock *sk = BPF_CORE_READ(socket, sk);
		ends_of(&r->peer, sk);
		if (r->peer.family == AF_UNIX) {
			struct pid *peer = BPF_CORE_READ(sk, sk_peer_pid);
			struct hlist_node *first = BPF_CORE_READ(peer, tasks[PIDTYPE_TGID].first);
			r->client.pid = BPF_CORE_READ(peer, numbers[0].nr);
			if (first)
				describe(&r->client, (void *)first - bpf_core_field_offset(struct task_struct, pid_links[PIDTYPE_TGID]));
		}
	}
	bpf_probe_read_user(&text, sizeof text, (void *)(port + b->port_database));
	bpf_probe_read_user_str(r->database, sizeof r->database, (void *)text);
	bpf_probe_read_user(&text, sizeof text, (void *)(port + b->port_user));
	bpf_probe_read_user_str(r->user, sizeof r->user, (void *)text);
	text = variable(ctx, b, probe, b->application_name);
	bpf_probe_read_user_str(r->application, sizeof r->application, (void *)text);
}

static const struct session_record blank;

/* Filled in its place in `announced`: so a session is known also where the ring has no room for it. */
static __noinline int announce(struct pt_regs *ctx, struct binary *b, __u32 probe, struct session *s)
{
	struct header h;
	head(&h, s, bpf_ktime_get_boot_ns(), SESSION);
	s->announced = 1;
	struct name key = { .start_ns = s->start_ns, .pid = h.pid };
	if (bpf_map_update_elem(&announced, &key, &blank, BPF_ANY)) {
		count(FULL_SESSIONS);
		lost(&h);
		return 0;
	}
	struct session_record *r = bpf_map_lookup_elem(&announced, &key);
	if (!r)
		return 0;
	fill(r, ctx, b, probe);
	r->header = h;
	if (bpf_ringbuf_output(&ring, r, sizeof *r, BPF_RB_NO_WAKEUP))
		lost(&h);
	else
		count(MADE);
	return 0;
}

static const struct session unknown;

/* The session of this backend, made and announced at the first probe after its login. */
static __always_inline struct session *session(struct pt_regs *ctx, struct binary *b, __u32 probe)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct session *s = bpf_map_lookup_elem(&sessions, &pid);
	if (!s) {
		struct task_struct *task = (void *)bpf_get_current_task();
		__u32 parent = BPF_CORE_READ(task, real_parent, tgid);
		if (!bpf_map_lookup_elem(&postmasters, &parent))
			return 0;
		if (bpf_map_update_elem(&sessions, &pid, &unknown, BPF_ANY)) {
			count(FULL_SESSIONS);
			return 0;
		}
		s = bpf_map_lookup_elem(&sessions, &pid);
		if (!s)
			return 0;
		s->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
		s->client = variable(ctx, b, probe, b->my_proc_port) != 0;
	}
	if (!s->client)
		return 0;
	if (!s->announced)
		announce(ctx, b, probe, s);
	return s;
}

/* -- statements ------------------------------------------------------------------------------------------------------------------ */

struct start {
	__u64 query_id;
	__u64 portal;
	__s32 location;
	__s32 length;
	__u32 command;
	__u32 skipped;
	__u64 at;	/* address of the text, 0 = there is none */
	__u64 bytes;	/* of it, 0 = up to its end */
	__u32 chunks;	/* that may be sent */
	__u16 what;
};

static __always_inline void name(struct text_fields *f, struct header *h, __u64 statement, struct start *what)
{
	f->header = *h;
	f->statement = statement;
	f->query_id = what->query_id;
	f->portal = what->portal;
	f->location = what->location;
	f->length = what->length;
	f->command = what->command;
	f->what = what->what;
	f->skipped = what->skipped;
	f->chunk = 0;
	f->text_bytes = 0;
}

/* A text that is longer than most, in as many records as it takes. `h` is the first one's header. */
static __noinline void send_large(struct session *s, struct start *what, struct header *first, __u64 now)
{
	struct header h = *first;
	__u64 at = what->at, bytes = what->bytes, statement = h.sequence;
	for (__u32 i = 0; i < CHUNKS_MAX; i++) {
		if (i)
			head(&h, s, now, CHUNK);
		struct large_text *large = room(sizeof *large);
		if (!large) {
			lost(&h);
			return;
		}
		name(&large->fields, &h, statement, what);
		large->fields.chunk = i;
		__u64 limit = sizeof large->text;
		if (bytes && bytes < limit - 1)
			limit = bytes + 1;
		if (limit > sizeof large->text)
			limit = sizeof large->text;
		long n = bpf_probe_read_user_str(large->text, limit, (void *)at);
		if (n < 0) {
			large->fields.header.flags = UNREADABLE;
			count(UNREADABLE_TEXTS);
			give(large);
			return;
		}
		large->fields.text_bytes = n > 0 ? n - 1 : 0;
		int whole = n < sizeof large->text || bytes == sizeof large->text - 1;
		if (!whole)
			large->fields.header.flags = i + 1 < what->chunks && i + 1 < CHUNKS_MAX ? MORE : CUT;
		int more = large->fields.header.flags == MORE;
		give(large);
		if (!more)
			return;
		at += sizeof large->text - 1;
		if (bytes)
			bytes -= sizeof large->text - 1;
	}
}

/* Returns the statement's sequence. */
static __noinline __u64 send(struct session *s, struct start *what, __u64 now)
{
	struct small_text *small = &s->text;
	struct header h;
	head(&h, s, now, START);
	name(&small->fields, &h, h.sequence, what);
	if (what->at) {
		__u64 limit = sizeof small->text;
		if (what->bytes && what->bytes < limit - 1)
			limit = what->bytes + 1;
		long n = bpf_probe_read_user_str(small->text, limit, (void *)what->at);
		if (n < 0) {
			small->fields.header.flags = UNREADABLE;
			count(UNREADABLE_TEXTS);
		} else if (n < sizeof small->text || what->bytes == sizeof small->text - 1) {
			small->fields.text_bytes = n > 0 ? n - 1 : 0;
		} else {
			send_large(s, what, &h, now);
			return h.sequence;
		}
	}
	__u64 size = small->fields.text_bytes;
	if (size > sizeof small->text)
		size = sizeof small->text;
	if (bpf_ringbuf_output(&ring, small, TEXT_FIELDS + size, BPF_RB_NO_WAKEUP))
		lost(&h);
	else
		count(MADE);
	return h.sequence;
}

static __always_inline void begin(struct session *s, __u32 what, __u64 statement, __u64 now)
{
	s->open = what;
	s->statement = statement;
	s->begun_ns = now;
	s->runs = 0;
	s->sqlstate = 0;
	s->level = 0;
}

static __always_inline void finish(struct session *s, __u16 outcome, __u32 sqlstate, __u64 rows, __u64 now)
{
	struct header h;
	head(&h, s, now, END);
	struct end *e = room(sizeof *e);
	if (e) {
		e->header = h;
		e->statement = s->statement;
		e->duration_ns = now - s->begun_ns;
		e->rows = rows;
		e->sqlstate = sqlstate;
		e->outcome = outcome;
		e->what = s->open;
		give(e);
	} else {
		lost(&h);
	}
	s->open = 0;
}

/* Left unfinished when the backend goes on to something else: a suspended portal, or what has no EndCommand. */
static __always_inline void leave(struct session *s, __u64 now)
{
	if (s->open)
		finish(s, s->open == STATEMENT || s->open == RESUMED ? SUSPENDED : OK, 0, 0, now);
}

/* void ReadyForQuery(CommandDest dest) */
SEC("uprobe")
int ready(struct pt_regs *ctx)
{
	struct binary *b = binary(ctx);
	if (!b)
		return 0;
	struct session *s = session(ctx, b, AT_READY);
	if (!s)
		return 0;
	leave(s, bpf_ktime_get_boot_ns());
	s->source = 0;
	s->failing = 0;
	return 0;
}

/* bool PortalRun(Portal portal, long count, bool isTopLevel, ...) */
SEC("uprobe")
int portal_run(struct pt_regs *ctx)
{
	if (!(ARGUMENT_3(ctx) & 0xff))
		return 0;	/* SQL EXECUTE, inside a statement that is known */
	struct binary *b = binary(ctx);
	if (!b)
		return 0;
	struct session *s = session(ctx, b, AT_PORTAL_RUN);
	if (!s)
		return 0;
	__u64 now = bpf_ktime_get_boot_ns();
	if (s->open == REPLICATION)
		s->open = 0;	/* a walsender found that it is SQL: the reader takes its START back */
	leave(s, now);
	/* What a portal has from its text to atStart, and what its plan has up to the place in the message, are read at once, into where
	 * the text will be: a read costs as much as all that is done with what it brings. */
	__u64 portal = ARGUMENT_1(ctx);
	struct start what = { .portal = portal, .location = -1, .what = STATEMENT };
	char *scratch = s->text.text;
	struct {
		__u64 source;
		__u64 tag;
		__u64 completion[2];
		__u64 stmts;
	} *found = (void *)scratch;
	_Static_assert(__builtin_offsetof(typeof(*found), stmts) == SOURCE_BEFORE_STMTS, "portal.h");
	__u64 at_start = b->portal_at_start - b->portal_stmts + SOURCE_BEFORE_STMTS & 0xff;
	if (bpf_probe_read_user(scratch, at_start + 16, (void *)(portal + b->portal_stmts - SOURCE_BEFORE_STMTS)))
		__builtin_memset(found, 0, sizeof *found);
	__u64 source = found->source, stmts = found->stmts;
	struct {
		__u32 tag;
		__s32 length;
		__u64 capacity;
		__u64 elements;
		__u64 first;	/* where they stand in the list itself */
	} list = {};
	if (source && !scratch[at_start]) {
		what.what = RESUMED;
		what.query_id = *(__u64 *)(scratch + (at_start & 0xf8) + 8);	/* portalPos */
		begin(s, RESUMED, send(s, &what, now), now);
		return 0;
	}
	bpf_probe_read_user(&list, sizeof list, (void *)stmts);
	if (list.length > 0) {
		struct {
			__u32 tag;
			__u32 command;
			__u64 query_id;
		} *planned = (void *)scratch;
		__u64 place = b->stmt_location & 0xfc;
		if (list.elements != stmts + __builtin_offsetof(typeof(list), first))
			bpf_probe_read_user(&list.first, sizeof list.first, (void *)list.elements);
		if (!bpf_probe_read_user(scratch, place + 8, (void *)list.first)) {
			what.command = planned->command;
			what.query_id = planned->query_id;
			what.location = *(__s32 *)(scratch + place);
			what.length = *(__s32 *)(scratch + place + 4);
		}
	}
	what.at = source;
	what.chunks = b->chunks;
	if (source == s->source && what.location > s->location) {	/* a further statement of the same message */
		what.skipped = what.location;
		what.at = source + what.location;
		what.bytes = what.length > 0 ? what.length : 0;
	}
	s->source = source;
	s->location = what.location;
	s->consumed = what.length > 0 && what.location >= 0 ? what.location + what.length : 0;
	begin(s, STATEMENT, send(s, &what, now), now);
	return 0;
}

/* void EndCommand(const QueryCompletion *qc, ...): { CommandTag commandTag; uint64 nprocessed; } */
SEC("uprobe")
int end_command(struct pt_regs *ctx)
{
	struct session *s = known();
	__u64 rows = 0;
	if (!s || !s->open)
		return 0;	/* it started before the witness did */
	bpf_probe_read_user(&rows, sizeof rows, (void *)(ARGUMENT_1(ctx) + 8));
	finish(s, OK, 0, rows, bpf_ktime_get_boot_ns());
	return 0;
}

/* void AbortCurrentTransaction(void): an error came up to the main loop, whatever caught others on their way */
SEC("uprobe")
int abort_transaction(struct pt_regs *ctx)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	if (!s || !b)
		return 0;
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 sqlstate = s->sqlstate ? s->sqlstate : 2600;	/* XX000: an error that names none */
	if (s->open) {
		finish(s, ERROR, sqlstate, 0, now);
	} else if (s->failing) {
		struct start what = { .at = s->failing, .chunks = b->chunks, .what = FAILED };
		what.location = s->failing == s->source ? s->consumed : 0;
		begin(s, FAILED, send(s, &what, now), now);
		finish(s, ERROR, sqlstate, 0, now);
	}
	s->failing = 0;
	s->sqlstate = 0;
	s->level = 0;
	return 0;
}

/* bool errstart_cold(int elevel, const char *domain): ERROR or worse; errcode() follows, unless it is an internal error */
SEC("uprobe")
int errstart(struct pt_regs *ctx)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	if (!s || !b)
		return 0;
	s->sqlstate = 0;
	s->level = ARGUMENT_1(ctx);
	s->failing = variable(ctx, b, AT_ERRSTART, b->debug_query_string);
	return 0;
}

/* int errcode(int sqlerrcode) */
SEC("uprobe")
int errcode(struct pt_regs *ctx)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	if (!s || !b)
		return 0;
	s->sqlstate = ARGUMENT_1(ctx);
	s->failing = variable(ctx, b, AT_ERRCODE, b->debug_query_string);
	return 0;
}

static __always_inline int thrown(struct pt_regs *ctx, __u32 probe)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	__u32 level = 0;
	if (!s || !b)
		return 0;
	bpf_probe_read_user(&level, sizeof level, (void *)ARGUMENT_1(ctx));
	if (level < FATAL - 1)
		return 0;	/* a notice of a parallel worker */
	bpf_probe_read_user(&s->sqlstate, sizeof s->sqlstate, (void *)(ARGUMENT_1(ctx) + b->error_sqlstate));
	s->level = level;
	s->failing = variable(ctx, b, probe, b->debug_query_string);
	return 0;
}

/* void ReThrowError(ErrorData *edata): an error that was caught and kept */
SEC("uprobe")
int rethrow(struct pt_regs *ctx)
{
	return thrown(ctx, AT_RETHROW);
}

/* void ThrowErrorData(ErrorData *edata): of a parallel worker, for one */
SEC("uprobe")
int throw(struct pt_regs *ctx)
{
	return thrown(ctx, AT_THROW);
}

/* void HandleFunctionRequest(StringInfo msgBuf): { char *data; ... }, the function's OID first */
SEC("uprobe")
int function_call(struct pt_regs *ctx)
{
	struct binary *b = binary(ctx);
	if (!b)
		return 0;
	struct session *s = session(ctx, b, AT_FUNCTION_CALL);
	if (!s)
		return 0;
	__u64 now = bpf_ktime_get_boot_ns(), data = 0;
	__u32 oid = 0;
	leave(s, now);
	bpf_probe_read_user(&data, sizeof data, (void *)ARGUMENT_1(ctx));
	bpf_probe_read_user(&oid, sizeof oid, (void *)data);
	struct start what = { .command = bpf_ntohl(oid), .location = -1, .what = FUNCTION_CALL };
	begin(s, FUNCTION_CALL, send(s, &what, now), now);
	return 0;
}

/* bool exec_replication_command(const char *cmd_string): a walsender's, which never reach the executor, and its SQL, which does */
SEC("uprobe")
int replication(struct pt_regs *ctx)
{
	struct binary *b = binary(ctx);
	if (!b)
		return 0;
	struct session *s = session(ctx, b, AT_REPLICATION);
	if (!s)
		return 0;
	__u64 now = bpf_ktime_get_boot_ns();
	leave(s, now);
	struct start what = { .at = ARGUMENT_1(ctx), .chunks = b->chunks, .location = -1, .what = REPLICATION };
	begin(s, REPLICATION, send(s, &what, now), now);
	return 0;
}

static __always_inline int nested(struct session *s, struct binary *b, __u64 planned, __u64 source)
{
	struct {
		__u32 tag;
		__u32 command;
		__u64 query_id;
	} head = {};
	__s32 place[2] = { -1, 0 };
	if (!s->open)
		return 0;
	if (s->runs++ == 0)
		return 0;	/* the statement itself */
	bpf_probe_read_user(&head, sizeof head, (void *)planned);
	bpf_probe_read_user(place, sizeof place, (void *)(planned + b->stmt_location));
	struct start what = { .at = source, .chunks = b->chunks, .query_id = head.query_id, .command = head.command, .what = NESTED };
	what.location = place[0];
	what.length = place[1];
	send(s, &what, bpf_ktime_get_boot_ns());
	return 0;
}

/* void standard_ExecutorRun(QueryDesc *): { CmdType operation; PlannedStmt *plannedstmt; const char *sourceText; } */
SEC("uprobe")
int executor(struct pt_regs *ctx)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	struct {
		__u64 operation;
		__u64 planned;
		__u64 source;
	} query = {};
	if (!s || !b || !b->nested)
		return 0;
	bpf_probe_read_user(&query, sizeof query, (void *)ARGUMENT_1(ctx));
	return nested(s, b, query.planned, query.source);
}

/* void standard_ProcessUtility(PlannedStmt *pstmt, const char *queryString, ...) */
SEC("uprobe")
int utility(struct pt_regs *ctx)
{
	struct session *s = known();
	struct binary *b = binary(ctx);
	if (!s || !b || !b->nested)
		return 0;
	return nested(s, b, ARGUMENT_1(ctx), ARGUMENT_2(ctx));
}

SEC("tp_btf/sched_process_exit")
int process_exit(void *context)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 pid = id >> 32;
	if (pid != (__u32)id)
		return 0;
	struct session *s = bpf_map_lookup_elem(&sessions, &pid);
	if (!s)
		return 0;
	if (s->client) {
		__u64 now = bpf_ktime_get_boot_ns();
		struct header h;
		if (s->open)
			finish(s, GONE, s->level >= FATAL ? s->sqlstate : 0, 0, now);
		head(&h, s, now, EXIT);
		struct header *r = room(sizeof *r);
		if (r) {
			*r = h;
			give(r);
		} else {
			lost(&h);
		}
		struct name key = { .start_ns = s->start_ns, .pid = pid };
		struct session_record *said = bpf_map_lookup_elem(&announced, &key);
		if (said)
			said->header.flags = OVER;
	}
	bpf_map_delete_elem(&sessions, &pid);
	return 0;
}
