"""SQL text in; out comes what `ingest.sql.parse` says, from a process that may hang or die without harm to this one.

For statements that would stop the event loop too long, see `ingest.sql.parses_inline`. The parser's C code meets the longest texts
here, with a time limit, a memory limit and none of this process's environment.
"""

from __future__ import annotations

import asyncio
import resource
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from ingest import sql
from ingest.sql_limits import Limits


@dataclass(frozen=True, slots=True)
class ParserSettings:
    parse_ms_max: int = 250  # 256 KB of INSERT take about 100
    memory_bytes_max: int = 512 * 2**20  # address space; the interpreter with its libraries takes 100 MB of it
    waiting_max: int = 64  # statements that wait for the one worker
    start_seconds_max: float = 10.0
    limits: Limits = sql.DEFAULT_LIMITS


_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_LENGTH: Final = struct.Struct("!I")
_ANSWER_BYTES_MAX: Final = 64 * 2**20
_READY: Final = b"ready"
_TOO_COMPLEX: Final = sql.Unparsable("54001", "statement is too complex", 0)
_BUSY: Final = sql.Unparsable("53000", "too many large statements are waiting to be parsed", 0)

_Answer = tuple[sql.Script | None, sql.Unparsable | None]


class ParserProcess:
    """One worker, started by the first statement and again after each death. One statement at a time, in order."""

    def __init__(self, settings: ParserSettings | None = None) -> None:
        self._settings = settings or ParserSettings()
        self._decoder = msgspec.msgpack.Decoder(_Answer)
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: Process | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's, while there is one."""
        return self._process.pid if self._process is not None else None

    async def parse(self, text: str) -> sql.Script | sql.Unparsable:
        """Like `ingest.sql.parse`; a worker that dies, hangs or grows costs this statement alone. Calls may overlap.

        Raises:
            RuntimeError: After `close`.
        """
        if self._closed:
            raise RuntimeError("the parser process is closed")
        raw = text.encode(errors="surrogatepass")  # a lone surrogate gets its answer from the worker
        if len(raw) > self._settings.limits.statement_bytes_max:
            return sql.parse(text, self._settings.limits)  # says so, and reads no further
        if self._waiting >= self._settings.waiting_max:
            return _BUSY
        self._waiting += 1
        try:
            async with self._lock:
                return await self._exchange(raw)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the worker. A statement that is being parsed is given up; whoever waits for it gets `54001`."""
        self._closed = True
        await self._stop()

    async def _exchange(self, raw: bytes) -> sql.Script | sql.Unparsable:
        answered = False
        try:
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            async with asyncio.timeout(self._settings.parse_ms_max / 1000):
                process.stdin.write(_LENGTH.pack(len(raw)) + raw)
                await process.stdin.drain()
                (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
                if length > _ANSWER_BYTES_MAX:
                    return _TOO_COMPLEX
                script, unparsable = self._decoder.decode(await process.stdout.readexactly(length))
            answered = True
            return script or unparsable or _TOO_COMPLEX
        except (TimeoutError, EOFError, OSError, msgspec.DecodeError):
            return _TOO_COMPLEX
        finally:
            if not answered:  # by cancellation as well: the pipe may hold half an answer
                await self._stop()

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._stop()
        if self._closed:
            raise EOFError
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ingest.parser_process",
            str(self._settings.memory_bytes_max),
            str(self._settings.limits.statement_bytes_max),
            str(self._settings.limits.tokens_max),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=_ROOT,
            env={"PYTHONPATH": _ROOT},  # nothing else: the environment of the gateway holds passwords
            start_new_session=True,  # Ctrl-C is for the gateway; the worker ends with its pipe
        )
        assert process.stdout is not None
        async with asyncio.timeout(self._settings.start_seconds_max):
            await process.stdout.readexactly(len(_READY))
        return process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.shield(process.wait())


def _work(memory_bytes_max: int, limits: Limits, requests: BinaryIO, answers: BinaryIO) -> None:
    """The worker: one request after the other until the pipe ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    encoder = msgspec.msgpack.Encoder()
    answers.write(_READY)
    answers.flush()
    while len(head := requests.read(_LENGTH.size)) == _LENGTH.size:
        text = requests.read(_LENGTH.unpack(head)[0]).decode(errors="surrogatepass")
        parsed = sql.parse(text, limits)
        answer: _Answer = (parsed, None) if isinstance(parsed, sql.Script) else (None, parsed)
        encoded = encoder.encode(answer)
        answers.write(_LENGTH.pack(len(encoded)) + encoded)
        answers.flush()


if __name__ == "__main__":
    _work(
        int(sys.argv[1]),
        Limits(statement_bytes_max=int(sys.argv[2]), tokens_max=int(sys.argv[3])),
        sys.stdin.buffer,
        sys.stdout.buffer,
    )
