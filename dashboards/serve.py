"""`python -m dashboards.serve`, in place of `python -m streamlit`: the same server, but what pages need is imported before anybody
asks for one, and no first viewer waits for it."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from streamlit.web import cli

# All of app.py's, and what Streamlit and httpx import when they are first asked to draw a widget or to send a request.
NEEDED: Final = (
    *(
        f"dashboards.{name}"
        for name in ("admission", "agents", "coverage", "findings", "foot", "now", "sessions", "sql", "statements")
    ),
    "_strptime",
    "httpcore",
    "pandas",
    "PIL.Image",
    "pyarrow.compute",
)


def main(arguments: Sequence[str]) -> None:
    """Ends the process, when the server ends."""
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays for good: no collection need look at it again
    cli.main(list(arguments), prog_name="streamlit")


if __name__ == "__main__":
    main(sys.argv[1:])
