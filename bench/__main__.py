"""`python -m bench`: the comparison of docs/benchmarks.md. `python -m bench log`: what recording costs."""

from __future__ import annotations

import argparse
import asyncio
import sys

from bench import log_append, proxies
from bench.proxies import LEVELS, PROTOCOLS, ProxySettings
from bench.servers import CannotMeasure

BENCHMARKS = {
    "proxies": "pgbench directly, through PgBouncer and through the gateway (the default; about 4 minutes)",
    "log": "appends to the log, and executions recorded in it (15 seconds)",
}


def main() -> int:
    defaults = ProxySettings()
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n" + "\n".join(f"  {name:<10}{does}" for name, does in BENCHMARKS.items()),
    )
    parser.add_argument("benchmark", nargs="?", choices=tuple(BENCHMARKS), default="proxies")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and end")
    parser.add_argument("--folder", help="write the log below this folder, on the disk that is to be measured")
    of_proxies = parser.add_argument_group("proxies")
    of_proxies.add_argument("--rounds", type=_positive, default=defaults.rounds, help="default %(default)s")
    of_proxies.add_argument("--seconds", type=_positive, default=defaults.seconds, help="of each run, default %(default)s")
    of_proxies.add_argument("--scale", type=_positive, default=defaults.scale, help="pgbench's -s, default %(default)s")
    of_proxies.add_argument("--clients", type=_positive, nargs="+", default=defaults.clients)
    of_proxies.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=defaults.protocols)
    of_proxies.add_argument("--levels", nargs="+", choices=LEVELS, default=defaults.levels)
    asked = parser.parse_args()
    if asked.list:
        for name, does in BENCHMARKS.items():
            print(f"{name:<10}{does}")
        return 0
    if asked.benchmark == "log":
        asyncio.run(log_append.main(asked.folder))
        return 0
    settings = ProxySettings(
        asked.rounds,
        asked.seconds,
        asked.scale,
        tuple(asked.protocols),
        tuple(asked.clients),
        tuple(asked.levels),
        asked.folder,
    )
    try:
        return proxies.main(settings)
    except CannotMeasure as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
