"""The ingestion agent: reads two tables with psycopg, its agent key proven by SCRAM. Now and then it looks at a third.

Where and as whom it connects stands in a connection service of libpq: PGSERVICEFILE and PGSERVICE name it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import psycopg
from psycopg.rows import TupleRow

from pgwarden.samples.backoff import Backoff, one_line, say

PAUSE_SECONDS = 0.5
BATCH_ROWS = 50

Session = psycopg.Connection[TupleRow]


def new_orders(session: Session, watermark: int) -> None:
    session.execute(
        "SELECT id, customer, amount FROM public.orders WHERE id > %s ORDER BY id LIMIT %s", (watermark, BATCH_ROWS)
    ).fetchall()


def their_customers(session: Session, watermark: int) -> None:
    """Two reads of one moment."""
    with session.transaction():
        rows = session.execute(
            "SELECT DISTINCT customer FROM public.orders WHERE id > %s AND id <= %s", (watermark, watermark + BATCH_ROWS)
        )
        wanted = [customer for (customer,) in rows]
        session.execute("SELECT id, name, city FROM public.customers WHERE id = ANY(%s)", (wanted,)).fetchall()


def several_at_once(session: Session, watermark: int) -> None:
    with session.pipeline():
        for shift in range(3):
            session.execute("SELECT amount FROM public.orders WHERE id = %s", (watermark + shift,))


def a_large_read(session: Session, watermark: int) -> None:
    with session.transaction(), session.cursor(name="ingest") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT id, ordered_on FROM public.orders WHERE id > %s ORDER BY id", (watermark,))
        cursor.fetchmany(200)


def one_too_many(session: Session, watermark: int) -> None:
    session.execute("SELECT employee, salary FROM public.payroll")


ROUND: tuple[Callable[[Session, int], None], ...] = (
    new_orders,
    their_customers,
    one_too_many,
    several_at_once,
    new_orders,
    a_large_read,
    their_customers,
    new_orders,
)


def work(session: Session, rounds: Iterator[int]) -> None:
    """Go on until the connection ends."""
    for turn in rounds:
        step = ROUND[turn % len(ROUND)]
        try:
            step(session, turn * BATCH_ROWS % 5000)
        except psycopg.errors.InsufficientPrivilege as refusal:
            say(f"refused: {one_line(str(refusal))}")
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    backoff, rounds = Backoff(), itertools.count()
    while True:
        try:
            with psycopg.connect(autocommit=True, connect_timeout=10, application_name="ingestion sample") as session:
                say(f"connected as {session.info.user}, backend {session.info.backend_pid}")
                backoff.reset()
                work(session, rounds)
        except psycopg.OperationalError as error:
            time.sleep(backoff.after(str(error)))


if __name__ == "__main__":
    main()
