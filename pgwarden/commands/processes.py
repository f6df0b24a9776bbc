"""The commands that run a part of pgwarden until it is told to stop. Each part is loaded by name: one process needs one of them."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from pgwarden.config import Config, ConfigInvalid, load

Run: TypeAlias = Callable[[Config], int]

_PRIVATE: Final = 0o077  # whatever a part writes is its user's alone


def gateway(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.gateway_process")


def relay(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.relay_process")


def api(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.api_process")


def watchdog(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.watchdog_process")


def collector(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.collector_process")


def worker(arguments: argparse.Namespace) -> int:
    if (config := _started(arguments)) is None:
        return 2
    run = cast(Callable[[Config, str], int], importlib.import_module("pgwarden.worker_process").run)
    return run(config, arguments.name or "")


def metrics(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.metrics_process")


def webhooks(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.webhooks_process")


def dashboard(arguments: argparse.Namespace) -> int:
    return _process(arguments, "pgwarden.dashboard_process")


def up(arguments: argparse.Namespace) -> int:
    os.umask(_PRIVATE)
    run = cast(Callable[[argparse.Namespace], int], importlib.import_module("pgwarden.up").run)
    return run(arguments)


def rebuild(arguments: argparse.Namespace) -> int:
    if (config := _config(arguments)) is None:
        return 2
    run = cast(Callable[[Config, bool], int], importlib.import_module("pgwarden.rebuild").run)
    return run(config, bool(arguments.json))


def _process(arguments: argparse.Namespace, module: str) -> int:
    if (config := _started(arguments)) is None:
        return 2
    return cast(Run, importlib.import_module(module).run)(config)


def _started(arguments: argparse.Namespace) -> Config | None:
    if (config := _config(arguments)) is not None:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for chatty in ("httpx", "uvicorn.error"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    return config


def _config(arguments: argparse.Namespace) -> Config | None:
    os.umask(_PRIVATE)
    try:
        config = load(arguments.config)
    except ConfigInvalid as invalid:
        print(invalid, file=sys.stderr)
        return None
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return config
