"""What `pgwarden status` makes of a process's word, and both ends of the socket that carries it."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from pgwarden.cli import main
from pgwarden.status_socket import STATUS_BYTES_MAX, listen, read_status, serve_status, status_of

WRONG = "Input data was truncated|Expected `object`|malformed|larger than"
HEALTHY = {"log": {"available": True, "reason": ""}, "blind": []}
FILE = 'state = "state"\n'


async def served(path: Path, status: Mapping[str, object]) -> Mapping[str, object]:
    async with await serve_status(path, lambda: status):
        assert await asyncio.to_thread(status_of, path, 10.0) == await read_status(path, 10.0)
        return await read_status(path, 10.0)


async def test_what_is_served_is_read_whole_by_either_reader(tmp_path: Path) -> None:
    status = {"sessions": [{"session": f"s{n}", "text": "a\nb" * 20} for n in range(10_000)]}
    assert await served(tmp_path / "s.sock", status) == status


async def test_only_its_user_may_open_the_socket_and_one_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    for _ in range(2):
        server = await serve_status(path, lambda: HEALTHY)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert await read_status(path, 10.0) == HEALTHY
        server.close()


@pytest.mark.parametrize("word", [b"", b"[]", b"{", b'"' + b"x" * (STATUS_BYTES_MAX + 1)], ids=["nothing", "list", "cut", "huge"])
async def test_an_answer_that_is_no_object_is_an_error_to_either_reader(tmp_path: Path, word: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(word)
        writer.close()

    async with await listen(tmp_path / "s.sock", answer):
        with pytest.raises(ValueError, match=WRONG):
            await read_status(tmp_path / "s.sock", 10.0)
        with pytest.raises(ValueError, match=WRONG):
            await asyncio.to_thread(status_of, tmp_path / "s.sock", 10.0)


async def test_the_first_line_of_what_goes_on_is_the_answer(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"error": ""}\n{"error": "later"}\n')
        await reader.read()  # stays open until the other side closes
        writer.close()

    async with await listen(tmp_path / "s.sock", answer):
        assert await read_status(tmp_path / "s.sock", 10.0) == {"error": ""}
        assert await asyncio.to_thread(status_of, tmp_path / "s.sock", 10.0) == {"error": ""}


@pytest.mark.parametrize(
    ("part", "status", "wrong"),
    [
        ("gateway", HEALTHY, ""),
        ("gateway", {"log": {"available": False, "reason": "no space left"}}, "cannot record: no space left"),
        ("relay", {"error": ""}, ""),
        ("relay", {"error": "connecting: nobody listens"}, "connecting: nobody listens"),
        ("watchdog", HEALTHY, ""),
        ("watchdog", {"blind": [{"what": "the log", "reason": "it hangs"}]}, "does not see the log: it hangs"),
        ("watchdog", {"log": {"available": False, "reason": "no space left"}}, "cannot record: no space left"),
        ("worker", {"reason": ""}, ""),
        ("worker", {"reason": "behind for 31 s"}, "behind for 31 s"),
    ],
)
async def test_status_says_why_a_process_is_not_well(
    part: str, status: Mapping[str, object], wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pgwarden.toml").write_text(FILE)
    async with await serve_status(tmp_path / "state" / "run" / f"{part}.sock", lambda: status):
        code = await asyncio.to_thread(main, ["status", part, "-c", str(tmp_path / "pgwarden.toml"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (code, said["well"], said["reason"]) == (1 if wrong else 0, not wrong, wrong)


def test_status_finds_the_samples_as_the_other_commands_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGWARDEN_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".pgwarden").mkdir()
    (tmp_path / ".pgwarden" / "pgwarden.toml").write_text('state = "."\n')
    assert main(["status", "gateway"]) == 1
    assert f"gateway: does not answer on {tmp_path}/.pgwarden/run/gateway.sock: " in capsys.readouterr().err
    (tmp_path / "pgwarden.toml").write_text('state = "mine"\n')
    assert main(["status", "gateway"]) == 1
    assert f"{tmp_path}/mine/run/gateway.sock" in capsys.readouterr().err


def test_status_says_that_a_process_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pgwarden.toml").write_text(FILE)
    assert main(["status", "watchdog", "-c", str(tmp_path / "pgwarden.toml")]) == 1
    assert "watchdog: does not answer on" in capsys.readouterr().err
