"""`pgwarden init` and `pgwarden verify-config`: what comes before anything runs."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from pgwarden import init_file
from pgwarden.config import OPERATOR_NAME, Config, ConfigInvalid, Problem, load
from pgwarden.online_check import Answer, look
from pgwarden.printable import printable
from pgwarden.small_files import reason_of


def init(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    operator = arguments.operator or _login_name()
    if OPERATOR_NAME.fullmatch(operator) is None or operator == "config":
        return _failed(
            arguments, f"{printable(operator)!r} is no name for an operator; write --operator with a-z, 0-9, '.', '_', '-', '@'", 2
        )
    shown = printable(str(path))
    try:
        key = init_file.write(path, operator, arguments.role)
    except FileExistsError:
        return _failed(arguments, f"{shown} is there already and was not touched; name another file, or move it away", 1)
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        return _failed(arguments, f"{shown} cannot be written: {reason}; name a file in a folder that you may write", 1)
    open_points = _problems(path)
    if arguments.json:
        points = [_as_json(problem) for problem in open_points]
        print(
            json.dumps(
                {"path": str(path), "operator": operator, "role": arguments.role, "operator_key": key, "to_do": points}, indent=2
            )
        )
        return 0
    print(f"Wrote {shown}.\n")
    what = f"The operator key of {operator} ({arguments.role})"
    print(f"{what}, shown this once and kept nowhere (the file holds its SHA-256):\n\n    {key}\n")
    print("Keep it in a password store. Commands take it from PGWARDEN_OPERATOR_KEY, or from --operator-key-file; commands and the")
    print("dashboard also from the file operator.key in the state folder, mode 0600.\n")
    print("Still to do:")
    for problem in open_points:
        print(f"  {problem}")
    print(f"\nThen check the file with: pgwarden verify-config -c {shown}")
    return 0


def verify_config(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigInvalid as invalid:
        if arguments.json:
            print(json.dumps({"ok": False, "problems": [_as_json(problem) for problem in invalid.problems]}, indent=2))
        else:
            print(invalid, file=sys.stderr)
            count = len(invalid.problems)
            print(
                f"\n{count} problem{'s' * (count != 1)}: correct {'them' if count != 1 else 'it'}, and check again.",
                file=sys.stderr,
            )
        return 2
    answers = look(config) if arguments.online else ()
    works = all(answer.works for answer in answers)
    if arguments.json:
        document: dict[str, object] = {"ok": works, "path": str(config.path), "summary": _summary(config)}
        document["warnings"] = [_as_json(warning) for warning in config.warnings]
        if arguments.online:
            document["online"] = [_answer_as_json(answer) for answer in answers]
        print(json.dumps(document, indent=2))
        return 0 if works else 1
    print(f"{printable(str(config.path))}: ok")
    for name, value in _summary(config).items():
        print(f"  {name + ':':13} {value}")
    for warning in config.warnings:
        print(f"warning: {warning}")
    for answer in answers:
        print(f"{answer.name}: {'ok: ' if answer.works else 'failed: '}{answer.found}")
        if answer.warning:
            print(f"warning: {answer.name}: {answer.warning}")
    return 0 if works else 1


def _problems(path: Path) -> tuple[Problem, ...]:
    """What is to be filled in."""
    try:
        load(path)
    except ConfigInvalid as invalid:
        return invalid.problems
    return ()


def _login_name() -> str:
    try:
        name = getpass.getuser().lower()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "operator"
    name = re.sub(r"[^a-z0-9._-]", "", name).lstrip("._-")[:63]
    return name if name and name != "config" else "operator"


def _summary(config: Config) -> dict[str, str]:
    return {
        "state": printable(str(config.state)),
        "gateway": f"{config.gateway.listen}, TLS {config.gateway.tls}, durability {config.gateway.durability}",
        "api": str(config.api.listen),
        "dashboard": str(config.dashboard.listen),
        "log": "on this machine" if config.kafka is None else f"in Kafka at {_listed(config.kafka.bootstrap)}",
        "connections": _listed(config.connections),
        "collectors": _listed(config.collectors),
        "issuers": _listed(config.issuers),
        "agents": _listed(config.agents),
        "operators": _listed(config.operators),
    }


def _listed(names: Iterable[str]) -> str:
    found = [printable(name) for name in names]
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(found[:10]) + more or "none"


def _as_json(problem: Problem) -> dict[str, object]:
    return {"path": problem.path, "line": problem.line, "reason": problem.reason, "remedy": problem.remedy}


def _answer_as_json(answer: Answer) -> dict[str, object]:
    return {"name": answer.name, "works": answer.works, "found": answer.found, "warning": answer.warning}


def _failed(arguments: argparse.Namespace, sentence: str, code: int) -> int:
    if arguments.json:
        print(json.dumps({"error": sentence}))
    else:
        print(f"pgwarden: {sentence}", file=sys.stderr)
    return code
