"""Following the log over HTTP, and `pgwarden tail`: nothing is missed, nothing is told twice, and it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from identity.agent_keys import create_operator_key
from ingest.events import Event, Stamp, StatementDefined, StatementDenied, StatementFinished, StatementStarted
from ingest.frames import Framer
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings
from tests.broker import port
from tests.pgwarden.test_api_process import CONFIG, Process, running, write_key

VERA, VERA_SHA256 = create_operator_key()
HOSTILE = "select '\x1b[2J', 1 -- \n=1"


def prepared(folder: Path) -> Path:
    viewer = f'[operators.vera]\nkey_sha256 = "{VERA_SHA256}"\nrole = "viewer"\n'
    (folder / "pgwarden.toml").write_text(CONFIG + viewer, encoding="utf-8")
    write_key(folder)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    folder = prepared(tmp_path_factory.mktemp("tail"))
    with running(folder, port()) as process:
        yield process, folder


def happens(folder: Path, session: str, agent: str = "reporter", *, define: bool = True, execution: int = 1) -> None:
    """Record, as a gateway does, one statement that ran and one that was refused."""
    stamp = Stamp(session, agent, "key:k", "", "", (), "", "", (), (), (), "shop", "shop", "pgwarden", "127.0.0.1:5000", 1, 1, 1)
    now_us = time.time_ns() // 1000

    async def write() -> None:
        log = SegmentLog(folder / "state" / "log", LogSettings())
        recorder = Recorder(log, "gateway", time.time_ns(), RecorderSettings())
        if define:
            recorder.record("statements", agent, StatementDefined(1, HOSTILE, "full", 9, "0" * 16, ("SELECT",), (), ()), stamp)
        recorder.record("statements", agent, StatementStarted(now_us, execution, 1, "rule"), stamp)
        recorder.record("statements", agent, StatementFinished(execution, "ok", "", "SELECT 1", 1, 0, 0, 300), stamp)
        recorder.record("statements", agent, StatementDenied(now_us + 1, execution + 1, 1, "42501", "default", "not yours"), stamp)
        await recorder.close()
        await log.close()

    asyncio.run(write())


def recorded_singly(folder: Path, events: Iterable[tuple[Event, Stamp]]) -> None:
    """As a gateway does whose agents are slow: a record for each event."""

    async def write() -> None:
        log = SegmentLog(folder / "state" / "log", LogSettings())
        framer = Framer("slow", time.time_ns(), events_max=1, bytes_max=2**16)
        for event, stamp in events:
            framer.add("statements", stamp.agent, event, stamp)
        await log.append(framer.cut())
        await log.close()

    asyncio.run(write())


def stamped(session: str) -> Stamp:
    return Stamp(session, "slow", "key:k", "", "", (), "", "", (), (), (), "shop", "shop", "pgwarden", "127.0.0.1:5000", 1, 1, 1)


def started(session: str, count: int = 1) -> list[tuple[Event, Stamp]]:
    at_us = time.time_ns() // 1000
    return [(StatementStarted(at_us + n, n + 1, 1, "rule"), stamped(session)) for n in range(count)]


def defined(session: str, text: str) -> tuple[Event, Stamp]:
    return StatementDefined(1, text, "full", len(text), "0" * 16, ("SELECT",), (), ()), stamped(session)


def follow(api: Process, **query: str) -> httpx.Response:
    return httpx.get(f"{api.url}/v1/follow", params=query, headers={"Authorization": f"Bearer {VERA}"}, timeout=30, trust_env=False)


@pytest.mark.slow
def test_a_cursor_goes_on_where_the_last_answer_ended(house: tuple[Process, Path]) -> None:
    api, folder = house
    start = follow(api, wait_seconds="0").json()
    assert start["items"] == []
    happens(folder, "s-1")
    first = follow(api, after=start["next"], agent="reporter").json()
    assert [(item["kind"], item["execution"]) for item in first["items"]] == [
        ("statement", 1),
        ("statement denied", 2),
        ("statement finished", 1),
    ]
    assert {item["text"] for item in first["items"] if "text" in item} == {HOSTILE}
    assert follow(api, after=first["next"], wait_seconds="0").json()["items"] == []
    assert follow(api, after=start["next"], wait_seconds="0").json()["items"] == first["items"]
    (denied,) = follow(api, after=start["next"], wait_seconds="0", decision="deny").json()["items"]
    assert (denied["decision"], denied["reason"], denied["session"]) == ("deny", "not yours", "s-1")


@pytest.mark.slow
def test_a_call_waits_until_something_happens_and_no_longer_than_it_was_told(house: tuple[Process, Path]) -> None:
    api, folder = house
    began = time.monotonic()
    quiet = follow(api, wait_seconds="1").json()
    assert (quiet["items"], 0.9 < time.monotonic() - began < 15) == ([], True)
    began = time.monotonic()
    waiting = subprocess.Popen(
        [sys.executable, "-c", "import sys,httpx;print(len(httpx.get(sys.argv[1],headers={'Authorization':sys.argv[2]},timeout=40).json()['items']))",
         f"{api.url}/v1/follow?wait_seconds=25&after={quiet['next']}", f"Bearer {VERA}"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(1)
    happens(folder, "s-2")
    out, _ = waiting.communicate(timeout=20)
    assert int(out) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"after": "nonsense!"}, "after: write what"),
        ({"after": "W10"}, "after: write what"),
        ({"after": "eyJzdGF0ZW1lbnRzLzAiOi0xfQ"}, "after: write what"),
        ({"wait_seconds": "60"}, "from 0 to 25"),
        ({"decision": "maybe"}, "allow, deny"),
        ({"agnet": "x"}, "no such parameter"),
    ],
)
def test_what_is_asked_wrongly_is_told_what_to_write(house: tuple[Process, Path], query: dict[str, str], reason: str) -> None:
    answer = follow(house[0], **query)
    assert (answer.status_code, reason in answer.json()["error"]) == (422, True)


@contextmanager
def tail(folder: Path, *options: str, key: str = VERA) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "pgwarden", "tail", "-c", str(folder / "pgwarden.toml"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PGWARDEN_OPERATOR_KEY": key, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_tail_prints_a_line_each_and_nothing_that_a_terminal_would_obey(
    house: tuple[Process, Path], wait_for: Callable[..., object]
) -> None:
    api, folder = house
    kept = folder / "place"
    with tail(folder, "--resume", str(kept), "--after", follow(api, wait_seconds="0").json()["next"]) as first:
        happens(folder, "s-4")
        assert first.stdout is not None
        lines = [first.stdout.readline() for _ in range(2)]
        wait_for(lambda: kept.exists() and follow(api, after=kept.read_text().strip(), wait_seconds="0").json()["items"] == [])
        first.send_signal(signal.SIGINT)
        assert first.wait(10) == 130
    assert [("s-4#" in line, "\\x1b[2J" in line, "\x1b" in line) for line in lines] == [(True, True, False)] * 2
    assert "not yours" in lines[1]
    # What happened between the two runs is told by the second, and nothing twice.
    happens(folder, "s-5")
    with tail(folder, "--resume", str(kept), "--json", "--for", "20") as second:
        assert second.stdout is not None
        told = [second.stdout.readline() for _ in range(3)]
        second.send_signal(signal.SIGINT)
        rest, _ = second.communicate(timeout=30)
    assert rest == ""
    assert [(item["session"], item["kind"]) for item in map(json.loads, told)] == [
        ("s-5", "statement"),
        ("s-5", "statement denied"),
        ("s-5", "statement finished"),
    ]


@pytest.mark.slow
def test_an_answer_brings_hundreds_of_records_of_one_event_each(house: tuple[Process, Path]) -> None:
    api, folder = house
    start = follow(api, wait_seconds="0").json()["next"]
    recorded_singly(folder, [defined("s-6", "select 6"), *started("s-6", 400)])
    answer = follow(api, after=start, decision="allow").json()  # and no finding about so many
    assert [item["execution"] for item in answer["items"]] == list(range(1, 401))
    assert answer["behind_seconds"] == 0


@pytest.mark.slow
def test_what_is_behind_says_so_once_and_again_when_it_has_caught_up(
    house: tuple[Process, Path], monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., object]
) -> None:
    api, folder = house
    start = follow(api, wait_seconds="0").json()["next"]
    with monkeypatch.context() as then:
        a_minute_ago = time.time_ns() - 60 * 10**9
        then.setattr(time, "time_ns", lambda: a_minute_ago)
        recorded_singly(folder, [defined("s-7", "select 7"), *started("s-7", 1400)])
    first = follow(api, after=start, decision="allow").json()
    assert 400 <= len(first["items"]) < 600
    assert 60 <= first["behind_seconds"] < 600
    kept = folder / "behind"
    with tail(folder, "--json", "--decision", "allow", "--after", start, "--resume", str(kept)) as following:
        assert following.stdout is not None
        told = [json.loads(following.stdout.readline()) for _ in range(1400)]
        wait_for(
            lambda: (
                kept.exists()
                and follow(api, after=kept.read_text().strip(), wait_seconds="0", decision="allow").json()["items"] == []
            )
        )
        following.send_signal(signal.SIGINT)
        rest, said = following.communicate(timeout=30)
    assert (rest, [item["execution"] for item in told]) == ("", list(range(1, 1401)))
    behind, caught_up = said.splitlines()[:2]
    assert ("s behind: " in behind, "caught up" in caught_up, said.count("behind"), said.count("caught up")) == (True, True, 1, 1)


@pytest.mark.slow
def test_a_text_that_was_defined_before_the_cursor_is_told_however_many_are_wanted(
    house: tuple[Process, Path], wait_for: Callable[..., object]
) -> None:
    api, folder = house
    sessions = [f"s-early-{number}" for number in range(60)]
    recorded_singly(folder, [e for session in sessions for e in (defined(session, f"{HOSTILE} {session}"), *started(session))])
    # The tables have it, and nobody followed the log past it.
    wait_for(lambda: api.get(f"/v1/statements/{sessions[-1]}/1").status_code == 200)
    start = follow(api, wait_seconds="0").json()["next"]
    recorded_singly(folder, [e for session in [*sessions, "s-never"] for e in started(session)])
    items = follow(api, after=start, decision="allow").json()["items"]
    assert {item["session"]: item["text"] for item in items} == {s: f"{HOSTILE} {s}" for s in sessions} | {"s-never": None}
    with tail(folder, "--decision", "allow", "--after", start) as following:
        assert following.stdout is not None
        lines = [following.stdout.readline() for _ in items]
    assert [("\x1b" in line, "its text is not known" in line) for line in lines] == [(False, False)] * 60 + [(False, True)]


@pytest.mark.slow
def test_tail_says_why_it_may_not(house: tuple[Process, Path]) -> None:
    with tail(house[1], key=create_operator_key()[0]) as process:
        out, error = process.communicate(timeout=20)
    assert (out, "opens nothing" in error) == ("", True)


@pytest.mark.slow
def test_tail_waits_for_an_api_that_starts_anew_and_misses_nothing_until_its_operator_may_no_more(tmp_path: Path) -> None:
    folder, where = prepared(tmp_path), port()
    with running(folder, where) as api:
        start = follow(api, wait_seconds="0").json()["next"]
        with tail(folder, "--after", start, "--json") as following:
            happens(folder, "s-1")
            assert following.stdout is not None
            assert [json.loads(following.stdout.readline())["session"] for _ in range(3)] == ["s-1"] * 3
            api.process.send_signal(signal.SIGTERM)
            assert api.process.wait(15) == 0
            happens(folder, "s-1", define=False, execution=7)
            with running(folder, where):
                # This API has not seen the text defined: the tables know it.
                lines = [json.loads(following.stdout.readline()) for _ in range(3)]
            (folder / "pgwarden.toml").write_text(CONFIG, encoding="utf-8")  # vera is no operator any more
            with running(folder, where):
                out, _ = following.communicate(timeout=60)
            assert (following.returncode, "opens nothing" in json.loads(out)["error"]) == (2, True)
    assert [(line["execution"], line.get("text")) for line in lines] == [(7, HOSTILE), (8, HOSTILE), (7, None)]
