"""What happens now, over HTTP: each call waits until something does, or until its time is up, and says where the next goes on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from analytics.api import given_once
from analytics.following import DECISIONS, TOPICS, Line, Texts, Wanted, lines
from analytics.queries import Queries, QuestionFailed
from identity.api import Authenticate, Looked, guarded, iso, looked
from identity.roles import needs
from ingest.clock import now_us
from ingest.follow import Follower, Gap
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition

WAIT_SECONDS: Final = 20  # that a call waits when nothing happens and it does not say how long; proxies cut at 30 or 60
WAIT_SECONDS_MAX: Final = 25
FOLLOWERS_MAX: Final = 16  # calls that wait; each reads the log for itself
STOP_SECONDS: Final = 0.5  # between two looks whether the API is to end
RECORDS_A_LOOK: Final = 10  # a busy gateway's hold 100 events each, one event each where agents are slow
# What one answer reads of the log, whichever is reached first, and then what its last look brought. Each call costs a recorded
# look and perhaps a question: 20 records of one event were all that a call brought, and at ten events a second it fell behind.
RECORDS_MAX: Final = 500  # also where a filter lets nothing through
LINES_MAX: Final = 1_000
BYTES_MAX: Final = 4 * 2**20  # of frames, as in one poll of the log
TEXTS_ASKED_MAX: Final = 2_000  # lines of which an answer can want the text: LINES_MAX, and the last look
CURSOR_CHARACTERS_MAX: Final = 8192
TEXT_CHARACTERS_MAX: Final = 1000


def router(log: EventLog, queries: Queries, authenticate: Authenticate, stopping: Callable[[], bool]) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))
    texts = Texts(characters_max=TEXT_CHARACTERS_MAX)
    waiting = 0

    @routes.get("/follow", summary="What happens now: sessions, statements, refusals, findings")
    @needs("viewer")
    async def follow(request: Request) -> Response:
        nonlocal waiting
        given = given_once(request)
        wanted = _wanted(given)
        seconds = _seconds(given.pop("wait_seconds", ""))
        after = given.pop("after", "")
        if unknown := sorted(set(given) - {"agent", "decision"}):
            raise HTTPException(422, f"{unknown[0][:100]}: no such parameter; it takes after, agent, decision, wait_seconds")
        if waiting >= FOLLOWERS_MAX:
            raise HTTPException(503, f"{waiting} follow the log already; try again when one has ended")
        looked(request, Looked(0, "follow", dict(given)))
        waiting += 1
        try:
            ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
            offsets = _offsets(ends, after)
            found, read_us = await _found(log, offsets, wanted, texts, seconds, stopping)
        except LogUnavailable as error:
            raise HTTPException(503, f"the log cannot be read now: {error}") from error
        except LogCorrupt as error:
            raise HTTPException(503, f"the log is damaged, see pgwarden log: {error}") from error
        finally:
            waiting -= 1
        behind_seconds = _behind_seconds(offsets, ends, read_us, now_us())
        items = await whole(queries, found, texts)
        looked(request, Looked(len(items), "follow", dict(given)))
        return JSONResponse({"items": items, "next": _cursor(offsets), "behind_seconds": behind_seconds})

    return routes


async def _found(
    log: EventLog, offsets: dict[Partition, int], wanted: Wanted, texts: Texts, seconds: float, stopping: Callable[[], bool]
) -> tuple[list[Line], dict[Partition, int]]:
    """Wait for the next lines, take with them what is there already, and move `offsets` behind all that was read.

    Returns the lines, and of each partition that was read when its newest record was appended.
    """
    until = time.monotonic() + seconds
    records = size = 0
    found: list[Line] = []
    read_us: dict[Partition, int] = {}

    def gap(gap: Gap) -> None:
        what = f"records before {gap.topic}/{gap.partition}/{gap.offset} are not there any more"
        found.append({"at_us": now_us(), "kind": "gap", "agent": wanted.agent, "session": "", "text": what})

    follower = Follower(log, TOPICS, offsets, on_gap=gap)
    try:
        while not stopping() and records < RECORDS_MAX and len(found) < LINES_MAX and size < BYTES_MAX:
            left = until - time.monotonic()
            if not found and left <= 0:
                break
            try:
                frames = await follower.poll(RECORDS_A_LOOK, 0 if found else min(left, STOP_SECONDS))
            except (LogUnavailable, LogCorrupt):
                if not found:
                    raise
                break  # what stands before is whole; the next call comes to it
            if found and not frames:
                break
            for record, frame in frames:
                found += lines(record, frame, wanted, texts)
                read_us[record.topic, record.partition] = record.at_us
                size += len(record.value)
            records += len(frames)
            await asyncio.sleep(0)  # neither a long answer nor a filter that lets nothing through may hold up the other calls
    finally:
        offsets |= follower.offsets
        follower.close()
    return sorted(found, key=lambda line: int(line["at_us"] or 0)), read_us


def _behind_seconds(
    offsets: Mapping[Partition, int], ends: Mapping[Partition, int], read_us: Mapping[Partition, int], at_us: int
) -> float | None:
    """The age of what was read last where more was there when the call began. None: nothing was read, so it is not known."""
    left = [place for place, end in ends.items() if offsets[place] < end]
    if not left:
        return 0.0
    reached_us = [read_us[place] for place in left if place in read_us] or list(read_us.values())
    return round(max(at_us - min(reached_us), 0) / 1e6, 1) if reached_us else None


async def whole(queries: Queries, found: list[Line], texts: Texts) -> list[Mapping[str, object]]:
    """With times as people read them, and with the texts of statements that were defined before anybody followed.

    `text` stays None where neither `texts` nor the tables have it: they may be behind the log, or not keep it any more.
    """
    missing = {
        (str(line["session"]), int(line["statement"] or 0)) for line in found if "statement" in line and line.get("text") is None
    }
    told: Mapping[tuple[str, int], str] = {}
    if missing:
        try:
            told = await queries.texts(sorted(missing)[:TEXTS_ASKED_MAX], TEXT_CHARACTERS_MAX)
        except QuestionFailed:
            told = {}  # what happens is told without them
    for (session, statement), known in told.items():
        texts.add(session, statement, known)
    whole: list[Mapping[str, object]] = []
    for line in found:
        text = line.get("text")
        if text is None and "statement" in line:
            text = told.get((str(line["session"]), int(line["statement"] or 0)))
        rest = {name: value for name, value in line.items() if name not in ("at_us", "statement")}
        whole.append({"at": iso(int(line["at_us"] or 0)), **rest, **({"text": text} if "text" in line else {})})
    return whole


def _wanted(given: Mapping[str, str]) -> Wanted:
    decision = given.get("decision", "")
    if decision == "":
        return Wanted(given.get("agent", ""))
    if decision == "allow":
        return Wanted(given.get("agent", ""), "allow")
    if decision == "deny":
        return Wanted(given.get("agent", ""), "deny")
    raise HTTPException(422, f"decision: write one of {', '.join(DECISIONS)}")


def _seconds(given: str) -> float:
    if not given:
        return WAIT_SECONDS
    if given.isascii() and given.isdigit() and len(given) < 4 and int(given) <= WAIT_SECONDS_MAX:
        return max(int(given), 0.05)  # 0: what is there already
    raise HTTPException(422, f"wait_seconds: write a number from 0 to {WAIT_SECONDS_MAX}")


def _offsets(ends: Mapping[Partition, int], cursor: str) -> dict[Partition, int]:
    """Where to go on; without a cursor, behind all that there is now."""
    if not cursor:
        return dict(ends)
    wrong = HTTPException(422, "after: write what an earlier answer gave as next")
    if len(cursor) > CURSOR_CHARACTERS_MAX:
        raise wrong
    try:
        said = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(said, dict):
        raise wrong
    offsets: dict[Partition, int] = {}
    for (topic, partition), end in ends.items():
        offset = said.get(f"{topic}/{partition}", 0)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise wrong
        offsets[topic, partition] = min(offset, end)  # of another log, or of one that was made anew
    return offsets


def _cursor(offsets: Mapping[Partition, int]) -> str:
    said = {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())}
    return base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
