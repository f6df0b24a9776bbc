"""The migration agent: makes, alters and fills tables of one schema through a psql of its own. Now and then it aims at another's.

Where and as whom psql connects stands in a connection service of libpq, as for ingestion.py.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import time
from collections.abc import Iterator

from pgwarden.postgres import die_with_parent
from pgwarden.psql import psql
from pgwarden.samples.backoff import Backoff, one_line, say

PAUSE_SECONDS = 0.7
ROUND = (
    "CREATE TABLE IF NOT EXISTS app.totals_{n} (customer bigint PRIMARY KEY, total numeric NOT NULL);",
    "INSERT INTO app.totals_{n} SELECT customer, sum(amount) FROM public.orders GROUP BY customer ON CONFLICT DO NOTHING;",
    "ALTER TABLE app.totals_{n} ADD COLUMN IF NOT EXISTS grade text;",
    "DROP TABLE public.orders;",
    "BEGIN; UPDATE app.totals_{n} SET grade = 'gold' WHERE total > 1000; COMMIT;",
    "COPY app.totals_{n} (customer, total) FROM STDIN;\n{copied}\t12.50\n\\.",
    "CREATE INDEX IF NOT EXISTS totals_{n}_grade ON app.totals_{n} (grade);",
    "DELETE FROM app.totals_{n} WHERE total < 50;",
    "DROP TABLE IF EXISTS app.totals_{before};",
)
_MARK = "end-of-statement"
_ANSWER = re.compile(rf"{_MARK} (\S{{5}}) ?(.*)")


class ConnectionEnded(Exception):
    """psql is gone. Says what it said last."""


def statement(turn: int) -> str:
    n = turn // len(ROUND)
    return ROUND[turn % len(ROUND)].format(n=n % 8, before=(n - 2) % 8, copied=1_000_000 + n)


def ask(process: subprocess.Popen[str], text: str) -> str:
    """Let psql run one statement; return its refusal, "" when it was done.

    Raises:
        ConnectionEnded: psql ended, which it does when its connection does.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[str] = []
    try:
        process.stdin.write(f"{text}\n\\echo {_MARK} :SQLSTATE :LAST_ERROR_MESSAGE\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # what psql said before it ended is still to be read
    for line in process.stdout:
        if answer := _ANSWER.match(line):
            return "" if answer[1] == "00000" else f"{answer[2]} ({answer[1]})"
        said.append(line)
    raise ConnectionEnded("".join(said) or f"psql ended with status {process.wait(5)}")


def work(process: subprocess.Popen[str], turns: Iterator[int]) -> None:
    for turn in turns:
        if refusal := ask(process, statement(turn)):
            say(f"refused: {one_line(refusal)}")
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    program = psql()
    backoff, turns = Backoff(), itertools.count()
    while True:
        process = subprocess.Popen(
            [program.path, "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=program.environment({"PGAPPNAME": "migration sample", "PGCONNECT_TIMEOUT": "10"}),
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, prepared; no threads here
        )
        with process:
            try:
                if refusal := ask(process, "SELECT 1;"):
                    say(f"refused: {one_line(refusal)}")
                say("connected through psql")
                backoff.reset()
                work(process, turns)
            except ConnectionEnded as error:
                seconds = backoff.after(str(error))
            finally:
                process.kill()
        time.sleep(seconds)


if __name__ == "__main__":
    main()
