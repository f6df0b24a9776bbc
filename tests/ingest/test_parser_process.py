from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ingest import sql
from ingest.parser_process import ParserProcess, ParserSettings
from ingest.sql_limits import Limits

LARGE = "INSERT INTO public.orders (id, note) VALUES " + ", ".join(f"({n}, 'note {n}')" for n in range(2500))


@pytest.fixture
async def parser() -> AsyncIterator[ParserProcess]:
    parser = ParserProcess(ParserSettings(parse_ms_max=5000))
    yield parser
    await parser.close()


async def test_the_worker_says_what_the_parser_says_here(parser: ParserProcess) -> None:
    assert not sql.parses_inline(LARGE)
    for text in [LARGE, "", "SELECT 1; PREPARE p AS DELETE FROM t", "SELEC 1", "SELECT 'é' FROM ünïcode", "SELECT \udc80"]:
        assert await parser.parse(text) == sql.parse(text)


async def test_no_worker_runs_before_the_first_statement(parser: ParserProcess) -> None:
    assert parser.pid is None
    await parser.parse("SELECT 1")
    assert parser.pid is not None


async def test_a_killed_worker_costs_only_the_statement_it_was_parsing(parser: ParserProcess) -> None:
    await parser.parse("SELECT 1")
    first = parser.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    broken = asyncio.create_task(parser.parse("SELECT 2"))
    waiting = asyncio.create_task(parser.parse("SELECT 3"))
    await asyncio.sleep(0.05)
    os.kill(first, signal.SIGSEGV)
    os.kill(first, signal.SIGCONT)
    assert await broken == sql.Unparsable("54001", "statement is too complex", 0)
    assert await waiting == sql.parse("SELECT 3")
    assert parser.pid != first


async def test_a_worker_that_died_while_idle_is_replaced(parser: ParserProcess) -> None:
    await parser.parse("SELECT 1")
    first = parser.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert await parser.parse("SELECT 2") == sql.parse("SELECT 2")


async def test_a_worker_that_hangs_is_ended_at_the_time_limit(parser: ParserProcess) -> None:
    parser._settings = replace(parser._settings, parse_ms_max=100)
    await parser.parse("SELECT 1")
    first = parser.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    answer = await parser.parse("SELECT 2")
    assert isinstance(answer, sql.Unparsable)
    assert answer.sqlstate == "54001"
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    parser._settings = replace(parser._settings, parse_ms_max=5000)
    assert isinstance(await parser.parse("SELECT 3"), sql.Script)


async def test_a_worker_that_grows_past_its_memory_gives_up_the_statement() -> None:
    limits = Limits(statement_bytes_max=8 * 2**20, tokens_max=10_000_000)
    parser = ParserProcess(ParserSettings(parse_ms_max=30_000, memory_bytes_max=300 * 2**20, limits=limits))
    try:
        answer = await parser.parse("SELECT 1 WHERE 1 IN (" + "1," * 1_500_000 + "1)")
        assert isinstance(answer, sql.Unparsable)
        assert isinstance(await parser.parse("SELECT 1"), sql.Script)
    finally:
        await parser.close()


async def test_a_cancelled_caller_leaves_no_answer_for_the_next(parser: ParserProcess) -> None:
    await parser.parse("SELECT 1")
    task = asyncio.create_task(parser.parse(LARGE))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await parser.parse("SELECT 3") == sql.parse("SELECT 3")


async def test_statements_beyond_the_queue_are_refused_at_once() -> None:
    parser = ParserProcess(ParserSettings(parse_ms_max=5000, waiting_max=2))
    try:
        answers = await asyncio.gather(*(parser.parse(f"SELECT {n}") for n in range(4)))
        assert [type(answer).__name__ for answer in answers] == ["Script", "Script", "Unparsable", "Unparsable"]
        assert isinstance(answers[3], sql.Unparsable)
        assert answers[3].sqlstate == "53000"
    finally:
        await parser.close()


async def test_the_worker_has_nothing_of_this_environment(parser: ParserProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    await parser.parse("SELECT 1")
    with open(f"/proc/{parser.pid}/environ") as environment:
        assert "SHOP_PASSWORD" not in environment.read()


async def test_nothing_is_parsed_after_close(parser: ParserProcess) -> None:
    await parser.parse("SELECT 1")
    await parser.close()
    with pytest.raises(RuntimeError):
        await parser.parse("SELECT 1")
