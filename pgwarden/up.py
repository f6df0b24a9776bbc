"""`pgwarden up`: runs every part on this machine, shows what happens, and ends all of it together.

Without a file it also brings a database, an issuer of tokens and three sample agents, and keeps everything in one folder.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgwarden import __version__, dashboard_process, first_start, watch
from pgwarden.api_client import KEY_FILE
from pgwarden.config import Address, Config, ConfigInvalid, load
from pgwarden.first_start import Home
from pgwarden.postgres import Postgres, PostgresSettings, PostgresUnavailable
from pgwarden.psql import NoPsql, psql
from pgwarden.settings import COLLECTOR_SOCKET_FILE, SOCKET_FILE, WATCHDOG_SOCKET_FILE, WEBHOOKS_SOCKET_FILE
from pgwarden.status_socket import status_of
from pgwarden.supervisor import ChildDied, Interrupted, Part, Supervisor
from pgwarden.tables import width
from pgwarden.tls import fingerprint

NEWS_SECONDS: Final = 1.0
COUNTERS_SECONDS: Final = 10.0
VERDICT_ATTEMPTS: Final = 3
_ROOT: Final = Path(__file__).parent.parent


class CannotStart(Exception):
    """Nothing was started. Says what to do."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    config: Path | None
    state: Path
    port_base: int | None
    seconds: float | None  # None = until somebody ends it


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 0 all is well (with `--for`: every part did its job), 1 not, 2 the command line or the configuration."""
    wish = Wish(
        config=arguments.config,
        state=arguments.state or Path(".pgwarden"),
        port_base=getattr(arguments, "port_base", None),
        seconds=arguments.for_seconds,
    )
    if wish.config is not None and (arguments.state is not None or wish.port_base is not None):
        print("pgwarden up: --state and --port-base are for a start without --config; the file says both", file=sys.stderr)
        return 2
    begun_us = int(time.time() * 1e6)
    try:
        return _front(wish, wish.config, begun_us) if wish.config is not None else _everything(wish, begun_us)
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    except (CannotStart, first_start.StateUnusable, PostgresUnavailable, ChildDied) as error:
        print(f"pgwarden up: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        _say("stopping")
        return 0 if wish.seconds is None else 1


# -- two ways to start -------------------------------------------------------------------------------------------------------------


def _everything(wish: Wish, begun_us: int) -> int:
    for name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGWARDEN")]:
        del os.environ[name]  # a PGPASSWORD or PGHOST of the user's must not decide where the samples go
    home = first_start.settle(wish.state, wish.port_base)
    ports = home.ports
    with ExitStack() as stack:
        stack.enter_context(_alone(home.state))
        _check_ports({"gateway": ports.gateway, "API": ports.api, "dashboard": ports.dashboard, "development issuer": ports.issuer})
        supervisor = stack.enter_context(Supervisor(home.state / "logs"))
        print(f"pgwarden {__version__}, everything in {_shown(home.state)}\n", flush=True)
        server = Postgres(home.state / "postgres", PostgresSettings(jsonlog=True, parameters=first_start.POSTGRES_LOG))
        stack.callback(server.stop)
        stack.callback(supervisor.stop)  # before the database
        server.start()
        first_start.fill(server, home)
        _started("database", f"PostgreSQL 18 on 127.0.0.1:{server.port}, which asks everybody for a password")
        first_start.write_configuration(home, server.port, server.log_folder)
        first_start.forget_checkpoints(home)
        config = load(home.config)
        supervisor.start(_issuer(home))
        _started("issuer", f"{home.issuer_url}, for development")
        _start_parts(supervisor, config)
        for agent in first_start.SAMPLES:
            supervisor.start(_sample(home, agent))
        _started("agents", ", ".join(first_start.SAMPLES))
        _guide(home)
        reader = _reader(config, home.operator_key_file, begun_us)
        status = _watch(supervisor, config, reader, first_start.SAMPLES, wish.seconds, server)
        _say("stopping")
    return status


def _front(wish: Wish, file: Path, begun_us: int) -> int:
    config = load(file)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(config.state))
        listens = [("gateway", config.gateway.listen), ("api", config.api.listen), ("dashboard", config.dashboard.listen)]
        if config.metrics is not None:
            listens.append(("metrics", config.metrics.listen))
        for part, listen in listens:
            _check_port(listen, f"change listen under [{part}] in {file}")
        supervisor = stack.enter_context(Supervisor(config.state / "logs"))
        print(f"pgwarden {__version__}, configured by {file}\n", flush=True)
        _start_parts(supervisor, config)
        key_file = Path(os.environ.get("PGWARDEN_OPERATOR_KEY_FILE", "") or config.state / KEY_FILE)
        if key_file.exists():
            status = _watch(supervisor, config, _reader(config, key_file, begun_us), (), wish.seconds, None)
        else:
            _say(f"no operator key in {_shown(key_file)}, so neither dashboard nor terminal can show what happens: put one there")
            supervisor.wait(wish.seconds if wish.seconds is not None else float("inf"))
            _say("failed      without an operator key nobody can say whether all parts did their job")
            status = 1
        _say("stopping")
    return status


# -- the parts ---------------------------------------------------------------------------------------------------------------------


def _start_parts(supervisor: Supervisor, config: Config) -> None:
    """The API first: it is the API that registers the configuration's agents, and the gateway that asks for them."""
    api = dashboard_process.url(config.api.listen)
    dashboard = dashboard_process.url(config.dashboard.listen)
    supervisor.start(Part("api", _command("api", config.path), _environment(), lambda: _listens(config.api.listen)))
    _started("api", api)
    if config.collectors:
        collector_socket = config.state / COLLECTOR_SOCKET_FILE
        supervisor.start(
            Part(
                "collector",
                _command("collector", config.path),
                _environment(),
                lambda: _is_up(collector_socket, supervisor, "collector"),
            )
        )
        _started("collector", ", ".join(f"{one.name}: the {one.kind} of {one.server}" for one in config.collectors.values()))
    status_socket = config.state / SOCKET_FILE
    supervisor.start(
        Part(
            "gateway",
            _command("gateway", config.path),
            _environment(),
            lambda: _is_up(status_socket, supervisor, "gateway") and _listens(config.gateway.listen),
        )
    )
    certificate = config.gateway.tls_certificate or config.state / "tls" / "certificate.pem"
    _started("gateway", f"{config.gateway.listen}, TLS certificate {_shown(certificate)}")
    _started("", f"SHA-256 {fingerprint(certificate)}")
    watchdog_socket = config.state / WATCHDOG_SOCKET_FILE
    supervisor.start(
        Part("watchdog", _command("watchdog", config.path), _environment(), lambda: _watches(watchdog_socket, supervisor))
    )
    _started("watchdog", "ends what the gateway should have ended, should it hang or be gone")
    supervisor.start(
        Part("dashboard", _command("dashboard", config.path), _environment(), lambda: watch.answers(f"{dashboard}/_stcore/health"))
    )
    _started("dashboard", dashboard_process.address(config))
    if config.metrics is not None:
        listen = config.metrics.listen
        supervisor.start(Part("metrics", _command("metrics", config.path), _environment(), lambda: _listens(listen)))
        _started("metrics", f"{dashboard_process.url(listen)}/metrics")
    if config.webhooks:
        _start_webhooks(supervisor, config)


def _start_webhooks(supervisor: Supervisor, config: Config) -> None:
    status_socket = config.state / WEBHOOKS_SOCKET_FILE
    supervisor.start(
        Part("webhooks", _command("webhooks", config.path), _environment(), lambda: _is_up(status_socket, supervisor, "webhooks"))
    )
    _started("webhooks", ", ".join(sorted(config.webhooks)))


def _issuer(home: Home) -> Part:
    client = f"{first_start.TOKEN_AGENT}={home.client_secret_file}"
    command = [
        sys.executable,
        "-m",
        "pgwarden.dev_issuer",
        "--folder",
        str(home.state / "issuer"),
        "--port",
        str(home.ports.issuer),
    ]
    metadata = f"{home.issuer_url}/.well-known/openid-configuration"
    return Part("issuer", [*command, "--client", client], _environment(), lambda: watch.answers(metadata))


def _sample(home: Home, agent: str) -> Part:
    if agent in first_start.KEY_AGENTS:
        where = {"PGSERVICEFILE": str(home.services), "PGSERVICE": agent}
    else:
        where = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(home.ports.gateway),
            "PGDATABASE": first_start.CONNECTION,
            "PGUSER": agent,
            "PGSSLROOTCERT": str(home.tls.certificate),
            "PGWARDEN_ISSUER": home.issuer_url,
            "PGWARDEN_CLIENT": agent,
            "PGWARDEN_CLIENT_SECRET_FILE": str(home.client_secret_file),
        }
    return Part(agent, [sys.executable, "-m", f"pgwarden.samples.{agent}"], _environment(where))


def _command(part: str, config: Path) -> Sequence[str]:
    return [sys.executable, "-m", "pgwarden", part, "-c", str(config)]


def _environment(more: Mapping[str, str] | None = None) -> Mapping[str, str]:
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), inherited))), **(more or {})}


def _is_up(status_socket: Path, supervisor: Supervisor, part: str) -> bool:
    """Whether the one that answers is the one that was started."""
    try:
        return status_of(status_socket, watch.STATUS_SECONDS_MAX).get("pid") == supervisor.pid(part)
    except (OSError, ValueError):
        return False


def _watches(status_socket: Path, supervisor: Supervisor) -> bool:
    """Whether the watchdog that answers is the one that was started, and knows what is live."""
    try:
        status = status_of(status_socket, watch.STATUS_SECONDS_MAX)
    except (OSError, ValueError):
        return False
    return status.get("pid") == supervisor.pid("watchdog") and bool(status.get("caught_up"))


def _listens(address: Address) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout=1.0):
            return True
    except OSError:
        return False


# -- before anything is started ----------------------------------------------------------------------------------------------------


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Two of us in one folder would write one log."""
    (state / "run").mkdir(mode=0o700, exist_ok=True)
    with (state / "run" / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotStart(f"pgwarden runs already in {_shown(state)} (process {lock.read().strip()})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_ports(ports: Mapping[str, int]) -> None:
    example = next(base for base in (7432, 17432, 27432) if base not in ports.values())
    remedy = (
        f"use ports of your own: --port-base {example} --state .pgwarden-{example} (gateway {example}, API {example + 1},"
        f" dashboard {example + 2}, issuer {example + 3})"
    )
    for part, port in ports.items():
        _check_port(Address("127.0.0.1", port), remedy, part)


def _check_port(listen: Address, remedy: str, part: str = "") -> None:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        socket.create_server((listen.host, listen.port), family=family).close()
    except OSError as error:
        needed = f", and the {part} needs it" if part else ""
        raise CannotStart(f"{listen} is taken{needed} ({error.strerror}); stop what listens there, or {remedy}") from error


# -- while it runs -----------------------------------------------------------------------------------------------------------------


def _reader(config: Config, key_file: Path, begun_us: int) -> watch.Watch:
    sockets = (config.state / SOCKET_FILE, config.state / WATCHDOG_SOCKET_FILE)
    collector = config.state / COLLECTOR_SOCKET_FILE if config.collectors else None
    return watch.Watch(dashboard_process.url(config.api.listen), key_file, *sockets, begun_us, collector)


def _watch(
    supervisor: Supervisor,
    config: Config,
    reader: watch.Watch,
    agents: Sequence[str],
    seconds: float | None,
    server: Postgres | None,
) -> int:
    """Show the news until the time is over; then judge. Closes the reader.

    Raises:
        ChildDied: A part is no more.
        Interrupted: Somebody asked for the end.
    """
    begun = time.monotonic()
    end = begun + seconds if seconds is not None else float("inf")
    counters_at = begun + COUNTERS_SECONDS / 2
    try:
        while time.monotonic() < end:
            for line in reader.news():
                _say(line)
            if time.monotonic() >= counters_at:
                counters_at += COUNTERS_SECONDS
                if line := reader.counters():
                    _say(line)
            supervisor.wait(max(0.0, min(NEWS_SECONDS, end - time.monotonic())))
            if server is not None and not server.pid:
                raise ChildDied(f"the database ended by itself; see {server.log_path}")
        return _judge(supervisor, reader, agents, dashboard_process.url(config.dashboard.listen))
    finally:
        reader.close()


def _judge(supervisor: Supervisor, reader: watch.Watch, agents: Sequence[str], dashboard: str) -> int:
    problems: list[str] = []
    for attempt in range(VERDICT_ATTEMPTS):
        if attempt:
            supervisor.wait(1.0)  # an agent may just be between two connections
        problems = reader.shortcomings(agents, dashboard)
        if not problems:
            if line := reader.counters():
                _say(line)
            _say("all parts did their job")
            return 0
    for problem in problems:
        _say(f"failed      {problem}")
    return 1


def _guide(home: Home) -> None:
    """Commands to copy. They are in the README too, where a test runs them."""
    from_here = Path.cwd()
    finds_it = home.state == from_here / ".pgwarden" and not (from_here / "pgwarden.toml").exists()
    where = "" if finds_it else f" -c {shlex.quote(_shown(home.config))}"
    command = _own_command()
    print()
    if home.new_operator_key:
        print(f"The operator key, shown this once and kept in {_shown(home.operator_key_file)}:\n\n  {home.new_operator_key}\n")
    print("In another terminal:\n")
    rows = [
        ("connect as an agent", f"PGSERVICEFILE={shlex.quote(_shown(home.services))} {_psql()} service=ingestion"),
        ("see what it did", f"{command} audit ingestion --since 5m{where}"),
        ("revoke it", f"{command} revoke ingestion --reason 'trying it out'{where}"),
        ("let it in again", f"{command} reinstate ingestion{where}"),
    ]
    for what, how in rows:
        print(f"  {what:<20} {how}")
    print("\nCtrl-C ends everything. What happens:\n", flush=True)


def _psql() -> str:
    try:
        found = psql()
    except NoPsql:
        return "psql"
    if not found.preload:
        return "psql"
    return f"LD_PRELOAD={shlex.quote(found.preload)} {shlex.quote(_shown(Path(found.path)))}"


def _own_command() -> str:
    beside = Path(sys.executable).with_name("pgwarden")
    on_path = shutil.which("pgwarden")
    if on_path is not None and Path(on_path).resolve() == beside.resolve():
        return "pgwarden"
    if beside.exists():
        return shlex.quote(_shown(beside))
    return f"{shlex.quote(_shown(Path(sys.executable)))} -m pgwarden"


def _shown(path: Path) -> str:
    """Relative to where we are, when that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _started(part: str, where: str) -> None:
    print(f"  {part:<10} {where}", flush=True)


def _say(text: str) -> None:
    line = f"{time.strftime('%H:%M:%S')}  {text}"
    if sys.stdout.isatty():
        line = textwrap.fill(line, width(), subsequent_indent=" " * 22, break_on_hyphens=False)
    print(line, flush=True)
