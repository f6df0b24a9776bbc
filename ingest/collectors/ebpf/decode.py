"""Ring bytes -> observations. Pure: bytes and the clocks' distance in, events out; all that it remembers has a bound.

A session's records come in the order of their `sequence`. A number that is missing is a record that found no room: its header
is in the spill ring, or was lost as well, and either way the gap is the session's own.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ingest.collectors.collector import Observation, digest
from ingest.collectors.ebpf import layout
from ingest.events import ObservationGap, SessionObserved, SessionUnobserved, StatementObserved

_EPOCH_OF_POSTGRES_US: Final = 946_684_800_000_000  # 2000-01-01
_BLANK: Final = re.compile(rb"(?:[\s;]++|--[^\n\r]*+|/\*(?:[^*]|\*(?!/))*+\*/)*+")
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10


class RingInvalid(Exception):
    """These are not bytes that the program writes."""


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    sessions_max: int = 20_000  # the program keeps 16,384; beyond it the one longest silent is forgotten
    connections_max: int = 20_000  # made, and not yet a session
    text_bytes_max: int = 64 * 2**20  # of all statements that are open
    homeless_max: int = 10_000  # records of sessions that are not known yet
    portals_max: int = 1_000  # left before their end, of all sessions; beyond it the one longest left is told of no more
    replication_seconds: float = 2.0  # a replication command that runs for longer is told while it runs: it may for days


class _Open(msgspec.Struct, gc=False):  # one is made for each statement: a fifth of a dataclass's time
    sequence: int
    at_ns: int
    what: int
    query_id: int
    location: int
    length: int
    command: int
    skipped: int
    text: bytes
    whole: bool
    mark: int
    portal: int  # address
    told: bool = False
    duration_ns: int = 0  # of the pieces that a portal was read in so far


@dataclass(slots=True)
class _Session:
    session_id: str
    user: str
    database: str
    client: str
    expected: int  # the next sequence; -1 = whatever comes
    open: _Open | None = None
    nested: _Open | None = None  # whose text goes on
    lost: int = 0  # since the last gap was told
    lost_from_ns: int = 0
    lost_until_ns: int = 0
    seen_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    start_ns: int
    uid: int
    exe: str
    cgroup: int


_NOBODY: Final = _Process(0, 0, -1, "", 0)
_Name = tuple[int, int]  # pid, start_ns


@dataclass(slots=True)
class Decoding:
    """What is known so far of one server's sessions. `wall_us` below is the wall clock less CLOCK_BOOTTIME."""

    witness: str
    server: str
    settings: DecodeSettings = field(default_factory=DecodeSettings)
    lost: int = 0  # records that found no room
    read: int = 0  # records
    resumed: int = 0  # pieces of portals that went on: no executions of their own
    _sessions: OrderedDict[_Name, _Session] = field(default_factory=OrderedDict)
    _connections: OrderedDict[tuple[str, str], _Process] = field(default_factory=OrderedDict)
    _over: OrderedDict[_Name, int] = field(default_factory=OrderedDict)  # sessions that ended, and how many records they had
    _left: OrderedDict[tuple[_Name, int], _Open] = field(default_factory=OrderedDict)  # portals that may go on, by their address
    _homeless: OrderedDict[_Name, list[bytes]] = field(default_factory=OrderedDict)
    _homeless_records: int = 0
    _text_bytes: int = 0
    _mark: int = 0
    _gaps: dict[_Name, _Session] = field(default_factory=dict)

    # -- what the witness sends ----------------------------------------------------------------------------------------------------

    def records(self, span: bytes, wall_us: int, mark: int = 0) -> list[Observation]:
        """Of the ring itself. `mark` comes back from `floor` while a statement that began here is open.

        Raises:
            RingInvalid: Nothing that follows in this ring can be read.
        """
        told: list[Observation] = []
        self._mark = mark
        for begin, end in places(span):
            self.read += 1
            self._record(span, begin, end, wall_us, told)
        self._tell_gaps(wall_us, told)
        return told

    def spilled(self, span: bytes, wall_us: int) -> list[Observation]:
        """Of the spill ring: headers of what is lost. What `records` of that time brought must have been read before.

        Raises:
            RingInvalid: As `records`.
        """
        told: list[Observation] = []
        homeless: list[tuple[int, int]] = []
        for record in split(span):
            time_ns, start_ns, sequence, pid, kind, _ = header(record)
            session = self._sessions.get((pid, start_ns))
            if session is None and sequence < self._over.get((pid, start_ns), 0):
                continue  # its end found room, and told how many are missing before it
            if session is None:
                self.lost += 1
                homeless.append((time_ns, pid))
            elif sequence >= session.expected:  # else its number was missing, and the gap is told
                missing = sequence - session.expected + 1 if session.expected >= 0 else 1
                self._miss((pid, start_ns), session, missing, time_ns)
                session.expected = sequence + 1
            if kind == layout.EXIT and session is not None:
                self._end_of(session, (pid, start_ns), time_ns, wall_us, told)
        if homeless:
            first, last = min(homeless)[0] // 1000 + wall_us, max(homeless)[0] // 1000 + wall_us
            pids = ", ".join(str(pid) for pid in sorted({pid for _, pid in homeless})[:10])
            reason = f"the ring was full: who connected, or did what in a session that is not known (pid {pids})"
            told.append(ObservationGap(last, self.witness, self.server, "", first, last, len(homeless), reason))
        self._tell_gaps(wall_us, told)
        return told

    def known(self, record: bytes, wall_us: int) -> list[Observation]:
        """A session that was announced earlier: to whoever read then, or to nobody.

        Raises:
            RingInvalid: This is no such record.
        """
        told: list[Observation] = []
        _, start_ns, _, pid, kind, _ = header(record)
        if kind != layout.SESSION:
            raise RingInvalid(f"a record of kind {kind} is no session")
        if (pid, start_ns) not in self._sessions:
            self._session(record, wall_us, told, earlier=True)
        return told

    def tick(self, now_ns: int, wall_us: int) -> list[Observation]:
        """What time alone tells."""
        told: list[Observation] = []
        limit = now_ns - int(self.settings.replication_seconds * 1e9)
        for session in self._sessions.values():
            running = session.open
            if running is not None and running.what == layout.REPLICATION and not running.told and running.at_ns < limit:
                running.told = True
                told.append(self._statement(session, running, wall_us, rows=-1, sqlstate="", duration_ns=-1000, known=False))
        return told

    def floor(self) -> int | None:
        """The lowest mark of an open statement: what came before it need not be read again."""
        return min((s.open.mark for s in self._sessions.values() if s.open is not None and not s.open.told), default=None)

    # -- one record ----------------------------------------------------------------------------------------------------------------

    def _record(self, span: bytes, begin: int, end: int, wall_us: int, told: list[Observation]) -> None:
        """It is not cut out of its piece of the ring: most are read in place, once."""
        if end - begin < layout.HEADER.size:
            raise RingInvalid(f"a record of {end - begin} bytes")
        time_ns, start_ns, sequence, pid, kind, flags = layout.HEADER.unpack_from(span, begin)
        name = (pid, start_ns)
        session = self._sessions.get(name)
        if session is None or kind == layout.SESSION or kind == layout.CONNECTED:
            self._of_nobody(name, session, kind, span[begin:end], wall_us, told)
            return
        if sequence != session.expected:
            if sequence < session.expected:
                return  # read before: the witness or its reader began anew
            if session.expected >= 0:
                self._miss(name, session, sequence - session.expected, time_ns)
        session.expected = sequence + 1
        session.seen_ns = time_ns
        if kind == layout.END:
            self._end(session, name, span, begin, end, wall_us, told)
        elif kind == layout.START or kind == layout.CHUNK:
            self._text(session, name, span, begin, end, time_ns, sequence, kind, flags, wall_us, told)
        elif kind == layout.EXIT:
            self._end_of(session, name, time_ns, wall_us, told)
        else:
            raise RingInvalid(f"a record of kind {kind}")

    def _of_nobody(
        self, name: _Name, session: _Session | None, kind: int, record: bytes, wall_us: int, told: list[Observation]
    ) -> None:
        """What tells of a session that is new, or was not told of yet."""
        if kind == layout.CONNECTED:
            self._connected(record)
        elif kind != layout.SESSION:
            self._keep(name, record)
        elif session is None:
            self._session(record, wall_us, told)

    def _connected(self, record: bytes) -> None:
        if len(record) < layout.CONNECTED_BYTES:
            raise RingInvalid("a connection is cut short")
        ours, theirs = _ends(record)
        self._connections[(theirs, ours)] = _process(record)
        while len(self._connections) > self.settings.connections_max:
            self._connections.popitem(last=False)

    def _session(self, record: bytes, wall_us: int, told: list[Observation], earlier: bool = False) -> None:
        if len(record) < layout.SESSION_BYTES:
            raise RingInvalid("a session is cut short")
        time_ns, start_ns, sequence, pid, _, _ = header(record)
        started_s, started_us, _, own_pid, database, user, application = layout.SESSION_TAIL.unpack_from(
            record, layout.SESSION_TAIL_AT
        )
        ours, theirs = _ends(record)
        process = _process(record) if theirs == "local" else self._connections.pop((ours, theirs), _NOBODY)
        made = _Session(
            session_id=f"{started_s:x}.{own_pid:x}",
            user=_text(user),
            database=_text(database),
            client=theirs,
            expected=-1 if earlier else sequence + 1,
            seen_ns=time_ns,
        )
        self._sessions[(pid, start_ns)] = made
        if len(self._sessions) > self.settings.sessions_max:
            oldest = min(self._sessions, key=lambda name: self._sessions[name].seen_ns)
            self._forget(oldest)
        told.append(
            SessionObserved(
                at_us=started_us + _EPOCH_OF_POSTGRES_US,
                witness=self.witness,
                server=self.server,
                session_id=made.session_id,
                backend_pid=own_pid,
                user=made.user,
                database=made.database,
                client=theirs,
                application_name=_text(application),
                client_pid=process.pid,
                client_start_us=process.start_ns // 1000 + wall_us if process.start_ns else 0,
                client_uid=process.uid,
                client_exe=process.exe,
                client_cgroup=process.cgroup,
            )
        )
        for kept in self._homeless.pop((pid, start_ns), ()):
            self._homeless_records -= 1
            self._record(kept, 0, len(kept), wall_us, told)

    def _keep(self, name: _Name, record: bytes) -> None:
        """Until the session is announced: its own record may have found no room."""
        self._homeless.setdefault(name, []).append(record)
        self._homeless_records += 1
        while self._homeless_records > self.settings.homeless_max:
            _, dropped = self._homeless.popitem(last=False)
            self._homeless_records -= len(dropped)
            self.lost += len(dropped)

    # -- statements ----------------------------------------------------------------------------------------------------------------

    def _text(
        self,
        session: _Session,
        name: _Name,
        span: bytes,
        begin: int,
        end: int,
        time_ns: int,
        sequence: int,
        kind: int,
        flags: int,
        wall_us: int,
        told: list[Observation],
    ) -> None:
        begin_of_text = begin + layout.TEXT.size
        if begin_of_text > end:
            raise RingInvalid(f"a statement of {end - begin} bytes")
        statement, query_id, portal, location, length, command, text_bytes, what, chunk, skipped = layout.TEXT.unpack_from(
            span, begin
        )
        if begin_of_text + text_bytes > end:
            raise RingInvalid(f"a text of {text_bytes} bytes in a record of {end - begin}")
        text = span[begin_of_text : begin_of_text + text_bytes]
        whole = not flags & (layout.CUT | layout.UNREADABLE)
        if self._text_bytes + len(text) > self.settings.text_bytes_max:
            text, whole = b"", False
        self._text_bytes += len(text)
        if kind == layout.CHUNK:
            part = session.nested if what == layout.NESTED else session.open
            if part is None or part.sequence != statement:
                self._text_bytes -= len(text)
                return  # the text's beginning was lost
            if not whole or sequence != statement + chunk:
                part.whole = False
            part.text += text
        else:
            part = _Open(sequence, time_ns, what, query_id, location, length, command, skipped, text, whole, self._mark, portal)
            if what == layout.NESTED:
                session.nested = part
            else:
                self._leave(session, wall_us, told)
                session.open = part
                if self._left and what == layout.STATEMENT:
                    self._left.pop((name, portal), None)  # another portal stands there by now
        if what == layout.NESTED and not flags & layout.MORE:
            session.nested = None
            self._text_bytes -= len(part.text)
            told.append(self._statement(session, part, wall_us, rows=-1, sqlstate="", duration_ns=-1000, known=False))

    def _end(
        self, session: _Session, name: _Name, span: bytes, begin: int, end: int, wall_us: int, told: list[Observation]
    ) -> None:
        if end - begin < layout.ENDED.size:
            raise RingInvalid(f"an end of {end - begin} bytes")
        statement, duration_ns, rows, sqlstate, outcome, what = layout.ENDED.unpack_from(span, begin)
        running = session.open
        if running is None or running.sequence != statement:
            return  # its beginning is in a gap
        session.open = None
        self._text_bytes -= len(running.text)
        if running.what == layout.RESUMED:
            self._went_on(session, name, running, duration_ns, rows, sqlstate, outcome, wall_us, told)
            return
        if running.told:
            return
        if outcome == layout.SUSPENDED and what == layout.STATEMENT:
            running.duration_ns = duration_ns
            self._left[(name, running.portal)] = running
            if len(self._left) > self.settings.portals_max:
                self._left.popitem(last=False)
        known = outcome in (layout.OK, layout.ERROR)
        rows = rows if outcome == layout.OK and what == layout.STATEMENT and rows < 1 << 63 else -1
        told.append(
            self._statement(
                session, running, wall_us, rows=rows, sqlstate=_sqlstate(sqlstate), duration_ns=duration_ns, known=known
            )
        )

    def _went_on(
        self,
        session: _Session,
        name: _Name,
        piece: _Open,
        duration_ns: int,
        rows: int,
        sqlstate: int,
        outcome: int,
        wall_us: int,
        told: list[Observation],
    ) -> None:
        """A further piece of a portal: no execution of its own. With the last one the first is told again, as it ended."""
        self.resumed += 1
        began = self._left.get((name, piece.portal))
        if began is None:
            return  # before this reader, or its end is told
        began.duration_ns += duration_ns
        if outcome not in (layout.OK, layout.ERROR):
            return
        del self._left[(name, piece.portal)]
        given = piece.query_id  # rows, in the pieces before this one
        rows = given + rows if outcome == layout.OK and given + rows < 1 << 63 else -1
        told.append(
            self._statement(
                session, began, wall_us, rows=rows, sqlstate=_sqlstate(sqlstate), duration_ns=began.duration_ns, known=True
            )
        )

    def _leave(self, session: _Session, wall_us: int, told: list[Observation]) -> None:
        """A statement whose end never came: it was lost, or a walsender found that it is no command of its own."""
        running, session.open = session.open, None
        if running is None:
            return
        self._text_bytes -= len(running.text)
        if running.what not in (layout.REPLICATION, layout.RESUMED):
            told.append(self._statement(session, running, wall_us, rows=-1, sqlstate="", duration_ns=-1000, known=False))

    def _statement(
        self, session: _Session, ran: _Open, wall_us: int, *, rows: int, sqlstate: str, duration_ns: int, known: bool
    ) -> StatementObserved:
        text = _own_text(ran)
        is_call = ran.what == layout.FUNCTION_CALL
        return StatementObserved(  # by place: half the time of names
            ran.at_ns // 1000 + wall_us,
            self.witness,
            self.server,
            session.session_id,
            ran.sequence,
            _SOURCES.get(ran.what, "statement"),
            f"function {ran.command}" if is_call else text.decode("utf-8", "replace"),
            len(text) if ran.whole else len(text) + 1,
            digest(text) if ran.whole and not is_call else "",
            ran.query_id - (1 << 64) if ran.query_id >= 1 << 63 else ran.query_id,  # as PostgreSQL shows it
            rows,
            sqlstate,
            duration_ns // 1000,
            session.user,
            session.database,
            session.client,
            known,
        )

    def _end_of(self, session: _Session, name: _Name, time_ns: int, wall_us: int, told: list[Observation]) -> None:
        self._leave(session, wall_us, told)
        self._tell_gaps(wall_us, told)
        self._forget(name)
        self._over[name] = session.expected
        if len(self._over) > self.settings.sessions_max:
            self._over.popitem(last=False)
        told.append(SessionUnobserved(time_ns // 1000 + wall_us, self.witness, self.server, session.session_id))

    def _forget(self, name: _Name) -> None:
        session = self._sessions.pop(name)
        for left in [left for left in self._left if left[0] == name]:
            del self._left[left]
        for part in (session.open, session.nested):
            if part is not None:
                self._text_bytes -= len(part.text)

    # -- what is missing -----------------------------------------------------------------------------------------------------------

    def _miss(self, name: _Name, session: _Session, records: int, time_ns: int) -> None:
        if not session.lost:
            session.lost_from_ns = session.seen_ns or time_ns
        session.lost += records
        session.lost_until_ns = time_ns
        self.lost += records
        self._gaps[name] = session

    def _tell_gaps(self, wall_us: int, told: list[Observation]) -> None:
        for session in self._gaps.values():
            begin, end = session.lost_from_ns // 1000 + wall_us, session.lost_until_ns // 1000 + wall_us
            told.append(
                ObservationGap(end, self.witness, self.server, session.session_id, begin, end, session.lost, "the ring was full")
            )
            session.lost = 0
        self._gaps.clear()


_SOURCES: Final = {layout.NESTED: "nested", layout.FUNCTION_CALL: "function call", layout.REPLICATION: "replication"}


def split(span: bytes) -> Iterator[bytes]:
    """The records of a piece of the ring. Raises RingInvalid, as `places`."""
    return (span[begin:end] for begin, end in places(span))


def places(span: bytes) -> Iterator[tuple[int, int]]:
    """Where each record of a piece of the ring begins and ends, as the kernel lays them out.

    Raises:
        RingInvalid: A length leads beyond the end, or a record is still being written.
    """
    at, end = 0, len(span)
    while at < end:
        if at + layout.RING_HEADER.size > end:
            raise RingInvalid("a header is cut short")
        length, _ = layout.RING_HEADER.unpack_from(span, at)
        begin = at + layout.RING_HEADER.size
        if length > layout.RING_LENGTH:  # a flag
            if length & layout.RING_BUSY:
                raise RingInvalid("a record is still being written")
            length &= layout.RING_LENGTH
            discarded = True
        else:
            discarded = False
        at = begin + (length + 7 & ~7)
        if at > end:
            raise RingInvalid(f"a record of {length} bytes leads beyond the end")
        if not discarded:
            yield begin, begin + length


def header(record: bytes) -> tuple[int, int, int, int, int, int]:
    """Raises RingInvalid."""
    if len(record) < layout.HEADER.size:
        raise RingInvalid(f"a record of {len(record)} bytes")
    return layout.HEADER.unpack_from(record)


def _own_text(ran: _Open) -> bytes:
    """Of this statement: the whole message where it is the only one in it, else its own piece, from its first token on."""
    text = ran.text
    if ran.what == layout.STATEMENT:
        if ran.skipped:
            return text[_blank(text) :]
        end = ran.location + ran.length
        if ran.length <= 0 or ran.location < 0 or _blank(text, end) >= len(text):
            return text
        return text[ran.location + _blank(text[ran.location : end]) : end]
    if ran.what == layout.FAILED and ran.location > 0:  # what ran before it in this message
        rest = _blank(text, ran.location)
        return text if rest >= len(text) else text[rest:]
    if ran.what == layout.NESTED and ran.location >= 0 and ran.length > 0:
        piece = text[ran.location : ran.location + ran.length]
        return piece[_blank(piece) :]
    return text


def _blank(text: bytes, at: int = 0) -> int:
    """Where blanks, semicolons and comments from `at` on end."""
    if at >= len(text):
        return len(text)
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _ends(record: bytes) -> tuple[str, str]:
    """Local and remote, as address:port; "local" for a unix socket."""
    family, local_port, remote_port, local, remote = layout.PEER.unpack_from(record, layout.PEER_AT)
    if family == _AF_INET:
        return (
            f"{ipaddress.IPv4Address(local[:4])}:{local_port}",
            f"{ipaddress.IPv4Address(remote[:4])}:{remote_port}",
        )
    if family == _AF_INET6:
        return _end6(local, local_port), _end6(remote, remote_port)
    return "local", "local" if family == _AF_UNIX else ""


def _end6(address: bytes, port: int) -> str:
    parsed = ipaddress.IPv6Address(address)
    return f"{parsed.ipv4_mapped}:{port}" if parsed.ipv4_mapped else f"[{parsed}]:{port}"


def _process(record: bytes) -> _Process:
    start_ns, cgroup, _, pid, uid, comm, exe = layout.PROCESS.unpack_from(record, layout.PROCESS_AT)
    if not pid:
        return _NOBODY
    if not start_ns:
        return _Process(pid, 0, -1, "", 0)
    parts = [_text(exe[at : at + layout.PATH_PART]) for at in range(0, len(exe), layout.PATH_PART)]
    path = "/" + "/".join(reversed([part for part in parts if part])) if parts[0] else _text(comm)
    return _Process(pid, start_ns, uid, path if not parts[-1] else f"...{path}", cgroup)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _sqlstate(packed: int) -> str:
    """elog.h, MAKE_SQLSTATE."""
    if not packed or packed >= 1 << 30:
        return ""
    return "".join([chr((packed >> 6 * place & 0x3F) + 48) for place in range(5)])
