"""One client's conversation after its login, without I/O: bytes in, commands out, in the order in which they must happen.

A client's message becomes a statement, the statement a decision, the decision an event, and only then do the bytes go on.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.pace import Pace
from gateway.settings import BEFORE_FORWARDING, Durability, GatewaySettings
from gateway.wire import messages
from gateway.wire.messages import FIRST_USER_OID, NAME_LOOKUP_TYPES, Error, ProtocolViolation, c_string
from gateway.wire.tracker import ALL_STATEMENTS, Execution, Portal, Tracker, TrackLost, portal_key, statement_key
from identity.scope import Allow, Authority, Deny, decide
from ingest.collectors.collector import digest
from ingest.events import (
    Outcome,
    OutcomeResolved,
    StatementDefined,
    StatementDenied,
    StatementEvent,
    StatementFinished,
    StatementParameters,
    StatementStarted,
)
from ingest.sql import Script, Statement, Unparsable, relation_names

# -- commands: what the conversation asks of its shell -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Take this fact. `urgent` ones are wanted on disk now, the others within the recorder's linger."""

    event: StatementEvent
    urgent: bool


@dataclass(frozen=True, slots=True)
class ToServer:
    """Forward, and if `held` only once every fact recorded before is on disk. What follows waits behind it.

    `settles`: it may end a transaction, and goes once every StatementFinished recorded before is on disk. Else a crash could leave
    a record in which that transaction never ended, and what was committed would pass for aborted (gateway/outcomes.py).
    """

    data: bytes
    held: bool
    settles: bool = False


@dataclass(frozen=True, slots=True)
class ToClient:
    data: bytes
    held: bool


@dataclass(frozen=True, slots=True)
class Analyze:
    """Parse this long text elsewhere, call `analyzed`, and read nothing more from the client until then."""

    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """The conversation cannot go on: send this error, if any, and end both sides."""

    error: Error | None
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Something got round the gateway: end the backend and prove it."""

    cause: str
    reason: str


Command: TypeAlias = Record | ToServer | ToClient | Analyze | Close | Kill


@dataclass(slots=True, eq=False)
class KnownText:
    """A text of this session, numbered, with the verdict on it and the epoch of the authority that gave it."""

    number: int
    statement: Statement | None  # None where one verdict stands for a whole string that is refused
    verdict: Allow | Deny
    epoch: int


@dataclass(slots=True, eq=False)
class KnownScript:
    """A query string of this session and its statements, each with its number."""

    whole: KnownText  # of one statement: the same as its only part
    parts: tuple[KnownText, ...]
    fingerprint: str
    defined: bool = False
    whole_defined: bool = False


# Frontend message types, manual 54.7
_QUERY: Final = ord("Q")
_PARSE: Final = ord("P")
_BIND: Final = ord("B")
_DESCRIBE: Final = ord("D")
_EXECUTE: Final = ord("E")
_CLOSE: Final = ord("C")
_SYNC: Final = ord("S")
_FLUSH: Final = ord("H")
_COPY_DATA: Final = ord("d")
_COPY_DONE: Final = ord("c")
_COPY_FAIL: Final = ord("f")
_FUNCTION_CALL: Final = ord("F")
_TERMINATE: Final = ord("X")

# Backend message types. Of the first four the bodies matter here; all others are passed on by their headers alone
_COMMAND_COMPLETE: Final = ord("C")
_ERROR_RESPONSE: Final = ord("E")
_READY_FOR_QUERY: Final = ord("Z")
_PARAMETER_STATUS: Final = ord("S")
_WHOLE: Final = frozenset(b"CEZS")
_DATA_ROW: Final = ord("D")
_PARSE_COMPLETE: Final = ord("1")
_BIND_COMPLETE: Final = ord("2")
_CLOSE_COMPLETE: Final = ord("3")
_DESCRIPTIONS: Final = frozenset(b"Tn")  # RowDescription, NoData
_EMPTY_QUERY_RESPONSE: Final = ord("I")
_PORTAL_SUSPENDED: Final = ord("s")
_COPY_IN_RESPONSE: Final = ord("G")
_COPY_BOTH_RESPONSE: Final = ord("W")
_AUTHENTICATION: Final = frozenset(b"RKv")  # and BackendKeyData, NegotiateProtocolVersion
_SERVER_BODY_MAX: Final = 2**20  # of those that are read whole
_TAG_BYTES_MAX: Final = 64  # COMPLETION_TAG_BUFSIZE
_ERROR_FRONT: Final = 512  # bytes of a longer ErrorResponse that hold its severity and SQLSTATE, which come first (elog.c)

_ENDS: Final = frozenset({"commit", "rollback"})  # of Statement.transaction: an explicit transaction is over after these
# What runs within the transaction around it, whatever it is: none of these commits by itself, as VACUUM, CALL or ALTER TABLE ...
# DETACH PARTITION CONCURRENTLY may.
_WITHIN: Final = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "MOVE", "TRUNCATE", "CREATE TABLE", "CREATE TABLE AS"}
)

_header: Final = struct.Struct("!BI").unpack_from  # type and length, manual 54.7
_BIND_NAMES_MAX: Final = 5 + 2 * 64
_PACED: Final = frozenset(b"QE")  # what runs something
_SMALL: Final = frozenset(b"DECHSXcf")  # everything but what carries a text, values or rows
_FRONTEND: Final = frozenset(b"QPBDECHSXFdcf")  # what may come after login; a later protocol's additions could carry SQL


class Session:
    """Feed it both directions; carry out the commands in order. One instance a client connection."""

    def __init__(
        self,
        authority: Authority,
        epoch: int,
        durability: Durability,
        settings: GatewaySettings,
        analyze: Callable[[str], Script | Unparsable | None],
        callable_names: Callable[[], frozenset[str]],
        watched: dict[str, str],
    ) -> None:
        """`analyze` returns None for a text that is too long to parse here. `watched`: session parameters that must not change."""
        self._authority = authority
        self._epoch = epoch
        self._durability = durability
        self._waits_before = durability in BEFORE_FORWARDING
        self._settings = settings
        self._analyze = analyze
        self._callable_names = callable_names
        self._watched = watched
        self.hold = ""  # why no statement of this agent is let through, in a sentence for it; "" when they are
        self.paced_until_us = 0  # monotonic: a statement waits for its turn until then; 0 = none does
        self._pace: Pace | None = None
        self.recording_reason = ""  # why no statement can be recorded now; "" when all is well
        self.tracker: Tracker[KnownText] = Tracker(self._finished)
        self.executions = 0
        self.denied = 0
        self.unrecorded = 0  # statements refused because they could not be recorded
        self.closed = False
        self.waits = False  # nothing more is taken from the client before the server has answered something
        self._scripts: dict[str, KnownScript] = {}
        self._scripts_bytes = 0
        self._texts = 0
        self._refusals = 0
        self._refused = False  # the client's messages are dropped up to its Sync
        self._commands: list[Command] = []
        self._out: list[bytes] = []
        self._hold = False
        self._settles = False
        self._unfinished = 0  # executions begun whose end is not recorded
        self._undoable: deque[int] = deque(maxlen=settings.pipeline_max)  # ok so far, in an implicit transaction that goes on
        self._explicit = False  # since the last ReadyForQuery a BEGIN was completed
        self._ended = False  # since the last ReadyForQuery something that ends an explicit transaction was done
        self._unknown: list[int] = []
        self._now_us = 0
        self._mono_us = 0
        self._from_client = b""
        self._client_skip = 0  # bytes of a message that is passed on as it comes
        self._client_drop = 0  # bytes of a message that is dropped as it comes
        self._stalled = ""  # the text that is being parsed elsewhere
        self._analyzed: dict[str, Script | Unparsable] = {}
        self._from_server = b""
        self._server_skip = 0
        self._syncs_kept = 0  # that came during COPY, where the server would ignore them
        self._waited_for = False  # what is being read from the server brings what must not be seen before its record is on disk
        self._lost = False  # the server's answers can be followed no more
        self._narrowed = False  # the authority allows less than an earlier one of this session
        self._cursors: dict[str, list[KnownText]] = {}  # what DECLARE may have made of each name
        self._listens: dict[str, KnownText] = {}  # by channel: what the server goes on to tell of it

    # -- authority -------------------------------------------------------------------------------------------------------------

    def authorize(self, authority: Authority, epoch: int) -> str:
        """From now on statements are held against this authority; what was prepared before is decided anew when it is used.

        Return why the session cannot go on, "" when it can: what the server has of it already, or does for it unasked, is no longer
        allowed, and cannot be taken back one by one (docs/adr/0007).
        """
        narrower = not set(self._authority.grants) <= set(authority.grants)
        self._authority = authority
        self._epoch = epoch
        self._forget_scripts()
        if not narrower:
            return ""
        self._narrowed = True
        for known in (*self.tracker.under_way(), *self._listens.values()):
            refusal = self._redecided(known) or self._fetch(known.statement)
            if refusal is not None:
                return refusal.reason
        return ""

    @property
    def state(self) -> str:
        if self.tracker.busy:
            return "active"
        return "idle" if self.tracker.transaction == "I" else "in transaction"

    # -- client to server ------------------------------------------------------------------------------------------------------

    def from_client(self, data: bytes, now_us: int, mono_us: int) -> list[Command]:
        self._now_us, self._mono_us = now_us, mono_us
        commands: list[Command] = []
        self._commands = commands
        if self.closed:
            return commands
        self._from_client = self._from_client + data if self._from_client else data
        if not self._stalled and not self.waits:
            self._go_on()
        return commands

    def _go_on(self) -> None:
        try:
            self._read_client()
        except ProtocolViolation as violation:
            self._flush_to_server()
            self._end(Error("08P01", f"protocol violation: {violation}", fatal=True), "protocol")

    def analyzed(self, script: Script | Unparsable, now_us: int, mono_us: int) -> list[Command]:
        """The answer to Analyze."""
        if self._stalled:
            self._analyzed[self._stalled] = script
            self._stalled = ""
        return self.from_client(b"", now_us, mono_us)

    def _read_client(self) -> None:
        buffer = self._from_client
        size = len(buffer)
        at = 0  # everything before it is done
        start = 0  # everything from here to `at` is to be forwarded as it stands
        settings = self._settings
        tracker = self.tracker
        while at < size:
            if self._client_skip:
                step = min(self._client_skip, size - at)
                self._client_skip -= step
                at += step
                continue
            if self._client_drop:
                step = min(self._client_drop, size - at)
                self._client_drop -= step
                self._take(buffer, start, at)
                at += step
                start = at
                continue
            if size - at < 5:
                break
            if tracker.copy_is_coming or len(tracker) >= settings.pipeline_max:
                self.waits = True
                break
            kind, length = _header(buffer, at)
            wrong = ""
            if length < 4 or length > settings.message_bytes_max:
                wrong = f"message of type {chr(kind)!a} has an impossible length"
            elif kind not in _FRONTEND:
                wrong = f"message type {chr(kind)!a} is not known here"
            elif kind in _SMALL and length > settings.control_bytes_max:
                wrong = f"message of type {chr(kind)!a} is longer than {settings.control_bytes_max} bytes"
            if wrong:
                self._take(buffer, start, at)  # what came before it was decided and recorded
                raise ProtocolViolation(wrong)
            end = at + 1 + length

            if kind == _COPY_DATA:
                execution = self.tracker.running()
                if execution is not None:
                    execution.bytes_in += length - 4
                if self._refused:
                    self._client_drop = end - at
                else:
                    self._client_skip = end - at
                continue

            if kind in (_QUERY, _PARSE) and length > settings.statement_bytes_max + 4096:
                self._take(buffer, start, at)
                start = at
                if not self._refused:
                    limit = f"a statement may have {settings.statement_bytes_max} bytes at most: send it in parts"
                    self._replace(self._denied_text("", length, Deny("54000", "limit", limit)), extended=kind == _PARSE)
                self._client_drop = end - at
                continue

            if kind == _BIND and self._refused:
                self._client_drop = end - at
                continue

            if kind == _BIND:
                # The names stand at the front; the values may be as large as Postgres allows and are not kept.
                wanted = (
                    end
                    if settings.parameters and length <= settings.parameters_recorded_bytes_max
                    else min(end, at + _BIND_NAMES_MAX)
                )
                if size < wanted:
                    break
                try:
                    refusal = self._bind(buffer[at + 5 : wanted], length)
                except ProtocolViolation:
                    self._take(buffer, start, at)
                    raise
                if self.waits:
                    break
                if refusal is not None:
                    self._take(buffer, start, at)
                    start = at
                    self._replace(refusal, extended=True)
                    self._client_drop = end - at
                elif end > size:
                    self._client_skip = end - at
                else:
                    at = end
                continue

            if kind == _FUNCTION_CALL:
                self._take(buffer, start, at)
                start = at
                if not self._refused:
                    fast_path = "function calls by the fast path carry no SQL text and are refused: call the function with SELECT"
                    self._replace(self._denied_text("", length, Deny("42501", "fast path", fast_path)), extended=False)
                self._client_drop = end - at
                continue

            if end > size:
                break
            if kind == _SYNC:
                self._refused = False
                if tracker.copying_in:  # manual 54.2.6: ignored there. If the COPY fails first it counts, and then it is sent
                    self._syncs_kept += 1
                    self._take(buffer, start, at)
                    start = end
                else:
                    tracker.sent_sync()
            elif kind == _FLUSH:
                pass
            elif kind == _TERMINATE:
                self._take(buffer, start, end)
                self._flush_to_server()
                self._end(None, "client")
                return
            elif self._refused:
                # The server would pass over it up to the next Sync: what was not decided never reaches it.
                self._take(buffer, start, at)
                start = end
                at = end
                continue
            else:
                if self._pace is not None and kind in _PACED and not self._is_its_turn(self._pace):
                    break
                body = buffer[at + 5 : end]
                try:
                    verdict = self._decided(kind, body)
                except ProtocolViolation:
                    self._take(buffer, start, at)
                    raise
                if verdict is None:
                    break
                if kind in _PACED:
                    self.paced_until_us = 0
                if isinstance(verdict, Deny):
                    self._take(buffer, start, at)
                    start = end
                    self._replace(verdict, extended=kind != _QUERY)
            at = end
        self._take(buffer, start, at)
        self._from_client = buffer[at:]
        self._flush_to_server()

    def _is_its_turn(self, pace: Pace) -> bool:
        """The message that stands next keeps its turn until it was decided: it may have to wait for other things too."""
        self.paced_until_us = self.paced_until_us or pace.slot(self._mono_us)
        return self._mono_us >= self.paced_until_us

    def restrain(self, hold: str, pace: Pace | None) -> None:
        """From now on. Whoever waits for a pace that is no more goes on with `resume`."""
        self.hold = hold
        self._pace = pace
        if pace is None:
            self.paced_until_us = 0

    def resume(self, now_us: int, mono_us: int) -> list[Command]:
        """The turn of the statement that waits has come."""
        return self.from_client(b"", now_us, mono_us)

    def _decided(self, kind: int, body: bytes) -> bool | Deny | None:
        """True: forward it. Deny: recorded, replace it. None: come again once `analyzed` was called, or `waits` is over."""
        if kind == _QUERY:
            return self._query(body)
        if kind == _PARSE:
            return self._parse(body)
        if kind == _EXECUTE:
            return self._execute(body)
        if kind == _DESCRIBE:
            return self._describe(body)
        if kind == _CLOSE:
            name, _ = c_string(body, 1)
            if body[:1] == b"S":
                self.tracker.sent_close_statement(name)
            elif body[:1] == b"P":
                self.tracker.sent_close_portal(name)
            else:
                raise ProtocolViolation("malformed Close")
            return True
        if kind in (_COPY_DONE, _COPY_FAIL):
            self.tracker.sent_copy_end()
            self._syncs_kept = 0
            return True
        raise ProtocolViolation(f"message type {chr(kind)!a} is not known here")

    def _query(self, body: bytes) -> bool | Deny | None:
        text = _text(body[:-1]) if body[-1:] == b"\0" and b"\0" not in body[:-1] else None
        if text is None:
            raise ProtocolViolation("a Query holds one string, in UTF-8, with one zero byte at its end")
        known = self._known(text)
        if known is None:
            return None
        refusal = self._barred(known.parts) or (known.whole.verdict if isinstance(known.whole.verdict, Deny) else None)
        declared: set[str] = set()  # in this very string: if one of these names is taken already, nothing behind it runs
        for part in known.parts:
            if part.statement is not None and part.statement.declares:
                declared.add(part.statement.declares)
            if part.statement is None or part.statement.fetches not in declared:
                refusal = refusal or self._fetch(part.statement)
        if refusal is not None:
            return self._denied_text(text, len(body) - 1, refusal, known)
        self._define(known, text)
        for part in known.parts:
            self._opens(part)
        self.tracker.sent_query(
            [self._started(part) for part in known.parts],
            tuple(key for part in known.parts for key in _touches(part.statement)),
            copies_in=any(part.statement is not None and part.statement.copies_in for part in known.parts),
        )
        return True

    def _fetch(self, statement: Statement | None) -> Deny | None:
        """FETCH and MOVE run what their cursor was declared for: whether that may run now is asked each time."""
        if statement is None:
            return None
        if statement.declares and sum(map(len, self._cursors.values())) >= self._settings.prepared_max:
            return Deny("54000", "limit", f"a transaction may declare {self._settings.prepared_max} cursors: end it first")
        if not statement.fetches:
            return None
        if statement.fetches.encode("utf-8") in self.tracker.portals:  # the server's log and ours would name the FETCH alone
            return Deny("0A000", "portal", "FETCH is for cursors that DECLARE made: run a portal with Execute")
        if statement.verb not in ("FETCH", "MOVE"):
            return None
        declared = self._cursors.get(statement.fetches)
        if declared is None and self._narrowed:  # a function made it, under whatever authority was there then
            return Deny("42501", "cursor", "a grant was narrowed since this session began, and this cursor may be older: reconnect")
        return next((refusal for known in declared or () if (refusal := self._redecided(known)) is not None), None)

    def _opens(self, known: KnownText) -> None:
        """What is about to be forwarded makes something that later statements, or none at all, use."""
        statement = known.statement
        if statement is None:
            return
        if statement.declares:
            declared = self._cursors.setdefault(statement.declares, [])
            if known not in declared:
                declared.append(known)
        elif statement.verb == "LISTEN":
            for channel in statement.channels:
                self._listens[channel] = known

    def _parse(self, body: bytes) -> bool | Deny | None:
        name, at = c_string(body, 0)
        text_bytes, at = c_string(body, at)
        text = _text(text_bytes)
        if text is None:
            raise ProtocolViolation("the text of a Parse is not UTF-8")
        if len(name) > self._settings.name_bytes_max:
            limit = f"a prepared statement's name may have {self._settings.name_bytes_max} bytes at most"
            return self._denied(Deny("42622", "limit", limit), 0)
        if name not in self.tracker.statements and len(self.tracker.statements) >= self._settings.prepared_max:
            limit = f"a session may hold {self._settings.prepared_max} prepared statements: close some"
            return self._denied(Deny("54000", "limit", limit), 0)
        known = self._known(text)
        if known is None:
            return None
        refusal = self._barred(known.parts) or (known.whole.verdict if isinstance(known.whole.verdict, Deny) else None)
        if refusal is None and len(known.parts) > 1:
            refusal = Deny("42601", "one statement", "cannot insert multiple commands into a prepared statement")
        if refusal is None:
            refusal = self._declared_types(messages.parameter_types(body, at))
        if refusal is not None:
            return self._denied_text(text, len(text_bytes), refusal, known)
        self._define(known, text)
        self.tracker.sent_parse(name, known.parts[0])
        return True

    def _declared_types(self, types: tuple[int, ...]) -> Deny | None:
        """A parameter declared as regclass tells by its error whether a name exists; one of a domain runs the domain's check."""
        if any(grant.scope.introspection for grant in self._authority.grants):
            return None
        if any(oid in NAME_LOOKUP_TYPES or oid >= FIRST_USER_OID for oid in types):
            reason = "a parameter may be declared with a type that PostgreSQL brings, and regclass and its kin need introspection"
            return Deny("42501", "parameter type", reason)
        return None

    def _bind(self, front: bytes, length: int) -> Deny | None:
        portal_name, at = c_string(front, 0)
        statement_name, at = c_string(front, at)
        unsettled = self.tracker.unsettled(statement_key(statement_name))
        if unsettled == "soon":
            self.waits = True
            return None
        if unsettled:
            by_sql = "SQL changes this statement's name earlier in the pipeline: send a Sync in between"
            return self._denied(Deny("0A000", "prepared statement", by_sql), 0)
        known = self.tracker.statements.get(statement_name)
        if known is None:
            return self._denied(_no_such_statement(statement_name), 0)
        if portal_name not in self.tracker.portals and len(self.tracker.portals) >= self._settings.prepared_max:
            limit = f"a session may hold {self._settings.prepared_max} portals: close some"
            return self._denied(Deny("54000", "limit", limit), known.number)
        if len(portal_name) > self._settings.name_bytes_max:
            limit = f"a portal's name may have {self._settings.name_bytes_max} bytes at most"
            return self._denied(Deny("42622", "limit", limit), known.number)
        refusal = self._redecided(known)
        if refusal is not None:
            return self._denied(refusal, known.number)
        values: tuple[str | None, ...] = ()
        if self._settings.parameters and length <= self._settings.parameters_recorded_bytes_max:
            values = messages.bind_parameters(front, at)
        self.tracker.sent_bind(portal_name, Portal(known, values, length - 4 - at))
        return None

    def _describe(self, body: bytes) -> bool | Deny:
        name = body[1:-1]
        known: KnownText | None = None
        if body[:1] == b"S":
            known = self.tracker.statements.get(name)
            if known is None:
                return self._denied(_no_such_statement(name), 0)
        elif (portal := self.tracker.portals.get(name)) is not None:
            known = portal.text
        if known is not None and (refusal := self._redecided(known)) is not None:
            return self._denied(refusal, known.number)
        self.tracker.sent_describe()
        return True

    def _execute(self, body: bytes) -> bool | Deny | None:
        name, _ = c_string(body, 0)
        if self.tracker.unsettled(portal_key(name)):
            self.waits = True
            return None
        portal = self.tracker.portals.get(name)
        if portal is None:
            missing = "the portal does not exist: bind it first; use FETCH for a cursor that SQL declared"
            return self._denied(Deny("34000", "portal", missing), 0)
        statement = portal.text.statement
        refusal = self._barred((portal.text,)) or self._redecided(portal.text) or self._fetch(statement)
        if refusal is not None:
            return self._denied(refusal, portal.text.number)
        self._opens(portal.text)
        if portal.execution is not None and not portal.execution.ended:
            execution = portal.execution
        else:
            execution = self._started(portal.text, portal.execution.number if portal.execution is not None else 0)
            execution.bytes_in += portal.bytes_in
            if portal.parameters:
                self._record(StatementParameters(execution.number, portal.parameters), urgent=False)
        self.tracker.sent_execute(execution, portal, _touches(statement), copies_in=statement is not None and statement.copies_in)
        return True

    def _redecided(self, known: KnownText) -> Deny | None:
        """A verdict holds for the authority that gave it; a grant may have been narrowed since."""
        if known.epoch != self._epoch and known.statement is not None:
            known.verdict = self._decide(known.statement)
            known.epoch = self._epoch
        return known.verdict if isinstance(known.verdict, Deny) else None

    def _barred(self, texts: Sequence[KnownText]) -> Deny | None:
        """Whatever its grants are. What is held back may still take back what it did: a ROLLBACK goes through."""
        if (unrecordable := self._unrecordable()) is not None:
            return unrecordable
        if self.hold and not all(known.statement is not None and known.statement.transaction == "rollback" for known in texts):
            return Deny("42501", "held", self.hold)
        return None

    def _unrecordable(self) -> Deny | None:
        if not self.recording_reason:
            return None
        self.unrecorded += 1
        reason = f"statements cannot be recorded now ({self.recording_reason}), so none is forwarded: try again later"
        return Deny("58030", "no audit, no query", reason)

    # -- decisions and records -------------------------------------------------------------------------------------------------

    def _known(self, text: str) -> KnownScript | None:
        known = self._scripts.get(text)
        if known is not None:
            return known
        script = self._analyzed.pop(text, None) or self._analyze(text)
        if script is None:
            self._stalled = text
            self._commands.append(Analyze(text))
            return None
        if len(self._scripts) >= self._settings.session_texts_max or self._scripts_bytes > self._settings.session_texts_bytes_max:
            self._forget_scripts()
        known = self._judged(script, text)
        by_name = any(part.statement is not None and part.statement.executes for part in known.parts)
        if len(text) <= self._settings.script_cached_bytes_max and not by_name:  # a name may stand for another statement next time
            self._scripts[text] = known
            self._scripts_bytes += len(text)
        return known

    def _forget_scripts(self) -> None:
        self._scripts.clear()
        self._scripts_bytes = 0

    def _judged(self, script: Script | Unparsable, text: str) -> KnownScript:
        if isinstance(script, Unparsable):
            self._texts += 1
            verdict = Deny(script.sqlstate, "parse", script.message)
            return KnownScript(KnownText(self._texts, None, verdict, self._epoch), (), "")
        if len(script.statements) > self._settings.script_statements_max:
            self._texts += 1
            limit = f"a text may hold {self._settings.script_statements_max} statements at most: send it in parts"
            return KnownScript(KnownText(self._texts, None, Deny("54000", "limit", limit), self._epoch), (), script.fingerprint)
        parts: list[KnownText] = []
        refused: Deny | None = None
        for statement in script.statements:
            judged = self._decide(statement)
            self._texts += 1
            parts.append(KnownText(self._texts, statement, judged, self._epoch))
            if isinstance(judged, Deny) and refused is None:
                refused = judged
        if not parts:  # an empty query is a statement too: it asks for an answer
            self._texts += 1
            parts.append(KnownText(self._texts, None, Allow("empty", ()), self._epoch))
        if len(parts) == 1:
            return KnownScript(parts[0], tuple(parts), script.fingerprint)
        self._texts += 1
        return KnownScript(KnownText(self._texts, None, refused or parts[0].verdict, self._epoch), tuple(parts), script.fingerprint)

    def _decide(self, statement: Statement) -> Allow | Deny:
        prepared: dict[str, Statement] = {}
        if statement.executes:
            found = self.tracker.statements.get(statement.executes.encode("utf-8"))
            if found is not None and found.statement is not None:
                prepared[statement.executes] = found.statement
        return decide(statement, self._authority, prepared, self._callable_names())

    def _record(self, event: StatementEvent, *, urgent: bool) -> None:
        self._commands.append(Record(event, urgent))

    def _define(self, known: KnownScript, text: str) -> None:
        if known.defined:
            return
        known.defined = known.whole_defined = True
        encoded = text.encode("utf-8")
        for part in known.parts:
            if part.statement is None or len(known.parts) == 1:
                self._define_text(part.number, text, len(encoded), part.statement, known.fingerprint)
            else:
                piece = encoded[part.statement.start : part.statement.end]
                text_of_part = piece.decode("utf-8", "replace")
                self._define_text(part.number, text_of_part, len(piece), part.statement, known.fingerprint, digest(encoded))

    def _define_text(
        self, number: int, text: str, text_bytes: int, statement: Statement | None, fingerprint: str, whole: str = ""
    ) -> None:
        full = self._settings.statement_text == "full"
        self._record(
            StatementDefined(
                number,
                text if full else "",
                self._settings.statement_text,
                text_bytes,
                fingerprint,
                (statement.verb,) if statement is not None else (),
                relation_names(statement) if statement is not None else (),
                tuple(f"{name.schema}.{name.name}" if name.schema else name.name for name in statement.functions)
                if statement is not None
                else (),
                statement is not None and (statement.unbounded or statement.verb == "TRUNCATE"),
                digest(text.encode("utf-8")) if text or not text_bytes else "",
                whole,
            ),
            urgent=False,
        )

    def _started(self, known: KnownText, continues: int = 0) -> Execution[KnownText]:
        self.executions += 1
        rule = known.verdict.rule
        ends = known.statement is not None and known.statement.transaction in _ENDS
        at_once = self._waits_before or (ends and self._unfinished > 0 and self._durability != "fast")
        self._record(StatementStarted(self._now_us, self.executions, known.number, rule, continues), urgent=at_once)
        self._hold = self._hold or at_once
        self._settles = self._settles or ends
        self._unfinished += 1
        return Execution(self.executions, known, self._mono_us)

    def _finished(self, execution: Execution[KnownText], outcome: Outcome, sqlstate: str, tag: str) -> None:
        self._record(
            StatementFinished(
                execution.number,
                outcome,
                sqlstate,
                tag,
                max(messages.rows_of_tag(tag), execution.rows),  # a portal run in pieces tells its last piece only
                execution.bytes_in,
                execution.bytes_out,
                max(0, self._mono_us - execution.started_us),
            ),
            urgent=self._durability != "fast",
        )
        self._unfinished -= 1
        if outcome != "skipped" and execution.text.statement is not None and execution.text.statement.transaction in _ENDS:
            self._ended = True
        if outcome == "unknown":
            self._unknown.append(execution.number)
        elif outcome == "ok" and self.tracker.transaction == "I":
            self._went_well(execution)

    def _went_well(self, execution: Execution[KnownText]) -> None:
        """Outside BEGIN ... COMMIT, what was completed can still be undone by an error before the next ReadyForQuery."""
        statement = execution.text.statement
        if statement is None:
            return
        if statement.transaction == "begin":
            self._explicit = True
        elif statement.transaction in _ENDS:
            self._explicit = False
        elif statement.verb in _WITHIN:
            if not self._explicit:
                self._undoable.append(execution.number)
            return
        self._undoable.clear()

    def _undo(self, cause: str, sqlstate: str) -> None:
        """Record that what was completed in this implicit transaction was undone."""
        for number in self._undoable:
            evidence = f"its implicit transaction was undone by {cause} ({sqlstate}) before the next ReadyForQuery"
            self._record(OutcomeResolved(self._now_us, number, "aborted", evidence), urgent=self._durability != "fast")
        self._undoable.clear()

    # -- refusals --------------------------------------------------------------------------------------------------------------

    def _denied_text(self, text: str, text_bytes: int, deny: Deny, known: KnownScript | None = None) -> Deny:
        if known is None:
            self._texts += 1
            self._define_text(self._texts, text, text_bytes, None, "")
            return self._denied(deny, self._texts)
        if not known.whole_defined:
            known.whole_defined = True
            self._define_text(known.whole.number, text, text_bytes, known.whole.statement, known.fingerprint)
        return self._denied(deny, known.whole.number)

    def _denied(self, deny: Deny, statement: int) -> Deny:
        """Record the refusal; `statement` 0 where no text is known."""
        self.executions += 1
        self.denied += 1
        self._record(
            StatementDenied(self._now_us, self.executions, statement, deny.sqlstate, deny.rule, deny.reason),
            urgent=self._durability != "fast",
        )
        self._hold = self._hold or self._waits_before
        return deny

    def _replace(self, deny: Deny, *, extended: bool) -> None:
        """Put a message in its place that fails by itself, so that the server's idea of the transaction stays the only one.

        The server's syntax error is replaced by the refusal on its way back.
        """
        self._refusals += 1
        mark = f"pgwarden_refused_{self._refusals}"
        self._out.append(messages.parse(mark, mark) if extended else messages.query(mark))
        response = messages.error_response(Error(deny.sqlstate, deny.reason))
        self.tracker.sent_refusal(response, extended=extended)
        self._refused = extended

    # -- output ----------------------------------------------------------------------------------------------------------------

    def _take(self, buffer: bytes, start: int, end: int) -> None:
        if end > start:
            self._out.append(buffer if start == 0 and end == len(buffer) else buffer[start:end])

    def _flush_to_server(self) -> None:
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._commands.append(ToServer(data, self._hold, self._settles and self._durability != "fast"))
        self._hold = self._settles = False

    def _end(self, error: Error | None, reason: str) -> None:
        self.closed = True
        self._commands.append(Close(error, reason))

    # -- server to client ------------------------------------------------------------------------------------------------------

    def from_server(self, data: bytes, now_us: int, mono_us: int) -> list[Command]:
        self._now_us, self._mono_us = now_us, mono_us
        commands: list[Command] = []
        self._commands = commands
        if self._lost:
            return commands
        buffer = self._from_server + data if self._from_server else data
        out: list[bytes] = []
        self._waited_for = False
        try:
            at = self._read_server(buffer, out)
        except (TrackLost, ProtocolViolation) as lost:
            self.closed = self._lost = True
            commands.append(Kill("track lost", f"the server's answer could not be followed: {lost}"))
            return commands
        self._from_server = buffer[at:]
        if out:
            # In `group` an answer waits for the record of what it answers, rows for the record that they were asked for, and a
            # refusal for its own: attempts must not be losable. One write for all that came together.
            held = self._durability != "fast" and (self._waited_for or any(isinstance(command, Record) for command in commands))
            commands.append(ToClient(out[0] if len(out) == 1 else b"".join(out), held))
        if self.waits and not self.closed:
            self.waits = False
            self._go_on()
        return commands

    def at_message_boundary(self) -> bool:
        """Whether an ErrorResponse may be put into the stream towards the client here."""
        return not self._server_skip

    def server_lost(self, now_us: int, mono_us: int) -> list[Command]:
        """No more answers will come."""
        self._now_us, self._mono_us = now_us, mono_us
        commands: list[Command] = []
        self._commands = commands
        self.closed = True
        # Without a COMMIT behind it, a transaction ends with its connection, and ends undone. What a COMMIT that was answered left
        # behind it in its pipeline or string runs in a transaction of its own, which may have been committed.
        undone = (
            self.tracker.transaction != "I"
            and not self._ended
            and not any(known.statement is not None and known.statement.transaction in _ENDS for known in self.tracker.under_way())
        )
        self.tracker.lost()
        if undone:
            evidence = "its connection was lost inside an explicit transaction, and nothing that ends one had been forwarded"
            for number in self._unknown:
                self._record(OutcomeResolved(now_us, number, "aborted", evidence), urgent=self._durability != "fast")
        self._unknown.clear()
        return commands

    def _read_server(self, buffer: bytes, out: list[bytes]) -> int:
        size = len(buffer)
        at = 0
        start = 0
        rows = 0
        row_bytes = 0
        tracker = self.tracker
        while at < size:
            if self._server_skip:
                step = min(self._server_skip, size - at)
                self._server_skip -= step
                at += step
                continue
            if size - at < 5:
                break
            kind, length = _header(buffer, at)
            if length < 4:
                raise ProtocolViolation("the server sent an impossible length")
            end = at + 1 + length
            if kind == _DATA_ROW:
                rows += 1
                row_bytes += length
                if end > size:
                    self._server_skip = end - at
                else:
                    at = end
                continue
            if kind == _COPY_DATA:
                row_bytes += length
                self._server_skip = end - at
                continue
            if rows or row_bytes:
                self._count(rows, row_bytes)
                rows = row_bytes = 0
            if kind not in _WHOLE:
                self._received(kind)
                if end > size:
                    self._server_skip = end - at
                else:
                    at = end
                continue
            if length > _SERVER_BODY_MAX:
                if kind != _ERROR_RESPONSE:
                    raise ProtocolViolation("the server sent an oversized control message")
                if size - at < _ERROR_FRONT:  # a value that it quotes makes it long; what matters stands before the message
                    break
                self._failed(buffer[at + 5 : at + _ERROR_FRONT])
                self._server_skip = end - at
                continue
            if end > size:
                break
            if kind == _COMMAND_COMPLETE:
                self._completed(tracker.received_complete(buffer[at + 5 : end - 1][:_TAG_BYTES_MAX].decode("ascii", "replace")))
            elif kind == _READY_FOR_QUERY:
                status = buffer[at + 5 : at + 6]
                if status == b"I":
                    tracker.received_ready_for_query("I")
                elif status == b"T":
                    tracker.received_ready_for_query("T")
                elif status == b"E":
                    tracker.received_ready_for_query("E")
                else:
                    raise ProtocolViolation("the server sent an unknown transaction status")
                self._undoable.clear()
                self._explicit = self._ended = False
                if status == b"I" and self._cursors and not tracker.busy:  # none outlives its transaction: WITH HOLD is refused
                    self._cursors.clear()
            elif kind == _ERROR_RESPONSE:
                replacement = self._failed(buffer[at + 5 : end])
                if replacement:
                    if at > start:
                        out.append(buffer[start:at])
                    out.append(replacement)
                    start = end
            else:
                self._watch(buffer[at + 5 : end])
            at = end
        if rows or row_bytes:
            self._count(rows, row_bytes)
        if at > start:
            out.append(buffer[start:at] if start or at < size else buffer)
        return at

    def _failed(self, body: bytes) -> bytes:
        """What the client gets instead; empty: the server's own error."""
        sqlstate = messages.sqlstate_of(body)
        undone = "" if messages.is_fatal(body) else self._undone_by(sqlstate)
        replacement = self.tracker.received_error(sqlstate)
        if undone:
            self._undo(undone, sqlstate)
        for _ in range(self._syncs_kept):
            self.tracker.sent_sync()
            self._commands.append(ToServer(messages.SYNC, False))
        self._syncs_kept = 0
        if not replacement or messages.is_fatal(body):
            return b""
        self._waited_for = True
        return replacement

    def _undone_by(self, sqlstate: str) -> str:
        """What it was that failed, if it is certain that it undid the implicit transaction around it; else ""."""
        if not self._undoable:
            return ""
        if self.tracker.at_sync:  # a cancellation may come when the commit is done; what a deferred constraint says cannot
            return "the commit at Sync" if sqlstate[:2] != "57" else ""
        for failing in self.tracker.failing():
            if failing is None or failing.statement is None or failing.statement.verb not in _WITHIN:
                return ""
        return "an error"

    def _count(self, rows: int, row_bytes: int) -> None:
        self._waited_for = True
        execution = self.tracker.running()
        if execution is not None:
            execution.rows += rows
            execution.bytes_out += row_bytes

    def _received(self, kind: int) -> None:
        tracker = self.tracker
        if kind == _PARSE_COMPLETE:
            tracker.received_parse_complete()
        elif kind == _BIND_COMPLETE:
            tracker.received_bind_complete()
        elif kind == _CLOSE_COMPLETE:
            tracker.received_close_complete()
        elif kind in _DESCRIPTIONS:
            tracker.received_description()
        elif kind == _EMPTY_QUERY_RESPONSE:
            tracker.received_complete("")
        elif kind == _PORTAL_SUSPENDED:
            tracker.received_portal_suspended()
        elif kind == _COPY_IN_RESPONSE:
            tracker.received_copy_in()
        elif kind == _COPY_BOTH_RESPONSE:
            raise ProtocolViolation("the server began replication")
        elif kind in _AUTHENTICATION:
            raise ProtocolViolation("the server authenticates again")
        # HtNAdc and what a later protocol adds: passed on, nothing to follow

    def _completed(self, known: KnownText | None) -> None:
        """SQL's own PREPARE, DEALLOCATE and DISCARD change the names that the protocol's Bind uses."""
        statement = known.statement if known is not None else None
        if known is None or statement is None:
            return
        if statement.declares:  # what the name stood for before it stands for no more
            declared = self._cursors.get(statement.declares, [])
            if known in declared:
                del declared[: declared.index(known)]
        elif statement.prepares and statement.prepared is not None:
            inner = KnownText(known.number, statement.prepared, known.verdict, known.epoch)
            self.tracker.created_statement(statement.prepares.encode("utf-8"), inner)
        elif statement.deallocates:
            self.tracker.dropped_statement(None if statement.deallocates == "*" else statement.deallocates.encode("utf-8"))

    def _watch(self, body: bytes) -> None:
        name, _, value = body.partition(b"\0")
        parameter = name.decode("utf-8", "replace")
        expected = self._watched.get(parameter)
        found = value.rstrip(b"\0").decode("utf-8", "replace")
        if expected is not None and found != expected:
            self._commands.append(Kill("session changed", f"{parameter} of the session changed, which no allowed statement does"))


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _touches(statement: Statement | None) -> tuple[bytes, ...]:
    """The names of prepared statements that this statement changes by itself."""
    if statement is None:
        return ()
    if statement.prepares:
        return (statement_key(statement.prepares.encode("utf-8")),)
    if statement.deallocates == "*":
        return (ALL_STATEMENTS,)
    return (statement_key(statement.deallocates.encode("utf-8")),) if statement.deallocates else ()


def _no_such_statement(name: bytes) -> Deny:
    shown = name[:63].decode("ascii", "replace")
    return Deny("26000", "prepared statement", f'prepared statement "{shown}" does not exist')
