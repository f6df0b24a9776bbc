"""`pgwarden hold`, `release`, `throttle`, `unthrottle`: what holds an agent back short of a revocation."""

from __future__ import annotations

import argparse

from pgwarden.api_client import Json, Place, path
from pgwarden.commands.answers import answered, command, not_applied, print_json
from pgwarden.printable import printable


def hold(arguments: argparse.Namespace) -> int:
    return _restrain(arguments, "hold", {}, "is held: its statements are refused until it is released")


def release(arguments: argparse.Namespace) -> int:
    return _restrain(arguments, "release", {}, "is released")


def throttle(arguments: argparse.Namespace) -> int:
    body: Json = {"per_minute": arguments.per_minute}
    return _restrain(arguments, "throttle", body, f"may send {arguments.per_minute} statements a minute at each gateway")


def unthrottle(arguments: argparse.Namespace) -> int:
    return _restrain(arguments, "unthrottle", {}, "is throttled no more")


def _restrain(arguments: argparse.Namespace, verb: str, body: Json, done: str) -> int:
    def work(place: Place) -> int:
        answer = command(arguments, place, path("agents", arguments.agent, verb), {**body, "reason": arguments.reason})
        if arguments.json:
            print_json(answer)
            return 0 if answer.get("applied") is not False else 1
        print(f"{printable(str(answer.get('agent', '')))} {done}")
        return 1 if not_applied(answer) else 0

    return answered(arguments, work)
