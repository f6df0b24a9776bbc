"""What observing by the server's log costs: `python -m bench.collect` (`make bench-collect`). No server is needed.

Lines of a real PostgreSQL 18 are made many, of many sessions. CPU time of this process, a line: parsing alone, parsing and folding
into observations, the same from a file, and the whole collector until its events are recorded on disk. Each beside the peer that a
first version would be: `json.loads` a line, and csv.reader for csvlog.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ingest.clock import now_us
from ingest.collectors.collector import Observation, key
from ingest.collectors.log_files import LogFiles
from ingest.collectors.log_lines import Format, LogLine, cut, parse
from ingest.collectors.log_sessions import LogSessions
from ingest.collectors.server_log import LogCollector, LogSource
from ingest.collectors.settings import LogSettings as FollowSettings
from ingest.collectors.settings import TextPolicy
from ingest.events import WitnessConnected
from ingest.log.segments import SegmentLog
from ingest.recorder import Recorder
from ingest.settings import LogSettings, RecorderSettings

SESSIONS = 50
RECORDED = Path(__file__).parents[1] / "tests" / "ingest" / "collectors"
_TEXT = "SELECT id, customer, amount FROM public.orders WHERE customer = 1234 ORDER BY id DESC LIMIT 20"


def lines(kind: Format, count: int) -> bytes:
    """Statements as PostgreSQL 18 logged one, of several sessions in turn, each with its own `line_num`."""
    name = "pg18.json" if kind == "jsonlog" else "pg18.csv"
    records, _ = cut(kind, (RECORDED / name).read_bytes())
    one = next(record.decode() for record in records if b"statement: SELECT 1" in record).replace("SELECT 1", _TEXT, 1)
    parsed = parse(kind, one.encode())
    assert isinstance(parsed, LogLine)
    before = f'"line_num":{parsed.line_num},' if kind == "jsonlog" else f",{parsed.session_id},{parsed.line_num},"
    out = []
    for number in range(count):
        session, line = f"6b0d52e4.{4096 + number % SESSIONS:x}", number // SESSIONS + 1
        after = f'"line_num":{line},' if kind == "jsonlog" else f",{session},{line},"
        out.append(one.replace(before, after, 1).replace(parsed.session_id, session))
    return ("\n".join(out) + "\n").encode()


def cpu_us(work: Callable[[], object], count: int, rounds: int) -> list[float]:
    took = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        took.append((time.process_time() - begun) / count * 1e6)
    return took


def _as_a_first_version_would(kind: Format, texts: Sequence[str]) -> None:
    for text in texts:
        json.loads(text) if kind == "jsonlog" else next(csv.reader([text]))


def _parsed(kind: Format, data: bytes) -> None:
    for record in cut(kind, data)[0]:
        parse(kind, record)


def folded(kind: Format, records: Sequence[bytes]) -> None:
    sessions = LogSessions("log", "main", TextPolicy(), FollowSettings(), 0)
    for place, record in enumerate(records):
        line = parse(kind, record)
        assert isinstance(line, LogLine)
        sessions.see(line, (1, place))
        if place % 600 == 0:
            sessions.out.clear()  # as the collector does, a piece at a time
    sessions.settle(2**60)


def followed(kind: Format, folder: Path) -> None:
    pattern = "*.json" if kind == "jsonlog" else "*.csv"
    files = LogFiles(folder, pattern, kind, FollowSettings(), True)
    sessions = LogSessions("log", "main", TextPolicy(), FollowSettings(), 0)
    for records, places in files.read(0.0):
        for record, place in zip(records, places, strict=True):
            line = parse(kind, record)
            assert isinstance(line, LogLine)
            sessions.see(line, place)
        sessions.out.clear()
    files.close()


class _Recording:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.seen = 0
        self.done = asyncio.Event()
        self.ticket = 0

    async def record(self, observations: Sequence[Observation | WitnessConnected]) -> int:
        for one in observations:
            self.ticket = self._recorder.record("witness", key(one), one, flush=False)
        self.seen += len(observations)
        if self._recorder.pending_bytes > 8 * 2**20:
            await self._recorder.recorded(self.ticket)
        self.done.set()
        return self.ticket

    async def recorded(self, ticket: int) -> None:
        await self._recorder.recorded(ticket)


async def recorded(kind: Format, folder: Path, count: int, disk: Path) -> tuple[float, float]:
    """CPU us a line of the whole process, and lines a second, until all is on disk."""
    with tempfile.TemporaryDirectory(dir=disk) as state:
        log = SegmentLog(Path(state) / "log", LogSettings())
        await log.claim(("witness",))
        recorder = Recorder(log, "bench", now_us(), RecorderSettings())
        outlet = _Recording(recorder)
        source = LogSource(folder, kind, Path(state) / "checkpoint", from_start=True)
        cpu, begun = time.process_time(), time.perf_counter()
        task = asyncio.create_task(LogCollector("log", "main", source).run(outlet))
        while outlet.seen < count:
            outlet.done.clear()
            await asyncio.wait({asyncio.ensure_future(outlet.done.wait()), task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        await recorder.recorded(outlet.ticket)
        took, cpu = time.perf_counter() - begun, time.process_time() - cpu
        task.cancel()
        await asyncio.wait((task,))
        await recorder.close()
        await log.close()
        return cpu / count * 1e6, count / took


def show(what: str, took: Sequence[float], peer: Sequence[float]) -> None:
    median, ratio = statistics.median(took), statistics.median(took) / statistics.median(peer)
    print(
        f"{what:<32} {median:6.2f} us [{min(took):5.2f}-{max(took):5.2f}]  {1e6 / median:9,.0f} lines/s a core  {ratio:4.2f} x peer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.collect")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is to be measured")
    asked = parser.parse_args()
    for kind in ("jsonlog", "csvlog"):
        data = lines(kind, asked.lines)
        records, _ = cut(kind, data)
        print(f"\n{kind}, {asked.lines} lines of {len(data) / asked.lines:.0f} bytes, {SESSIONS} sessions")
        texts = [record.decode() for record in records]
        peer = cpu_us(partial(_as_a_first_version_would, kind, texts), asked.lines, asked.rounds)
        show("peer: json.loads" if kind == "jsonlog" else "peer: csv.reader", peer, peer)
        parsing = cpu_us(partial(_parsed, kind, data), asked.lines, asked.rounds)
        show("cut and parse", parsing, peer)
        folding = cpu_us(partial(folded, kind, records), asked.lines, asked.rounds)
        show("parse and fold", folding, peer)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / ("log.json" if kind == "jsonlog" else "log.csv")).write_bytes(data)
            following = cpu_us(partial(followed, kind, Path(folder)), asked.lines, asked.rounds)
            show("read, parse and fold", following, peer)
            whole = [asyncio.run(recorded(kind, Path(folder), asked.lines, asked.folder)) for _ in range(asked.rounds)]
            show("whole collector, to disk", [cpu for cpu, _ in whole], peer)
            print(f"{'':<34} {statistics.median(rate for _, rate in whole):,.0f} lines/s by the clock, until all is on disk")


if __name__ == "__main__":
    main()
