"""The reporting agent: aggregates and cursors with asyncpg, an OIDC access token as its password. Now and then it tries a DELETE.

PGHOST, PGPORT, PGDATABASE, PGUSER and PGSSLROOTCERT say where; PGWARDEN_ISSUER, PGWARDEN_CLIENT and PGWARDEN_CLIENT_SECRET_FILE
where its tokens come from.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx

from pgwarden.samples.backoff import Backoff, one_line, say

PAUSE_SECONDS = 0.6
RENEW_AT = 0.75  # of a token's life: a session ends when the token it rests on does

REVENUE = """
SELECT c.city, count(*) AS orders, sum(o.amount) AS revenue, round(avg(o.amount), 2) AS average
FROM public.orders AS o JOIN public.customers AS c ON c.id = o.customer
WHERE o.ordered_on >= make_date(2025, $1, 1)
GROUP BY c.city ORDER BY revenue DESC
"""
BEST_SELLERS = """
WITH sold AS (SELECT product, sum(quantity) AS pieces FROM public.orders GROUP BY product)
SELECT p.name, s.pieces, rank() OVER (ORDER BY s.pieces DESC) FROM sold AS s JOIN public.products AS p ON p.id = s.product LIMIT 10
"""
EVERY_ORDER = "SELECT id, amount FROM public.orders WHERE ordered_on >= make_date(2025, $1, 1) ORDER BY id"
ONE_TOO_MANY = "DELETE FROM public.orders WHERE id = $1"


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    renew_at: float  # time.monotonic()


async def token(issuer: str, client: str, secret: str) -> Token:
    """The client credentials grant (RFC 6749 §4.4) at the endpoint that the issuer names (OpenID Connect Discovery 1.0 §4)."""
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        found = (await http.get(f"{issuer}/.well-known/openid-configuration")).raise_for_status().json()
        answer = await http.post(
            found["token_endpoint"],
            data={"grant_type": "client_credentials"},
            auth=(client, secret),
        )
        body = answer.raise_for_status().json()
    return Token(body["access_token"], time.monotonic() + RENEW_AT * float(body["expires_in"]))


async def step(session: asyncpg.Connection, turn: int) -> None:
    month = 1 + turn % 12
    match turn % 7:
        case 0 | 5:
            await session.fetch(REVENUE, month)
        case 1:
            await session.fetch(BEST_SELLERS)
        case 2 | 6:
            async with session.transaction(isolation="repeatable_read", readonly=True):
                cursor = await session.cursor(EVERY_ORDER, month)
                while await cursor.fetch(100):
                    if turn % 2:  # half of the time it has seen enough after one page
                        break
        case 3:
            await session.execute(ONE_TOO_MANY, turn)
        case _:
            await session.fetchval("SELECT count(*) FROM public.customers")


async def work(session: asyncpg.Connection, until: float, turns: Iterator[int]) -> None:
    """Return when the token should be renewed; raise when the connection ends."""
    for turn in turns:
        try:
            await step(session, turn)
        except asyncpg.InsufficientPrivilegeError as refusal:
            say(f"refused: {one_line(str(refusal))}")
        if time.monotonic() > until:
            return
        await asyncio.sleep(PAUSE_SECONDS)


async def run(issuer: str, client: str, secret: str) -> None:
    trusted = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
    backoff, turns = Backoff(), itertools.count()
    while True:
        try:
            current = await token(issuer, client, secret)
            session = await asyncpg.connect(
                password=current.text,
                ssl=trusted,
                timeout=10,
                command_timeout=30,
                server_settings={"application_name": "reporting sample"},
            )
            try:
                say(f"connected with a token, backend {session.get_server_pid()}")
                backoff.reset()
                await work(session, current.renew_at, turns)
                say("the token is about to end: connecting again with a new one")
            finally:
                await session.close(timeout=2)
        except (OSError, httpx.HTTPError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            await asyncio.sleep(backoff.after(f"{type(error).__name__}: {error}"))


def main() -> None:
    secret = Path(os.environ["PGWARDEN_CLIENT_SECRET_FILE"]).read_text(encoding="ascii").strip()
    asyncio.run(run(os.environ["PGWARDEN_ISSUER"], os.environ["PGWARDEN_CLIENT"], secret))


if __name__ == "__main__":
    main()
