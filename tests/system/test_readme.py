"""Every command of the README's tour does what the README says, in the README's order, on a running `pgwarden up`."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgwarden.cli import parser

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'<!-- run: shows "([^"]+)"(?:, not "([^"]+)")? -->\n```sh\n(.*?)```', re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("psql") is None, reason="the tour uses psql")
def test_the_tour_shows_what_it_promises(up: Any, wait_for: Callable[..., Any]) -> None:
    wait_for(lambda: up.items("/v1/sessions", live="true", agent="reporting"), 20)
    blocks = BLOCK.findall(README)
    assert len(blocks) == README.count("<!-- run:") > 5
    for expected, unexpected, command in blocks:
        said = up.shell(command)
        until = time.monotonic() + 5  # the record reaches the tables a moment after the statement
        while expected not in said or (unexpected and unexpected in said):
            assert time.monotonic() < until, (
                f"{command}\nshould show {expected!r} and not {unexpected!r}, but:\n{said}\n{up.logs()}"
            )
            time.sleep(0.2)
            said = up.shell(command)
    wait_for(lambda: up.items("/v1/sessions", live="true", agent="ingestion"), 20)


def test_every_command_in_the_readme_is_one() -> None:
    for line in re.findall(r"^(pgwarden [^#\n]*)", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.MULTILINE):
        parser().parse_args(shlex.split(line)[1:])
