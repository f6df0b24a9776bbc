"""Agents at work through every gateway: each statement bears a marker, and what a client was told is kept."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

Connect = Callable[[str, str], psycopg.Connection[tuple[object, ...]]]
"""(agent, gateway) -> a session."""


@dataclass
class Told:
    """Markers, by what became of them for the client. One that is in neither was under way when its session ended."""

    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # sent, and no grant allows them
    errors: list[str] = field(
        default_factory=list
    )  # SQLSTATEs of sessions that ended, and of statements that could not be recorded


class Load:
    """Use as a context manager; its end is that of every session. Deterministic but for time: one seed an agent."""

    def __init__(
        self, agents: Sequence[str], gateways: Sequence[str], connect: Connect, seed: int, pause_seconds: float = 0.5
    ) -> None:
        self.told = Told()
        self._agents, self._gateways, self._connect, self._seed = agents, gateways, connect, seed
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._round = 0

    def __enter__(self) -> Load:
        self._round += 1
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._work, args=(number, agent), daemon=True) for number, agent in enumerate(self._agents)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def progress(self) -> int:
        with self._lock:
            return len(self.told.acknowledged)

    def _work(self, number: int, agent: str) -> None:
        chance = random.Random(f"{self._seed}/{self._round}/{number}")
        count = 0
        while not self._stop.is_set():
            gateway = self._gateways[(number + chance.randrange(2)) % len(self._gateways)]
            try:
                with self._connect(agent, gateway) as session:
                    while not self._stop.is_set():
                        count += 1
                        self._one(session, chance, f"m:{agent}.{self._round}.{count}")
                        self._stop.wait(self._pause_seconds * chance.random() * 2)
            except psycopg.Error as error:
                with self._lock:
                    self.told.errors.append(error.sqlstate or type(error).__name__)
                self._stop.wait(0.2)

    def _one(self, session: psycopg.Connection[tuple[object, ...]], chance: random.Random, marker: str) -> None:
        kind = chance.randrange(10)
        if kind < 2:
            with self._lock:
                self.told.refused.add(marker)
            try:
                session.execute(f"SELECT '{marker}', amount FROM salaries".encode(), prepare=kind == 1)
            except psycopg.errors.InsufficientPrivilege:
                return
            with self._lock:
                self.told.acknowledged.add(marker)
            return
        insert = f"INSERT INTO orders (customer, amount) VALUES ('{marker}', 1)"
        if kind < 5:
            if kind == 2:
                psycopg.ClientCursor(session).execute(insert.encode())  # the simple protocol
            else:
                session.execute(insert.encode())
        elif kind < 7:
            with session.pipeline():
                session.execute(f"SELECT '{marker}.a'".encode())
                session.execute(insert.encode())
        elif kind < 8:
            with session.transaction():
                session.execute(insert.encode())
                session.execute(f"INSERT INTO orders (customer, amount) VALUES ('{marker}.t', 2)".encode())
        else:
            session.execute(f"SELECT count(*), '{marker}' FROM orders WHERE id < 50".encode())
        with self._lock:
            self.told.acknowledged.add(marker)
