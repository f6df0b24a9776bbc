"""`pgwarden witness`: reads no configuration, since that may name a secret; all that it is told stands on its command line."""

from __future__ import annotations

import argparse
import logging
import pwd
import sys
from pathlib import Path

from ingest.collectors.ebpf import witness
from ingest.collectors.ebpf.attach import ProbeSettings
from pgwarden.printable import printable

REFUSED = 1
USAGE = 2


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    data = Path(arguments.data)
    probes = ProbeSettings(
        arguments.name,
        data if data.is_absolute() else Path.cwd() / data,
        nested=arguments.nested,
        ring_bytes=arguments.ring_mib * 2**20,
    )
    if arguments.remove:
        return witness.remove(probes)
    users = []
    for name in (arguments.client, arguments.user):
        try:
            users.append(pwd.getpwnam(name))
        except KeyError:
            print(
                f"pgwarden witness: there is no user {printable(name)}: make it with useradd --system, or name another",
                file=sys.stderr,
            )
            return USAGE
    client, own = users
    if own.pw_uid == 0:
        print("pgwarden witness: --user is for the half that needs no privilege: name one that is not root", file=sys.stderr)
        return USAGE
    settings = witness.WitnessSettings(
        probes, Path(arguments.socket).absolute(), client.pw_uid, client.pw_gid, own.pw_uid, own.pw_gid
    )
    return witness.run(settings)
