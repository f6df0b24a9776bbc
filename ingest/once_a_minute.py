"""What a library logs goes in; what an operator can use of it comes out, each kind of it once a minute."""

from __future__ import annotations

import logging
import time
from typing import Final

_REPEATED_SECONDS: Final = 60.0
_KINDS_MAX: Final = 1_000  # remembered; what has no arguments is one kind, and what has some is a kind by its format


class OnceAMinute(logging.Handler):
    """Passes warnings on to another logger: with a broker away libraries say the same ten times a second."""

    def __init__(self, to: logging.Logger, *, faults: bool = False) -> None:
        """`faults`: what comes with an exception is passed on as an error, with its traceback.

        Other errors are passed on as warnings: to a library a broker that is away is one, to us only if the log says worse.
        """
        super().__init__(logging.WARNING)
        self._to = to
        self._faults = faults
        self._passed: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        kind = f"{record.name}: {record.msg if record.args else ''}"
        if now - self._passed.get(kind, -_REPEATED_SECONDS) < _REPEATED_SECONDS:
            return
        if len(self._passed) >= _KINDS_MAX:
            self._passed.clear()
        self._passed[kind] = now
        fault = record.exc_info if self._faults else None
        self._to.log(logging.ERROR if fault else logging.WARNING, "%s: %s", record.name, record.getMessage(), exc_info=fault)
