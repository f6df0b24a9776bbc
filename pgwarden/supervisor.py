"""Starts child processes one after another, each once its predecessor answers; notices when one dies; ends all in reverse order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final

from pgwarden.postgres import die_with_parent


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    ready_seconds_max: float = 120.0  # from start to the first answer: 3 on two old cores, 60 where they are busy
    stop_seconds_max: float = 8.0  # from SIGTERM to SIGKILL; the gateway gives its sessions 5
    log_bytes_max: int = 16 * 2**20  # a log larger than this is begun anew at the next start
    last_lines: int = 12  # of a log, shown when its process died
    poll_seconds: float = 0.05


class ChildDied(Exception):
    """A part ended, or did not come up. Says which, how, and what it said last."""


class Interrupted(Exception):
    """Somebody asked for the end (SIGINT, SIGTERM, SIGHUP)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One child process. `arguments` may be read by every user of the machine: secrets go by file or environment."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)  # beside the parent's own
    ready: Callable[[], bool] = lambda: True  # asked until true; answers at once, and does not raise
    stop_signal: int = signal.SIGTERM


@dataclass(slots=True)
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    log: Path


class Supervisor:
    """Use as a context manager, from the main thread: the end of the block ends every part, whatever ended the block.

    Each part has a session of its own, so that Ctrl-C reaches this process alone, and dies with this process even when that is
    killed (`die_with_parent`). SIGINT, SIGTERM and SIGHUP raise `Interrupted` at the next `wait`; a second one ends the stopping
    at once, with SIGKILL.
    """

    def __init__(self, logs: Path, settings: SupervisorSettings | None = None) -> None:
        self.settings = settings or SupervisorSettings()
        self.logs = logs
        self._running: list[_Running] = []
        self._signals = 0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Supervisor:
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        for number, before in self._before.items():
            signal.signal(number, before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    @property
    def interrupted(self) -> bool:
        return self._signals > 0

    def start(self, part: Part) -> None:
        """Return once the part is ready.

        Raises:
            ChildDied: This part, or one that was started before it.
            Interrupted: A signal came meanwhile.
        """
        log = self.logs / f"{part.name}.log"
        running = _Running(part, self._spawn(part, log), log)
        self._running.append(running)
        until = time.monotonic() + self.settings.ready_seconds_max
        while not part.ready():
            if time.monotonic() > until:
                raise ChildDied(
                    f"{part.name} did not answer within {self.settings.ready_seconds_max:g} s.{self._last_words(running)}"
                )
            self.wait(self.settings.poll_seconds)
        self.check()  # what answered may have been somebody else

    def check(self) -> None:
        """
        Raises:
            ChildDied: A part is no more.
        """
        for running in self._running:
            if ending := _ending(running.process.pid):
                raise ChildDied(f"{running.part.name} {ending}.{self._last_words(running)}")

    def wait(self, seconds: float) -> None:
        """Let time pass, with an eye on the parts.

        Raises:
            ChildDied: A part is no more.
            Interrupted: A signal came.
        """
        until = time.monotonic() + seconds
        while True:
            if self.interrupted:
                raise Interrupted
            self.check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, self.settings.poll_seconds))

    def pid(self, name: str) -> int:
        return next(running.process.pid for running in self._running if running.part.name == name)

    def names(self) -> Iterator[str]:
        return (running.part.name for running in self._running)

    def stop(self) -> None:
        """End every part, the last first and each before the next: agents before the gateway, the gateway before the database."""
        heard = self._signals
        while self._running:
            running = self._running.pop()
            process = running.process
            os.kill(process.pid, running.part.stop_signal)  # to a process that has ended this is harmless
            until = time.monotonic() + self.settings.stop_seconds_max
            while not _ending(process.pid) and time.monotonic() < until and self._signals <= heard:
                time.sleep(0.01)
            # Whatever of it is left: the part itself when it does not listen, or what it started. Nobody has waited for the leader
            # yet, so the group's number cannot be another's.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _spawn(self, part: Part, log: Path) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > self.settings.log_bytes_max:
                log.unlink()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                list(part.arguments),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment},
                start_new_session=True,
                preexec_fn=die_with_parent(part.stop_signal),  # noqa: PLW1509 - one system call, prepared; no threads here
            )
        except OSError as error:
            raise ChildDied(f"{part.name} could not be started: {error}") from error
        finally:
            os.close(descriptor)

    def _last_words(self, running: _Running) -> str:
        lines = last_lines(running.log, self.settings.last_lines)
        if not lines:
            return f" It wrote nothing to {running.log}"
        return f" The end of {running.log}:\n" + "\n".join(f"  | {line}" for line in lines)


_TAIL_BYTES: Final = 16384


def last_lines(path: Path, count: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _ending(pid: int) -> str:
    """How a child ended, "" while it runs. Leaves it to be waited for, which keeps its number its own."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return ""
    if found.si_code == os.CLD_EXITED:
        return f"ended by itself with status {found.si_status}"
    return f"was ended by {signal.Signals(found.si_status).name}"
