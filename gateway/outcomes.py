"""The events of one session go in; what it left open when its gateway went away comes out, and what is certain of each.

Nothing is guessed. What is claimed rests on three facts, of which the gateway makes the first (`session.ToServer.settles`): at the
levels `group`, `strict` and `replicated` nothing that may end a transaction is forwarded unless everything before it has its end on
disk, or it stands on disk itself. So a transaction whose end is not in the record never got one. The second: PostgreSQL undoes a
transaction whose connection ends before it. The third: in a failed transaction it executes nothing up to a ROLLBACK.

What ran outside BEGIN ... COMMIT commits by a Sync, which is not recorded: it stays unknown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from ingest.events import (
    Outcome,
    OutcomeResolved,
    Resolution,
    StatementDefined,
    StatementDenied,
    StatementEvent,
    StatementFinished,
    StatementParameters,
    StatementStarted,
)

CERTAIN: Final = frozenset({"group", "strict", "replicated"})
"""The levels at which the first fact holds. At `fast` a COMMIT may have been forwarded that no disk has seen."""

STATEMENTS_MAX: Final = 65_536  # texts of one session that begin or end a transaction, remembered by number: a few megabytes
WAITING_MAX: Final = 100_000  # executions of one session behind one that has no end, as a portal left suspended; 20,000 in flight

Block: TypeAlias = Literal["none", "open", "failed"]
"""Of an explicit transaction, as far as it is certain: "none" also where it is not."""

_BEGIN_TAGS: Final = frozenset({"BEGIN", "START TRANSACTION"})
_TRANSACTION_VERBS: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "PREPARE TRANSACTION"})
_UNREAD: Final = "?"  # the text is not known, so it may end a transaction
_ENDS: Final = frozenset({"COMMIT", "ROLLBACK", "PREPARE TRANSACTION", _UNREAD})


@dataclass(frozen=True, slots=True)
class Left:
    """An execution whose outcome nobody knows."""

    execution: int
    finished: bool  # StatementFinished(outcome="unknown") is recorded
    resolution: Resolution | None
    evidence: str  # "" without a resolution


@dataclass(slots=True, eq=False)
class _Step:
    execution: int
    verb: str  # "" for everything that neither begins nor ends a transaction
    outcome: Outcome | Literal["denied", ""] = ""  # "" = none yet
    tag: str = ""
    resolved: bool = False

    @property
    def known(self) -> bool:
        return self.outcome not in ("", "unknown")

    def end(self, outcome: Outcome | Literal[""], tag: str, resolved: bool) -> None:
        self.resolved = self.resolved or resolved
        if not self.outcome:  # the first end stands
            self.outcome, self.tag = outcome, tag


class SessionLedger:
    """Feed it the statement events of one session, from the first on, in the order of the log."""

    def __init__(self) -> None:
        self._verbs: dict[int, str] = {}  # of those texts that have to do with transactions
        self._unread_below = 0  # numbers up to here were forgotten
        self._block: Block = "none"  # after all that was settled
        self._begun_by = 0  # the execution that began it
        self._waiting: deque[_Step] = deque()  # from the first execution on whose end is not known
        self._next = 1
        self._scattered: dict[int, _Step] = {}  # those without an end, once something is missing
        self.whole = True  # nothing is missing from what was fed in

    @property
    def executions(self) -> int:
        return self._next - 1

    def apply(self, event: StatementEvent) -> None:
        match event:
            case StatementDefined():
                self._defined(event)
            case StatementStarted():
                self._begun(_Step(event.execution, self._verb(event.statement)))
            case StatementDenied():
                self._begun(_Step(event.execution, "", "denied"))
            case StatementFinished():
                self._ended(event.execution, outcome=event.outcome, tag=event.tag)
            case OutcomeResolved():
                self._ended(event.execution, resolved=True)
            case StatementParameters():
                pass

    def left(self, durability: str) -> tuple[Left, ...]:
        """What is open, and what is certain once the session's backend is gone."""
        certain = durability in CERTAIN
        block, begun_by = self._block, self._begun_by
        found: list[Left] = []
        in_this: list[int] = []  # indexes of `found` that a COMMIT further on would make doubtful
        for step in self._waiting if self.whole else self._scattered.values():
            if not step.known and not (step.outcome and step.resolved):
                left = Left(step.execution, step.outcome == "unknown", None, "")
                if certain and self.whole and not step.resolved and step.verb not in _ENDS and block != "none":
                    if block == "open":
                        in_this.append(len(found))
                        left = replace(left, resolution="aborted", evidence=_aborted(begun_by))
                    elif not step.verb:
                        left = replace(left, resolution="not executed", evidence=_NOT_EXECUTED.format(begun_by))
                found.append(left)
            if step.verb in _ENDS and step.verb != "ROLLBACK" and step.outcome != "skipped" and block == "open":
                for index in in_this:
                    found[index] = replace(found[index], resolution=None, evidence="")
            before, block = block, _after(block, step)
            if before == "none" and block == "open":
                begun_by = step.execution
            if block == "none":
                in_this.clear()
        return tuple(found)

    def _defined(self, event: StatementDefined) -> None:
        verb = event.verbs[0] if len(event.verbs) == 1 else ""
        if verb in _TRANSACTION_VERBS:
            self._verbs[event.statement] = verb
            if len(self._verbs) > STATEMENTS_MAX:
                self._verbs.clear()
                self._unread_below = event.statement + 1

    def _verb(self, statement: int) -> str:
        return self._verbs.get(statement, _UNREAD if statement < self._unread_below else "")

    def _begun(self, step: _Step) -> None:
        if step.execution < self._next:
            return  # recorded twice
        if step.execution > self._next or len(self._waiting) >= WAITING_MAX:
            self.lose()
        self._next = step.execution + 1
        if self.whole:
            self._waiting.append(step)
            if step.known:
                self._settle()
        elif not step.known:
            self._scattered[step.execution] = step

    def lose(self) -> None:
        """Something of this session may be missing: from here on nothing is certain of it."""
        if self.whole:
            self.whole = False
            self._scattered = {step.execution: step for step in self._waiting if not step.known}
            self._waiting.clear()

    def _ended(self, execution: int, *, outcome: Outcome | Literal[""] = "", tag: str = "", resolved: bool = False) -> None:
        if not self.whole:
            step = self._scattered.get(execution)
            if step is not None and outcome not in ("", "unknown"):
                del self._scattered[execution]
            elif step is not None:
                step.end(outcome, tag, resolved)
            return
        index = execution - self._waiting[0].execution if self._waiting else -1
        if 0 <= index < len(self._waiting):  # numbers have no hole, so they tell places
            self._waiting[index].end(outcome, tag, resolved)
            if not index:
                self._settle()

    def _settle(self) -> None:
        while self._waiting and self._waiting[0].known:
            step = self._waiting.popleft()
            if step.verb or step.outcome != "ok":
                before, self._block = self._block, _after(self._block, step)
                if before == "none" and self._block == "open":
                    self._begun_by = step.execution


def _after(block: Block, step: _Step) -> Block:
    """What is certain of the transaction after this step."""
    if step.verb in _ENDS:
        # AND CHAIN begins another one, which the record does not tell: less is claimed then than could be.
        return block if step.outcome == "skipped" else "none"
    if block == "none":
        return "open" if step.verb == "BEGIN" and step.outcome == "ok" and step.tag in _BEGIN_TAGS else "none"
    if step.verb == "ROLLBACK TO" and step.outcome not in ("error", "skipped"):
        return "open"
    # A refused message is replaced by one that fails (docs/adr/0001); what was skipped stands behind an error.
    return "failed" if step.outcome in ("error", "skipped", "denied") else block


def _aborted(begun_by: int) -> str:
    return f"it ran inside the transaction that execution {begun_by} began, which nothing had ended when its connection did"


_NOT_EXECUTED: Final = "it stands behind an error in the transaction that execution {} began, which executes nothing more"
