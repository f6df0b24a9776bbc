"""`pgwarden doctor`: which collectors can run here, why not, and what to do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from pgwarden.config import Config, ConfigInvalid, load
from pgwarden.doctor import Diagnosis, look, sufficient
from pgwarden.printable import printable


def doctor(arguments: argparse.Namespace) -> int:
    """Exit status: 0 statements are seen, or would be; 1 not; 2 the configuration is wrong."""
    config: Config | None = None
    if arguments.config is not None:
        try:
            config = load(arguments.config)
        except ConfigInvalid as invalid:
            print(invalid, file=sys.stderr)
            return 2
    found = look(config)
    if arguments.json:
        print(json.dumps({"ok": sufficient(found), "collectors": [asdict(one) for one in found]}, indent=2))
    else:
        print("\n".join(line for one in found for line in _lines(one)))
        if not sufficient(found):
            print("\nNo collector sees statements: what runs round the gateway is not noticed.", file=sys.stderr)
    return 0 if sufficient(found) else 1


def _lines(one: Diagnosis) -> list[str]:
    what = f"{one.name or '-':<16} {one.kind:<9} {one.server or '-':<12} {one.sees:<11} {'works' if one.works else 'does not'}"
    return [
        what,
        *(f"    {printable(reason)}" for reason in one.reasons),
        *(f"    less than it could: {printable(dim)}" for dim in one.dim),
    ]
