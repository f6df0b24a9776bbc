"""A real Keycloak for tests: one node on loopback over TLS, its realm from deploy/realm.json, nothing kept, gone with the tests.

`make keycloak` fetches and builds it into .venv/keycloak; PGWARDEN_KEYCLOAK names another folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx

from pgwarden.postgres import die_with_parent
from tests.broker import port

START_SECONDS_MAX: Final = 240.0  # 10 to 30 s on a quiet machine
STOP_SECONDS_MAX: Final = 20.0


def home() -> Path | None:
    """Its folder, where it is there and Java is too."""
    folder = Path(os.environ.get("PGWARDEN_KEYCLOAK") or Path(__file__).parent.parent / ".venv" / "keycloak")
    return folder if (folder / "bin" / "kc.sh").exists() and shutil.which("java") is not None else None


class Keycloak:
    """`folder` is what deploy/setup.py made for it: realm.json, server.pem, server.key."""

    def __init__(self, folder: Path, authority: Path) -> None:
        self.port = port()
        self.issuer = f"https://localhost:{self.port}/realms/agents"
        self._folder = folder
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Keycloak:
        place = home()
        assert place is not None
        imported = place / "data" / "import"
        imported.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._folder / "realm.json", imported / "agents.json")
        log = self._folder / "keycloak.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    "sh",
                    str(place / "bin" / "kc.sh"),
                    "start",
                    "--optimized",
                    "--import-realm",
                    "--http-host=127.0.0.1",
                    f"--https-port={self.port}",
                    f"--hostname=https://localhost:{self.port}",
                    "--cache=local",
                    f"--https-certificate-file={self._folder / 'server.pem'}",
                    f"--https-certificate-key-file={self._folder / 'server.key'}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx256m"},
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
        until = time.monotonic() + START_SECONDS_MAX
        trusted = ssl.create_default_context(cafile=str(self._authority))
        while True:
            try:
                if httpx.get(self.issuer, verify=trusted, trust_env=False, timeout=5).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__(None, None, None)
                raise AssertionError(f"Keycloak did not come up:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # the script and its Java
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
