from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgwarden.supervisor import ChildDied, Interrupted, Part, Supervisor, SupervisorSettings

QUICK = SupervisorSettings(ready_seconds_max=5.0, stop_seconds_max=1.0, poll_seconds=0.01)


def program(name: str, source: str, ready: Callable[[], bool] = lambda: True) -> Part:
    return Part(name, [sys.executable, "-c", source], ready=ready)


def sleeper(name: str) -> Part:
    return program(name, "import time; time.sleep(60)")


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_part_is_started_once_it_answers(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = f"import pathlib, time; time.sleep(0.2); pathlib.Path({str(flag)!r}).touch(); time.sleep(60)"
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        supervisor.start(program("slow", source, flag.exists))
        assert flag.exists()


def test_a_part_that_dies_while_starting_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        Supervisor(tmp_path / "logs", QUICK) as supervisor,
        pytest.raises(ChildDied, match=r"(?s)^broken ended by itself with status 3\..*\| no port for me$"),
    ):
        supervisor.start(program("broken", "print('no port for me'); raise SystemExit(3)", lambda: False))


def test_a_part_that_never_answers_is_reported(tmp_path: Path) -> None:
    settings = SupervisorSettings(ready_seconds_max=0.2)
    with Supervisor(tmp_path / "logs", settings) as supervisor, pytest.raises(ChildDied, match=r"mute did not answer within 0.2 s"):
        supervisor.start(Part("mute", ["sleep", "60"], ready=lambda: False))


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", QUICK) as supervisor, pytest.raises(ChildDied, match="ghost could not be started"):
        supervisor.start(Part("ghost", ["/nonexistent/program"]))


def test_the_death_of_a_part_later_on_ends_the_wait(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        supervisor.start(sleeper("first"))
        supervisor.start(sleeper("second"))
        os.kill(supervisor.pid("first"), signal.SIGKILL)
        with pytest.raises(ChildDied, match="first was ended by SIGKILL"):
            supervisor.wait(5)


def test_the_last_part_started_is_the_first_ended(tmp_path: Path) -> None:
    order = tmp_path / "order"
    source = (
        "import signal, sys, time, pathlib\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path(sys.argv[1] + sys.argv[2]).touch(); time.sleep(60)"
    )
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        for name in ("database", "gateway", "agent"):
            flag = Path(f"{order}{name}")
            supervisor.start(Part(name, [sys.executable, "-c", source, str(order), name], ready=flag.exists))
    assert order.read_text().split() == ["agent", "gateway", "database"]


def test_what_does_not_listen_is_killed_with_all_that_it_started(tmp_path: Path, wait_for: Callable[..., object]) -> None:
    source = (
        "import signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
    )
    note = tmp_path / "note"
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        supervisor.start(
            Part("deaf", [sys.executable, "-c", source, str(note)], ready=lambda: note.exists() and note.read_text() != "")
        )
        pids = [supervisor.pid("deaf"), int(note.read_text())]
        begun = time.monotonic()
    assert 0.9 < time.monotonic() - begun < 10  # it is asked for a second; a loaded machine takes its time to kill
    assert not alive(pids[0])
    wait_for(lambda: not alive(pids[1]), 5)  # killed, though nobody waits for it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_and_then_the_parts(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        supervisor.start(sleeper("part"))
        pid = supervisor.pid("part")
        timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(Interrupted):
            supervisor.wait(5)
        timer.join()
        assert alive(pid)
    assert not alive(pid)
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait_for_what_does_not_listen(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = f"import signal, time, pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(flag)!r}).touch(); time.sleep(60)"
    with Supervisor(tmp_path / "logs", SupervisorSettings(stop_seconds_max=30)) as supervisor:
        supervisor.start(program("deaf", source, flag.exists))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        begun = time.monotonic()
    assert time.monotonic() - begun < 5


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path: Path, wait_for: Callable[..., object]) -> None:
    source = (
        "import sys, time; from pathlib import Path; from pgwarden.supervisor import Part, Supervisor\n"
        "with Supervisor(Path(sys.argv[1])) as supervisor:\n"
        "    supervisor.start(Part('part', ['sleep', '60'])); print(supervisor.pid('part'), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid))


def test_a_parts_environment_and_log_are_not_for_others(tmp_path: Path) -> None:
    part = Part("part", [sys.executable, "-c", "import os, time; print(os.environ['TOKEN']); time.sleep(60)"], {"TOKEN": "t"})
    with Supervisor(tmp_path / "logs", QUICK) as supervisor:
        supervisor.start(part)
        pid = supervisor.pid("part")
        assert Path(f"/proc/{pid}/environ").stat().st_mode & 0o077 == 0
        assert (tmp_path / "logs" / "part.log").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
