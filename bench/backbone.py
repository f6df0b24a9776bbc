"""`python -m bench.backbone [PART ...]`: the figures of the backbone, docs/benchmarks.md. All parts, or those that are named.

Each part prints the command that it is, medians of several runs, CPU beside wall-clock time, and a ratio to a peer where there is
one, measured in the same interleaved run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import duckdb

import pgwarden
from bench import backbone_append, backbone_record, backbone_revocation, backbone_tables, servers, worker
from bench.servers import CannotMeasure

WORKER_EXECUTIONS_MAX: Final = 500_000


@dataclass(frozen=True, slots=True)
class Asked:
    folder: Path  # on the disk that is to be measured; it is empty, and removed afterwards
    executions: int
    sessions: int
    kafka: str  # HOST:PORT of a broker; "" where there is none
    keep: Path | None  # where the tables and the log of `rebuild` are kept, and found again


Part: TypeAlias = Callable[[Asked], Awaitable[None]]


async def _append(asked: Asked) -> None:
    await backbone_append.main(asked.folder / "append")


async def _record(asked: Asked) -> None:
    await backbone_record.main(asked.folder / "record")


async def _rebuild(asked: Asked) -> None:
    await backbone_tables.rebuilt(asked.keep or asked.folder / "tables", asked.executions)


async def _questions(asked: Asked) -> None:
    await backbone_tables.questions(asked.keep or asked.folder / "tables", asked.executions)


async def _revoke(asked: Asked) -> None:
    await backbone_revocation.main(asked.folder / "revoke", asked.sessions)


async def _revoke_kafka(asked: Asked) -> None:
    await backbone_revocation.on_kafka(asked.folder / "revoke-kafka", asked.sessions, _broker(asked))


async def _worker(asked: Asked) -> None:
    _, tables = await asyncio.to_thread(servers.kafka, _broker(asked))
    file = asked.folder / "worker.toml"
    file.touch(0o600)
    file.write_text(f'state = "worker"\n[gateway]\nname = "bench"\n{tables}')
    print(await worker.measure(file, min(asked.executions, WORKER_EXECUTIONS_MAX)))


def _broker(asked: Asked) -> str:
    if not asked.kafka:
        raise CannotMeasure("this part needs a broker; write --kafka HOST:PORT")
    return asked.kafka


PARTS: Final[Mapping[str, tuple[str, Part]]] = {
    "append": ("durable appends for 1 to 1,024 waiting, beside SQLite and a bare fdatasync (30 seconds)", _append),
    "record": ("what recording costs the gateway's loop, for each event (10 seconds)", _record),
    "rebuild": ("the tables of --executions anew from their log (1 to 3 minutes, 2 GB of disk)", _rebuild),
    "questions": ("each question by name on those tables (30 seconds after rebuild)", _questions),
    "revoke": ("from a revocation until the backends of --sessions sessions are gone (2 minutes)", _revoke),
}
KAFKA_PARTS: Final[Mapping[str, tuple[str, Part]]] = {
    "revoke-kafka": ("the same with the log in Kafka, through the gateway's relay (1 minute)", _revoke_kafka),
    "worker": ("executions through frames and a Faust worker, and revocation to order (1 minute)", _worker),
}
ALL: Final = {**PARTS, **KAFKA_PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.backbone",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:<14}{does}" for name, (does, _) in ALL.items()),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="(all)")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    parser.add_argument("--folder", help="write below this folder, on the disk that is to be measured")
    parser.add_argument("--executions", type=int, default=10_000_000, help="default %(default)s")
    parser.add_argument("--sessions", type=int, default=1_000, help="of part revoke, default %(default)s")
    parser.add_argument("--kafka", default="", metavar="HOST:PORT", help="a broker without TLS, for the parts that need one")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the log and the tables here, and use them again")
    asked = parser.parse_args()
    if asked.list:
        for name, (does, _) in ALL.items():
            print(f"{name:<14}{does}")
        return 0
    if unknown := sorted(set(asked.parts) - set(ALL)):
        parser.error(f"{unknown[0]}: no such part; there are {', '.join(ALL)}")
    print(_machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="pgwarden-backbone-", dir=asked.folder) as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root, the database goes through it under an account of its own
        for part in asked.parts or (ALL if asked.kafka else PARTS):
            print(f"\npython -m bench.backbone {part}   (load average {os.getloadavg()[0]:.2f})", flush=True)
            began = time.monotonic()
            try:
                asyncio.run(_run(part, Asked(folder, asked.executions, asked.sessions, asked.kafka, asked.keep)))
            except CannotMeasure as problem:
                print(f"bench: {problem}", file=sys.stderr)
                return 1
            print(f"{time.monotonic() - began:.0f} s; load average {os.getloadavg()[0]:.2f}", flush=True)
    return 0


async def _run(part: str, asked: Asked) -> None:
    await ALL[part][1](asked)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return (
        f"{os.cpu_count()} cores ({cpu}), Linux {platform.release().partition('-')[0]}; pgwarden {pgwarden.__version__}, "
        f"Python {platform.python_version()}, DuckDB {duckdb.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
