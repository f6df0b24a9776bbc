"""What a gateway recorded of a session, what a collector saw of it -> which belongs to which, and what has no counterpart.

Both come in the order in which the server worked. Heads that agree are taken off at once; where they do not, the cheapest
explanation of all that is settled is sought, in a window, by dynamic programming. Nothing is concluded from what may still come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

from ingest.collectors.collector import digest

WINDOW: Final = 64  # of each side; 4,096 cells take a few milliseconds, and only where the heads differ
_TAIL: Final = 16  # of a full window: what stands there may have its counterpart beyond it
_MARK: Final = "pgwarden_refused_"  # and a number: gateway/session.py puts it where a message was refused
REFUSED: Final = re.compile(_MARK + "[0-9]+")
_DIGITS_KNOWN: Final = 4  # of that number, where only a digest is known; one with more may be what it says

# What an explanation costs. A pair that differs in its outcome is likelier than one that ran unseen beside one that never ran.
_DIFFERS: Final = 60
_ALONE: Final = 80  # ran and is not recorded, or is recorded and did not run
_ERROR_UNSEEN: Final = 40
_NEVER_BEGAN: Final = 50  # an error of a text that was prepared here: its Parse or Bind failed, and there was nothing to execute
_MAY_BE_UNSEEN: Final = 1  # so that what was seen of it is its own, and not left over
_APART_MAX: Final = 6  # a pair whose times are not the same; clocks may differ, so it only decides between equals
_APART_US: Final = 5_000
_VAGUE: Final = 10  # matched by less than a digest


@dataclass(slots=True)
class Text:
    """A statement's text, as a session's record has it."""

    digest: str  # SHA-256 of it, 32 hex digits
    whole: str  # of the query string that it is a part of; "" where it is all of it
    start: str  # of the text, where the record has it
    text_bytes: int
    prepares: bool  # an SQL PREPARE: PostgreSQL tells of its executions under the text that it was prepared in


@dataclass(slots=True)
class Recorded:
    """One execution that was let through."""

    number: int
    statement: int
    started_us: int
    place: str
    runs: bool = True  # False: an empty query, which some collectors see, or a portal that goes on, which none does
    continues: bool = False
    outcome: str = ""  # "" while its end is not recorded
    sqlstate: str = ""
    rows: int = -1  # -1 where they cannot be compared
    ended_us: int = 0
    undone: bool = False  # by an error that came after its own end

    @property
    def over(self) -> bool:
        return bool(self.outcome)


@dataclass(slots=True)
class Observed:
    """One execution, or one query string of several, as a collector saw it."""

    sequence: int
    at_us: int
    seen_us: int
    place: str
    source: str
    digest: str  # "" where the text was cut
    start: str  # of the text, where it has one
    text_bytes: int
    rows: int
    sqlstate: str
    known: bool


@dataclass(frozen=True, slots=True)
class Pair:
    recorded: tuple[Recorded, ...]
    observed: Observed
    agrees: bool


@dataclass(frozen=True, slots=True)
class Unseen:
    """Recorded, and no collector's. `claimed`: it should have been seen."""

    recorded: Recorded
    claimed: bool


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """Observed, and not on record. `claimed`: it should be."""

    observed: Observed
    claimed: bool


Explained: TypeAlias = Pair | Unseen | Unrecorded


@dataclass(slots=True)  # one is made for each statement that comes, and frozen ones take four times as long to make
class Context:
    """What is known of the session beside the two lists."""

    texts: Mapping[int, Text]
    defined: Mapping[str, int]  # the digests of all that the session ever brought, whether it ran or not
    refused: int  # how many messages the gateway refused, and may have replaced
    seen_since_us: int  # what began later is not excused
    excused: Callable[[Recorded], bool]  # the collector may not have seen it


def heads(recorded: list[Recorded], observed: list[Observed], context: Context) -> list[tuple[Recorded, Observed]]:
    """Take off what agrees exactly and can only belong together, and what stands for a refusal and can belong to nothing."""
    found: list[tuple[Recorded, Observed]] = []
    r = o = 0
    while o < len(observed):
        seen = observed[o]
        if seen.sqlstate and _stands_for_a_refusal(seen, context):
            o += 1
            continue
        if r == len(recorded):
            break
        ran = recorded[r]
        text = context.texts.get(ran.statement)
        if text is None or not seen.digest or seen.digest != text.digest:
            break
        if _may_be_unseen(ran, context) or not _ended_alike(ran, seen):
            break
        found.append((ran, seen))
        r += 1
        o += 1
    del recorded[:r]
    del observed[:o]
    return found


def explain(
    recorded: list[Recorded], observed: list[Observed], settled_recorded: int, settled_observed: int, context: Context
) -> list[Explained]:
    """Take off the fewest that explain the first `settled_...` of each, which have all of their counterparts before us.

    Nothing is said of one whose counterpart may be among those that are not settled: it is left until they are.
    """
    n, m = min(len(recorded), WINDOW), min(len(observed), WINDOW)
    must_r = min(settled_recorded, n if n == len(recorded) else n - _TAIL)
    must_o = min(settled_observed, m if m == len(observed) else m - _TAIL)
    spans = [[_span(recorded, r, n, observed[o], context) for o in range(m)] for r in range(n)]
    while must_r or must_o:
        found, end_r, end_o = _cheapest(recorded, observed, n, m, must_r, must_o, spans, context)
        r = o = 0
        for one in found:
            match one:
                case Pair():
                    if not one.agrees and o >= must_o and r < must_r:
                        must_r = r  # what undid it may still be told
                        break
                    r += len(one.recorded)
                    o += 1
                case Unseen(ran):
                    if r < must_r and ran.outcome != "skipped":
                        if any(spans[r][later][0] for later in range(must_o, m)):
                            must_r, must_o = r, min(must_o, o)  # what stands behind it is not decided before it
                            break
                        if any(_span(recorded, r, n, seen, context)[0] for seen in observed[m:]):
                            must_r = r  # it is here, beyond the window, which moves on with what is settled of the other
                            break
                    r += 1
                case Unrecorded(seen):
                    early = o >= must_o and bool(seen.sqlstate) and any(spans[later][o][0] for later in range(n))
                    if early or (o < must_o and any(spans[later][o][0] for later in range(must_r, n))):
                        must_r, must_o = min(must_r, r), min(must_o, o)
                        break
                    if o < must_o and any(_span(recorded, later, later + 1, seen, context)[0] for later in range(n, len(recorded))):
                        must_o = o
                        break
                    o += 1
        else:
            del recorded[:end_r]
            del observed[:end_o]
            return found
    return []


def _cheapest(
    recorded: Sequence[Recorded],
    observed: Sequence[Observed],
    n: int,
    m: int,
    must_r: int,
    must_o: int,
    spans: Sequence[Sequence[tuple[int, int]]],
    context: Context,
) -> tuple[list[Explained], int, int]:
    """The cheapest explanation of the first `must_...` of each, and how much of each it takes."""
    best: list[list[int]] = [[-1] * (m + 1) for _ in range(n + 1)]
    came: list[list[tuple[int, int, int]]] = [[(0, 0, 0)] * (m + 1) for _ in range(n + 1)]  # recorded, observed taken; differs
    best[0][0] = 0
    unseen = [_unseen(ran, context) for ran in recorded[:n]]
    unrecorded = [_unrecorded(seen, context) for seen in observed[:m]]

    def reach(r: int, o: int, cost: int, by: tuple[int, int, int]) -> None:
        if best[r][o] < 0 or cost < best[r][o]:
            best[r][o] = cost
            came[r][o] = by

    for r in range(n + 1):
        for o in range(m + 1):
            so_far = best[r][o]
            if so_far < 0:
                continue
            if r < n and o < m:
                span, vague = spans[r][o]
                # What may or may not have been seen takes nothing that may be the next one's of the same text.
                if span and (o < must_o or unseen[r] > _MAY_BE_UNSEEN):
                    ours = recorded[r : r + span]
                    differs = 0 if agrees(ours, observed[o]) else 1
                    cost = vague + _apart(ours[0], ours[-1], observed[o]) + differs * _DIFFERS
                    reach(r + span, o + 1, so_far + cost, (span, 1, differs))
            if r < n:
                reach(r + 1, o, so_far + unseen[r], (1, 0, 0))
            if o < m:
                reach(r, o + 1, so_far + unrecorded[o], (0, 1, 0))
    ends = [(best[r][o], r + o, r, o) for r in range(must_r, n + 1) for o in range(must_o, m + 1) if best[r][o] >= 0]
    _, _, end_r, end_o = min(ends)
    found: list[Explained] = []
    r, o = end_r, end_o
    while r or o:
        took_r, took_o, differs = came[r][o]
        r, o = r - took_r, o - took_o
        if took_r and took_o:
            found.append(Pair(tuple(recorded[r : r + took_r]), observed[o], agrees=not differs))
        elif took_r:
            found.append(Unseen(recorded[r], unseen[r] == _ALONE))
        else:
            found.append(Unrecorded(observed[o], unrecorded[o] == _ALONE))
    found.reverse()
    return found, end_r, end_o


def agrees(recorded: Sequence[Recorded], seen: Observed) -> bool:
    """Whether both tell the same end, as far as the collector knows it."""
    if len(recorded) == 1:
        return _ended_alike(recorded[0], seen)
    if any(ran.outcome in ("unknown", "") for ran in recorded):
        return True
    if recorded[0].outcome == "skipped":
        return False
    if not seen.known:
        return True
    errors = [ran.sqlstate for ran in recorded if ran.outcome == "error"]
    if seen.sqlstate:
        return errors == [seen.sqlstate] or (not errors and recorded[-1].undone)
    return not errors


def _ended_alike(ran: Recorded, seen: Observed) -> bool:
    outcome = ran.outcome
    if outcome == "unknown" or not outcome:
        return True
    if outcome == "skipped":
        return False
    if not seen.known:
        return True
    if outcome == "error":
        return seen.sqlstate == ran.sqlstate and bool(ran.sqlstate)
    if seen.sqlstate:
        return ran.undone
    return outcome != "ok" or ran.rows < 0 or seen.rows < 0 or ran.rows == seen.rows


def _span(recorded: Sequence[Recorded], at: int, end: int, seen: Observed, context: Context) -> tuple[int, int]:
    """How many executions from `at` on make up what was seen, 0 when it is not theirs; and what that costs."""
    ran = recorded[at]
    text = context.texts.get(ran.statement)
    if text is None:  # forgotten: it may be anything
        return 1, _VAGUE
    if ran.continues and ran.outcome != "error":
        return 0, 0
    if seen.digest and seen.digest == text.digest:
        return 1, 0
    if seen.digest and text.whole and seen.digest == text.whole:
        if seen.source == "audit":  # pgaudit tells of each part, and gives the whole string each time
            return 1, 0
        last = at
        while last + 1 < end:  # each part has a number of its own, in order: with the next run of the same string they begin anew
            following = context.texts.get(recorded[last + 1].statement)
            if following is None or following.whole != text.whole or recorded[last + 1].statement <= recorded[last].statement:
                break
            last += 1
        return last - at + 1, 0
    if not seen.digest and _begins_alike(text, seen):
        return 1, _VAGUE
    if text.prepares and seen.start and text.start and (text.start in seen.start or seen.start in text.start):
        return 1, _VAGUE
    # What failed before it began to run: a collector then has the rest of the string, from here on.
    failed = seen.sqlstate and ran.outcome == "error" and ran.sqlstate == seen.sqlstate and text.whole
    if failed and (not seen.start or not text.start or seen.start.startswith(text.start)):
        return 1, _VAGUE
    return 0, 0


def _apart(first: Recorded, last: Recorded, seen: Observed) -> int:
    """What it costs that it was seen at another time than the gateway waited for it."""
    ended_us = max(last.ended_us, last.started_us)
    distance_us = max(first.started_us - seen.at_us, seen.at_us - ended_us, 0)
    return min(_APART_MAX, (distance_us + 3 * _APART_US) // (4 * _APART_US))


def _begins_alike(text: Text, seen: Observed) -> bool:
    if not seen.start or not text.start:
        return text.text_bytes >= seen.text_bytes - 1
    shorter = min(len(text.start), len(seen.start))
    return text.start[:shorter] == seen.start[:shorter]


def _unseen(ran: Recorded, context: Context) -> int:
    if ran.statement not in context.texts or _may_be_unseen(ran, context):
        return _MAY_BE_UNSEEN
    return _ERROR_UNSEEN if ran.outcome == "error" else _ALONE


def _may_be_unseen(ran: Recorded, context: Context) -> bool:
    if not ran.runs or ran.outcome in ("skipped", "unknown", ""):
        return True
    return ran.started_us <= context.seen_since_us and context.excused(ran)


def _unrecorded(seen: Observed, context: Context) -> int:
    if _stands_for_a_refusal(seen, context):
        return 0
    # pgaudit writes at the Bind, where an executor is begun: an Execute need not have come.
    if (seen.sqlstate or seen.source == "audit") and seen.digest in context.defined:
        return _NEVER_BEGAN
    return _ALONE


def _stands_for_a_refusal(seen: Observed, context: Context) -> bool:
    return seen.sqlstate == "42601" and seen.source == "statement" and _is_refused(seen, context.refused)


def _is_refused(seen: Observed, refused: int) -> bool:
    """Whether it stands where the gateway refused a message: one that fails by itself, and so runs nothing."""
    if seen.start:
        return REFUSED.fullmatch(seen.start) is not None and int(seen.start.rpartition("_")[2]) <= refused
    digits = seen.text_bytes - len(_MARK)
    if not 1 <= digits <= len(str(refused)):
        return False
    if digits > _DIGITS_KNOWN:
        return True  # it may be one, and a syntax error has run nothing: nothing is claimed
    return _numbers(digits).get(seen.digest, refused + 1) <= refused


@cache
def _numbers(digits: int) -> Mapping[str, int]:
    """The refusals whose number has so many digits, by the digest of what stands for them; 9,000 with the most."""
    return {digest(f"{_MARK}{number}".encode()): number for number in range(10 ** (digits - 1), 10**digits)}
