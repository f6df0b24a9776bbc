from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from analytics import triage
from analytics.nobody import UNANSWERED, UNMUTED
from analytics.triage import Accepted, Acknowledge, Confirm, Findings, Mute, Repeated, Settings, Triage, Unmute, decide
from analytics.triager import Done, Triager
from identity.commands import Rejected
from ingest.events import FindingAcknowledged, FindingConfirmed, FindingRaised, FindingsMuted, FindingsUnmuted
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import RecorderSettings
from pgwarden.inspections import DETECTORS
from tests.analytics.scenario import START_US, Writer

NOW_US = START_US + 1_000_000


def raised(finding: str = "f-1", agent: str = "reporter", detector: str = "hot loop") -> FindingRaised:
    return FindingRaised(START_US, finding, detector, agent, "s1", "warning", "a loop", ())


def findings(*ids: str) -> Findings:
    known = Findings()
    for id_ in ids or ("f-1",):
        known.apply(raised(id_))
    return known


def said(known: Findings, command: Triage, key: str = "", now_us: int = NOW_US) -> Accepted | Repeated | Rejected:
    verdict = decide(command, key, "alice", known, {"hot loop", "new table"}, now_us)
    if isinstance(verdict, Accepted):
        known.apply(verdict.event)
    return verdict


def test_a_finding_is_acknowledged_and_then_confirmed() -> None:
    known = findings()
    acknowledged, confirmed = said(known, Acknowledge("f-1", "mine")), said(known, Confirm("f-1", "a loop it was"))
    assert isinstance(acknowledged, Accepted)
    assert isinstance(acknowledged.event, FindingAcknowledged)
    assert isinstance(confirmed, Accepted)
    assert isinstance(confirmed.event, FindingConfirmed)
    assert confirmed.event.at_us > acknowledged.event.at_us
    for again in (Acknowledge("f-1", ""), Confirm("f-1", "")):
        assert isinstance(said(known, again), Rejected)


def test_a_mute_holds_for_its_detector_and_agent_until_it_is_over_or_taken_back() -> None:
    known = findings()
    assert isinstance(said(known, Mute("", "", 3600, "a test runs", "f-1")), Accepted)
    assert known.muted("hot loop", "reporter", NOW_US)
    assert not known.muted("hot loop", "loader", NOW_US)
    assert not known.muted("new table", "reporter", NOW_US)
    assert not known.muted("hot loop", "reporter", NOW_US + 3_600_000_001)
    assert isinstance(said(known, Unmute("hot loop", "reporter", "")), Accepted)
    assert not known.muted("hot loop", "reporter", NOW_US)
    assert isinstance(said(known, Unmute("hot loop", "reporter", "")), Rejected)


def test_a_mute_of_every_agent_holds_for_each() -> None:
    known = findings()
    assert isinstance(said(known, Mute("hot loop", "*", 3600, "load test")), Accepted)
    assert known.muted("hot loop", "whoever", NOW_US)


@pytest.mark.parametrize("detector", [*sorted(UNMUTED), "hot loop"])
@pytest.mark.parametrize("agent", ["", "*"])
def test_a_finding_of_nobody_is_not_muted_and_the_refusal_says_what_to_do(detector: str, agent: str) -> None:
    known = findings()
    known.apply(raised("n-1", "", detector))
    verdict = said(known, Mute("", agent, 3600, "an old job", "n-1"))
    assert isinstance(verdict, Rejected)
    assert verdict.kind == "invalid"
    assert "would hide every other" in verdict.error
    assert "acknowledge" in verdict.error
    assert ("pgwarden sources declare" in verdict.error) is (detector == "shadow")


@pytest.mark.parametrize("detector", sorted(UNMUTED))
def test_what_may_be_nobodys_is_not_muted_for_every_agent_by_name_of_its_detector(detector: str) -> None:
    known = findings()
    known.apply(raised("n-1", "", detector))
    for agent in ("", "*"):
        verdict = said(known, Mute(detector, agent, 3600, "an old job"))
        assert verdict == Rejected("invalid", UNMUTED[detector])
    # Of one agent it hides that one's alone; of what is never an agent's it would hide nothing, and nobody would notice.
    assert isinstance(said(known, Mute(detector, "reporter", 3600, "an old job")), Rejected) is (detector in UNANSWERED)


def test_an_old_mute_of_nobody_or_of_every_agent_silences_nothing_of_nobody() -> None:
    known = findings()
    for agent in ("", "*"):
        known.apply(FindingsMuted(START_US, "shadow", agent, NOW_US + 10, "alice", "an old job"))
        assert not known.muted("shadow", "", NOW_US)
        assert isinstance(said(known, Unmute("shadow", agent, "")), Accepted)


def test_what_is_said_of_nobodys_findings_is_said_of_detectors_that_there_are() -> None:
    assert UNANSWERED.keys() <= UNMUTED.keys() <= DETECTORS


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (Acknowledge("f-9", ""), "missing"),
        (Acknowledge("f-1", "a\x1b[2Jb"), "invalid"),
        (Acknowledge("f-1", "x" * 1001), "invalid"),
        (Mute("", "", 3600, "why", "f-9"), "missing"),
        (Mute("hot lop", "reporter", 3600, "why"), "invalid"),
        (Mute("hot loop", "", 3600, "why"), "invalid"),
        (Mute("hot loop", "Reporter;", 3600, "why"), "invalid"),
        (Mute("hot loop", "reporter", 0, "why"), "invalid"),
        (Mute("hot loop", "reporter", 366 * 86_400 + 1, "why"), "invalid"),
        (Mute("hot loop", "reporter", 3600, " "), "invalid"),
        (Mute("new table", "", 3600, "why", "f-1"), "invalid"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(command: Triage, kind: str) -> None:
    verdict = said(findings(), command)
    assert isinstance(verdict, Rejected)
    assert verdict.kind == kind


def test_the_same_key_gives_the_same_event_and_no_other_command() -> None:
    known = findings()
    first = said(known, Acknowledge("f-1", ""), "k1")
    again = said(known, Acknowledge("f-1", ""), "k1")
    assert isinstance(first, Accepted)
    assert isinstance(again, Repeated)
    assert again.event == first.event
    assert isinstance(said(known, Confirm("f-1", ""), "k1"), Rejected)


def test_what_is_remembered_is_bounded() -> None:
    known = Findings(Settings(findings_max=2, requests_max=2, mutes_max=2))
    for number in range(4):
        known.apply(raised(f"f-{number}"))
        known.apply(FindingsMuted(START_US + number, f"d{number}", "a", START_US + 10, "op", "why", "", f"k{number}:x"))
    assert known.finding("f-1") is None
    assert known.finding("f-2") is not None
    assert known.event_of("k1") is None
    assert known.event_of("k3") is not None
    verdict = decide(Mute("hot loop", "a", 60, "why"), "", "alice", known, {"hot loop"}, START_US, Settings(mutes_max=2))
    assert isinstance(verdict, Rejected)
    assert known.mutes_standing(START_US + 10) == 0  # those that are over make room


@contextlib.asynccontextmanager
async def triaging(log: SegmentLog, boot: int) -> AsyncIterator[Triager]:
    recorder = Recorder(log, "api", boot, RecorderSettings())
    triager = Triager(log, recorder, {"hot loop"}, lambda: NOW_US)
    task = asyncio.create_task(triager.run())
    try:
        yield triager
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await recorder.close()


async def test_what_was_said_is_recorded_and_known_after_a_restart(log: SegmentLog) -> None:
    inspector = Writer(log, "inspector")
    inspector.add("reporter", raised())
    await inspector.write()
    async with triaging(log, 1) as triager:
        done = await triager.carry_out(Acknowledge("f-1", "mine"), "k1", "alice")
        assert isinstance(done, Done)
        assert isinstance(await triager.carry_out(Mute("", "", 3600, "why", "f-1"), "", "alice"), Done)
    async with triaging(log, 2) as triager:
        again = await triager.carry_out(Acknowledge("f-1", "mine"), "k1", "alice")
        assert again == Done(done.event, repeated=True)
        assert isinstance(await triager.carry_out(Acknowledge("f-1", ""), "", "bob"), Rejected)
        unmuted = await triager.carry_out(Unmute("hot loop", "reporter", ""), "", "bob")
        assert isinstance(unmuted, Done)
        assert isinstance(unmuted.event, FindingsUnmuted)


def test_a_request_names_the_whole_command() -> None:
    assert triage.request("k", "alice", Acknowledge("f-1", "a")) != triage.request("k", "alice", Acknowledge("f-1", "b"))
    assert triage.request("k", "alice", Acknowledge("f-1", "a")) != triage.request("k", "bob", Acknowledge("f-1", "a"))
