"""What is under way on one connection: requests in the order in which they were sent, and which of them an answer belongs to.

State is taken from the server's answers only, since what the server makes of a pipeline (what it skips after an error, which Sync
it ignores during COPY) cannot be known beforehand. Manual 54.2.2 to 54.2.4, 54.2.6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
COPY_END: Final = 8
REFUSED: Final = 9  # stands for a message of the extended protocol that was replaced by one that fails
REFUSED_QUERY: Final = 10

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


@dataclass(slots=True, eq=False)
class Portal(Generic[Text]):
    text: Text
    parameters: tuple[str | None, ...] = ()
    bytes_in: int = 0
    suspended: Execution[Text] | None = None  # ran up to its row limit; the next Execute goes on with it


@dataclass(slots=True, eq=False)
class Entry(Generic[Text]):
    kind: int
    name: bytes = b""
    text: Text | None = None
    portal: Portal[Text] | None = None
    executions: list[Execution[Text]] = field(default_factory=list)
    done: int = 0  # of `executions`
    refusal: bytes = b""  # the ErrorResponse that the client gets instead of the server's
    mark: bytes = b""  # stands in the server's own error


Finished: TypeAlias = Callable[[Execution[Text], Outcome, str, str], None]
"""Execution, outcome, SQLSTATE, CommandComplete tag."""


class Tracker(Generic[Text]):
    """`sent_*` as requests are forwarded, `received_*` as answers come; `finished` is called once for each execution."""

    def __init__(self, finished: Finished[Text]) -> None:
        self._finished = finished
        self._pending: deque[Entry[Text]] = deque()
        self._committed: dict[bytes, Text] = {}
        self.statements: dict[bytes, Text] = {}  # as they will stand once all that was sent has succeeded
        self.portals: dict[bytes, Portal[Text]] = {}
        self.transaction: TransactionStatus = "I"
        self.copying_in = False
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

    # -- what was sent ---------------------------------------------------------------------------------------------------------

    def _push(self, entry: Entry[Text]) -> None:
        if self._skipping:
            self._skip(entry)
        else:
            self._pending.append(entry)

    def sent_query(self, executions: list[Execution[Text]]) -> None:
        self._push(Entry(QUERY, executions=executions))

    def sent_parse(self, name: bytes, text: Text) -> None:
        if not self._skipping:
            self.statements[name] = text
        self._push(Entry(PARSE, name=name, text=text))

    def sent_bind(self, name: bytes, portal: Portal[Text]) -> None:
        if not self._skipping:
            self._drop_portal(name)
            self.portals[name] = portal
        self._push(Entry(BIND, name=name, portal=portal))

    def sent_describe(self) -> None:
        self._push(Entry(DESCRIBE))

    def sent_execute(self, execution: Execution[Text], portal: Portal[Text]) -> None:
        self._push(Entry(EXECUTE, portal=portal, executions=[execution]))

    def sent_close_statement(self, name: bytes) -> None:
        if not self._skipping:
            self.statements.pop(name, None)
        self._push(Entry(CLOSE, name=b"S" + name))

    def sent_close_portal(self, name: bytes) -> None:
        if not self._skipping:
            self._drop_portal(name)
        self._push(Entry(CLOSE, name=b"P" + name))

    def sent_sync(self) -> None:
        if self.copying_in:
            return  # manual 54.2.6: the server ignores Flush and Sync during COPY IN
        self._skipping = False
        self._pending.append(Entry(SYNC))

    def sent_copy_end(self) -> None:
        if self.copying_in:
            self.copying_in = False
        elif self._pending and not self._skipping:
            self._pending.append(Entry(COPY_END))

    def sent_refusal(self, refusal: bytes, mark: bytes, *, extended: bool) -> None:
        self._push(Entry(REFUSED if extended else REFUSED_QUERY, refusal=refusal, mark=mark))

    # -- what was received -----------------------------------------------------------------------------------------------------

    def _head(self, *kinds: int) -> Entry[Text]:
        """The first request, which must be one of `kinds`. A Sync that the server ignored, and the end of a COPY, are passed by."""
        while self._pending and self._pending[0].kind not in kinds and self._pending[0].kind in (SYNC, COPY_END):
            self._pending.popleft()
        if not self._pending or self._pending[0].kind not in kinds:
            raise TrackLost("an answer came that no request asked for")
        return self._pending[0]

    def received_parse_complete(self) -> None:
        entry = self._head(PARSE)
        self._pending.popleft()
        if entry.text is not None:
            self._committed[entry.name] = entry.text

    def received_bind_complete(self) -> None:
        self._head(BIND)
        self._pending.popleft()

    def received_close_complete(self) -> None:
        entry = self._head(CLOSE)
        self._pending.popleft()
        if entry.name[:1] == b"S":
            self._committed.pop(entry.name[1:], None)

    def received_description(self) -> None:
        """RowDescription or NoData. In the simple protocol a RowDescription goes before the rows and answers nothing."""
        if self._head(DESCRIBE, QUERY, EXECUTE).kind == DESCRIBE:
            self._pending.popleft()

    def received_complete(self, tag: str) -> Text | None:
        """CommandComplete or EmptyQueryResponse. Return the statement that is complete."""
        entry = self._head(EXECUTE, QUERY)
        self.copying_in = False
        if entry.done >= len(entry.executions):
            raise TrackLost("more commands were completed than were sent")
        execution = entry.executions[entry.done]
        entry.done += 1
        if entry.kind == EXECUTE:
            self._pending.popleft()
            if entry.portal is not None:
                entry.portal.suspended = None
        self._finished(execution, "ok", "", tag)
        return execution.text

    def received_portal_suspended(self) -> None:
        entry = self._head(EXECUTE)
        self._pending.popleft()
        if entry.portal is not None:
            entry.portal.suspended = entry.executions[0]

    def received_copy_in(self) -> None:
        self._head(EXECUTE, QUERY)
        self.copying_in = True
        kept: list[Entry[Text]] = [self._pending.popleft()]
        while self._pending and self._pending[0].kind in (SYNC, COPY_END):
            if self._pending.popleft().kind == COPY_END:
                self.copying_in = False  # all of the data was sent before the server asked for it
                break
        self._pending.extendleft(reversed(kept))

    def received_error(self, sqlstate: str, body: bytes) -> bytes:
        """Return the ErrorResponse to send in the place of this one; empty: the server's own goes on."""
        self.copying_in = False
        for entry in self._pending:
            if entry.kind in (SYNC, COPY_END):
                continue
            if entry.mark and entry.mark in body:
                while self._pending[0] is not entry:
                    self._pending.popleft()  # Syncs that the server ignored
            break
        if not self._pending:
            return b""
        head = self._pending[0]
        if head.kind in (QUERY, REFUSED_QUERY):
            self._fail(head, sqlstate)
            self._restore()
            return head.refusal
        if head.kind == SYNC:  # the implicit commit failed; ReadyForQuery follows
            self._restore()
            return b""
        self._fail(self._pending.popleft(), sqlstate)
        # An Execute whose own Parse or Bind failed did not run either, but the error is its own, not an earlier one's.
        failed = head.text if head.kind == PARSE else (head.portal.text if head.kind == BIND and head.portal is not None else None)
        while self._pending and self._pending[0].kind != SYNC:
            entry = self._pending.popleft()
            if failed is not None and entry.kind == EXECUTE and entry.executions[0].text is failed:
                self._fail(entry, sqlstate)
                failed = None
            else:
                self._skip(entry)
        self._skipping = not self._pending
        self._restore()
        return head.refusal

    def received_ready_for_query(self, status: TransactionStatus) -> None:
        self.copying_in = False
        while self._pending:
            entry = self._pending.popleft()
            self._skip(entry)
            if entry.kind in (SYNC, QUERY, REFUSED_QUERY):
                break
        self.transaction = status
        if status == "I":
            self._forget_portals()

    def created_statement(self, name: bytes, text: Text) -> None:
        """By SQL's PREPARE, which shares its names with the protocol's Parse."""
        self._committed[name] = self.statements[name] = text

    def dropped_statement(self, name: bytes | None) -> None:
        """By SQL's DEALLOCATE or DISCARD; None for all."""
        for names in (self._committed, self.statements):
            if name is None:
                names.clear()
            else:
                names.pop(name, None)
        for entry in self._pending:
            if entry.kind == PARSE and entry.text is not None:
                self.statements[entry.name] = entry.text

    def lost(self) -> None:
        """The connection is gone: what had no answer never gets one."""
        for portal in self.portals.values():
            if portal.suspended is not None:
                self._finished(portal.suspended, "suspended", "", "")
                portal.suspended = None
        while self._pending:
            entry = self._pending.popleft()
            for execution in entry.executions[entry.done :]:
                self._finished(execution, "unknown", "", "")
            entry.done = len(entry.executions)

    # -- both ------------------------------------------------------------------------------------------------------------------

    def _fail(self, entry: Entry[Text], sqlstate: str) -> None:
        if entry.done < len(entry.executions):
            execution = entry.executions[entry.done]
            entry.done += 1
            if entry.portal is not None:
                entry.portal.suspended = None
            self._finished(execution, "error", sqlstate, "")
        self._skip(entry)

    def _skip(self, entry: Entry[Text]) -> None:
        for execution in entry.executions[entry.done :]:
            if entry.portal is not None and entry.portal.suspended is execution:
                continue  # ran before; its portal tells its end
            self._finished(execution, "skipped", "", "")
        entry.done = len(entry.executions)

    def _restore(self) -> None:
        """After an error: prepared statements are those that the server confirmed, and those still to be answered."""
        self.statements = dict(self._committed)
        for entry in self._pending:
            if entry.kind == PARSE and entry.text is not None:
                self.statements[entry.name] = entry.text
            elif entry.kind == CLOSE and entry.name[:1] == b"S":
                self.statements.pop(entry.name[1:], None)
        self._forget_portals()

    def _forget_portals(self) -> None:
        """Portals end with their transaction; those of requests still to be answered are to come."""
        coming = {entry.name: entry.portal for entry in self._pending if entry.kind == BIND and entry.portal is not None}
        for name in list(self.portals):
            if name not in coming:
                self._drop_portal(name)
        self.portals.update(coming)

    def _drop_portal(self, name: bytes) -> None:
        portal = self.portals.pop(name, None)
        if portal is not None and portal.suspended is not None:
            suspended, portal.suspended = portal.suspended, None
            self._finished(suspended, "suspended", "", "")
