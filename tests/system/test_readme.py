"""Every command of the README's tour does what the README says, in the README's order, on a running `pgwarden up`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pgwarden.cli import parser

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'<!-- run: shows "([^"]+)" -->\n```sh\n(.*?)```', re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("psql") is None, reason="the tour uses psql")
def test_the_tour_shows_what_it_promises(up, wait_for) -> None:  # type: ignore[no-untyped-def]
    wait_for(lambda: up.items("/v1/sessions", live="true", agent="reporting"), 20)
    blocks = BLOCK.findall(README)
    assert len(blocks) == README.count("<!-- run:") > 5
    for expected, command in blocks:
        said = ""

        def as_promised(command: str = command, expected: str = expected) -> bool:
            nonlocal said
            said = up.shell(command)
            return expected in said

        # The record reaches the tables a moment after the statement.
        assert as_promised() or wait_for(as_promised, 5, f"{command}\nshows {expected}, but: {said}\n{up.said()[-2000:]}")
    wait_for(lambda: up.items("/v1/sessions", live="true", agent="ingestion"), 20)


def test_every_command_in_the_readme_is_one() -> None:
    for line in re.findall(r"^(pgwarden [^#\n]*)", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.MULTILINE):
        import shlex

        parser().parse_args(shlex.split(line)[1:])
