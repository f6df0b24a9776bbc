"""Each part as a service manager runs it: a process of its own, whose standard error is its log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gateway_tells_its_log_when_it_listens(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "pgwarden.toml").write_text(f'state = "s"\ngateway = {{ listen = "127.0.0.1:{free_port}" }}\n')
    gateway = subprocess.Popen(
        [sys.executable, "-m", "pgwarden", "gateway", "-c", str(tmp_path / "pgwarden.toml")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 20
    while not (tmp_path / "s" / "run" / "gateway.sock").exists() and time.monotonic() < until:
        time.sleep(0.05)
    gateway.send_signal(signal.SIGTERM)
    _, said = gateway.communicate(timeout=20)
    assert gateway.returncode == 0
    assert re.search(rf"^[0-9-]+ [0-9:,]+ INFO pgwarden.gateway: listening on 127.0.0.1:{free_port}$", said, re.M), said
