"""The API as a process: who reads the record is in the record, and only administrators see who did."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from identity.agent_keys import create_operator_key
from ingest.events import RecordRead
from pgwarden.cli import main
from tests.broker import port
from tests.pgwarden.test_api_process import ALICE, CONFIG, Process, recorded, running, write_key

VERA, VERA_SHA256 = create_operator_key()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    viewer = f'[operators.vera]\nkey_sha256 = "{VERA_SHA256}"\nrole = "viewer"\n'
    (tmp_path / "pgwarden.toml").write_text(CONFIG + viewer, encoding="utf-8")
    write_key(tmp_path)
    return tmp_path


def looks(folder: Path) -> list[tuple[str, str, dict[str, object], int, str, int]]:
    found = [event for event in recorded(folder, "looks") if isinstance(event, RecordRead)]
    return [(look.operator, look.question, json.loads(look.parameters), look.rows, look.through, look.times) for look in found]


@pytest.mark.slow
def test_what_was_read_is_in_the_record_with_who_read_it(
    folder: Path, free_port: int, wait_for: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "never looked at here")
    monkeypatch.setenv("PGWARDEN_OPERATOR_KEY", VERA)
    with running(folder, free_port) as api:
        wait_for(lambda: api.get("/v1/agents/reporter").status_code == 200)
        assert api.get("/v1/health").status_code == api.get("/v1/me").status_code == 200
        before = len(looks(folder))
        for _ in range(3):
            assert api.get("/v1/statements?agent=reporter", VERA).status_code == 200
        assert api.post("/v1/sql", {"sql": "select agent from agents"}, VERA).status_code == 200
        assert main(["sessions", "-c", str(folder / "pgwarden.toml")]) == 0
        assert looks(folder)[before:] == [
            ("vera", "statements", {"agent": "reporter"}, 0, "api", 1),
            ("vera", "sql", {"sql": "select agent from agents"}, 1, "api", 1),
            ("vera", "sessions", {"limit": "100"}, 0, "command line", 1),
        ]
        wait_for(lambda: api.get("/v1/looks?operator=vera&question=sql").json()["items"])
        shown = api.get("/v1/looks?operator=vera&question=sql").json()["items"]
        assert [(look["parameters"], look["rows"], look["times"]) for look in shown] == [
            ({"sql": "select agent from agents"}, 1, 1)
        ]
    # What was repeated within the minute is told at the latest when the API ends.
    assert ("vera", "statements", {"agent": "reporter"}, 0, "api", 2) in looks(folder)


@pytest.mark.slow
def test_who_looked_is_told_to_administrators_alone(folder: Path, free_port: int) -> None:
    with running(folder, free_port) as api:
        assert api.get("/v1/looks").status_code == 200
        for path in ("/v1/looks", "/v1/questions/looks"):
            refused = api.get(path, VERA)
            assert (refused.status_code, "administrator" in refused.json()["error"]) == (403, True)
        for sql in ("select * from looks", "from query_table('looks')", "from query('select * from looks')"):
            for key in (VERA, ALICE):
                assert api.post("/v1/sql", {"sql": sql}, key).status_code == 422, sql


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accept", "begin"),
    [
        ("text/csv", b"agent,owner\r\nreporter,finance\r\n"),
        ("application/vnd.apache.parquet", b"PAR1"),
        ("application/vnd.apache.arrow.stream", b"\xff\xff\xff\xff"),
        ("application/json", b'{"columns": '),
        ("*/*", b'{"columns": '),
    ],
)
def test_sql_answers_in_the_format_that_was_asked_for(api: Process, accept: str, begin: bytes) -> None:
    answer = asked(api, "select agent, owner from agents", accept)
    assert (answer.status_code, answer.headers["pgwarden-rows"], answer.content[: len(begin)]) == (200, "1", begin)
    assert answer.headers["content-type"].split(";")[0] == (accept if accept != "*/*" else "application/json")
    assert "pgwarden-notice" not in answer.headers


@pytest.mark.slow
def test_an_answer_that_was_cut_says_so_in_every_format(api: Process) -> None:
    for accept in ("text/csv", "application/vnd.apache.parquet", "application/json"):
        answer = asked(api, "select * from range(20000)", accept)
        assert answer.headers["pgwarden-rows"] == "10000"
        assert answer.headers["pgwarden-notice"].startswith("The answer was cut after 10,000 rows;")
    assert asked(api, "select 1", "image/png").status_code == 406


@pytest.mark.slow
def test_where_repeats_are_not_counted_each_look_is_an_event(api: Process, wait_for: Callable[..., object]) -> None:
    for _ in range(3):
        assert api.get("/v1/statements?agent=nobody").status_code == 200

    def told() -> list[int]:
        items = api.get("/v1/looks?question=statements&mentions=nobody").json()["items"]
        return [look["times"] for look in items]

    wait_for(lambda: told() == [1, 1, 1])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("formats")
    (folder / "pgwarden.toml").write_text(f"{CONFIG}[looks]\nrepeat_seconds = 0.0\n", encoding="utf-8")
    write_key(folder)
    with running(folder, port()) as process:
        yield process


def asked(api: Process, sql: str, accept: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ALICE}", "Accept": accept}
    return httpx.post(f"{api.url}/v1/sql", json={"sql": sql}, headers=headers, timeout=60, trust_env=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "begin"), [("csv", b"session,agent,"), ("parquet", b"PAR1")])
def test_statements_are_exported_as_a_file_and_that_is_recorded(api: Process, kind: str, begin: bytes) -> None:
    answer = api.get(f"/v1/export/statements?agent=reporter&format={kind}")
    assert (answer.status_code, answer.headers["pgwarden-rows"], answer.content[: len(begin)]) == (200, "0", begin)
    assert answer.headers["content-disposition"].startswith('attachment; filename="statements-2')
    assert ("alice", "export statements", {"agent": "reporter", "format": kind}, 0, "api", 1) in looks(api.log.parent)
    assert api.get("/v1/export/statements?format=xlsx").status_code == 422
