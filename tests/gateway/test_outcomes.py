"""What is certain of an execution whose gateway went away, and what is not: table by table."""

from __future__ import annotations

import pytest

from gateway import outcomes
from gateway.outcomes import Left, SessionLedger
from ingest.events import (
    OutcomeResolved,
    StatementDefined,
    StatementDenied,
    StatementFinished,
    StatementParameters,
    StatementStarted,
)

IN_FLIGHT = "..."
UNKNOWN = "unknown"


def ledger(*steps: str) -> SessionLedger:
    """Each step is `VERB: end`, the end being `ok`, `ok TAG`, `error`, `skipped`, `suspended`, `unknown`, `denied` or `...`."""
    made = SessionLedger()
    verbs: dict[str, int] = {}
    ends: list[tuple[int, str, str]] = []
    for number, step in enumerate(steps, 1):
        verb, _, end = step.partition(": ")
        if end == "denied":
            made.apply(StatementDenied(0, number, 0, "42501", "", ""))
            continue
        if verb not in verbs:
            verbs[verb] = len(verbs) + 1
            made.apply(StatementDefined(verbs[verb], "", "fingerprint", 0, "", (verb,), (), ()))
        made.apply(StatementStarted(0, number, verbs[verb], ""))
        made.apply(StatementParameters(number, ()))
        if end != IN_FLIGHT:
            outcome, _, tag = end.partition(" ")
            ends.append((number, outcome, tag or (verb if outcome == "ok" else "")))
    for number, outcome, tag in ends:
        made.apply(StatementFinished(number, outcome, "", tag, 0, 0, 0, 0))  # type: ignore[arg-type]
    return made


def resolutions(*steps: str, durability: str = "group") -> list[str | None]:
    return [left.resolution for left in ledger(*steps).left(durability)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # nothing is open
        ((), []),
        (("INSERT: ok",), []),
        (("BEGIN: ok", "INSERT: ok"), []),
        # outside BEGIN ... COMMIT the commit is a Sync's, which is not recorded
        (("INSERT: ...",), [None]),
        (("INSERT: ok", "INSERT: ..."), [None]),
        (("INSERT: ...", "INSERT: ..."), [None, None]),
        (("CALL: ...",), [None]),
        # inside one that nothing ended
        (("BEGIN: ok", "INSERT: ..."), ["aborted"]),
        (("BEGIN: ok START TRANSACTION", "INSERT: ok", "SELECT: ok", "DELETE: ..."), ["aborted"]),
        (("BEGIN: ok", "INSERT: ...", "INSERT: ...", "SELECT: ..."), ["aborted", "aborted", "aborted"]),
        (("BEGIN: ok", "CREATE TABLE: ..."), ["aborted"]),
        (("BEGIN: ok", "COPY: ..."), ["aborted"]),
        (("BEGIN: ok", "CALL: ..."), ["aborted"]),  # a procedure that commits fails inside a transaction block
        (("BEGIN: ok", "BEGIN: ok", "INSERT: ..."), ["aborted"]),  # the second is a warning
        (("BEGIN: ok", "INSERT: unknown"), ["aborted"]),
        # whose beginning nobody saw succeed
        (("BEGIN: ...", "INSERT: ..."), [None, None]),
        (("BEGIN: error", "INSERT: ..."), [None]),
        (("BEGIN: skipped", "INSERT: ..."), [None]),
        (("BEGIN: ok OTHER", "INSERT: ..."), [None]),
        # what may have been committed
        (("BEGIN: ok", "INSERT: ok", "COMMIT: ..."), [None]),
        (("BEGIN: ok", "INSERT: ...", "COMMIT: ..."), [None, None]),
        (("BEGIN: ok", "INSERT: ...", "COMMIT: ...", "INSERT: ..."), [None, None, None]),
        (("BEGIN: ok", "INSERT: ...", "COMMIT: unknown"), [None, None]),
        (("BEGIN: ok", "COMMIT: ok", "INSERT: ..."), [None]),
        (("BEGIN: ok", "COMMIT: ok ROLLBACK", "INSERT: ..."), [None]),
        (("BEGIN: ok", "COMMIT: error", "INSERT: ..."), [None]),
        (("BEGIN: ok", "ROLLBACK: ok", "INSERT: ..."), [None]),
        (("BEGIN: ok", "COMMIT: ok", "BEGIN: ok", "INSERT: ..."), ["aborted"]),
        (("BEGIN: ok", "INSERT: ...", "COMMIT: ...", "BEGIN: ...", "INSERT: ..."), [None] * 4),
        # a COMMIT behind an error of its own pipeline did not run
        (("BEGIN: ok", "INSERT: error", "COMMIT: skipped", "INSERT: ..."), ["not executed"]),
        # what was undone either way
        (("BEGIN: ok", "INSERT: ...", "ROLLBACK: ..."), ["aborted", None]),
        (("BEGIN: ok", "INSERT: ...", "ROLLBACK: ...", "INSERT: ..."), ["aborted", None, None]),
        # AND CHAIN: the record does not tell, so less is claimed than could be
        (("BEGIN: ok", "COMMIT: ok COMMIT", "INSERT: ..."), [None]),
        # savepoints
        (("BEGIN: ok", "SAVEPOINT: ok", "INSERT: ..."), ["aborted"]),
        (("BEGIN: ok", "SAVEPOINT: ok", "INSERT: error", "ROLLBACK TO: ok ROLLBACK", "INSERT: ..."), ["aborted"]),
        (("BEGIN: ok", "SAVEPOINT: ok", "INSERT: error", "ROLLBACK TO: ...", "INSERT: ..."), [None, "aborted"]),
        (("BEGIN: ok", "SAVEPOINT: ok", "INSERT: error", "ROLLBACK TO: ...", "INSERT: ...", "COMMIT: ..."), [None] * 3),
        (("BEGIN: ok", "INSERT: error", "ROLLBACK TO: error", "INSERT: ..."), ["not executed"]),
        (("BEGIN: ok", "SAVEPOINT: ok", "RELEASE: ..."), ["aborted"]),
        # a failed transaction executes nothing
        (("BEGIN: ok", "INSERT: error", "INSERT: ..."), ["not executed"]),
        (("BEGIN: ok", "INSERT: error", "INSERT: ...", "COMMIT: ..."), ["not executed", None]),
        (("BEGIN: ok", "INSERT: error", "COMMIT: ...", "INSERT: ..."), [None, None]),
        (("BEGIN: ok", "INSERT: denied", "INSERT: ..."), ["not executed"]),
        (("BEGIN: ok", "INSERT: error", "SAVEPOINT: ..."), [None]),
        (("INSERT: denied", "INSERT: ..."), [None]),
        # a portal that waits in the middle of its transaction
        (("BEGIN: ok", "SELECT: ...", "INSERT: ok", "INSERT: ..."), ["aborted", "aborted"]),
        (("BEGIN: ok", "SELECT: ...", "INSERT: ok", "COMMIT: ok"), [None]),
    ],
)
def test_what_is_certain_once_the_backend_is_gone(steps: tuple[str, ...], expected: list[str | None]) -> None:
    assert resolutions(*steps) == expected


@pytest.mark.parametrize(
    ("durability", "expected"), [("fast", None), ("group", "aborted"), ("strict", "aborted"), ("replicated", "aborted")]
)
def test_at_level_fast_a_commit_may_have_been_forwarded_that_no_disk_has_seen(durability: str, expected: str | None) -> None:
    assert resolutions("BEGIN: ok", "INSERT: ...", durability=durability) == [expected]


def test_each_claim_says_what_it_rests_on() -> None:
    (aborted,) = ledger("SELECT: ok", "BEGIN: ok", "INSERT: ...").left("group")
    assert "execution 2 began" in aborted.evidence
    (refused,) = ledger("BEGIN: ok", "INSERT: error", "INSERT: ...").left("group")
    assert "behind an error" in refused.evidence
    assert ledger("INSERT: ...").left("group") == (Left(1, False, None, ""),)


def test_what_was_recorded_of_an_earlier_recovery_is_not_recorded_again() -> None:
    made = ledger("BEGIN: ok", "INSERT: ...", "INSERT: ...")
    made.apply(StatementFinished(2, "unknown", "", "", 0, 0, 0, 0))
    assert [(left.execution, left.finished, left.resolution) for left in made.left("group")] == [
        (2, True, "aborted"),
        (3, False, "aborted"),
    ]
    made.apply(OutcomeResolved(0, 2, "aborted", "..."))
    assert [left.execution for left in made.left("group")] == [3]
    made.apply(StatementFinished(3, "unknown", "", "", 0, 0, 0, 0))
    made.apply(OutcomeResolved(0, 3, "aborted", "..."))
    assert made.left("group") == ()


def test_nothing_is_certain_of_a_session_of_which_something_is_missing() -> None:
    made = ledger("BEGIN: ok", "INSERT: ...")
    made.apply(StatementStarted(0, 4, 2, ""))  # the third is not in the log: it may have been a COMMIT
    assert [(left.execution, left.resolution) for left in made.left("strict")] == [(2, None), (4, None)]
    made.apply(StatementFinished(2, "ok", "", "INSERT 0 1", 0, 0, 0, 0))
    made.apply(StatementFinished(4, "unknown", "", "", 0, 0, 0, 0))
    assert made.left("strict") == (Left(4, True, None, ""),)
    made.lose()
    assert made.left("strict") == (Left(4, True, None, ""),)


def test_a_record_that_begins_in_the_middle_of_a_session_proves_nothing() -> None:
    made = SessionLedger()
    made.apply(StatementDefined(7, "", "fingerprint", 0, "", ("BEGIN",), (), ()))
    made.apply(StatementStarted(0, 40, 7, ""))
    made.apply(StatementFinished(40, "ok", "", "BEGIN", 0, 0, 0, 0))
    made.apply(StatementStarted(0, 41, 8, ""))
    assert [left.resolution for left in made.left("strict")] == [None]


def test_a_text_that_was_forgotten_may_have_been_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "STATEMENTS_MAX", 2)
    made = ledger("BEGIN: ok")
    made.apply(StatementDefined(2, "", "fingerprint", 0, "", ("COMMIT",), (), ()))
    made.apply(StatementDefined(3, "", "fingerprint", 0, "", ("ROLLBACK",), (), ()))
    made.apply(StatementStarted(0, 2, 9, ""))
    made.apply(StatementStarted(0, 3, 2, ""))  # a text of before, executed again
    assert [left.resolution for left in made.left("group")] == [None, None]


def test_no_more_than_so_many_executions_are_kept_behind_one_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "WAITING_MAX", 3)
    made = ledger("BEGIN: ok", "SELECT: ...", "INSERT: ...", "INSERT: ...", "INSERT: ...")
    assert [(left.execution, left.resolution) for left in made.left("group")] == [(2, None), (3, None), (4, None), (5, None)]
    assert made.executions == 5
