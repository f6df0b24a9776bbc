"""What is under way on one connection: requests in the order in which they were sent, and which of them an answer belongs to.

State is taken from the server's answers only, since what the server makes of a pipeline (what it skips after an error) cannot be
known beforehand. What depends on an answer still to come is `unsettled`, and whoever sends waits for it. Manual 54.2.2 to 54.2.4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from ingest.events import Outcome

Text = TypeVar("Text")

PARSE: Final = 1
BIND: Final = 2
DESCRIBE: Final = 3
EXECUTE: Final = 4
CLOSE: Final = 5
SYNC: Final = 6
QUERY: Final = 7
REFUSED: Final = 8  # stands for a message of the extended protocol that was replaced by one that fails
REFUSED_QUERY: Final = 9

TransactionStatus: TypeAlias = Literal["I", "T", "E"]


class TrackLost(Exception):
    """The server answered something that no request asked for. What runs is no longer known: the session must end."""


@dataclass(slots=True, eq=False)
class Execution(Generic[Text]):
    """One run of one statement. Times are monotonic microseconds."""

    number: int
    text: Text
    started_us: int
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    ended: bool = False


@dataclass(slots=True, eq=False)
class Portal(Generic[Text]):
    text: Text
    parameters: tuple[str | None, ...] = ()
    bytes_in: int = 0
    execution: Execution[Text] | None = None  # the latest; until it has ended, each further Execute goes on with it


@dataclass(slots=True, eq=False)
class Entry(Generic[Text]):
    kind: int
    name: bytes = b""
    text: Text | None = None
    portal: Portal[Text] | None = None
    executions: list[Execution[Text]] = field(default_factory=list)
    done: int = 0  # of `executions`
    refusal: bytes = b""  # the ErrorResponse that the client gets instead of the server's
    touches: tuple[bytes, ...] = ()  # names, as in `Tracker.unsettled`, that mean something else once this has succeeded


Finished: TypeAlias = Callable[[Execution[Text], Outcome, str, str], None]
"""Execution, outcome, SQLSTATE, CommandComplete tag."""

ALL_STATEMENTS: Final = b"S*"  # of `touches`; a name's own ends with a NUL there


def statement_key(name: bytes) -> bytes:
    return b"S" + name + b"\0"


def portal_key(name: bytes) -> bytes:
    return b"P" + name + b"\0"


@dataclass(slots=True)
class _Touched:
    """What is pending for one name."""

    count: int = 0
    segment: int = 0  # of the last of it
    kind: int = 0


class Tracker(Generic[Text]):
    """`sent_*` as requests are forwarded, `received_*` as answers come; `finished` is called once for each execution."""

    def __init__(self, finished: Finished[Text]) -> None:
        self._finished = finished
        self._pending: deque[Entry[Text]] = deque()
        self._committed: dict[bytes, Text] = {}
        self._committed_portals: dict[bytes, Portal[Text]] = {}
        self.statements: dict[bytes, Text] = {}  # as they will stand once all that was sent has succeeded
        self.portals: dict[bytes, Portal[Text]] = {}  # likewise
        self._suspended: dict[int, Execution[Text]] = {}  # ran up to their row limit, by number
        self._segment = 0  # counts Syncs: after an error the server passes over the rest of a segment
        self._touched: dict[bytes, _Touched] = {}  # by what is pending
        self.transaction: TransactionStatus = "I"
        self.copying_in = False
        self._copy: Entry[Text] | None = None  # a request that begins a COPY FROM STDIN as soon as the server comes to it
        self._skipping = False  # the server passes over everything up to a Sync that was not sent yet

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def running(self) -> Execution[Text] | None:
        """The execution that the server works on, as far as its answers tell."""
        for entry in self._pending:
            if entry.done < len(entry.executions):
                return entry.executions[entry.done]
        return None

    def under_way(self) -> Iterator[Text]:
        """What the server has been sent and has not answered: it may run now, or as soon as it comes to it."""
        for entry in self._pending:
            if entry.text is not None:
                yield entry.text
            if entry.kind == BIND and entry.portal is not None:
                yield entry.portal.text
            for execution in entry.executions[entry.done :]:
                yield execution.text

    @property
    def at_sync(self) -> bool:
        """Whether an error that came now would be the implicit commit's."""
        return bool(self._pending) and self._pending[0].kind == SYNC

    def failing(self) -> tuple[Text | None, ...]:
        """The execution that an error would end now; (None,) if all of its message were completed, () if it executes nothing."""
        if not self._pending or not self._pending[0].executions:
            return ()
        head = self._pending[0]
        return (head.executions[head.done].text if head.done < len(head.executions) else None,)

    @property
    def copy_is_coming(self) -> bool:
        """Whether a COPY FROM STDIN was sent and not begun: what a Sync sent now will be to the server, nobody knows."""
        return self._copy is not None

    def unsettled(self, key: bytes) -> Literal["", "soon", "this segment"]:
        """Whether an answer still to come decides what the server will find under this name.

        `soon`: wait for it, or the record may name one statement where the server runs another. `this segment`: it may come only
        after the client's Sync, so waiting would be for ever.
        """
        if not self._touched:
            return ""
        for touched in (self._touched.get(key), self._touched.get(ALL_STATEMENTS) if key[:1] == b"S" else None):
            # What Parse, Bind and Close do in this segment is settled: if they fail, what follows is passed over.
            if touched is None or (touched.segment == self._segment and touched.kind in (PARSE, BIND, CLOSE)):
                continue
            if touched.count == 1 and touched.kind in (PARSE, BIND) and not self._confirmed(key):
                continue  # the name means this or nothing
            return "this segment" if touched.segment == self._segment and touched.kind == EXECUTE else "soon"
        return ""

    def _confirmed(self, key: bytes) -> bool:
        return key[1:-1] in (self._committed if key[:1] == b"S" else self._committed_portals)

    # -- what was sent ---------------------------------------------------------------------------------------------------------

    def _push(self, entry: Entry[Text]) -> None:
        if self._skipping:
            self._skip(entry)
            return
        self._pending.append(entry)
        for key in entry.touches:
            touched = self._touched.get(key)
            if touched is None:
                touched = self._touched[key] = _Touched()
            touched.count += 1
            touched.segment, touched.kind = self._segment, entry.kind

    def _next(self) -> Entry[Text]:
        entry = self._pending.popleft()
        if entry is self._copy:
            self._copy = None
        for key in entry.touches:
            touched = self._touched[key]
            touched.count -= 1
            if not touched.count:
                del self._touched[key]
        return entry

    def sent_query(self, executions: list[Execution[Text]], touches: tuple[bytes, ...] = (), *, copies_in: bool = False) -> None:
        self._push(entry := Entry(QUERY, executions=executions, touches=touches))
        if copies_in and not self._skipping:
            self._copy = entry

    def sent_parse(self, name: bytes, text: Text) -> None:
        if not self._skipping:
            self.statements[name] = text
        self._push(Entry(PARSE, name=name, text=text, touches=(statement_key(name),)))

    def sent_bind(self, name: bytes, portal: Portal[Text]) -> None:
        if not self._skipping:
            self.portals[name] = portal
        self._push(Entry(BIND, name=name, portal=portal, touches=(portal_key(name),)))

    def sent_describe(self) -> None:
        self._push(Entry(DESCRIBE))

    def sent_execute(
        self, execution: Execution[Text], portal: Portal[Text], touches: tuple[bytes, ...] = (), *, copies_in: bool = False
    ) -> None:
        portal.execution = execution
        self._push(entry := Entry(EXECUTE, executions=[execution], touches=touches))
        if copies_in and not self._skipping:
            self._copy = entry

    def sent_close_statement(self, name: bytes) -> None:
        if not self._skipping:
            self.statements.pop(name, None)
        self._push(Entry(CLOSE, name=b"S" + name, touches=(statement_key(name),)))

    def sent_close_portal(self, name: bytes) -> None:
        if not self._skipping:
            self.portals.pop(name, None)
        self._push(Entry(CLOSE, name=b"P" + name, touches=(portal_key(name),)))

    def sent_sync(self) -> None:
        """Not to be called while `copying_in`: the server would ignore it (manual 54.2.6)."""
        self._skipping = False
        self._segment += 1
        self._pending.append(Entry(SYNC))

    def sent_copy_end(self) -> None:
        """CopyDone or CopyFail; outside COPY the server passes over either."""
        if self.copying_in:
            self.copying_in = False
            if self._pending and len(self._pending[0].executions) > 1:
                self._copy = self._pending[0]  # the next statement of the string may be a COPY too

    def sent_refusal(self, refusal: bytes, *, extended: bool) -> None:
        self._push(Entry(REFUSED if extended else REFUSED_QUERY, refusal=refusal))

    # -- what was received -----------------------------------------------------------------------------------------------------

    def _head(self, *kinds: int) -> Entry[Text]:
        """The first request, which must be one of `kinds`."""
        if not self._pending or self._pending[0].kind not in kinds:
            raise TrackLost("an answer came that no request asked for")
        return self._pending[0]

    def received_parse_complete(self) -> None:
        entry = self._head(PARSE)
        self._next()
        if entry.text is not None:
            self._committed[entry.name] = entry.text

    def received_bind_complete(self) -> None:
        entry = self._head(BIND)
        self._next()
        self._end_portal(entry.name)
        if entry.portal is not None:
            self._committed_portals[entry.name] = entry.portal

    def received_close_complete(self) -> None:
        entry = self._head(CLOSE)
        self._next()
        if entry.name[:1] == b"S":
            self._committed.pop(entry.name[1:], None)
        else:
            self._end_portal(entry.name[1:])

    def received_description(self) -> None:
        """RowDescription or NoData. In the simple protocol a RowDescription goes before the rows and answers nothing."""
        if self._head(DESCRIBE, QUERY, EXECUTE).kind == DESCRIBE:
            self._next()

    def received_complete(self, tag: str) -> Text | None:
        """CommandComplete or EmptyQueryResponse. Return the statement that is complete."""
        entry = self._head(EXECUTE, QUERY)
        self.copying_in = False
        if entry.done >= len(entry.executions):
            raise TrackLost("more commands were completed than were sent")
        execution = entry.executions[entry.done]
        entry.done += 1
        if entry.kind == EXECUTE:
            self._next()
        self._end(execution, "ok", "", tag)
        return execution.text

    def received_portal_suspended(self) -> None:
        entry = self._head(EXECUTE)
        self._next()
        execution = entry.executions[0]
        if not execution.ended:
            self._suspended[execution.number] = execution

    def received_copy_in(self) -> None:
        self._head(EXECUTE, QUERY)
        self.copying_in = True
        self._copy = None

    def received_error(self, sqlstate: str) -> bytes:
        """Return the ErrorResponse to send in the place of this one; empty: the server's own goes on."""
        self.copying_in = False
        if not self._pending:
            return b""
        head = self._pending[0]
        if head.kind in (QUERY, REFUSED_QUERY):
            self._fail(head, sqlstate)
            return head.refusal
        if head.kind == SYNC:  # the implicit commit failed; ReadyForQuery follows
            return b""
        self._next()
        self._fail(head, sqlstate)
        self._revert(head)
        # An Execute whose own Parse or Bind failed did not run either, but the error is its own, not an earlier one's.
        failed = head.text if head.kind == PARSE else (head.portal.text if head.kind == BIND and head.portal is not None else None)
        while self._pending and self._pending[0].kind != SYNC:
            entry = self._next()
            if failed is not None and entry.kind == EXECUTE and entry.executions[0].text is failed:
                self._fail(entry, sqlstate)
                failed = None
            else:
                self._skip(entry)
            self._revert(entry)
        self._skipping = not self._pending
        return head.refusal

    def received_ready_for_query(self, status: TransactionStatus) -> None:
        self.copying_in = False
        while self._pending:
            entry = self._next()
            self._skip(entry)
            self._revert(entry)
            if entry.kind in (SYNC, QUERY, REFUSED_QUERY):
                break
        else:
            raise TrackLost("the server is ready for a query that nobody asked for")
        self.transaction = status
        if status == "I":  # portals end with their transaction
            self._committed_portals.clear()
            for name in [name for name in self.portals if portal_key(name) not in self._touched]:
                del self.portals[name]
            for execution in list(self._suspended.values()):
                self._end(execution, "suspended", "", "")

    def created_statement(self, name: bytes, text: Text) -> None:
        """By SQL's PREPARE, which shares its names with the protocol's Parse."""
        self._committed[name] = text
        if statement_key(name) not in self._touched:
            self.statements[name] = text

    def dropped_statement(self, name: bytes | None) -> None:
        """By SQL's DEALLOCATE or DISCARD; None for all."""
        for gone in list(self._committed) if name is None else (name,):
            self._committed.pop(gone, None)
            if statement_key(gone) not in self._touched:
                self.statements.pop(gone, None)

    def lost(self) -> None:
        """The connection is gone: what had no answer never gets one."""
        while self._pending:
            entry = self._next()
            for execution in entry.executions[entry.done :]:
                self._end(execution, "unknown", "", "")
        for execution in list(self._suspended.values()):
            self._end(execution, "suspended", "", "")

    # -- both ------------------------------------------------------------------------------------------------------------------

    def _end(self, execution: Execution[Text], outcome: Outcome, sqlstate: str, tag: str) -> None:
        """Once: several Executes may go on with the same portal."""
        if not execution.ended:
            execution.ended = True
            self._suspended.pop(execution.number, None)
            self._finished(execution, outcome, sqlstate, tag)

    def _fail(self, entry: Entry[Text], sqlstate: str) -> None:
        if entry.done < len(entry.executions):
            execution = entry.executions[entry.done]
            entry.done += 1
            self._end(execution, "error", sqlstate, "")
        self._skip(entry)

    def _skip(self, entry: Entry[Text]) -> None:
        for execution in entry.executions[entry.done :]:
            if execution.number not in self._suspended:  # else it ran before, and its portal tells its end
                self._end(execution, "skipped", "", "")
        entry.done = len(entry.executions)

    def _end_portal(self, name: bytes) -> None:
        portal = self._committed_portals.pop(name, None)
        if portal is not None and portal.execution is not None and portal.execution.number in self._suspended:
            self._end(portal.execution, "suspended", "", "")

    def _revert(self, entry: Entry[Text]) -> None:
        """What was not done: the names mean again what the server confirmed, unless something later is pending for them."""
        for key in entry.touches:
            if key == ALL_STATEMENTS:
                for name in self.statements.keys() | self._committed.keys():
                    self._revert_name(statement_key(name))
            else:
                self._revert_name(key)

    def _revert_name(self, key: bytes) -> None:
        name = key[1:-1]
        if key in self._touched:
            return
        if key[:1] == b"P":
            portal = self._committed_portals.get(name)
            if portal is None:
                self.portals.pop(name, None)
            else:
                self.portals[name] = portal
        elif name in self._committed:
            self.statements[name] = self._committed[name]
        else:
            self.statements.pop(name, None)
