"""`pgwarden up` as a user starts it: another process, a folder of its own, ports of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import broker as brokers
from tests.system import house

housed = house.housed
ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 90.0  # two old cores, with other tests beside


def four_free_ports() -> int:
    """The first of four neighbours."""
    for _ in range(100):
        with ExitStack() as stack:
            base = brokers.port()
            try:
                for port in range(base, base + 4):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
        return base
    raise AssertionError("there are no four free ports in a row")


@dataclass
class Up:
    """A running `pgwarden up`, in `folder` with its state in `folder/.pgwarden`."""

    folder: Path
    base: int
    process: subprocess.Popen[bytes]

    @property
    def state(self) -> Path:
        return self.folder / ".pgwarden"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.base + 1}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.base + 2}"

    def said(self) -> str:
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in (self.state / "logs").glob("*.log")
        )

    def get(self, path: str, **query: str | int) -> object:
        key = (self.state / "operator.key").read_text().strip()
        answer = httpx.get(
            f"{self.api}{path}", params=query, headers={"Authorization": f"Bearer {key}"}, timeout=10, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def items(self, path: str, **query: str | int) -> list[dict[str, object]]:
        page = self.get(path, **query)
        assert isinstance(page, dict)
        items: list[dict[str, object]] = page["items"]
        return items

    def shell(self, command: str) -> str:
        """What a user sees who types this in the same folder; the exit status is the command's own affair."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    def stop(self, seconds: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def start(folder: Path, *arguments: str, command: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """`pgwarden up` with these arguments; `command` stands before it."""
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [*command, sys.executable, "-m", "pgwarden", "up", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )


def make_folder() -> Path:
    """Not tmp_path: as root, the embedded database goes through it under an account of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pgwarden-up-"))
    folder.chmod(0o711)
    command = folder / "pgwarden"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pgwarden "$@"\n')
    command.chmod(0o755)
    return folder


def wait_until_all_runs(running: Up) -> Up:
    until = time.monotonic() + START_SECONDS_MAX
    while "What happens:" not in running.said():
        assert running.process.poll() is None, running.said()
        assert time.monotonic() < until, running.said() + running.logs()
        time.sleep(0.1)
    return running


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One for all tests of a file that only look, or that put back what they changed. Its agents work as long as it is there."""
    folder, base = make_folder(), four_free_ports()
    running = Up(folder, base, start(folder, "--port-base", str(base)))
    try:
        yield wait_until_all_runs(running)
    finally:
        try:
            running.stop()
        finally:
            shutil.rmtree(folder)


@pytest.fixture
def begin() -> Iterator[Callable[..., Up]]:
    """`begin("--for", "10", whole=False)` starts another one; with `whole` it returns once all runs. All end with the test."""
    with ExitStack() as stack:

        def begin(
            *arguments: str, whole: bool = False, folder: Path | None = None, base: int = 0, config: Path | None = None
        ) -> Up:
            if folder is None:
                folder = make_folder()
                stack.callback(shutil.rmtree, folder)
            base = base or four_free_ports()
            where = ("-c", str(config)) if config is not None else ("--port-base", str(base))
            running = Up(folder, base, start(folder, *where, *arguments))
            stack.callback(running.stop)
            return wait_until_all_runs(running) if whole else running

        yield begin


@pytest.fixture
def free_ports() -> Callable[[], int]:
    """The first of four neighbours that are free, at each call."""
    return four_free_ports
