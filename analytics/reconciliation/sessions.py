"""Whose a session of a server is: a gateway's, our own, a declared source's, or nobody's.

It is known on both sides by its server and by PostgreSQL's own name for it, hex(start) "." hex(pid), which no client can choose.
What a session calls itself (application_name) proves nothing: it makes us wait longer for its gateway's word, and no more.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from analytics.reconciliation.findings import find_session
from analytics.reconciliation.state import SECOND, Held, Lane, Opened, Own, Seen
from analytics.reconciliation.statements import observe
from identity.sources import Connection, address
from ingest.collectors.collector import session_id
from ingest.events import BackendEndOrdered, SessionJudged, SessionObserved, SessionUnobserved, Stamp

Verdict: TypeAlias = str
HOSTS_MAX: Final = 1_000  # addresses of gateways
PROCESSES_MAX: Final = 1_000  # of gateways; the one learned first is forgotten first
FINAL: Final = frozenset({"audited", "ours", "hijacked"})  # what comes later changes nothing of these
_SERVERS_OWN: Final = ("", "client backend", "walsender")  # all other backend types are PostgreSQL's processes
_NAMED_OURS: Final = "pgwarden/"
_OTHERS_OF_OURS: Final = ("pgwarden/control/", "pgwarden/watchdog/", "pgwarden/canary/", "pgwarden/activity/")
_SESSION: Final = re.compile(r"[0-9a-f]{20}")  # milliseconds of its gateway's clock, and 8 digits of chance: gateway/server.py
_NAMED_WITHIN_US: Final = 600 * SECOND  # between that time and the backend's start: a login takes seconds, and clocks may differ
_NEAR_US: Final = 60 * SECOND  # between a backend's start and the word of whoever opened it without knowing the start
_SAME_START_US: Final = 2 * SECOND  # a process's start is the boot's, turned into wall clock at different moments


def session_opened(held: Held, stamp: Stamp, at_us: int, gateway: str, place: str, name: str) -> Opened:
    known = held.state.opened.get(stamp.session)
    if known is not None:
        return known
    opened = Opened(
        stamp.session,
        stamp.agent,
        stamp.connection,
        session_id(stamp.backend_start_us, stamp.backend_pid),
        stamp.role,
        stamp.upstream_port,
        gateway,
        at_us,
        place,
        name,
    )
    held.state.roles[f"{opened.connection}/{opened.role}"] = 1
    for witness in held.state.witnesses.values():
        if opened.connection in witness.connections and witness.statements and witness.running:
            opened.lanes[witness.name] = Lane()
    held.state.opened[opened.session] = opened
    held.state.by_place[f"{opened.connection}/{opened.session_id}"] = opened.session
    for server in held.servers_of(opened.connection):
        key = f"{server}/{opened.session_id}"
        seen = held.state.seen.get(key)
        if seen is not None and seen.verdict not in FINAL:
            judge(held, key)
    return opened


def boot_known(held: Held, opened: Opened, boot: int) -> None:
    """Of the gateway that opened it, which is one process as long as it is one boot."""
    if opened.boot != boot:
        opened.boot = boot
        _judge_again(held, opened)


def own_backend(held: Held, own: Own, role: str) -> None:
    held.add_own(own)
    if role:
        held.state.roles[f"{own.connection}/{role}"] = 1
    for key in list(held.pending):
        if held.state.seen[key].backend_pid == own.backend_pid:
            judge(held, key)


def session_observed(held: Held, event: SessionObserved, place: str, name: str) -> None:
    key = f"{event.server}/{event.session_id}"
    seen = held.state.seen.get(key)
    if seen is None:
        seen = held.state.seen[key] = Seen(
            event.server,
            event.session_id,
            event.user,
            event.database,
            event.client,
            event.application_name,
            event.backend_type,
            event.backend_pid,
            event.client_pid,
            event.client_start_us,
            event.client_uid,
            event.client_exe,
            event.at_us,
            held.now_us,
            place,
            name,
        )
        held.count("sessions_seen")
    else:
        _more_known(held, seen, event)
    judge(held, key)


def session_unobserved(held: Held, event: SessionUnobserved) -> None:
    key = f"{event.server}/{event.session_id}"
    if (seen := held.state.seen.get(key)) is not None and not seen.ended_us:
        seen.ended_us = held.now_us
    opened = held.gateways(event.server, event.session_id)
    if opened is not None and (lane := opened.lanes.get(event.witness)) is not None:
        lane.over = True
        held.busy[opened.session] = None


def judge(held: Held, key: str) -> None:
    seen = held.state.seen[key]
    if seen.verdict in FINAL:
        return
    opened = held.gateways(seen.server, seen.session_id)
    if opened is not None:
        _judge_opened(held, key, seen, opened)
        return
    if seen.verdict in ("shadow", "declared"):
        return
    if (own := _own_of(held, seen)) is not None:
        _learn(held, seen, own)
        _verdict(held, key, seen, "ours", reason=f"opened by {own.who}, by its own word")
        return
    if seen.backend_type not in _SERVERS_OWN:
        _verdict(held, key, seen, "ours", reason=f"PostgreSQL's own process: {seen.backend_type}")
        return
    source = held.sources.of(Connection(seen.server, seen.user, seen.client, seen.client_exe, seen.application_name))
    if source is not None:
        _verdict(held, key, seen, "declared", source=source.name, reason=f"declared as {source.kind} by {source.declared_by}")
        return
    held.pending[key] = None
    if seen.at_us < held.state.since_us:
        _verdict(held, key, seen, "unexplained", reason="it began before the record does")
        return
    if seen.at_us <= held.state.forgotten_us:
        _verdict(held, key, seen, "unexplained", reason="it is of a time of which not every session is remembered")
        return
    waited_us = held.now_us - seen.seen_us
    if _may_be_ours(held, seen) and not _written_since(held, seen.seen_us):
        patience_us = held.settings.lateness_seconds * SECOND
    else:
        patience_us = held.settings.patience_ms * 1000
    if waited_us < patience_us:
        return
    late = _late_gateways(held, seen.seen_us)
    if late and waited_us < held.settings.record_lateness_seconds_max * SECOND:
        return
    _not_ours(held, key, seen, late)


def _may_be_ours(held: Held, seen: Seen) -> bool:
    """Whether it calls itself as pgwarden's own do. A session's name says when its gateway began it, and is given once."""
    name = seen.application_name
    if name.startswith(_OTHERS_OF_OURS):
        return True
    session = name.rpartition("/")[2]
    if not name.startswith(_NAMED_OURS) or _SESSION.fullmatch(session) is None:
        return False
    if session in held.state.opened:
        return False  # which has a backend of its own
    return abs(int(session[:12], 16) * 1_000 - seen.at_us) <= _NAMED_WITHIN_US


def _written_since(held: Held, seen_us: int) -> bool:
    """Whether a gateway has written since, so long after that its word of this session would stand before it."""
    return held.state.written >= seen_us + 2 * SECOND


def _late_gateways(held: Held, at_us: int) -> list[str]:
    """Those whose record is not with the brokers up to then, by their own word, and that were heard of a moment ago."""
    return sorted(
        gateway
        for gateway, (whole_us, said_us) in held.state.reports.items()
        if whole_us < at_us and held.now_us - said_us < held.settings.record_lateness_seconds_max * SECOND
    )


def _more_known(held: Held, seen: Seen, event: SessionObserved) -> None:
    """A collector tells of a session that was known by less: by what it ran, or by one that knows no processes."""
    new = (event.client_pid and not seen.client_pid) or (event.client and not seen.client)
    seen.user = seen.user or event.user
    seen.database = seen.database or event.database
    seen.client = seen.client or event.client
    seen.application_name = seen.application_name or event.application_name
    seen.backend_type = seen.backend_type or event.backend_type
    if event.client_pid and not seen.client_pid:
        seen.client_pid, seen.client_start_us = event.client_pid, event.client_start_us
        seen.client_uid, seen.client_exe = event.client_uid, event.client_exe
    if not new:
        return
    if (opened := held.gateways(seen.server, seen.session_id)) is not None:
        _judge_again(held, opened)
    elif seen.verdict == "ours" and (own := _own_of(held, seen)) is not None:
        _learn(held, seen, own)


def _judge_again(held: Held, opened: Opened) -> None:
    """More is known of it, by a collector or by its gateway."""
    for server in held.servers_of(opened.connection):
        key = f"{server}/{opened.session_id}"
        if (seen := held.state.seen.get(key)) is not None and seen.verdict == "audited":
            _judge_opened(held, key, seen, opened)


def _learn(held: Held, seen: Seen, own: Own) -> None:
    """Where a gateway's connections come from: its control connections are its own by its own word."""
    if not own.gateway:
        return
    _learn_process(held, seen, own.gateway, own.boot)
    host = address(seen.client)
    if host is not None and len(held.state.hosts) < HOSTS_MAX:
        held.state.hosts[f"{seen.server}/{host}"] = 1


def _learn_process(held: Held, seen: Seen, gateway: str, boot: int) -> None:
    """One boot of a gateway is one process: of another boot this one says nothing."""
    if not seen.client_pid:
        return
    processes = held.state.processes
    processes[f"{seen.server}/{gateway}/{boot}"] = (seen.client_pid, seen.client_start_us)
    if len(processes) > PROCESSES_MAX:
        del processes[next(iter(processes))]


def _judge_opened(held: Held, key: str, seen: Seen, opened: Opened) -> None:
    host = address(seen.client)
    port = seen.client.rpartition(":")[2]
    process = held.state.processes.get(f"{seen.server}/{opened.gateway}/{opened.boot}")
    stranger = ""
    if held.settings.compare_addresses and opened.upstream_port and host is not None and port != str(opened.upstream_port):
        stranger = f"it comes from {seen.client}, and the gateway's port is {opened.upstream_port}"
    elif seen.client_pid and process is not None and not _same_process(process, seen):
        stranger = f"process {seen.client_pid} ({seen.client_exe}) holds it, and the gateway is process {process[0]}"
    if stranger:
        _verdict(held, key, seen, "hijacked", opened=opened, reason=stranger)
        find_session(
            held,
            key,
            seen,
            "hijacked",
            f"session {opened.session} of agent {opened.agent} is not its gateway's: {stranger}",
            opened,
        )
    else:
        if host is not None and len(held.state.hosts) < HOSTS_MAX:
            held.state.hosts[f"{seen.server}/{host}"] = 1
        # Its control connections may be older than the collector. Who connected from the gateway's port is the gateway.
        if opened.boot and process is None and host is not None and port == str(opened.upstream_port):
            _learn_process(held, seen, opened.gateway, opened.boot)
        _verdict(held, key, seen, "audited", opened=opened, reason=f"opened by gateway {opened.gateway}")
    early, seen.early = seen.early, []
    held.waiting -= len(early)
    for lane in opened.lanes.values():  # of what was not kept nothing is claimed
        lane.ignore_us = max(lane.ignore_us, seen.unkept_us)
    for witness, observed in early:
        observe(held, opened, witness, observed)


def _own_of(held: Held, seen: Seen) -> Own | None:
    connections = held.connections_of(seen.server)
    for own in reversed(held.own_of(seen.backend_pid)):
        if own.server != seen.server and own.connection not in connections:
            continue
        if own.session_id:
            if own.session_id == seen.session_id:
                return own
        elif seen.client.endswith(f":{own.upstream_port}") and abs(own.at_us - seen.at_us) <= _NEAR_US:
            return own
    return None


def _not_ours(held: Held, key: str, seen: Seen, late: list[str]) -> None:
    who = _described(seen)
    host = address(seen.client)
    hosts = {name.partition("/")[2] for name in held.state.hosts if name.startswith(f"{seen.server}/")}
    ours = {name: one for name, one in held.state.processes.items() if name.startswith(f"{seen.server}/")}
    elsewhere = ""
    if any(f"{connection}/{seen.user}" in held.state.roles for connection in held.connections_of(seen.server)):
        if seen.client_pid and ours and not any(_same_process(one, seen) for one in ours.values()):
            elsewhere = f"the gateway's role {seen.user} is used by another process: {who}"
        elif host is not None and hosts and str(host) not in hosts:
            elsewhere = f"the gateway's role {seen.user} is used from another address: {who}"
    kind = "hijacked" if elsewhere else "shadow"
    summary = elsewhere or f"no gateway opened a session that was seen on server {seen.server}: {who}"
    if late:
        summary += f"; the record of gateway {', '.join(late)} is late"
    _verdict(held, key, seen, kind, reason=summary)
    find_session(held, key, seen, kind, summary, None)
    if not late:
        order(held, seen)


def _described(seen: Seen) -> str:
    said = f"role {seen.user or 'unknown'} on database {seen.database or 'unknown'} from {seen.client or 'unknown'}"
    if seen.client_pid:
        said += f", process {seen.client_pid} ({seen.client_exe or 'unknown'}) of user id {seen.client_uid}"
    if seen.application_name:
        said += f", which calls itself {seen.application_name[:64]!a}"
    return said


def order(held: Held, seen: Seen) -> None:
    """Its end, where that is wanted. Only what is known to be nobody's, and only while it lives."""
    connections = held.connections_of(seen.server)
    if not held.settings.kill_shadow or seen.ended_us or seen.ordered or not connections:
        return
    seen.ordered = True
    name = f"{seen.server}/{seen.session_id}"
    held.effects.append(
        BackendEndOrdered(
            at_us=held.now_us,
            order=f"shadow {name}",
            connection=connections[0],
            server=seen.server,
            session_id=seen.session_id,
            backend_pid=seen.backend_pid,
            backend_start_us=start_and_pid(seen.session_id)[0],
            cause=seen.verdict,
            reason="no gateway opened it, and no source is declared that it fits",
            finding=seen.finding,
        )
    )


def _verdict(
    held: Held, key: str, seen: Seen, verdict: Verdict, *, opened: Opened | None = None, source: str = "", reason: str
) -> None:
    held.pending.pop(key, None)
    if verdict not in ("", "unexplained") and opened is None:
        held.waiting -= len(seen.early)
        seen.early.clear()
    if seen.verdict == verdict:
        return
    seen.verdict = verdict
    held.count(f"sessions_{verdict}")
    held.effects.append(
        SessionJudged(
            held.now_us,
            seen.server,
            seen.session_id,
            verdict,
            opened.session if opened is not None else "",
            opened.agent if opened is not None else "",
            source,
            reason,
        )
    )


def start_and_pid(name: str) -> tuple[int, int]:
    """Of PostgreSQL's name for a session: microseconds, in whole seconds, and the pid; zeros where it is no such name."""
    start, _, pid = name.partition(".")
    try:
        return int(start, 16) * SECOND, int(pid, 16)
    except ValueError:
        return 0, 0


def _same_process(process: tuple[int, int], seen: Seen) -> bool:
    pid, start_us = process
    return pid == seen.client_pid and abs(start_us - seen.client_start_us) <= _SAME_START_US
