"""References to secrets (`env:NAME`, `file:PATH`) and the wrapper that keeps what they name out of logs, errors and reports."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pgwarden.printable import printable
from pgwarden.small_files import Unreadable, content

SECRET_BYTES_MAX: Final = 8192  # libpq takes a password of any length, PgBouncer 1.18 one of 2047 bytes; tokens stay below 8 KB
REMEDY: Final = 'write "env:NAME" or "file:PATH"'

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


class Secret:
    """A value that only `reveal()` shows. What prints, formats, compares or copies it sees its source; what serialises it fails."""

    __slots__ = ("__value", "source")
    __hash__ = None  # type: ignore[assignment]  # a hash would have to be of the value, or break equality

    source: str

    def __init__(self, value: str, source: str) -> None:
        object.__setattr__(self, "_Secret__value", value)
        object.__setattr__(self, "source", source)

    def reveal(self) -> str:
        value: str = object.__getattribute__(self, "_Secret__value")
        return value

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a secret does not change")

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return format(repr(self), specification)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Secret:  # dataclasses.asdict copies this way
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not serialised: call reveal() where it is used")


@dataclass(frozen=True, slots=True)
class BadReference:
    """Why a reference gives no secret, and what to do; neither holds the text that was written, which may be a literal secret."""

    reason: str
    remedy: str


def resolve(reference: str, folder: Path, environ: Mapping[str, str]) -> Secret | BadReference:
    """Read what `reference` names. Paths are relative to `folder`."""
    kind, colon, name = reference.partition(":")
    if not colon or kind not in ("env", "file"):
        return BadReference("is a literal, and a secret is never written into this file", REMEDY)
    return _from_environment(name, environ) if kind == "env" else _from_file(name, folder)


def _from_environment(name: str, environ: Mapping[str, str]) -> Secret | BadReference:
    if _VARIABLE.fullmatch(name) is None:
        return BadReference("names no environment variable", 'write "env:" and a name of letters, digits and _')
    value = environ.get(name)
    if value is None:
        return BadReference(f"names the environment variable {name}, which is not set", f"export {name} before you start pgwarden")
    return _checked(value, f"env:{name}", f"the environment variable {name}")


def _from_file(name: str, folder: Path) -> Secret | BadReference:
    if not name or "\x00" in name:
        return BadReference("names no file", 'write "file:" and a path')
    try:
        path = folder / Path(name).expanduser()
    except RuntimeError:  # "~somebody", whom this system does not know
        return BadReference("names a file in the home of an unknown user", "write the whole path")
    shown = printable(str(path))
    found = content(path, SECRET_BYTES_MAX + 2)  # and the end of its line
    if isinstance(found, Unreadable):
        remedy = f"make {shown} with mode 0600" if found.missing else "name a file with one line of text"
        return BadReference(f"names the file {shown}, {found.reason}", remedy)
    if found.mode & 0o077:
        return BadReference(f"names the file {shown}, which others may read (mode {found.mode:04o})", f"run: chmod 600 {shown}")
    try:
        value = found.data.decode("utf-8")
    except UnicodeDecodeError:
        return BadReference(f"names the file {shown}, which is not UTF-8 text", "store the secret as one line of UTF-8 text")
    # Editors and `echo` end a line; a secret does not hold the end of its line.
    value = value.removesuffix("\n").removesuffix("\r")
    return _checked(value, f"file:{name}", f"the file {shown}")


def _checked(value: str, source: str, place: str) -> Secret | BadReference:
    if not value:
        return BadReference(f"names {place}, which is empty", f"put the secret into {place}")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        return BadReference(f"names {place}, which holds more than one line or control characters", "store the secret as one line")
    try:
        length = len(value.encode("utf-8"))
    except UnicodeEncodeError:  # the environment's undecodable bytes arrive as lone surrogates
        return BadReference(f"names {place}, which is not UTF-8 text", "store the secret as one line of UTF-8 text")
    if length > SECRET_BYTES_MAX:
        return BadReference(f"names {place}, which holds more than {SECRET_BYTES_MAX} bytes", "name the secret, not a larger file")
    return Secret(value, source)
