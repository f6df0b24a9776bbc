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
from analytics.queries import Queries, QuestionFailed, QuestionInvalid
from identity.api import Authenticate, Looked, guarded, iso, looked
from identity.roles import needs
from ingest.clock import now_us
from ingest.follow import Follower, Gap
from ingest.log import EventLog, LogCorrupt, LogUnavailable, Partition

WAIT_SECONDS: Final = 20  # that a call waits when nothing happens and it does not say how long; proxies cut at 30 or 60
WAIT_SECONDS_MAX: Final = 25
FOLLOWERS_MAX: Final = 16  # calls that wait; each reads the log for itself
STOP_SECONDS: Final = 0.5  # between two looks whether the API is to end
RECORDS_MAX: Final = 20  # of the log in one answer: about 100 events each
LOOKED_THROUGH_MAX: Final = 500  # records, of which a filter lets nothing through, before a call comes back empty
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
            offsets = _offsets(log, after)
            found = await _found(log, offsets, wanted, texts, seconds, stopping)
        except LogUnavailable as error:
            raise HTTPException(503, f"the log cannot be read now: {error}") from error
        except LogCorrupt as error:
            raise HTTPException(503, f"the log is damaged, see pgwarden log: {error}") from error
        finally:
            waiting -= 1
        items = await whole(queries, found)
        looked(request, Looked(len(items), "follow", dict(given)))
        return JSONResponse({"items": items, "next": _cursor(offsets)})

    return routes


async def _found(
    log: EventLog, offsets: dict[Partition, int], wanted: Wanted, texts: Texts, seconds: float, stopping: Callable[[], bool]
) -> list[Line]:
    """Wait for the next lines, and move `offsets` behind them."""
    until = time.monotonic() + seconds
    looked_through = 0
    found: list[Line] = []

    def gap(gap: Gap) -> None:
        what = f"records before {gap.topic}/{gap.partition}/{gap.offset} are not there any more"
        found.append({"at_us": now_us(), "kind": "gap", "agent": wanted.agent, "session": "", "text": what})

    follower = Follower(log, TOPICS, offsets, on_gap=gap)
    try:
        while not (found or stopping()) and looked_through < LOOKED_THROUGH_MAX and (left := until - time.monotonic()) > 0:
            frames = await follower.poll(RECORDS_MAX, min(left, STOP_SECONDS))
            looked_through += len(frames)
            for record, frame in frames:
                found += lines(record, frame, wanted, texts)
            await asyncio.sleep(0)  # a filter that lets nothing through must not hold up the other calls
    finally:
        offsets |= follower.offsets
        follower.close()
    return sorted(found, key=lambda line: int(line["at_us"] or 0))


async def whole(queries: Queries, found: list[Line]) -> list[Mapping[str, object]]:
    """With times as people read them, and with the texts of statements that were defined before anybody followed."""
    asked: dict[tuple[object, object], object] = {}
    for line in found:
        name = (line.get("session"), line.get("statement"))
        if "statement" in line and line.get("text") is None and name not in asked and len(asked) < RECORDS_MAX:
            asked[name] = await _text(queries, str(line["session"]), str(line["execution"]))
    whole: list[Mapping[str, object]] = []
    for line in found:
        text = line.get("text")
        if text is None and "statement" in line:
            text = asked.get((line.get("session"), line.get("statement")))  # type: ignore[assignment]
        rest = {name: value for name, value in line.items() if name not in ("at_us", "statement")}
        whole.append({"at": iso(int(line["at_us"] or 0)), **rest, **({"text": text} if "text" in line else {})})
    return whole


async def _text(queries: Queries, session: str, execution: str) -> str | None:
    try:
        found = (await queries.ask("statement", {"session": session, "execution": execution})).items
    except (QuestionFailed, QuestionInvalid):
        return None
    text = found[0].get("text") if found else None
    return text[:TEXT_CHARACTERS_MAX] if isinstance(text, str) else None


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


def _offsets(log: EventLog, cursor: str) -> dict[Partition, int]:
    """Where to go on; without a cursor, behind all that there is now."""
    ends = {place: end for topic in TOPICS for place, end in log.end_offsets(topic).items()}
    if not cursor:
        return ends
    wrong = HTTPException(422, "after: write what an earlier answer gave as next")
    if len(cursor) > CURSOR_CHARACTERS_MAX:
        raise wrong
    try:
        said = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(said, dict):
        raise wrong
    for (topic, partition), end in ends.items():
        offset = said.get(f"{topic}/{partition}", 0)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise wrong
        ends[topic, partition] = min(offset, end)  # of another log, or of one that was made anew
    return ends


def _cursor(offsets: Mapping[Partition, int]) -> str:
    said = {f"{topic}/{partition}": offset for (topic, partition), offset in sorted(offsets.items())}
    return base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
